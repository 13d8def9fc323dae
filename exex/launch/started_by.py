"""What has started the world, as tasks are told of it: sub-tasks are started by the same. Imports little: it runs in guards."""

from __future__ import annotations

import os

from exex.launch.world import ExpectedWorld

STARTED_BY = "EXEX_STARTED_BY"
"""The world's launcher and where its programs lie: "Hydra mpiexec:/opt/mpich/bin"."""


def started_by(expected: ExpectedWorld, launcher_pid: int) -> str:
    """The value of `STARTED_BY` for a guard's children, "" where no launcher has started the guard.

    Args:
        launcher_pid: of the guard's parent, which lies beside `mpiexec` where that is its helper.
    """
    if expected.launcher == "none":
        return ""
    try:
        directory = os.path.dirname(os.readlink(f"/proc/{launcher_pid}/exe"))
    except OSError:  # another user's, as slurmstepd is
        directory = ""
    return f"{expected.launcher}:{directory}"
