"""What the manager remembers of tasks that are queued at workers, and of those that it has asked back. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from exex.protocol.messages import Rank, Retract, TaskId

if TYPE_CHECKING:
    from exex.manager.nodes import WorkerRecord

MOST_RETURNS = 4
"""How often one task may come back: so often it is queued at the most, and afterwards it waits where it is."""


class Stock:
    """Tasks queued at workers.

    Attributes:
        workers: those that may hold more than they run: how much they held when it was last looked at, and since when that is
            so; since minus infinity: with so much, nothing came back.
        drains: those that are to hold no more than they run, because their node is kept for a big task.
        asked: what was asked back and not answered yet, by the rank that was asked. One question at a time for each.
        gave: workers from which something came back since the last placement: it is for others.
        returns: of unfinished tasks, how often they have come back.
        returned: how many have, in all.
        outgoing: questions of this turn.
        next_look_s: when queues may be looked at again.
        must_look: something may have changed since the last look, or may be asked for at the next one.
        is_behind: messages of workers wait that the manager has not read in this turn.
        turned_s: when the last turn began, and `gap_s`, how long that was after the one before.
        lowest: the highest priority number of any app: what has it, nothing has to make way for.
    """

    __slots__ = (
        "asked", "drains", "gap_s", "gave", "is_behind", "lowest", "must_look", "next_look_s", "outgoing", "returned", "returns",
        "turned_s", "workers",
    )  # fmt: skip

    def __init__(self) -> None:
        self.workers: dict[WorkerRecord, tuple[int, float]] = {}
        self.drains: dict[WorkerRecord, None] = {}
        self.asked: dict[Rank, frozenset[TaskId]] = {}
        self.gave: set[WorkerRecord] = set()
        self.returns: dict[TaskId, int] = {}
        self.returned = 0
        self.outgoing: list[tuple[Rank, Retract]] = []
        self.next_look_s = 0.0
        self.must_look = False
        self.is_behind = False
        self.turned_s = self.gap_s = 0.0
        self.lowest = -(1 << 63)

    def put(self, worker: WorkerRecord, now_s: float) -> None:
        """A worker has got tasks beyond what it runs, because it has ended some."""
        self.workers[worker] = (worker.held, now_s)

    def forget(self, worker: WorkerRecord) -> None:
        """A worker is lost."""
        self.workers.pop(worker, None)
        self.drains.pop(worker, None)
        self.gave.discard(worker)
        if self.asked.pop(worker.rank, None) is not None:
            self.outgoing = [(rank, question) for rank, question in self.outgoing if rank != worker.rank]

    def moves(self, worker: WorkerRecord, now_s: float) -> float:
        """For how long a worker has held as much as now; renewed if it holds another number. -inf: it gave nothing back."""
        held, since_s = self.workers[worker]
        if held != worker.held:
            self.workers[worker] = (worker.held, now_s)
            return 0.0
        return now_s - since_s if since_s > -math.inf else -math.inf

    def in_vain(self, worker: WorkerRecord) -> None:
        """Nothing came back: do not ask again before it holds another number."""
        if worker in self.workers:
            self.workers[worker] = (worker.held, -math.inf)
