"""Placement of small tasks where their data is. Runs before that of the others. Pure.

Cost: O(tasks placed + stores where something has changed).
"""

from __future__ import annotations

from itertools import islice

from exex.manager.assigning import assign, fits_in_time
from exex.manager.near import preferred
from exex.manager.nodes import WorkerRecord
from exex.manager.records import StoreRecord
from exex.manager.state import ManagerState
from exex.manager.task import Task

LOOKED_AT = 8
"""Ranks of a store of which one with a free slot is looked for; the next time, the next ones."""


def wait_near(state: ManagerState, task: Task) -> bool:
    """Let a task wait for a slot where most of its data is, if that is likely to be sooner than the data would be elsewhere."""
    assert task.app is not None
    if len(state.data.stores) < 2 or task.app.request is not None or task.id in state.ready.affinity:
        return False
    found = preferred(task)
    if found is None:
        return False
    store, patience_s = found
    if _soonest_s(state, store) > patience_s:
        return False
    state.ready.push_near(task, store, state.now_s + patience_s)
    return True


def _soonest_s(state: ManagerState, store: StoreRecord) -> float:
    """How long until a slot comes free there, as far as some of its ranks tell."""
    workers = [state.workers[rank] for rank in islice(store.ranks, LOOKED_AT)]
    return min((_slot_in_s(worker) for worker in workers if not worker.leaving and worker.open), default=1e9)


def _slot_in_s(worker: WorkerRecord) -> float:
    """Until one of its slots is free: what it holds, over its slots, but of those that run half is over."""
    if worker.held < worker.open:
        return 0.0
    return worker.held_s / worker.open / 2


def place_near(state: ManagerState) -> None:
    """Give tasks to free slots where their data is; those that have waited long enough go into the queue."""
    ready = state.ready
    touched, ready.near.touched = ready.near.touched, {}
    for store in touched:
        _place_at(state, store)
    for task in ready.near.take_impatient(state.now_s):
        ready.add(task)


def _place_at(state: ManagerState, store: StoreRecord) -> None:
    near = state.ready.near
    for rank in list(islice(store.ranks, LOOKED_AT)):
        task = near.first(store)
        if task is None:
            return
        worker = state.workers[rank]
        while task is not None and not worker.leaving and worker.held < worker.open:
            near.take(task.id)
            assert task.app is not None
            if not fits_in_time(state, task.app) or not state.ready.has_turn(task):
                state.ready.add(task)
            else:
                assign(state, worker, [task])
            task = near.first(store)
        del store.ranks[rank]  # the next ones are looked at first, the next time
        store.ranks[rank] = None
