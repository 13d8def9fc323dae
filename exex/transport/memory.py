"""Links between ends in one process: for worlds of one rank, the simulation, and users' own tests.

Messages are handed over as they are. With a seeded `random.Random`, `Network.step` delivers one message at a time from
a link chosen by the seed, so that the order between links is any that a real network may show, and replays exactly.
"""

from __future__ import annotations

import random
from collections import deque

from exex.protocol.payload import Buffer
from exex.transport.base import GONE


class Network:
    """All ends and the messages between them.

    Args:
        rng: chooses what is delivered next; None delivers at once, in order.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng
        self._ends: dict[int, MemoryLink] = {}
        self._under_way: dict[tuple[int, int], deque[list[Buffer]]] = {}

    def end(self, number: int) -> MemoryLink:
        """A new end with this number.

        Raises:
            ValueError: the number is taken.
        """
        if number in self._ends:
            raise ValueError(f"end {number} exists already")
        link = self._ends[number] = MemoryLink(self, number)
        return link

    def carry(self, sender: int, receiver: int, frames: list[Buffer]) -> None:
        """Take a message; deliver it now, or when `step` chooses it."""
        end = self._ends.get(receiver)
        if end is None or end.closed:
            if frames is not GONE:
                raise ConnectionError(f"end {receiver} is gone")
            return
        if self._rng is None:
            end.arrived.append((sender, frames))
        else:
            self._under_way.setdefault((sender, receiver), deque()).append(frames)

    def under_way(self) -> int:
        """How many messages are not delivered yet."""
        return sum(len(queue) for queue in self._under_way.values())

    def step(self) -> int | None:
        """Deliver one message; returns its receiver, None if nothing is under way."""
        if not self._under_way:
            return None
        assert self._rng is not None
        sender, receiver = key = self._rng.choice(list(self._under_way))
        frames = self._under_way[key].popleft()
        if not self._under_way[key]:
            del self._under_way[key]
        end = self._ends.get(receiver)
        if end is not None and not end.closed:
            end.arrived.append((sender, frames))
        return receiver

    def leave(self, number: int) -> None:
        """An end closes: those who have talked with it receive GONE."""
        for other in list(self._ends):
            if other != number and other in self._ends[number].known:
                self.carry(number, other, GONE)


class InProcess:
    """What any end has that stays within its process: nothing to wait on, and nothing is ever left unsent."""

    def progress(self) -> bool:
        """See `Link.progress`."""
        return False

    def fileno(self) -> int:
        """See `Link.fileno`."""
        return -1

    def polled(self) -> bool:
        """See `Link.polled`: whoever sends here turns the receiver, too."""
        return True

    def transferring(self) -> bool:
        """See `Link.transferring`."""
        return False

    def woken(self) -> None:
        """See `Link.woken`: `receive` is enough."""


class MemoryLink(InProcess):
    """One end in a `Network`."""

    def __init__(self, network: Network, number: int) -> None:
        self._network = network
        self.number = number
        self.arrived: deque[tuple[int, list[Buffer]]] = deque()
        self.known: set[int] = set()
        self.forgotten: set[int] = set()
        self.closed = False
        self.dropped: set[int] = set()

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        self.known.add(peer)
        self._network.carry(self.number, peer, frames)
        other = self._network._ends[peer]
        other.known.add(self.number)

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`."""
        while self.arrived:
            arrived = self.arrived.popleft()
            if arrived[0] in self.forgotten:
                continue
            if arrived[0] not in self.dropped or arrived[1] is GONE:
                return arrived
        return None

    def drop(self, peer: int) -> None:
        """See `Server.drop`."""
        if peer not in self.dropped:
            self.dropped.add(peer)
            self._network.carry(self.number, peer, GONE)

    def forget(self, peer: int) -> None:
        """See `Ranks.forget`."""
        self.forgotten.add(peer)

    def close(self) -> None:
        """See `Link.close`."""
        if not self.closed:
            self.closed = True
            self._network.leave(self.number)
