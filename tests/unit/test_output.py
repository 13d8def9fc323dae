"""Where a rank passes on what tasks print: it never waits, loses nothing while somebody reads, and keeps little."""

import fcntl
import os
import pty
import socket
import threading

import pytest

from exex.worker import output
from exex.worker.output import Outlet

CHUNK = b"0123456789abcdef" * 4096  # 64 KiB


@pytest.fixture(params=["pipe", "socket", "terminal", "limited"])
def ends(request, monkeypatch):
    """(what the rank writes to, where it is read)."""
    if request.param == "socket":
        ours, theirs = socket.socketpair()
        fds = os.dup(ours.fileno()), os.dup(theirs.fileno())
        ours.close()
        theirs.close()
    elif request.param == "terminal":
        theirs, ours = pty.openpty()
        fds = ours, theirs
    else:
        theirs, ours = os.pipe()
        fds = ours, theirs
    if request.param == "limited":  # as with a terminal of somebody else: it cannot be opened anew
        monkeypatch.setattr(os, "open", lambda *args: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    yield fds
    monkeypatch.undo()
    for fd in fds:
        os.close(fd)


def fill(outlet, pipe=7):
    """Write until it is full; how much went in, waiting part included."""
    total = 0
    while not outlet.full:
        outlet.pass_on(pipe, CHUNK)
        total += len(CHUNK)
        assert total < 100 << 20
    return total


def test_it_does_not_wait_and_leaves_the_descriptor_as_it_was(ends):
    ours, _ = ends
    before = fcntl.fcntl(ours, fcntl.F_GETFL)
    outlet = Outlet(ours)
    fill(outlet)
    assert outlet.resume() == [] and outlet.full
    assert fcntl.fcntl(ours, fcntl.F_GETFL) == before and os.get_blocking(ours)
    outlet.close()


def test_everything_arrives_in_order(ends):
    ours, theirs = ends
    outlet = Outlet(ours)
    total = fill(outlet, 7)
    for pipe in (8, 9, 8):
        assert not outlet.pass_on(pipe, CHUNK)
    total += 3 * len(CHUNK)
    got, free = bytearray(), []
    while len(got) < total:
        got += os.read(theirs, 1 << 16)
        if outlet.full:
            free += outlet.resume()
    assert bytes(got) == CHUNK * (total // len(CHUNK))
    assert sorted(set(free)) == [7, 8, 9] and not outlet.full
    assert outlet.pass_on(7, b"x")
    outlet.close()


def test_little_is_kept_of_what_has_ended(ends):
    ours, _ = ends
    outlet = Outlet(ours)
    fill(outlet)
    for pipe in range(100, 400):
        outlet.pass_on(pipe, CHUNK)
        outlet.ended(pipe)
    kept = sum(len(view) for _, view in outlet._rest)
    assert kept <= output.MOST_KEPT + len(CHUNK)
    assert outlet.dropped_bytes == 300 * len(CHUNK) - output.MOST_KEPT
    outlet.close()


def test_a_pipe_that_has_ended_is_not_read_again(ends):
    ours, theirs = ends
    outlet = Outlet(ours)
    fill(outlet)
    outlet.ended(7)
    while outlet.full:
        os.read(theirs, 1 << 16)
        assert outlet.resume() == []
    outlet.close()


def test_the_end_waits_for_a_slow_reader_but_not_for_ever(ends):
    ours, theirs = ends
    outlet = Outlet(ours)
    total = fill(outlet)
    got = []
    reader = threading.Thread(target=lambda: [got.append(os.read(theirs, 4096)) for _ in iter(lambda: sum(map(len, got)) < total, False)])
    reader.start()
    outlet.drain(30.0)
    reader.join()
    assert b"".join(got) == CHUNK * (total // len(CHUNK)) and outlet.dropped_bytes == 0
    fill(outlet)
    outlet.drain(0.0)
    assert 0 < outlet.dropped_bytes <= len(CHUNK)
    outlet.close()


def test_nobody_reads_any_more():
    theirs, ours = os.pipe()
    outlet = Outlet(ours)
    os.close(theirs)
    assert outlet.pass_on(7, CHUNK) and not outlet.full
    outlet.close()
    os.close(ours)


def test_a_file_is_written_where_it_ends(tmp_path):
    path = tmp_path / "out"
    with open(path, "wb", buffering=0) as file:
        file.write(b"before ")
        outlet = Outlet(file.fileno())
        assert outlet.pass_on(7, CHUNK)
        file.write(b" after")
        outlet.close()
    assert path.read_bytes() == b"before " + CHUNK + b" after"


def test_closed_from_the_start():
    fd = os.open(os.devnull, os.O_WRONLY)
    os.close(fd)
    assert Outlet(fd).pass_on(7, CHUNK)
