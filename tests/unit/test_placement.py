"""Small tasks on very many workers: what a message carries, and how much a turn does."""

from __future__ import annotations

import pytest

from exex.manager import placement
from tests.unit.test_manager import Manager

WORKERS = 300


def known(seconds: float) -> Manager:
    """One-slot workers, and an app whose length is known; task 0 has ended."""
    manager = Manager(*[1] * WORKERS)
    manager.submit(1)
    (rank,) = manager.turn()
    manager.done(rank, 0, seconds=seconds)
    return manager


def sizes(manager: Manager) -> list[int]:
    return [len(assign.tasks) for assign in manager.turn().values()]


def test_short_tasks_travel_together_though_others_are_idle() -> None:
    manager = known(1e-6)
    manager.submit(WORKERS)
    assert len(sizes(manager)) < WORKERS / 5


@pytest.mark.parametrize("seconds", [0.01, 1.0])
def test_longer_tasks_go_to_a_worker_each(seconds: float) -> None:
    manager = known(seconds)
    manager.submit(WORKERS)
    assert sizes(manager) == [1] * WORKERS


def test_few_short_tasks_are_spread() -> None:
    manager = known(1e-6)
    manager.submit(4)
    assert sizes(manager) == [1] * 4


def test_many_short_tasks_are_spread_evenly() -> None:
    manager = known(1e-6)
    manager.submit(100 * WORKERS)
    assert len(sizes(manager)) == WORKERS


def test_a_long_task_is_not_queued_behind_short_ones() -> None:
    manager = known(1e-6)
    manager.spec = type(manager.spec)(app=1, name="g", function=b"e")
    manager.submit(2)
    state, client = manager.state, manager.client
    state.functions[b"e"] = b"code"
    state.new_app(client, manager.spec)
    client.apps[1].mean_s = 1.0
    for _ in range(WORKERS // 2):  # alternately
        manager.submit(1)
        manager.submit(1, call=1)
    for assign in manager.turn().values():
        calls = [state.apps[number].spec.name for number in assign.calls] * (len(assign.tasks) if len(assign.calls) == 1 else 1)
        assert "g" not in calls[1:]


def test_a_turn_with_very_many_workers_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "WORKERS_A_TURN", 100)
    manager = Manager(*[1] * WORKERS)
    manager.submit(WORKERS)
    assert sizes(manager) == [1] * 100
    assert manager.state.must_place
    assert len(sizes(manager)) == 100 and len(sizes(manager)) == 100
    assert not manager.state.must_place


@pytest.mark.parametrize(("waiting", "least", "most"), [(200, 1, 1), (200_000, 2, 5)])
def test_more_is_queued_while_very_many_wait(waiting: int, least: int, most: int) -> None:
    manager = Manager(1)
    manager.submit(waiting)
    manager.turn()
    manager.done(1, 0, seconds=0.01)
    manager.turn()
    assert least <= manager.state.workers[1].held <= most
