"""Placement: which worker gets which ready task. Runs once per turn; cost O(tasks placed + workers they go to).

Big tasks, which ask for more than one slot, come first: see `packing`. Small ones fill what they leave.
"""

from __future__ import annotations

import math

from exex.manager import keeping, longest, packing
from exex.manager.assigning import give, give_short
from exex.manager.near_data import place_near
from exex.manager.nodes import WorkerRecord
from exex.manager.retraction import retract
from exex.manager.state import ManagerState
from exex.manager.task import LEAST_TASK_S

MESSAGE_S = 10e-6
"""What an Assign and the Done that answers it cost the manager, beside what their tasks cost. Measured, without the network."""


BACKLOG_S = 1.5e-7
"""For each task that waits: a hundredth of what it takes to hand it out alone. Queued for so long, tasks end no later."""

WORKERS_A_TURN = 2048
"""Workers that get small tasks in one turn: some 20 ms, after which the loop listens again, and has learnt how long tasks are."""


def place(state: ManagerState) -> None:
    """Give ready tasks to workers, and see whether what is queued at some would run sooner elsewhere."""
    if state.ready.count and state.now_s >= state.ready.next_sort_s:
        longest.sort(state.ready, state.apps.values(), state.now_s)
    _place(state)
    if state.stock.workers or state.stock.drains:
        retract(state)
    if state.stock.gave:
        state.stock.gave.clear()


def _place(state: ManagerState) -> None:
    """Big ones first; small ones to free slots, evenly, then as prefetch behind short tasks."""
    ready = state.ready
    if len(ready.near):
        place_near(state)
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
    ready, free, busy = state.ready, state.free, state.busy
    left_over = WORKERS_A_TURN
    while ready.count and free and left_over:
        left_over -= _fill_free(state, left_over)
    state.must_place = bool(ready.count and free)
    for left in range(len(busy), 0, -1):
        if not ready.count or not left_over:
            break
        worker = busy.popleft()
        worker.in_busy = False
        if worker.leaving:
            continue
        spare_s = _spare_s(state, worker)
        if spare_s > 0:
            share = max(-(-ready.count // left), _worth_a_message(state))
            if give_short(state, worker, share, spare_s) == share:
                state.list_worker(worker)  # else it is full: its next Done lists it again


def _fill_free(state: ManagerState, most: int) -> int:
    """Give tasks to workers with free slots: to each the same, or as many as are worth a message.

    Returns:
        How many workers were looked at, up to `most`.
    """
    ready, free = state.ready, state.free
    visited: list[WorkerRecord] = []
    worth = _worth_a_message(state)
    for left in range(len(free), max(0, len(free) - most), -1):
        if not ready.count:
            break
        worker = free.pop()  # the last that was busy is the first to look
        worker.in_free = False
        if worker.leaving:
            continue  # it is lost: nobody has looked for it here
        share = -(-ready.count // left)
        give(state, worker, min(share, worker.open - worker.held))
        if share < worth:
            give_short(state, worker, worth - share, _spare_s(state, worker))
        visited.append(worker)
    for worker in reversed(visited):
        state.list_worker(worker)
    return len(visited)


def _worth_a_message(state: ManagerState) -> int:
    """How many tasks like the next ready one a message should carry, at the cost of giving others none.

    With n tasks of length t in messages of c, the last one ends after n/c messages and c tasks: c is the root of n/t messages.
    Fewer than the even share where there are few workers, so this matters only where there are very many. 0: unknown length.
    """
    task = state.ready.first()
    if task is None or task.app is None or task.app.mean_s < 0:
        return 0
    return int(math.sqrt(state.ready.count * MESSAGE_S / (task.app.mean_s + LEAST_TASK_S)))


def prefetch_s(least_s: float, waiting: int) -> float:
    """Seconds of work that may be queued behind each slot while so many small tasks wait; `least_s` is the setting."""
    return max(least_s, waiting * BACKLOG_S) if least_s else 0.0


def _spare_s(state: ManagerState, worker: WorkerRecord) -> float:
    """How many seconds of short tasks a worker may queue beyond its slots.

    None while more than half of what it may hold is left: otherwise each result would be answered by a message with one task, at
    many times the cost. The more tasks wait, the more: see `BACKLOG_S`. None where slots are lent: the worker would run it there.
    None where the rank itself runs a function: it would hear of it too late. None where something was just taken from.
    """
    if worker.lent or worker.in_team or worker in state.stock.gave:
        return 0.0
    full_s = worker.open * prefetch_s(state.prefetch_s, state.ready.count)
    spare_s = full_s - worker.held * LEAST_TASK_S - worker.held_s
    return 0.0 if spare_s < full_s / 2 else spare_s
