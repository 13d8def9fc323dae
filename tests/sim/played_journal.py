"""A journal without a thread and without a file: what `Journal` promises to the manager's loop, at moments that a seed chooses.

Rows are committed in batches. A fetch is looked up at one moment and answered at a later one, and in between the index may
already know that the row is damaged. While the disk is full nothing is committed and some results are lost.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

from exex.protocol.payload import Payload

BEHIND_ROWS = 6
"""So few that the loop often has to wait for the disk."""


class PlayedJournal:
    """See the module docstring.

    Args:
        disk: committed rows; all that a killed job leaves behind.
        is_frail: the disk is full for a while now and then, and rows are found damaged.

    Attributes:
        lost: keys of results that were given to `record` and will never be committed.
        damaged: keys of rows that were once found damaged.
        excused: keys whose last fetch had no answer: their calls may run again.
    """

    def __init__(self, disk: dict[bytes, bytes], rng: random.Random, tell: Callable[[str], None], is_frail: bool) -> None:
        self.disk = disk
        self.lost: set[bytes] = set()
        self.damaged: set[bytes] = set()
        self.excused: set[bytes] = set()
        self._rng, self._tell, self._is_frail = rng, tell, is_frail
        self._is_full = False
        self._index = set(disk)
        self._unwritten: dict[bytes, bytes] = {}
        self._fetches: deque[tuple[bytes, Sequence[str]]] = deque()
        self._looked_up: deque[tuple[bytes, bytes | None]] = deque()
        self._fetched: list[tuple[bytes, bytes | None]] = []
        self._askers: list[tuple[int, int]] = []
        self._told: list[tuple[tuple[int, int], str]] = []

    # ---- for the loop ----

    def has(self, key: bytes) -> bool:
        """See `Store.has`."""
        return key in self._index or key in self._unwritten

    def fetch(self, key: bytes, outputs: Sequence[str]) -> None:
        """See `Store.fetch`."""
        assert all(key != other for other, _ in [*self._fetches, *self._looked_up]), "a result is fetched twice at a time"
        self._fetches.append((key, outputs))

    def record(self, key: bytes, app: str, value: Payload, seconds: float) -> None:
        """See `Store.record`."""
        self.excused.discard(key)
        if self._is_full and self._rng.random() < 0.5:
            self.lost.add(key)
        else:
            self._unwritten[key] = bytes(value)

    def checkpoint(self, asked_by: tuple[int, int]) -> None:
        """See `Journal.checkpoint`."""
        self._askers.append(asked_by)

    def take(self) -> tuple[list[tuple[bytes, bytes | None]], list[tuple[tuple[int, int], str]]]:
        """See `Journal.take`."""
        fetched, self._fetched = self._fetched, []
        told, self._told = self._told, []
        return fetched, told

    def is_behind(self) -> bool:
        """See `Journal.is_behind`."""
        return not self._is_full and len(self._unwritten) > BEHIND_ROWS

    # ---- for the simulation ----

    def step(self) -> None:
        """The writer's thread does one thing."""
        choice = self._rng.random()
        if choice < 0.3:
            self._commit(self._rng.randint(1, 5))
        elif choice < 0.5:
            if self._fetches:
                self._look_up(*self._fetches.popleft())
        elif choice < 0.8:
            if self._looked_up:
                self._fetched.append(self._looked_up.popleft())
        elif choice < 0.95:
            self._commit(len(self._unwritten))
            error = "disk full" if self._is_full else ""
            self._told += [(asker, error) for asker in self._askers]
            self._askers.clear()
        elif self._is_full or (self._is_frail and self._rng.random() < 0.2):
            self._is_full = not self._is_full
            self._tell("the disk is full" if self._is_full else "the disk has room again")

    def close(self) -> None:
        """The job ends in order: what waits is written, if there is room."""
        self._commit(len(self._unwritten))

    def is_quiet(self) -> bool:
        """Whether nobody waits for an answer."""
        return not (self._fetches or self._looked_up or self._fetched or self._askers or self._told)

    def must_know(self, key: bytes) -> bool:
        """Whether a call with this key need not run."""
        return self.has(key) and key not in self.excused

    def is_safe(self, key: bytes) -> bool:
        """Whether a result is on disk, or missing there by no fault of the manager."""
        return key in self.disk or key in self.lost or key in self.damaged

    def _commit(self, most: int) -> None:
        if self._is_full:
            return
        for key in list(self._unwritten)[:most]:
            self.disk[key] = self._unwritten.pop(key)
            self._index.add(key)

    def _look_up(self, key: bytes, outputs: Sequence[str]) -> None:
        value = self._unwritten.get(key)
        is_damaged = value is None and self._is_frail and self._rng.random() < 0.2
        if is_damaged:
            self._index.discard(key)
            self.disk.pop(key, None)
            self.damaged.add(key)
        elif value is None:
            value = self.disk.get(key)
        if outputs and self._rng.random() < 0.3:
            value = None  # the files are gone
        if value is None:
            self._tell(f"the recorded result {key.hex()[:8]} is damaged, or its files are gone")
            self.excused.add(key)
        self._looked_up.append((key, value))
