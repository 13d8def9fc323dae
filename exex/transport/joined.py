"""Rank 0's end towards its workers where it is one of them: the others over their own transport, itself in memory.

The own worker turns in the manager's loop, so what it says wakes nobody: after a turn in which it had anything to do, receive
again before a sleep.
"""

from __future__ import annotations

from exex.protocol.payload import Buffer
from exex.transport.base import Link, Ranks
from exex.transport.memory import Network

OWN = 0
"""The own worker's number, as a peer: that of its rank."""

_MANAGER, _WORKER = 0, 1  # ends of the in-memory network; a worker calls its manager 0


class JoinedRanks:
    """See the module docstring.

    Args:
        others: to all other workers; None in a world of one.

    Attributes:
        own: the own worker's end.
    """

    def __init__(self, others: Ranks | None = None) -> None:
        network = Network()
        self._mine = network.end(_MANAGER)
        self.own: Link = network.end(_WORKER)
        self._others = others

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        if peer == OWN:
            self._mine.send(_WORKER, frames)
        elif self._others is None:
            raise ConnectionError(f"rank {peer} does not exist")
        else:
            self._others.send(peer, frames)

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`. The own worker comes first: it says no more until it is turned again."""
        arrived = self._mine.receive()
        if arrived is not None:
            return OWN, arrived[1]
        return None if self._others is None else self._others.receive()

    def progress(self) -> bool:
        """See `Link.progress`."""
        return self._others is not None and self._others.progress()

    def forget(self, peer: int) -> None:
        """See `Ranks.forget`."""
        if peer == OWN:
            self._mine.forget(_WORKER)
        elif self._others is not None:
            self._others.forget(peer)

    def fileno(self) -> int:
        """See `Link.fileno`: that of the others."""
        return -1 if self._others is None else self._others.fileno()

    def polled(self) -> bool:
        """See `Link.polled`: that of the others."""
        return self._others is not None and self._others.polled()

    def transferring(self) -> bool:
        """See `Link.transferring`."""
        return self._others is not None and self._others.transferring()

    def woken(self) -> None:
        """See `Link.woken`."""
        if self._others is not None:
            self._others.woken()

    def close(self) -> None:
        """See `Link.close`."""
        self._mine.close()
        if self._others is not None:
            self._others.close()
