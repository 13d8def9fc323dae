"""Tasks that wait for tasks of their own: meanwhile their slots run others. Pure, as `state`.

A task that waits keeps its process, which leaves its slot to another one. When it is to go on it stands before everything that
has not begun, and takes the first slots that come free. So no slot ever runs two; and since whoever runs ends or waits, whoever
is to go on does.
"""

from __future__ import annotations

from exex.protocol.messages import Outcome, TaskId
from exex.worker.cores import cores_of
from exex.worker.running import condemn, execute_sentence, free_helpers, recover, retire
from exex.worker.slot import Call, Slot
from exex.worker.state import WorkerState

SPARE_S = 5.0
"""A process without a task is kept for so long for the next task that waits; it is as good as one that has just run a task."""


def on_left(state: WorkerState, slot: Slot, task: TaskId, now_s: float) -> None:
    """The task that a process runs waits. What it has reported before must have been handled."""
    if state.new_place is None or slot.waits_s >= 0 or slot.ending_s >= 0:
        return
    recover(state, slot)
    if not slot.held or slot.held[-1].task != task:
        return  # it was said too late to be true
    call = slot.held[-1]
    if 0 < state.most_parents <= len(state.waiting):
        slot.crowd = len(state.waiting)
        condemn(slot, task, Outcome.FAILED, now_s)
        return
    state.waiters.add(call.spec.app)
    slot.waits_s = now_s
    state.waiting[slot] = None
    free_helpers(state, call)
    spare = state.spare.get(slot.number)
    state.slots[slot.number] = spare.pop() if spare else state.new_place(slot.number)
    state.note_left(task)
    execute_sentence(slot, now_s)


def on_back(state: WorkerState, slot: Slot) -> None:
    """A task that waits would go on. Nothing that has not begun may come before it.

    The manager is asked: it may have lent its slots to a task of another worker, which only it knows.
    """
    task = slot.held[-1].task if slot.held else -1
    if slot.waits_s < 0:
        slot.port.go_on([], [])  # nobody has taken its slot
        return
    if slot in state.returning or task in state.asked:
        return
    if task in state.left:  # nobody knows that it has waited
        state.returning.append(slot)
    else:
        state.asked[task] = slot
    state.note_back(task)
    for other in state.slots:
        if len(other.held) > 1:
            recover(state, other)


def on_seat(state: WorkerState, task: TaskId) -> None:
    """A task may have slots again. Its process may have ended meanwhile: if it is to begin again, it does so now."""
    slot, call = state.asked.pop(task, None), state.to_begin_again.pop(task, None)
    if slot is not None:
        state.returning.append(slot)
    elif call is not None:
        state.put_first(call)


def reserved(state: WorkerState) -> int:
    """Slots that are about to be those of tasks that would go on."""
    calls = [slot.held[-1] for slot in state.asked.values()]
    return sum(call.grant.slots if call.grant is not None else 1 for call in calls)


def seat(state: WorkerState, now_s: float) -> bool:
    """Let tasks that are to go on have the slots that are idle, in order. Whether all of them have some now."""
    while state.returning:
        slot = state.returning[0]
        call = slot.held[-1]
        wanted = call.grant.slots if call.grant is not None else 1
        idle = [other for other in state.slots if other.is_idle()]
        if len(idle) < wanted:
            return False
        idle.sort(key=lambda other: other.number != slot.number)
        _take_place(state, slot, call, idle[:wanted], now_s)
    return True


def _take_place(state: WorkerState, slot: Slot, call: Call, chosen: list[Slot], now_s: float) -> None:
    own = chosen[0]
    state.returning.popleft()
    del state.waiting[slot]
    own.moved_s = now_s  # from here on it is spare
    state.spare.setdefault(own.number, []).append(own)
    slot.number = own.number
    state.slots[slot.number] = slot
    for other in chosen[1:]:
        other.helps = call
    slot.moved_s += now_s - slot.waits_s
    slot.waits_s = -1.0
    home = state.slot_cores[slot.number] if state.slot_cores else []
    if call.grant is not None:
        call.cores = cores_of(state, call.grant, [slot, *chosen[1:]])
    slot.port.go_on(home, home if call.grant is None else call.cores)


def forget(state: WorkerState, slot: Slot) -> None:
    """A process without a slot has died."""
    for places in state.spare.values():
        if slot in places:
            places.remove(slot)


def end_spares(state: WorkerState, now_s: float) -> None:
    """End processes that were not needed for a while. Cost: O(those without a task)."""
    for number, places in list(state.spare.items()):
        for place in places:
            if now_s - place.moved_s > SPARE_S:
                retire(place, now_s)
        left = [place for place in places if place.ending_s < 0]
        if left:
            state.spare[number] = left
        else:
            del state.spare[number]
