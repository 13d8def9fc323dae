"""The store of a node: files of payloads, in memory and on disk. Both are directories of the test's own."""

import ctypes
import errno
import os

import numpy as np
import pytest

from exex.errors import StoreFull
from exex.protocol import payload as payloads
from exex.protocol.payload import Stored
from exex.store import mapping, node_store
from exex.store.holdings import PIECE_BYTES, Holdings
from exex.store.node_store import ALIGNMENT, NodeStore


@pytest.fixture
def store(tmp_path):
    return make(tmp_path)


def make(path, limit_bytes=None):
    memory, disk = path / "memory", path / "disk"
    memory.mkdir()
    disk.mkdir()
    return NodeStore.begin(str(memory), str(disk), limit_bytes)


def where(store, name):
    """Directories in which there is anything of this name."""
    found = [directory for directory in (store.directory, store.spill) for each in os.listdir(directory) if name in each]
    return [os.path.basename(directory) for directory in found]


def no_room_in(monkeypatch, *names):
    """These directories have no room for anything."""
    real = node_store.free_bytes
    monkeypatch.setattr(node_store, "free_bytes", lambda path: 0 if os.path.basename(path) in names else real(path))


def test_what_is_written_is_mapped_as_it_was(store):
    value = {"a": np.arange(10_000.0), "b": [np.ones((3, 5), np.int8)[:, ::2], b"x" * 100], "c": np.zeros(0)}
    stored = store.write("t1.1", payloads.dump(value).frames)
    assert store.has("t1.1") and where(store, "t1.1") == ["memory"]
    found = payloads.load(store.map(stored))
    assert found["b"][1] == value["b"][1] and found["c"].shape == (0,)
    assert np.array_equal(found["a"], value["a"]) and np.array_equal(found["b"][0], value["b"][0])


def test_frames_of_any_size_are_aligned(store):
    frames = [b"pickle", b"", bytes(range(256)) * 3, b"y", bytearray(64), b""]
    stored = store.write("c0.0", frames)
    assert stored.sizes == (6, 0, 768, 1, 64, 0) and len(stored) == 839
    mapped = store.map(stored)
    assert [bytes(frame) for frame in mapped.frames] == [bytes(frame) for frame in frames]
    begins, size = node_store.offsets(stored.sizes)
    assert all(begin % ALIGNMENT == 0 for begin in begins) and os.path.getsize(store.path("c0.0")) == size
    assert all(np.frombuffer(frame, np.uint8).ctypes.data % ALIGNMENT == 0 for frame in mapped.frames if len(frame))


def test_an_array_can_be_written_to_without_others_seeing_it(store):
    stored = store.write("t1.1", payloads.dump(np.zeros(100_000)).frames)
    mine, other = payloads.load(store.map(stored)), payloads.load(store.map(stored))
    mine += 1
    assert mine.flags.writeable and not other.any() and not payloads.load(store.map(stored)).any()


def test_what_is_mapped_stays_when_its_file_goes(store):
    stored = store.write("t1.1", payloads.dump(np.arange(100_000)).frames)
    value = payloads.load(store.map(stored))
    store.remove(["t1.1"])
    assert not store.has("t1.1") and where(store, "t1.1") == []
    assert value.sum() == np.arange(100_000).sum()
    with pytest.raises(FileNotFoundError):
        store.map(stored)


def test_mapped_payloads_hold_no_descriptors_and_give_their_memory_back(store):
    stored = store.write("t1.1", [b"x" * 1_000_000])
    before = len(os.listdir("/proc/self/fd")), mapped_kib()
    values = [store.map(stored) for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) <= before[0] and mapped_kib() - before[1] > 40_000
    del values
    assert mapped_kib() - before[1] < 5000


def mapped_kib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") // 1024


def test_what_the_kernel_maps_no_more_of_is_read(store, monkeypatch):
    stored = store.write("t1.1", [b"abc", b"x" * 10_000])

    def no_more(*_):
        ctypes.set_errno(errno.ENOMEM)

    monkeypatch.setattr(mapping, "_libc", type("Libc", (), {"mmap": no_more}))
    assert [bytes(frame) for frame in store.map(stored).frames] == [b"abc", b"x" * 10_000]


def test_a_file_that_cannot_be_mapped_is_an_error(store, monkeypatch):
    with pytest.raises(OSError, match="1000000 bytes cannot be mapped"):
        mapping.map_privately(-1, 1_000_000)


def test_a_file_of_another_size_is_not_what_was_announced(store):
    store.write("t1.1", [b"x" * 100])
    with pytest.raises(FileNotFoundError):
        store.map(Stored("t1.1", [101]))


def test_a_payload_of_nothing_is_no_reason_to_fail(store):
    assert [bytes(frame) for frame in store.map(store.write("t1.1", [b"", b""])).frames] == [b"", b""]


def test_what_is_not_complete_is_not_found_and_goes_with_the_rest(store):
    piece = store.incoming("t1.1", 10_000, writer=3)
    piece.write(0, b"x" * 5000)
    assert not store.has("t1.1") and where(store, "t1.1") == ["memory"]
    assert bytes(piece.view()[:5000]) == b"x" * 5000
    piece.write(5000, b"y" * 5000)
    piece.complete()
    assert bytes(store.view("t1.1")) == b"x" * 5000 + b"y" * 5000
    store.incoming("t2.1", 10, writer=3).abandon()
    assert where(store, "t2.1") == []


def test_a_second_writer_of_the_same_does_no_harm(store):
    one, two = store.incoming("t1.1", 3, writer=1), store.incoming("t1.1", 3, writer=2)
    one.write(0, b"abc")
    two.write(0, b"abc")
    one.complete()
    view = store.view("t1.1")
    two.complete()
    assert bytes(view) == bytes(store.view("t1.1")) == b"abc" and len(os.listdir(store.directory)) == 3


def test_leftovers_of_a_writer_that_was_killed_go(store):
    with open(os.path.join(store.directory, ".t1.1"), "w"):
        pass
    store.remove(["t1.1"])
    assert where(store, "t1.1") == []


# ---- room -----------------------------------------------------------------------------------------------------


def test_what_finds_no_room_in_memory_goes_to_disk(store, monkeypatch):
    no_room_in(monkeypatch, "memory")
    stored = store.write("t1.1", [b"x" * 100_000])
    assert where(store, "t1.1") == ["disk"] and bytes(store.map(stored).frames[0]) == b"x" * 100_000
    assert store.has("t1.1")


def test_what_is_larger_than_a_rank_may_hold_goes_to_disk(tmp_path):
    store = make(tmp_path, limit_bytes=1000)
    store.write("t1.1", [b"x" * 1000])
    store.write("t1.2", [b"x" * 1001])
    assert where(store, "t1.1") == ["memory"] and where(store, "t1.2") == ["disk"]


def test_memory_that_turns_out_to_be_full_is_not_the_end(store, monkeypatch):
    real = node_store.write_at

    def full(fd, data, at):
        if "/memory/" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, data, at)

    monkeypatch.setattr(node_store, "write_at", full)
    store.write("t1.1", [b"x" * 100])
    assert where(store, "t1.1") == ["disk"]


def test_no_room_anywhere_is_an_error_that_says_where(store, monkeypatch):
    no_room_in(monkeypatch, "memory", "disk")
    for make_room in (lambda: store.write("t1.1", [b"x" * 2_000_000]), lambda: store.incoming("t1.1", 2_000_000, 1)):
        with pytest.raises(StoreFull, match=r"no room for the stored value t1\.1 of 2\.0 MB \(2000000 bytes\).*--store-dir") as caught:
            make_room()
        assert os.uname().nodename in str(caught.value)
        assert store.directory in str(caught.value) and store.spill in str(caught.value)
    assert where(store, "t1.1") == []


def test_a_store_is_found_by_its_directory(store, tmp_path):
    found = NodeStore.at(store.directory)
    assert found is not None and found.key() == store.key() and found.spill == store.spill
    again = NodeStore.begin(store.directory, store.spill, 1000)
    assert again.key() == store.key() and again.spill == store.spill and len(os.listdir(store.directory)) == 2
    assert NodeStore.at(str(tmp_path / "elsewhere")) is None and NodeStore.at("") is None


# ---- what a rank answers for ------------------------------------------------------------------------------------


def put(holdings, name, size):
    stored = holdings.store.write(name, [b"x" * size])
    holdings.adopt(stored)
    return stored


def spill_all(holdings):
    """Pieces that it took."""
    count = 1
    while holdings.spill():
        count += 1
    return count


def test_what_was_not_used_for_longest_is_moved_to_disk(store):
    holdings = Holdings(store, 2500)
    stored = [put(holdings, f"t{i}.1", 1000) for i in range(2)]
    assert not holdings.is_above()
    holdings.use("t0.1")
    stored.append(put(holdings, "t2.1", 1000))
    mapped = store.map(stored[1])
    assert holdings.is_above()
    spill_all(holdings)
    assert [where(store, f"t{i}.1") for i in range(3)] == [["memory"], ["disk"], ["memory"]]
    assert holdings.used_bytes == 2000 and holdings.spilled == 1 and "t1.1" in holdings
    assert bytes(mapped.frames[0]) == b"x" * 1000 == bytes(store.map(stored[1]).frames[0])
    holdings.free(["t0.1", "t1.1", "t2.1"])
    assert holdings.used_bytes == 0 and "t1.1" not in holdings
    assert [where(store, f"t{i}.1") for i in range(3)] == [[], [], []]


def test_a_large_one_is_moved_in_pieces_and_is_there_all_the_time(store):
    holdings = Holdings(store, 0)
    stored = put(holdings, "t1.1", 2 * PIECE_BYTES + 1)
    pieces = 0
    while holdings.spill():
        pieces += 1
        assert len(store.map(stored).frames[0]) == 2 * PIECE_BYTES + 1
    assert pieces == 3 and where(store, "t1.1") == ["disk"] and not holdings.is_above()


def test_one_that_is_freed_while_it_is_moved_is_gone(store):
    holdings = Holdings(store, 0)
    put(holdings, "t1.1", 2 * PIECE_BYTES)
    assert holdings.spill()
    holdings.free(["t1.1"])
    spill_all(holdings)
    assert where(store, "t1.1") == [] and holdings.spilled == 0


def test_a_full_disk_leaves_values_where_they_are(store, monkeypatch):
    holdings = Holdings(store, 0)
    stored = put(holdings, "t1.1", 1000)
    monkeypatch.setattr("exex.store.holdings.free_bytes", lambda path: 0)
    spill_all(holdings)
    assert where(store, "t1.1") == ["memory"] and store.map(stored) and not holdings.spill()


def test_without_a_disk_nothing_is_moved(tmp_path):
    holdings = Holdings(NodeStore.begin(str(tmp_path), "", 0), 0)
    put(holdings, "t1.1", 1000)
    assert not holdings.is_above() and not holdings.spill() and holdings.store.has("t1.1")


def test_a_mapped_value_is_the_clients_own_and_not_copied(tmp_path):
    """What a future opens can be written to; a mapped one can as it is."""
    from exex.client.lazy import _own
    from exex.protocol.payload import Large

    store = NodeStore(str(tmp_path))
    mapped = store.map(store.write("t0.1", [b"head", bytes(100_000)]))
    assert _own(mapped) is mapped
    assert _own(Large([b"head", memoryview(bytearray(8))])) is not mapped
