"""Several clients of one played manager: they see only their own tasks, and none waits for another's many."""

from __future__ import annotations

import pytest

from tests.sim.simulation import Simulation


@pytest.mark.parametrize("seed", range(40))
def test_many_clients_get_their_own_answers(seed: int) -> None:
    Simulation(seed, tasks=8, clients=8, slots=2).run()


@pytest.mark.parametrize("seed", range(20))
def test_clients_vanish_beside_others(seed: int) -> None:
    Simulation(seed, tasks=12, clients=5, slots=1, lose_clients=2).run()
