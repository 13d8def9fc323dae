"""The queue of tasks that could run now: the small ones, which take one slot each, in a lane for each client; at its sides the
line of the big ones, and those that wait for a slot where their data is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from exex.manager.lane import Lane
from exex.manager.line import Line
from exex.manager.near import Near
from exex.manager.records import StoreRecord
from exex.manager.task import Status, Task
from exex.protocol.messages import CLIENT_SHIFT, TaskId


class ReadyQueue:
    """Ready small tasks: of each client in turn, which have equal parts; of one client in the order of its lane.

    With one client there is one lane, and nothing costs more for it. A cancelled task stays where it is and is passed over by
    `take`; `count` leaves it out.

    Attributes:
        count: of small tasks, but for those of clients that are paused.
        line: of those that ask for more than one slot, or prefer a node.
        near: small tasks that wait for a slot where their data is; not in `count`.
        affinity: of unfinished tasks, the task whose node they prefer.
        next_sort_s: when it may be sorted anew; `is_unsorted`: an app has changed its class.
        pushed: for the run record: gets the number of each task that is not ready from its submission on; None: nobody asks.
    """

    __slots__ = (
        "_lanes", "_last", "_near_served", "_roots", "_turns", "affinity", "count", "is_unsorted", "line", "near", "next_sort_s",
        "pushed",
    )  # fmt: skip

    def __init__(self) -> None:
        self.line = Line()
        self.near = Near()
        self.affinity: dict[TaskId, TaskId] = {}
        self._lanes: dict[int, Lane] = {}
        self._roots: dict[int, int] = {}  # of clients in task processes: whose lane their tasks are in
        self._turns: deque[Lane] = deque()  # lanes that have tasks and are not paused; the first has its turn
        self._last = Lane(-1)  # most pushes are for the lane of the one before
        self._near_served: set[int] = set()  # clients of which one was placed near since some were taken
        self.next_sort_s = 0.0
        self.is_unsorted = False
        self.count = 0
        self.pushed: list[TaskId] | None = None

    # ---- in ----

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
        """Add a small task that waits for a slot at a store first, until then; not if its client is paused."""
        if self.pushed is not None:
            self.pushed.append(task.id)
        if self._lane(task.id >> CLIENT_SHIFT).is_paused:
            self.add(task)
            return
        task.status = Status.READY
        self.near.push(task, store, until_s)

    def add(self, task: Task) -> None:
        """Put a small task, which becomes READY, at the end of those with its key."""
        lane = self._last
        if lane.number != task.id >> CLIENT_SHIFT or self._roots:
            lane = self._lane(task.id >> CLIENT_SHIFT)
        task.status = Status.READY
        lane.bucket(task).append(task)
        self._count(lane, 1)

    def push_all(self, tasks: list[Task]) -> None:
        """Add tasks of one client that have one key between them: one app, one depth, no affinity."""
        self.push(tasks[0])
        first = tasks[0]
        assert first.app is not None
        if first.app.request is not None:
            for task in tasks[1:]:
                self.line.push(task)
            return
        bucket = self._last.bucket(first)
        for task in tasks[1:]:
            task.status = Status.READY
            bucket.append(task)
        self._count(self._last, len(tasks) - 1)

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Small tasks that were taken become READY again, before all others with their keys; the last of them is the first."""
        for task in tasks:
            lane = self._lane(task.id >> CLIENT_SHIFT)
            task.status = Status.READY
            lane.bucket(task).appendleft(task)
            self._count(lane, 1)

    # ---- out, though it does not run ----

    def forget(self, task: Task) -> None:
        """Count one READY task less: its caller gives it another status, which takes it out of the queue."""
        assert task.app is not None
        if task.id in self.near:
            self.near.take(task.id)
            return
        if task.app.request is not None or task.id in self.affinity:
            self.line.forget(task)
            return
        lane = self._lane(task.id >> CLIENT_SHIFT)
        lane.forget()
        if not lane.is_paused:
            self.count -= 1

    def withdraw(self, tasks: list[Task]) -> None:
        """Take READY tasks out, of whatever kind. They may be added again. O(all)."""
        gone = {task.id for task in tasks}
        for task in tasks:
            self.forget(task)
        for lane in self._lanes.values():
            lane.withdraw(gone)
        self.line.withdraw(gone)

    # ---- clients ----

    def set_root(self, client: int, root: int) -> None:
        """Tasks of a client, which has none at the moment, are in the lane of another, and take turns as that one's."""
        self._roots[client] = root

    def root_of(self, task: TaskId) -> int:
        """The client in whose lane a task is."""
        number = task >> CLIENT_SHIFT
        return self._roots.get(number, number)

    def pause(self, client: int, paused: bool) -> None:
        """Place no small task of a client; or again."""
        lane = self._lane(client)
        if lane.is_paused == paused:
            return
        lane.is_paused = paused
        self.count += -lane.count if paused else lane.count
        if not paused:
            if lane.count:
                self._give_turns(lane)
            return
        if lane.has_turns:
            self._turns.remove(lane)
            lane.has_turns = False
        for task in self.near.take_all_of(client):
            self.add(task)

    def held_back(self) -> int:
        """READY small tasks of clients that are paused. O(clients)."""
        return sum(lane.count for lane in self._lanes.values() if lane.is_paused)

    def forget_client(self, client: int) -> None:
        """Nothing of a client is left, but perhaps tasks of its tasks, which are about to end."""
        self._roots.pop(client, None)
        lane = self._lanes.get(client)
        if lane is not None and lane.count:
            return
        self._lanes.pop(client, None)
        if lane is not None and lane.has_turns:
            self._turns.remove(lane)
        if lane is self._last:
            self._last = Lane(-1)
        self._near_served.discard(client)

    def _lane(self, client: int) -> Lane:
        if self._roots:
            client = self._roots.get(client, client)
        lane = self._lanes.get(client)
        if lane is None:
            lane = self._lanes[client] = Lane(client)
        self._last = lane
        return lane

    def _count(self, lane: Lane, more: int) -> None:
        """So many tasks have come into a lane."""
        lane.count += more
        if not lane.is_paused:
            self.count += more
            if not lane.has_turns:
                self._give_turns(lane)

    def _give_turns(self, lane: Lane) -> None:
        lane.has_turns = True
        self._turns.append(lane)

    def sort_anew(self) -> None:
        """Put all tasks where their apps' classes say; those of a class in the order in which they stood. O(tasks)."""
        self.is_unsorted = False
        for lane in self._lanes.values():
            lane.sort_anew()

    # ---- who is next ----

    def _first_bucket(self) -> deque[Task] | None:
        """Where the next task stands, as the first one, in the lane that has its turn."""
        while self._turns:
            bucket = self._turns[0].first_bucket()
            if bucket is not None:
                return bucket
            self._turns.popleft().has_turns = False
        return None

    def first(self) -> Task | None:
        """The next task, left in place; None if there is none."""
        bucket = self._first_bucket()
        return bucket[0] if bucket is not None else None

    def first_count(self) -> int:
        """How many there are with the next task's keys, or a few more."""
        bucket = self._first_bucket()
        return len(bucket) if bucket is not None else 0

    def take(self, most: int) -> list[Task]:
        """Remove and return the next tasks: at least one if any is ready, at most `most`, all of one key of one client."""
        bucket = self._first_bucket()
        if bucket is None:
            return []
        lane = self._turns[0]
        if len(self._turns) > 1:
            most = -(-most // len(self._turns))
            self._turns.rotate(-1)
        taken = lane.take(bucket, most)
        self._note_taken(taken)
        return taken

    def take_short(self, most: int, within_s: float, overhead_s: float) -> list[Task]:
        """As `take`, but as many as one slot is expected to end within a time; none of an app of unknown length.

        Of several clients at once, each a part of the time; one that is too short for any is one client's.

        Args:
            overhead_s: of each, beside its own length.
        """
        bucket = self._first_bucket()
        if bucket is None:
            return []
        clients = len(self._turns)
        if clients == 1:
            taken = self._turns[0].take_short(bucket, most, within_s, overhead_s)
            self._note_taken(taken)
            return taken
        taken = []
        share = -(-most // clients)
        for _ in range(clients):
            if bucket is None or len(taken) >= most:
                break
            taken += self._turns[0].take_short(bucket, min(share, most - len(taken)), within_s / clients, overhead_s)
            self._turns.rotate(-1)
            bucket = self._first_bucket()
        if not taken and bucket is not None:
            taken = self._turns[0].take_short(bucket, most, within_s, overhead_s)
            self._turns.rotate(-1)
        self._note_taken(taken)
        return taken

    def take_fitting(self, most: int, fits: Callable[[Task], bool], looked_at: int) -> list[Task]:
        """Remove and return the first tasks that fit, out of the first `looked_at` of the queue; the others keep their places."""
        taken: list[Task] = []
        for lane in list(self._turns):
            found, looked_at = lane.take_fitting(most - len(taken), fits, looked_at)
            taken += found
            if len(taken) == most or looked_at <= 0:
                break
        self.count -= len(taken)
        return taken

    def _note_taken(self, taken: list[Task]) -> None:
        self.count -= len(taken)
        if self._near_served:
            self._near_served.clear()

    def has_turn(self, task: Task) -> bool:
        """Whether a task for which a slot is free where its data is may go before all in the queue.

        Not before better ones of its client. While other clients wait it may, once between two turns, and that was its client's.
        """
        assert task.app is not None
        number = self.root_of(task.id)
        lane = self._lane(number)
        bucket = lane.first_bucket()
        if bucket:
            first = bucket[0].app
            assert first is not None
            if first.spec.priority < task.app.spec.priority:
                return False
        if self._first_bucket() is None or (len(self._turns) == 1 and lane.has_turns):
            return True
        if number in self._near_served:
            return False
        self._near_served.add(number)
        if lane.has_turns:
            self._turns.remove(lane)
            self._turns.append(lane)
        return True
