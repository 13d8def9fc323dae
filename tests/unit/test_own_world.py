"""A function in an MPI world of its own: the meeting of its ranks with the task process, and what comes of what they say."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from multiprocessing import AuthenticationError
from typing import Any

import pytest

from exex.errors import AppException, BashExitFailure, ConfigError, ManagerLost, MpiTaskFailed
from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Grant, Kind, Outcome, Share
from exex.worker import own_world, subtask
from exex.worker.context import Place
from exex.worker.own_world_rank import _connect, _tell
from exex.worker.together import handed

SPEC = AppSpec(app=0, name="f", function=b"f", kind=Kind.TOGETHER, ranks=2, own_world=True)
GRANT = Grant(2, [], [Share("n1", 2, [], [1])])
VALUE, ERROR = payloads.dump(5), payloads.dump_error(ValueError("no"), "")


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Iterator[own_world._Meeting]:
    monkeypatch.setattr(own_world, "addresses", lambda: ("127.0.0.1",))
    meeting = own_world._Meeting((7, "head"))  # type: ignore[arg-type]
    yield meeting
    meeting.close()


def part(rank: int, outcome: int = Outcome.DONE, payload: Any = VALUE) -> tuple[Any, ...]:
    return rank, f"n{rank}", int(outcome), handed(payload), 0.5


def port(meeting: own_world._Meeting) -> int:
    return int(meeting.address.split(":")[1])


def test_rank_0_fetches_the_call_and_brings_what_all_have_come_to(meeting: own_world._Meeting) -> None:
    with _connect(meeting.address) as connection:
        connection.send(None)
        assert connection.recv() == (7, "head")
    assert meeting.parts() == []
    _tell(meeting.address, [part(1), part(0)])
    assert meeting.wait() and [one.rank for one in meeting.parts()] == [0, 1]
    assert payloads.load(meeting.parts()[0].payload) == 5


def test_large_values_come_whole(meeting: own_world._Meeting) -> None:
    _tell(meeting.address, [part(0, payload=payloads.dump(bytearray(3_000_000)))])
    assert len(payloads.load(meeting.parts()[0].payload)) == 3_000_000


STRANGERS: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("garbage", bytes(range(1, 251)) * 2),
    ("a length beyond all measure", struct.pack("!iQ", -1, 1 << 60)),
    ("a negative length", struct.pack("!i", -2)),
    ("an answer that is none", struct.pack("!i", 4) + b"abcd"),
    ("an answer of an unknown kind", struct.pack("!i", 20) + b"{sha999}............"),
    ("HTTP", b"GET / HTTP/1.0\r\n\r\n"),
]


@pytest.mark.parametrize("said", [said for _, said in STRANGERS], ids=[name for name, _ in STRANGERS])
def test_strangers_are_not_heard(meeting: own_world._Meeting, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    loud: list[object] = []
    monkeypatch.setattr(threading, "excepthook", loud.append)
    with socket.create_connection(("127.0.0.1", port(meeting))) as sock:
        sock.settimeout(20)
        sock.sendall(said)
        with suppress(OSError):  # it is closed already
            sock.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while sock.recv(4096):  # until it is closed
                pass
    _tell(meeting.address, [part(0)])
    assert [one.rank for one in meeting.parts()] == [0] and not loud


def test_one_that_says_nothing_keeps_nobody_waiting(meeting: own_world._Meeting) -> None:
    with socket.create_connection(("127.0.0.1", port(meeting))):
        _tell(meeting.address, [part(0)])
    assert meeting.wait()


def test_a_wrong_key_is_refused(meeting: own_world._Meeting) -> None:
    hosts, number, _ = meeting.address.split(":")
    with pytest.raises((AuthenticationError, EOFError, ConnectionError)):
        _tell(f"{hosts}:{number}:{'00' * 32}", [part(0)])
    assert meeting.parts() == []


def test_after_the_end_nobody_is_there(meeting: own_world._Meeting) -> None:
    own_world._Meeting.close(other := own_world._Meeting((7, "head")))  # type: ignore[arg-type]
    with pytest.raises(ManagerLost, match="cannot be reached"):
        _connect(other.address)


# ---- what comes of it -----------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, world: Callable[[own_world._Meeting], None], every_rank: bool = False) -> Any:
    """Outcome, and the value or error, of a call whose world does this."""
    monkeypatch.setattr(own_world, "addresses", lambda: ("127.0.0.1",))
    monkeypatch.setattr(own_world, "_LAST_WORDS_S", 0.05)
    monkeypatch.setattr(own_world, "_start_world", lambda grant, spec, current, at, meeting: world(meeting))
    spec = AppSpec(app=0, name="f", function=b"f", kind=Kind.TOGETHER, ranks=2, own_world=True, every_rank=every_rank)
    outcome, value, _ = own_world.run(GRANT, spec, b"function", b"call", None, 7, 1, Place(1, "n1"))
    return outcome, payloads.load(value)


@pytest.mark.parametrize(("every_rank", "value"), [(False, 5), (True, [5, 6])])
def test_a_world_that_ends_well(monkeypatch: pytest.MonkeyPatch, every_rank: bool, value: Any) -> None:
    def world(meeting: own_world._Meeting) -> None:
        _tell(meeting.address, [part(0), part(1, payload=payloads.dump(6))])

    assert run(monkeypatch, world, every_rank) == (Outcome.DONE, value)


def ends_badly() -> None:
    raise BashExitFailure("f", 9, "at", "srun: error")


def test_a_rank_that_fails_ends_its_world(monkeypatch: pytest.MonkeyPatch) -> None:
    def world(meeting: own_world._Meeting) -> None:
        _tell(meeting.address, [part(1, Outcome.FAILED, ERROR)])
        ends_badly()

    outcome, error = run(monkeypatch, world)
    assert outcome == Outcome.FAILED and isinstance(error, MpiTaskFailed)
    assert "failed on 1 of its 2 ranks: rank 1 at n1: ValueError: no; another one was stopped" in str(error)


def test_a_world_that_ends_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, error = run(monkeypatch, lambda meeting: ends_badly())
    assert outcome == Outcome.FAILED and isinstance(error, AppException)
    assert "its MPI world of 2 ranks ended with status 9 before it was done" in str(error) and "srun: error" in str(error)


def test_a_rank_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, error = run(monkeypatch, lambda meeting: _tell(meeting.address, [part(0)]))
    assert outcome == Outcome.FAILED
    assert "its MPI world has ended, and 1 of its 2 ranks have said nothing" in str(error)


# ---- layouts of sub-tasks -------------------------------------------------------------------------------------


def grant(*slots: int) -> Grant:
    return Grant(1, [], [Share(f"n{i}", count, [], [i]) for i, count in enumerate(slots)])


@pytest.mark.parametrize(
    ("spec", "slots", "asked", "per_node", "ranks"),
    [
        ({"nodes": 2}, (4, 4), {}, 4, 8),
        ({"nodes": 2}, (4, 8), {}, 4, 8),  # as many on each
        ({"nodes": 2, "cores": 3}, (3, 3), {"cores_per_rank": 2}, 1, 2),
        ({"nodes": 2, "cores": 1}, (1, 1), {"cores_per_rank": 4}, 1, 2),
        ({"nodes": 2}, (4, 4), {"ranks_per_node": 2}, 2, 4),
        ({"ranks": 3, "kind": Kind.TOGETHER}, (2, 2), {"ranks": 3, "ranks_per_node": 2}, 2, 3),
    ],
)
def test_ranks_of_a_sub_task(spec: dict[str, Any], slots: tuple[int, ...], asked: dict[str, int], per_node: int, ranks: int) -> None:
    layout = subtask.layout_of(AppSpec(app=0, name="f", function=b"f", **spec), grant(*slots), asked)
    assert (layout.ranks_per_node, layout.all_ranks, layout.hosts) == (per_node, ranks, tuple(f"n{i}" for i in range(len(slots))))


def test_only_whole_nodes_are_bound() -> None:
    cpus = os.cpu_count() or 1
    whole, shared = (AppSpec(app=0, name="f", function=b"f", nodes=1, cores=cores) for cores in (0, 1))
    assert subtask.layout_of(whole, grant(cpus), {}).bind and not subtask.layout_of(shared, grant(1), {}).bind
    assert not subtask.layout_of(whole, grant(cpus), {"ranks_per_node": cpus + 1}).bind, "they would share CPUs"


CALL = ((), {}, {"cwd": "/"})


def test_a_task_of_one_node_part_is_left_alone() -> None:
    with ExitStack() as stack:
        assert subtask.prepare(stack, AppSpec(app=0, name="f", function=b"f", cores=2), grant(2), CALL) is CALL


def test_the_launchers_words_are_put_before_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXEX_SUBTASK_LAUNCHER", "srun")
    before, spec = dict(os.environ), AppSpec(app=0, name="f", function=b"f", nodes=2)
    mpi = {"is_program": True, "ranks_per_node": 2, "cores_per_rank": 1, "launcher_options": "--verbose"}
    with ExitStack() as stack:
        call = subtask.prepare(stack, spec, grant(4, 4), ((), {}, {"mpi": mpi}))
        assert call[2]["prefix"].startswith("srun ") and call[2]["prefix"].endswith(" --verbose") and "mpi" not in call[2]
        assert os.environ["EXEX_NUM_RANKS"] == "4" and os.environ["EXEX_NODES"] == "n0,n1"
    assert dict(os.environ) == before


def test_without_a_launcher_a_program_fails_and_a_script_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXEX_SUBTASK_LAUNCHER", "no-such")
    spec = AppSpec(app=0, name="f", function=b"f", nodes=1)
    with ExitStack() as stack, pytest.raises(ConfigError, match="no-such"):
        subtask.prepare(stack, spec, grant(1), ((), {}, {"mpi": {"is_program": True}}))
    with ExitStack() as stack:
        assert subtask.prepare(stack, spec, grant(1), CALL) is CALL
        assert os.environ["EXEX_MPI_PREFIX"] == subtask.NO_LAUNCHER and "no-such" in os.environ["EXEX_MPI_ERROR"]
    assert "EXEX_MPI_ERROR" not in os.environ
