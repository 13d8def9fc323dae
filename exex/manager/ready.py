"""The queue of tasks that could run now: the small ones, which take one slot each; at its sides the line of the big ones, and
those that wait for a slot where their data is."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

from exex.manager.line import Line
from exex.manager.near import Near
from exex.manager.records import StoreRecord
from exex.manager.task import Status, Task
from exex.protocol.messages import TaskId

Key = tuple[int, int]


class ReadyQueue:
    """Ready small tasks: by priority (lower first), then depth (deeper first), then first come first.

    Equal keys share a bucket: push and pop are O(1) while the key stays the same and O(log keys) when it changes.
    A cancelled task stays where it is and is passed over by `take`; `count` leaves it out.

    Attributes:
        count: of small tasks.
        line: of those that ask for more than one slot, or prefer a node.
        near: small tasks that wait for a slot where their data is; not in `count`.
        affinity: of unfinished tasks, the task whose node they prefer.
        pushed: for the run record: gets the number of each task that is not ready from its submission on; None: nobody asks.
    """

    __slots__ = ("_buckets", "_keys", "affinity", "count", "line", "near", "pushed")

    def __init__(self) -> None:
        self.line = Line()
        self.near = Near()
        self.affinity: dict[TaskId, TaskId] = {}
        self._buckets: dict[Key, deque[Task]] = {}
        self._keys: list[Key] = []  # heap of the keys of `_buckets`
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
        key = (task.app.spec.priority, -task.depth)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = deque()
            heapq.heappush(self._keys, key)
        bucket.append(task)
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
        bucket = self._buckets[(first.app.spec.priority, -first.depth)]
        for task in tasks[1:]:
            task.status = Status.READY
            bucket.append(task)
        self.count += len(tasks) - 1

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
        while self._keys:
            key = self._keys[0]
            bucket = self._buckets[key]
            while bucket:
                if bucket[0].status == Status.READY:
                    return bucket[0]
                bucket.popleft()
            heapq.heappop(self._keys)
            del self._buckets[key]
        return None

    def take(self, most: int) -> list[Task]:
        """Remove and return the next tasks: at least one if any is ready, at most `most`, all of one key."""
        if self.first() is None:
            return []
        bucket = self._buckets[self._keys[0]]
        taken: list[Task] = []
        while bucket and len(taken) < most:
            task = bucket.popleft()
            if task.status == Status.READY:
                taken.append(task)
        self.count -= len(taken)
        return taken

    def take_short(self, most: int, within_s: float, overhead_s: float) -> list[Task]:
        """As `take`, but as many as one slot is expected to end within a time; none of an app of unknown length.

        Args:
            overhead_s: of each, beside its own length.
        """
        if self.first() is None:
            return []
        bucket = self._buckets[self._keys[0]]
        taken: list[Task] = []
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
        self.count -= len(taken)
        return taken

    def take_fitting(self, most: int, fits: Callable[[Task], bool], looked_at: int) -> list[Task]:
        """Remove and return the first tasks that fit, out of the first `looked_at` of the queue; the others keep their places."""
        taken: list[Task] = []
        for key in sorted(self._keys):
            bucket = self._buckets[key]
            passed: list[Task] = []
            while bucket and len(taken) < most and looked_at > 0:
                task = bucket.popleft()
                if task.status != Status.READY:
                    continue
                looked_at -= 1
                (taken if fits(task) else passed).append(task)
            bucket.extendleft(reversed(passed))
            if len(taken) == most or looked_at <= 0:
                break
        self.count -= len(taken)
        return taken
