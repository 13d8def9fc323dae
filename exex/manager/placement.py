"""Placement: which worker gets which ready task. Runs once per turn; cost O(tasks placed + workers they go to).

Big tasks, which ask for more than one slot, come first: see `packing`. Small ones fill what they leave.
"""

from __future__ import annotations

from exex.manager import keeping, packing
from exex.manager.assigning import give
from exex.manager.nodes import WorkerRecord
from exex.manager.state import ManagerState

LEAST_TASK_S = 20e-6
"""What the shortest task costs a slot, overhead included. Measured; only the size of the prefetch depends on it."""


def place(state: ManagerState) -> None:
    """Give ready tasks to workers: big ones first; small ones to free slots, evenly, then as prefetch behind short tasks."""
    ready = state.ready
    if not ready.line.in_use:
        _place_small(state)
        return
    packing.note_arrivals(state)
    packing.place_big(state)
    waiting = ready.count
    _place_small(state)
    keeping.fill_kept(state)
    packing.note_small(state, waiting - ready.count)


def _place_small(state: ManagerState) -> None:
    ready, free = state.ready, state.free
    while ready.count and free:
        visited: list[WorkerRecord] = []
        for left in range(len(free), 0, -1):
            if not ready.count:
                break
            worker = free.pop()  # the last that was busy is the first to look
            worker.in_free = False
            give(state, worker, min(-(-ready.count // left), worker.open - worker.held))
            visited.append(worker)
        for worker in reversed(visited):
            state.list_worker(worker)
    busy = state.busy
    for left in range(len(busy), 0, -1):
        if not ready.count:
            break
        worker = busy.popleft()
        worker.in_busy = False
        share = -(-ready.count // left)
        room = _prefetch_room(state, worker)
        if room > 0:
            give(state, worker, min(share, room))
        if room > share:
            state.list_worker(worker)  # else it is full: its next Done lists it again


def _prefetch_room(state: ManagerState, worker: WorkerRecord) -> int:
    """How many tasks like the next ready one a worker may queue beyond its slots.

    None of unknown length: a task that may be long must go where a slot is free. None while more than half of what it
    may hold is left: otherwise each result would be answered by a message with one task, at many times the cost. None
    where slots are lent: the worker would run it there. None where the rank itself runs a function: it would hear of it too late.
    """
    task = state.ready.first()
    if task is None or task.app is None or task.app.mean_s < 0 or worker.lent or worker.in_team:
        return 0
    full_s = worker.open * state.prefetch_s
    spare_s = full_s - worker.held * LEAST_TASK_S - worker.held_s
    if spare_s < full_s / 2:
        return 0
    return int(spare_s / (task.app.mean_s + LEAST_TASK_S))
