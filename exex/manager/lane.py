"""The order among ready small tasks of one client. Pure."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

from exex.manager import longest
from exex.manager.task import LEAST_TASK_S, Status, Task
from exex.protocol.messages import TaskId

Key = tuple[int, int, int]

OF_A_CLASS = 16
"""Tasks of one class of longer ones that are looked at for a gap in which little fits."""


class Lane:
    """Ready small tasks of one client: by priority (lower first), then depth (deeper first), then class of length (longer first:
    see `longest`), then first come first.

    Equal keys share a bucket: push and pop are O(1) while the key stays the same and O(log keys) when it changes. An app that
    changes its class leaves what waits where it is, until all is sorted anew.
    A task that is not READY any more stays where it is and is passed over; `count` leaves it out.

    Attributes:
        number: of the client.
        count: of tasks that are READY.
        has_turns: it stands among those that take turns.
        is_paused: its client does not take its results: none of its tasks is placed.
    """

    __slots__ = ("_buckets", "_keys", "_owed_s", "_served", "_turn", "count", "has_turns", "is_paused", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0
        self.has_turns = False
        self.is_paused = False
        self._buckets: dict[Key, deque[Task]] = {}
        self._keys: list[Key] = []  # heap of the keys of `_buckets`
        self._owed_s = 0.0  # to shorter tasks than those that went first
        self._turn = 0  # class whose turn it is among them
        self._served: deque[Task] | None = None  # the longer ones

    # ---- in and out ----

    def bucket(self, task: Task) -> deque[Task]:
        """Where a task stands. Who puts one there counts it."""
        assert task.app is not None
        key = (task.app.spec.priority, -task.depth, -task.app.size)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = deque()
            heapq.heappush(self._keys, key)
        return bucket

    def forget(self) -> None:
        """Count one task less."""
        self.count -= 1
        if not self.count:
            self._buckets.clear()
            self._keys.clear()

    def withdraw(self, gone: set[TaskId]) -> None:
        """Take tasks out that are not counted any more. O(all)."""
        for key, bucket in self._buckets.items():
            self._buckets[key] = deque(task for task in bucket if task.id not in gone)

    def sort_anew(self) -> None:
        """Put all tasks where their apps' classes say; those of a class in the order in which they stood. O(tasks)."""
        buckets, self._buckets, keys = self._buckets, {}, sorted(self._keys)
        self._keys = []
        for key in keys:
            for task in buckets[key]:
                if task.status == Status.READY:
                    self.bucket(task).append(task)

    # ---- who is next ----

    def first_bucket(self) -> deque[Task] | None:
        """Where the next task stands, as the first one; None if there is none."""
        while self._keys:
            key = self._keys[0]
            bucket = self._buckets[key]
            while bucket:
                if bucket[0].status == Status.READY:
                    if not key[2]:
                        return bucket
                    self._served = bucket
                    if len(bucket) >= self.count:  # nothing else waits
                        self._owed_s = 0.0
                    return bucket if self._owed_s <= 0 else self._by_turns(key, bucket)
                bucket.popleft()
            heapq.heappop(self._keys)
            del self._buckets[key]
        return None

    def _by_turns(self, first: Key, longer: deque[Task]) -> deque[Task]:
        """The first tasks, which are long, or shorter ones, equal otherwise, if these have their turn. O(classes)."""
        for i in range(-first[2]):
            size = (self._turn + i) % -first[2]
            bucket = self._buckets.get((first[0], first[1], -size))
            while bucket and bucket[0].status != Status.READY:
                bucket.popleft()
            if bucket:
                if self._owed_s >= _length_s(bucket[0]):
                    self._turn = size
                    return bucket
                return longer
        self._owed_s = 0.0  # there are none
        return longer

    def _most(self, bucket: deque[Task], most: int) -> int:
        """How many of a bucket may be taken at once: of shorter tasks than the first ones as many as are owed."""
        if not self._keys[0][2] or bucket is self._served:
            return most
        return min(most, max(1, int(self._owed_s / _length_s(bucket[0]))))

    def _note_taken(self, bucket: deque[Task], taken: list[Task]) -> None:
        """Count what was taken: longer tasks owe a part of their time to shorter ones, which pay it back."""
        self.count -= len(taken)
        if not self._keys[0][2] or len(bucket) >= self.count or not taken:
            return
        took_s = len(taken) * _length_s(taken[0])
        if bucket is self._served:
            self._owed_s += took_s / longest.SHARE
        else:
            self._owed_s -= took_s
            self._turn += 1

    def take(self, bucket: deque[Task], most: int) -> list[Task]:
        """Remove and return up to `most` tasks, at least one, of the first bucket."""
        taken: list[Task] = []
        most = self._most(bucket, most)
        while bucket and len(taken) < most:
            task = bucket.popleft()
            if task.status == Status.READY:
                taken.append(task)
        self._note_taken(bucket, taken)
        return taken

    def take_short(self, bucket: deque[Task], most: int, within_s: float, overhead_s: float) -> list[Task]:
        """As `take`, but as many as one slot is expected to end within a time; none of an app of unknown length."""
        taken: list[Task] = []
        most = self._most(bucket, most)
        app, each_s = None, 0.0
        while bucket and len(taken) < most:
            task = bucket[0]
            if task.status == Status.READY:
                if task.app is not app:
                    app = task.app
                    assert app is not None
                    each_s = app.mean_s + overhead_s if app.mean_s >= 0 and not app.waits else math.inf
                within_s -= each_s
                if within_s < 0:
                    break
                taken.append(task)
            bucket.popleft()
        self._note_taken(bucket, taken)
        return taken

    def take_fitting(self, most: int, fits: Callable[[Task], bool], looked_at: int) -> tuple[list[Task], int]:
        """Remove the first tasks that fit, out of the first `looked_at`; the others keep their places.

        Only a part of these are of one class of longer tasks, so that shorter ones, which may fit, are looked at as well.

        Returns:
            Those tasks, and how many more may be looked at.
        """
        taken: list[Task] = []
        for key in sorted(self._keys):
            bucket = self._buckets[key]
            passed: list[Task] = []
            looks = looked_at if not key[2] else min(looked_at, OF_A_CLASS)
            looked_at -= looks
            while bucket and len(taken) < most and looks > 0:
                task = bucket.popleft()
                if task.status != Status.READY:
                    continue
                looks -= 1
                (taken if fits(task) else passed).append(task)
            looked_at += looks
            bucket.extendleft(reversed(passed))
            if len(taken) == most or looked_at <= 0:
                break
        self.count -= len(taken)
        return taken, looked_at


def _length_s(task: Task) -> float:
    """How long a task is expected to take."""
    assert task.app is not None
    mean_s = task.app.mean_s
    return max(LEAST_TASK_S, mean_s) if mean_s >= 0 else longest.nominal_s(task.app.size)
