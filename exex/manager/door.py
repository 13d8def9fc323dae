"""The way to clients in task processes. Runs in the manager's loop."""

from __future__ import annotations

from exex.manager.state import ClientRecord
from exex.protocol.messages import Rank, TaskId, ToTasks
from exex.protocol.payload import Buffer, Large


class Door:
    """The way to clients in task processes: through the worker that these belong to. Their numbers are negative.

    Attributes:
        records: of those that are attached, by number.
        numbers: of them, by the manager's number of the client.
    """

    def __init__(self) -> None:
        self.records: dict[int, ClientRecord] = {}
        self.numbers: dict[int, int] = {}
        self._places: dict[int, tuple[Rank, int]] = {}  # rank and task process of each
        self._of_rank: dict[Rank, dict[int, int]] = {}  # task process -> number
        self._last = 0
        self._outgoing: dict[Rank, ToTasks] = {}

    def number(self, rank: Rank, process: int) -> int:
        """Of the client there, which may be a new one."""
        known = self._of_rank.setdefault(rank, {})
        number = known.get(process)
        if number is None:
            self._last = number = self._last - 1
            known[process] = number
            self._places[number] = (rank, process)
        return number

    def rank(self, number: int) -> Rank:
        """Of its worker."""
        return self._places[number][0]

    def all_of(self, rank: Rank) -> list[int]:
        """Numbers of all clients there."""
        return list(self._of_rank.get(rank, {}).values())

    def forget(self, number: int) -> ClientRecord | None:
        """It is gone."""
        rank, process = self._places.pop(number)
        del self._of_rank[rank][process]
        client = self.records.pop(number, None)
        if client is not None:
            del self.numbers[client.number]
        return client

    def send(self, number: int, frames: list[Buffer]) -> None:
        """Put a message into the next ToTasks of its worker."""
        place = self._places.get(number)
        if place is not None:
            outgoing = self._outgoing.setdefault(place[0], ToTasks(processes=[], messages=[], seats=[]))
            outgoing.processes.append(place[1])
            outgoing.messages.append(Large(frames) if len(frames) > 1 else frames[0])

    def seat(self, rank: Rank, tasks: list[TaskId]) -> None:
        """Tasks of a worker that have waited may go on."""
        outgoing = self._outgoing.setdefault(rank, ToTasks(processes=[], messages=[], seats=[]))
        outgoing.seats.extend(tasks)

    def take(self) -> dict[Rank, ToTasks]:
        """What is to be sent."""
        outgoing, self._outgoing = self._outgoing, {}
        return outgoing
