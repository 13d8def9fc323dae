"""What a send does whose receiver is dead, or does not look."""

from __future__ import annotations

import sys

import pytest

from exex.launch.launchers import load_launcher
from tests.launch import Launch

FAR = {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo"}
"""MPICH talks over its network layer to ranks of the same machine as well."""


def test_a_send_returns_whoever_it_is_for(launch: Launch) -> None:
    if launch.family != "mpich":
        pytest.skip("Open MPI has no provider that refuses messages")
    goes_on = load_launcher("mpiexec-hydra", {"HOME": "/nonexistent"}).goes_on
    ends_well = ["sh", "-c", "trap '' USR1; \"$@\"; true", "sh"]  # Hydra goes by the end of what it has started, and tells others by a signal
    rank = [*ends_well, sys.executable, "-m", "tests.mpi.dying", str(launch.cwd)]
    done = launch.finish(launch.start([launch.mpiexec, *goes_on, "-n", "3", *rank], **FAR))
    assert done.out.splitlines() == ["sent to who does not look", "sent to a dead rank", "the other one answers"], done.err
