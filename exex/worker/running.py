"""What becomes of calls in slots: results, deaths, limits of time and memory. Pure, as `state`; time is an argument."""

from __future__ import annotations

from exex.errors import AppTimeout, MemoryLimitExceeded, ProtocolError, TaskProcessDied, TooManyParents
from exex.protocol import payload as payloads
from exex.protocol.messages import Done, Outcome, TaskId
from exex.worker.slot import Call, Slot
from exex.worker.state import WorkerState

OUTLIER_S = 1e-4
"""Added to ten times the average, the most that one running time counts for: a task that lost its core for a while
must not slow down the next hundred. What is stuck behind a task that really is long is taken back."""

STARTED_S = 0.05
"""A task that runs longer than this is reported as started."""

MEASURE_S = 0.05
"""Pause between two looks at the memory of a task that has a limit; it is longer where looking takes long."""

MEASURE_SHARE = 0.05
"""Share of its time that the template may spend on one slot's measurements."""

LOSSES_TOLERATED = 3
"""How often a call may lose its task process through no fault of its slot before that counts as a failed attempt."""

CONDEMNED_S = 1.0
"""Patience with a slot that holds unreported results before the task that must be killed."""


def on_slot_done(state: WorkerState, slot: Slot, msg: Done, now_s: float) -> None:
    """Results of a task process, in the order in which it was given the calls."""
    held, paces, peaks = slot.held, state.paces, msg.peaks
    for i, (task, outcome, payload, seconds) in enumerate(zip(msg.tasks, msg.outcomes, msg.payloads, msg.seconds)):
        call = held.popleft()
        if call.task != task:
            raise ProtocolError(f"slot {slot.number} reports task {task} before {call.task}")
        number = call.spec.app
        pace = paces.get(number)
        paces[number] = seconds if pace is None else pace + (min(seconds, 10 * pace + OUTLIER_S) - pace) * 0.05
        value = payload
        if slot.condemned == task:
            slot.condemned = None
            if slot.ending_s >= 0 and outcome == slot.sentence == Outcome.FAILED:
                value = payloads.dump_error(_exceeded(state, slot, call), "")  # what it had started was told to end first
        state.report(call, outcome, value, seconds, slot.number, peaks.get(i, 0) if peaks else 0)
        if call.grant is not None:
            free_helpers(state, call)
    slot.moved_s = now_s
    if slot.waits_s >= 0:
        slot.waits_s = now_s  # what was reported has run before
    execute_sentence(slot, now_s)
    if not held and slot.ending_s < 0 and 0 < state.tasks_per_process <= slot.given:
        retire(slot, now_s)


def on_measured(state: WorkerState, slot: Slot, used_bytes: int, seconds: float, now_s: float) -> None:
    """What a slot's task process and all that it has started use, and how long it took to find out."""
    call, slot.measured = slot.measured, None
    slot.measure_s = now_s + max(MEASURE_S, seconds / MEASURE_SHARE)
    if call is None or not slot.held or slot.held[0] is not call or slot.condemned is not None or slot.ending_s >= 0:
        return
    if call.spec.memory_bytes is not None and used_bytes > call.spec.memory_bytes:
        slot.used_bytes = used_bytes
        recover(state, slot)
        condemn(slot, call.task, Outcome.FAILED, now_s)


def on_slot_died(  # noqa: PLR0917
    state: WorkerState, slot: Slot, exitcode: int, stderr_tail: str, now_s: float, blameless: str = ""
) -> None:
    """The task process is gone. All that it reported must have been handled before.

    What it had not started goes back to the front of the queue, and so does what it had run but not reported, and what it
    was running if nobody here is to blame.

    Args:
        blameless: "its template has ended", or the like, if that was not for anything that this slot ran.
    """
    recover(state, slot)
    running = slot.held.pop() if slot.held else None
    while slot.held:
        state.queue.appendleft(slot.held.pop())
    if running is not None:
        free_helpers(state, running)
        seconds = (now_s if slot.waits_s < 0 else slot.waits_s) - slot.moved_s
        sentence = slot.sentence if slot.ending_s >= 0 and running.task == slot.condemned else -1
        if sentence == Outcome.CANCELLED:
            state.report(running, Outcome.CANCELLED, b"", seconds, slot.number)
        elif sentence == Outcome.FAILED:
            error = _exceeded(state, slot, running)
            state.report(running, Outcome.FAILED, payloads.dump_error(error, ""), seconds, slot.number, slot.used_bytes)
        elif blameless and running.losses < LOSSES_TOLERATED:
            running.losses += 1
            if slot.waits_s < 0 or slot in state.returning or running.task in state.left:
                state.put_first(running)
            else:
                state.to_begin_again[running.task] = running
        else:
            died = _died(state, running, exitcode, stderr_tail, blameless)
            state.report(running, Outcome.LOST, payloads.dump_error(died, ""), seconds, slot.number)
    if slot.waits_s >= 0 and running is not None:
        state.forget_waiting(slot, running)
    slot.reset()
    slot.moved_s = now_s


def _exceeded(state: WorkerState, slot: Slot, call: Call) -> Exception:
    """The error of a task that was stopped at one of its limits."""
    title, limit_bytes = f"{call.title()} was stopped on {state.place()}", call.spec.memory_bytes
    if slot.crowd:
        text = f"it would have waited for tasks that it had made, as {slot.crowd} others of this worker do, and no more may"
        ways = "ask for more by --max-parents N if there is memory for their processes, make fewer levels, or use a join_app"
        return TooManyParents(f"{title}: {text}: {ways}", slot.crowd)
    if not slot.used_bytes or limit_bytes is None:
        return AppTimeout(f"{title}: it ran longer than its walltime, {call.spec.walltime_s} s")
    used, limit = _megabytes(slot.used_bytes), _megabytes(limit_bytes)
    return MemoryLimitExceeded(
        f"{title}: it and what it had started used {used} of memory, more than its limit of {limit} (memory={limit_bytes})",
        slot.used_bytes,
        limit_bytes,
    )


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:.1f} MiB"


def _died(state: WorkerState, call: Call, exitcode: int, stderr_tail: str, blameless: str) -> TaskProcessDied:
    import signal

    if blameless:
        how = f"ended {call.losses + 1} times through no fault of its own: {blameless}"
    elif exitcode < 0:
        try:
            how = f"was killed by {signal.Signals(-exitcode).name}"
        except ValueError:
            how = f"was killed by signal {-exitcode}"
    else:
        how = f"ended with exit code {exitcode}"
    tail = f"; its stderr ends:\n{stderr_tail}" if stderr_tail else ""
    return TaskProcessDied(
        f"{call.title()} is lost: its task process on {state.place()} {how}{tail}", state.rank, state.node, exitcode, stderr_tail
    )


def recover(state: WorkerState, slot: Slot) -> None:
    """Move what a slot has not started back to the front of the queue."""
    for _ in range(min(slot.port.take_back(), len(slot.held))):
        call = slot.held.pop()
        slot.given -= 1
        free_helpers(state, call)
        state.put_first(call)


def free_helpers(state: WorkerState, call: Call) -> None:
    """A big call does not hold the slots beside its own any more."""
    if call.grant is not None and call.grant.slots > 1:
        for slot in state.slots:
            if slot.helps is call:
                slot.helps = None


def condemn(slot: Slot, task: TaskId, outcome: int, now_s: float) -> None:
    """A task that a slot has started must end. What the slot has not started was taken back before."""
    if slot.condemned is None:
        slot.condemned = task
        slot.sentence = outcome
        slot.condemned_s = now_s
        execute_sentence(slot, now_s)


def execute_sentence(slot: Slot, now_s: float) -> None:
    """End the task process of a condemned task once nothing else is held there, or once patience is over."""
    if slot.condemned is None or slot.ending_s >= 0:
        return
    if len(slot.held) == 1 or now_s - slot.condemned_s > CONDEMNED_S:
        slot.ending_s = now_s
        slot.killed = slot.used_bytes > 0  # in a grace time it could use up what its neighbours have
        slot.port.kill(gently=not slot.killed)


def retire(slot: Slot, now_s: float) -> None:
    """End a task process that holds nothing, so that the next call starts a new one."""
    slot.ending_s = now_s
    slot.killed = True
    slot.port.kill(gently=False)


# ---- time -----------------------------------------------------------------------------------------------------


def on_tick(state: WorkerState, now_s: float) -> None:
    """Time limits, SIGKILL after the grace time, notices of long tasks. Call it some ten times a second. O(slots)."""
    for slot in state.places():
        if slot.ending_s >= 0:
            if not slot.killed and now_s - slot.ending_s >= state.grace_s:
                slot.killed = True
                slot.port.kill(gently=False)
            continue
        execute_sentence(slot, now_s)
        if not slot.held:
            continue
        head = slot.held[0]
        running_s = now_s - slot.moved_s
        if head.spec.walltime_s is not None and running_s >= head.spec.walltime_s and slot.waits_s < 0:
            recover(state, slot)
            condemn(slot, head.task, Outcome.FAILED, now_s)
            continue
        if head.spec.memory_bytes is not None and slot.measured is None and now_s >= slot.measure_s:
            slot.measured = head
            slot.port.measure(head.spec.memory_bytes)
        if running_s >= STARTED_S and not head.announced:
            head.announced = True
            state.started.append(head.task)
