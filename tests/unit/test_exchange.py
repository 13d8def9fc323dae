"""Stored payloads between ranks: real stores in a directory of the test's own, messages in an order that a seed chooses."""

from __future__ import annotations

import os
import random
from collections import deque
from typing import ClassVar

import pytest

from exex.protocol import codec
from exex.protocol.messages import Absent, Chunk, Here
from exex.protocol.payload import Stored
from exex.store import exchange, node_store
from exex.store.exchange import EARLY_S, SILENT_S, Exchange
from exex.store.holdings import Holdings
from exex.store.node_store import NodeStore


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(exchange, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(exchange, "WINDOW_BYTES", 4000)


@pytest.fixture(autouse=True)
def no_descriptors_left():
    """Payloads that had not ended to arrive when a test did have files open."""
    yield
    for each in World.all:
        each.on_lost(list(each._arrivals))
    World.all.clear()


class World:
    """Ranks and the messages between them, in order on each link, coded as they would be."""

    all: ClassVar[list[Exchange]] = []

    def __init__(self, path, nodes, seed=0):
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.links: dict[tuple[int, int], deque] = {}
        self.dead: set[int] = set()
        self.absent: list[tuple[int, list[str]]] = []
        self.let_go: list[tuple[int, int]] = []
        self.said: list[tuple[int, int, object]] = []
        self.ranks: dict[int, Exchange] = {}
        self._encoder, self._decoder = codec.Encoder(), codec.to_worker()
        stores = {}
        for rank, node in enumerate(nodes):
            if node not in stores:
                (path / f"{node}").mkdir()
                stores[node] = str(path / f"{node}")
            holdings = Holdings(NodeStore.begin(stores[node], "", 1 << 40), 1 << 40)
            self.ranks[rank] = Exchange(rank, holdings, self._sender(rank), self._hearer(rank), self._let_go(rank))

        World.all += self.ranks.values()

    def _sender(self, rank):
        def send(peer, message):
            if peer in self.dead:
                raise ConnectionError(f"rank {peer} is gone")
            self.said.append((rank, peer, message))
            self.links.setdefault((rank, peer), deque()).append(self._encoder.encode(message))

        return send

    def _hearer(self, rank):
        return lambda names: self.absent.append((rank, names))

    def _let_go(self, rank):
        return lambda peer: self.let_go.append((rank, peer))

    def step(self):
        """Deliver one message; False if there is none."""
        if not self.links:
            return False
        link = self.rng.choice(sorted(self.links))
        frames = self.links[link].popleft()
        if not self.links[link]:
            del self.links[link]
        if link[1] not in self.dead:
            self.ranks[link[1]].on_message(link[0], self._decoder.decode([bytes(frame) for frame in frames]))
        return True

    def settle(self):
        while self.step():
            pass

    def later(self, seconds):
        self.now_s += seconds
        for rank, each in self.ranks.items():
            if rank not in self.dead:
                each.tick(self.now_s)

    def kill(self, rank, tell=True):
        self.dead.add(rank)
        for link in [link for link in self.links if rank in link]:
            del self.links[link]
        if tell:
            for other, each in self.ranks.items():
                if other not in self.dead:
                    each.on_gone(rank)

    def put(self, rank, name, size, seed=1):
        data = random.Random(seed).randbytes(size)
        stored = self.ranks[rank].store.write(name, [data[: size // 3], data[size // 3 :]])
        self.ranks[rank].adopt(stored)
        return stored

    def content(self, rank, stored):
        return b"".join(bytes(frame) for frame in self.ranks[rank].payload(stored).frames)


def most_under_way(world, link):
    return sum(len(message.data) for rank, peer, message in world.said if (rank, peer) == link and isinstance(message, Chunk))


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 3999, 4000, 4001, 25_000])
def test_a_payload_arrives_as_it_was(tmp_path, size):
    world = World(tmp_path, ["a", "b"])
    stored = world.put(0, "t1.1", size)
    one = world.ranks[1]
    one.fetch(stored, 0)
    assert one.events() == [] and not one.has("t1.1")
    world.settle()
    assert one.events() == [("t1.1", True)] and one.events() == []
    assert world.content(1, stored) == world.content(0, stored)
    assert "t1.1" in one.holdings and one.fetched_bytes == world.ranks[0].sent_bytes == node_store.offsets(stored.sizes)[1]
    assert not world.ranks[0]._servings and not one._arrivals


def test_no_more_than_a_window_is_under_way(tmp_path):
    world = World(tmp_path, ["a", "b"])
    stored = world.put(0, "t1.1", 50_000)
    world.ranks[1].fetch(stored, 0)
    most = 0
    while world.step():
        queued = world.links.get((0, 1), ())
        most = max(most, sum(sum(map(len, frames[1:])) for frames in queued))
    assert 3000 <= most <= 4000 and world.ranks[1].has("t1.1")


def test_what_is_here_already_is_not_fetched(tmp_path):
    world = World(tmp_path, ["a", "a"])
    stored = world.put(0, "t1.1", 100)
    world.ranks[1].fetch(stored, 0, asker=1)
    assert world.ranks[1].events() == [] and world.ranks[1].events(1) == [("t1.1", True)] and not world.said
    assert "t1.1" not in world.ranks[1].holdings, "rank 0 answers for it"


def test_each_asker_is_told_and_it_travels_once(tmp_path):
    world = World(tmp_path, ["a", "b"])
    stored = world.put(0, "t1.1", 10_000)
    for asker in (0, 1, 1):
        world.ranks[1].fetch(stored, 0, asker)
    world.settle()
    assert world.ranks[1].events(0) == world.ranks[1].events(1) == [("t1.1", True)]
    assert world.ranks[1].fetched_bytes < 10_100


def test_a_rank_that_is_getting_it_passes_it_on_as_it_comes(tmp_path):
    world = World(tmp_path, "abcd")
    stored = world.put(0, "t1.1", 20_000)
    for rank in (1, 2, 3):
        world.ranks[rank].fetch(stored, rank - 1)
    passed_on_early = False
    while world.step():
        passed_on_early |= world.ranks[3].fetched_bytes > 0 and not world.ranks[1].has("t1.1")
    assert passed_on_early
    assert all(world.content(rank, stored) == world.content(0, stored) for rank in (1, 2, 3))
    assert world.ranks[0].sent_bytes < 20_100, "a chain: each sends once"


def test_ranks_of_one_node_get_it_once(tmp_path):
    world = World(tmp_path, "abbb")
    stored = world.put(0, "t1.1", 20_000)
    for rank, source in ((1, 0), (2, 1), (3, 1)):
        world.ranks[rank].fetch(stored, source)
    world.settle()
    for rank in (1, 2, 3):
        assert world.ranks[rank].events() == [("t1.1", True)]
        assert ("t1.1" in world.ranks[rank].holdings) == (rank == 1)
    assert [type(message) for rank, peer, message in world.said if peer == 3] == [Here]
    world.ranks[2].free(["t1.1"])
    assert not world.ranks[1].has("t1.1"), "freed for all of the node"


def test_one_that_another_rank_of_the_node_has_got_is_taken_from_the_store(tmp_path):
    world = World(tmp_path, "abbc")
    stored = world.put(0, "t1.1", 5000)
    world.kill(0, tell=False)
    world.dead.clear()  # rank 0 is deaf: what it is sent is lost
    world.ranks[1].fetch(stored, 0)
    world.ranks[3].fetch(stored, 1)
    world.links.pop((1, 0))
    world.settle()
    world.put(2, "t1.1", 5000)
    world.later(1.0)
    world.settle()
    assert world.ranks[1].events() == world.ranks[3].events() == [("t1.1", True)]
    assert world.content(3, stored) == world.content(0, stored)


# ---- what is not to be had --------------------------------------------------------------------------------------


def test_who_has_not_got_it_says_so_and_the_manager_hears(tmp_path):
    world = World(tmp_path, "ab")
    world.ranks[1].fetch(Stored("t1.1", [10]), 0)
    world.settle()
    world.later(EARLY_S)
    assert not world.absent
    world.later(0.1)
    world.settle()
    assert world.ranks[1].events() == [("t1.1", False)] and world.ranks[1].why("t1.1") == ""
    assert world.absent == [(0, ["t1.1"])]


def test_who_is_asked_before_it_hears_that_it_is_to_get_it_does_not_say_no(tmp_path):
    world = World(tmp_path, "abc")
    stored = world.put(0, "t1.1", 5000)
    world.ranks[2].fetch(stored, 1)
    later = Stored("t2.1", [3])
    world.ranks[2].fetch(later, 1)
    world.settle()
    world.later(EARLY_S)
    world.ranks[1].fetch(stored, 0)
    world.ranks[1].adopt(world.ranks[1].store.write("t2.1", [b"abc"]))
    world.settle()
    assert sorted(world.ranks[2].events()) == [("t1.1", True), ("t2.1", True)]
    world.later(2 * EARLY_S)
    assert not world.absent and not world.ranks[1]._early


def test_a_rank_does_not_ask_itself(tmp_path):
    world = World(tmp_path, "a")
    world.ranks[0].fetch(Stored("t1.1", [10]), 0)
    assert world.ranks[0].events() == [("t1.1", False)] and not world.said


@pytest.mark.parametrize("how", ["told", "send", "manager"])
def test_a_source_that_dies(tmp_path, how):
    world = World(tmp_path, "abc")
    stored = world.put(0, "t1.1", 50_000)
    if how == "send":
        world.kill(0, tell=False)
    world.ranks[1].fetch(stored, 0)
    if how != "send":
        world.ranks[2].fetch(stored, 1)
        for _ in range(20):
            world.step()
        assert world.ranks[2].fetched_bytes
        world.kill(0, tell=how == "told")
        if how == "manager":
            world.ranks[1].on_lost(["t1.1"])
        world.settle()
        assert world.ranks[2].events() == [("t1.1", False)], "who was passed it on is told"
    assert world.ranks[1].events() == [("t1.1", False)]
    assert not world.ranks[1].has("t1.1") and os.listdir(world.ranks[1].store_dir) == ["key"], "nothing is left"


def test_a_source_that_is_silent_is_given_up_and_may_be_asked_again(tmp_path):
    world = World(tmp_path, "ab")
    stored = world.put(0, "t1.1", 50_000)
    world.ranks[1].fetch(stored, 0)
    for _ in range(9):
        world.step()
    taken = world.links.pop((0, 1))
    for _ in range(8):
        world.later(SILENT_S / 6)
    assert world.ranks[1].events() == [("t1.1", False)] and world.let_go == [(0, 1)], "never of rank 0"
    world.ranks[1].fetch(stored, 0)
    world.links[0, 1] = taken  # late, from the first try
    world.settle()
    assert world.ranks[1].events() == [("t1.1", True)] and world.content(1, stored) == world.content(0, stored)


def test_one_that_asks_and_takes_nothing_is_forgotten(tmp_path):
    world = World(tmp_path, "ab")
    stored = world.put(0, "t1.1", 50_000)
    world.ranks[1].fetch(stored, 0)
    world.step()
    assert world.ranks[0]._servings
    for _ in range(8):
        world.later(SILENT_S / 6)
    assert not world.ranks[0]._servings


def test_a_process_that_stood_still_does_not_blame_others(tmp_path):
    world = World(tmp_path, "ab")
    stored = world.put(0, "t1.1", 50_000)
    world.ranks[1].fetch(stored, 0)
    world.later(10 * SILENT_S)
    world.settle()
    assert world.ranks[1].events() == [("t1.1", True)]


def test_what_is_freed_while_it_comes_or_goes(tmp_path):
    world = World(tmp_path, "ab")
    stored = world.put(0, "t1.1", 50_000)
    world.ranks[1].fetch(stored, 0)
    for _ in range(6):
        world.step()
    for rank in (0, 1):
        world.ranks[rank].free(["t1.1", "t2.1"])
    world.settle()
    assert world.ranks[1].events() == [("t1.1", False)]
    assert all(os.listdir(each.store_dir) == ["key"] and not each._servings for each in world.ranks.values())


def test_no_room_says_why(tmp_path, monkeypatch):
    world = World(tmp_path, "ab")
    stored = world.put(0, "t1.1", 50_000)
    monkeypatch.setattr(node_store, "free_bytes", lambda path: 10)
    world.ranks[1].fetch(stored, 0)
    world.settle()
    assert world.ranks[1].events() == [("t1.1", False)]
    assert "no room for the stored value t1.1 of 0.1 MB (50" in world.ranks[1].why("t1.1")


def test_chunks_that_nobody_asked_for_are_passed_over(tmp_path):
    world = World(tmp_path, "abc")
    stored = world.put(0, "t1.1", 50_000)
    world.ranks[1].fetch(stored, 0)
    one = world.ranks[1]
    for rank, at, data in ((2, 0, b"x"), (0, 5, b"x"), (0, 0, b""), (0, 0, b"x" * 100_000)):
        one.on_message(rank, Chunk(name="t1.1", at=at, data=data))
    one.on_message(0, Chunk(name="t7.1", at=0, data=b"x"))
    one.on_message(2, Absent(names=["t1.1"]))
    one.on_message(2, Here(names=["t1.1"]))
    assert one.fetched_bytes == 0 and one.events() == []
    world.settle()
    assert world.content(1, stored) == world.content(0, stored)


# ---- anything, in any order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_everybody_gets_it_or_is_told(tmp_path, seed):
    """Ranks on some nodes fetch from one another, in chains and in parallel; some die, some values are freed, links are slow."""
    rng = random.Random(seed)
    nodes = [rng.choice("abcd") for _ in range(7)]
    world = World(tmp_path, nodes, seed)
    values = [world.put(0, f"t{i}.1", rng.choice([1, 900, 5000, 30_000]), seed=i) for i in range(3)]
    true = {stored.name: world.content(0, stored) for stored in values}
    asked: dict[tuple[int, str], int] = {}
    told: dict[tuple[int, str], list[bool]] = {}

    def look():
        for rank, each in world.ranks.items():
            for name, is_here in each.events():
                told.setdefault((rank, name), []).append(is_here)
                if is_here and rank not in world.dead and name not in freed:
                    assert world.content(rank, next(stored for stored in values if stored.name == name)) == true[name]

    freed: set[str] = set()
    for _ in range(400):
        what = rng.random()
        if what < 0.06:
            rank, stored = rng.randrange(1, 7), rng.choice(values)
            if (rank, stored.name) not in asked and rank not in world.dead and stored.name not in freed:
                sources = [0, *(other for other, name in asked if name == stored.name and other != rank)]
                asked[rank, stored.name] = 1
                world.ranks[rank].fetch(stored, rng.choice(sources))
        elif what < 0.065 and len(world.dead) < 2:
            world.kill(rng.choice([rank for rank in range(7) if rank not in world.dead]), tell=rng.random() < 0.5)
        elif what < 0.07:
            name = rng.choice(values).name
            freed.add(name)
            for rank in set(world.ranks) - world.dead:
                world.ranks[rank].free([name])
        else:
            world.step()
        look()
    world.settle()
    for _ in range(30):
        world.later(SILENT_S / 6)
        world.settle()
        look()
    for rank, name in asked:
        if rank not in world.dead:
            assert len(told[rank, name]) == 1, (rank, name, told.get((rank, name)))
            if not world.dead and not freed:
                assert told[rank, name] == [True] and not world.absent
    for rank in set(world.ranks) - world.dead:
        each = world.ranks[rank]
        assert not each._arrivals and not each._servings and not each._early
    for rank in world.ranks:
        left = [name for name in os.listdir(world.ranks[rank].store_dir) if name.startswith(".")]
        assert all(any(name.endswith(f".{dead}") for dead in world.dead) for name in left)
