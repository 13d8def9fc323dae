"""The queue of tasks that could run now: the small ones, which take one slot each; at its sides the line of the big ones, and
those that wait for a slot where their data is."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable

from exex.manager import longest
from exex.manager.line import Line
from exex.manager.near import Near
from exex.manager.records import StoreRecord
from exex.manager.task import LEAST_TASK_S, Status, Task
from exex.protocol.messages import TaskId

Key = tuple[int, int, int]

OF_A_CLASS = 16
"""Tasks of one class of longer ones that are looked at for a gap in which little fits."""


class ReadyQueue:
    """Ready small tasks: by priority (lower first), then depth (deeper first), then class of length (longer first: see
    `longest`), then first come first.

    Equal keys share a bucket: push and pop are O(1) while the key stays the same and O(log keys) when it changes. An app that
    changes its class leaves what waits where it is, until all is sorted anew.
    A cancelled task stays where it is and is passed over by `take`; `count` leaves it out.

    Attributes:
        count: of small tasks.
        line: of those that ask for more than one slot, or prefer a node.
        near: small tasks that wait for a slot where their data is; not in `count`.
        affinity: of unfinished tasks, the task whose node they prefer.
        next_sort_s: when it may be sorted anew; `is_unsorted`: an app has changed its class.
        pushed: for the run record: gets the number of each task that is not ready from its submission on; None: nobody asks.
    """

    __slots__ = (
        "_buckets", "_keys", "_owed_s", "_served", "_turn", "affinity", "count", "is_unsorted", "line", "near", "next_sort_s",
        "pushed",
    )  # fmt: skip

    def __init__(self) -> None:
        self.line = Line()
        self.near = Near()
        self.affinity: dict[TaskId, TaskId] = {}
        self._buckets: dict[Key, deque[Task]] = {}
        self._keys: list[Key] = []  # heap of the keys of `_buckets`
        self._owed_s = 0.0  # to shorter tasks than those that went first
        self._turn = 0  # class whose turn it is among them
        self._served: deque[Task] | None = None  # the longer ones
        self.next_sort_s = 0.0
        self.is_unsorted = False
        self.count = 0
        self.pushed: list[TaskId] | None = None

    def push(self, task: Task) -> None:
        """Add a task, which becomes READY."""
        assert task.app is not None
        if self.pushed is not None:
            self.pushed.append(task.id)
        if task.app.request is not None or (self.affinity and task.id in self.affinity):
            self.line.push(task)
        else:
            self.add(task)

    def push_near(self, task: Task, store: StoreRecord, until_s: float) -> None:
        """Add a small task that waits for a slot at a store first, until then."""
        if self.pushed is not None:
            self.pushed.append(task.id)
        task.status = Status.READY
        self.near.push(task, store, until_s)

    def add(self, task: Task) -> None:
        """Put a small task, which becomes READY, at the end of those with its key."""
        assert task.app is not None
        task.status = Status.READY
        self._bucket(task).append(task)
        self.count += 1

    def push_all(self, tasks: list[Task]) -> None:
        """Add tasks that have one key between them: one app, one depth, no affinity."""
        self.push(tasks[0])
        first = tasks[0]
        assert first.app is not None
        if first.app.request is not None:
            for task in tasks[1:]:
                self.line.push(task)
            return
        bucket = self._bucket(first)
        for task in tasks[1:]:
            task.status = Status.READY
            bucket.append(task)
        self.count += len(tasks) - 1

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Small tasks that were taken become READY again, before all others with their keys; the last of them is the first."""
        for task in tasks:
            task.status = Status.READY
            self._bucket(task).appendleft(task)
            self.count += 1

    def _bucket(self, task: Task) -> deque[Task]:
        """Where a task stands."""
        assert task.app is not None
        key = (task.app.spec.priority, -task.depth, -task.app.size)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = deque()
            heapq.heappush(self._keys, key)
        return bucket

    def forget(self, task: Task) -> None:
        """Count one READY task less: its caller gives it another status, which takes it out of the queue."""
        assert task.app is not None
        if task.id in self.near:
            self.near.take(task.id)
            return
        if task.app.request is not None or task.id in self.affinity:
            self.line.forget(task)
            return
        self.count -= 1
        if not self.count:
            self._buckets.clear()
            self._keys.clear()

    def withdraw(self, tasks: list[Task]) -> None:
        """Take READY tasks out, of whatever kind. They may be added again. O(all)."""
        gone = {task.id for task in tasks}
        for task in tasks:
            self.forget(task)
        for key, bucket in self._buckets.items():
            self._buckets[key] = deque(task for task in bucket if task.id not in gone)
        self.line.withdraw(gone)

    def first(self) -> Task | None:
        """The next task, left in place; None if there is none."""
        bucket = self._first_bucket()
        return bucket[0] if bucket is not None else None

    def _first_bucket(self) -> deque[Task] | None:
        """Where the next task stands, as the first one."""
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

    def sort_anew(self) -> None:
        """Put all tasks where their apps' classes say; those of a class in the order in which they stood. O(tasks)."""
        self.is_unsorted = False
        buckets, self._buckets, keys = self._buckets, {}, sorted(self._keys)
        self._keys = []
        for key in keys:
            for task in buckets[key]:
                if task.status == Status.READY:
                    self._bucket(task).append(task)

    def first_count(self) -> int:
        """How many there are with the next task's keys, or a few more."""
        bucket = self._first_bucket()
        return len(bucket) if bucket is not None else 0

    def take(self, most: int) -> list[Task]:
        """Remove and return the next tasks: at least one if any is ready, at most `most`, all of one key."""
        bucket = self._first_bucket()
        if bucket is None:
            return []
        taken: list[Task] = []
        most = self._most(bucket, most)
        while bucket and len(taken) < most:
            task = bucket.popleft()
            if task.status == Status.READY:
                taken.append(task)
        self._note_taken(bucket, taken)
        return taken

    def take_short(self, most: int, within_s: float, overhead_s: float) -> list[Task]:
        """As `take`, but as many as one slot is expected to end within a time; none of an app of unknown length.

        Args:
            overhead_s: of each, beside its own length.
        """
        bucket = self._first_bucket()
        if bucket is None:
            return []
        taken: list[Task] = []
        most = self._most(bucket, most)
        app, each_s = None, 0.0
        while bucket and len(taken) < most:
            task = bucket[0]
            if task.status == Status.READY:
                if task.app is not app:
                    app = task.app
                    assert app is not None
                    each_s = app.mean_s + overhead_s if app.mean_s >= 0 else math.inf
                within_s -= each_s
                if within_s < 0:
                    break
                taken.append(task)
            bucket.popleft()
        self._note_taken(bucket, taken)
        return taken

    def take_fitting(self, most: int, fits: Callable[[Task], bool], looked_at: int) -> list[Task]:
        """Remove and return the first tasks that fit, out of the first `looked_at` of the queue; the others keep their places.

        Only a part of these are of one class of longer tasks, so that shorter ones, which may fit, are looked at as well.
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
        return taken


def _length_s(task: Task) -> float:
    """How long a task is expected to take."""
    assert task.app is not None
    mean_s = task.app.mean_s
    return max(LEAST_TASK_S, mean_s) if mean_s >= 0 else longest.nominal_s(task.app.size)
