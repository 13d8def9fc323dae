"""Which CPUs a call is bound to. Pure, as `state`."""

from __future__ import annotations

from itertools import zip_longest

from exex.protocol.messages import Grant
from exex.worker.slot import Slot
from exex.worker.state import WorkerState


def cores_of(state: WorkerState, grant: Grant, chosen: list[Slot]) -> list[int]:
    """CPU numbers of these slots, and of those of other workers on this node: first one of each slot, then the second of each.

    Empty where slots are not bound, and where another worker lends a part of its slots: nobody knows which.
    """
    if not state.slot_cores:
        return []
    groups = [state.slot_cores[slot.number] for slot in chosen]
    if grant.slots < grant.shares[0].slots:
        if not grant.cores:
            return []
        size = len(groups[0])
        groups += [grant.cores[i : i + size] for i in range(0, len(grant.cores), size)]
    return [core for each in zip_longest(*groups) for core in each if core is not None]
