"""What a guard can do to a rank that runs a function of the user's: a page that both share, and signals to a real process."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Join, Kind, Outcome
from exex.transport.page import STOP_RANK, Page
from exex.worker.context import Place
from exex.worker.together import Head, Part, Together, make_head


class AloneComm:
    """A communicator of one rank, as far as `Together` needs one."""

    rank = 0

    def __init__(self) -> None:
        self.calls: list[str] = []

    def bcast(self, what: object) -> object:
        return what

    def Free(self) -> None:
        self.calls.append("Free")

    def Revoke(self) -> None:
        self.calls.append("Revoke")


class Rank:
    """A rank in this process, alone in its world."""

    def __init__(self, page: Page | None = None) -> None:
        self.page = page or Page()
        self.comms: list[AloneComm] = []
        self.formed: list[tuple[list[int], int, bool]] = []
        self.together = Together(self.form, Place(0, "n"), self.page, "script.py", "/scripts")

    def form(self, ranks: Sequence[int], tag: int, after_loss: bool) -> AloneComm:
        self.formed.append((list(ranks), tag, after_loss))
        self.comms.append(AloneComm())
        return self.comms[-1]

    def run(self, function: Callable[..., object], *args: object, call: int = 1, **join: object) -> Part:
        spec = AppSpec(app=0, name="f", function=payloads.dump_function(function)[0], kind=Kind.TOGETHER, ranks=1)
        head: Head = make_head(spec, payloads.dump_function(function)[1], payloads.dump((args, {})), None, 1)
        return self.together.run(Join(5, call, [0, 1], **join), head)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    argv, path, handler = sys.argv, list(sys.path), signal.getsignal(STOP_RANK)
    yield
    sys.argv, sys.path[:] = argv, path
    signal.signal(STOP_RANK, handler or signal.SIG_DFL)


def in_child(main: Callable[[Page], int]) -> tuple[Page, int]:
    """Fork a rank; its exit code is what `main` returns."""
    page = Page()
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(main(page))
        finally:
            os._exit(99)
    return page, pid


def until(condition: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.001)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def loops(comm: object) -> None:
    while True:
        time.sleep(0.001)


inside = mmap.mmap(-1, 1)
"""Shared with forked ranks: what is heard before a function has begun stops it."""


def deaf(comm: object) -> None:
    """As C code is: the exception does not come through."""
    while True:
        try:
            while True:
                inside[0] = 1
                time.sleep(0.001)
        except BaseException:
            pass


# ---- the page -------------------------------------------------------------------------------------------------


def test_both_see_what_runs() -> None:
    page, pid = in_child(lambda page: page.run(1 << 62) or 0)
    assert ended(pid) == 0
    assert page.running() == 1 << 62
    page.run(None)
    assert page.running() is None and page.wanted() is None


def test_softly_the_function_gets_an_exception_and_the_rank_goes_on() -> None:
    def main(page: Page) -> int:
        rank = Rank(page)
        first, second = rank.run(loops, call=7), rank.run(lambda comm: 3, call=8)
        return first[0] * 10 + second[0] if page.running() is None else 98

    page, pid = in_child(main)
    until(lambda: page.running() == 7)
    code = None
    while code is None:  # as the manager: again and again
        page.stop(pid, 7, hard=False)
        time.sleep(0.005)
        done, status = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if done else None
    assert code == Outcome.CANCELLED * 10 + Outcome.DONE


def test_hard_it_is_killed() -> None:
    inside[0] = 0
    page, pid = in_child(lambda page: int(Rank(page).run(deaf, call=7)[0]))
    until(lambda: inside[0])
    page.stop(pid, 7, hard=False)
    time.sleep(0.02)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it does not hear"
    page.stop(pid, 7, hard=True)
    assert ended(pid) == -signal.SIGKILL


@pytest.mark.parametrize("hard", [False, True])
def test_a_word_for_another_call_harms_nobody(hard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *args: sent.append(args))
    page = Page()
    page.stop(1234, 7, hard)
    page.run(8)
    page.stop(1234, 7, hard)
    assert not sent and page.wanted() is None
    page.stop(1234, 8, hard)
    assert sent == [(1234, signal.SIGKILL if hard else STOP_RANK)] and page.wanted() == 8


# ---- what runs there ------------------------------------------------------------------------------------------


def test_a_part_with_a_value() -> None:
    rank = Rank()
    outcome, value, seconds = rank.run(lambda comm, x: (comm.rank, x), 4, call=40_000, after_loss=True)
    assert outcome == Outcome.DONE and payloads.load(value) == (0, 4) and seconds >= 0
    assert rank.formed == [([0], 40_000 % 32767, True)] and rank.page.running() is None
    assert rank.comms[0].calls == ["Free"]
    assert sys.argv == ["script.py"] and sys.path[0] == "/scripts"


def test_a_signal_between_two_functions_is_nothing() -> None:
    rank = Rank()
    rank.run(lambda comm: 1)
    os.kill(os.getpid(), STOP_RANK)
    assert rank.run(lambda comm: 1, call=2)[0] == Outcome.DONE


def test_it_is_raised_once() -> None:
    rank = Rank()

    def stopped_twice(comm: object) -> str:
        try:
            rank.page.stop(os.getpid(), 1, hard=False)
            time.sleep(10)
        finally:
            rank.page.stop(os.getpid(), 1, hard=False)
            time.sleep(0.01)  # what it does before it ends is not disturbed
            cleaned.append(1)
        return "unreachable"

    cleaned: list[int] = []
    spec = AppSpec(app=0, name="f", function=b"twice", kind=Kind.TOGETHER, ranks=1)
    rank.together._functions[b"twice"] = stopped_twice
    part = rank.together.run(Join(5, 1, [0, 1]), Head(spec, b"", bytes(payloads.dump(((), {}))), None, 1))
    assert part == (Outcome.CANCELLED, b"", 0.0) and cleaned and rank.page.running() is None


def test_the_communicator_of_a_failure_is_kept_for_a_revocation_until_the_next_call() -> None:
    rank = Rank()
    outcome, value, _ = rank.run(lambda comm: 1 / 0)
    assert outcome == Outcome.FAILED and isinstance(payloads.load(value), ZeroDivisionError)
    assert rank.comms[0].calls == []
    rank.together.revoke([4])
    assert rank.comms[0].calls == []
    rank.together.revoke([5])
    assert rank.comms[0].calls == ["Revoke"]
    rank.run(lambda comm: 1, call=2)
    assert rank.comms[0].calls == ["Revoke", "Free"]
    rank.together.revoke([5])
    assert rank.comms[1].calls == ["Free"], "it has not failed"


def test_a_communicator_that_cannot_be_formed_is_a_loss(capfd: pytest.CaptureFixture[str]) -> None:
    rank = Rank()

    def fails(*args: object) -> AloneComm:
        raise RuntimeError("a rank has died")

    rank.together._form = fails
    assert rank.run(lambda comm: 1) == (Outcome.LOST, b"", 0.0)
    assert "no communicator for task 5: a rank has died" in capfd.readouterr().err and rank.page.running() is None


def test_a_function_that_cannot_be_opened_fails_the_task() -> None:
    rank = Rank()
    spec = AppSpec(app=0, name="f", function=b"x", kind=Kind.TOGETHER, ranks=1)
    outcome, value, _ = rank.together.run(Join(5, 1, [0, 1]), Head(spec, b"garbage", bytes(payloads.dump(((), {}))), None, 1))
    assert outcome == Outcome.FAILED and "UnpicklingError" in str(payloads.load(value))


def test_what_a_function_does_to_its_process_is_undone() -> None:
    rank, before = Rank(), os.getcwd()

    def wild(comm: object) -> None:
        os.chdir("/")
        os.environ["WILD"] = "1"

    rank.run(wild)
    assert os.getcwd() == before and "WILD" not in os.environ
