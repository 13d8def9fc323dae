"""The manager and stored payloads: handlers one at a time; whole stories are in tests/sim."""

from __future__ import annotations

import pytest

from exex.errors import ProtocolError, WorkerLost
from exex.manager import data, from_clients, from_workers
from exex.manager.moving import Mover
from exex.manager.near import BYTES_PER_S, LEAST_BYTES, LONGEST_S
from exex.manager.placement import place
from exex.manager.state import ManagerState
from exex.manager.task import Status
from exex.protocol import payload as payloads
from exex.protocol.messages import (
    AppSpec,
    Assign,
    Attach,
    CacheKey,
    Copy,
    Done,
    Free,
    Hello,
    Outcome,
    Release,
    Spread,
    Submit,
    Want,
)
from exex.protocol.payload import Large, Stored
from tests.fuzz.targets import LyingStore

BIG = LEAST_BYTES * 8


class Home(LyingStore):
    """Rank 0's store, which tells the truth."""

    def __init__(self) -> None:
        self.here: set[str] = set()
        self.asked: list[tuple[str, int]] = []

    def fetch(self, stored: Stored, source: int) -> None:
        self.asked.append((stored.name, source))

    def events(self) -> list[tuple[str, bool]]:
        return []

    def has(self, name: str) -> bool:
        return name in self.here

    def payload(self, stored: Stored) -> Large:
        return Large([stored.name.encode()])


class World:
    """A manager with one rank on each of some nodes, and a client."""

    def __init__(self, nodes: int = 3, slots: int = 1, **spec: object) -> None:
        self.state, self.home = ManagerState(), Home()
        self.state.data.set_home("home")
        self.told: list[tuple[int, object]] = []
        self.mover = Mover(self.state, self.home, lambda rank, word: self.told.append((rank, word)), lambda client, word: self.told.append((-1, word)))
        self.client = from_clients.on_attach(self.state, Attach("1", 1, "t"))
        for rank in range(1, nodes + 1):
            hello = Hello("1", "3", f"n{rank}", 1, slots, "", [], store=f"s{rank}")
            from_workers.on_hello(self.state, rank, hello)
        self.next = 0
        self.spec = AppSpec(app=0, name="f", function=b"d", **spec)  # type: ignore[arg-type]

    def submit(self, needs: list[int] | None = None, given: dict[int, object] | None = None, payload: object = b"args", key: CacheKey | None = None) -> int:
        first = self.next == 0
        message = Submit(
            self.next, [self.spec] if first else [], {b"d": b"code"} if first else {}, [0], [payload],
            {0: needs} if needs else {}, {0: given} if given else {}, 0, {0: key} if key else {},
        )  # fmt: skip
        from_clients.adopt(self.state, self.client, message)
        from_clients.on_submit(self.state, self.client, message)
        self.next += 1
        return self.next - 1

    def turn(self, now_s: float = 0.0) -> dict[int, Assign]:
        self.state.now_s = now_s
        self.mover.settle(now_s)
        place(self.state)
        assigned = {worker.rank: self.state.take_assign(worker) for worker in self.state.refilled}
        self.state.refilled.clear()
        self.mover.flush()
        self.state.check()
        return assigned

    def done(self, rank: int, task: int, value: object = b"v", outcome: int = Outcome.DONE, seconds: float = 1.0) -> None:
        message = Done([task], bytes([outcome]), [value], [seconds], [])
        from_workers.take_stored(self.state, rank, message)
        from_workers.on_done(self.state, rank, message)

    def run(self, size: int = BIG, **submit: object) -> tuple[int, int]:
        """A task whose value stays; the task, and the rank that has it."""
        task = self.submit(**submit)  # type: ignore[arg-type]
        ((rank, assign),) = self.turn().items()
        attempt = assign.attempts.get(0, 1)
        self.done(rank, task, Stored(f"t{task}.{attempt}", [size]))
        return task, rank

    def of_kind(self, kind: type) -> list[tuple[int, object]]:
        found = [word for word in self.told if type(word[1]) is kind]
        self.told = [word for word in self.told if type(word[1]) is not kind]
        return found

    def answers(self) -> dict[int, tuple[int, object]]:
        answer = self.client.take_answer()
        self.client.applied(answer.sequence)
        return {task: (outcome, value) for task, outcome, value in zip(answer.tasks, answer.outcomes, answer.payloads)}


def test_a_dependent_is_told_where_its_data_is_and_goes_there() -> None:
    world = World()
    task, rank = world.run()
    world.submit([task])
    ((to, assign),) = world.turn().items()
    assert to == rank and assign.sources == {f"t{task}.1": rank}
    assert assign.values[0][0].name == "t0.1"


def test_a_dependent_waits_for_its_data_no_longer_than_that_would_take_to_come() -> None:
    world = World(slots=2)
    task, rank = world.run()
    world.submit([task])
    world.submit([task])
    first = world.turn(1.0)
    assert list(first) == [rank] and len(first[rank].tasks) == 2
    world.state.apps[0].mean_s = 1e-6  # a slot there is expected at once
    for worker in world.state.workers.values():
        worker.held_s = 1e-6 * worker.held
        for held in (worker.tasks or {}).values():
            held.guess_s = 1e-6
    waiting = world.submit([task])
    assert not world.turn(1.0) and world.state.tasks[waiting].status == Status.READY
    end_s = world.state.ready.near.end_s()
    assert end_s == pytest.approx(1.0 + BIG / BYTES_PER_S) and end_s <= 1.0 + LONGEST_S
    ((to, assign),) = world.turn(end_s).items()
    assert assign.tasks == [waiting] and not len(world.state.ready.near)


def test_a_dependent_does_not_wait_where_no_slot_comes_free_soon() -> None:
    world = World()
    task, rank = world.run()
    world.submit([task])
    assert list(world.turn()) == [rank]
    world.submit([task])
    ((other, assign),) = world.turn().items()
    assert other != rank and assign.sources == {"t0.1": rank}


def test_a_payload_comes_to_a_node_once() -> None:
    world = World(nodes=1)
    task, _ = world.run(size=10)
    for rank in (2, 3):
        from_workers.on_hello(world.state, rank, Hello("1", "3", "far", 1, 1, "", [], store="far"))
    for _ in range(3):
        world.submit([task])
    assigned = world.turn()
    assert sorted(assign.sources["t0.1"] for assign in assigned.values()) in ([1, 1, 2], [1, 1, 3])


def test_what_nobody_needs_is_freed_once_the_client_has_released_it() -> None:
    world = World()
    task, rank = world.run()
    dependent = world.submit([task])
    at = next(iter(world.turn()))  # the Assign is gone, as when it was sent
    world.answers()
    from_clients.on_release(world.state, world.client, Release(["t0.1"]))
    assert not world.turn() and not world.of_kind(Free)
    world.done(at, dependent)
    world.turn()
    assert world.of_kind(Free) == [(rank, Free(["t0.1"]))]
    assert not world.state.data.records


def test_a_lost_value_is_made_again_for_those_who_need_it() -> None:
    world = World()
    task, rank = world.run()
    assert world.answers()[task][0] == Outcome.DONE
    from_workers.on_worker_lost(world.state, rank, "died")
    assert not world.turn(), "nobody needs it now"
    dependent = world.submit([-1], {0: Stored("t0.1", [BIG])})
    ((other, assign),) = world.turn().items()
    assert assign.tasks == [task] and assign.attempts == {0: 2} and world.state.tasks[dependent].status == Status.WAITING
    world.done(other, task, Stored("t0.2", [BIG]))
    ((to, assign),) = world.turn().items()
    assert to == other and assign.tasks == [dependent] and assign.values[0][0].name == "t0.2"
    world.done(to, dependent)
    assert world.answers().keys() == {dependent}, "nobody is answered twice"


def test_a_value_that_is_lost_again_and_again_is_given_up() -> None:
    world = World(nodes=from_workers.LOSSES_TOLERATED + 2)
    task, rank = world.run()
    dependent = world.submit([-1], {0: Stored("t0.1", [BIG])})
    for attempt in range(2, from_workers.LOSSES_TOLERATED + 3):
        from_workers.on_worker_lost(world.state, rank, "died")
        assigned = world.turn()
        if not assigned:
            break
        ((rank, assign),) = assigned.items()
        assert assign.tasks == [task]
        world.done(rank, task, Stored(f"t{task}.{attempt}", [BIG]))
    outcome, error = world.answers()[dependent]
    assert outcome == Outcome.NEED_FAILED
    assert isinstance(payloads.load(error), WorkerLost) and "lost 4 times" in str(payloads.load(error))


def test_another_rank_of_the_node_takes_over() -> None:
    world = World(nodes=0)
    for rank in (1, 2):
        from_workers.on_hello(world.state, rank, Hello("1", "3", "n", 1, 1, "", [], store="s"))
    task, rank = world.run()
    world.submit([-1], {0: Stored("t0.1", [BIG])})
    from_workers.on_worker_lost(world.state, rank, "died")
    assert not world.turn(), "first it must say that it has it"
    ((heir, copy),) = world.of_kind(Copy)
    assert isinstance(copy, Copy) and heir == copy.source == 3 - rank
    world.state.data.on_holds(world.state.workers[heir].store, heir, ["t0.1"])
    ((to, assign),) = world.turn().items()
    assert to == heir and assign.sources == {"t0.1": heir}


def test_a_starved_task_waits_until_it_is_known_what_is_there() -> None:
    world = World()
    task, rank = world.run(size=10)
    world.submit([task])
    world.submit([task])
    assigned = world.turn()
    far = next(other for other in assigned if other != rank)
    world.done(far, assigned[far].tasks[0], b"", Outcome.STARVED)
    assert not world.turn()
    assert [to for to, _ in world.of_kind(Copy)] == [rank]
    world.state.data.on_holds(world.state.workers[rank].store, rank, ["t0.1"])
    ((_, assign),) = world.turn().items()
    assert assign.attempts == {0: 2}


def test_a_task_that_is_always_starved_fails() -> None:
    world = World(nodes=2)
    task = world.submit()
    for _ in range(from_workers.STARVED_TOLERATED + 1):
        ((rank, _),) = world.turn().items()
        world.done(rank, task, b"", Outcome.STARVED)
    outcome, error = world.answers()[task]
    assert outcome == Outcome.FAILED and "sent to workers 21 times" in str(payloads.load(error))


def test_the_key_of_a_cached_call_has_the_bytes_of_its_needs() -> None:
    world = World()
    task, rank = world.run()
    cached = world.submit([-1], {0: Stored("t0.1", [BIG])}, key=CacheKey(b"k" * 16))
    assert not world.turn() and world.home.asked == [("t0.1", rank)]
    world.home.here.add("t0.1")
    data.on_event(world.state, "t0.1", True)
    ((_, assign),) = world.turn().items()
    assert assign.tasks == [cached] and world.state.tasks[cached].key  # type: ignore[attr-defined]
    from_clients.on_release(world.state, world.client, Release(["t0.1"]))


def test_a_value_is_brought_to_the_client_by_way_of_rank_0() -> None:
    world = World()
    _, rank = world.run()
    from_clients.on_want(world.state, world.client, Want(["t0.1", "t9.1"]))
    world.turn()
    assert world.home.asked == [("t0.1", rank)]
    ((_, unknown),) = world.told
    assert unknown.name == "t9.1" and unknown.outcome == Outcome.FAILED  # type: ignore[attr-defined]
    world.told.clear()
    world.home.here.add("t0.1")
    data.on_event(world.state, "t0.1", True)
    world.turn()
    ((_, brought),) = world.told
    assert brought.outcome == Outcome.DONE and brought.payload.frames == (b"t0.1",)  # type: ignore[attr-defined]


@pytest.mark.parametrize("nodes", [1, 2, 7])
def test_a_broadcast_goes_along_a_tree_to_each_node_once(nodes: int) -> None:
    world = World(nodes=nodes)
    world.home.here.add("c0.0")
    from_clients.on_spread(world.state, world.client, Spread(Stored("c0.0", [BIG])))
    world.turn()
    copies = {rank: copy.source for rank, copy in world.of_kind(Copy)}  # type: ignore[attr-defined]
    assert copies.keys() == set(range(1, nodes + 1))
    for rank in copies:
        steps = 0
        while rank:
            rank, steps = copies[rank], steps + 1
        assert steps <= 3
    assert max(list(copies.values()).count(source) for source in copies.values()) <= 2
    from_clients.on_release(world.state, world.client, Release(["c0.0"]))
    world.turn()
    for rank in copies:
        world.state.data.on_holds(world.state.workers[rank].store, rank, ["c0.0"])
    world.turn()
    assert {rank for rank, _ in world.of_kind(Free)} == set(copies), "who gets it later is told then"


def test_an_argument_that_has_vanished_fails_its_call() -> None:
    world = World()
    task = world.submit(payload=Stored("c0.5", [100_000]))
    assert not world.turn()
    outcome, error = world.answers()[task]
    assert outcome == Outcome.FAILED and "only its client could have made it again" in str(payloads.load(error))


@pytest.mark.parametrize("name", ["c1.0", "t5.1"])
def test_a_client_names_only_what_is_its_own(name: str) -> None:
    world = World()
    with pytest.raises(ProtocolError, match="which is unknown"):
        world.submit(payload=Stored(name, [100_000]))


@pytest.mark.parametrize(("name", "outcome"), [("t1.1", Outcome.DONE), ("c0.1", Outcome.DONE), ("t0.1", Outcome.FAILED)])
def test_a_worker_stores_only_values_of_what_it_has_run(name: str, outcome: int) -> None:
    world = World()
    task = world.submit()
    ((rank, _),) = world.turn().items()
    with pytest.raises(ProtocolError):
        world.done(rank, task, Stored(name, [100_000]), outcome)


def test_tasks_without_stored_payloads_know_nothing_of_them() -> None:
    world = World()
    task = world.submit()
    ((rank, assign),) = world.turn().items()
    assert not assign.sources
    world.done(rank, task)
    assert not world.state.data.in_use and not world.told
