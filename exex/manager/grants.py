"""What big tasks hold, from their placement until their lead has reported them: slots, memory, accelerators. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from exex.manager.nodes import NodeRecord, WorkerRecord
from exex.protocol.messages import Grant, Share, TaskId
from exex.protocol.request import Request

if TYPE_CHECKING:
    from exex.manager.state import ManagerState
    from exex.manager.task import Task


class Holding:
    """What one attempt holds.

    Attributes:
        lead: the worker that runs it.
        lent: slots of each worker, the lead's included.
        shares: slots, memory and accelerators of each node.
        is_team: the workers themselves take part in a call on a communicator.
    """

    __slots__ = ("is_team", "lead", "lent", "shares")

    def __init__(self, lead: WorkerRecord) -> None:
        self.lead = lead
        self.is_team = False
        self.lent: dict[WorkerRecord, int] = {}
        self.shares: dict[NodeRecord, tuple[int, int, list[str]]] = {}


def take(state: ManagerState, task: Task, request: Request, nodes: Sequence[NodeRecord]) -> Grant:
    """Give a task its share of each node, on all of which one fits; the first becomes the lead's. O(workers there).

    Returns:
        What the lead is told. The attempt itself is still to be assigned to it: see `Holding.lead`.
    """
    shares: list[Share] = []
    holding: Holding | None = None
    for node in nodes:
        workers, gpus = _choose(node, request)
        if holding is None:
            holding = Holding(workers[0][0])
        for worker, slots in workers:
            _lend(state, holding, worker, slots)
        for name in gpus:
            del node.free_gpus[name]
        total = sum(slots for _, slots in workers)
        if node.memory_bytes:
            node.free_memory -= request.memory_bytes
        node.big += 1
        node.big_slots += total
        holding.shares[node] = (total, request.memory_bytes, gpus)
        shares.append(Share(node.name, total, gpus, [worker.rank for worker, _ in workers]))
    assert holding is not None
    state.holdings[task.id] = holding
    return Grant(holding.lent[holding.lead], _cores_of_others(holding, nodes[0]), shares)


def _lend(state: ManagerState, holding: Holding, worker: WorkerRecord, slots: int) -> None:
    holding.lent[worker] = slots
    if worker is holding.lead:
        worker.change_room(1 - slots)  # one of them is for the attempt, which it holds
    else:
        worker.lent += slots
        worker.change_room(-slots)
    state.nodes.touch(worker)


def give_back(state: ManagerState, task: int) -> None:
    """The lead has reported an attempt, or is lost: what it held is free again. O(what it held)."""
    holding = state.holdings.pop(task)
    for worker, slots in holding.lent.items():
        _return_slots(state, holding, worker, slots)
    for node, (slots, memory_bytes, gpus) in holding.shares.items():
        node.big -= 1
        node.big_slots -= slots
        if node.memory_bytes:
            node.free_memory += memory_bytes
        node.give_gpus_back(gpus)
        if node.workers:
            state.nodes.touched[node] = None  # those who had lent here may be lost


def _return_slots(state: ManagerState, holding: Holding, worker: WorkerRecord, slots: int) -> None:
    if worker is holding.lead:
        worker.change_room(slots - 1)
    else:
        worker.lent -= slots
        worker.change_room(slots)
    if holding.is_team:
        worker.in_team = False
    state.nodes.touch(worker)
    state.list_worker(worker)


def leave(state: ManagerState, worker: WorkerRecord, task: TaskId) -> None:
    """An attempt waits for tasks of its own: its slots of the worker that runs it are free. It keeps what else it holds."""
    holding = state.holdings.get(task)
    slots = 1 if holding is None else holding.lent[worker]
    state.waiting[task] = slots
    _change(state, worker, slots)


def come_back(state: ManagerState, worker: WorkerRecord, task: TaskId) -> None:
    """It would go on, or has ended. Nothing happens if it does not wait.

    Tasks that have got its slots meanwhile are queued beyond what the worker may run, and may be taken back.
    """
    slots = state.waiting.pop(task, 0)
    state.returning.pop(task, None)
    if slots:
        _change(state, worker, -slots)
        if worker.held > worker.room:
            state.stock.put(worker, state.now_s)


def _change(state: ManagerState, worker: WorkerRecord, slots: int) -> None:
    worker.change_room(slots)
    if state.nodes.watched:
        state.nodes.touch(worker)
    state.list_worker(worker)


def forget_worker(state: ManagerState, worker: WorkerRecord) -> list[int]:
    """A worker is lost. What it had lent is gone; returns the tasks that miss it, whose leads live."""
    broken = []
    for task, holding in list(state.holdings.items()):
        if holding.lead is worker:
            del holding.lent[worker]
            give_back(state, task)
        elif worker in holding.lent:
            del holding.lent[worker]
            broken.append(task)
    return broken


def _choose(node: NodeRecord, request: Request) -> tuple[list[tuple[WorkerRecord, int]], list[str]]:
    """Workers and how many slots of each, the one that may lead first; names of accelerators."""
    if not request.whole:
        chosen = _choose_slots(node, request)
    else:
        chosen = [(worker, worker.free) for worker in node.workers.values()]
        if not request.gpus:
            return chosen, list(node.free_gpus)
        chosen.sort(key=lambda item: len(item[0].gpus) < request.gpus)
    return chosen, node.free_gpus_of(chosen[0][0])[: request.gpus] if request.gpus else []


def _choose_slots(node: NodeRecord, request: Request) -> list[tuple[WorkerRecord, int]]:
    """Slots of one worker if one has enough; else of few, of as many as possible all that they have."""
    free = [worker for worker in node.workers.values() if worker.free]
    leads = [worker for worker in free if not request.gpus or len(node.free_gpus_of(worker)) >= request.gpus]
    enough = [worker for worker in leads if worker.free >= request.cores]
    if enough:
        return [(min(enough, key=lambda worker: worker.free), request.cores)]
    lead = max(leads, key=lambda worker: worker.free)
    others = [worker for worker in free if worker is not lead]
    others.sort(key=lambda worker: (worker.free < worker.slots, -worker.free))
    left = request.cores - 1  # the lead gives what the others leave, at least one
    chosen: list[tuple[WorkerRecord, int]] = []
    for worker in others:
        if left >= worker.free and left + 1 > lead.free:
            chosen.append((worker, worker.free))
            left -= worker.free
    if left + 1 > lead.free:  # nobody could give all: one gives a part
        given = left + 1 - lead.free
        taken = {worker for worker, _ in chosen}
        worker = next(other for other in others if other not in taken and other.free >= given)
        chosen.append((worker, given))
        left -= given
    return [(lead, left + 1), *chosen]


def _cores_of_others(holding: Holding, node: NodeRecord) -> list[int]:
    """CPU numbers that workers beside the lead contribute on its node; empty unless each gives all that it has."""
    cores: list[int] = []
    for worker in node.workers.values():
        slots = holding.lent.get(worker)
        if slots is None or worker is holding.lead:
            continue
        if slots < worker.slots or not worker.cores:
            return []
        cores += worker.cores
    return cores
