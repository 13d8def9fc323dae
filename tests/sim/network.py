"""The network of a simulation."""

from __future__ import annotations

from collections.abc import Callable

from exex.transport.base import Link
from exex.transport.memory import InProcess, Network
from tests.sim.played_client import CLIENT_BASE


class SimNetwork(Network):
    """A network that can be told not to be late."""

    def deliver(self, sender: int, receiver: int) -> None:
        """Let all messages of one link arrive."""
        for frames in self._under_way.pop((sender, receiver), ()):
            self._ends[receiver].arrived.append((sender, frames))


class ManagersEnd(InProcess):
    """The manager's, seen as a link to workers only or to clients only."""

    def __init__(self, end: Link, workers: bool, queues: dict[bool, list], on_heard: Callable[[int], None]) -> None:
        self.end, self.workers, self.queues, self.on_heard = end, workers, queues, on_heard

    def send(self, peer: int, frames: list) -> None:
        self.end.send(peer, frames)

    def receive(self) -> tuple[int, list] | None:
        while (arrived := self.end.receive()) is not None:
            self.queues[arrived[0] < CLIENT_BASE].append(arrived)
        mine = self.queues[self.workers]
        if not mine:
            return None
        self.on_heard(mine[0][0])
        return mine.pop(0)

    def drop(self, peer: int) -> None:
        self.end.drop(peer)  # type: ignore[attr-defined]

    def forget(self, peer: int) -> None:
        """Nothing: late messages of a lost rank must do no harm."""

    def close(self) -> None:
        self.end.close()
