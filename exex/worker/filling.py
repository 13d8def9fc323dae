"""Which of a worker's calls goes to which of its slots, and when. Pure, as `state`."""

from __future__ import annotations

from exex.protocol.messages import AppSpec, Kind
from exex.worker import waiting
from exex.worker.cores import cores_of
from exex.worker.running import recover, retire
from exex.worker.slot import NO_APP, SEVERAL_APPS, Call, Slot
from exex.worker.state import WorkerState

AHEAD_S = 0.002
"""Work that a slot may hold, running or queued in its task process, when tasks are short."""

AHEAD_MOST = 256
"""Calls that a slot may hold at the most."""

NEXT_S = 0.02
"""Below this length a slot gets its next task while it still runs one; it is taken back if another slot is idle."""

STUCK_S = 0.005
"""A slot whose calls have not moved for so long shares what it has not started with idle slots."""


def fill(state: WorkerState, now_s: float) -> None:
    """Give queued calls to slots: one to each idle slot first, then more to those that run short tasks.

    Tasks that have waited come before all, then big ones. The manager has seen to it that there is, or will be, a slot for
    everybody.
    """
    if state.returning and not waiting.seat(state, now_s):
        return
    if state.big:
        _fill_big(state, now_s)
    if not state.queue:
        _share(state, now_s)
        if not state.queue:
            return
    reserved = waiting.reserved(state) if state.asked else 0
    for slot in state.slots:
        if not slot.held and slot.ending_s < 0 and slot.helps is None:
            if reserved:
                reserved -= 1
                continue
            _give(state, slot, now_s)
            if not state.queue:
                return
    if state.asked:
        return
    for slot in state.slots:
        if slot.held and slot.condemned is None:
            _give(state, slot, now_s)
            if not state.queue:
                return


def _share(state: WorkerState, now_s: float) -> None:
    """If a slot is idle, take back what a stuck slot has queued. O(slots) and only while nothing is queued here."""
    loaded = [slot for slot in state.slots if len(slot.held) > 1]
    if not loaded or not any(not slot.held and slot.helps is None for slot in state.slots):
        return
    for slot in loaded:
        if now_s - slot.moved_s > STUCK_S:
            recover(state, slot)


def _give(state: WorkerState, slot: Slot, now_s: float) -> None:
    """Give a slot its next calls: as many as AHEAD_S allows, at least one if it is idle."""
    held = len(slot.held)
    queue = state.queue
    if state.inline and may_run_inline(queue[0].spec):
        return
    spec = queue[0].spec
    app = spec.app
    if held and slot.held[-1].grant is not None:
        return  # nothing may be queued that could run with what only this one was granted
    if held and state.waiters and (app in state.waiters or slot.held[-1].spec.app in state.waiters):
        return  # the one before may give its slot away, and this one would have to be taken back
    most = min(_room(state, queue[0].spec, held), -(-len(queue) // len(state.slots)))
    if app in state.waiters:
        most = min(most, 1)
    if state.tasks_per_process:
        most = min(most, state.tasks_per_process - slot.given)
    if most <= 0:
        return
    calls: list[Call] = []
    while queue and len(calls) < most and queue[0].spec.app == app:
        calls.append(queue.popleft())
    _hand_over(slot, calls, now_s)


def _hand_over(slot: Slot, calls: list[Call], now_s: float) -> None:
    app = calls[0].spec.app
    if not slot.held:
        slot.moved_s = now_s
    slot.held.extend(calls)
    slot.given += len(calls)
    slot.app = app if slot.app in (NO_APP, app) else SEVERAL_APPS
    slot.port.give(calls)


# ---- big calls ------------------------------------------------------------------------------------------------


def _fill_big(state: WorkerState, now_s: float) -> None:
    """Give each big call, in order, as many idle slots as it was granted; it runs in the first of them."""
    while state.big:
        call = state.big[0]
        assert call.grant is not None
        idle = [slot for slot in state.slots if slot.is_idle()]
        if len(idle) < call.grant.slots:
            return
        chosen = _neighbours(idle, call.grant.slots)
        if call.spec.memory_bytes is not None:
            clean = [slot for slot in idle if slot.app in (NO_APP, call.spec.app)]
            if not clean:
                if not any(slot.ending_s >= 0 and not slot.held for slot in state.slots):
                    retire(chosen[0], now_s)  # what calls of other apps have left in the process is not to be charged to this one
                return
            lead = next((slot for slot in clean if slot in chosen), clean[0])
            chosen = [lead, *(slot for slot in chosen if slot is not lead)][: call.grant.slots]
        state.big.popleft()
        call.cores = cores_of(state, call.grant, chosen)
        for slot in chosen[1:]:
            slot.helps = call
        _hand_over(chosen[0], [call], now_s)


def _neighbours(idle: list[Slot], count: int) -> list[Slot]:
    """So many idle slots, side by side if there are such: their CPUs are near one another."""
    for i in range(len(idle) - count + 1):
        if idle[i + count - 1].number - idle[i].number == count - 1:
            return idle[i : i + count]
    return idle[:count]


# ---- small calls ----------------------------------------------------------------------------------------------


def may_run_inline(spec: AppSpec) -> bool:
    """Whether a call can do without a task process: nobody can stop it, and bash is started from task processes."""
    return spec.kind != Kind.BASH and spec.walltime_s is None


def _room(state: WorkerState, spec: AppSpec, held: int) -> int:
    """How many calls like this a slot that holds `held` may get now."""
    if not held:
        least = 1
    elif spec.walltime_s is not None:
        return 0  # a task process must not hold it behind another
    else:
        least = 0
    pace = state.paces.get(spec.app)
    if pace is None or spec.walltime_s is not None:
        return least
    most = min(AHEAD_MOST, int(AHEAD_S / (pace + 1e-9)))
    if pace < NEXT_S:
        most = max(most, 2)
    if held > most // 2:
        return 0  # wait until half of it is done: fewer, larger messages
    return max(most - held, least)
