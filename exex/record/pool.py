"""What the record's writer keeps meanwhile: arrays of what is known of unfinished tasks, and columns of messages. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exex.record.frames import HEAD, Frame

Array = NDArray[Any]
Columns = dict[str, Array]

CLIENT_BITS = 40
"""The client's number is above these bits of a task's."""

_PAGE_BITS = 8  # few: task processes are clients, there are many, and each has a page
_CLOSE = 1 << 14
"""Numbers that are closer to each other than that are counted in an array."""

_PAGE = 1 << _PAGE_BITS
_NOWHERE = -(1 << 62)
"""Less the place of a page: it is not there."""

_FIELDS: dict[str, str] = {
    "app": "u4", "attempt": "u2", "rank": "i4", "state": "u1", "submit_us": "i8", "ready_us": "i8", "assign_us": "i8",
    "answer_us": "i8", "bytes_in": "u8",
}  # fmt: skip


class Pool:
    """What is known of unfinished tasks: arrays, in pages of consecutive task numbers."""

    def __init__(self) -> None:
        self.fields: Columns = {name: np.zeros(0, dtype) for name, dtype in _FIELDS.items()}
        self._places: dict[int, int] = {}  # page -> its place in the arrays
        self._free: list[int] = []
        self._open: dict[int, int] = {}  # page -> tasks without an end
        self._newest: dict[int, int] = {}  # client -> its last page

    def __len__(self) -> int:
        """How many pages there are."""
        return len(self._places)

    def add(self, tasks: Array) -> Array:
        """Make room for new tasks: where they are in the arrays."""
        pages, counts = _counted(tasks >> _PAGE_BITS)
        for page, count in zip(pages.tolist(), counts.tolist()):
            if page not in self._places:
                self._add(page)
            self._open[page] += count
        return self.index(tasks)

    def _add(self, page: int) -> None:
        if not self._free:
            size = len(self.fields["app"])
            grown = max(_CLOSE, size)
            for name, array in self.fields.items():
                self.fields[name] = np.empty(size + grown, array.dtype)
                self.fields[name][:size] = array
            self._free.extend(range(size // _PAGE, (size + grown) // _PAGE))
        place = self._places[page] = self._free.pop()
        self.fields["state"][place * _PAGE : (place + 1) * _PAGE] = 0
        self._open[page] = 0
        client = page >> (CLIENT_BITS - _PAGE_BITS)
        self._newest[client] = max(page, self._newest.get(client, 0))

    def index(self, tasks: Array) -> Array:
        """Where tasks are in the arrays; -1 for those that are not."""
        if not len(tasks):
            return np.zeros(0, "i8")
        pages, places = tasks >> _PAGE_BITS, self._places
        least, most = int(pages.min()), int(pages.max())
        if most - least < _CLOSE:
            pages -= least
            present = (np.flatnonzero(np.bincount(pages)) + least).tolist()
            table = np.full(most - least + 1, _NOWHERE)
            for page in present:
                if page in places:
                    table[page - least] = (places[page] - page) * _PAGE
            shifts = table[pages]
        else:
            distinct, inverse = np.unique(pages, return_inverse=True)
            present = distinct.tolist()
            table = np.array([(places[page] - page) * _PAGE if page in places else _NOWHERE for page in present])
            shifts = table[inverse]
        at: Array = tasks + shifts
        return at if all(page in places for page in present) else np.where(shifts == _NOWHERE, -1, at)

    def ended(self, tasks: Array) -> None:
        """These have an end now; each is told of once."""
        pages, counts = _counted(tasks >> _PAGE_BITS)
        for page, count in zip(pages.tolist(), counts.tolist()):
            self._open[page] -= count

    def forget(self, wanted: Array) -> None:
        """Let go of pages of which every task has ended, but for the newest and those of the tasks `wanted`."""
        keep = {*self._newest.values(), *_counted(wanted >> _PAGE_BITS)[0].tolist()}
        for page in [page for page, count in self._open.items() if not count and page not in keep]:
            self._free.append(self._places.pop(page))
            del self._open[page]

    def gone(self, client: int) -> None:
        """It makes no new tasks."""
        self._newest.pop(client, None)

    def tasks(self, where: Callable[[Array], Array]) -> Array:
        """Numbers of the tasks for which `where`, of indices into the arrays, is true. O(open pages)."""
        found = [np.zeros(0, "i8")]
        for page, place in sorted(self._places.items()):
            indices = np.arange(place * _PAGE, (place + 1) * _PAGE)
            found.append((page << _PAGE_BITS) + np.flatnonzero(where(indices)))
        return np.concatenate(found)


def _counted(numbers: Array) -> tuple[Array, Array]:
    """Which there are, and how often. Sorts nothing if they are close to each other."""
    least = int(numbers.min()) if len(numbers) else 0
    if not len(numbers) or int(numbers.max()) - least >= _CLOSE:
        distinct, often = np.unique(numbers, return_counts=True)
        return distinct, often
    often = np.bincount(numbers - least)
    at = np.flatnonzero(often)
    return at + least, often[at]


def where_known(at: Array, *columns: Array) -> list[Array]:
    """Indices that `Pool.index` has given, and columns, without the rows of those that are nowhere."""
    known = at >= 0
    return [at, *columns] if known.all() else [column[known] for column in (at, *columns)]


class Gathered:
    """Blocks of one kind: a time, a rank and a count of each message, and their columns as bytes, one after the other."""

    def __init__(self, *dtypes: str) -> None:
        self._dtypes = [np.dtype(dtype) for dtype in dtypes]
        self.clear()

    def __len__(self) -> int:
        """How many tasks there are."""
        return self._count

    def clear(self) -> None:
        """Forget them."""
        self._count = 0
        self._heads: list[bytes] = []
        self._parts: list[list[bytes]] = [[] for _ in self._dtypes]

    def add(self, frame: Frame) -> bytes:
        """Add a block; what follows its columns is returned."""
        begin, body = HEAD.size * frame.a, frame.body
        self._count += frame.b
        self._heads.append(body[:begin])
        for dtype, parts in zip(self._dtypes, self._parts):
            end = begin + frame.b * dtype.itemsize
            parts.append(body[begin:end])
            begin = end
        return body[begin:]

    def columns(self) -> list[Array]:
        """Time, rank and number of tasks of each message; then the columns, of all messages in a row."""
        heads = np.frombuffer(b"".join(self._heads), "i8").reshape(-1, 3)
        rows = [np.frombuffer(b"".join(parts), dtype) for dtype, parts in zip(self._dtypes, self._parts)]
        return [*heads.T, *rows]
