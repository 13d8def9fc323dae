"""The queue of tasks that could run now."""

from __future__ import annotations

import heapq
from collections import deque

from exex.manager.task import Status, Task

Key = tuple[int, int]


class ReadyQueue:
    """Ready tasks: by priority (lower first), then depth (deeper first), then first come first.

    Equal keys share a bucket: push and pop are O(1) while the key stays the same and O(log keys) when it changes.
    A cancelled task stays where it is and is passed over by `take`; `count` leaves it out.
    """

    __slots__ = ("_buckets", "_keys", "count")

    def __init__(self) -> None:
        self._buckets: dict[Key, deque[Task]] = {}
        self._keys: list[Key] = []  # heap of the keys of `_buckets`
        self.count = 0

    def push(self, task: Task) -> None:
        """Add a task, which becomes READY."""
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
        """Add tasks that have one key between them: one app, one depth."""
        self.push(tasks[0])
        first = tasks[0]
        assert first.app is not None
        bucket = self._buckets[(first.app.spec.priority, -first.depth)]
        for task in tasks[1:]:
            task.status = Status.READY
            bucket.append(task)
        self.count += len(tasks) - 1

    def forget(self) -> None:
        """Count one READY task less: its caller gives it another status, which takes it out of the queue."""
        self.count -= 1
        if not self.count:
            self._buckets.clear()
            self._keys.clear()

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
