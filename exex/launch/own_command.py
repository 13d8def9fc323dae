"""The command line of a world that a program starts for itself: on this machine, or on the nodes of its allocation."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from exex.errors import ConfigError
from exex.launch import allocation, launcher
from exex.launch.allocation import Allocation
from exex.launch.launchers import LauncherFile, Layout, load_launcher
from exex.launch.world import task_environment

_OF_BATCH_SYSTEM = {"Slurm": "srun", "Cobalt": "aprun", "ALPS": "aprun", "LSF": "jsrun"}
_OF_FAMILY = {"hydra": "mpiexec-hydra", "openmpi": "mpiexec-openmpi", None: "mpiexec-pals"}

LOCAL = "local"
"""The launcher of a world on this machine alone."""


class Shape(NamedTuple):
    """What world is wanted.

    Attributes:
        workers: beside the manager, on this machine; None: as many as use its cores.
        launcher: `local`, a name that `exex launchers` lists, or `auto`: of this allocation if it has several nodes.
        nodes: None for all of the allocation.
        ranks_per_node: one, with a slot for each core, or more.
        cores_per_node: None: as the batch system says.
    """

    workers: int | None = None
    launcher: str = "auto"
    nodes: int | None = None
    ranks_per_node: int = 1
    cores_per_node: int | None = None


class OwnCommand(NamedTuple):
    """How to start it.

    Attributes:
        is_near: rank 0 will run on this node.
    """

    argv: list[str]
    env: dict[str, str]
    is_near: bool


def shape(cores: int, workers: int | None, slots: int | str) -> tuple[int, int]:
    """Workers and slots per worker that use `cores`, where the user has left them open; each at least 1. Pure.

    The manager beside the workers is not counted: it uses little, and one core less would halve a small machine.
    """
    if workers is None:
        workers = max(1, cores // slots) if isinstance(slots, int) else max(1, cores)
    if not isinstance(slots, int):
        slots = max(1, cores // workers)
    return workers, slots


def local_command(
    words: Sequence[str], workers: int | None, slots: int | str, script_args: Sequence[str], env: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of a world on this machine.

    Args:
        words: options of `python -m exex.run`.
        slots: the setting.

    Raises:
        StartError: there is no MPI library, or no mpiexec for it.
    """
    workers, number = shape(allocation.usable_cores(), workers, slots)
    if slots == "auto":
        words = [*words, "--slots", str(number)]
    library = launcher.mpi_library(sys.executable, env)
    mpiexec = launcher.find_mpiexec(library, sys.executable, env)
    argv, additions = launcher.world_argv(
        mpiexec,
        workers + 1,
        python=sys.executable,
        exex_args=words,
        script_args=script_args,
        uid=os.getuid(),
    )
    return argv, {**task_environment(env), **additions}


def own_command(
    wanted: Shape, words: Sequence[str], slots: int | str, script_args: Sequence[str], env: Mapping[str, str]
) -> OwnCommand:
    """Command line of a world for this program.

    Raises:
        ConfigError: a shape that cannot be had here.
        StartError: there is no MPI library, or no mpiexec for it.
    """
    granted = allocation.find_allocation(env)
    name = wanted.launcher
    if name == "auto":
        name = _launcher_of(granted, env) if (granted.size or 1) > 1 else LOCAL
    if name == LOCAL:
        if wanted.nodes not in (None, 1):
            raise ConfigError(f"nodes={wanted.nodes} needs a launcher of the machine; launcher='local' is for this node alone")
        argv, env = local_command(words, wanted.workers, slots, script_args, env)
        return OwnCommand(argv, env, is_near=True)
    if wanted.workers is not None:
        raise ConfigError("workers= is for a world on this machine; on several nodes say nodes= and ranks_per_node=")
    file = load_launcher(name, env)
    argv = [*file.world_argv(_layout(wanted, granted)), sys.executable, "-m", "exex.run", *words, "--", *script_args]
    return OwnCommand(argv, file.nested_environment(task_environment(env)), _is_near(file, granted))


def _launcher_of(granted: Allocation, env: Mapping[str, str]) -> str:
    """The name of the launcher for all nodes of an allocation."""
    return _OF_BATCH_SYSTEM.get(granted.batch_system) or _OF_FAMILY[launcher.mpi_library(sys.executable, env).family]


def _layout(wanted: Shape, granted: Allocation) -> Layout:
    nodes = wanted.nodes or granted.size
    if nodes is None:
        raise ConfigError("the batch system does not say how many nodes there are: say nodes=")
    known = [node.cores for node in granted.nodes if node.cores is not None]
    cores = wanted.cores_per_node or (min(known) if known else allocation.usable_cores())
    return Layout(
        nodes=nodes,
        ranks_per_node=wanted.ranks_per_node,
        cores_per_rank=max(1, cores // wanted.ranks_per_node),
        bind=wanted.ranks_per_node > 1,
    )


def _is_near(file: LauncherFile, granted: Allocation) -> bool:
    """Whether the launcher starts the first rank on this node."""
    if not file.from_compute_nodes or not granted.nodes:
        return False
    return granted.nodes[0].name.split(".")[0] == socket.gethostname().split(".")[0]
