"""What the batch system granted: nodes to the job, cores to a rank. Reads the environment that it is given, and node files.

Sources: environments captured under Slurm 22.05 and OpenPBS 23.06; the manuals of Cobalt, ALPS, Torque and LSF;
tests/unit/test_allocation.py holds them. When the allocation ends is found by `deadline`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from exex.errors import ConfigError
from exex.launch.hostlist import expand_counts, expand_hosts, expand_nids, nid_name

_MOST_QUOTED = 200  # characters of a variable, in messages


class Node(NamedTuple):
    """One node of an allocation; None where the batch system does not tell."""

    name: str  # as the batch system and its launcher call it; it may be longer than gethostname()
    cores: int | None = None  # CPUs granted there, hardware threads counted as the batch system does
    ranks: int | None = None  # processes that the batch system has planned for there


class Allocation(NamedTuple):
    """One batch job, or this machine alone."""

    batch_system: str  # Slurm, PBS, Cobalt, LSF, ALPS; "" for none
    job: str
    nodes: tuple[Node, ...]  # in the batch system's order; () where it does not name them
    size: int | None  # number of nodes; None where it does not tell

    def cores(self) -> int | None:
        """Cores of all nodes; None where those of any are not known."""
        counts = [node.cores for node in self.nodes if node.cores is not None]
        return sum(counts) if counts and len(counts) == len(self.nodes) else None


def find_allocation(env: Mapping[str, str]) -> Allocation:
    """The allocation that this process is in.

    Raises:
        ConfigError: a variable or a node file that cannot be understood or read; it names it.
    """
    for variable, read in _BATCH_SYSTEMS.items():
        if variable in env:
            return read(env)
    return Allocation("", "", (Node(socket.gethostname(), usable_cores()),), 1)


def _slurm(env: Mapping[str, str]) -> Allocation:
    variable = "SLURM_JOB_NODELIST" if env.get("SLURM_JOB_NODELIST") else "SLURM_NODELIST"
    if not env.get(variable):
        return Allocation("Slurm", env["SLURM_JOB_ID"], (), _number(env, "SLURM_JOB_NUM_NODES", "SLURM_NNODES"))
    with _named(env, variable):
        names = expand_hosts(env[variable])
    cores: Sequence[int | None] = _counts(env, "SLURM_JOB_CPUS_PER_NODE") or [None] * len(names)
    if len(cores) != len(names):
        raise ConfigError(
            f"SLURM_JOB_CPUS_PER_NODE is {_quoted(env, 'SLURM_JOB_CPUS_PER_NODE')}, which counts {len(cores)} nodes, but "
            f"{variable} is {_quoted(env, variable)}, which names {len(names)}"
        )
    ranks: Sequence[int | None] = _counts(env, "SLURM_TASKS_PER_NODE")
    if len(ranks) != len(names):
        ranks = [None] * len(names)  # within a step the variable speaks of the step's nodes
    return _allocation("Slurm", env["SLURM_JOB_ID"], map(Node, names, cores, ranks))


def _pbs(env: Mapping[str, str]) -> Allocation:
    counts = _node_file(env, "PBS_NODEFILE")
    if not counts:
        return Allocation("PBS", env["PBS_JOBID"], (), _number(env, "PBS_NUM_NODES"))
    is_torque = "PBS_NUM_PPN" in env  # whose node file has a line for each core; that of PBS Pro has one for each rank
    nodes = (Node(name, lines if is_torque else None, lines) for name, lines in counts.items())
    return _allocation("PBS", env["PBS_JOBID"], nodes)


def _cobalt(env: Mapping[str, str]) -> Allocation:
    job, size = env["COBALT_JOBID"], _number(env, "COBALT_JOBSIZE")
    counts = _node_file(env, "COBALT_NODEFILE")
    if counts:
        return _allocation("Cobalt", job, map(Node, counts))
    partition = env.get("COBALT_PARTNAME", "")
    if not partition[:1].isdecimal():  # the name of a block of a Blue Gene
        return Allocation("Cobalt", job, (), size)
    with _named(env, "COBALT_PARTNAME"):
        return _allocation("Cobalt", job, map(Node, expand_nids(partition)))


def _lsf(env: Mapping[str, str]) -> Allocation:
    if env.get("LSB_DJOB_HOSTFILE"):
        counts = _node_file(env, "LSB_DJOB_HOSTFILE")
    elif env.get("LSB_MCPU_HOSTS"):
        with _named(env, "LSB_MCPU_HOSTS"):
            counts = _pairs(env["LSB_MCPU_HOSTS"])
    else:
        counts = Counter(env.get("LSB_HOSTS", "").split())
    if counts and counts[next(iter(counts))] == 1 < max(counts.values()):
        del counts[next(iter(counts))]  # a launch node, where the job script runs and jsrun starts no rank, has one slot
    nodes = (Node(name, slots, slots) for name, slots in counts.items())
    return _allocation("LSF", env["LSB_JOBID"], nodes)


def _alps(env: Mapping[str, str]) -> Allocation:
    """An aprun without a batch system that we know: it tells a rank nothing of the others."""
    return Allocation("ALPS", env.get("ALPS_APP_ID", ""), (), None)


_BATCH_SYSTEMS: dict[str, Callable[[Mapping[str, str]], Allocation]] = {
    "SLURM_JOB_ID": _slurm,
    "COBALT_JOBID": _cobalt,
    "PBS_JOBID": _pbs,
    "LSB_JOBID": _lsf,
    "ALPS_APP_PE": _alps,
}


def _allocation(batch_system: str, job: str, nodes: Iterable[Node]) -> Allocation:
    listed = tuple(nodes)
    return Allocation(batch_system, job, listed, len(listed) or None)


def _number(env: Mapping[str, str], *variables: str) -> int | None:
    """The first of the variables that is set.

    Raises:
        ConfigError: it is no number.
    """
    for variable in variables:
        text = env.get(variable)
        if text:
            if not text.isdecimal():
                raise ConfigError(f"{variable} is {_quoted(env, variable)}, expected a number of nodes")
            return int(text)
    return None


def _counts(env: Mapping[str, str], variable: str) -> Sequence[int]:
    """A variable of Slurm's that counts something per node; () if it is not set.

    Raises:
        ConfigError: it cannot be understood.
    """
    with _named(env, variable):
        return expand_counts(env[variable]) if env.get(variable) else ()


@contextlib.contextmanager
def _named(env: Mapping[str, str], variable: str) -> Iterator[None]:
    """Errors within name the variable."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{variable} is {_quoted(env, variable)}: {error}") from None


def _quoted(env: Mapping[str, str], variable: str) -> str:
    text = env[variable]
    return repr(text if len(text) <= _MOST_QUOTED else text[:_MOST_QUOTED] + "...")


def _node_file(env: Mapping[str, str], variable: str) -> Counter[str]:
    """How many lines each node has in the file that a variable names, in the file's order; none if it is not set.

    Raises:
        ConfigError: the file cannot be read, or is empty.
    """
    path = env.get(variable)
    if not path:
        return Counter()
    try:
        with open(path, encoding="utf-8") as file:
            names = file.read().split()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"cannot read {path}, the node file that {variable} names: {why}") from error
    if not names:
        raise ConfigError(f"{path}, the node file that {variable} names, is empty")
    return Counter(nid_name(int(name)) if name.isdecimal() else name for name in names)  # Torque on a Cray lists numbers


def _pairs(text: str) -> Counter[str]:
    """LSF's `host count host count`.

    Raises:
        ValueError: it is not that.
    """
    words = text.split()
    if len(words) % 2 or not all(word.isdecimal() for word in words[1::2]):
        raise ValueError("expected hosts and counts in turns")
    counts: Counter[str] = Counter()
    for name, slots in zip(words[::2], words[1::2]):
        counts[name] += int(slots)
    return counts


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


def manager_slots(affinity: Collection[int], ranks_on_node: int, most: int | None) -> int:
    """Slots of rank 0 in a world of several ranks, beside the manager, where nobody has chosen a number. Pure.

    None where it shares its node: the other ranks there have slots for all of its cores. Where it is alone, one core is the
    manager's.

    Args:
        affinity: cores of rank 0.
        ranks_on_node: ranks of the world on its node, itself included.
        most: what a worker has if a number was chosen for all of them.
    """
    if ranks_on_node > 1:
        return 0
    free = max(0, len(affinity) - 1)
    return free if most is None else min(free, most)
