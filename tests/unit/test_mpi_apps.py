"""`mpi_app` with `ranks=`: what it accepts, what the manager is asked for, and what is refused at the call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from exex import ConfigError, InvalidResourceSpecification, mpi_app
from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Kind, NodeShape, Submit
from tests.fakes import FakeManager, Job


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    manager = FakeManager(nodes=[NodeShape(2, 4, 0, 0)])
    with Job(manager):
        yield manager


def told(manager: FakeManager, count: int) -> tuple[list[AppSpec], list[Submit]]:
    """Apps and submissions, once so many calls have arrived."""
    manager.until(lambda: sum(len(submit.payloads) for submit in manager.told(Submit)) >= count)
    submits = manager.told(Submit)
    return [app for submit in submits for app in submit.apps], submits


def calls(manager: FakeManager, count: int) -> list[tuple[Any, ...]]:
    """The arguments that arrived."""
    _, submits = told(manager, count)
    return [payloads.load_call(one, ()) for submit in submits for one in submit.payloads]


def f(comm: object, x: int = 0) -> int:
    return x


def test_what_the_manager_is_asked_for(manager: FakeManager) -> None:
    mpi_app(ranks=3, every_rank=True, own_world=True, walltime=5.0, retries=2, gpus=0)(f)(1)
    (spec,), _ = told(manager, 1)
    assert (spec.kind, spec.ranks, spec.every_rank, spec.own_world) == (Kind.TOGETHER, 3, True, True)
    assert (spec.walltime_s, spec.retries, spec.nodes, spec.cores) == (5.0, 2, 0, 0)


def test_a_call_may_have_another_number_of_ranks(manager: FakeManager) -> None:
    app = mpi_app(ranks=2)(f)
    for ranks in (None, 4, 2, 4):
        app(1, **({} if ranks is None else {"ranks": ranks}))
    specs, submits = told(manager, 4)
    by_number = {spec.app: spec.ranks for spec in specs}
    numbers = [number for submit in submits for number in submit.calls * (len(submit.payloads) // len(submit.calls))]
    assert [by_number[number] for number in numbers] == [2, 4, 2, 4]
    assert calls(manager, 4) == [((1,), {})] * 4


def test_nodes_and_their_ranks(manager: FakeManager) -> None:
    app = mpi_app(nodes=1, ranks_per_node=2)(named)
    app("a")
    app("b", ranks_per_node=4)
    (first, second) = calls(manager, 2)
    assert [call[2]["mpi"]["ranks_per_node"] for call in (first, second)] == [2, 4]
    with pytest.raises(ValueError, match="ranks_per_node must be from 1"):
        app("c", ranks_per_node=0)


def named(what: str, ranks: int = 7) -> str:
    return what


def test_a_parameter_of_that_name_is_the_functions_own(manager: FakeManager) -> None:
    @mpi_app(ranks=2)
    def named(comm: object, ranks: int) -> int:
        return ranks

    named(ranks=4)
    (spec,), _ = told(manager, 1)
    assert spec.ranks == 2 and calls(manager, 1)[0][1] == {"ranks": 4}


def test_positions_of_special_arguments_are_those_of_the_caller(manager: FakeManager) -> None:
    @mpi_app(ranks=2)
    def special(comm: object, x: int, stdout: str = "") -> int:
        return x

    future = special(1, "out.txt")
    (call,) = calls(manager, 1)
    assert call[0][0] == 1 and call[0][1].endswith("out.txt") and call[2]["stdout"][0].endswith("/out.txt")
    assert str(future.stdout).endswith("out.txt")


DECORATED: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ConfigError, "needs either nodes=, .* or ranks=", {}),
    (ConfigError, "needs either nodes=, .* or ranks=", {"nodes": 1, "ranks": 2}),
    (ConfigError, "ranks_per_node= is for programs", {"ranks": 2, "ranks_per_node": 2}),
    (ConfigError, "memory= is for programs", {"ranks": 2, "memory": 1 << 30}),
    (ConfigError, "launcher_options= is for programs", {"ranks": 2, "launcher_options": "-v"}),
    (ConfigError, "cores_per_rank= is for programs", {"ranks": 2, "cores_per_rank": 2}),
    (ConfigError, "every_rank= is for functions", {"nodes": 1, "every_rank": True}),
    (ConfigError, "own_world= is for functions", {"nodes": 1, "own_world": True}),
    (ConfigError, "nodes must be at least 1", {"nodes": 0}),
    (ValueError, "ranks must be from 1 to 4194304, but it is 0", {"ranks": 0}),
    (ValueError, "ranks must be from 1", {"ranks": 1 << 23}),
    (TypeError, "ranks must be an int, not 2.0", {"ranks": 2.0}),
    (TypeError, "ranks must be an int, not True", {"ranks": True}),
    (TypeError, "ranks must be an int, not '2'", {"ranks": "2"}),
    (ValueError, "ranks_per_node must be from 1", {"nodes": 1, "ranks_per_node": 0}),
    (ValueError, "cores_per_rank must be from 1", {"nodes": 1, "cores_per_rank": 0}),
    (TypeError, "asks for ranks=, and so cannot have cores=", {"ranks": 2, "cores": 2}),
]


@pytest.mark.parametrize(("kind", "text", "options"), DECORATED, ids=[repr(options) for _, _, options in DECORATED])
def test_mistakes_of_the_decorator(kind: type[Exception], text: str, options: dict[str, Any]) -> None:
    with pytest.raises(kind, match=text):
        mpi_app(**options)(f)


CALLED: list[tuple[type[Exception], str, Callable[[Any], Any]]] = [
    (ValueError, "ranks must be from 1", lambda app: app(1, ranks=-1)),
    (TypeError, "ranks must be an int", lambda app: app(1, ranks="4")),
    (TypeError, "asks for ranks=, and so cannot have cores=", lambda app: app(1, cores=2)),
    (TypeError, "asks for ranks=, and so cannot have nodes=", lambda app: app(1, nodes=2)),
    (InvalidResourceSpecification, "app f asks for .* but there are 2 nodes", lambda app: app(1, ranks=9)),
    (InvalidResourceSpecification, "accelerator", lambda app: app(1, gpus=1)),
]


@pytest.mark.parametrize(("kind", "text", "call"), CALLED, ids=[text for _, text, _ in CALLED])
def test_mistakes_of_a_call(manager: FakeManager, kind: type[Exception], text: str, call: Callable[[Any], Any]) -> None:
    with pytest.raises(kind, match=text):
        call(mpi_app(ranks=2)(f)).result(timeout=20)


def keys(manager: FakeManager, count: int) -> list[bytes]:
    _, submits = told(manager, count)
    return [submit.keys[i].partial for submit in submits for i in range(len(submit.payloads))]


def test_equal_calls_on_as_many_ranks_are_cached_as_one(manager: FakeManager) -> None:
    two, four, all_values = mpi_app(ranks=2, cache=True)(f), mpi_app(ranks=4, cache=True)(f), mpi_app(ranks=2, cache=True, every_rank=True)(f)
    for call in (lambda: two(1), lambda: two(x=1), lambda: two(1, ranks=4), lambda: four(1), lambda: all_values(1), lambda: two(2)):
        call()
    same, also, more, four_key, every, other = keys(manager, 6)
    assert same == also and more == four_key
    assert len({same, more, every, other}) == 4, "a function may return what depends on the number of its ranks"


def test_what_the_cache_ignores_is_named_as_the_function_names_it(manager: FakeManager) -> None:
    @mpi_app(ranks=2, cache=True, ignore_for_cache=["a"])
    def named(comm: object, a: int, b: int) -> int:
        return b

    for args in ((1, 5), (2, 5), (1, 6)):
        named(*args)
    first, second, third = keys(manager, 3)
    assert first == second != third
