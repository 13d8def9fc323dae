"""The safety net: whatever the order of events, every task ends exactly once, and nothing leaks."""

from __future__ import annotations

import time

import pytest

from tests.sim.__main__ import run_seed
from tests.sim.mutations import MUTATIONS, Mutation, applied, caught
from tests.sim.simulation import Simulation

FRESH = int(time.time()) * 100


@pytest.mark.parametrize("seed", range(100))
def test_every_task_ends_once(seed: int) -> None:
    Simulation(seed).run()


@pytest.mark.parametrize("seed", range(30))
def test_several_clients_do_not_mix(seed: int) -> None:
    Simulation(seed, tasks=30, clients=3, slots=1).run()


@pytest.mark.parametrize("start", range(0, 200, 20))
def test_every_task_ends_whatever_goes_wrong(start: int) -> None:
    for seed in range(start, start + 20):
        run_seed(seed)


def test_every_task_ends_with_seeds_that_nobody_has_seen() -> None:
    for seed in range(FRESH, FRESH + 60):
        run_seed(seed)


@pytest.mark.parametrize("seed", range(30))
def test_nothing_runs_twice_without_loss(seed: int) -> None:
    sim = Simulation(seed, death_rate=0.0, cancel_rate=0.0, hang_rate=0.0)
    sim.run()
    assert set(sim.ran.values()) == {1}


@pytest.mark.parametrize("seed", [3, 57])
def test_a_seed_replays_exactly(seed: int) -> None:
    assert list(run_seed(seed).story) == list(run_seed(seed).story)


QUICK = [mutation for mutation in MUTATIONS if mutation.name in (
    "attempts of a lost rank are not queued again",
    "a slot is given back twice",
    "the slot of a cancelled attempt is not given back",
    "an answer is lost",
    "a free worker's flag stays set",
    "late words of a lost rank are heeded",
)]  # fmt: skip


@pytest.mark.parametrize("mutation", QUICK, ids=lambda mutation: mutation.name)
def test_a_deliberate_bug_is_found(mutation: Mutation) -> None:
    assert caught(mutation, 100)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_mutation_fits_the_code(mutation: Mutation) -> None:
    before = mutation.function.__code__
    with applied(mutation):
        assert mutation.function.__code__ is not before
    assert mutation.function.__code__ is before


def test_the_quick_mutations_exist() -> None:
    assert len(QUICK) == 6
