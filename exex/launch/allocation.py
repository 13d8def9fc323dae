"""What the batch system granted: nodes to the job, cores to a rank. Reads the environment that it is given."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple


class Allocation(NamedTuple):
    """One batch job, or this machine alone."""

    batch_system: str  # Slurm, PBS, Cobalt, LSF; "" for none
    job: str
    nodes: int | None  # None where the batch system does not tell


def find_allocation(env: Mapping[str, str]) -> Allocation:
    """The allocation that this process is in. Under PBS and LSF it reads the job's node file."""
    if "SLURM_JOB_ID" in env:
        return Allocation("Slurm", env["SLURM_JOB_ID"], _number(env.get("SLURM_JOB_NUM_NODES") or env.get("SLURM_NNODES")))
    if "COBALT_JOBID" in env:
        return Allocation("Cobalt", env["COBALT_JOBID"], _number(env.get("COBALT_JOBSIZE")))
    if "PBS_JOBID" in env:
        return Allocation("PBS", env["PBS_JOBID"], _distinct_lines(env.get("PBS_NODEFILE"), skip=0))
    if "LSB_JOBID" in env:
        return Allocation("LSF", env["LSB_JOBID"], _distinct_lines(env.get("LSB_DJOB_HOSTFILE"), skip=1))
    return Allocation("", "", 1)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _distinct_lines(path: str | None, skip: int) -> int | None:
    """Different host names in a node file, which names a host once per slot. LSF's begins with the launch node."""
    if not path:
        return None
    try:
        with open(path) as file:
            names = [line.strip() for line in file if line.strip()]
    except OSError:
        return None
    return len(set(names[skip:])) or None


def usable_cores() -> int:
    """Cores that this process may run on: its affinity, not the machine's size."""
    return len(os.sched_getaffinity(0))


def auto_slots(affinity: Collection[int], ranks_on_node: int, masks: Sequence[Collection[int]] = ()) -> int:
    """Slots of a rank, at least 1: the cores it may use, divided among the ranks that may use them too. Pure.

    Args:
        affinity: cores of this rank.
        ranks_on_node: ranks of the world on this node, this one included.
        masks: affinity of each of them, this one included, if known. Without it all are taken to share `affinity`, which
            for ranks that the launcher has bound to several cores each gives too few slots, never too many.
    """
    if not masks:
        return max(1, len(affinity) // max(1, ranks_on_node))
    sharing = [max(1, sum(core in mask for mask in masks)) for core in affinity]
    return max(1, int(sum(Fraction(1, ranks) for ranks in sharing)))
