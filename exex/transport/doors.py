"""The manager's end towards its clients where there are two doors: the stream of the job's own script, and the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exex.protocol.payload import Buffer
from exex.transport.base import SCRIPT, Announced, Server

if TYPE_CHECKING:  # every rank imports this module, and few need ZeroMQ
    from exex.transport.curve import CurveServer


class TwoDoors(Announced):
    """See the module docstring. Each door has a descriptor of its own: this one has none.

    Args:
        own: to the script; None if there is none.
        far: to clients that come over the network.
    """

    def __init__(self, own: Server | None, far: CurveServer) -> None:
        self._own = own
        self._far = far
        self._far_first = False

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        if peer != SCRIPT:
            self._far.send(peer - 1, frames)
        elif self._own is not None:
            self._own.send(0, frames)

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`. The doors take turns."""
        self._far_first = not self._far_first
        if self._far_first:
            return self._from_far() or self._from_own()
        return self._from_own() or self._from_far()

    def _from_own(self) -> tuple[int, list[Buffer]] | None:
        arrived = self._own.receive() if self._own is not None else None
        return None if arrived is None else (SCRIPT, arrived[1])

    def _from_far(self) -> tuple[int, list[Buffer]] | None:
        arrived = self._far.receive()
        return None if arrived is None else (arrived[0] + 1, arrived[1])

    def progress(self) -> bool:
        """See `Link.progress`."""
        self._far.progress()
        return self._own is not None and self._own.progress()

    def fileno(self) -> int:
        """See `Link.fileno`: watch those of both."""
        return -1

    def drop(self, peer: int) -> None:
        """See `Server.drop`."""
        if peer != SCRIPT:
            self._far.drop(peer - 1)
        elif self._own is not None:
            self._own.drop(0)

    def close(self) -> None:
        """See `Link.close`."""
        if self._own is not None:
            self._own.close()
        self._far.close()
