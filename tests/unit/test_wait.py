"""How a loop waits: real descriptors, links that only say what they would."""

from __future__ import annotations

import select
import socket
import time

import pytest

from exex.transport.wait import TRANSFER_POLL_S, TRANSFER_S, Waiter


class Says:
    """A link that is asked, and nothing else."""

    def __init__(self, polled: bool = False, transferring: bool = False) -> None:
        self._polled, self._transferring = polled, transferring

    def polled(self) -> bool:
        return self._polled

    def transferring(self) -> bool:
        return self._transferring

    def fileno(self) -> int:
        return -1


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Sleeps asked for, none of which happens."""
    asked: list[float] = []
    monkeypatch.setattr(select, "select", lambda r, w, x, timeout: (asked.append(timeout), ((), (), ()))[1])
    return asked


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_large_messages_under_way_are_looked_after(slept: list[float], clock: list[float]) -> None:
    waiter = Waiter()
    waiter.watch_link(Says(transferring=True))
    waiter.wait(True, False)
    clock[0] += TRANSFER_S * 0.9
    waiter.wait(False, False)
    assert slept == []  # every look may move a piece
    clock[0] += 60.0  # a peer that hangs
    waiter.wait(False, False)
    assert slept == [TRANSFER_POLL_S]


def test_the_pause_grows_with_the_silence(slept: list[float], clock: list[float]) -> None:
    waiter = Waiter()
    waiter.watch_link(Says(polled=True))
    waiter.wait(True, False)
    for silence_s in (0.001, 0.01):
        clock[0] = 100.0 + silence_s
        waiter.wait(False, False)
    assert slept == pytest.approx([0.0001, 0.001])


def test_room_to_write_wakes_only_who_wants_to_write() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    waiter = Waiter()
    waiter.watch(ours.fileno())
    assert waiter.wait(False, False, most_s=0) == []
    waiter.watch_output(ours.fileno(), True)
    assert waiter.wait(False, False, most_s=0) == [ours.fileno()]
    try:
        while True:
            ours.send(bytes(65536))
    except BlockingIOError:
        pass
    assert waiter.wait(False, False, most_s=0) == []
    while waiter.wait(False, False, most_s=0) == []:
        theirs.recv(65536)
    waiter.watch_output(ours.fileno(), False)
    assert waiter.wait(False, False, most_s=0) == []
    waiter.watch_output(ours.fileno(), True)
    waiter.forget(ours.fileno())
    waiter.watch_output(ours.fileno(), False)  # nothing to undo
    ours.close(), theirs.close()
