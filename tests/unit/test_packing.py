"""Where big tasks go, and what is kept for them: the manager's handlers and placement, on machines of two shapes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exex.errors import InvalidResourceSpecification, WorkerLost
from exex.manager import from_clients, from_workers, grants, keeping
from exex.manager.nodes import NodeRecord
from exex.manager.placement import place
from exex.manager.state import ManagerState
from exex.manager.task import Status
from exex.protocol import payload
from exex.protocol.messages import AppSpec, Assign, Attach, Cancel, Done, Grant, Hello, Outcome, Submit
from exex.protocol.request import Request

GIB = 1024**3


@pytest.fixture(autouse=True)
def all_nodes_are_looked_at_whenever_something_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "LOOK_SHARE", 0.0)
    monkeypatch.setattr(keeping, "FILL_SHARE", 0.0)


class Machine:
    """A manager, its nodes, and one client; tasks end when the test says so.

    Args:
        nodes: how many.
        slots: of each.
        per_rank: slots of each rank; None for all of its node.
    """

    def __init__(self, nodes: int = 2, slots: int = 4, per_rank: int | None = None, memory_gib: int = 0, gpus: int = 0, bound: bool = False) -> None:
        self.state = ManagerState()
        self.client = from_clients.on_attach(self.state, Attach(version="1", pid=1, title="t"))
        self.apps: dict[AppSpec, int] = {}
        self.next = 0
        self.grants: dict[int, Grant] = {}
        self.began: dict[int, int] = {}  # task -> rank
        rank = 0
        for node in range(nodes):
            for first in range(0, slots, per_rank or slots):
                rank += 1
                count = per_rank or slots
                hello = Hello("1", "3", f"n{node}", rank, count, "", [], list(range(first, first + count)) if bound else [], memory_gib * GIB, [str(i) for i in range(gpus)])
                from_workers.on_hello(self.state, rank, hello)

    def submit(self, count: int = 1, affinity: int | None = None, **spec: Any) -> range:
        """Submit calls of an app with these options, and place what fits."""
        app = AppSpec(app=0, name=spec.pop("name", "f"), function=b"d", **spec)
        new = app not in self.apps
        number = self.apps.setdefault(app, len(self.apps))
        message = Submit(
            self.next, [AppSpec(**{**{f: getattr(app, f) for f in app.__struct_fields__}, "app": number})] if new else [],
            {b"d": b"code"} if self.next == 0 else {}, [number], [b""] * count, {}, {}, 0, {},
            {} if affinity is None else dict.fromkeys(range(count), affinity),
        )  # fmt: skip
        from_clients.on_submit(self.state, self.client, message)
        first, self.next = self.next, self.next + count
        self.turn()
        return range(first, first + count)

    def turn(self) -> dict[int, Assign]:
        place(self.state)
        assigned = {worker.rank: self.state.take_assign(worker) for worker in self.state.refilled}
        self.state.refilled.clear()
        for rank, assign in assigned.items():
            for i, task in enumerate(assign.tasks):
                self.began[task] = rank
                self.grants.pop(task, None)
                if i in assign.grants:
                    self.grants[task] = assign.grants[i]
        self.state.check()
        return assigned

    def done(self, *tasks: int, outcome: int = Outcome.DONE, seconds: float = 1.0, turn: bool = True) -> None:
        """These end, one message each."""
        for task in tasks:
            rank = self.began.pop(task)
            value = b"v" if outcome == Outcome.DONE else payload.dump_error(ValueError("no"), "")
            from_workers.on_done(self.state, rank, Done([task], bytes([outcome]), [value], [seconds], []))
            self.state.check()
        if turn:
            self.turn()

    def lose(self, rank: int) -> None:
        from_workers.on_worker_lost(self.state, rank, "died")
        self.began = {task: other for task, other in self.began.items() if other != rank}
        self.state.check()

    def running(self) -> set[int]:
        return set(self.began)

    def waits(self, task: int) -> bool:
        return self.state.tasks[task].status == Status.READY

    def kept(self) -> set[str]:
        return {node.name for node in self.state.nodes.by_name.values() if node.kept is not None}

    def error(self, task: int) -> BaseException:
        outcome, value = self.client.kept[task]
        assert outcome != Outcome.DONE
        return payload.load(value)

    def at(self, time_s: float) -> None:
        """Time passes; the manager has a turn."""
        self.state.now_s = time_s
        self.turn()

    def learn(self, seconds: float, **spec: Any) -> None:
        """An attempt of such a task has taken so long."""
        (task,) = self.submit(**spec)
        self.done(task, seconds=seconds)


SHAPES = pytest.mark.parametrize("per_rank", [None, 1], ids=["rank-per-node", "rank-per-core"])


# ---- one node -------------------------------------------------------------------------------------------------


@SHAPES
def test_cores_of_one_node_are_granted_and_given_back(per_rank: int | None) -> None:
    machine = Machine(1, 4, per_rank, bound=True)
    a, b, c = machine.submit(3, cores=2)
    assert machine.running() == {a, b}
    ranks = [rank for task in (a, b) for rank in machine.grants[task].shares[0].ranks]
    assert all(machine.grants[task].shares[0].slots == 2 for task in (a, b))
    assert sorted(ranks) == ([1, 2, 3, 4] if per_rank else [1, 1])
    assert machine.began[a] == machine.grants[a].shares[0].ranks[0]
    machine.done(a)
    assert machine.running() == {b, c}


def test_the_lead_is_told_the_cores_that_other_ranks_lend() -> None:
    machine = Machine(1, 4, 1, bound=True)
    (task,) = machine.submit(cores=3)
    grant = machine.grants[task]
    assert grant.slots == 1 and len(grant.cores) == 2
    lead = grant.shares[0].ranks[0]
    assert {lead - 1, *grant.cores} < {0, 1, 2, 3}


def test_slots_of_a_rank_that_lends_a_part_are_not_bound() -> None:
    machine = Machine(1, 8, 4, bound=True)
    (task,) = machine.submit(cores=6)
    assert machine.grants[task].cores == [0, 1, 2, 3] or machine.grants[task].cores == [4, 5, 6, 7]  # one gives all, the lead 2
    machine = Machine(1, 8, 4, bound=True)
    machine.submit(2)
    (task,) = machine.submit(cores=5)
    grant = machine.grants[task]
    assert grant.slots + len(grant.cores) == 5 or grant.cores == []


@SHAPES
def test_small_tasks_fill_what_big_ones_leave(per_rank: int | None) -> None:
    machine = Machine(2, 4, per_rank)
    big = machine.submit(2, cores=3)
    small = machine.submit(5)
    assert machine.running() == {*big, *small[:2]}
    machine.done(big[0])
    assert machine.running() == {big[1], *small}


def test_lent_slots_get_no_prefetch() -> None:
    machine = Machine(1, 8, 4)
    machine.learn(1e-6)
    machine.submit(3)
    (big,) = machine.submit(cores=4)
    lender = machine.state.workers[machine.grants[big].shares[0].ranks[1]]
    assert lender.lent == lender.slots - lender.held == 2, "it lends all that is free"
    machine.submit(1000)
    assert lender.held == 2, "it would run what it holds beyond that on lent slots"


def test_the_node_with_the_least_room_that_does_is_taken() -> None:
    machine = Machine(3, 8)
    (six,) = machine.submit(cores=6)
    (four,) = machine.submit(cores=4)
    hosts = {machine.grants[task].hosts[0] for task in (six, four)}
    assert len(hosts) == 2
    (two,) = machine.submit(cores=2)
    assert machine.grants[two].hosts == machine.grants[six].hosts


def test_memory_is_counted() -> None:
    machine = Machine(1, 8, memory_gib=10)
    tasks = machine.submit(3, memory_bytes=4 * GIB)
    assert machine.running() == set(tasks[:2])
    small = machine.submit(3)
    assert machine.running() == {*tasks[:2], *small}
    machine.done(tasks[0])
    assert machine.running() == {*tasks[1:], *small}


def test_memory_of_a_node_that_tells_none_is_not_counted() -> None:
    machine = Machine(1, 8)
    tasks = machine.submit(3, memory_bytes=4 * GIB)
    assert machine.running() == set(tasks)


@SHAPES
def test_no_accelerator_is_given_twice(per_rank: int | None) -> None:
    machine = Machine(2, 8, per_rank, gpus=4)
    tasks = machine.submit(8, gpus=1)
    assert machine.running() == set(tasks)
    granted = [(machine.grants[task].hosts[0], name) for task in tasks for name in machine.grants[task].gpus]
    assert len(set(granted)) == 8
    more = machine.submit(2, gpus=2)
    machine.done(tasks[0])
    assert not machine.running() & set(more)
    same_node = [task for task in tasks[1:] if machine.grants[task].hosts == machine.grants[tasks[0]].hosts]
    machine.done(same_node[0])
    assert len(machine.running() & set(more)) == 1


def test_accelerators_go_to_a_lead_that_can_use_them() -> None:
    machine = Machine(0)
    for rank, gpus in ((1, ["0"]), (2, ["1", "2"])):
        from_workers.on_hello(machine.state, rank, Hello("1", "3", "n", rank, 2, "", [], [], 0, gpus))
    (task,) = machine.submit(gpus=2)
    assert machine.began[task] == 2 and machine.grants[task].gpus == ["1", "2"]
    (other,) = machine.submit(gpus=1)
    assert machine.began[other] == 1 and machine.grants[other].gpus == ["0"]
    assert machine.waits(machine.submit(gpus=1)[0])


def test_nodes_with_free_accelerators_are_left_to_those_who_need_them() -> None:
    machine = Machine(2, 4, gpus=1)
    (first,) = machine.submit(gpus=1)
    (second,) = machine.submit(cores=3)
    assert machine.grants[first].hosts == machine.grants[second].hosts


# ---- gangs ----------------------------------------------------------------------------------------------------


@SHAPES
def test_a_gang_has_whole_nodes_to_itself(per_rank: int | None) -> None:
    machine = Machine(3, 4, per_rank, gpus=2)
    (gang,) = machine.submit(nodes=2)
    grant = machine.grants[gang]
    assert [share.slots for share in grant.shares] == [4, 4] and grant.gpus == ["0", "1"]
    assert machine.began[gang] == grant.shares[0].ranks[0]
    small = machine.submit(6)
    assert len(machine.running()) == 5
    machine.done(gang)
    assert machine.running() == set(small)


@SHAPES
def test_a_gang_may_take_a_part_of_each_node(per_rank: int | None) -> None:
    machine = Machine(2, 4, per_rank)
    a, b = machine.submit(2, nodes=2, cores=2)
    assert machine.running() == {a, b}
    assert machine.grants[a].hosts != [] and set(machine.grants[a].hosts) == {"n0", "n1"}


def test_exclusive_is_alone_with_the_cores_that_it_asked_for() -> None:
    machine = Machine(1, 4)
    (first,) = machine.submit()
    (alone,) = machine.submit(nodes=1, cores=2, exclusive=True)
    assert machine.waits(alone)
    machine.done(first)
    machine.submit()
    assert machine.running() == {alone}


def test_two_gangs_wait_for_each_other_and_none_is_lost() -> None:
    machine = Machine(4)
    gangs = machine.submit(6, nodes=3)
    for gang in gangs:
        assert machine.running() == {gang}
        machine.done(gang)
    assert not machine.state.tasks


# ---- Parsl's cases --------------------------------------------------------------------------------------------


def test_one_task_that_does_not_fit_does_not_stop_the_others_or_the_placement() -> None:
    """Parsl #3783, #3800: the scheduler of the backlog ran in a circle."""
    machine = Machine(4)
    first = machine.submit(2, nodes=2)
    large = machine.submit(nodes=4)
    small = machine.submit(nodes=1)
    assert machine.running() == set(first)
    machine.done(first[0])
    assert machine.waits(large[0])
    machine.done(first[1])
    assert machine.running() <= {*large, *small} and machine.running()
    machine.done(*machine.running())
    machine.done(*machine.running())
    assert not machine.state.tasks


def test_large_gangs_do_not_starve_behind_small_ones() -> None:
    """Parsl #3805: the smallest went first."""
    machine = Machine(4)
    running = [*machine.submit(4, nodes=1)]
    (large,) = machine.submit(nodes=4)
    for second in range(1, 5):
        machine.submit(2, nodes=1)
        machine.at(second)
        machine.done(running[second - 1], seconds=second)
    assert machine.running() == {large}


def test_the_last_task_starts_when_nodes_come_back() -> None:
    """Parsl #3829: nobody looked again."""
    machine = Machine(2)
    first, last = machine.submit(2, nodes=2)
    machine.done(first)
    assert machine.running() == {last}


def test_a_task_without_a_request_runs_beside_gangs() -> None:
    """Parsl #3427: it hung."""
    machine = Machine(2)
    (gang,) = machine.submit(nodes=1)
    (plain,) = machine.submit()
    assert machine.running() == {gang, plain}


# ---- keeping nodes --------------------------------------------------------------------------------------------


@SHAPES
def test_nodes_are_kept_for_the_first_of_the_line(per_rank: int | None) -> None:
    machine = Machine(2, 2, per_rank)
    small = list(machine.submit(10))
    (gang,) = machine.submit(nodes=2)
    assert machine.kept() == {"n0", "n1"}
    for task in small[:4]:
        machine.done(task)
    assert machine.running() == {gang}
    machine.done(gang)
    assert machine.running() == set(small[4:8])


def test_what_is_short_runs_on_kept_nodes_meanwhile() -> None:
    machine = Machine(2, 1)
    machine.learn(1.0, nodes=1)
    machine.learn(100.0, name="long")
    machine.learn(10.0, name="short")
    long = machine.submit(2, name="long")
    machine.at(50.0)
    machine.done(long[0])
    (gang,) = machine.submit(nodes=2)
    short = machine.submit(8, name="short")
    more = machine.submit(1, name="long")
    assert machine.running() == {long[1], short[0]}
    machine.at(60.0)
    machine.done(short[0], seconds=10.0)
    assert machine.running() == {long[1], short[1]}
    machine.at(95.0)
    machine.done(short[1], seconds=10.0)
    assert machine.running() == {long[1]}, "5 s are left, and nothing is that short"
    machine.at(99.0)
    machine.done(long[1])
    assert machine.running() == {gang}
    machine.done(gang)
    assert machine.running() == {short[2], short[3]} or machine.running() == {short[2], more[0]}


def test_unknown_lengths_do_not_run_on_kept_nodes() -> None:
    machine = Machine(2, 1)
    machine.learn(100.0, name="long")
    long = machine.submit(2, name="long")
    machine.done(long[0])
    (gang,) = machine.submit(nodes=2)
    machine.submit(name="unknown")
    assert machine.running() == {long[1]} and machine.waits(gang)


def test_a_straggler_does_not_let_short_tasks_in_for_ever() -> None:
    machine = Machine(1, 2)
    machine.learn(1.0, nodes=1)
    for _ in range(3):
        machine.learn(100.0, name="odd")
    machine.learn(1.0, name="short")
    (straggler,) = machine.submit(name="odd")
    (alone,) = machine.submit(nodes=1)
    machine.submit(300, name="short")
    began = []
    for second in range(1, 150):
        machine.at(second - 0.1)
        began += [second] if len(machine.running()) > 1 else []
        machine.done(*(machine.running() - {straggler}))
    assert 80 < len(began) < 110 and max(began) <= 102, "it has been the first of the line since 0, and the longest task takes 100 s"
    machine.done(straggler, seconds=150.0)
    assert alone in machine.running()


def test_a_big_task_further_back_is_backfilled_if_it_is_short() -> None:
    machine = Machine(3, 4)
    machine.learn(100.0, name="long", nodes=1)
    machine.learn(10.0, name="short", cores=2)
    long = machine.submit(2, name="long", nodes=1)
    (gang,) = machine.submit(name="gang", nodes=3)
    short = machine.submit(3, name="short", cores=2)
    assert machine.running() == {*long, *short[:2]}
    machine.submit(1, name="long", nodes=1)
    machine.done(*short[:2], seconds=10.0)
    assert machine.running() == {*long, short[2]}
    machine.done(short[2], *long, seconds=100.0)
    assert machine.running() == {gang}


def test_a_node_that_comes_free_sooner_replaces_a_slower_one() -> None:
    machine = Machine(3, 1)
    machine.learn(10.0, name="short")
    machine.learn(20.0, name="middle")
    machine.learn(100.0, name="long")
    a, b, c = machine.submit(name="short")[0], machine.submit(name="middle")[0], machine.submit(name="long")[0]
    (gang,) = machine.submit(nodes=2)
    home = {task: machine.state.workers[machine.began[task]].node for task in (a, b, c)}
    assert machine.kept() == {home[a], home[b]}
    machine.at(1.0)
    machine.done(c)
    assert home[c] in machine.kept() and len(machine.kept()) == 2
    machine.done(a)
    assert gang in machine.running() and b in machine.running()


def test_a_gang_starts_when_its_nodes_are_ready_and_not_only_when_all_nodes_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "LOOK_SHARE", 1000.0)
    machine = Machine(3, 1)
    small = machine.submit(3)
    (gang,) = machine.submit(nodes=2)
    kept = [task for task in small if machine.state.workers[machine.began[task]].node in machine.kept()]
    machine.done(kept[0])
    assert machine.waits(gang)
    machine.done(kept[1])
    assert gang in machine.running()


def test_a_cancelled_task_gives_its_nodes_back() -> None:
    machine = Machine(2, 2)
    small = machine.submit(10)
    (gang,) = machine.submit(nodes=2)
    machine.done(small[0])
    assert machine.kept() and len(machine.running()) == 3
    from_clients.on_cancel(machine.state, machine.client, Cancel([gang]))
    machine.turn()
    assert not machine.kept() and len(machine.running()) == 4


def test_nodes_are_kept_for_others_only_as_far_as_they_are_few() -> None:
    machine = Machine(32, 4)
    machine.submit(128)
    machine.submit(100, cores=2)
    assert 0 < len(machine.kept()) <= 32 * 4 // keeping.KEPT_PART // 2
    machine.submit(2, nodes=20)
    assert len(machine.kept()) <= 4


def test_what_came_later_cannot_delay_the_first_of_the_line() -> None:
    machine = Machine(4, 2)
    machine.learn(10.0, name="node", nodes=1)
    running = [*machine.submit(4, name="node", nodes=1)]
    (gang,) = machine.submit(name="gang", nodes=4)
    machine.submit(100, name="node", nodes=1)
    for second in range(1, 5):
        machine.at(10.0 + second)
        machine.done(running[second - 1], seconds=10.0)
        assert machine.running() == ({gang} if second == 4 else set(running[second:]))


def test_small_tasks_do_not_starve_behind_a_stream_of_gangs() -> None:
    machine = Machine(2, 2)
    (gang,) = machine.submit(nodes=2)
    small = machine.submit(4)
    began = []
    for _ in range(12):
        machine.submit(nodes=2)
        machine.done(*machine.running())
        began += [task for task in machine.running() if task in small]
    assert began == list(small)


def test_small_tasks_do_not_delay_gangs_for_ever_either() -> None:
    machine = Machine(2, 2)
    machine.submit(4)
    (gang,) = machine.submit(nodes=2)
    for turn in range(20):
        machine.submit(4)
        machine.done(min(machine.running()))
        if gang in machine.running():
            break
    assert gang in machine.running() and turn < 8


def test_small_tasks_with_a_better_priority_go_before_big_ones() -> None:
    machine = Machine(1, 4)
    (first,) = machine.submit(cores=4)
    (big,) = machine.submit(cores=4)
    urgent = machine.submit(6, priority=-1)
    machine.done(first)
    assert machine.running() == set(urgent[:4])
    assert not machine.kept()
    machine.done(*urgent[:4])
    assert machine.running() == set(urgent[4:]) and machine.kept()
    machine.done(*urgent[4:])
    assert machine.running() == {big}


def test_a_big_task_with_a_better_priority_takes_what_is_kept_for_another() -> None:
    machine = Machine(2, 2)
    running = machine.submit(2, nodes=1)
    (gang,) = machine.submit(nodes=2)
    machine.done(running[0])
    (urgent,) = machine.submit(nodes=1, priority=-1)
    assert machine.running() == {running[1], urgent} and machine.waits(gang)


def test_the_order_is_by_priority_then_first_come_first_whatever_the_depth() -> None:
    machine = Machine(1, 2)
    (first,) = machine.submit(cores=2)
    later = machine.submit(2, cores=2)
    (urgent,) = machine.submit(cores=2, priority=-1)
    order = []
    for _ in range(4):
        (task,) = machine.running()
        order.append(task)
        machine.done(task)
    assert order == [first, urgent, *later]


# ---- affinity -------------------------------------------------------------------------------------------------


@SHAPES
def test_a_task_runs_where_another_ran_if_there_is_room(per_rank: int | None) -> None:
    machine = Machine(4, 2, per_rank)
    tasks = machine.submit(8)
    home = {task: machine.state.workers[machine.began[task]].node for task in tasks}
    machine.done(*tasks)
    for task in tasks:
        (near,) = machine.submit(affinity=task)
        assert machine.state.workers[machine.began[near]].node == home[task]
        assert near not in machine.grants
        machine.done(near)
    assert not machine.state.ready.affinity


def test_affinity_is_only_a_preference() -> None:
    machine = Machine(2, 1)
    (first,) = machine.submit()
    home = machine.began[first]
    (near,) = machine.submit(affinity=first)
    assert machine.began[near] != home
    (unknown,) = machine.submit(affinity=4711)
    assert machine.waits(unknown)
    machine.done(first)
    assert machine.began[unknown] == home


def test_a_waiting_task_goes_first_where_it_would_like_to_run_but_not_for_ever() -> None:
    machine = Machine(1, 1)
    (first,) = machine.submit()
    machine.done(first)
    (running,) = machine.submit()
    (oldest,) = machine.submit(affinity=4711)
    machine.submit(100, affinity=first)
    count = 0
    while oldest not in machine.running():
        machine.done(*machine.running())
        count += 1
    assert 1 < count <= 40


def test_the_lead_of_a_gang_is_on_the_preferred_node() -> None:
    machine = Machine(4, 2)
    tasks = machine.submit(8)
    home = {machine.state.workers[machine.began[task]].node: task for task in tasks}
    machine.done(*tasks)
    for name, task in home.items():
        (gang,) = machine.submit(nodes=2, affinity=task)
        assert machine.grants[gang].hosts[0] == name
        machine.done(gang)


def test_where_tasks_ran_is_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from exex.manager import places

    monkeypatch.setattr(places, "REMEMBERED", 10)
    machine = Machine(1, 4)
    tasks = machine.submit(40)
    while machine.running():
        machine.done(*machine.running())
    found = [task for task in tasks if machine.state.places.of(task) is not None]
    assert found == list(tasks[30:])


# ---- what can never be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "keys"),
    [
        ({"cores": 5}, {"cores"}),
        ({"gpus": 3}, {"gpus"}),
        ({"memory_bytes": 11 * GIB}, {"memory"}),
        ({"nodes": 3}, {"nodes"}),
        ({"nodes": 2, "cores": 5}, {"cores"}),
    ],
)
def test_what_no_node_can_ever_meet_fails(spec: dict, keys: set) -> None:
    machine = Machine(2, 4, memory_gib=10, gpus=2)
    (task,) = machine.submit(name="sim", **spec)
    error = machine.error(task)
    assert isinstance(error, InvalidResourceSpecification) and error.invalid_keys == keys
    assert "app sim asks for" in str(error) and "the largest has 4 slots, 10 GiB of memory and 2 accelerators" in str(error)


def test_a_task_that_becomes_impossible_fails_and_says_why() -> None:
    machine = Machine(3, 4)
    (running,) = machine.submit(nodes=3)
    (gang,) = machine.submit(nodes=3, name="sim")
    (after,) = machine.submit()
    machine.lose(1)
    machine.turn()
    error = machine.error(gang)
    assert isinstance(error, InvalidResourceSpecification) and error.invalid_keys == {"nodes"}
    assert "there are 2 nodes that are left, and 2 of them can meet that" in str(error)
    assert after in machine.running() or machine.waits(after)


# ---- losses ---------------------------------------------------------------------------------------------------


@SHAPES
def test_a_gang_that_loses_a_node_is_tried_again_when_its_lead_has_dropped_it(per_rank: int | None) -> None:
    machine = Machine(4, 2, per_rank)
    (gang,) = machine.submit(nodes=2)
    lead, lender = machine.began[gang], machine.grants[gang].shares[1].ranks[-1]
    machine.lose(lender)
    assert machine.state.drops == {lead: [gang]}
    machine.turn()
    assert machine.state.tasks[gang].status == Status.ASSIGNED
    machine.done(gang, outcome=Outcome.CANCELLED)
    assert gang in machine.running() and machine.state.tasks[gang].attempt == 2
    assert lender not in [rank for share in machine.grants[gang].shares for rank in share.ranks]
    machine.done(gang)
    assert machine.client.kept[gang] == (Outcome.DONE, b"v")


@SHAPES
def test_a_gang_that_loses_its_lead_is_tried_again(per_rank: int | None) -> None:
    machine = Machine(4, 2, per_rank)
    (gang,) = machine.submit(nodes=2)
    machine.lose(machine.began[gang])
    machine.turn()
    assert gang in machine.running() and machine.state.tasks[gang].attempt == 2


def test_a_gang_that_loses_a_node_and_its_lead_before_it_is_dropped_loses_one_attempt() -> None:
    machine = Machine(4, 2)
    (gang,) = machine.submit(nodes=2)
    lead, lender = machine.began[gang], machine.grants[gang].shares[1].ranks[0]
    machine.lose(lender)
    machine.lose(lead)
    machine.turn()
    assert machine.state.tasks[gang].attempt == 2 and machine.state.losses[gang] == 1


def test_a_gang_that_ended_before_the_loss_was_known_is_done() -> None:
    machine = Machine(4, 2)
    (gang,) = machine.submit(nodes=2)
    machine.lose(machine.grants[gang].shares[1].ranks[0])
    machine.done(gang)
    assert machine.client.kept[gang] == (Outcome.DONE, b"v")
    assert not machine.state.broken and not machine.state.losses


def test_a_broken_gang_that_is_cancelled_is_dropped_once_reported() -> None:
    machine = Machine(4, 2)
    (gang,) = machine.submit(nodes=2)
    lead = machine.began[gang]
    machine.lose(machine.grants[gang].shares[1].ranks[0])
    from_clients.on_cancel(machine.state, machine.client, Cancel([gang]))
    machine.state.check()
    machine.done(gang, outcome=Outcome.CANCELLED)
    assert not machine.state.tasks and not machine.state.holdings and not machine.state.dropped
    assert machine.state.workers[lead].held == 0


def test_losing_its_nodes_again_and_again_fails_a_gang() -> None:
    machine = Machine(12, 1)
    (gang,) = machine.submit(nodes=2)
    for _ in range(from_workers.LOSSES_TOLERATED + 1):
        machine.lose(machine.grants[gang].shares[1].ranks[0])
        machine.done(gang, outcome=Outcome.FAILED)
    error = machine.error(gang)
    assert isinstance(error, WorkerLost) and error.node and "lost its worker 4 times" in str(error)


def test_a_failed_big_task_gives_everything_back_and_is_retried() -> None:
    machine = Machine(1, 4, gpus=1)
    (task,) = machine.submit(cores=3, gpus=1, retries=1)
    machine.done(task, outcome=Outcome.FAILED)
    assert machine.state.tasks[task].attempt == 2 and task in machine.running()
    machine.done(task, outcome=Outcome.FAILED)
    assert isinstance(machine.error(task), ValueError) and not machine.state.holdings


def test_a_cancelled_big_task_holds_its_slots_until_its_lead_has_ended_it() -> None:
    machine = Machine(1, 4)
    (task,) = machine.submit(cores=4)
    from_clients.on_cancel(machine.state, machine.client, Cancel([task]))
    (other,) = machine.submit(cores=1)
    assert not machine.running() & {other}
    machine.done(task, outcome=Outcome.CANCELLED)
    assert machine.running() == {other}


def test_a_kept_node_that_is_lost_is_replaced() -> None:
    machine = Machine(4, 2)
    machine.submit(4, nodes=1)
    (gang,) = machine.submit(nodes=3)
    lost = machine.state.nodes.by_name[min(machine.kept())]
    machine.lose(next(iter(lost.workers)))
    machine.turn()
    assert len(machine.kept()) == 3
    machine.done(*(machine.running() - {gang}))
    assert gang in machine.running() or machine.waits(gang)


# ---- the end of the allocation --------------------------------------------------------------------------------


def test_a_big_task_that_does_not_fit_in_time_is_shelved_and_keeps_nothing() -> None:
    machine = Machine(2, 2)
    machine.learn(50.0, name="gang", nodes=2)
    machine.submit(4)
    machine.state.ends_s = 40.0
    (gang,) = machine.submit(name="gang", nodes=2)
    assert machine.state.tasks[gang].status == Status.SHELVED and not machine.kept()


def test_no_nodes_are_kept_for_what_could_not_end_in_time_any_more() -> None:
    machine = Machine(2, 1)
    machine.learn(30.0, name="long")
    machine.learn(20.0, name="gang", nodes=2)
    long = machine.submit(2, name="long")
    machine.state.ends_s = 40.0
    (gang,) = machine.submit(name="gang", nodes=2)
    assert machine.waits(gang) and not machine.kept(), "it could start at 30 s, and end at 50 s"
    machine.at(15.0)
    machine.done(*long)
    assert machine.running() == {gang}, "they took less time than usual"


# ---- many kinds -----------------------------------------------------------------------------------------------


def test_many_kinds_of_requests_are_served_in_order() -> None:
    machine = Machine(1, 4, memory_gib=100)
    (first,) = machine.submit(cores=4)
    tasks = [machine.submit(cores=4, memory_bytes=GIB + size)[0] for size in range(200)]
    machine.done(first)
    order = []
    while machine.running():
        (task,) = machine.running()
        order.append(task)
        machine.done(task)
    assert order == tasks
    assert len(machine.state.ready.line.shapes) <= 200


def test_the_first_of_many_kinds_is_found_though_others_have_gone_or_were_cancelled() -> None:
    machine = Machine(1, 4, memory_gib=100)
    (first,) = machine.submit(cores=4)
    tasks = [machine.submit(cores=4, memory_bytes=GIB + size)[0] for size in range(100)]
    urgent = machine.submit(cores=4, memory_bytes=GIB + 70, priority=-1)[0]
    from_clients.on_cancel(machine.state, machine.client, Cancel(tasks[:30]))
    machine.done(first)
    order = []
    while machine.running():
        (task,) = machine.running()
        order.append(task)
        machine.done(task)
    assert order == [urgent, *tasks[30:]]


def test_an_event_costs_no_look_at_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(500, 4)
    running = [*machine.submit(500, cores=3)]
    machine.submit(300, cores=3)
    machine.submit(100, cores=2)
    machine.state.packing.next_look_s = 1e9  # looks at all nodes are made from time to time, whatever happens
    looks = 0
    fits = NodeRecord.fits

    def counted(node: NodeRecord, request: Any) -> bool:
        nonlocal looks
        looks += 1
        return fits(node, request)

    monkeypatch.setattr(NodeRecord, "fits", counted)
    monkeypatch.setattr(ManagerState, "check", lambda state: None)
    for task in running[:200]:
        machine.done(task)
    assert looks < 200 * 20, "one node is touched twice, and there are two kinds of requests"


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=6), st.data())
def test_slots_of_a_node_are_taken_of_few_workers_and_whole_ones_first(workers: list[tuple[int, int]], data: Any) -> None:
    machine = Machine(0)
    for rank, (slots, _) in enumerate(workers, 1):
        from_workers.on_hello(machine.state, rank, Hello("1", "3", "n", rank, slots, "", []))
    machine.state.nodes.watch()
    for rank, (_, held) in enumerate(workers, 1):
        machine.state.workers[rank].held = held
        machine.state.nodes.touch(machine.state.workers[rank])
    node = machine.state.nodes.by_name["n"]
    if not node.free:
        return
    cores = data.draw(st.integers(1, node.free))
    chosen = grants._choose_slots(node, Request(cores, 0, 0, 1, False))
    assert sum(slots for _, slots in chosen) == cores
    assert all(0 < slots <= worker.free for worker, slots in chosen) and len({worker for worker, _ in chosen}) == len(chosen)
    if any(worker.free >= cores for worker in node.workers.values()):
        assert len(chosen) == 1
    assert sum(slots < worker.free for worker, slots in chosen[1:]) <= 1, "beside the lead one at the most gives a part"
