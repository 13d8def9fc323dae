"""Sessions of clients over a network that loses, cuts, delays and repeats: all arrives once and in order, or both know that it is over."""

from __future__ import annotations

import random
import struct

import pytest

from exex.errors import ProtocolError
from exex.transport import pieces
from exex.transport.base import GONE
from exex.transport.delivery import Delivery
from exex.transport.sessions import BEAT_S, SILENT_S, TOKEN_BYTES, ClientSession, Kind, ServerSessions, header, read_header

GRACE_S = 60.0


class Wire:
    """One connection: what each end has put there, in order."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.up: list[list[bytes]] = []
        self.down: list[list[bytes]] = []
        self.is_cut = False


class Played:
    """One client of a played server."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.session = ClientSession(bytes([number]) * TOKEN_BYTES, world.now_s)
        self.wire: Wire | None = None
        self.posted: list[bytes] = []
        self.got: list[bytes] = []
        self.left = False

    def connect(self) -> None:
        self.wire = self.world.new_wire()
        self.session.connect(self.world.now_s)

    def turn(self) -> None:
        now_s, session = self.world.now_s, self.session
        if session.error or self.left:
            return
        if session.is_lost(now_s):
            session.error = "lost"
            return
        if self.wire is None or (session.is_silent(now_s) and self.world.rng.random() < 0.5):
            self.connect()
        assert self.wire is not None
        session.flush(now_s)
        if not self.wire.is_cut:
            self.wire.up += [[bytes(frame) for frame in frames] for frames in session.outgoing]
        session.outgoing.clear()
        while session.arrived:
            self.got.append(bytes(session.arrived.popleft()[0]))

    def take(self) -> None:
        if self.wire is not None and self.wire.down and not self.session.error and not self.left:
            self.session.hear_frames(self.wire.down.pop(0), self.world.now_s)


class World:
    """A server, clients, and a network that a seed makes bad."""

    def __init__(self, seed: int, clients: int = 2) -> None:
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.wires: list[Wire] = []
        self.old: list[tuple[Wire, list[bytes]]] = []  # what may be repeated
        self.server = ServerSessions(GRACE_S)
        self.numbers: dict[bytes, int] = {}
        self.got: dict[int, list[bytes]] = {}
        self.gone: set[int] = set()
        self.posted: dict[int, list[bytes]] = {}
        self.clients = [Played(self, number) for number in range(clients)]

    def new_wire(self) -> Wire:
        self.wires.append(Wire(b"c%d" % len(self.wires)))
        return self.wires[-1]

    def server_turn(self) -> None:
        for name, frames in self.server.outgoing(self.now_s):
            wire = self.wires[int(name[1:])]
            if not wire.is_cut:
                wire.down.append([bytes(frame) for frame in frames])
        while (arrived := self.server.receive()) is not None:
            number, frames = arrived
            if frames is GONE:
                assert number not in self.gone
                self.gone.add(number)
            else:
                self.got.setdefault(number, []).append(bytes(frames[0]))

    def post(self) -> None:
        """A word of somebody."""
        client = self.rng.choice(self.clients)
        if self.rng.random() < 0.5 and not client.session.error and not client.left:
            client.posted.append(b"u%d" % len(client.posted))
            client.session.post([client.posted[-1]])
        known = [number for number in self.got if number not in self.gone]
        if known:
            number = self.rng.choice(known)
            words = self.posted.setdefault(number, [])
            words.append(b"d%d" % len(words))
            self.server.post(number, [words[-1]])

    def step(self, trouble: bool) -> None:
        rng = self.rng
        self.now_s += rng.choice([0.0, 0.001, 0.01, 0.2])
        client = rng.choice(self.clients)
        wire = client.wire if rng.random() < 0.9 or not self.wires else rng.choice(self.wires)
        if wire is not None and trouble:
            self.make_trouble(wire)
        elif wire is not None and wire.up and rng.random() < 0.5:
            frames = wire.up.pop(0)
            self.server.hear(wire.name, frames, self.now_s)
            self.old.append((wire, frames))
        else:
            client.take()
        self.server_turn()
        for client in self.clients:
            client.turn()

    def make_trouble(self, wire: Wire) -> None:
        kind = self.rng.random()
        if kind < 0.2:  # lost for good, at both ends or at one
            wire.is_cut = True
            wire.up.clear()
            if kind < 0.15:
                wire.down.clear()
        elif kind < 0.3 and wire.down:
            wire.down.pop(self.rng.randrange(len(wire.down)))
        elif kind < 0.4 and wire.up:
            wire.up.pop(self.rng.randrange(len(wire.up)))
        elif kind < 0.5 and self.old:
            old, frames = self.rng.choice(self.old)  # said a second time, on the same connection
            if read_header(frames)[0] in (Kind.DATA, Kind.WORD):
                self.server.hear(old.name, frames, self.now_s)
        elif kind < 0.6:
            client = self.rng.choice(self.clients)
            if not client.session.error and not client.left:
                client.connect()
        elif kind < 0.65:
            self.server.disconnected(wire.name)

    def settle(self) -> None:
        for _ in range(20_000):
            self.step(trouble=False)
            if self.server.is_settled() and all(c.session.delivery.is_settled() or c.session.error for c in self.clients):
                return
        raise AssertionError("it does not come to rest")


@pytest.mark.parametrize("seed", range(100))
def test_all_arrives_once_and_in_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 2:
        monkeypatch.setattr(pieces, "PIECE_BYTES", 2)  # what is said travels in pieces
    world = World(seed)
    for _ in range(600):
        if world.rng.random() < 0.3:
            world.post()
        world.step(trouble=world.rng.random() < 0.1)
    world.settle()
    assert not world.gone and not any(client.session.error for client in world.clients), "60 s of silence were not played"
    said = sorted(tuple(client.posted) for client in world.clients if client.posted)
    assert sorted(tuple(words) for words in world.got.values() if words) == said
    heard = sorted(tuple(client.got) for client in world.clients if client.got)
    assert sorted(tuple(words) for words in world.posted.values()) == heard


def open_one(server: ServerSessions, connection: bytes = b"a", token: bytes = b"t" * TOKEN_BYTES) -> ClientSession:
    client = ClientSession(token, 0.0)
    client.connect(0.0)
    pass_on(server, client, connection, 0.0)
    assert client.is_open
    return client


def pass_on(server: ServerSessions, client: ClientSession, connection: bytes, now_s: float) -> None:
    """All that both have to say on one connection, until nothing is left."""
    while True:
        client.flush(now_s)
        said, client.outgoing = client.outgoing, []
        for frames in said:
            server.hear(connection, list(frames), now_s)
        answers = server.outgoing(now_s)
        for to, frames in answers:
            if to == connection:
                client.hear_frames(list(frames), now_s)
        if not said and not answers:
            return


def test_a_silent_client_is_gone_after_the_grace_period_and_is_told_when_it_comes_back() -> None:
    server = ServerSessions(GRACE_S)
    client = open_one(server)
    for second in range(int(GRACE_S)):
        server.outgoing(float(second))
    assert server.receive() is None
    server.outgoing(GRACE_S)
    assert server.receive() == (0, GONE) and server.receive() is None
    with pytest.raises(ConnectionError):
        server.post(0, [b"anybody there?"])
    server.outgoing(GRACE_S + 0.1)
    client.connect(GRACE_S + 1)
    pass_on(server, client, b"b", GRACE_S + 1)
    assert "was not heard of for 60 s" in client.error


def test_a_server_that_stood_still_gives_nobody_up() -> None:
    server = ServerSessions(GRACE_S)
    client = open_one(server)
    server.outgoing(10 * GRACE_S)
    assert server.receive() is None
    client.post([b"still here"])
    pass_on(server, client, b"a", 10 * GRACE_S)
    assert server.receive() == (0, [b"still here"])


def test_a_client_that_ends_is_gone_at_once_after_its_last_word() -> None:
    server = ServerSessions(GRACE_S)
    client = open_one(server)
    client.post([b"last words"])
    client.end(0.0)
    pass_on(server, client, b"a", 0.1)
    assert server.receive() == (0, [b"last words"])
    assert server.receive() == (0, GONE)
    server.outgoing(0.2)
    client.connect(0.3)
    pass_on(server, client, b"b", 0.3)
    assert "session is over" in client.error


def test_a_client_that_is_dropped_hears_what_was_said_and_then_the_end() -> None:
    server = ServerSessions(GRACE_S)
    client = open_one(server)
    server.post(0, [b"you are refused"])
    server.drop(0, 0.0)
    assert server.receive() == (0, GONE)
    client.post([b"hear me"])
    pass_on(server, client, b"a", 0.1)
    assert list(client.arrived) == [[b"you are refused"]] and client.error == "the manager has ended"
    assert server.receive() is None and server.is_settled(), "it has heard that the client has heard"


def test_a_second_connection_takes_the_place_of_the_first() -> None:
    server = ServerSessions(GRACE_S)
    client = open_one(server)
    client.connect(1.0)
    pass_on(server, client, b"b", 1.0)
    server.hear(b"a", [header(Kind.DATA, 1, 0), b"of an old connection"], 1.0)
    assert server.receive() is None
    server.post(0, [b"hello"])
    assert [to for to, _ in server.outgoing(1.0)] == [b"b"]


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [header(Kind.DATA, 1, 9), b"confirms what was never sent"],
        [header(Kind.OPENED, 0, 0), b"12345678"],
        [b"exx1" + bytes(17)],
        [header(Kind.OPEN, 4, 0), b"short"],
        [header(Kind.OPEN, 4, 0)],
    ],
)
def test_who_breaks_the_rules_is_at_its_end(frames: list[bytes]) -> None:
    server = ServerSessions(GRACE_S)
    open_one(server)
    other = open_one(server, b"o", b"o" * TOKEN_BYTES)
    server.hear(b"a", list(frames), 1.0)
    assert server.refused and server.refused[0][0] == b"a"
    assert server.receive() == (0, GONE)
    other.post([b"good"])
    pass_on(server, other, b"o", 1.0)
    assert server.receive() == (1, [b"good"])


def test_words_of_strangers_are_not_handed_on() -> None:
    server = ServerSessions(GRACE_S)
    server.hear(b"x", [header(Kind.DATA, 1, 0), b"run this"], 0.0)
    assert server.receive() is None and not server.outgoing(0.0)


def test_the_window_bounds_what_is_on_the_wire() -> None:
    delivery = Delivery(window_bytes=1000)
    for _ in range(10):
        delivery.post([bytes(300)])
    delivery.post([bytes(5000)])
    sent = 0
    while delivery.next() is not None:
        sent += 1
    assert sent == 2
    delivery.confirmed(2)
    assert delivery.next() is not None and delivery.kept_bytes == 8 * 364 + 5064
    delivery.confirmed(3)
    for number in range(4, 11):
        assert delivery.next() is not None
        delivery.confirmed(number)
    assert delivery.next() is not None, "a message larger than the window travels alone"
    delivery.confirmed(11)
    assert delivery.is_settled() and not delivery.kept_bytes


def test_what_arrives_is_confirmed_soon_but_not_one_by_one() -> None:
    delivery = Delivery()
    assert delivery.take(1, 10, 0.0) and not delivery.owes(0.001)
    assert delivery.owes(0.021)
    delivery.told()
    assert not delivery.take(1, 10, 1.0) and delivery.owes(1.0), "the peer does not know that it has come"
    with pytest.raises(ProtocolError):
        delivery.take(3, 10, 1.0)


def test_ends_that_have_nothing_to_say_still_give_signs_of_life() -> None:
    server = ServerSessions(GRACE_S)
    client = open_one(server)
    now_s = 0.0
    while now_s < 3 * GRACE_S:
        now_s += 0.5
        pass_on(server, client, b"a", now_s)
        assert not client.is_silent(now_s) and server.receive() is None
    assert BEAT_S < SILENT_S / 2


@pytest.mark.parametrize("sizes", [[0], [5], [10], [0, 0, 11], [30, 0, 4, 6, 25, 0], [1] * 40])
def test_a_large_message_travels_in_pieces(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 10)
    monkeypatch.setattr(pieces, "_LARGE_BYTES", 20)
    message = [bytes([i + 1]) * size for i, size in enumerate(sizes)]
    travelling = list(pieces.split(message))
    if sum(sizes) <= 10:
        assert travelling == [message] and type(travelling[0]) is list
        return
    assembly = pieces.Assembly()
    for _ in range(2):
        *first, last = travelling
        for i, piece in enumerate(first):
            assert sum(map(len, piece[not i :])) <= 10
            assert assembly.add(list(piece)) is None
        assert [bytes(frame) for frame in assembly.add(last) or ()] == message


@pytest.mark.parametrize(
    "piece",
    [[], [b""], [b"1234567"], [struct.pack("<Q", 1 << 60)], [struct.pack("<Q", 3), b"four"], [struct.pack("<2Q", 3, 4), b"four"]],
)
def test_what_is_no_piece_breaks_the_rules(piece: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        pieces.Assembly().add(list(piece))


def test_both_ends_hear_of_each_other_while_a_large_message_creeps_along() -> None:
    server = ServerSessions(GRACE_S)
    client = open_one(server)
    server.post(0, [bytes(8 << 20)])
    client.post([bytes(8 << 20)])
    up: list[list[bytes]] = []
    down: list[list[bytes]] = []
    now_s, heard = 0.0, 0
    while not client.delivery.is_settled() or heard < 8 << 20:
        now_s += pieces.PIECE_BYTES / 100_000  # a piece each way
        client.flush(now_s)
        up += [list(frames) for frames in client.outgoing]
        client.outgoing.clear()
        down += [list(frames) for _, frames in server.outgoing(now_s)]
        if up:
            server.hear(b"a", up.pop(0), now_s)
        if down:
            client.hear_frames(down.pop(0), now_s)
        assert not client.is_silent(now_s) and not client.error
        while client.arrived:
            heard += len(client.arrived.popleft()[0])
        arrived = server.receive()
        assert arrived is None or arrived[1] is not GONE
    assert now_s > GRACE_S
