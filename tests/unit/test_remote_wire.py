"""The words of the launch helper and the task's end, and streams between two ends, without processes."""

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exex.remote import wire
from exex.remote.flows import Inflow, Outflow
from exex.remote.keeper import Refused, check_program
from exex.remote.wire import STDOUT, Broken, Wire

no_nul = st.binary(max_size=20).filter(lambda data: b"\0" not in data)
names = st.binary(min_size=1, max_size=9).filter(lambda data: b"\0" not in data and b"=" not in data)


@given(no_nul, st.lists(no_nul, min_size=1, max_size=5).filter(lambda words: words[0]), st.dictionaries(names, no_nul, max_size=5))
def test_a_request_arrives_as_it_was(directory, words, variables):
    assert wire.unpack_request(wire.pack_request(b"/" + directory, words, variables)) == (b"/" + directory, words, variables)


@given(st.one_of(st.binary(), st.lists(no_nul).map(b"\0".join), st.lists(no_nul).map(lambda parts: b"\0".join([b"/", b"2", *parts]))))
def test_anything_is_a_request_or_broken(data):
    try:
        directory, words, variables = wire.unpack_request(data)
    except Broken:
        return
    assert directory.startswith(b"/") and words[0] and all(variables)


def test_a_proof_of_one_is_none_of_another():
    key, one, other = os.urandom(32), os.urandom(32), os.urandom(32)
    proofs = {
        wire.proof(key, b"task", one, other), wire.proof(key, b"task", other, one), wire.proof(key, b"helper", one, other),
        wire.proof(key, b"request", one, other), wire.proof(key, b"request", one, other, b"x"), wire.proof(one, b"task", one, other),
    }  # fmt: skip
    assert len(proofs) == 6


@pytest.fixture
def ends():
    """Two ends of a connection."""
    pair = [Wire(sock, (wire.DATA, wire.CREDIT, wire.CLOSED)) for sock in socket.socketpair()]
    yield pair
    for link in pair:
        link.close()


def test_frames_may_come_in_pieces(ends):
    one, other = ends
    one.send(wire.DATA, b"\1", b"abc")
    one.send(wire.CLOSED, b"\2")
    data = bytes(one._out)
    for at in range(len(data)):
        one.socket.send(data[at : at + 1])
        other.read()
        found = other.frame()
        assert found == ({8: (wire.DATA, b"\1abc"), 14: (wire.CLOSED, b"\2")}.get(at))


@pytest.mark.parametrize("data", [wire._HEADER.pack(wire.HELLO, 1), wire._HEADER.pack(wire.DATA, 10**9), wire._HEADER.pack(0, 0), b"\xff" * 5])
def test_a_frame_that_may_not_come_is_refused_by_its_head(ends, data):
    one, other = ends
    one.socket.send(data)
    other.read()
    with pytest.raises(Broken):
        other.frame()


def test_a_stream_stops_at_its_window_and_goes_on_with_credit(ends):
    """The sink takes nothing until it is read; then all comes, in order."""
    one, other = ends
    source, theirs = os.pipe()
    reader, sink = os.pipe()
    os.set_blocking(reader, False)
    out, into = Outflow(source, STDOUT, one), Inflow(sink, STDOUT, other)
    size, sent, got = 4 * wire.WINDOW_BYTES, 0, b""
    expected = os.urandom(size)
    os.set_blocking(theirs, False)
    stalled = 0
    while len(got) < size:
        before = (sent, len(got), into._buffer[:1])
        try:
            if sent < size:
                sent += os.write(theirs, expected[sent : sent + 65536])
        except BlockingIOError:
            pass
        if out.wants() and sent > 0:
            out.move() if _ready(source) else None
        _pump(one, other, out, into)
        if into.wants() and stalled:
            into.move()
        if before == (sent, len(got), into._buffer[:1]):
            stalled += 1
        if stalled:
            try:
                got += os.read(reader, 65536)
            except BlockingIOError:
                pass
        elif len(into._buffer) == wire.WINDOW_BYTES:
            assert not out.wants(), "the credit is used up"
        assert len(into._buffer) <= wire.WINDOW_BYTES
    assert got == expected
    os.close(theirs)
    out.move()
    _pump(one, other, out, into)
    assert not into.is_open and os.read(reader, 1) == b""
    os.close(reader)


def _ready(fd):
    import select

    return bool(select.select([fd], [], [], 0)[0])


def _pump(one, other, out, into):
    for link, handle in ((other, lambda data: into.take(data[1:])), (one, lambda data: out.add_credit(wire.unpack_credit(data)[1]))):
        for sender in (one, other):
            sender.flush()
        while _ready(link.fileno()):
            link.read()
            while (frame := link.frame()) is not None:
                handle(frame[1])
            for sender in (one, other):
                sender.flush()


def test_a_sink_that_nobody_reads_is_told(ends):
    one, other = ends
    reader, sink = os.pipe()
    os.close(reader)
    into = Inflow(sink, STDOUT, other)
    into.take(b"x")
    into.move()
    other.flush()
    one.read()
    assert one.frame() == (wire.CLOSED, bytes([STDOUT]))
    into.take(b"y")
    assert not into.wants()


def test_credit_for_what_was_never_sent_is_a_lie(ends):
    out = Outflow(os.open(os.devnull, os.O_RDONLY), STDOUT, ends[0])
    with pytest.raises(Broken):
        out.add_credit(1)
    out.close()


@pytest.mark.parametrize("words", ["aprun -n 1 x", "/opt/aprun", "env A=1 aprun", "/usr/bin/env A= B=2 jsrun x"])
def test_launchers_are_let_through(words):
    check_program(words.split(), frozenset({"aprun", "jsrun"}))


@pytest.mark.parametrize("words", ["sh -c aprun", "env", "env A=1", "env -S aprun", "aprun2", "x/aprun/y", "A=1 aprun"])
def test_other_programs_are_not(words):
    with pytest.raises(Refused, match="is none of the launchers"):
        check_program(words.split(), frozenset({"aprun", "jsrun"}))
