"""The safety net: whatever the order of events, every task ends exactly once, and nothing leaks."""

from __future__ import annotations

import pytest

from tests.sim.simulation import Simulation


def run(sim: Simulation) -> None:
    """To the end, with every invariant checked on the way."""
    steps = 0
    while sim.step():
        steps += 1
        if steps % 7 == 0:
            sim.manager.check()
        assert steps < 200_000, f"seed {sim.seed} does not end"
    sim.drain()
    sim.manager.check()
    assert not sim.manager.tasks and not sim.manager.dropped and not sim.manager.ready.count
    for worker in sim.manager.workers.values():
        assert worker.held == 0 and worker.held_s == 0.0
    for client in sim.clients:
        assert client.answers.keys() | client.cancelled == set(range(client.total))
        assert not sim.manager.clients[client.number].kept, "values are kept that nobody can ask for"


@pytest.mark.parametrize("seed", range(150))
def test_every_task_ends_once(seed: int) -> None:
    run(Simulation(seed))


@pytest.mark.parametrize("seed", range(50))
def test_several_clients_do_not_mix(seed: int) -> None:
    run(Simulation(seed, tasks=30, clients=3, slots=1))


@pytest.mark.parametrize("seed", range(100))
def test_every_task_ends_though_ranks_are_lost(seed: int) -> None:
    run(Simulation(seed, ranks=4, lose_ranks=2))


@pytest.mark.parametrize("seed", range(30))
def test_nothing_runs_twice_without_loss(seed: int) -> None:
    sim = Simulation(seed, death_rate=0.0, cancel_rate=0.0)
    run(sim)
    assert set(sim.ran.values()) == {1}
