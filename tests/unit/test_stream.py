"""Messages come out of a stream as they went in, however the bytes are cut on the way."""

import itertools
import os
import select
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exex.errors import ProtocolError
from exex.transport import stream
from exex.transport.base import GONE
from exex.transport.stream import BlockingStream, Reader, StreamLink, pack

CHUNK = 256 * 1024


class Pieces:
    """A socket that receives these pieces, one per call, or less if there is no room."""

    def __init__(self, pieces):
        self._pieces = [bytes(piece) for piece in pieces if piece]

    def recv_into(self, buffer):
        if not self._pieces:
            return 0
        piece = self._pieces.pop(0)
        got = min(len(piece), len(buffer))
        memoryview(buffer)[:got] = piece[:got]
        if got < len(piece):
            self._pieces.insert(0, piece[got:])
        return got


def read_all(pieces):
    reader = Reader(Pieces(pieces))
    while reader.fill():
        pass
    return [[bytes(frame) for frame in message] for message in reader.messages]


def on_the_wire(messages):
    return b"".join(bytes(buffer) for message in messages for buffer in pack(message))


def cut(data, cuts):
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


sizes = st.one_of(st.integers(0, 40), st.sampled_from([1000, CHUNK - 12, CHUNK - 11, CHUNK, CHUNK + 1, 2 * CHUNK]))
frames = st.builds(
    lambda size, seed: bytes((seed + i) % 256 for i in range(min(size, 50))).ljust(size, b"."), sizes, st.integers(0, 255)
)
messages = st.lists(st.lists(frames, min_size=1, max_size=5), max_size=5)


@given(messages, st.lists(st.integers(0, 4 * CHUNK), max_size=30))
@settings(deadline=None)
def test_any_cut_of_the_bytes_gives_the_same_messages(sent, cuts):
    assert read_all(cut(on_the_wire(sent), cuts)) == sent


def test_byte_by_byte():
    sent = [[b"one"], [b""], [b"", b"", b"x"], [b"two", b"", b"three"], [b"four"]]
    data = on_the_wire(sent)
    assert read_all([data[i : i + 1] for i in range(len(data))]) == sent


@given(messages)
@settings(deadline=None, max_examples=30)
def test_both_kinds_of_end_understand_each_other(sent):
    a, b = socket.socketpair()
    link, blocking = StreamLink(a), BlockingStream(b)
    back = []

    def echo():
        while (message := blocking.receive()) is not GONE:
            blocking.send(message)

    thread = threading.Thread(target=echo)
    thread.start()
    for message in sent:
        link.send(0, message)
    poll = select.poll()
    while len(back) < len(sent):
        poll.register(link.fileno(), select.POLLIN | (select.POLLOUT if link.progress() else 0))
        poll.poll(5000)
        while (arrived := link.receive()) is not None:
            back.append([bytes(frame) for frame in arrived[1]])
    a.shutdown(socket.SHUT_RDWR)
    thread.join()
    link.close()
    b.close()
    assert back == sent


def test_frames_after_the_first_are_writable_however_they_came():
    message = [b"head", b"small", b"l" * (2 * CHUNK), b"tail"]
    for pieces in ([on_the_wire([message])], cut(on_the_wire([message]), range(0, 3 * CHUNK, 10_000))):
        reader = Reader(Pieces(pieces))
        while reader.fill():
            pass
        assert all(type(frame) is bytearray for frame in reader.messages[0][1:])


def test_memoryviews_of_any_format_are_sent_as_bytes():
    values = memoryview(bytearray(80)).cast("d")
    assert read_all([on_the_wire([[b"head", values]])]) == [[b"head", bytes(80)]]


def test_a_message_of_very_many_frames():
    a, b = socket.socketpair()
    link, blocking = StreamLink(a), BlockingStream(b)
    message = [b"%d" % i for i in range(5000)]
    thread = threading.Thread(target=blocking.send, args=(message,))
    thread.start()
    poll = select.poll()
    poll.register(link.fileno(), select.POLLIN)
    while (arrived := link.receive()) is None:
        assert poll.poll(5000)
    thread.join()
    assert [bytes(frame) for frame in arrived[1]] == message
    link.send(0, message)  # more than one call of writev takes
    while link.progress():
        pass
    assert [bytes(frame) for frame in blocking.receive()] == message
    link.close()
    b.close()


def test_sending_never_blocks_and_keeps_the_order():
    a, b = socket.socketpair()
    link, blocking = StreamLink(a), BlockingStream(b)
    sent = [[b"%d" % i, bytes(100_000)] if i % 3 else [b"%d" % i] for i in range(50)]
    for message in sent:
        link.send(0, message)
    assert link.progress()
    got = []

    def take():
        got.extend(blocking.receive()[0] for _ in sent)

    thread = threading.Thread(target=take)
    thread.start()
    poll = select.poll()
    poll.register(link.fileno(), select.POLLOUT)
    while link.progress():
        assert poll.poll(5000)
    thread.join()
    assert [bytes(frame) for frame in got] == [b"%d" % i for i in range(50)]
    link.close()
    b.close()


# ---- the end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [b"", b"\x01\x00", stream._ONE.pack(1, 100) + b"half", on_the_wire([[b"a", b"bcd"]])[:-1]])
def test_the_end_is_told_once_after_all_complete_messages(left):
    a, b = socket.socketpair()
    link = StreamLink(a)
    b.sendall(on_the_wire([[b"whole"]]) + left)
    b.close()
    assert link.receive() == (0, [b"whole"])
    assert link.receive() == (0, GONE)
    assert link.receive() is None
    link.close()
    link.close()
    assert link.fileno() == -1


def test_nothing_for_now_is_none():
    a, b = socket.socketpair()
    link = StreamLink(a)
    assert link.receive() is None
    assert not link.progress()
    link.close()
    b.close()


def test_sending_to_a_peer_that_is_gone_raises():
    a, b = socket.socketpair()
    link = StreamLink(a)
    b.close()
    for message in ([b"one"], [b"one", b"two"]):
        with pytest.raises(ConnectionError):
            link.send(0, message)
    link.close()


def test_the_blocking_end_tells_the_end_too():
    a, b = socket.socketpair()
    blocking = BlockingStream(b)
    assert not blocking.waiting()
    a.sendall(on_the_wire([[b"one"], [b"two"]]))
    assert blocking.receive() == [b"one"]
    assert blocking.waiting()
    assert blocking.receive() == [b"two"]
    a.close()
    assert blocking.receive() is GONE
    assert blocking.receive() is GONE
    b.close()


@pytest.mark.parametrize("head", [bytes(12), (stream.MOST_FRAMES + 1).to_bytes(4, "little") + bytes(8), b"GET / HTTP/1.1\r\n"])
def test_other_protocols_are_refused(head):
    with pytest.raises(ProtocolError, match=r"a message of \d+ frames"):
        read_all([head])


def test_descriptors_are_released():
    before = len(os.listdir("/proc/self/fd"))
    a, b = socket.socketpair()
    link, other = StreamLink(a), StreamLink(b)
    link.close()
    other.close()
    assert len(os.listdir("/proc/self/fd")) <= before  # garbage of before may be closed meanwhile
