"""Links over TCP with CURVE: who gets in, and what a broken connection costs. The contract itself is in tests/conformance."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from exex.errors import StartError
from exex.transport.base import GONE
from exex.transport.curve import CurveLink, CurveServer, Keys
from exex.transport.zeromq import Listener, is_key, new_keys

LIMIT_S = 60.0


class Rig:
    """A server and the keys of its job."""

    def __init__(self) -> None:
        (self.public, secret), self.mine = new_keys(), new_keys()
        self.listener = Listener(("127.0.0.1",), 0, secret, frozenset((self.mine[0],)))
        self.server = CurveServer(self.listener, grace_s=60.0)
        self.endpoint = f"127.0.0.1:{self.listener.port}"
        self.keys = Keys(self.public, *self.mine)
        self.links: list[CurveLink] = []

    def link(self, endpoint: str = "", keys: Keys | None = None) -> CurveLink:
        self.links.append(CurveLink((endpoint or self.endpoint,), keys or self.keys))
        return self.links[-1]

    def until(self, what, *links: CurveLink) -> None:
        """Turn all until something is so."""
        give_up_s = time.monotonic() + LIMIT_S
        while not what():
            assert time.monotonic() < give_up_s, [link.error for link in links]
            select.select([self.server, *links], (), (), 0.01)

    def hear(self, *links: CurveLink) -> tuple[int, list[bytes]]:
        """The server's next message."""
        arrived: list = []

        def look() -> bool:
            for link in links:
                link.progress()
            arrived.append(self.server.receive())
            return arrived[-1] is not None

        self.until(look, *links)
        return arrived[-1]

    def close(self) -> None:
        self.server.close()
        for link in self.links:
            link.close()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr("exex.transport.curve._CLOSE_S", 0.2)  # in some tests nobody hears a link's last words
    rig = Rig()
    yield rig
    rig.close()


class Cable:
    """TCP between a client and the server, which can be cut, and which records."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.said = bytearray()  # by clients
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._ends += [near, far]
            for source, sink, record in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass_on, args=(source, sink, record), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, record: bool) -> None:
        try:
            while data := source.recv(65536):
                if record:
                    self.said += data
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break all connections there are."""
        ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):  # it is broken already
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:
            end.close()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (lambda rig: Keys(rig.public, *new_keys()), "its key is refused"),
        (lambda rig: Keys(new_keys()[0], *rig.mine), "does not have the key of this job"),
    ],
    ids=["client", "server"],
)
def test_a_wrong_key_is_refused_before_anything_is_read(rig: Rig, capfd: pytest.CaptureFixture[str], keys, reason: str) -> None:
    wrong, right = rig.link(keys=keys(rig)), rig.link()
    wrong.send(0, [b"run this"])
    errors: set[str] = set()

    def refused() -> bool:
        assert wrong.receive() is None and rig.server.receive() is None
        errors.add(wrong.error)
        return any(reason in error for error in errors)

    rig.until(refused, wrong)
    right.send(0, [b"hello"])
    assert rig.hear(wrong, right) == (0, [b"hello"])
    rig.until(lambda: bool(rig.server.progress() or "exex: refused a" in capfd.readouterr().err), wrong, right)


def test_a_connection_without_a_key_is_not_heard(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    http, plain = (socket.create_connection(("127.0.0.1", rig.listener.port)) for _ in range(2))
    http.sendall(b"GET / HTTP/1.1\r\n\r\n")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL"  # of ZMTP 3, for a connection without a key
    plain.sendall(greeting + bytes(64 - len(greeting)) + b"\x00\x08run this")
    rig.until(lambda: rig.server.receive() is None and "it has no key" in capfd.readouterr().err)
    right = rig.link()
    right.send(0, [b"hello"])
    assert rig.hear(right) == (0, [b"hello"])
    http.close()
    plain.close()


def test_what_was_recorded_is_nothing_to_another_connection(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    cable = Cable(rig.endpoint)
    link = rig.link(cable.endpoint)
    link.send(0, [b"pay me"])
    assert rig.hear(link) == (0, [b"pay me"])
    recorded = bytes(cable.said)
    assert b"pay me" not in recorded
    thief = socket.create_connection(("127.0.0.1", rig.listener.port))
    thief.sendall(recorded)
    rig.until(lambda: rig.server.receive() is None and "repeats what others have said" in capfd.readouterr().err, link)
    link.send(0, [b"next"])
    assert rig.hear(link) == (0, [b"next"])
    thief.close()
    cable.close()


def test_a_cut_connection_loses_and_repeats_nothing(rig: Rig) -> None:
    cable = Cable(rig.endpoint)
    link = rig.link(cable.endpoint)
    sent = up = down = 0

    def turn() -> bool:
        nonlocal sent, up, down
        if sent < 4000:
            link.send(0, [b"%d" % sent, bytes(100_000 if sent % 100 == 0 else 10)])
            sent += 1
            if sent % 700 == 0:
                cable.cut()
        while (arrived := rig.server.receive()) is not None:
            number, frames = arrived
            assert number == 0 and frames is not GONE and int(frames[0]) == up
            rig.server.send(0, frames)
            up += 1
        rig.server.progress()
        while (arrived := link.receive()) is not None:
            assert arrived[1] is not GONE and int(arrived[1][0]) == down
            down += 1
        return down == 4000

    give_up_s = time.monotonic() + LIMIT_S
    while not turn():
        assert time.monotonic() < give_up_s, (sent, up, down, link.error)
    link.close()
    assert rig.hear() == (0, GONE), "one client all the time"
    cable.close()


def test_a_client_that_closes_has_said_everything_and_is_gone_at_once(rig: Rig) -> None:
    link = rig.link()
    link.send(0, [b"hello"])
    assert rig.hear(link) == (0, [b"hello"])
    heard: list = []
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            arrived = rig.server.receive()
            if arrived is not None:
                heard.append(arrived[1])
                if arrived[1] is GONE:
                    return
            select.select([rig.server], (), (), 0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    link.send(0, [b"x" * 1_000_000])
    link.close()
    thread.join(LIMIT_S)
    ended.set()
    assert len(heard) == 2 and len(heard[0][0]) == 1_000_000 and heard[1] is GONE


def test_a_server_that_closes_tells_its_clients(rig: Rig) -> None:
    link = rig.link()
    link.send(0, [b"hello"])
    number, _ = rig.hear(link)
    rig.server.send(number, [b"last words"])
    rig.server.close()
    got: list = []
    give_up_s = time.monotonic() + LIMIT_S
    while len(got) < 2 and time.monotonic() < give_up_s:
        arrived = link.receive()
        if arrived is not None:
            got.append(arrived[1])
    assert got == [[b"last words"], GONE] and link.error == "the manager has ended"
    with pytest.raises(ConnectionError):
        link.send(0, [b"anybody there?"])


def test_where_nobody_listens_the_link_says_so() -> None:
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    link = CurveLink((f"127.0.0.1:{port}",), Keys(new_keys()[0], *new_keys()))
    give_up_s = time.monotonic() + LIMIT_S
    while link.error != "nobody listens there" and time.monotonic() < give_up_s:
        assert link.receive() is None
        select.select([link], (), (), 0.01)
    assert link.error == "nobody listens there" and not link.is_connected()
    link.close()


def test_a_port_that_is_taken_cannot_be_listened_at(rig: Rig) -> None:
    with pytest.raises(StartError, match=f"cannot listen at 127.0.0.1:{rig.listener.port}"):
        Listener(("127.0.0.1",), rig.listener.port, new_keys()[1], frozenset())


def test_keys_are_told_from_other_texts() -> None:
    public, secret = new_keys()
    assert is_key(public) and is_key(secret) and not is_key("") and not is_key("x" * 39) and not is_key("\x00" * 40)
