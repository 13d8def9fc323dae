"""The contract of a transport: one end of it, with any number of peers, never blocking.

A message is a list of frames (see protocol/codec). Between two ends, messages arrive complete, unchanged, once, and in
the order in which they were sent. Nothing is promised about the order between different pairs of ends.
"""

from __future__ import annotations

from typing import Protocol

from exex.protocol.payload import Buffer

GONE: list[Buffer] = []
"""Received in place of a message: this peer has closed its end or has died, and nothing more will come from it."""


SCRIPT = 0
"""The number of the job's own script among the manager's peers; those of clients that come over the network are higher."""


class Link(Protocol):
    """One end of a transport. Owned by one thread."""

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """Queue a message and start sending it. Never blocks; the frames must not be changed afterwards.

        Raises:
            ConnectionError: the peer is gone.
        """

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """The next message that has arrived and its sender, `(sender, GONE)` once at its end, or None for now.

        A peer that does not keep to the transport's format is at its end.
        """

    def progress(self) -> bool:
        """Push queued messages on. True while some have not left yet. For a peer that is gone they are forgotten."""

    def fileno(self) -> int:
        """A descriptor that turns readable when something may have arrived; -1 if there is none."""

    def polled(self) -> bool:
        """Whether messages may arrive of which `fileno` does not tell."""

    def transferring(self) -> bool:
        """Whether messages are under way that move only while this end is polled (`progress`, `receive`)."""

    def woken(self) -> None:
        """To be called when `fileno` was readable, before `receive`."""

    def close(self) -> None:
        """Release everything. Idempotent. Does not wait for queued messages; call `progress` before."""


class Announced:
    """What a link has whose descriptor announces every message, and whose messages move by themselves."""

    def polled(self) -> bool:
        """See `Link.polled`."""
        return False

    def transferring(self) -> bool:
        """See `Link.transferring`."""
        return False

    def woken(self) -> None:
        """See `Link.woken`: `receive` is enough."""


class Server(Link, Protocol):
    """An end whose peers may be strangers."""

    def drop(self, peer: int) -> None:
        """Take no more messages from this peer. What is queued for it still leaves; after that it is told of its end."""


class Ranks(Link, Protocol):
    """The manager's end towards its workers."""

    def forget(self, peer: int) -> None:
        """This peer is given up: what is queued for it is dropped, what still comes from it is not received."""
