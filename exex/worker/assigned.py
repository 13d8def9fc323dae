"""What the manager tells a worker to do, and to leave. Pure, as `state`."""

from __future__ import annotations

from collections.abc import Mapping

from exex.errors import ProtocolError, StoreFull
from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Assign, Drop, Join, Outcome
from exex.worker.running import condemn, recover
from exex.worker.slot import Call
from exex.worker.state import WorkerState

NOTHING: Mapping[int, set[str]] = {}
"""Nothing is lacking."""


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
                    condemn(slot, call.task, Outcome.CANCELLED, now_s)
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
