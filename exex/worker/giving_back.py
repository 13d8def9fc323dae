"""Calls that the manager wants back because others can run them sooner. Pure, as `state`."""

from __future__ import annotations

from exex.protocol.messages import Retract
from exex.worker.running import recover
from exex.worker.state import WorkerState


def on_retract(state: WorkerState, msg: Retract) -> None:
    """Give back calls that no task process has begun, also those that stand aside. Cost: O(calls queued here)."""
    wanted = set(msg.tasks)
    for slot in state.slots:
        if any(call.task in wanted for call in slot.held):
            recover(state, slot)
    returned = [task for task, (call, _) in state.aside.items() if task in wanted and call.grant is None]
    kept = []
    for task in returned:
        del state.aside[task]
    for call in state.queue:
        if call.task in wanted and not call.losses:  # one that has lost its process here is counted here
            returned.append(call.task)
        else:
            kept.append(call)
    if len(kept) < len(state.queue):
        state.queue.clear()
        state.queue.extend(kept)
    state.give_back(returned)
