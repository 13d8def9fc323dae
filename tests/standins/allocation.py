"""A fake allocation, in which the stand-in of a launcher finds its hosts as the real one does."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).resolve().parent

LAUNCHERS = ("srun", "mpiexec-pals", "aprun", "jsrun", "flux", "ibrun")
"""Files in `launchers/` for which there is a stand-in."""


class FakeAllocation:
    """See the module docstring.

    Args:
        launcher: name of its file.
        directory: new; for what the stand-ins leave.
        mpiexec: MPICH's.
        nodes: hosts nid00010, nid00011, ...
        cores: of each host.

    Attributes:
        hosts: in the batch system's order.
        environment: what a job script finds, with the stand-in on PATH, besides what the machine has.
    """

    def __init__(self, launcher: str, directory: Path, mpiexec: str, nodes: int = 4, cores: int = 4) -> None:
        self.hosts = tuple(f"nid{number:05}" for number in range(10, 10 + nodes))
        directory.mkdir()
        self._directory = directory
        (directory / "bin").mkdir()
        program = PROGRAMS / ("pals/mpiexec" if launcher == "mpiexec-pals" else launcher)
        ours = directory / "bin" / program.name
        ours.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S {shlex.quote(str(program))} "$@"\n')
        ours.chmod(0o755)
        (directory / "bin/task_affinity").symlink_to(PROGRAMS / "task_affinity")
        self.environment = {
            "PATH": f"{directory}/bin:{os.environ['PATH']}",
            "STANDIN_DIR": str(directory),
            "STANDIN_MPIEXEC": mpiexec,
            "STANDIN_CORES": str(cores),
            **_BATCH[launcher](directory, self.hosts, cores),
        }

    def launches(self) -> list[dict[str, Any]]:
        """What was launched, in order: `step`, `argv`, `ranks` of each host, and the host that it was launched from."""
        return [json.loads(line) for line in (self._directory / "log").read_text().splitlines()]


def _slurm(directory: Path, hosts: tuple[str, ...], cores: int) -> dict[str, str]:
    nodes = f"nid[{hosts[0][3:]}-{hosts[-1][3:]}]"
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOBID": "4711",
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_NODELIST": nodes,
        "SLURM_JOB_NUM_NODES": str(len(hosts)),
        "SLURM_NNODES": str(len(hosts)),
        "SLURM_JOB_CPUS_PER_NODE": f"{cores}(x{len(hosts)})",
        "SLURM_TASKS_PER_NODE": f"1(x{len(hosts)})",
        "SLURM_JOB_END_TIME": str(int(time.time()) + 3600),
        "SLURM_MPI_TYPE": "pmi2",
    }


def _pbs(directory: Path, hosts: tuple[str, ...], cores: int) -> dict[str, str]:
    (directory / "nodes").write_text("".join(f"{host}\n" for host in hosts))
    return {"PBS_JOBID": "4711.pbs", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_NODEFILE": str(directory / "nodes")}


def _cobalt(directory: Path, hosts: tuple[str, ...], cores: int) -> dict[str, str]:
    return {
        "COBALT_JOBID": "4711",
        "COBALT_JOBSIZE": str(len(hosts)),
        "COBALT_PARTNAME": f"{int(hosts[0][3:])}-{int(hosts[-1][3:])}",
        "COBALT_ENDTIME": str(int(time.time()) + 3600),
    }


def _lsf(directory: Path, hosts: tuple[str, ...], cores: int) -> dict[str, str]:
    (directory / "hosts").write_text("launch1\n" + "".join(f"{host}\n" * cores for host in hosts))
    return {"LSB_JOBID": "4711", "LSB_DJOB_HOSTFILE": str(directory / "hosts")}


def _flux(directory: Path, hosts: tuple[str, ...], cores: int) -> dict[str, str]:
    (directory / "local-0").write_text("".join(f"{host}\n" for host in hosts))
    return {"FLUX_URI": f"local://{directory}/local-0"}


_BATCH = {"srun": _slurm, "ibrun": _slurm, "mpiexec-pals": _pbs, "aprun": _cobalt, "jsrun": _lsf, "flux": _flux}
