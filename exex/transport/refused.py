"""Messages that the network does not take for now, and when to knock at their peers again. Pure.

A peer is knocked at after FIRST_S, then after twice that, and so on up to LONGEST_S.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from exex.protocol.payload import Buffer

FIRST_S = 0.001
LONGEST_S = 0.05


@dataclass
class _Peer:
    pause_s: float = FIRST_S
    messages: deque[list[Buffer]] = field(default_factory=deque)


class Refused:
    """See the module docstring. It is true while there are any."""

    def __init__(self) -> None:
        self._peers: dict[int, _Peer] = {}
        self._knocks: list[tuple[float, int]] = []  # when, and at whom; a heap

    def __bool__(self) -> bool:
        return bool(self._peers)

    def __contains__(self, peer: int) -> bool:
        return peer in self._peers

    def keep(self, peer: int, frames: list[Buffer], now_s: float) -> None:
        """A message that was refused, or comes after one."""
        if peer not in self._peers:
            self._peers[peer] = _Peer()
            heapq.heappush(self._knocks, (now_s + FIRST_S, peer))
        self._peers[peer].messages.append(frames)

    def due(self, now_s: float) -> int | None:
        """A peer at which to knock now: `stays_shut`, `opens` or `drop` must follow."""
        if not self._knocks or self._knocks[0][0] > now_s:
            return None
        return heapq.heappop(self._knocks)[1]

    def stays_shut(self, peer: int, now_s: float) -> None:
        """It has not opened, or not for long."""
        state = self._peers[peer]
        state.pause_s = min(2 * state.pause_s, LONGEST_S)
        heapq.heappush(self._knocks, (now_s + state.pause_s, peer))

    def opens(self, peer: int) -> deque[list[Buffer]]:
        """What was kept for it, in order: what is left there when `stays_shut` follows is kept on."""
        self._peers[peer].pause_s = FIRST_S / 2
        return self._peers[peer].messages

    def drop(self, peer: int) -> None:
        """Nothing is kept for it any more."""
        if self._peers.pop(peer, None) is not None:
            self._knocks = [knock for knock in self._knocks if knock[1] != peer]
            heapq.heapify(self._knocks)

    def clear(self) -> None:
        """Nothing is kept for anybody."""
        self._peers.clear()
        self._knocks.clear()
