"""What a worker holds and which slot runs what. Pure: slots are reached through `SlotPort`, time is an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from exex.errors import AppTimeout, MemoryLimitExceeded, ProtocolError, StoreFull, TaskProcessDied
from exex.protocol import payload as payloads
from exex.protocol.messages import (
    CLIENT_SHIFT,
    AppSpec,
    Assign,
    Done,
    Drop,
    Grant,
    Join,
    Outcome,
    Rank,
    Returned,
    TaskId,
)
from exex.protocol.payload import Payload

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

NOTHING: Mapping[int, set[str]] = {}
"""Nothing is lacking."""

CONDEMNED_S = 1.0
"""Patience with a slot that holds unreported results before the task that must be killed."""


class Call:
    """One attempt at this worker.

    Attributes:
        grant: what it may use, of a big one; None for one slot.
        cores: CPU numbers that it was given, once it has its slots; empty where they are not bound.
    """

    __slots__ = ("announced", "attempt", "cores", "grant", "losses", "payload", "spec", "task", "values")

    def __init__(  # noqa: PLR0917
        self,
        task: TaskId,
        attempt: int,
        spec: AppSpec,
        payload: Payload,
        values: list[Payload] | None,
        grant: Grant | None = None,
    ) -> None:
        self.task = task
        self.attempt = attempt
        self.spec = spec
        self.payload = payload
        self.values = values
        self.grant = grant
        self.cores: list[int] = []
        self.announced = False
        self.losses = 0

    def title(self) -> str:
        """For messages to people: number, app, attempt."""
        return f"task {self.task & ((1 << CLIENT_SHIFT) - 1)} ({self.spec.name}), attempt {self.attempt},"


class SlotPort(Protocol):
    """What a slot can be told; the task process behind it is started when it is first needed."""

    def give(self, calls: list[Call]) -> None:
        """Queue calls in the slot's task process."""

    def take_back(self) -> int:
        """Stop the task process from starting more of what it was given; how many it has not started."""

    def kill(self, gently: bool) -> None:
        """SIGTERM (gently) or SIGKILL to the task process and all that it has started. `on_slot_died` follows."""

    def measure(self, limit_bytes: int) -> None:
        """Ask for the memory of the task process and all that it has started. `on_measured` follows, or `on_slot_died`."""

    def go_on(self, home: list[int], cores: list[int]) -> None:
        """The task that waited may go on, on these CPUs, and later ones of this process on those of its slot, `home`; none: on
        those that they have.
        """


class Slot:
    """A task process and its place: what it holds, in order; the first unreported ones have run or run now.

    There are as many with a slot of the worker as that has slots. One whose task waits has none: see `waiting`.

    Attributes:
        number: of the worker's slot.
        moved_s: when a call was last given to an empty slot, or reported.
        condemned: the task that must be killed as soon as no other can be hit; the outcome that it then gets; since when.
        ending_s: since when the task process has been told to end; negative if it has not.
        killed: it has also got SIGKILL.
        given: calls that the task process has been given since it was started, without those taken back.
        app: of all calls that it was given; `NO_APP` before the first, `SEVERAL_APPS` where there were several.
        helps: the big call that holds it, of another slot.
        measured: the call whose memory is being looked at.
        measure_s: no look at its memory before.
        waits_s: since when its task has waited without a slot; negative if it does not.
        used_bytes: memory of the condemned task, if that is why.
    """

    __slots__ = (
        "app",
        "condemned",
        "condemned_s",
        "ending_s",
        "given",
        "held",
        "helps",
        "killed",
        "measure_s",
        "measured",
        "moved_s",
        "number",
        "port",
        "sentence",
        "used_bytes",
        "waits_s",
    )

    def __init__(self, number: int, port: SlotPort) -> None:
        self.number = number
        self.port = port
        self.held: deque[Call] = deque()
        self.moved_s = 0.0
        self.sentence = -1
        self.condemned_s = 0.0
        self.measure_s = 0.0
        self.waits_s = -1.0
        self.helps: Call | None = None
        self.reset()

    def is_idle(self) -> bool:
        """Whether it can be given a call now."""
        return not self.held and self.ending_s < 0 and self.helps is None

    def reset(self) -> None:
        """For a new task process."""
        self.condemned: TaskId | None = None
        self.ending_s = -1.0
        self.killed = False
        self.given = 0
        self.app = NO_APP
        self.measured: Call | None = None
        self.used_bytes = 0


NO_APP, SEVERAL_APPS = -1, -2


@dataclass
class WorkerState:
    """All that a worker rank knows.

    Attributes:
        inline: calls that need no process of their own are left in the queue, for the loop to run.
        queue: calls that no slot holds yet, in order; `big`: those that hold more than a slot, or nothing may stand behind.
        slot_cores: CPU numbers to which each slot is bound; empty if they are not.
        paces: per app, a moving average of the running time, in seconds.
        tasks_per_process: after so many a task process is replaced; 0: never.
        joins: calls on communicators that this rank is to lead, and that have not come yet.
        parts: calls on communicators in which it is to take part now; with the call where it leads.
        aside: calls that need stored payloads which are not here yet; with the names of these.
        new_place: makes a further place for a slot's number, where a task of it waits; None: tasks that wait keep their slots.
        waiting: places without a slot, whose tasks wait.
        asked: those of them that would go on, and that the manager has not allowed slots yet; returning: the others, in order.
        to_begin_again: calls that have waited, and whose processes were lost: to be queued when the manager allows them slots.
        spare: places without a task, by the number of the slot for which they were made.
        waiters: apps of which tasks have waited: their tasks are not queued behind others, nor others behind them.
    """

    rank: Rank
    node: str
    ports: list[SlotPort]
    grace_s: float = 2.0
    inline: bool = False
    tasks_per_process: int = 0
    slots: list[Slot] = field(init=False)
    queue: deque[Call] = field(default_factory=deque)
    big: deque[Call] = field(default_factory=deque)
    slot_cores: list[list[int]] = field(default_factory=list)
    apps: dict[int, AppSpec] = field(default_factory=dict)
    functions: dict[bytes, Payload] = field(default_factory=dict)
    paces: dict[int, float] = field(default_factory=dict)
    tasks_run: int = 0
    joins: dict[TaskId, Join] = field(default_factory=dict)
    parts: deque[tuple[Join, Call | None]] = field(default_factory=deque)
    aside: dict[TaskId, tuple[Call, set[str]]] = field(default_factory=dict)
    new_place: Callable[[int], Slot] | None = None
    waiting: dict[Slot, None] = field(default_factory=dict)
    asked: dict[TaskId, Slot] = field(default_factory=dict)
    returning: deque[Slot] = field(default_factory=deque)
    to_begin_again: dict[TaskId, Call] = field(default_factory=dict)
    spare: dict[int, list[Slot]] = field(default_factory=dict)
    waiters: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.left: dict[TaskId, None] = {}
        self.back: dict[TaskId, None] = {}
        self.slots = [Slot(number, port) for number, port in enumerate(self.ports)]
        self._clear_done()
        self._returned: list[TaskId] | None = None

    def places(self) -> Iterator[Slot]:
        """All that may hold calls: those with a slot, and those whose tasks wait."""
        return chain(self.slots, tuple(self.waiting)) if self.waiting else iter(self.slots)

    # ---- what is to be reported ----

    def _clear_done(self) -> None:
        self.tasks: list[TaskId] = []
        self.outcomes = bytearray()
        self.payloads: list[Payload] = []
        self.seconds: list[float] = []
        self.started: list[TaskId] = []
        self.ran_in: list[int] = []
        self.peaks: dict[int, int] = {}

    def report(  # noqa: PLR0917
        self, call: Call, outcome: int, payload: Payload, seconds: float = 0.0, slot: int = -1, peak_bytes: int = 0
    ) -> None:
        """Put the end of an attempt into the next Done; `slot`: where it ran, -1: nowhere."""
        self.tasks_run += 1
        if peak_bytes:
            self.peaks[len(self.tasks)] = peak_bytes
        self.ran_in.append(slot)
        self.tasks.append(call.task)
        self.outcomes.append(outcome)
        self.payloads.append(payload)
        self.seconds.append(seconds)

    def take_done(self) -> Done | None:
        """The next Done, if there is anything to report."""
        if not self.tasks and not self.started:
            return None
        done = Done(
            tasks=self.tasks,
            outcomes=bytes(self.outcomes),
            payloads=self.payloads,
            seconds=self.seconds,
            started=self.started,
            slots=self.ran_in if len(self.slots) > 1 else [],
            peaks=self.peaks,
        )
        self._clear_done()
        return done

    def give_back(self, tasks: list[TaskId]) -> None:
        """Put calls that are not here any more into the next Returned."""
        self._returned = (self._returned or []) + tasks

    def take_returned(self) -> Returned | None:
        """The next Returned, if the manager has asked for anything."""
        returned, self._returned = self._returned, None
        return None if returned is None else Returned(tasks=returned)

    def place(self) -> str:
        """Where this worker is, for messages to people."""
        return f"rank {self.rank} at {self.node}"


# ---- from the manager -----------------------------------------------------------------------------------------


def on_assign(state: WorkerState, msg: Assign, lacking: Mapping[int, set[str]] = NOTHING) -> None:
    """Queue attempts.

    Args:
        lacking: i -> names of stored payloads that tasks[i] needs and that are not here yet: it stands aside until `on_arrived`.

    Raises:
        ProtocolError: an app that was never named.
    """
    for spec in msg.apps:
        state.apps[spec.app] = spec
    state.functions.update(msg.functions)
    try:
        specs = [state.apps[number] for number in msg.calls]
    except KeyError as error:
        raise ProtocolError(f"the manager assigns app {error}, which it never named") from None
    if len(specs) == 1:
        specs *= len(msg.tasks)
    if msg.grants or lacking:
        _queue_one_by_one(state, msg, specs, lacking)
    elif msg.values or msg.attempts:
        values, attempts = msg.values, msg.attempts
        state.queue.extend(
            Call(task, attempts.get(i, 1), spec, payload, values.get(i))
            for i, (task, spec, payload) in enumerate(zip(msg.tasks, specs, msg.payloads, strict=True))
        )
    else:
        state.queue.extend(
            Call(task, 1, spec, payload, None) for task, spec, payload in zip(msg.tasks, specs, msg.payloads, strict=True)
        )


def _queue_one_by_one(state: WorkerState, msg: Assign, specs: list[AppSpec], lacking: Mapping[int, set[str]]) -> None:
    for i, (task, spec, payload) in enumerate(zip(msg.tasks, specs, msg.payloads, strict=True)):
        call = Call(task, msg.attempts.get(i, 1), spec, payload, msg.values.get(i), msg.grants.get(i))
        if i in lacking:
            state.aside[task] = (call, lacking[i])
        else:
            _queue(state, call)


def _queue(state: WorkerState, call: Call) -> None:
    join = state.joins.pop(call.task, None)
    if join is not None:
        state.parts.append((join, call))
    else:
        (state.queue if call.grant is None else state.big).append(call)


def on_arrived(state: WorkerState, name: str, is_here: bool, why: str = "") -> None:
    """A stored payload is here now, or cannot be had: because there is no room for it here (`why`), or as it was not where
    it was said to be.
    """
    for call, names in [aside for aside in state.aside.values() if name in aside[1]]:
        names.discard(name)
        if is_here and names:
            continue
        del state.aside[call.task]
        if is_here:
            _queue(state, call)
        elif why:
            error = StoreFull(f"{call.title()} cannot run on {state.place()}: {why}")
            state.report(call, Outcome.FAILED, payloads.dump_error(error, ""))
        else:
            state.report(call, Outcome.STARVED, b"")


def on_join(state: WorkerState, msg: Join) -> None:
    """Take part in a call on a communicator, as soon as it is there if this rank leads."""
    if msg.runs[0] == state.rank:
        state.joins[msg.task] = msg
    else:
        state.parts.append((msg, None))


def on_drop(state: WorkerState, msg: Drop, now_s: float) -> None:
    """Forget queued calls, kill running ones."""
    wanted = set(msg.tasks)
    for slot in state.places():
        if wanted and any(call.task in wanted for call in slot.held):
            recover(state, slot)
            for call in slot.held:
                if call.task in wanted:
                    wanted.discard(call.task)
                    _condemn(slot, call.task, Outcome.CANCELLED, now_s)
    for task in wanted & state.to_begin_again.keys():
        wanted.discard(task)
        state.report(state.to_begin_again.pop(task), Outcome.CANCELLED, b"")
    for task in wanted & state.aside.keys():
        call, _ = state.aside.pop(task)
        wanted.discard(task)
        state.report(call, Outcome.CANCELLED, b"")
    if wanted:
        for queue in (state.queue, state.big):
            for call in [call for call in queue if call.task in wanted]:
                queue.remove(call)
                state.report(call, Outcome.CANCELLED, b"")


# ---- from the slots -------------------------------------------------------------------------------------------


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
        state.report(call, outcome, payload, seconds, slot.number, peaks.get(i, 0) if peaks else 0)
        if call.grant is not None:
            free_helpers(state, call)
        if slot.condemned == task:
            slot.condemned = None
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
        _condemn(slot, call.task, Outcome.FAILED, now_s)


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
                put_first(state, running)
            else:
                state.to_begin_again[running.task] = running
        else:
            died = _died(state, running, exitcode, stderr_tail, blameless)
            state.report(running, Outcome.LOST, payloads.dump_error(died, ""), seconds, slot.number)
    if slot.waits_s >= 0 and running is not None:
        forget_waiting(state, slot, running)
    slot.reset()
    slot.moved_s = now_s


def put_first(state: WorkerState, call: Call) -> None:
    """Queue a call that is to begin again."""
    (state.queue if call.grant is None else state.big).appendleft(call)


def forget_waiting(state: WorkerState, slot: Slot, call: Call) -> None:
    """A task does not wait any more: it has its slots again, or its task process is gone."""
    del state.waiting[slot]
    slot.waits_s = -1.0
    if slot in state.returning:
        state.returning.remove(slot)
    elif state.asked.pop(call.task, None) is None:
        note_back(state, call.task)


def note_back(state: WorkerState, task: TaskId) -> None:
    """The manager is to hear that a task counts again, unless it has not heard that it waits."""
    if state.left.pop(task, True):
        state.back[task] = None


def note_left(state: WorkerState, task: TaskId) -> None:
    """The manager is to hear that a task waits."""
    if state.back.pop(task, True):
        state.left[task] = None


def _exceeded(state: WorkerState, slot: Slot, call: Call) -> Exception:
    """The error of a task that was stopped at one of its limits."""
    title, limit_bytes = f"{call.title()} was stopped on {state.place()}", call.spec.memory_bytes
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
        if call.grant is None:
            state.queue.appendleft(call)
        else:
            free_helpers(state, call)
            state.big.appendleft(call)


def free_helpers(state: WorkerState, call: Call) -> None:
    """A big call does not hold the slots beside its own any more."""
    if call.grant is not None and call.grant.slots > 1:
        for slot in state.slots:
            if slot.helps is call:
                slot.helps = None


def _condemn(slot: Slot, task: TaskId, outcome: int, now_s: float) -> None:
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
            _condemn(slot, head.task, Outcome.FAILED, now_s)
            continue
        if head.spec.memory_bytes is not None and slot.measured is None and now_s >= slot.measure_s:
            slot.measured = head
            slot.port.measure(head.spec.memory_bytes)
        if running_s >= STARTED_S and not head.announced:
            head.announced = True
            state.started.append(head.task)


def next_deadline_s(state: WorkerState, now_s: float) -> float:
    """Seconds until `on_tick` has something to do at the latest."""
    soonest = 0.1
    for slot in state.slots:
        if slot.held and slot.ending_s < 0 and slot.held[0].spec.walltime_s is not None:
            soonest = min(soonest, slot.moved_s + slot.held[0].spec.walltime_s - now_s)
    return max(soonest, 0.0)
