"""Several clients of one played manager: they see only their own tasks, and none waits for another's many."""

from __future__ import annotations

import pytest

from tests.sim.simulation import Simulation, small_values


@pytest.mark.parametrize("seed", range(20))
def test_many_clients_get_their_own_answers(seed: int) -> None:
    Simulation(seed, tasks=8, clients=8, slots=2).run()


@pytest.mark.parametrize("seed", range(10))
def test_clients_vanish_beside_others(seed: int) -> None:
    Simulation(seed, tasks=12, clients=5, slots=1, lose_clients=2).run()


@pytest.mark.parametrize("seed", range(20))
def test_visitors_collect_slowly_and_their_data_lies_anywhere(seed: int) -> None:
    with small_values():
        Simulation(
            seed, tasks=12, clients=4, ranks=4, slots=1 + seed % 2, visitors=True, data_rate=0.5, ranks_per_node=2,
            lose_clients=seed % 3, lose_ranks=seed % 2,
        ).run()  # fmt: skip
