"""Who may talk: strangers are not heard, and who says what may not be said loses the connection and nothing else."""

from __future__ import annotations

import ast
import os
import pickle
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exex.errors import ProtocolError
from exex.manager import from_clients
from exex.manager.loop import ManagerLoop, Settings
from exex.manager.ranges import Ranges
from exex.manager.task import Status
from exex.protocol import codec
from exex.protocol.messages import (
    Answer,
    Applied,
    AppSpec,
    Attach,
    Bye,
    Cancel,
    Done,
    Finish,
    FromTasks,
    Fulfil,
    Hello,
    JobEnds,
    Join,
    Message,
    Outcome,
    Part,
    Promise,
    Submit,
    ToTasks,
    Verdict,
    Welcome,
)
from exex.protocol.payload import Large
from exex.transport import stream
from exex.transport.base import GONE
from exex.transport.doorbell import Doorbell, new_key
from exex.transport.memory import MemoryLink, Network
from exex.transport.stream import StreamLink
from tests.fuzz.mutations import Bomb
from tests.unit.test_manager import Manager

PACKAGE = Path(__file__).resolve().parents[2] / "exex"
D = b"d" * 16
SPEC = AppSpec(app=0, name="f", function=D)
encode = codec.Encoder().encode


def submit(**changes: Any) -> Submit:
    fields = {"first": 10, "apps": [], "functions": {}, "calls": [0], "payloads": [b"p", b"p"], "needs": {}, "given": {}}
    return Submit(**{**fields, "answered": 0, **changes})


# ---- shape: refused by the decoder, in whatever state the receiver is -------------------------------------------

HELLO: dict[str, Any] = {"cores": [], "memory_bytes": 0, "gpus": []}
MISSHAPEN: list[Message] = [
    submit(payloads=[]),
    submit(first=-1),
    submit(first=2**40 - 1),
    submit(calls=[]),
    submit(calls=[0, 0, 0]),
    submit(payloads=[b"p", None]),
    submit(payloads=[b"p", ["nested"]]),
    submit(needs={2: [1]}),
    submit(needs={-1: [1]}),
    submit(needs={0: [2**40]}),
    submit(needs={0: [-2]}),
    submit(needs={0: [10]}),  # itself
    submit(needs={0: [11]}),  # a later one: the graph would have a cycle
    submit(needs={0: [-1]}),
    submit(needs={0: [1]}, given={0: {0: b"v"}}),
    submit(needs={0: [-1]}, given={0: {0: b"v", 7: b"v"}}),
    submit(needs={0: [-1]}, given={0: {0: 5}}),
    submit(given={0: {0: b"v"}}),
    submit(functions={D: 5}),
    submit(functions={b"": b"code"}),
    *(
        submit(apps=[msgspec.structs.replace(SPEC, **change)], functions={D: b"code"})
        for change in ({"app": -1}, {"name": "n" * 5000}, {"function": b""}, {"kind": 17}, {"retries": -1}, {"walltime_s": float("nan")})
    ),
    *(
        submit(apps=[msgspec.structs.replace(SPEC, **change)], functions={D: b"code"})
        for change in (
            *({"cores": -1}, {"cores": 1 << 17}, {"gpus": -1}, {"gpus": 1 << 20}, {"nodes": -1}, {"nodes": 1 << 40}),
            *({"exclusive": True}, {"memory_bytes": 0}, {"memory_bytes": 1 << 62}),
            *({"kind": 3}, {"ranks": 2}, {"kind": 3, "ranks": -1}, {"kind": 3, "ranks": 1 << 23}),
            *({"kind": 3, "ranks": 2, "nodes": 1}, {"kind": 3, "ranks": 2, "cores": 1}),
        )
    ),
    submit(affinity={2: 1}),
    submit(affinity={-1: 1}),
    submit(affinity={0: -1}),
    submit(affinity={0: 1 << 40}),
    Promise(first=0, count=0),
    Promise(first=0, count=10**12),
    Promise(first=-5, count=1),
    Fulfil(tasks=[1], outcomes=b"", payloads=[b""]),
    Fulfil(tasks=[1, 1], outcomes=b"\0\0", payloads=[b"", b""]),
    Fulfil(tasks=[1], outcomes=b"\5", payloads=[b""]),
    Fulfil(tasks=[2**41], outcomes=b"\0", payloads=[b""]),
    Cancel(tasks=[-1]),
    Cancel(tasks=[1 << 40]),  # the first of another client
    Verdict(task=-1, retry=True, payload=b""),
    Hello(version="1", python="3", node="n", pid=1, slots=0, error="", times_s=[]),
    *(
        Hello("1", "3", changes.get("node", "n"), 1, 2, "", [], *(changes.get(name, other) for name, other in HELLO.items()))
        for changes in (
            *({"node": "n" * 5000}, {"cores": [0, 1, 2]}, {"cores": [0, -1]}, {"cores": [0, 1 << 20]}, {"memory_bytes": -1}),
            *({"memory_bytes": 1 << 62}, {"gpus": ["0", "0"]}, {"gpus": ["g" * 5000]}, {"gpus": [str(i) for i in range(2000)]}),
        )
    ),
    Done(tasks=[1], outcomes=b"\0\0", payloads=[b""], seconds=[1.0], started=[]),
    Done(tasks=[1], outcomes=b"\xff", payloads=[b""], seconds=[1.0], started=[]),
    Done(tasks=[1], outcomes=b"\0", payloads=[b""], seconds=[float("nan")], started=[]),
    Done(tasks=[1], outcomes=b"\0", payloads=[b""], seconds=[-1.0], started=[]),
    *(Part(1, outcome, b"", 1.0) for outcome in (Outcome.NEED_FAILED, Outcome.ASK, 6, -1)),
    Part(1, 0, 5, 1.0),  # type: ignore[arg-type]
    *(Part(1, 0, b"", seconds) for seconds in (-1.0, float("nan"), float("inf"))),
    FromTasks([1], [], [b""]),
    FromTasks([1], [1], []),
    FromTasks([-1], [1], [b""]),
    FromTasks([1 << 40], [1], [b""]),
    FromTasks([1], [1], [5]),  # type: ignore[list-item]
    FromTasks([], [], [], gone=[-1]),
    ToTasks([1], []),
    ToTasks([-1], [b""]),
    *(Join(1, 1, runs) for runs in ([], [1], [1, 2, 3], [-1, 2])),
    *(Join(1, call, [1, 2]) for call in (0, -1, 1 << 63)),
]


@pytest.mark.parametrize("message", MISSHAPEN, ids=lambda message: repr(message)[:70])
def test_what_cannot_be_meant_is_refused_when_it_is_decoded(message: Message) -> None:
    decoder = codec.from_worker() if isinstance(message, (Hello, Done, Part)) else codec.from_client()
    decoder = codec.to_worker() if isinstance(message, Join) else decoder
    with pytest.raises(ProtocolError):
        decoder.decode(encode(message))


def ext(first: int, count: int) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(1, struct.pack("<II", first, count))


def head(*payloads: object) -> bytes:
    return msgspec.msgpack.encode([2, 0, [], {}, [0], list(payloads), {}, {}, 0])


FRAMES: list[tuple[str, list[bytes]]] = [
    ("no frame", []),
    ("a frame that nobody owns", [head(b"p"), b"x"]),
    ("one frame for two payloads", [head(ext(1, 1), ext(1, 1)), b"x"]),
    ("frames in another order", [head(ext(2, 1), ext(1, 1)), b"x", b"y"]),
    ("frames that are not there", [head(ext(1, 9)), b"x"]),
    ("frame 0 itself", [head(ext(0, 1))]),
    ("an unknown extension", [head(msgspec.msgpack.Ext(9, b"????????"))]),
    ("an extension cut short", [head(msgspec.msgpack.Ext(1, b"1"))]),
    ("nested beyond all measure", [b"\x91" * 1_000_000]),
    ("a list of 2**32 - 1", [b"\x99\x02\x00\xdd\xff\xff\xff\xff"]),
    ("a payload of 2**32 - 1 bytes", [b"\x99\x02\x00\x90\x80\x91\x00\x91\xc6\xff\xff\xff\xff"]),
]


@pytest.mark.parametrize("frames", [frames for _, frames in FRAMES], ids=[name for name, _ in FRAMES])
def test_frames_are_bounded_before_anything_is_made_of_them(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        codec.from_client().decode(frames)


# ---- truth: refused by the handler, which changes nothing ------------------------------------------------------

FALSE: list[tuple[str, Callable[[Manager], object]]] = [
    ("exists already", lambda m: from_clients.on_submit(m.state, m.client, submit(first=0))),
    ("exists already", lambda m: from_clients.on_submit(m.state, m.client, submit(first=1, payloads=[b"p"] * 9))),
    ("exists already", lambda m: from_clients.on_promise(m.state, m.client, Promise(first=0, count=5))),
    ("never named", lambda m: from_clients.on_submit(m.state, m.client, submit(calls=[0, 5]))),
    ("which is unknown", lambda m: from_clients.on_submit(m.state, m.client, submit(needs={1: [0, 10, 9]}))),
    ("was never sent", lambda m: from_clients.on_submit(m.state, m.client, submit(apps=[AppSpec(app=7, name="g", function=b"?")]))),
    ("names app 0 twice", lambda m: from_clients.on_submit(m.state, m.client, submit(apps=[m.spec]))),
    ("two functions have the digest", lambda m: from_clients.on_submit(m.state, m.client, submit(functions={b"d": b"other code"}))),
    ("answer 99", lambda m: from_clients.on_submit(m.state, m.client, submit(answered=99))),
    ("answer 99", lambda m: from_clients.on_applied(m.state, m.client, Applied(answered=99))),
    (
        "task 0 is not an open promise",
        lambda m: from_clients.on_fulfil(m.state, m.client, Fulfil(tasks=[5, 0], outcomes=b"\0\0", payloads=[b"v", b"v"])),
    ),
]


@pytest.mark.parametrize(("words", "act"), FALSE, ids=[f"{i}-{words}" for i, (words, _) in enumerate(FALSE)])
def test_what_is_not_true_changes_nothing(words: str, act: Callable[[Manager], object]) -> None:
    manager = Manager(1)
    manager.submit(3, needs={2: [0]})
    from_clients.on_promise(manager.state, manager.client, Promise(first=5, count=1))
    state = manager.state
    before = (dict(state.tasks), state.ready.count, vars(state.counts).copy(), dict(state.functions), dict(state.apps), manager.client.unfinished)
    with pytest.raises(ProtocolError, match=words):
        act(manager)
    after = (dict(state.tasks), state.ready.count, vars(state.counts).copy(), dict(state.functions), dict(state.apps), manager.client.unfinished)
    assert after == before
    state.check()


def test_a_number_may_not_come_again_though_its_task_has_ended() -> None:
    manager = Manager(1)
    manager.submit(1)
    manager.turn()
    manager.done(1, 0)
    with pytest.raises(ProtocolError, match="exists already"):
        from_clients.on_promise(manager.state, manager.client, Promise(first=0, count=1))


def test_a_client_that_leaves_in_order_does_not_leave_promises_behind() -> None:
    manager = Manager(1)
    manager.submit(1)
    from_clients.on_promise(manager.state, manager.client, Promise(first=1, count=1))
    manager.next = 2
    manager.submit(1, needs={0: [1]})
    from_clients.on_finish(manager.state, manager.client, Finish(cancel=False))
    assert list(manager.state.tasks) == [0]
    manager.turn()
    manager.done(1, 0)
    assert not manager.state.tasks and not manager.state.clients and not manager.state.apps and not manager.state.functions


def test_ranges_know_every_number_they_were_given() -> None:
    ranges, known = Ranges(), set()
    for first, count in [(10, 5), (0, 3), (15, 1), (5, 5), (3, 2), (100, 1)]:
        assert not ranges.meets(first, count)
        ranges.add(first, count)
        known.update(range(first, first + count))
        assert all(ranges.meets(number, 1) == (number in known) for number in range(110))
    assert len(ranges) == 2
    assert ranges.meets(90, 11) and not ranges.meets(16, 84)


# ---- the manager's loop -----------------------------------------------------------------------------------------


class World:
    """A manager with two workers, reached by raw frames."""

    def __init__(self) -> None:
        self.workers, self.clients = Network(), Network()
        self.loop = ManagerLoop(Settings("1", "3.11.0", 0, frozenset((1, 2)), "run", 1e9, 1e9, 0.005), self.workers.end(0), None, lambda: None)
        self.loop.listen(self.clients.end(0))
        self.ranks = {rank: self.workers.end(rank) for rank in (1, 2)}
        for link in self.ranks.values():
            link.send(0, encode(Hello("1", "3.11.0", "n", 1, 1, "", [])))
        self.loop.turn()

    def client(self, number: int, *messages: Message) -> MemoryLink:
        end = self.clients.end(number)
        for message in messages:
            end.send(0, encode(message))
        self.loop.turn()
        return end

    def work(self, rounds: int = 3) -> None:
        """Every worker that is left does all that it holds."""
        for _ in range(rounds):
            for rank, link in self.ranks.items():
                tasks = [task.id for task in self.loop.state.tasks.values() if task.rank == rank and task.status == Status.ASSIGNED]
                if tasks:
                    link.send(0, encode(Done(tasks, bytes(len(tasks)), [b"v"] * len(tasks), [1.0] * len(tasks), [])))
            self.loop.turn()

    def heard(self, end: MemoryLink) -> list[Any]:
        decoder, heard = codec.to_client(), []
        while (arrived := end.receive()) is not None:
            heard.append(GONE if arrived[1] is GONE else decoder.decode(arrived[1]))
        return heard


ATTACH = Attach(version="1", pid=1, title="t")
WORK = submit(first=0, apps=[SPEC], functions={D: b"code"})


@pytest.mark.parametrize(
    "messages",
    [
        [WORK],
        [Attach(version="0", pid=1, title="t")],
        [ATTACH, ATTACH],
        [ATTACH, WORK, WORK],
        [ATTACH, WORK, Bye(tasks_run=1)],
        [ATTACH, WORK, Promise(first=5, count=10**12)],
    ],
    ids=["no Attach", "another version", "Attach twice", "tasks twice", "a worker's message", "a million million promises"],
)
def test_a_client_that_breaks_the_protocol_is_told_why_and_cut_off(messages: list[Message], capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    good = world.client(1, ATTACH, WORK)
    bad = world.client(2, *messages)
    words = world.heard(bad)
    assert type(words[-2]) is JobEnds and words[-1] is GONE
    assert "client 2 is refused" in capsys.readouterr().err
    bad.send(0, encode(WORK))
    world.loop.turn()
    world.loop.state.check()
    assert world.heard(bad) == [] and capsys.readouterr().err == ""
    assert world.loop.state.clients.keys() == {0} and world.loop.state.tasks.keys() == {0, 1}
    world.work()
    assert [type(message) for message in world.heard(good)] == [Welcome, Answer]
    assert not world.loop.error


@pytest.mark.parametrize("frames", [[b"rubbish"], encode(Done([77], b"\0", [b"v"], [1.0], [])), encode(Bye(tasks_run=1)), encode(Hello("1", "2.7", "n", 1, 1, "", []))])
def test_a_worker_that_breaks_the_protocol_is_given_up_alone(frames: list[bytes]) -> None:
    world = World()
    client = world.client(1, ATTACH, WORK)
    world.ranks[2].send(0, frames)  # type: ignore[arg-type]
    world.loop.turn()
    world.loop.state.check()
    assert not world.loop.error and world.loop.state.workers.keys() == {1}
    world.work()
    answers = [message for message in world.heard(client) if type(message) is Answer]
    assert [task for answer in answers for task in answer.tasks] in ([0, 1], [1, 0])


def test_the_last_worker_ends_the_job_by_breaking_the_protocol() -> None:
    world = World()
    for link in world.ranks.values():
        link.send(0, [b"rubbish"])
    world.loop.turn()
    assert "rank 2 broke the protocol" in world.loop.error


# ---- nothing is opened at rank 0 --------------------------------------------------------------------------------

MAY_USE = {"Buffer", "Large", "Payload", "Stored", "dump_error", "same"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "manager").glob("*.py")), ids=lambda path: path.name)
def test_the_manager_cannot_open_a_pickle(path: Path) -> None:
    tree = ast.parse(path.read_text())
    aliases: set[str] = set()
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & {"pickle", "cloudpickle", "marshal", "shelve"}
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in ("pickle", "cloudpickle", "marshal", "shelve")
            if node.module == "exex.protocol":
                aliases |= {alias.asname or alias.name for alias in node.names if alias.name == "payload"}
            elif node.module == "exex.protocol.payload":
                used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "__import__")
    used |= {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
    }
    assert used <= MAY_USE, f"{path.name} uses {used - MAY_USE} of protocol/payload"


def test_payloads_pass_the_manager_unopened(tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    bomb = pickle.dumps(Bomb(opened), 5)
    world = World()
    first = submit(first=0, apps=[AppSpec(app=0, name="f", function=D, retries=1)], functions={D: bomb}, payloads=[bomb, Large([bomb, bomb])])
    client = world.client(1, ATTACH, first, submit(first=2, payloads=[bomb], needs={0: [0, -1]}, given={0: {1: bomb}}), Promise(3, 2))
    client.send(0, encode(Fulfil([3, 4], b"\0\1", [bomb, bomb])))
    world.loop.turn()
    for outcome in (1, 1, 0, 0, 0):
        for rank, link in world.ranks.items():
            for task in [task.id for task in world.loop.state.tasks.values() if task.rank == rank and task.status == Status.ASSIGNED]:
                link.send(0, encode(Done([task], bytes([outcome]), [Large([bomb, bomb])], [1.0], [task])))
        world.loop.turn()
    world.loop.lose_worker(2, "test")
    world.loop.fail("test")
    assert not world.loop.state.tasks
    assert not opened.exists()
    pickle.loads(bomb)
    assert opened.exists(), "the bomb is a dud"


# ---- sockets ----------------------------------------------------------------------------------------------------


def test_a_header_allocates_nothing() -> None:
    reader = stream.Reader(None)  # type: ignore[arg-type]
    reader._parse(struct.pack("<IQ", 1, stream.MOST_MESSAGE_BYTES) + b"x" * 100)
    assert reader._large is not None and len(reader._large) <= 16 * 1024**2
    for lengths in ([stream.MOST_MESSAGE_BYTES + 1], [stream.MOST_MESSAGE_BYTES, 1], [2**64 - 1]):
        with pytest.raises(ProtocolError, match="bytes"):
            stream.Reader(None)._parse(struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths))  # type: ignore[arg-type]


def test_a_frame_larger_than_its_first_memory_arrives_whole() -> None:
    ours, theirs = socket.socketpair()
    link, other = StreamLink(ours), StreamLink(theirs)
    data = os.urandom(1024) * (40 * 1024)
    other.send(0, [b"head", data, b"tail"])
    while (arrived := link.receive()) is None:
        other.progress()
    assert arrived[1] == [b"head", data, b"tail"]


def test_a_stream_that_keeps_to_no_format_ends_there() -> None:
    ours, theirs = socket.socketpair()
    link = StreamLink(ours)
    theirs.sendall(b"".join(bytes(b) for b in stream.pack([b"well said"])) + b"GET / HTTP/1.1\r\n\r\n")
    assert link.receive() == (0, [b"well said"])
    assert link.receive() == (0, GONE)
    assert link.receive() is None
    assert "frames" in link.error
    assert theirs.recv(10) == b""


def test_a_dropped_peer_hears_the_last_words_and_is_not_heard() -> None:
    ours, theirs = socket.socketpair()
    link, other = StreamLink(ours), StreamLink(theirs)
    other.send(0, [b"once"])
    other.send(0, [b"twice"])
    assert link.receive() == (0, [b"once"])
    link.send(0, [b"last words"])
    link.drop(0)
    assert link.receive() == (0, GONE)
    assert link.receive() is None
    assert other.receive() == (0, [b"last words"])
    assert other.receive() == (0, GONE)


def test_strangers_ring_in_vain() -> None:
    key = new_key()
    bell, peer = Doorbell(key, 0), Doorbell(key, 1)
    address = bell._socket.getsockname()
    assert key.hex().encode() not in address, "everybody can read the names of abstract sockets"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        for data in (b"", b"x" * 64, struct.pack("<IQ", 1, 99), struct.pack("<16sIQ", new_key(), 1, 10**15)):
            stranger.sendto(data, address)
        peer.ring(0, 3)
        assert bell.answer() == [1]
        assert bell.heard == {1: 3}
    bell.close()
    peer.close()
