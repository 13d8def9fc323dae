"""A small machine under the trace of benchmarks/gangs.py: it stays busy, and no gang waits for ever."""

from __future__ import annotations

import pytest

from benchmarks.gangs import KINDS, Exex, Job, Kind, Scheduler, Simple, make_trace, run

NODES, SLOTS = 64, 4
SMALL = (*(kind for kind in KINDS if kind.nodes <= 4), Kind("gang-16", 16, 0.3, 200.0, 0.6))


@pytest.mark.parametrize("seed", range(3))
def test_the_machine_is_busy_and_no_gang_waits_longer_than_twice_the_longest_task(seed: int) -> None:
    trace = make_trace(seed, NODES, SLOTS, 0.5, SMALL)
    exex = Exex(NODES, SLOTS, SMALL)
    result = run(exex, trace, NODES, SLOTS, SMALL)
    assert result.utilisation >= 0.95
    assert result.longest_wait_s <= 2 * result.longest_task_s
    exex.state.check()
    assert not exex.state.tasks and not exex.state.holdings and not exex.state.packing.kept
    nothing_overtakes = run(Simple(NODES, SLOTS, SMALL, smallest_first=False), trace, NODES, SLOTS, SMALL)
    assert result.utilisation > nothing_overtakes.utilisation


def test_gangs_for_the_whole_machine_and_serial_tasks_take_turns() -> None:
    kinds = (Kind("serial", 0, 0.5, 20.0, 0.5), Kind("all", NODES, 0.5, 60.0, 0.3))
    trace = make_trace(1, NODES, SLOTS, 0.5, kinds)
    result = run(Exex(NODES, SLOTS, kinds), trace, NODES, SLOTS, kinds)
    assert result.longest_wait_s <= 2 * result.longest_task_s
    assert set(result.mean_waits_s) == {"serial", "all"}


@pytest.mark.parametrize("smallest_first", [False, True])
def test_the_simple_schedulers_run_everything_once(smallest_first: bool) -> None:
    trace = make_trace(1, NODES, SLOTS, 0.1, SMALL)
    started: list[Job] = []

    class Noted(Simple):
        def start(self, now_s: float) -> list[Job]:
            begun = super().start(now_s)
            started.extend(begun)
            return begun

    scheduler: Scheduler = Noted(NODES, SLOTS, SMALL, smallest_first)
    run(scheduler, trace, NODES, SLOTS, SMALL)
    assert sorted(job.number for job in started) == [job.number for job in trace]
