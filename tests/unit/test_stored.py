"""Stored payloads where tasks run: real task processes; a worker's state and its dealings with an exchange, without processes."""

import os

import numpy as np
import pytest

from exex import errors
from exex.protocol import payload as payloads
from exex.protocol.messages import (
    Absent,
    AppSpec,
    Assign,
    Chunk,
    Copy,
    Drop,
    Fetch,
    Free,
    Grant,
    Here,
    Holds,
    Join,
    Outcome,
    Retract,
    Share,
)
from exex.protocol.payload import Large, Stored
from exex.store import node_store
from exex.store.exchange import Exchange
from exex.store.holdings import Holdings
from exex.store.node_store import NodeStore
from exex.worker import assigned
from exex.worker.giving_back import on_retract
from exex.worker.needs import Needs
from exex.worker.state import WorkerState
from exex.worker.stored import StoredValues
from tests.unit.test_template import World

KEEP_BYTES = 50_000


@pytest.fixture
def store(tmp_path):
    (tmp_path / "store").mkdir()
    return NodeStore.begin(str(tmp_path / "store"), "", 1 << 30)


# ---- task processes -------------------------------------------------------------------------------------------


def zeros(size):
    return np.zeros(size)


def text(size):
    return "x" * size


def fail(size):
    raise ValueError("x" * size)


def add_one(array):
    array += 1
    return float(array.sum())


def copied_kib(array):
    """What the kernel has copied of the pages that this array lies in, after all of it was read."""
    array.sum()
    address = array.__array_interface__["data"][0]
    counting = False
    with open("/proc/self/smaps") as file:
        for line in file:
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                begin, end = (int(word, 16) for word in words[0].split("-"))
                counting = begin <= address < end
            elif counting and words[0] == "Anonymous:":
                return int(words[1])
    return -1


def call_of(store, name, *args):
    """Put arguments into the store."""
    return store.write(name, payloads.dump((args, {})).frames)


def test_large_values_stay_in_the_store_and_nothing_else_does(store, tmp_path):
    world = World(tmp_path, store=(store.directory, KEEP_BYTES, 1 << 30))
    process = world.fork()
    large, small, string, wrong = world.give(process, (zeros, 10_000), (zeros, 1000), (text, 100_000), (fail, 100_000))
    sent = world.give(process, (zeros, 10_000), sends_value=True)
    found = world.results([large, small, string, wrong, *sent])
    assert [type(value) for _, value in found] == [Stored, np.ndarray, Stored, ValueError, np.ndarray]
    assert found[0][1].name == f"t{large}.1" and payloads.load(store.map(found[0][1])).shape == (10_000,)
    assert payloads.load(store.map(found[2][1])) == "x" * 100_000
    assert sorted(os.listdir(store.directory)) == ["key", f"t{large}.1", f"t{string}.1"]


def test_arguments_are_mapped_and_may_be_written_to(store, tmp_path):
    world = World(tmp_path, store=(store.directory, KEEP_BYTES, 1 << 30))
    array = np.ones(1 << 20)
    stored = call_of(store, "c0.0", array)
    process = world.fork()
    tasks = world.give(process, (copied_kib,), (add_one,), (add_one,), (copied_kib,), stored=[stored] * 4)
    found = [value for _, value in world.results(tasks)]
    assert found[1:3] == [2.0 * (1 << 20)] * 2 and found[0] <= 8 >= found[3], found
    assert payloads.load(store.map(stored))[0][0].sum() == 1 << 20


def test_a_call_whose_argument_is_gone_is_starved_and_the_next_one_runs(store, tmp_path):
    world = World(tmp_path, store=(store.directory, KEEP_BYTES, 1 << 30))
    process = world.fork()
    there, gone = call_of(store, "c0.0", np.ones(10)), Stored("c0.1", [10])
    tasks = world.give(process, (add_one,), (add_one,), (add_one,), stored=[there, gone, there])
    assert world.results(tasks) == [(Outcome.DONE, 20.0), (Outcome.STARVED, b""), (Outcome.DONE, 20.0)]


def test_without_a_store_nothing_is_kept(tmp_path):
    world = World(tmp_path)
    process = world.fork()
    tasks = world.give(process, (zeros, 100_000))
    assert type(world.results(tasks)[0][1]) is np.ndarray


SPEC = AppSpec(app=0, name="f", function=b"d")


def test_what_finds_no_room_travels(store, monkeypatch):
    values = StoredValues(store.directory, KEEP_BYTES, 1 << 30)
    large = Large([bytes(KEEP_BYTES)])
    assert type(values.kept(SPEC, Outcome.DONE, large, 7, 2)) is Stored and store.has("t7.2")
    monkeypatch.setattr(node_store, "free_bytes", lambda path: 0)
    assert values.kept(SPEC, Outcome.DONE, large, 8, 1) is large
    monkeypatch.setattr(node_store, "free_bytes", lambda path: 1 << 30)
    monkeypatch.setattr(node_store.os, "rename", _broken)
    assert values.kept(SPEC, Outcome.DONE, large, 8, 1) is large and not os.path.exists(f"{store.directory}/.t8.1")


def _broken(*_):
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize(
    ("keep_bytes", "outcome", "size", "spec"),
    [
        (KEEP_BYTES, Outcome.DONE, KEEP_BYTES - 1, SPEC),
        (1, Outcome.DONE, payloads.LARGE_BYTES - 1, SPEC),
        (0, Outcome.DONE, 1 << 20, SPEC),
        (1, Outcome.FAILED, 1 << 20, SPEC),
        (1, Outcome.DONE, 1 << 20, AppSpec(app=0, name="f", function=b"d", sends_value=True)),
        (1, Outcome.DONE, 1 << 20, AppSpec(app=0, name="f", function=b"d", ranks=2)),
    ],
)
def test_what_is_not_kept(store, keep_bytes, outcome, size, spec):
    large = Large([bytes(size)])
    assert StoredValues(store.directory, keep_bytes, 1 << 30).kept(spec, outcome, large, 7, 1) is large
    assert not store.has("t7.1")


# ---- what a worker does while something is on its way -----------------------------------------------------------


class Desk:
    """A worker's state and needs; messages to the manager and to other ranks are remembered."""

    def __init__(self, store):
        self.said, self.sent = [], []
        holdings = Holdings(store, 1 << 30)
        self.exchange = Exchange(3, holdings, lambda rank, message: self.sent.append((rank, message)))
        self.needs = Needs(self.exchange, 0, True, self.said.append)
        self.state = WorkerState(3, "nid00012", [])
        assigned.on_assign(self.state, Assign(apps=[SPEC], functions={b"d": b""}, tasks=[], calls=[0], payloads=[], values={}, attempts={}))

    def assign(self, *tasks, sources, payload=b"", values=None, grants=None):
        message = Assign(
            apps=[],
            functions={},
            tasks=list(tasks),
            calls=[0],
            payloads=[payload] * len(tasks),
            values={} if values is None else dict.fromkeys(range(len(tasks)), values),
            attempts={},
            sources=sources,
            grants=grants or {},
        )
        assigned.on_assign(self.state, message, self.needs.lacking(message))
        self.needs.turn(self.state)

    def arrives(self, name, size, source=1):
        self.needs.on_message(source, Chunk(name=name, at=0, data=bytes(size)))
        self.needs.turn(self.state)

    def queued(self):
        return [call.task for call in self.state.queue]

    def reported(self):
        done = self.state.take_done()
        return [] if done is None else list(zip(done.tasks, done.outcomes, strict=True))


@pytest.fixture
def desk(store):
    return Desk(store)


ONE, TWO = Stored("t1.1", [100]), Stored("t2.1", [100])


def test_a_call_stands_aside_until_all_is_there_and_others_go_on(desk):
    desk.assign(7, sources={"t1.1": 1, "t2.1": 2}, payload=ONE, values=[b"", TWO, ONE])
    desk.assign(8, sources={"t1.1": 1}, payload=ONE)
    desk.assign(9, sources={})
    assert desk.queued() == [9] and [(rank, message.names) for rank, message in desk.sent] == [(1, ["t1.1"]), (2, ["t2.1"])]
    desk.arrives("t1.1", 100)
    assert desk.queued() == [9, 8] and desk.said == [Holds(names=["t1.1"])]
    desk.arrives("t2.1", 100, source=2)
    assert desk.queued() == [9, 8, 7] and not desk.state.aside and desk.reported() == []


def test_what_is_in_the_store_is_not_fetched(desk, store):
    stored = store.write("t1.1", [b"x"])
    desk.assign(7, 8, sources={"t1.1": 1}, payload=stored)
    assert desk.queued() == [7, 8] and not desk.sent and not desk.said


def test_a_call_that_cannot_get_what_it_needs_is_starved(desk):
    desk.assign(7, sources={"t1.1": 1, "t2.1": 2}, payload=ONE, values=[TWO])
    desk.needs.on_message(1, Absent(names=["t1.1"]))
    desk.needs.turn(desk.state)
    assert desk.reported() == [(7, Outcome.STARVED)] and not desk.said and not desk.state.aside
    desk.arrives("t2.1", 100, source=2)
    assert desk.queued() == [] and desk.said == [Holds(names=["t2.1"])]


def test_the_manager_knows_that_a_source_is_lost(desk):
    desk.assign(7, sources={"t1.1": 1}, payload=ONE)
    desk.needs.on_message(0, Absent(names=["t1.1"]))
    desk.needs.turn(desk.state)
    assert desk.reported() == [(7, Outcome.STARVED)]


def test_a_node_without_room_fails_the_call_and_says_so(desk, monkeypatch):
    desk.assign(7, sources={"t1.1": 1}, payload=ONE)
    monkeypatch.setattr(node_store, "free_bytes", lambda path: 0)
    desk.arrives("t1.1", 100)
    done = desk.state.take_done()
    error = payloads.load(done.payloads[0])
    assert list(done.outcomes) == [Outcome.FAILED] and isinstance(error, errors.StoreFull)
    assert "task 7 (f), attempt 1, cannot run on rank 3 at nid00012: node " in str(error) and "--store-dir" in str(error)


def test_a_call_that_stands_aside_can_be_dropped(desk):
    desk.assign(7, 8, sources={"t1.1": 1}, payload=ONE)
    assigned.on_drop(desk.state, Drop(tasks=[7]), 0.0)
    assert desk.reported() == [(7, Outcome.CANCELLED)]
    desk.arrives("t1.1", 100)
    assert desk.queued() == [8]


def test_a_call_that_stands_aside_can_be_given_back_and_what_it_needs_still_comes(desk):
    grant = Grant(1, [], [Share("nid00012", 1, [], [3])])
    desk.assign(7, 8, sources={"t1.1": 1}, payload=ONE)
    desk.assign(9, sources={"t1.1": 1}, payload=ONE, grants={0: grant})
    on_retract(desk.state, Retract(tasks=[7, 9]))
    assert desk.state.take_returned().tasks == [7]
    desk.arrives("t1.1", 100)
    assert desk.queued() == [8] and len(desk.state.big) == 1 and desk.said == [Holds(names=["t1.1"])]


def test_big_calls_and_calls_on_communicators_wait_likewise(desk):
    grant = Grant(1, [], [Share("nid00012", 1, [], [3])])
    assigned.on_join(desk.state, Join(8, 1, [3, 2]))
    desk.assign(7, 8, sources={"t1.1": 1}, payload=ONE, grants={0: grant, 1: grant})
    assert not desk.state.big and not desk.state.parts
    desk.arrives("t1.1", 100)
    assert [call.task for call in desk.state.big] == [7] and [call.task for _, call in desk.state.parts] == [8]


def test_copies_are_answered_whatever_becomes_of_them(desk, store):
    here = store.write("t3.1", [b"x" * 10])
    desk.needs.on_message(0, Copy(payloads=[ONE, TWO], source=1))
    desk.needs.on_message(0, Copy(payloads=[here, Stored("t4.1", [5])], source=3))
    desk.needs.turn(desk.state)
    assert desk.said == [Holds(names=["t3.1"]), Absent(names=["t4.1"])] and "t3.1" in desk.exchange.holdings
    desk.said.clear()
    desk.arrives("t1.1", 100)
    desk.needs.on_message(1, Absent(names=["t2.1"]))
    desk.needs.turn(desk.state)
    assert desk.said == [Holds(names=["t1.1"]), Absent(names=["t2.1"])]


def test_what_another_rank_of_the_node_holds_is_not_told_again(desk, store):
    desk.assign(7, sources={"t1.1": 1}, payload=ONE)
    store.write("t1.1", [bytes(100)])
    desk.needs.on_message(1, Here(names=["t1.1"]))
    desk.needs.turn(desk.state)
    assert desk.queued() == [7] and not desk.said


def test_what_is_freed_is_gone(desk):
    desk.assign(7, sources={"t1.1": 1}, payload=ONE)
    desk.arrives("t1.1", 100)
    desk.needs.on_message(0, Free(names=["t1.1", "t9.1"]))
    assert not desk.exchange.has("t1.1")


def test_only_the_manager_gives_orders(desk):
    with pytest.raises(errors.ProtocolError, match="rank 2 sends a Free"):
        desk.needs.on_message(2, Free(names=["t1.1"]))
    desk.needs.on_message(2, Fetch(names=["t1.1"]))
    desk.needs.tick(100.0)
    assert not desk.sent
    desk.needs.tick(102.0)
    assert desk.sent == [(2, Absent(names=["t1.1"]))]


def test_what_an_attempt_that_died_has_left_is_removed(desk, store):
    store.write("t7.1", [b"x"])
    store.write("t8.1", [b"x"])
    desk.assign(7, sources={})
    desk.needs.on_died(desk.state.queue)
    assert not store.has("t7.1") and store.has("t8.1")
