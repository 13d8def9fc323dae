"""Guards that tell each other of dead ranks, over real datagrams on this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from exex.transport import alarm
from exex.transport.alarm import Alarm, Kind, Meeting, Note, addresses, new_meeting


@pytest.fixture
def first() -> Iterator[Alarm]:
    guard = Alarm()
    guard.join(Meeting(("127.0.0.1",), guard.port, b"k" * 32, 3), 0, 0.0)
    yield guard
    guard.close()


def meeting(first: Alarm, key: bytes = b"k" * 32, *hosts: str) -> Meeting:
    return Meeting((*hosts, "127.0.0.1"), first.port, key, 3)


@contextmanager
def other(first: Alarm, rank: int, key: bytes = b"k" * 32, signed_on: bool = True) -> Iterator[Alarm]:
    guard = Alarm()
    guard.join(meeting(first, key), rank, 0.0)
    if signed_on:
        guard.tend(1.0)
        until(lambda: [*first.receive(), *guard.receive(), guard.next_s()] == [None])
    yield guard
    guard.close()


def until(condition):  # type: ignore[no-untyped-def]
    """The first true value, or the test fails."""
    give_up_s = time.monotonic() + 20
    while not (value := condition()):
        assert time.monotonic() < give_up_s, "it never became true"
        time.sleep(0.001)
    return value


def collect(guard: Alarm, count: int) -> list[Note]:
    """The next notes; each is confirmed."""
    notes: list[Note] = []

    def enough() -> bool:
        for note, sender in guard.receive():
            guard.confirm(note, sender)
            notes.append(note)
        return len(notes) >= count

    until(enough)
    return notes


def silent(*guards: Alarm) -> None:
    """Nothing that they believe has come to them. What was sent to this machine's own sockets before is there."""
    assert [guard.receive() for guard in guards] == [[]] * len(guards)


def test_signing_on_is_repeated_until_it_is_answered(first: Alarm) -> None:
    with other(first, 1, signed_on=False) as guard:
        assert guard.next_s() is not None
        guard.tend(1.0)
        again_s = guard.next_s()
        assert again_s is not None and again_s >= 1.0 + alarm.SIGN_ON_S
        guard.tend(again_s)
        assert first.receive() == []
        until(lambda: guard.receive() == [] and guard.next_s() is None)
        guard.tend(1e9)  # never again
        silent(first)


def test_signing_on_is_given_up_where_nothing_gets_through(first: Alarm) -> None:
    with other(first, 1, key=b"x" * 32, signed_on=False) as guard:
        tries = 0
        while (next_s := guard.next_s()) is not None:
            guard.tend(next_s)
            silent(first)
            tries += 1
        assert 5 < tries < 15


def test_the_first_sign_ons_of_many_are_spread(first: Alarm) -> None:
    with other(first, 1, signed_on=False) as guard:
        guard.join(meeting(first)._replace(ranks=100 * alarm.SIGN_ONS_PER_S), 1, 1000.0)
        next_s = guard.next_s()
        assert next_s is not None and 1000.0 <= next_s <= 1100.0


def test_a_death_is_told_and_confirmed(first: Alarm) -> None:
    with other(first, 7) as guard:
        teller = threading.Thread(target=guard.tell_death, args=(-9,))
        began_s = time.monotonic()
        teller.start()
        assert collect(first, 1) == [Note(Kind.DIED, 7, -9)]
        teller.join()
        assert time.monotonic() - began_s < alarm._TELLINGS * alarm._ANSWER_S


def test_a_death_is_told_again_where_nobody_confirms(first: Alarm) -> None:
    with other(first, 7, signed_on=False) as guard:  # whose first sign-on was not answered yet
        guard.tell_death(3)
        assert [note for note, _ in first.receive()] == [Note(Kind.DIED, 7, 3)] * alarm._TELLINGS


def test_the_end_reaches_all_that_have_signed_on(first: Alarm) -> None:
    with other(first, 1) as one, other(first, 2) as two, other(first, 3, signed_on=False) as three:
        teller = threading.Thread(target=first.tell_end, args=(137,))
        teller.start()
        assert collect(one, 1) == collect(two, 1) == [Note(Kind.END, 0, 137)]
        teller.join()
        silent(three)


def test_the_end_is_soon_where_others_are_gone(first: Alarm) -> None:
    with other(first, 1):
        pass
    with other(first, 2) as two:
        began_s = time.monotonic()
        first.tell_end(1)
        assert time.monotonic() - began_s < 5
        assert [note for note, _ in two.receive()] == [Note(Kind.END, 0, 1)] * alarm._TELLINGS


def test_what_is_forged_or_meant_for_others_is_not_believed(first: Alarm) -> None:
    with other(first, 1) as guard, other(first, 2, key=b"x" * 32, signed_on=False) as forger:
        forger.tell_death(-9)
        forger._send([("127.0.0.1", guard.port)], Kind.END, 1)
        guard._send([("127.0.0.1", first.port)], Kind.END, 1)
        first._send([("127.0.0.1", guard.port)], Kind.DIED, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for data in (b"", b"x", bytes(25), bytes(64)):
                stranger.sendto(data, ("127.0.0.1", first.port))
        silent(first, guard)


def test_nothing_is_believed_before_the_secret_is_known(first: Alarm) -> None:
    guard = Alarm()
    first._send([("127.0.0.1", guard.port)], Kind.END, 1)
    forger = Alarm()
    forger.rank = 0
    forger._key = b""
    forger._send([("127.0.0.1", guard.port)], Kind.END, 1)
    silent(guard)
    guard.close()
    forger.close()


def test_unreachable_addresses_do_no_harm(first: Alarm) -> None:
    guard = Alarm()
    guard.join(meeting(first, b"k" * 32, "255.255.255.255", "240.0.0.1", "127.0.0.77"), 1, 0.0)
    guard.tend(1.0)
    until(lambda: [*first.receive(), *guard.receive(), guard.next_s()] == [None])
    guard.close()


def test_where_interfaces_cannot_be_listed_there_is_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError

    monkeypatch.setattr(alarm.socket, "if_nameindex", refuse)
    assert addresses() == ("127.0.0.1",)


def test_a_meeting_names_this_node_and_a_new_secret() -> None:
    one, two = new_meeting(5, 2), new_meeting(5, 2)
    assert one.hosts == addresses() and addresses()[-1] == "127.0.0.1"
    assert one.key != two.key and len(one.key) == 32


# ---- ranks that run a function themselves ---------------------------------------------------------------------


def test_some_ranks_are_told_to_stop_a_call(first: Alarm) -> None:
    with other(first, 1) as one, other(first, 2) as two:
        assert first.tell_ranks([1], Kind.STOP, 0, 1 << 62) == []
        assert first.tell_ranks([2], Kind.STOP, 1, 7) == []
        assert collect(one, 1) == [Note(Kind.STOP, 0, 0, 1 << 62)]
        assert collect(two, 1) == [Note(Kind.STOP, 0, 1, 7)]
        silent(one, two)


def test_ranks_that_never_signed_on_are_named(first: Alarm) -> None:
    with other(first, 1) as one:
        assert first.tell_ranks([1, 5, 9], Kind.PROBE) == [5, 9]
        assert collect(one, 1) == [Note(Kind.PROBE, 0, 0)]


def test_a_guard_that_is_asked_for_a_sign_of_life_gives_it(first: Alarm) -> None:
    with other(first, 3) as guard:
        first.tell_ranks([3], Kind.PROBE)
        collect(guard, 1)  # confirms it
        assert [note for note, _ in until(first.receive)] == [Note(Kind.HEARD, 3, Kind.PROBE)]


@pytest.mark.parametrize("kind", [Kind.STOP, Kind.PROBE, Kind.END])
def test_only_the_first_guard_may_say_that(first: Alarm, kind: Kind) -> None:
    with other(first, 1) as one, other(first, 2) as two:
        two._send([("127.0.0.1", one.port)], kind, 1, 7)
        two._send([("127.0.0.1", first.port)], kind, 1, 7)
        silent(one, first)


def test_nor_may_one_without_the_secret(first: Alarm) -> None:
    with other(first, 1) as one:
        stranger = Alarm()
        stranger.join(Meeting(("127.0.0.1",), stranger.port, b"x" * 32, 3), 0, 0.0)
        stranger._send([("127.0.0.1", one.port)], Kind.STOP, 1, 7)
        silent(one)
        stranger.close()
