"""The played world of benchmarks/manager_scale.py, small: all that is submitted ends, and the figures are what they are said to be."""

from __future__ import annotations

import pytest

from benchmarks.manager_scale import Measured, costs_of
from benchmarks.played_world import Costs, Shape, World, app, calls


@pytest.mark.parametrize("shape", [Shape(64, 1, 8), Shape(16, 4, 1)])
def test_every_workload_ends_and_leaves_nothing(shape: Shape) -> None:
    measured = Measured(shape, 3000)
    for step in (measured.register, measured.noops, measured.seconds, measured.mixed, measured.gangs, measured.beats):
        step()
    state = measured.world.loop.state
    state.check()
    assert not state.tasks and not state.holdings and len(state.workers) == shape.ranks
    assert measured.values["noop_messages"] < 1 < measured.values["second_messages"] * shape.slots + 1
    costs = costs_of({**measured.values}, {"send_s": 1e-6, "receive_s": 2e-6})
    assert costs["message_s"] > 0


def test_the_clock_counts_lengths_and_the_way() -> None:
    world = World(Shape(8, 1, 8), Costs(one_way_s=0.5, task_s=0.0))
    world.register()
    took_s = world.run(calls(0, 16, app(0, "f")), lambda task: 10.0)
    assert 22.0 <= took_s < 22.5  # two rounds; there and back each time


def test_a_lost_rank_takes_nothing_with_it() -> None:
    world = World(Shape(8, 1, 8))
    world.register()
    world.begin(calls(0, 40, app(0, "f")), lambda task: 1.0)
    for _ in range(3):
        world.turn()
    for rank in (1, 2, 8):
        world.loop.lose_worker(rank, "is dead")
        world.loop.state.check()
    world.finish()
    assert world.done == 40
