"""Who has been silent for too long."""

from __future__ import annotations

from exex.manager.liveness import Liveness
from exex.manager.loop import ManagerLoop, Settings
from exex.protocol import codec
from exex.protocol.messages import Hello
from exex.transport.joined import OWN, JoinedRanks
from exex.transport.memory import Network


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


def test_the_manager_never_gives_itself_up() -> None:
    """Its own worker is silent while the others are, too; only they are lost."""
    now_s = 1000.0
    network = Network()
    joined = JoinedRanks(network.end(0))
    settings = Settings("1", "3.11.0", 0, frozenset([OWN, 1]), "run", 1e9, 1e9, 0.005, heartbeat_limit_s=10.0, own=OWN)
    loop = ManagerLoop(settings, joined, None, lambda: None, clock=lambda: now_s)
    hello = codec.Encoder().encode(Hello(version="1", python="3.11.0", node="n", pid=1, slots=2, error="", times_s=[]))
    for end in (joined.own, network.end(1)):
        end.send(0, list(hello))
    while now_s < 1012.0:
        loop.turn()
        now_s += 0.5
    assert loop.lost.keys() == {1} and loop.state.workers.keys() == {OWN} and loop.state.slots() == 2
