"""Memory of files that are freed: taken again by the next writer of that size, left alone while somebody has it mapped."""

import math
import os

import pytest

from exex.store import node_store, recycling
from exex.store.holdings import Holdings
from exex.store.node_store import NodeStore
from exex.store.recycling import KEEP_S, PIECE_BYTES, SPARES

MIB = 1 << 20


@pytest.fixture
def holdings(tmp_path):
    return Holdings(NodeStore.begin(str(tmp_path), "", 1 << 40), 100 * MIB)


def put(holdings, name, size, letter=b"x"):
    stored = holdings.store.write(name, [letter * size])
    holdings.adopt(stored)
    return stored


def spares(holdings):
    """Sizes of all that is kept, and of what leaves."""
    directory = os.path.join(holdings.store.directory, SPARES)
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(os.path.getsize(os.path.join(directory, name)) for name in names)


def number(holdings, name):
    """Of the file: the same if it is the same memory."""
    return os.stat(holdings.store.path(name)).st_ino


@pytest.mark.parametrize("size", [4 * MIB, 3 * MIB, 7 * MIB])
def test_the_next_of_about_that_size_is_written_to_the_same_memory(holdings, size):
    put(holdings, "t1.1", 4 * MIB)
    before = number(holdings, "t1.1")
    holdings.free(["t1.1"])
    assert not holdings.store.has("t1.1") and spares(holdings) == [4 * MIB]
    stored = put(holdings, "t2.1", size, b"y")
    assert number(holdings, "t2.1") == before and spares(holdings) == []
    assert bytes(holdings.store.map(stored).frames[0]) == b"y" * size == bytes(holdings.store.view("t2.1"))


@pytest.mark.parametrize("size", [MIB // 2, 9 * MIB])
def test_for_one_of_another_size_it_stays(holdings, size):
    put(holdings, "t1.1", 4 * MIB)
    holdings.free(["t1.1"])
    put(holdings, "t2.1", size)
    assert spares(holdings) == [4 * MIB]


def test_the_one_that_fits_best_is_taken(holdings):
    for number_, size in enumerate((3, 5, 4, 6)):
        put(holdings, f"t{number_}.1", size * MIB)
    holdings.free([f"t{number_}.1" for number_ in range(4)])
    assert spares(holdings) == [3 * MIB, 4 * MIB, 5 * MIB, 6 * MIB]
    put(holdings, "t9.1", 4 * MIB + 1)
    assert spares(holdings) == [3 * MIB, 4 * MIB, 6 * MIB]


def test_a_payload_that_comes_in_pieces_takes_it_too(holdings):
    put(holdings, "t1.1", 4 * MIB)
    holdings.free(["t1.1"])
    piece = holdings.store.incoming("t2.1", 3 * MIB, writer=1)
    piece.write(0, b"y" * 3 * MIB)
    piece.complete()
    assert spares(holdings) == [] and bytes(holdings.store.view("t2.1")) == b"y" * 3 * MIB


def test_what_somebody_has_mapped_is_never_written_to_again(holdings):
    stored = put(holdings, "t1.1", 4 * MIB)
    mapped = holdings.store.map(stored)
    holdings.free(["t1.1"])
    assert spares(holdings) == [] and not holdings.is_busy()
    put(holdings, "t2.1", 4 * MIB, b"y")
    assert bytes(mapped.frames[0]) == b"x" * 4 * MIB


def test_what_another_process_has_mapped_is_not_either(holdings):
    stored = put(holdings, "t1.1", 4 * MIB)
    reader, writer = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        mapped = holdings.store.map(stored)
        os.write(writer, b"mapped")
        os.read(told, 1)
        os._exit(0 if bytes(mapped.frames[0]) == b"x" * 4 * MIB else 1)
    assert os.read(reader, 6) == b"mapped"
    holdings.free(["t1.1"])
    put(holdings, "t2.1", 4 * MIB, b"y")
    os.write(tell, b"!")
    assert os.waitpid(child, 0)[1] == 0
    for fd in (reader, writer, told, tell):
        os.close(fd)


def test_what_nobody_takes_is_given_back_in_pieces(holdings):
    holdings.tick(100.0)
    size = PIECE_BYTES + MIB
    put(holdings, "t1.1", size)
    holdings.free(["t1.1"])
    holdings.tick(100.0 + KEEP_S)
    assert spares(holdings) == [size] and not holdings.is_busy()
    holdings.tick(100.1 + KEEP_S)
    assert holdings.is_busy()
    put(holdings, "t2.1", size)
    assert spares(holdings) == [size], "what leaves is not taken"
    assert holdings.work() and spares(holdings) == [MIB]
    assert not holdings.work() and spares(holdings) == []


def test_one_that_was_taken_in_time_is_not_given_back(holdings):
    put(holdings, "t1.1", 4 * MIB)
    holdings.free(["t1.1"])
    stored = put(holdings, "t2.1", 4 * MIB)
    holdings.tick(math.inf)
    while holdings.work():
        pass
    assert holdings.store.map(stored)


def test_spares_take_no_more_than_their_share_and_go_first(holdings):
    for each in range(10):
        put(holdings, f"t{each}.1", 10 * MIB)
    holdings.free([f"t{each}.1" for each in range(10)])
    holdings.tick(1.0)
    while holdings.work():
        pass
    assert spares(holdings) == [10 * MIB] * 2, "a quarter of 100 MiB"
    for each in range(9):
        put(holdings, f"t{each}.2", 4 * MIB + 10 * MIB * (each > 0))
    while holdings.work():
        pass
    assert spares(holdings) == [], "values need the room"


def test_their_memory_is_there_for_who_finds_no_room(holdings, monkeypatch):
    put(holdings, "t1.1", 4 * MIB)
    holdings.free(["t1.1"])
    monkeypatch.setattr(node_store, "free_bytes", lambda path: 0 if spares(holdings) else 20 * MIB)
    put(holdings, "t2.1", 20 * MIB)
    assert spares(holdings) == []


def test_a_file_system_without_leases_only_costs_time(holdings, monkeypatch):
    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(recycling.fcntl, "fcntl", refuse)
    put(holdings, "t1.1", 4 * MIB)
    holdings.free(["t1.1"])
    assert spares(holdings) == [] and not holdings.store.has("t1.1")
