"""One suite over every transport."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from exex.transport.base import GONE, Link
from exex.transport.curve import CurveLink, CurveServer, Keys
from exex.transport.joined import OWN, JoinedRanks
from exex.transport.memory import Network
from exex.transport.stream import StreamLink
from exex.transport.zeromq import Listener, new_keys
from tests.conformance.contract import CHECKS, END, Echo
from tests.launch import Launch

Ends = tuple[Link, list[int], Callable[[], None]]


def memory() -> Iterator[Ends]:
    network = Network()
    echoes = [Echo(network.end(number)) for number in (1, 2)]
    link = network.end(0)
    yield link, [1, 2], lambda: [echo.turn() for echo in echoes]  # type: ignore[func-returns-value]
    link.close()


def joined() -> Iterator[Ends]:
    network = Network()
    link = JoinedRanks(network.end(0))
    echoes = [Echo(link.own), Echo(network.end(1)), Echo(network.end(2))]
    yield link, [OWN, 1, 2], lambda: [echo.turn() for echo in echoes]  # type: ignore[func-returns-value]
    link.close()


def stream() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=Echo(StreamLink(theirs)).run)
    thread.start()
    link = StreamLink(ours)
    yield link, [0], lambda: None
    link.send(0, [END])
    thread.join()
    link.close()


def curve() -> Iterator[Ends]:
    (public, secret), (mine, my_secret) = new_keys(), new_keys()
    listener = Listener(("127.0.0.1",), 0, secret, frozenset((mine,)))
    thread = threading.Thread(target=Echo(CurveServer(listener, grace_s=60.0)).run)
    thread.start()
    link = CurveLink((f"127.0.0.1:{listener.port}",), Keys(public, mine, my_secret))
    yield link, [0], lambda: None
    link.send(0, [END])
    thread.join()
    link.close()


@pytest.fixture(params=["memory", "joined", "stream", "curve"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    yield from {"memory": memory, "joined": joined, "stream": stream, "curve": curve}[request.param]()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(ends: Ends, check: Callable[..., None]) -> None:
    check(*ends)


@pytest.mark.parametrize("words", [[], ["joined"]], ids=["mpi", "joined"])
def test_contract_over_mpi(launch: Launch, words: list[str]) -> None:
    done = launch.module(3, "tests.conformance.over_mpi", *words)
    assert done.status == 0, done.err
    assert done.out.split() == [word for check in CHECKS for word in ("ok", check.__name__)]


def test_stream_tells_that_its_peer_is_gone() -> None:
    ours, theirs = socket.socketpair()
    link, other = StreamLink(ours), StreamLink(theirs)
    other.send(0, [b"last words"])
    other.close()
    assert link.receive() == (0, [b"last words"])
    arrived = link.receive()
    assert arrived is not None and arrived[1] is GONE
    assert link.receive() is None


def test_memory_tells_that_its_peer_is_gone() -> None:
    network = Network()
    one, two = network.end(1), network.end(2)
    one.send(2, [b"hello"])
    two.close()
    assert one.receive() == (2, GONE)
    with pytest.raises(ConnectionError):
        one.send(2, [b"anybody there?"])


def test_memory_does_not_hear_a_peer_that_was_dropped() -> None:
    network = Network()
    one, two, three = (network.end(number) for number in (1, 2, 3))
    two.send(1, [b"before"])
    one.drop(2)
    two.send(1, [b"after"])
    three.send(1, [b"hello"])
    assert two.receive() == (1, GONE)
    assert one.receive() == (3, [b"hello"])
    assert one.receive() is None


def test_joined_does_not_hear_whom_it_was_told_to_forget() -> None:
    network = Network()
    link = JoinedRanks(network.end(0))
    one, two = network.end(1), network.end(2)
    for end in (link.own, one, two):
        end.send(0, [b"hello"])
    link.forget(OWN)
    link.forget(1)
    assert link.receive() == (2, [b"hello"])
    assert link.receive() is None


def test_joined_alone_has_nobody_else() -> None:
    link = JoinedRanks()
    with pytest.raises(ConnectionError):
        link.send(1, [b"anybody there?"])
    link.send(OWN, [b"hello"])
    assert link.own.receive() == (0, [b"hello"])
    assert link.receive() is None and not link.progress() and not link.polled() and link.fileno() == -1


def test_joined_is_woken_by_the_others() -> None:
    """What the own worker says is there when its turn ends; the descriptor is that of the others."""
    ours, theirs = socket.socketpair()

    class Others(StreamLink):
        def forget(self, peer: int) -> None: ...

        def polled(self) -> bool:
            return True

    link = JoinedRanks(Others(ours))
    assert link.fileno() == ours.fileno() and link.polled()
    StreamLink(theirs).send(0, [b"hello"])
    assert select.select([link.fileno()], (), (), 20)[0]
    link.close()
    assert ours.fileno() == -1
