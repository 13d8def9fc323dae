"""What a task finds of what it was granted: CPUs that its process is bound to, and variables. Runs in task processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from exex.protocol.messages import AppSpec, Grant
from exex.protocol.payload import Payload
from exex.worker.execute import environment, execute, thread_counts

gpu_variable = ""
"""Which variable masks accelerators; set in the template, so that task processes inherit it."""

current: Grant | None = None
"""Of the task that runs in this process; None if it has one slot."""


def bind(cores: Sequence[int]) -> None:
    """Bind this process to CPUs, if any are named. One that the kernel does not allow is no reason not to run."""
    if cores:
        try:
            os.sched_setaffinity(0, cores)
        except OSError:
            pass  # outside of the process's cpuset: the thread counts still say how many there are


def variables(grant: Grant, is_gang: bool) -> dict[str, str]:
    """What a task with this grant finds in its environment.

    Args:
        is_gang: it has asked for nodes, so it will start a program that has processes of its own there: these must not all
            start so many threads, and not all on the same CPUs.
    """
    slots = grant.shares[0].slots
    found = {
        "EXEX_GRANTED_CORES": str(slots),
        "EXEX_GRANTED_GPUS": ",".join(grant.gpus),
        "EXEX_GRANTED_NODES": ",".join(grant.hosts),
    }
    if not is_gang:
        found |= thread_counts(slots)
    if grant.cores and not is_gang:
        numbers = [str(core) for core in grant.cores]
        found["GOMP_CPU_AFFINITY"] = " ".join(numbers)
        found["KMP_AFFINITY"] = f"granularity=fine,explicit,proclist=[{','.join(numbers)}]"
    if grant.gpus and gpu_variable:
        found[gpu_variable] = ",".join(grant.gpus)
    return found


@contextmanager
def granted(grant: Grant, is_gang: bool) -> Iterator[None]:
    """Meanwhile this process has what was granted."""
    global current  # noqa: PLW0603
    before = os.sched_getaffinity(0)
    current = grant
    bind(grant.cores)
    try:
        with environment(variables(grant, is_gang)):
            yield
    finally:
        current = None
        if grant.cores:
            bind(sorted(before))


def _run_on_nodes(grant: Grant, spec: AppSpec, args: Any) -> tuple[int, Payload, float]:
    from exex.worker import own_world, subtask  # not in every task process: it reads launchers' files

    with granted(grant, is_gang=True), ExitStack() as stack:
        if spec.ranks:
            return own_world.run(grant, spec, *args)
        prepare = partial(subtask.prepare, stack, spec, grant)
        everything: Any = (spec, *args, prepare)
        return execute(*everything)


def execute_with(grant: Grant) -> Callable[..., tuple[int, Payload, float]]:
    """`execute` for a task with this grant."""

    def run(spec: AppSpec, *args: Any) -> tuple[int, Payload, float]:
        if spec.nodes or spec.ranks:
            return _run_on_nodes(grant, spec, args)
        with granted(grant, is_gang=False):
            return execute(spec, *args)

    return run
