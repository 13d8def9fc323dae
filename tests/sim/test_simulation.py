"""The safety net: whatever the order of events, every task ends exactly once, and nothing leaks."""

from __future__ import annotations

import time

import pytest

from tests.sim.__main__ import run_seed
from tests.sim.mutations import MUTATIONS, Mutation, applied, caught
from tests.sim.played_client import has_outputs
from tests.sim.simulation import Past, Simulation

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


@pytest.mark.parametrize("start", range(0, 16, 4))
def test_tasks_make_tasks_and_wait_for_them(start: int) -> None:
    """On few slots, so that all of them would wait for ever if any kept its slot; with losses, cancellations and big tasks."""
    waits = clients = 0
    for seed in range(start, start + 4):
        sim = Simulation(
            seed, tasks=30, ranks=1 + seed % 3, slots=1 + seed % 2, nest_rate=0.5, lose_ranks=seed % 2, lose_templates=seed % 3 // 2,
            cancel_rate=0.1, failure_rate=0.05, death_rate=0.02,
            big_rate=0.3 * (seed % 2), gpus=2 * (seed % 2), prefetch_s=100.0 if seed % 4 == 3 else 0.005,
        )  # fmt: skip
        sim.run()
        waits += sim.waits
        clients += sim.inner_clients
    assert waits > 10 and clients > 10


@pytest.mark.parametrize("start", range(0, 40, 10))
def test_what_is_queued_comes_back_exactly(start: int) -> None:
    """Long queues, so that others idle, better tasks wait, and nodes are kept; ranks, processes and wishes come and go."""
    asked = came_back = 0
    for seed in range(start, start + 10):
        sim = Simulation(
            seed, tasks=150, ranks=5, slots=1 + seed % 2, prefetch_s=100.0, failure_rate=0.02, lose_ranks=seed % 3, lose_templates=seed % 2,
            cache_rate=0.1,
        )  # fmt: skip
        sim.run()
        asked += sim.asked_back
        came_back += sim.manager.stock.returned
    assert 100 < came_back <= asked


def test_a_second_life_runs_nothing_that_the_first_has_recorded() -> None:
    first_attempts = second_attempts = 0
    for seed in range(20):
        past = Past()
        first, second = (_life(seed, past) for _ in range(2))
        first_attempts += len(first.begun)
        second_attempts += len(second.begun)
        (client,) = second.clients
        for task, _ in second.begun:
            assert has_outputs(client.payloads[task]) or client.identity(task) not in first.done_calls
    assert 0 < second_attempts < first_attempts / 2, "some files are gone, and some promises were broken before"


def _life(seed: int, past: Past) -> Simulation:
    """A life without failures in which every call is cached."""
    sim = Simulation(
        seed, failure_rate=0.0, death_rate=0.0, cancel_rate=0.0, hang_rate=0.0, cache_rate=1.0, frail_disk=False, past=past
    )
    sim.run()
    past.lives += 1
    return sim


@pytest.mark.parametrize("seed", range(20))
def test_the_manager_finds_silent_ranks_by_itself(seed: int) -> None:
    sim = Simulation(seed, ranks=3, limit_s=5.0, failure_rate=0.0)
    sim._give_up = lambda one: None  # type: ignore[method-assign]  # there are no guards
    sim.workers[2].dead = sim.workers[3].dead = True
    sim.run()
    assert sim.manager_loop.lost.keys() == {2, 3}
    assert all(how.startswith("was not heard of for 5 s") for how in sim.manager_loop.lost.values())


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
    "a result is not recorded",
    "a follower of an equal call is forgotten",
    "a failed head leaves its followers waiting",
    "a silent rank is never given up",
    "the job's own pause counts as silence",
    "a shelved task is assigned",
    "a call on a communicator ends with its first part",
    "nobody stands in for a lost lead",
    "ranks in a function are given up for their silence",
    "a call that has begun is given back",
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
    assert len(QUICK) == 16
