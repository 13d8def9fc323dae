"""MPI apps: programs of several ranks that a launcher starts, and Python functions on a communicator. Runs in the client."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from exex.client import digests
from exex.client.apps import App, BashApp, decorate
from exex.client.futures import AppFuture
from exex.client.options import AppOptions, Parameters, Program, Team
from exex.client.resources import check_ranks
from exex.client.retries import RetryHandler
from exex.errors import ConfigError
from exex.protocol.checks import MOST_SLOTS
from exex.protocol.messages import Kind


class _SizedApp(App):
    """An app of which each call may say a number of its own, by a keyword that the function does not get."""

    sized_by = ""

    def __init__(self, function: Callable[..., Any], options: AppOptions) -> None:
        super().__init__(function, options)
        self._others: dict[int, _SizedApp] = {}
        try:
            self._is_own = self.sized_by in inspect.signature(function).parameters
        except (TypeError, ValueError):  # a builtin that tells nothing
            self._is_own = False

    def __call__(self, *args: Any, **kwargs: Any) -> AppFuture:
        """Make a task."""
        if self.sized_by not in kwargs or self._is_own:
            return super().__call__(*args, **kwargs)
        size = check_ranks(self.sized_by, kwargs.pop(self.sized_by))
        other = self._others.get(size)
        if other is None:
            other = self._others[size] = self._sized(size)
        return other(*args, **kwargs)

    def _sized(self, size: int) -> _SizedApp:
        raise NotImplementedError


class MpiApp(_SizedApp, BashApp):
    """An app whose function returns the command line of an MPI program; the task starts it on its nodes."""

    sized_by = "ranks_per_node"

    def _sized(self, size: int) -> MpiApp:
        assert self._options.program is not None
        return MpiApp(self._function, self._options._replace(program=self._options.program._replace(ranks_per_node=size)))


class CommunicatorApp(_SizedApp):
    """An app whose task is a call of the function on each rank of a communicator, its first argument."""

    kind = Kind.TOGETHER
    sized_by = "ranks"

    @cached_property
    def _parameters(self) -> Parameters:
        return Parameters(self._function, first=1)

    def _sized(self, size: int) -> CommunicatorApp:
        assert self._options.team is not None
        return CommunicatorApp(self._function, self._options._replace(team=self._options.team._replace(ranks=size)))


for _kind in (MpiApp, CommunicatorApp):
    digests.add_special(_kind, lambda app: (int(app.kind), app.func))


def mpi_app(
    function: Callable[..., Any] | None = None,
    data_flow_kernel: None = None,
    cache: bool = False,
    executors: Sequence[str] | str = "all",
    ignore_for_cache: Sequence[str] | None = None,
    *,
    nodes: int | None = None,
    ranks_per_node: int | None = None,
    cores_per_rank: int = 1,
    launcher_options: str = "",
    ranks: int | None = None,
    every_rank: bool = False,
    own_world: bool = False,
    retries: int | None = None,
    retry_handler: RetryHandler | None = None,
    priority: int = 0,
    walltime: float | None = None,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    memory: int | None = None,
    version: Any = None,
    cores: int | None = None,
    gpus: int | None = None,
    exclusive: bool | None = None,
) -> Any:
    """Decorator for tasks of several MPI ranks, of two kinds.

    With `nodes`, the function returns the command line of an MPI program, as of a bash app but for the launcher, whose words exex
    puts before it: `@mpi_app(nodes=2, ranks_per_node=4)`. The task has these nodes, whole ones unless `cores` says how many slots
    of each, and its value is the exit code, 0.

    With `ranks`, the function runs on every rank of a communicator (`mpi4py.MPI.Intracomm`), its first argument, which the caller
    does not pass: `@mpi_app(ranks=8)`. Where worker ranks have one slot, it is made of idle ones, within a millisecond or so;
    elsewhere the launcher starts a world for the task. Its value is that of rank 0.

    Other arguments are those of `python_app`; calls may say `nodes=` and `ranks_per_node=`, or `ranks=`, anew.

    Args:
        nodes: of a program.
        ranks_per_node: of a program; None for one on each slot that it has, or each `cores_per_rank` of them.
        cores_per_rank: of a program.
        launcher_options: of a program: words for the launcher, before the command line.
        ranks: of a function.
        every_rank: the value of a function is the list of all ranks' values.
        own_world: a function always gets a world of its own: if it crashes, or waits for ever, no worker rank is lost.

    Raises:
        ConfigError, TypeError, ValueError: arguments that cannot be used.
    """
    common = AppOptions(
        retries, retry_handler, priority, walltime, cwd, env, memory, cache, version,
        cores=cores, gpus=gpus, nodes=nodes, exclusive=exclusive,
    )  # fmt: skip
    if (nodes is None) == (ranks is None):
        raise ConfigError("mpi_app needs either nodes=, for a program that the launcher starts, or ranks=, for a function")
    if ranks is not None:
        given = {"ranks_per_node": ranks_per_node, "memory": memory, "launcher_options": launcher_options}
        given |= {"cores_per_rank": None if cores_per_rank == 1 else cores_per_rank}
        for name, value in given.items():
            if value:
                raise ConfigError(f"{name}= is for programs, which mpi_app(nodes=) makes; mpi_app(ranks=) makes a function")
        options = common._replace(team=Team(check_ranks("ranks", ranks), every_rank, own_world))
        return decorate(CommunicatorApp, function, options, data_flow_kernel, ignore_for_cache)
    for name, value in {"every_rank": every_rank, "own_world": own_world}.items():
        if value:
            raise ConfigError(f"{name}= is for functions, which mpi_app(ranks=) makes; mpi_app(nodes=) makes a program")
    if not nodes:
        raise ConfigError(f"nodes must be at least 1, but it is {nodes}")
    if ranks_per_node is not None:
        check_ranks("ranks_per_node", ranks_per_node, MOST_SLOTS)
    program = Program(ranks_per_node, check_ranks("cores_per_rank", cores_per_rank, MOST_SLOTS), str(launcher_options))
    return decorate(MpiApp, function, common._replace(program=program), data_flow_kernel, ignore_for_cache)
