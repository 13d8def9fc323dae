"""How a task starts a sub-task: which launcher, its words, and what a script that builds its own command line is told.

Runs in task processes, on the lead's node; reads launcher files there and nowhere else.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from exex.errors import ConfigError
from exex.launch import data, mask
from exex.launch.allocation import find_allocation
from exex.launch.helped import helped
from exex.launch.launcher import describe_mpiexec
from exex.launch.launchers import LauncherFile, Layout, launcher_names, load_launcher
from exex.launch.started_by import STARTED_BY

_OF_FAMILY = {"hydra": "mpiexec-hydra", "openmpi": "mpiexec-openmpi"}


class SubTask(NamedTuple):
    """What starts a sub-task.

    Attributes:
        prefix: words before the program's.
        variables: to set for whoever starts it, beside what `environment` holds.
        environment: of the launcher.
    """

    prefix: list[str]
    variables: dict[str, str]
    environment: dict[str, str]


def sub_task(layout: Layout, env: Mapping[str, str], before: Sequence[str] = ()) -> SubTask:
    """What starts a program in this layout.

    Args:
        env: of the task.
        before: words that come between those of the launcher and the program's.

    Raises:
        ConfigError: no launcher is known, it cannot start this layout, or it cannot be reached from here.
    """
    launcher, program = find_launcher(env)
    if launcher.room == "nodes" or launcher.hosts is None:
        layout = layout._replace(hosts=())  # the world holds the task's own: the launcher chooses among those that are free
    elif launcher.hosts == "offset":
        layout = layout._replace(allocation=tuple(node.name for node in find_allocation(env).nodes))
    words = [*launcher.subtask_argv(layout), *before]
    if words[0] == launcher.program:
        words[0] = program
    if not launcher.from_compute_nodes:
        words = helped(words, env)
    return SubTask(words, variables(words, layout, launcher), launcher.nested_environment(env))


def find_launcher(env: Mapping[str, str]) -> tuple[LauncherFile, str]:
    """The launcher of sub-tasks, and its program: the one that was set, else the one that has started the world.

    Raises:
        ConfigError: none is found.
    """
    name = env.get("EXEX_SUBTASK_LAUNCHER", "auto")
    world_is, _, directory = env.get(STARTED_BY, "").rpartition(":")
    if name != "auto":
        launcher = load_launcher(name, env)
    elif world_is:
        launcher = _of_world(world_is, env)
    else:
        launcher = _of_this_machine(env)
    places = (directory, os.path.dirname(sys.executable)) if launcher.local_words else ()  # it belongs to an MPI library
    for beside in places:
        path = os.path.join(beside, launcher.program)
        if beside and os.access(path, os.X_OK):
            return launcher, path
    return launcher, launcher.program


def _of_world(world_is: str, env: Mapping[str, str]) -> LauncherFile:
    """The launcher whose ranks look like the world's. Of several the one that reads host names comes first."""
    found = [launcher for name in launcher_names(env) if (launcher := load_launcher(name, env)).world_is == world_is]
    if not found:
        known = ", ".join(launcher_names(env))
        raise ConfigError(
            f"no launcher is known for sub-tasks of a world that {world_is} has started: set --subtask-launcher "
            f"(known: {known}), or write a file into {data.directories('launchers', env)[0]}"
        )
    return min(found, key=lambda launcher: launcher.hosts == "offset")


def _of_this_machine(env: Mapping[str, str]) -> LauncherFile:
    """Of a world of one rank that no launcher has started: what `mpiexec` is."""
    beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    path = beside if os.access(beside, os.X_OK) else "mpiexec"
    found = describe_mpiexec(path, env)
    if found.family is None:
        raise ConfigError(f"no launcher is known for sub-tasks: {path} is {found.name}; set --subtask-launcher")
    return load_launcher(_OF_FAMILY[found.family], env)


def mask_words(variable: str, gpus: Mapping[str, Sequence[str]]) -> list[str]:
    """Words before a program by which each node gets its own accelerators; none where all nodes have the same.

    Args:
        variable: that masks accelerators; "" if there is none.
        gpus: names of accelerators by host.
    """
    if not variable or len({tuple(names) for names in gpus.values()}) < 2:
        return []
    masks = ";".join(f"{host}={','.join(names)}" for host, names in gpus.items())
    return [sys.executable, "-I", "-S", mask.__file__, variable, masks]


def variables(prefix: list[str], layout: Layout, launcher: LauncherFile) -> dict[str, str]:
    """What a script that builds its own command line finds in its environment; under Parsl's names, too."""
    words = shlex.join(prefix)
    numbers = {
        "NUM_NODES": str(layout.nodes),
        "RANKS_PER_NODE": str(layout.ranks_per_node),
        "NUM_RANKS": str(layout.all_ranks),
    }
    program = os.path.basename(launcher.program).upper()
    return {
        "EXEX_MPI_PREFIX": words,
        "EXEX_NODES": ",".join(layout.hosts),
        **{f"EXEX_{name}": number for name, number in numbers.items()},
        "PARSL_MPI_PREFIX": words,
        f"PARSL_{program}_PREFIX": words,
        **{f"PARSL_{name}": number for name, number in numbers.items()},
    }
