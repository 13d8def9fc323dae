"""What `exex launchers` prints."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from exex.errors import ConfigError
from exex.launch.launchers import LauncherFile, Layout, launcher_names, load_launcher

_HOSTS = ("nid00012", "nid00013")
_WORLD = Layout(nodes=4, ranks_per_node=1, cores_per_rank=32)
_SUBTASK = Layout(
    nodes=2, ranks_per_node=8, cores_per_rank=4, hosts=_HOSTS, env={"OMP_NUM_THREADS": "4"},
    walltime_s=600, allocation=("nid00010", "nid00011", *_HOSTS),
)  # fmt: skip
_ROOMS = {"cores": "the world's cores", "free cores": "free cores", "nodes": "free nodes"}
_HEADS: tuple[str, ...] = ("name", "for", "batch systems", "sub-tasks on", "started from", "rank dies", "node dies", "tried")


def launcher_table(env: Mapping[str, str]) -> str:
    """All launchers, one to a line; a file that cannot be used says why."""
    problems: list[str] = []
    rows = launcher_rows(env, problems)
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *problems])


def launcher_rows(env: Mapping[str, str], problems: list[str] | None = None) -> list[tuple[str, ...]]:
    """The cells of that table, heads first.

    Args:
        problems: takes the messages of files that cannot be used; without it they are errors.
    """
    rows = [_HEADS]
    for name in launcher_names(env):
        try:
            rows.append(_row(load_launcher(name, env)))
        except ConfigError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return rows


def _row(file: LauncherFile) -> tuple[str, ...]:
    return (
        file.name,
        file.about,
        ", ".join(file.batch_systems),
        _ROOMS[file.room],
        "any node" if file.from_compute_nodes else "the job script",
        "goes on" if file.goes_on_without_rank else "job ends",
        "goes on" if file.goes_on_without_node else "job ends",
        "yes" if file.tried else "no",
    )


def launcher_page(name: str, env: Mapping[str, str]) -> str:
    """One launcher: its file, and two command lines that are made of it.

    Raises:
        ConfigError: there is no such launcher, or its file cannot be used.
    """
    file = load_launcher(name, env)
    world, subtask = _sayable(file, _WORLD), _sayable(file, _SUBTASK)
    program = [os.path.basename(sys.executable), "-m", "exex.run", "workflow.py"]
    nodes = f"{subtask.nodes} nodes" + (f" ({', '.join(subtask.hosts)})" if subtask.hosts else "")
    return "\n".join(
        [
            f"# {file.path}",
            file.text.rstrip("\n"),
            "",
            f"# exex on {world.nodes} nodes, one rank on each, cores per rank: {world.cores_per_rank}",
            shlex.join([*file.world_argv(world), *program]),
            f"# a sub-task on {nodes}, {subtask.ranks_per_node} ranks on each, cores per rank: {subtask.cores_per_rank}",
            shlex.join([*file.subtask_argv(subtask), "./solver", "input"]),
        ]
    )


def _sayable(file: LauncherFile, layout: Layout) -> Layout:
    """The layout without what the launcher has no words for."""
    without: dict[str, Any] = {"hosts": (), "cores_per_rank": 1, "env": {}}
    layout = layout._replace(**{name: value for name, value in without.items() if not file.can_say(name)})
    return layout if file.can_say("walltime") else layout._replace(walltime_s=None)
