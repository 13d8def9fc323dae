"""What the manager knows of the results of cached calls: which are known, which are being computed. Pure.

A call of a cached app has a key. It is complete when the values of the call's needs are there; from then on the task is
in one of three places: its value is known and it ends at once; or it stands in the line of its key, where the first task
runs (or waits for the store) and the others wait for it; or it has ended.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from exex.manager.records import records_of
from exex.manager.task import CachedTask, Status, Task
from exex.protocol.messages import TaskId
from exex.protocol.payload import Large, Payload, Stored

MEMORY_BYTES = 256 * 1024**2
"""Of results that are kept in memory, so that equal calls are answered at once; those used longest ago leave first."""

_ENTRY_BYTES = 250
"""What an entry takes beside its value."""

_LARGEST_PART = 8
"""A value larger than this part of the memory is not kept there."""


class Store(Protocol):
    """Where results outlive the job. None of the methods waits for a disk."""

    def has(self, key: bytes) -> bool:
        """Whether a result is recorded. It may still turn out to be damaged."""

    def fetch(self, key: bytes, outputs: Sequence[str]) -> None:
        """Ask for a recorded result, if all files in `outputs` exist. The answer is for `ends.on_fetched`."""

    def record(self, key: bytes, app: str, value: Payload, seconds: float) -> None:
        """Record the result of a call that ran for `seconds`."""


class Journal(Store, Protocol):
    """A store as the loop sees it. None of the methods waits for a disk."""

    def checkpoint(self, asked_by: tuple[int, int]) -> None:
        """Put what was recorded so far on disk, in whatever mode. The answer comes with `take`."""

    def take(self) -> tuple[list[tuple[bytes, Any]], list[tuple[tuple[int, int], str]]]:
        """What has come: (key, value or None) of fetches; (asked_by, error or "") of checkpoints."""

    def is_behind(self) -> bool:
        """Whether more waits to be written than memory should hold: then nothing new should run."""


def _open_nothing(stored: Stored) -> Payload:
    raise LookupError(f"there is no store for {stored.name}")


class Memo:
    """Results and lines of equal calls.

    Args:
        store: None for a memory that ends with the job.
        memory_bytes: for values; see `MEMORY_BYTES`.
        exist: whether all files of a list exist. Asked only without a store, which looks by itself.

    Attributes:
        found: tasks whose value is known and that have not ended yet: whoever handles a message ends them afterwards.
        open: gives the bytes of a payload that is stored on rank 0's node.
        answered: tasks that a recorded or remembered result has ended, those that waited for an equal one not included.
    """

    def __init__(
        self,
        store: Store | None = None,
        memory_bytes: int = MEMORY_BYTES,
        exist: Callable[[Sequence[str]], bool] = lambda outputs: True,
    ) -> None:
        self.found: deque[tuple[CachedTask, Payload]] = deque()
        self.answered = 0
        self.open: Callable[[Stored], Payload] = _open_nothing
        self._store = store
        self._exist = exist
        self._most_bytes = memory_bytes
        self._bytes = 0
        self._values: OrderedDict[bytes, Payload] = OrderedDict()
        self._lines: dict[bytes, deque[CachedTask]] = {}
        self._fetching: set[bytes] = set()

    def enter(self, task: CachedTask) -> bool:
        """Take a task whose needs are all there. True if it has to run."""
        task.key = key = complete_key(task, self.open)
        line = self._lines.get(key)
        if line is not None:
            line.append(task)
            return False
        outputs = task.cache.outputs
        if not outputs or self._store is None:
            value = self._values.get(key)
            if value is not None and (not outputs or self._exist(outputs)):
                self._values.move_to_end(key)
                self.found.append((task, value))
                self.answered += 1
                return False
        self._lines[key] = deque((task,))
        if key in self._fetching:
            return False  # for one that was cancelled. Whatever the store thinks now, its answer is on the way
        if self._store is None or not self._store.has(key):
            return True
        self._fetching.add(key)
        self._store.fetch(key, outputs)
        return False

    def fetched(self, key: bytes, value: Payload) -> Task | None:
        """Take the store's answer, None if there is no such result. Returns the task that has to run, if any."""
        self._fetching.discard(key)
        line = self._lines.get(key)
        if line is None:
            return None  # all were cancelled
        if value is None:
            return line[0]
        del self._lines[key]
        self.remember(key, value)
        self.answered += 1
        self.found.extend((task, value) for task in line if task.key)
        return None

    def done(self, task: CachedTask, value: Payload, seconds: float) -> None:
        """The task that ran for its line has succeeded: record its value, and end the others."""
        line = self._lines.pop(task.key)
        self.found.extend((other, value) for other in line if other is not task and other.key)
        self.remember(task.key, value)
        if self._store is not None:
            assert task.app is not None
            self._store.record(task.key, task.app.spec.name, value, seconds)

    def failed(self, task: CachedTask) -> list[CachedTask]:
        """The task has failed for good. Returns those that waited for it and fail as well."""
        if not task.key:
            return []  # a need has failed: it never got so far
        return [other for other in self._lines.pop(task.key) if other is not task and other.key]

    def cancelled(self, task: CachedTask) -> Task | None:
        """The task is cancelled. Returns the one that has to run instead of it, if any."""
        key, task.key = task.key, b""
        line = self._lines.get(key) if key else None
        if line is None or line[0] is not task:
            return None  # it only waited: it is passed over later
        while line and not line[0].key:
            line.popleft()
        if not line:
            del self._lines[key]
            return None
        return None if key in self._fetching else line[0]

    def remember(self, key: bytes, value: Payload) -> None:
        """Keep a value in memory, and forget others where there is no room for it."""
        size = len(value) + _ENTRY_BYTES
        if size > self._most_bytes // _LARGEST_PART:
            return
        if type(value) is Large:  # its frames may be parts of buffers that hold much more
            value = Large([frame if type(frame) is bytes else bytes(frame) for frame in value.frames])
        before = self._values.pop(key, None)
        if before is not None:
            self._bytes -= len(before) + _ENTRY_BYTES
        self._values[key] = value
        self._bytes += size
        while self._bytes > self._most_bytes:
            _, old = self._values.popitem(last=False)
            self._bytes -= len(old) + _ENTRY_BYTES

    def preload(self, results: Iterable[tuple[bytes, Payload]]) -> None:
        """Remember recorded results, so that their calls are answered without asking the store."""
        for key, value in results:
            self.remember(key, value)

    def check(self, tasks: dict[TaskId, Task]) -> None:
        """Assert every invariant, given all unfinished tasks. O(everything)."""
        assert not self.found
        standing: set[TaskId] = set()
        for key, line in self._lines.items():
            first = line[0]
            assert first.key == key and tasks.get(first.id) is first, first
            waits_for_data = first.open_needs == 0 and any(first.id in record.waiters for record in records_of(first))
            assert (first.status == Status.WAITING and not waits_for_data) == (key in self._fetching), first
            for task in line:
                if not task.key:
                    continue
                assert task.key == key and tasks.get(task.id) is task, task
                assert task is first or task.status == Status.WAITING, task
                assert not task.open_needs, task
                standing.add(task.id)
        assert standing == {task.id for task in tasks.values() if isinstance(task, CachedTask) and task.key}
        assert self._bytes == sum(len(value) + _ENTRY_BYTES for value in self._values.values()) <= self._most_bytes


def complete_key(task: CachedTask, open: Callable[[Stored], Payload] = _open_nothing) -> bytes:
    """The client's part of the key together with the values of the needs, wherever they lie."""
    cache = task.cache
    if not task.values:
        return cache.partial
    digest = hashlib.blake2b(cache.partial, digest_size=len(cache.partial))
    for place, value in enumerate(task.values):
        if place in cache.ignored:
            continue
        if isinstance(value, Stored):
            value = open(value)  # noqa: PLW2901
        frames = value.frames if type(value) is Large else (value,)
        digest.update(b"%d:%d:" % (place, len(frames)))
        for frame in frames:
            digest.update(b"%d:" % memoryview(frame).nbytes)
            digest.update(frame)
    return digest.digest()
