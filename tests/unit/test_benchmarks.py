"""Parts of benchmarks that could be wrong without anybody noticing: what is a figure there is derived here from a case that is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from benchmarks import graphs, tasks
from benchmarks.stage import Opens, Shape, count
from benchmarks.system import System

NEEDS = {  # by graph: width, step, point and what it needs, as Task Bench's core defines it
    "trivial": [(8, 3, 4, [])],
    "stencil_1d": [(8, 1, 0, [0, 1]), (8, 1, 4, [3, 4, 5]), (8, 1, 7, [6, 7]), (1, 1, 0, [0])],
    "nearest": [(8, 1, 4, [2, 3, 4, 5, 6]), (8, 1, 0, [0, 1, 2]), (8, 1, 7, [5, 6, 7]), (2, 1, 1, [0, 1])],
    "spread": [(10, 0, 1, [1, 3, 5, 7, 9]), (10, 1, 1, [0, 1, 4, 6, 8]), (10, 4, 1, [0, 1, 4, 6, 8]), (2, 1, 0, [0, 1])],
    "all_to_all": [(3, 1, 0, [0, 1, 2]), (3, 2, 2, [0, 1, 2])],
}


@pytest.mark.parametrize("name", graphs.GRAPHS)
def test_what_a_point_needs(name: str) -> None:
    for width, step, point, expected in NEEDS[name]:
        assert graphs.GRAPHS[name](width, step, point) == expected, (width, step, point)


class Now(System):
    """Runs each call when it is submitted; a future is its value."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.calls: list[tuple[Any, ...]] = []

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        self.calls.append(args)
        return fn(*args)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        return list(futures)

    def map(self, fn: Callable[..., Any], items: Sequence[Any], chunksize: int | None) -> list[Any]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def test_a_graph_is_submitted_with_its_edges() -> None:
    system = Now(3)
    assert system.graph(graphs.stencil_1d, 3, 3, 7) == [3, 3, 3]
    assert system.calls == [(7,)] * 3 + [(7, 1, 1), (7, 1, 1, 1), (7, 1, 1)] + [(7, 2, 2), (7, 2, 2, 2), (7, 2, 2)]
    assert Now(2).graph(graphs.trivial, 2, 4, 0) == [1] * 8
    with pytest.raises(ValueError, match="different steps"):
        tasks.point(0, 3, 4)


class Clock(Now):
    """Each task costs its kernel and `cost_s` on one of the cores, by a clock of its own. A length takes as many iterations as it has ns."""

    cost_s = 1e-4

    def graph(self, needs: Any, width: int, steps: int, iterations: int) -> list[int]:
        self.now_s += width * steps * (iterations * 1e-9 + self.cost_s) / graphs.cores(width)
        return [1] * width * steps if needs is graphs.trivial else [steps] * width

    now_s = 0.0


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize("name", ["trivial", "nearest"])
def test_metg_is_twice_what_a_task_costs(monkeypatch: pytest.MonkeyPatch, slots: int, name: str) -> None:
    """Where a task of 100 us costs 100 us beside, half of the cores' time is left for the kernel, and a granule is 200 us."""
    monkeypatch.setattr(graphs, "cores", lambda slots: min(slots, 2))
    system = Clock(slots)
    monkeypatch.setattr(time, "perf_counter", lambda: system.now_s)
    sweep = graphs.Sweep(system, name, 1e9 * graphs.cores(slots), 0.5)
    assert sweep.metg_s() == pytest.approx(2e-4, rel=0.02)
    assert sweep.most_tasks >= graphs.STEPS * slots


def test_without_half_of_the_rate_there_is_no_metg(monkeypatch: pytest.MonkeyPatch) -> None:
    system = Clock(2)
    monkeypatch.setattr(time, "perf_counter", lambda: system.now_s)
    with pytest.raises(RuntimeError, match=r"efficiency 0\.10"):
        graphs.Sweep(system, "trivial", 1e10 * graphs.cores(2), 0.5).metg_s()


TRACE = """\
10  execve("/shared/env/bin/mpiexec", ["mpiexec"], 0x7ffe /* 35 vars */) = 0
10  openat(AT_FDCWD, "/shared/env/lib/libmpi.so", O_RDONLY|O_CLOEXEC) = 3
10  clone(child_stack=NULL, flags=SIGCHLD, child_tidptr=0x7f98) = 11
11  clone(child_stack=NULL, flags=SIGCHLD <unfinished ...>
10  --- SIGCHLD {si_signo=SIGCHLD} ---
11  <... clone resumed>, child_tidptr=0x7f49) = 13
11  clone(child_stack=NULL, flags=SIGCHLD, child_tidptr=0x7f49) = 12
13  execve("/shared/env/bin/python", ["python"], 0x26 /* 43 vars */) = 0
12  execve("/shared/env/bin/python", ["python"], 0x26 /* 43 vars */) = 0
12  openat(AT_FDCWD, "/shared/env/lib/os.py", O_RDONLY|O_CLOEXEC) = 3
12  openat(AT_FDCWD, "/etc/hosts", O_RDONLY|O_CLOEXEC) = 3
12  openat(AT_FDCWD, "/shared/env.tar", O_RDONLY <unfinished ...>
13  open("/shared/env/lib/none.py", O_RDONLY) = -1 ENOENT (No such file or directory)
13  clone3({flags=CLONE_VM, exit_signal=SIGCHLD}, 88) = 14
14  openat(AT_FDCWD, "/shared/env/lib/os.py", O_RDONLY|O_CLOEXEC) = 3
14  execve("/node/env/bin/python", ["python"], 0x26 /* 43 vars */) = 0
14  vfork() = 15
15  openat(AT_FDCWD, "/shared/env/lib/numpy.py", O_RDONLY|O_CLOEXEC) = 3
15  openat(AT_FDCWD, "/node/env/lib/numpy.py", O_RDONLY|O_CLOEXEC) = 3
15  execve("/shared/env/bin/python", ["python"], 0x26 /* 43 vars */) = 0
""".splitlines()


def test_opens_are_counted_where_they_are_made() -> None:
    words = ("/shared/env/bin/python", "/node", ("/shared",), "/shared/env.tar")
    assert count(TRACE, Shape(2, 2), *words) == Opens([2, 3], tasks=1, archive=1)
    assert count(TRACE, Shape(1, 2), *words) == Opens([5], tasks=1, archive=1)
    with pytest.raises(RuntimeError, match="2 ranks in the trace of a job of 3"):
        count(TRACE, Shape(1, 3), *words)
    assert Shape.of("4x16") == Shape(nodes=4, ranks=16)
