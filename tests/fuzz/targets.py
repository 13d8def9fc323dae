"""What is fuzzed. Each target takes one message and raises AssertionError, or whatever broke, if it is harmed by it."""

from __future__ import annotations

import contextlib
import gc
import random
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from exex.errors import ProtocolError
from exex.manager.loop import ManagerLoop, Settings
from exex.protocol import codec
from exex.protocol.messages import (
    Absent,
    Answer,
    Applied,
    AppSpec,
    Assign,
    Attach,
    Copy,
    Done,
    Drop,
    Hello,
    Holds,
    Join,
    Kind,
    Outcome,
    Part,
    Retract,
    Returned,
    Submit,
    Welcome,
)
from exex.protocol.payload import Large, Stored
from exex.transport.base import GONE
from exex.transport.curve import CurveLink, CurveServer, Keys
from exex.transport.memory import Network
from exex.transport.sessions import TOKEN_BYTES, header
from exex.transport.sessions import Kind as Word
from exex.transport.stream import StreamLink
from exex.transport.zeromq import Listener, new_keys
from tests.fuzz import mutations
from tests.fuzz.mutations import Frames, Liar
from tests.fuzz.remote import LaunchHelperTarget


class CodecTarget:
    """All four decoders: a message, which can be encoded again, or a ProtocolError."""

    def __init__(self, rng: random.Random, bomb: Path) -> None:
        self.rng = rng
        self.corpus = mutations.corpus(bomb)
        self.liar = Liar(rng, bomb)
        self.decoders = [codec.from_client(), codec.from_worker(), codec.to_client(), codec.to_worker()]
        self.encoder = codec.Encoder()
        self.accepted = 0

    def frames(self) -> Frames:
        """The next message."""
        choice = self.rng.random()
        if choice < 0.7:
            return mutations.damage(self.rng, self.rng.choice(self.corpus), self.corpus)
        if choice < 0.9:
            return self.liar.of_client() if choice < 0.8 else self.liar.of_worker([])
        return [self.rng.randbytes(self.rng.randint(0, 60)) for _ in range(self.rng.randint(1, 3))]

    def fire(self) -> None:
        """One message."""
        frames = self.frames()
        for decoder in self.decoders:
            try:
                message = decoder.decode(frames)
            except ProtocolError:
                continue
            self.accepted += 1
            self.encoder.encode(message)

    def close(self) -> None:
        """Nothing to do."""


class LyingStore:
    """The manager's exchange: what is fetched arrives or does not, and files vanish."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.ended: list[tuple[str, bool]] = []

    def on_message(self, rank: int, message: object) -> None:
        pass

    def fetch(self, stored: Stored, source: int) -> None:
        self.ended.append((stored.name, self.rng.random() < 0.7))

    def events(self) -> list[tuple[str, bool]]:
        ended, self.ended = self.ended, []
        return ended

    def has(self, name: str) -> bool:
        return self.rng.random() < 0.9

    def payload(self, stored: Stored) -> Large:
        if self.rng.random() < 0.05:
            raise FileNotFoundError(stored.name)
        return Large([b"x"])

    def free(self, names: list[str]) -> None:
        pass

    def adopt(self, stored: Stored) -> None:
        pass

    def sweep(self, prefix: str, is_known: Callable[[str], bool]) -> None:
        pass

    def on_gone(self, rank: int) -> None:
        pass

    def tick(self, now_s: float) -> None:
        pass

    def is_busy(self) -> bool:
        return False

    def work(self) -> bool:
        return False


class ManagerTarget:
    """A manager with three workers and two clients, of which the last of each lie; the honest client gets its answers.

    The invariants are checked after every message that was refused, and every few messages otherwise.
    """

    RESTART = 20_000

    def __init__(self, rng: random.Random, bomb: Path) -> None:
        self.rng = rng
        self.liar = Liar(rng, bomb)
        self.corpus = mutations.corpus(bomb)
        self.encoder = codec.Encoder()
        self.fired = self.refused = self.lost = self.answered = self.parts = 0
        self._start()

    def _start(self) -> None:
        gc.collect()  # the networks of before are cyclic, and the manager has turned collections off
        self.workers_net, self.clients_net = Network(), Network()
        settings = Settings("1", "3.11.0", 0, frozenset((1, 2, 3)), "run", 1e9, 1e9, 0.005, store="/s", store_key="home", keep_bytes=1)
        self.loop = ManagerLoop(settings, self.workers_net.end(0), None, lambda: None, exchange=LyingStore(self.rng))
        self.loop.listen(self.clients_net.end(0))
        self.ends = {rank: self.workers_net.end(rank) for rank in (1, 2, 3)}
        self.held: dict[int, list[int]] = {1: [], 2: [], 3: []}
        slots = self.rng.choice([1, 2])  # ranks of one slot take part in calls on communicators
        for rank, end in self.ends.items():
            key = self.rng.choice(["home", f"store {rank}", "shared"])
            end.send(0, self.encoder.encode(Hello("1", "3.11.0", "n", 1, slots, "", [], [], 1000, ["0", "1"], key)))
        self.next_number = 1
        self.honest = self._attach()
        self.hostile = self._attach()
        self.loop.turn()
        self.hostile_next = self.next = self.sequence = 0
        self.open: set[int] = set()
        self.with_liar: set[int] = set()
        self.to_worker, self.to_client = codec.to_worker(), codec.to_client()

    def _attach(self) -> object:
        end = self.clients_net.end(self.next_number)
        self.next_number += 1
        end.send(0, self.encoder.encode(Attach("1", 1, "t")))
        return end

    def fire(self) -> None:
        """One message, of a client or of worker 3, and what follows from it."""
        rng, loop = self.rng, self.loop
        self.fired += 1
        of_worker = rng.random() < 0.03 and 3 in loop.state.workers
        if of_worker:
            choice = rng.random()
            frames = self.liar.of_worker(self.held[3])
            if choice < 0.3:
                frames = mutations.damage(rng, rng.choice(self.corpus), self.corpus)
            self.ends[3].send(0, frames)  # type: ignore[arg-type]
        else:
            frames = self.liar.of_client(self.hostile_next)
            self.hostile_next += 4
            if rng.random() < 0.2:
                frames = mutations.damage(rng, rng.choice(self.corpus), self.corpus)
            self.hostile.send(0, frames)  # type: ignore[attr-defined]
        loop.turn()
        assert not loop.error, loop.error
        assert 1 in loop.state.workers and 2 in loop.state.workers
        self._hear_hostile()
        if self.fired % 8 == 0:
            self._honest_work()
            loop.state.check()
        if 3 not in loop.state.workers:
            self.lost += 1
            loop.state.check()
        if 3 not in loop.state.workers or self.fired % self.RESTART == 0:
            self._finish()
            self._start()

    def _hear_hostile(self) -> None:
        while (arrived := self.hostile.receive()) is not None:  # type: ignore[attr-defined]
            if arrived[1] is not GONE:
                continue
            self.refused += 1
            self.loop.state.check()
            assert len(self.loop.state.clients) <= 2
            number = self.hostile.number  # type: ignore[attr-defined]
            self.hostile.close()  # type: ignore[attr-defined]
            del self.clients_net._ends[number]
            self.hostile = self._attach()
            self.hostile_next = 0
            return
        if self.rng.random() < 0.02:  # it vanishes, or has said Finish and is of no more use
            number = self.hostile.number  # type: ignore[attr-defined]
            self.hostile.close()  # type: ignore[attr-defined]
            self.loop.turn()
            del self.clients_net._ends[number]
            self.hostile = self._attach()
            self.hostile_next = 0

    def _honest_work(self) -> None:
        """The honest client submits; the honest workers work; answers must be right."""
        end = self.honest
        if len(self.open) < 20:
            both = [
                AppSpec(app=0, name="honest", function=b"h" * 16),
                AppSpec(app=1, name="honest pair", function=b"h" * 16, kind=Kind.TOGETHER, ranks=2),
            ]
            apps = both if self.next == 0 else []
            functions = {b"h" * 16: b"code"} if apps else {}
            payloads = [b"%d" % (self.next + i) for i in range(3)]
            self.open.update(range(self.next, self.next + 3))
            submit = Submit(self.next, apps, functions, [self.rng.choice([0, 0, 1])], payloads, {}, {}, self.sequence)
            self.next += 3
            end.send(0, self.encoder.encode(submit))  # type: ignore[attr-defined]
        self._work()
        self.loop.turn()
        self._hear_honest()

    def _work(self) -> None:
        for rank, link in self.ends.items():
            tasks: list[tuple[int, object, int]] = []
            while (arrived := link.receive()) is not None:
                message = self.to_worker.decode(arrived[1])
                if type(message) is Assign:
                    tasks += [(task, payload, Outcome.DONE) for task, payload in zip(message.tasks, message.payloads)]
                    if rank == 3:
                        self.held[3] = self.held[3][-20:] + message.tasks
                        self.with_liar.update(message.tasks)  # client 0 is the honest one, so these are its own numbers
                elif type(message) is Join and rank == 3:
                    self.held[3] = [*self.held[3][-20:], message.task]
                    self.with_liar.add(message.task)
                elif type(message) is Join and rank != message.runs[0]:
                    link.send(0, self.encoder.encode(Part(message.task, Outcome.DONE, b"", 1e-5)))
                    self.parts += 1
                elif type(message) is Retract and rank != 3:
                    link.send(0, self.encoder.encode(Returned([])))  # all have begun
                elif type(message) is Copy and rank != 3:
                    names = [stored.name for stored in message.payloads]
                    link.send(0, self.encoder.encode(self.rng.choice([Holds, Absent])(names)))
                elif type(message) is Drop and rank != 3:
                    pass  # they are run nevertheless: the manager hears of each once
            if tasks and (rank != 3):
                done = Done([t for t, _, _ in tasks], bytes(len(tasks)), [b"" if type(p) is Stored else p for _, p, _ in tasks], [1e-5] * len(tasks), [])
                link.send(0, self.encoder.encode(done))

    def _hear_honest(self) -> None:
        end = self.honest
        while (arrived := end.receive()) is not None:  # type: ignore[attr-defined]
            message = self.to_client.decode(arrived[1])
            if type(message) is Welcome:
                continue
            assert type(message) is Answer, message
            self.sequence = message.sequence
            for task, outcome, payload in zip(message.tasks, message.outcomes, message.payloads):
                self.open.remove(task)
                self.answered += 1
                if task not in self.with_liar:  # worker 3 says what it likes, but of what it holds only
                    assert outcome == Outcome.DONE and payload == b"%d" % task, (task, outcome, payload)
            end.send(0, self.encoder.encode(Applied(message.sequence)))  # type: ignore[attr-defined]

    def _finish(self) -> None:
        """All that the honest client has asked for is answered in the end."""
        if 3 in self.loop.state.workers:
            self.loop.lose_worker(3, "it lies")
        self.hostile.close()  # type: ignore[attr-defined]
        for _ in range(2000):
            self.loop.turn()
            self._work()
            self.loop.turn()
            self._hear_honest()
            if not self.open and not self.loop.state.tasks and not self.loop.state.dropped:
                break
        self.loop.state.check()
        assert not self.open, f"never answered: {sorted(self.open)}"
        assert not self.loop.state.tasks and not self.loop.state.dropped

    def close(self) -> None:
        """The end of the last manager."""
        self._finish()


class StreamTarget:
    """A stream link whose peer writes any bytes; what comes out goes to a decoder."""

    def __init__(self, rng: random.Random, bomb: Path) -> None:
        self.rng = rng
        self.source = CodecTarget(rng, bomb)
        self.ended = self.decoded = 0
        self._connect()

    def _connect(self) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.link = StreamLink(ours)

    def fire(self) -> None:
        """One message, in one or two pieces."""
        data = mutations.on_the_wire(self.rng, self.source.frames())
        cut = self.rng.randint(0, len(data))
        ended = False
        pieces = [memoryview(data)[:cut], memoryview(data)[cut:]]
        while pieces:
            try:
                sent = self.peer.send(pieces[0])
                pieces[0] = pieces[0][sent:]
            except BlockingIOError:
                pass  # the other end takes some of it below
            except ConnectionError:
                ended = True
                pieces.clear()
            if pieces and not pieces[0]:
                del pieces[0]
            while (arrived := self.link.receive()) is not None:
                if arrived[1] is GONE:
                    ended = True
                    break
                try:
                    self.source.decoders[0].decode(arrived[1])
                    self.decoded += 1
                except ProtocolError:
                    pass
            if ended:
                break
        if ended or self.rng.random() < 0.2:  # a header that promises much swallows what follows
            self.ended += ended
            self.close()
            self._connect()

    def close(self) -> None:
        """Both ends."""
        self.peer.close()
        self.link.close()


class ZeroMQTarget:
    """A server with a client that has its key, one that has another, and one that is honest."""

    def __init__(self, rng: random.Random, bomb: Path) -> None:
        self.rng = rng
        self.source = CodecTarget(rng, bomb)
        (self.public, secret), self.known, self.unknown = new_keys(), new_keys(), new_keys()
        listener = Listener(("127.0.0.1",), 0, secret, frozenset((self.known[0],)))
        self.endpoint = f"127.0.0.1:{listener.port}"
        self.server = CurveServer(listener, grace_s=60.0)
        self.context = zmq.Context()
        self.stranger = self._dealer(self.unknown)
        self.insider = self._dealer(self.known)
        self.honest = CurveLink((self.endpoint,), Keys(self.public, *self.known))
        self.fired = self.heard = self.number = 0

    def _dealer(self, keys: tuple[str, str]) -> zmq.Socket:
        dealer = self.context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.curve_serverkey = self.public.encode()
        dealer.curve_publickey, dealer.curve_secretkey = (key.encode() for key in keys)
        dealer.connect(f"tcp://{self.endpoint}")
        return dealer

    def fire(self) -> None:
        """One message of either; now and then one of the honest client, which must arrive."""
        self.fired += 1
        frames = self.source.frames() or [b""]
        dealer = self.stranger if self.rng.random() < 0.3 else self.insider
        choice = self.rng.random()
        if choice < 0.05 or not self.number:
            frames, self.number = [header(Word.OPEN, 2, 0), self.rng.randbytes(TOKEN_BYTES)], 1
        elif choice < 0.9:
            frames = [header(Word.DATA, self.number, 0), *frames]
            self.number += dealer is self.insider
        elif choice < 0.95:
            numbers = self.rng.choice([0, 1, 2, self.rng.getrandbits(64)]), self.rng.choice([0, 0, 1, self.rng.getrandbits(64)])
            frames = [header(self.rng.choice(list(Word)), *numbers), *frames]
        with contextlib.suppress(zmq.Again):
            dealer.send_multipart(frames, zmq.NOBLOCK)
        if self.fired % 50 == 0:
            word = b"honest %d" % self.fired
            self.honest.send(0, [word])
            until = time.monotonic() + 60
            while True:
                self.honest.receive()
                arrived = self.server.receive()
                if arrived is None:
                    assert time.monotonic() < until, "an honest message did not arrive"
                    select.select([self.server, self.honest], (), (), 0.01)
                    continue
                if arrived[1] == [word]:
                    break
                self._hear(arrived[1])
            while (arrived := self.server.receive()) is not None:  # else what was sent ahead would count as growth
                self._hear(arrived[1])

    def _hear(self, frames: list) -> None:
        if frames is GONE:
            return
        self.heard += 1
        try:
            self.source.decoders[0].decode(frames)
        except ProtocolError:
            pass

    def close(self) -> None:
        """Everything."""
        for dealer in (self.stranger, self.insider):
            dealer.close()
        self.context.term()
        self.server.close()
        self.honest.close()


TARGETS = {
    "codec": (CodecTarget, 0.5), "manager": (ManagerTarget, 0.29), "stream": (StreamTarget, 0.15), "zeromq": (ZeroMQTarget, 0.05),
    "launch helper": (LaunchHelperTarget, 0.01),
}  # fmt: skip
"""By name: what it is, and its share of the messages."""
