"""Batch systems: how each writes a request, and what it answers. Pure: text and values in and out; `submit` runs them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple


def clock(seconds: float) -> str:
    """HH:MM:SS, rounded up to whole seconds; hours may have more than two digits."""
    whole = math.ceil(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def hours_and_minutes(seconds: float) -> str:
    """H:MM, rounded up to whole minutes: what LSF takes for `-W`."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02}"


class BatchSystem(NamedTuple):
    """One batch system. The names in braces in `request`, `queue` and `account` stand for what a job asks for."""

    submit: str  # the program that takes a job script
    template: str  # file in jobscripts/
    prefix: str  # of a directive
    request: tuple[str, ...]  # directives that ask for nodes, where a machine names none
    queue: str  # directive
    account: str  # directive
    resubmit: str  # in a job: submits the kept script again; the rest of the chain is $((left - 1))
    job_id: str  # pattern in the answer; its first group is the id
    variables: str  # whose variables and node files a job finds, by the name that launcher files use
    name_chars: int = 200  # of a job's name, at most
    launcher: str = ""  # its own launcher, which passes signals on
    signal: str = ""  # directive: a signal to the script's shell {seconds} before the end
    tells_end: bool = False  # the job finds the time of its end in its environment
    walltime: Callable[[float], str] = clock


_SCRIPT = '"$EXEX_JOB_DIR/job.sh"'
_PBS_ID = r"^(\d+(?:\[\])?(?:\.[\w.-]+)?)\s*$"

SYSTEMS: dict[str, BatchSystem] = {
    "Slurm": BatchSystem(
        variables="Slurm",
        submit="sbatch",
        template="slurm",
        prefix="#SBATCH",
        request=("--nodes={nodes}",),
        queue="--partition={queue}",
        account="--account={account}",
        resubmit=f"EXEX_CHAIN=$((left - 1)) sbatch {_SCRIPT}",
        job_id=r"^Submitted batch job (\d+)",
        launcher="srun",
        signal="#SBATCH --signal=B:USR2@{seconds}",
        tells_end=True,
    ),
    "PBS": BatchSystem(
        variables="PBS",
        submit="qsub",
        template="pbs",
        prefix="#PBS",
        request=("-l select={nodes}:ncpus={cores}:mpiprocs={ranks_per_node}",),
        queue="-q {queue}",
        account="-A {account}",
        resubmit=f"qsub -v EXEX_CHAIN=$((left - 1)) {_SCRIPT}",
        job_id=_PBS_ID,
    ),
    "Torque": BatchSystem(
        variables="PBS",
        submit="qsub",
        template="alps",
        prefix="#PBS",
        request=("-l nodes={nodes}:ppn={cores}",),
        queue="-q {queue}",
        account="-A {account}",
        resubmit=f"qsub -v EXEX_CHAIN=$((left - 1)) {_SCRIPT}",
        job_id=_PBS_ID,
        name_chars=15,
    ),
    "Cobalt": BatchSystem(
        variables="Cobalt",
        submit="qsub",
        template="cobalt",
        prefix="#COBALT",
        request=("-n {nodes}",),
        queue="-q {queue}",
        account="-A {account}",
        resubmit=f"qsub --env EXEX_CHAIN=$((left - 1)) {_SCRIPT}",
        job_id=r"^(\d+)\s*$",
        tells_end=True,
    ),
    "LSF": BatchSystem(
        variables="LSF",
        submit="bsub",
        template="lsf",
        prefix="#BSUB",
        request=("-nnodes {nodes}",),
        queue="-q {queue}",
        account="-P {account}",
        resubmit=f"EXEX_CHAIN=$((left - 1)) bsub {_SCRIPT}",
        job_id=r"^Job <(\d+)> is submitted",
        walltime=hours_and_minutes,
    ),
}
"""By the name that machine files use. Torque is that of Cray's XE and XK, whose job scripts run on a service node."""

NO_SYSTEM = "none"
"""The `batch_system` of a machine that has none."""


def job_id(system: BatchSystem, answer: str) -> str | None:
    """The id of the job in what the submitting program printed; sites print words of their own around it."""
    found = re.findall(system.job_id, answer, re.MULTILINE)
    return found[-1] if found else None
