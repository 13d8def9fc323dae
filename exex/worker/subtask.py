"""What a task of several nodes, or one that starts an MPI program, finds in its environment. Runs in task processes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from exex.errors import ConfigError
from exex.launch import subtasks
from exex.launch.layout import Layout
from exex.protocol.messages import AppSpec, Grant
from exex.worker import granted
from exex.worker.execute import environment

NO_LAUNCHER = "exex-knows-no-launcher--see-EXEX_MPI_ERROR"
"""What $EXEX_MPI_PREFIX begins a command line with where no launcher is known: the shell finds no such program, and says so."""


def layout_of(spec: AppSpec, grant: Grant, asked: Mapping[str, Any]) -> Layout:
    """The ranks of a sub-task on what was granted.

    Args:
        asked: `ranks_per_node`, `ranks`, `cores_per_rank`, as far as they are said; without them one rank per slot.
    """
    cores_per_rank = asked.get("cores_per_rank") or 1
    slots = min(share.slots for share in grant.shares)
    per_node = asked.get("ranks_per_node") or max(1, slots // cores_per_rank)
    is_whole = spec.exclusive or (spec.nodes > 0 and not spec.cores)
    return Layout(
        nodes=len(grant.shares),
        ranks_per_node=per_node,
        ranks=asked.get("ranks"),
        cores_per_rank=cores_per_rank,
        hosts=tuple(grant.hosts),
        bind=is_whole and per_node * cores_per_rank <= (os.cpu_count() or 1),
    )


def masks(grant: Grant) -> list[str]:
    """Words before a program where nodes were granted different accelerators."""
    return subtasks.mask_words(granted.gpu_variable, {share.host: share.gpus for share in grant.shares})


def prepare(stack: ExitStack, spec: AppSpec, grant: Grant, call: tuple[Any, ...]) -> tuple[Any, ...]:
    """Until `stack` is left, the environment of this process is that of the sub-task's launcher.

    Args:
        call: as `execute` opens it; in its options `mpi` says what the ranks are to be.

    Returns:
        The call. Where exex itself is to put the launcher's words before the command line, they are the option `prefix`.

    Raises:
        ConfigError: exex is to start the program, and no launcher is known, or none that can start this layout.
    """
    options = dict(call[2]) if len(call) > 2 else {}
    asked = options.pop("mpi", None)
    if asked is None and not spec.nodes:
        return call
    asked = asked or {}
    try:
        task = subtasks.sub_task(layout_of(spec, grant, asked), os.environ, masks(grant))
    except ConfigError as error:
        if asked.get("is_program"):
            raise
        stack.enter_context(environment({"EXEX_MPI_PREFIX": NO_LAUNCHER, "EXEX_MPI_ERROR": str(error)}))
        return call
    dropped = os.environ.keys() - task.environment.keys()
    stack.enter_context(environment({**task.environment, **task.variables}, dropped))
    if asked.get("is_program"):
        options["prefix"] = " ".join(filter(None, (shlex.join(task.prefix), asked.get("launcher_options"))))
    return call[0], call[1], options
