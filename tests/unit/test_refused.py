"""Messages that the network does not take for now."""

from __future__ import annotations

from exex.transport.refused import FIRST_S, LONGEST_S, Refused


def test_what_was_kept_comes_out_in_order_when_the_peer_opens() -> None:
    refused = Refused()
    assert not refused and refused.due(0.0) is None
    refused.keep(3, [b"a"], 0.0)
    refused.keep(3, [b"b"], 0.0005)
    assert refused and 3 in refused and 4 not in refused
    assert refused.due(FIRST_S / 2) is None
    assert refused.due(FIRST_S) == 3
    assert list(refused.opens(3)) == [[b"a"], [b"b"]]
    refused.drop(3)
    assert not refused and refused.due(100.0) is None


def test_knocks_at_a_shut_door_become_rarer_up_to_a_limit() -> None:
    refused = Refused()
    refused.keep(1, [b"a"], 0.0)
    now_s, pauses = 0.0, []
    for _ in range(10):
        before = now_s
        while refused.due(now_s) is None:
            now_s += 0.0001
        pauses.append(round(now_s - before, 4))
        refused.stays_shut(1, now_s)
    assert pauses == sorted(pauses) and abs(pauses[0] - FIRST_S) < 0.0002 and abs(pauses[-1] - LONGEST_S) < 0.0002, pauses


def test_what_is_refused_again_is_kept_on_and_asked_for_soon() -> None:
    refused = Refused()
    for each in (b"a", b"b", b"c"):
        refused.keep(1, [each], 0.0)
    for now_s in (0.1, 0.2, 0.3, 0.4, 0.5):
        assert refused.due(now_s) == 1
        refused.stays_shut(1, now_s)
    assert refused.due(0.6) == 1
    refused.opens(1).popleft()
    refused.stays_shut(1, 0.6)
    assert refused.due(0.6 + FIRST_S / 2) is None and refused.due(0.6 + 1.01 * FIRST_S) == 1
    assert list(refused.opens(1)) == [[b"b"], [b"c"]]


def test_peers_take_turns_by_time_and_a_dropped_one_has_none() -> None:
    refused = Refused()
    for peer, now_s in ((5, 0.002), (6, 0.001), (7, 0.0)):
        refused.keep(peer, [b"x"], now_s)
    refused.drop(6)
    refused.drop(8)
    assert [refused.due(1.0), refused.due(1.0), refused.due(1.0)] == [7, 5, None]
    refused.clear()
    assert not refused
