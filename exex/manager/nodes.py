"""What the manager knows of workers and of the nodes that they are on. Pure.

A worker's slots serve *small* tasks, which ask for one slot and nothing else, and *big* ones, which hold slots of several
workers, memory and accelerators. Small tasks need no node. So what a node has free is followed only from the first big
task on: `Nodes.watched`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from typing import TYPE_CHECKING, Any, TypeVar

from exex.protocol.messages import Grant, NodeShape, Rank, TaskId

if TYPE_CHECKING:
    from exex.manager.line import Shape
    from exex.manager.records import StoreRecord
    from exex.manager.task import App, Task
    from exex.protocol.request import Request

_SHAPE_STEPS = 1 << 10
"""Nodes whose memory differs by less than this part are told to clients as alike; the manager counts exactly."""


_T = TypeVar("_T")
Known = set[_T] | frozenset[_T]

_ALIKE = 64
"""Up to so many apps, workers that know the same ones share the set."""

_MOST_SETS = 1000

_NOTHING: frozenset[Any] = frozenset()


class WorkerRecord:
    """What the manager knows of one worker.

    Attributes:
        home: its node.
        slots: all that it has.
        room: how many attempts it may run at once: `slots` less what big tasks hold of it beyond one slot for each
            attempt that it has.
        open: `room` for those who place small tasks; 0 while its node is kept for a big one.
        lent: slots that attempts of other workers hold.
        free: slots that nobody holds, as the node has counted them.
        held: attempts that it has and has not reported.
        held_s: guess of how long they will take one slot, in seconds.
        apps: numbers of the apps it has been told of.
        tasks: that it holds, by number, but for those that nobody wants any more.
        outgoing: tasks for its next Assign; `grants`: of those that are big, by their index there.
        cores: CPU numbers to which its slots are bound; empty if they are not.
        gpus: names of the accelerators that it can use.
        in_team: it takes part, or is held for taking part, in a call on a communicator.
        in_free: it stands in the placement's list of workers that may have a free slot; so for `in_busy`.
        leaving: Stop was sent.
        store: where its task processes put large values; None: nowhere.

    There may be very many, and most of them idle, so what a worker has none of takes no memory.
    """

    __slots__ = (
        "apps", "cores", "free", "functions", "gpus", "grants", "held", "held_s", "home", "in_busy", "in_free", "in_team",
        "leaving", "lent", "open", "outgoing", "rank", "room", "slots", "store", "tasks",
    )  # fmt: skip

    def __init__(
        self, rank: Rank, home: NodeRecord, slots: int, cores: Sequence[int] = (), gpus: Sequence[str] = ()
    ) -> None:
        self.rank = rank
        self.home = home
        self.slots = self.room = self.open = slots
        self.cores = cores or ()
        self.gpus = gpus or ()
        self.lent = 0
        self.free = 0
        self.held = 0
        self.held_s = 0.0
        self.apps: Known[int] = _NOTHING
        self.functions: Known[bytes] = _NOTHING
        self.tasks: dict[TaskId, Task] | None = None
        self.outgoing: list[Task] | None = None
        self.grants: dict[int, Grant] | None = None
        self.in_team = False
        self.in_free = False
        self.in_busy = False
        self.leaving = False
        self.store: StoreRecord | None = None

    @property
    def node(self) -> str:
        """Name of its node."""
        return self.home.name

    def change_room(self, by: int) -> None:
        """Big tasks hold so many slots less of it."""
        self.room += by
        self.open = 0 if self.home.kept is not None else self.room


class NodeRecord:
    """What the manager knows of one node. What is free is right while nodes are watched.

    Attributes:
        workers: on it, by rank.
        slots: of them all; `free`: those that nobody holds.
        memory_bytes: that it has, 0 if nobody knows; `free_memory`: what no big task was granted.
        gpus: names of its accelerators; `free_gpus`: those that nobody was granted, in the same order.
        big: attempts of big tasks here; `big_slots`: what they hold of it.
        kept: for which tasks it is kept: small ones get only what does not delay them.
        last: the app that is expected to end last of what was placed here since it was idle, and when that was placed.
    """

    __slots__ = (
        "_alike", "big", "big_slots", "free", "free_gpus", "free_memory", "gpus", "kept", "last", "memory_bytes", "name", "slots",
        "workers",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers: dict[Rank, WorkerRecord] = {}
        self.slots = 0
        self.free = 0
        self.memory_bytes = 0
        self.free_memory = 0
        self.gpus: list[str] = []
        self.free_gpus: dict[str, None] = {}
        self.big = 0
        self.big_slots = 0
        self.kept: Shape | None = None
        self.last: tuple[App, float] | None = None
        self._alike = True

    def __repr__(self) -> str:
        return f"<Node {self.name} {self.free} of {self.slots} slots free>"

    def add(self, worker: WorkerRecord, memory_bytes: int) -> None:
        """A worker is up here. Ranks that are told different sizes of the memory share the smallest."""
        self._alike = self._alike and (not self.workers or self.gpus == worker.gpus)
        self.workers[worker.rank] = worker
        self.slots += worker.slots
        if memory_bytes and (not self.memory_bytes or memory_bytes < self.memory_bytes):
            self.free_memory += memory_bytes - self.memory_bytes
            self.memory_bytes = memory_bytes
        for name in worker.gpus:
            if name not in self.gpus:
                self.gpus.append(name)
                self.free_gpus[name] = None

    def can_ever_meet(self, request: Request) -> bool:
        """Whether a share of this kind fits on the node when it is idle."""
        if self.slots < request.cores or (self.memory_bytes and self.memory_bytes < request.memory_bytes):
            return False
        return not request.gpus or max((len(worker.gpus) for worker in self.workers.values()), default=0) >= request.gpus

    def fits(self, request: Request) -> bool:
        """Whether a share of this kind fits now."""
        if self.free < (self.slots if request.whole else request.cores) or self.slots < request.cores:
            return False
        if request.whole and self.big:
            return False  # a gang that has lost its rank here, and is not known to have ended
        if self.memory_bytes and self.free_memory < request.memory_bytes:
            return False
        return not request.gpus or self._usable_gpus() >= request.gpus

    def _usable_gpus(self) -> int:
        """Free accelerators that one worker with a free slot can use."""
        if self._alike:
            return len(self.free_gpus)
        return max((len(self.free_gpus_of(worker)) for worker in self.workers.values() if worker.free), default=0)

    def free_gpus_of(self, worker: WorkerRecord) -> list[str]:
        """Free accelerators that a worker can use."""
        return [name for name in self.free_gpus if name in worker.gpus]

    def give_gpus_back(self, names: Iterable[str]) -> None:
        """Nobody holds these any more."""
        free = self.free_gpus.keys() | set(names)
        self.free_gpus = {name: None for name in self.gpus if name in free}

    # ---- how long it is busy ----

    def expect(self, app: App, now_s: float) -> None:
        """An attempt of this app was placed here."""
        if self.last is None:
            self.last = (app, now_s)
        else:
            last, placed_s = self.last
            if (last.expected_s() or 0.0) + placed_s <= (app.expected_s() or 0.0) + now_s:
                self.last = (app, now_s)

    def share_in_s(self, request: Request, quantile: float, unknown_s: float, now_s: float) -> float:
        """How long until a share of this kind fits here, if nothing more is placed: a quantile.

        Args:
            unknown_s: length of attempts of an app of which none has ended.
        """
        if self.last is None or self.fits(request):
            return 0.0
        app, placed_s = self.last
        age_s = now_s - placed_s
        busy = self.slots - self.free
        if request.whole or self.free >= request.cores or busy <= 0:
            attempts = self.big + max(0, busy - self.big_slots)
            return app.rest_s(age_s, quantile ** (1 / max(1, attempts)), unknown_s)
        return app.rest_s(age_s, quantile, unknown_s) * min(1.0, (request.cores - self.free) / busy)


class Nodes:
    """All nodes.

    Attributes:
        by_name: in the order in which they came up.
        slots: of all of them.
        touched: of which something has changed since the line of big tasks was last looked at.
        watched: what is free is followed.
        losses: how many workers were lost: what no node can meet has to be found out again.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, NodeRecord] = {}
        self.slots = 0
        self.touched: dict[NodeRecord, None] = {}
        self.watched = False
        self.losses = 0
        self._sets: dict[frozenset[Any], frozenset[Any]] = {}

    def more(self, known: Known[_T], new: Set[_T]) -> Known[_T]:
        """What a worker knows that is told of more. Cost: O(new), O(known) while that is little."""
        if isinstance(known, set):
            known |= new
            return known
        if len(known) + len(new) > _ALIKE:
            return {*known, *new}
        both = known.union(new)
        return self._sets.setdefault(both, both) if len(self._sets) < _MOST_SETS else self._sets.get(both, both)

    def get(self, name: str) -> NodeRecord:
        """The record of a node, a new one if none of its workers was up."""
        node = self.by_name.get(name)
        if node is None:
            node = self.by_name[name] = NodeRecord(name)
        return node

    def add(self, worker: WorkerRecord, memory_bytes: int) -> None:
        """A worker is up."""
        worker.home.add(worker, memory_bytes)
        self.slots += worker.slots

    def watch(self) -> None:
        """From now on follow what is free. O(workers), once."""
        self.watched = True
        for node in self.by_name.values():
            node.workers = dict(sorted(node.workers.items()))
            for worker in node.workers.values():
                self.touch(worker)

    def touch(self, worker: WorkerRecord) -> None:
        """Something about what a worker holds has changed. O(1)."""
        free = max(0, worker.room - worker.held)
        node = worker.home
        node.free += free - worker.free
        worker.free = free
        if node.free == node.slots:
            node.last = None
        self.touched[node] = None

    def remove(self, worker: WorkerRecord) -> None:
        """A worker is lost; its node stays known as long as another is there."""
        node = worker.home
        self.losses += 1
        self.slots -= worker.slots
        del node.workers[worker.rank]
        node.slots -= worker.slots
        node.free -= worker.free
        worker.free = 0
        if node.workers:
            self.touched[node] = None
        else:
            del self.by_name[node.name]
            self.touched.pop(node, None)

    def shapes(self, exactly: bool = False) -> list[NodeShape]:
        """How many nodes of which kind there are; for clients, unless `exactly`, of memory a little too much."""
        kinds: Counter[tuple[int, int, int]] = Counter()
        for node in self.by_name.values():
            step = 1 if exactly else 1 << max(0, (node.memory_bytes // _SHAPE_STEPS).bit_length() - 1)
            gpus = max((len(worker.gpus) for worker in node.workers.values()), default=0)
            kinds[node.slots, -(-node.memory_bytes // step) * step, gpus] += 1
        return [NodeShape(count, slots, memory, gpus) for (slots, memory, gpus), count in kinds.items()]
