"""Who has been silent for too long."""

from __future__ import annotations

from exex.manager.liveness import Liveness
from exex.transport.alarm import Address, AlarmReceiver, Death, raise_alarm


def turns(liveness: Liveness, start_s: float, end_s: float) -> list[int]:
    """Ask as a loop does; who was given up, in order."""
    silent: list[int] = []
    now_s = start_s
    while now_s < end_s:
        for rank in liveness.silent(now_s):
            silent.append(rank)
            liveness.forget(rank)
        now_s += 0.5
    return silent


def test_the_silent_one_is_given_up_soon_after_the_limit() -> None:
    liveness = Liveness(10.0)
    liveness.silent(99.9)
    liveness.heard(1, 100.0)
    liveness.heard(2, 100.0)
    assert turns(liveness, 100.0, 105.0) == []
    liveness.heard(2, 105.0)
    assert turns(liveness, 105.0, 110.0) == []
    assert turns(liveness, 110.0, 112.0) == [1]
    assert turns(liveness, 112.0, 117.0) == [2]


def test_our_own_pause_counts_for_nobody() -> None:
    liveness = Liveness(10.0)
    liveness.heard(1, 0.0)
    assert liveness.silent(0.1) == []
    assert liveness.silent(1000.0) == []  # the job was suspended and resumed
    assert turns(liveness, 1000.5, 1009.0) == []
    assert turns(liveness, 1009.0, 1013.0) == [1]


def test_without_a_limit_nobody_is() -> None:
    liveness = Liveness(0.0)
    liveness.heard(1, 0.0)
    assert turns(liveness, 1.0, 50.0) == []


def test_an_alarm_arrives_and_a_forged_one_does_not() -> None:
    receiver = AlarmReceiver()
    try:
        forged = Address(receiver.address.host, receiver.address.port, b"x" * 32)
        raise_alarm(forged, Death(1, -9))
        raise_alarm(receiver.address, Death(7, -9))
        raise_alarm(receiver.address, Death(8, 3))
        assert [receiver.receive(), receiver.receive(), receiver.receive()] == [Death(7, -9), Death(8, 3), None]
    finally:
        receiver.close()
