"""The queue of tasks that could run now: the small ones, which take one slot each, and at its side the line of the big ones."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

from exex.manager.line import Line
from exex.manager.task import Status, Task
from exex.protocol.messages import CLIENT_SHIFT, TaskId

Key = tuple[int, int]


class _Lane:
    """Ready small tasks of one client: by priority (lower first), then depth (deeper first), then first come first.

    Equal keys share a bucket: push and pop are O(1) while the key stays the same and O(log keys) when it changes.

    Attributes:
        keys: heap of the keys of `buckets`.
        count: of tasks that are READY.
        queued: it has its turns.
        paused: its client does not take its results: none of its tasks is placed.
    """

    __slots__ = ("buckets", "count", "keys", "number", "paused", "queued")

    def __init__(self, number: int) -> None:
        self.number = number
        self.buckets: dict[Key, deque[Task]] = {}
        self.keys: list[Key] = []
        self.count = 0
        self.queued = False
        self.paused = False

    def bucket(self, key: Key) -> deque[Task]:
        """Where tasks with this key are."""
        bucket = self.buckets.get(key)
        if bucket is None:
            bucket = self.buckets[key] = deque()
            heapq.heappush(self.keys, key)
        return bucket

    def first(self) -> Task | None:
        """The next task, left in place; None if there is none."""
        while self.keys:
            key = self.keys[0]
            bucket = self.buckets[key]
            while bucket:
                if bucket[0].status == Status.READY:
                    return bucket[0]
                bucket.popleft()
            heapq.heappop(self.keys)
            del self.buckets[key]
        return None


class ReadyQueue:
    """Ready small tasks: of each client in turn, which have equal parts; of one client in the order of its lane.

    A cancelled task stays where it is and is passed over by `take`; `count` leaves it out.

    Attributes:
        count: of small tasks, but for those of clients that are paused.
        line: of those that ask for more than one slot, or prefer a node.
        affinity: of unfinished tasks, the task whose node they prefer.
        pushed: for the run record: gets the number of each task that is not ready from its submission on; None: nobody asks.
    """

    __slots__ = ("_lanes", "_last", "_turns", "affinity", "count", "line", "pushed")

    def __init__(self) -> None:
        self.line = Line()
        self.affinity: dict[TaskId, TaskId] = {}
        self._lanes: dict[int, _Lane] = {}
        self._turns: deque[_Lane] = deque()  # lanes that have tasks and are not paused; the first has its turn
        self._last = _Lane(-1)  # most pushes are for the lane of the one before
        self.count = 0
        self.pushed: list[TaskId] | None = None

    # ---- in and out ----

    def push(self, task: Task) -> None:
        """Add a task, which becomes READY."""
        assert task.app is not None
        if self.pushed is not None:
            self.pushed.append(task.id)
        if task.app.request is not None or (self.affinity and task.id in self.affinity):
            self.line.push(task)
            return
        task.status = Status.READY
        lane = self._last
        if lane.number != task.id >> CLIENT_SHIFT:
            lane = self._lane(task.id >> CLIENT_SHIFT)
        lane.bucket((task.app.spec.priority, -task.depth)).append(task)
        lane.count += 1
        if not lane.paused:
            self.count += 1
            if not lane.queued:
                self._queue(lane)

    def push_all(self, tasks: list[Task]) -> None:
        """Add tasks of one client that have one key between them: one app, one depth, no affinity."""
        self.push(tasks[0])
        first = tasks[0]
        assert first.app is not None
        if first.app.request is not None:
            for task in tasks[1:]:
                self.line.push(task)
            return
        lane = self._last
        bucket = lane.buckets[(first.app.spec.priority, -first.depth)]
        for task in tasks[1:]:
            task.status = Status.READY
            bucket.append(task)
        lane.count += len(tasks) - 1
        if not lane.paused:
            self.count += len(tasks) - 1

    def forget(self, task: Task) -> None:
        """Count one READY task less: its caller gives it another status, which takes it out of the queue."""
        assert task.app is not None
        if task.app.request is not None or task.id in self.affinity:
            self.line.forget(task)
            return
        lane = self._lane(task.id >> CLIENT_SHIFT)
        lane.count -= 1
        if not lane.paused:
            self.count -= 1
        if not lane.count:
            lane.buckets.clear()
            lane.keys.clear()

    def pause(self, client: int, paused: bool) -> None:
        """Place no small task of a client; or again."""
        lane = self._lane(client)
        if lane.paused == paused:
            return
        lane.paused = paused
        self.count += -lane.count if paused else lane.count
        if paused and lane.queued:
            self._turns.remove(lane)
            lane.queued = False
        elif not paused and lane.count:
            self._queue(lane)

    def held_back(self) -> int:
        """READY small tasks of clients that are paused. O(clients)."""
        return sum(lane.count for lane in self._lanes.values() if lane.paused)

    def forget_client(self, client: int) -> None:
        """Nothing of a client is left."""
        lane = self._lanes.pop(client, None)
        if lane is not None and lane.queued:
            self._turns.remove(lane)
        if lane is self._last:
            self._last = _Lane(-1)

    def _lane(self, client: int) -> _Lane:
        lane = self._lanes.get(client)
        if lane is None:
            lane = self._lanes[client] = _Lane(client)
        self._last = lane
        return lane

    def _queue(self, lane: _Lane) -> None:
        lane.queued = True
        self._turns.append(lane)

    # ---- who is next ----

    def first(self) -> Task | None:
        """The next task, left in place; None if there is none."""
        while self._turns:
            task = self._turns[0].first()
            if task is not None:
                return task
            self._turns.popleft().queued = False
        return None

    def take(self, most: int) -> list[Task]:
        """Remove and return the next tasks: at least one if any is ready, at most `most`, all of one key of one client."""
        if self.first() is None:
            return []
        lane = self._turns[0]
        if len(self._turns) > 1:
            most = -(-most // len(self._turns))
            self._turns.rotate(-1)
        bucket = lane.buckets[lane.keys[0]]
        taken: list[Task] = []
        while bucket and len(taken) < most:
            task = bucket.popleft()
            if task.status == Status.READY:
                taken.append(task)
        self._took(lane, len(taken))
        return taken

    def take_short(self, most: int, within_s: float, overhead_s: float) -> list[Task]:
        """As `take`, but as many as one slot is expected to end within a time; none of an app of unknown length.

        Args:
            overhead_s: of each, beside its own length.
        """
        if self.first() is None:
            return []
        if len(self._turns) == 1:
            return self._take_short(self._turns[0], most, within_s, overhead_s)
        taken: list[Task] = []
        share, share_s = -(-most // len(self._turns)), within_s / len(self._turns)
        for _ in range(len(self._turns)):
            if self.first() is None or len(taken) >= most:
                break
            taken += self._take_short(self._turns[0], min(share, most - len(taken)), share_s, overhead_s)
            self._turns.rotate(-1)
        if not taken and self.first() is not None:  # a part of the time is too short for any
            taken = self._take_short(self._turns[0], most, within_s, overhead_s)
            self._turns.rotate(-1)
        return taken

    def _take_short(self, lane: _Lane, most: int, within_s: float, overhead_s: float) -> list[Task]:
        """Of one lane, which has a first task."""
        bucket = lane.buckets[lane.keys[0]]
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
        self._took(lane, len(taken))
        return taken

    def take_fitting(self, most: int, fits: Callable[[Task], bool], looked_at: int) -> list[Task]:
        """Remove and return the first tasks that fit, out of the first `looked_at` of the queue; the others keep their places."""
        all_taken: list[Task] = []
        for lane in list(self._turns):
            taken: list[Task] = []
            for key in sorted(lane.keys):
                bucket = lane.buckets[key]
                passed: list[Task] = []
                while bucket and len(all_taken) + len(taken) < most and looked_at > 0:
                    task = bucket.popleft()
                    if task.status != Status.READY:
                        continue
                    looked_at -= 1
                    (taken if fits(task) else passed).append(task)
                bucket.extendleft(reversed(passed))
                if len(all_taken) + len(taken) == most or looked_at <= 0:
                    break
            self._took(lane, len(taken))
            all_taken += taken
            if len(all_taken) == most or looked_at <= 0:
                break
        return all_taken

    def _took(self, lane: _Lane, count: int) -> None:
        lane.count -= count
        self.count -= count
