"""What a sample of the run record says of the manager. Reads one file of the kernel's."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from exex.manager.state import ManagerState

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def sampler(state: ManagerState) -> Callable[[], Sequence[int]]:
    """Waiting, ready, assigned, done, failed, cancelled, slots, resident bytes: as in `exex.record.columns`."""
    statm = open("/proc/self/statm", "rb", buffering=0)  # noqa: SIM115 (as long as the process)

    def sample() -> Sequence[int]:
        counts = state.counts
        ready = state.ready.count + len(state.ready.near) + state.ready.line.count
        waiting = len(state.tasks) - ready - state.assigned
        resident = int(os.pread(statm.fileno(), 128, 0).split()[1]) * _PAGE_BYTES
        return waiting, ready, state.assigned, counts.done, counts.failed, counts.cancelled, state.slots(), resident

    return sample
