"""Tasks that are queued at workers come back: who is asked, for how many, when, and what the worker does."""

from __future__ import annotations

import pytest

from exex.errors import ProtocolError
from exex.manager import from_clients, from_workers, retraction
from exex.manager.stock import MOST_RETURNS
from exex.manager.task import Status
from exex.protocol.messages import AppSpec, Cancel, Outcome, Retract, Returned, Submit
from exex.worker import giving_back, running
from tests.unit import test_worker_state as workers
from tests.unit.test_manager import Manager, hello


def queued(*slots: int, seconds: float = 1e-3, count: int = 40) -> Manager:
    """Workers of which the first has all of `count` tasks of an app of known length; the others come up afterwards."""
    manager = Manager(slots[0])
    manager.state.prefetch_s = 1.0
    manager.submit(1)
    manager.turn()
    manager.done(1, 0, seconds=seconds)
    manager.submit(count)
    manager.turn()
    assert manager.state.workers[1].held == count
    for rank, number in enumerate(slots[1:], 2):
        from_workers.on_hello(manager.state, rank, hello(number))
    return manager


def asked(manager: Manager, now_s: float) -> dict[int, list[int]]:
    """A turn at this time: what is asked of whom."""
    manager.state.now_s = now_s
    manager.state.stock.turned_s = now_s - 1e-5
    manager.turn()
    questions = dict(manager.state.stock.outgoing)
    manager.state.stock.outgoing.clear()
    return {rank: question.tasks for rank, question in questions.items()}


def test_an_idle_worker_gets_half_of_a_queue_that_moves() -> None:
    manager = queued(1, 1)
    questions = asked(manager, 0.001)
    assert questions == {1: list(range(40, 20, -1))}, "the last of 39 that are queued, one runs"
    assert retraction.on_returned(manager.state, 1, Returned(tasks=list(range(21, 41)))) == list(range(21, 41))
    assigned = manager.turn()
    assert assigned.keys() == {2}
    assert assigned[2].tasks == list(range(21, 41)), "in the order in which they came"
    assert not assigned[2].attempts
    assert asked(manager, 9.0) == {}, "nobody idles any more"


def test_a_queue_behind_a_task_that_stands_still_comes_back_whole() -> None:
    manager = queued(1, 1)
    assert len(asked(manager, 1.0)[1]) == 39


def test_no_more_is_asked_for_than_idle_slots_could_take() -> None:
    manager = queued(1, 1, seconds=0.02, count=40)
    manager.state.prefetch_s = 0.005
    assert len(asked(manager, 1.0)[1]) == 1


@pytest.mark.parametrize("reason", ["nobody idles", "it is soon over", "it has been looked at just now"])
def test_nothing_is_asked_for_without_need(reason: str) -> None:
    manager = queued(1, *([1] if reason != "nobody idles" else []), seconds=1e-5 if reason == "it is soon over" else 1e-3)
    if reason == "it has been looked at just now":
        manager.state.stock.next_look_s = 0.0011
    assert asked(manager, 0.001) == {}


def test_one_question_at_a_time_and_none_again_that_was_in_vain() -> None:
    manager = queued(1, 1)
    assert asked(manager, 1.0)
    assert asked(manager, 2.0) == {}
    assert retraction.next_look_s(manager.state) is None, "its answer will come"
    retraction.on_returned(manager.state, 1, Returned(tasks=[]))
    assert asked(manager, 3.0) == {}, "it said that all have begun"
    assert retraction.next_look_s(manager.state) is None
    manager.done(1, 1, seconds=1e-3)
    assert asked(manager, 4.0), "it has gone on"


def test_a_queue_that_may_get_stuck_is_looked_at_again_though_nothing_arrives() -> None:
    manager = queued(1, 1, seconds=1e-5)
    assert asked(manager, 0.001) == {}
    look_s = retraction.next_look_s(manager.state)
    assert look_s is not None
    assert asked(manager, look_s + 2 * retraction.STUCK_S)


def test_nothing_stands_still_only_because_the_manager_is_slow() -> None:
    manager = queued(1, 1, seconds=1e-5)
    manager.state.now_s = 0.5  # the turn before took so long: what was sent at its end has just arrived
    manager.turn()
    assert not manager.state.stock.outgoing
    manager.state.stock.is_behind = True  # and what is answered may wait unread
    assert asked(manager, 1.0) == {}
    manager.state.stock.is_behind = False
    assert asked(manager, 1.1)


def test_very_many_queues_are_looked_at_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retraction, "QUEUES", 2)
    manager = Manager(1, 1, 1)
    manager.submit(3)
    manager.turn()
    for task in list(manager.state.tasks.values()):
        manager.done(task.rank, task.id, seconds=1e-3)
    manager.submit(9)
    manager.turn()
    first, second, third = (one.rank for one in manager.state.stock.workers)
    from_workers.on_hello(manager.state, 4, hello(9))
    assert asked(manager, 1.0).keys() == {first, second}
    assert [one.rank for one in manager.state.stock.workers] == [third, first, second]
    assert asked(manager, 2.0).keys() == {third}


def test_the_longest_queue_is_asked_first() -> None:
    manager = queued(1, count=10)
    from_workers.on_hello(manager.state, 2, hello(1))
    manager.submit(30)
    manager.turn()
    assert [manager.state.workers[rank].held for rank in (1, 2)] == [25, 15]
    manager.state.prefetch_s = 1e-9  # an idle slot takes one
    from_workers.on_hello(manager.state, 3, hello(1))
    assert asked(manager, 0.001).keys() == {1}


def urgent(manager: Manager) -> None:
    """A task that goes before all others, of unknown length."""
    spec = AppSpec(app=1, name="urgent", function=b"d", priority=-1)
    message = Submit(first=manager.next, apps=[spec], functions={}, calls=[1], payloads=[b""], needs={}, given={}, answered=0)
    manager.next += 1
    from_clients.on_submit(manager.state, manager.client, message)


def test_what_is_queued_makes_way_for_a_better_priority() -> None:
    manager = queued(1)
    urgent(manager)
    questions = asked(manager, 0.001)
    assert questions == {1: list(range(40, 1, -1))}
    retraction.on_returned(manager.state, 1, Returned(tasks=list(range(2, 41))))
    assert manager.turn() == {}, "of unknown length: it waits for a slot, and nothing goes before it"
    manager.done(1, 1, seconds=1e-3)
    assert manager.turn()[1].tasks == [41]


def test_nothing_makes_way_where_nothing_moves_or_for_its_equals() -> None:
    manager = queued(1)
    urgent(manager)
    assert asked(manager, 1.0) == {}
    manager = queued(1)
    manager.submit(5000)
    assert asked(manager, 0.001) == {}


def test_a_node_that_is_kept_gives_back_what_has_not_begun() -> None:
    manager = queued(2)
    spec = AppSpec(app=1, name="gang", function=b"d", nodes=1)
    message = Submit(first=manager.next, apps=[spec], functions={}, calls=[1], payloads=[b""], needs={}, given={}, answered=0)
    manager.next += 1
    from_clients.on_submit(manager.state, manager.client, message)
    assert asked(manager, 0.001) == {1: list(range(40, 2, -1))}
    retraction.on_returned(manager.state, 1, Returned(tasks=list(range(3, 41))))
    manager.done(1, 1, 2, seconds=1e-3)
    assert manager.turn()[1].tasks == [41]


def test_a_cancelled_task_that_comes_back_is_over() -> None:
    told: list[tuple[list[int], bytes]] = []
    manager = queued(1, 1)
    manager.state.told = lambda rank, done: told.append((done.tasks, done.outcomes))
    (tasks,) = asked(manager, 0.001).values()
    from_clients.on_cancel(manager.state, manager.client, Cancel(tasks=[40]))
    assert retraction.on_returned(manager.state, 1, Returned(tasks=[39, 40])) == [39]
    assert told == [([40], bytes([Outcome.CANCELLED]))]
    assert not manager.state.dropped and manager.state.tasks[39].status == Status.READY
    manager.state.check()


def test_a_task_comes_back_so_often_and_no_more() -> None:
    manager = queued(1, 1, count=3)
    manager.state.stock.returns[3] = MOST_RETURNS
    assert asked(manager, 1.0) == {1: [2]}
    retraction.on_returned(manager.state, 1, Returned(tasks=[2]))
    assert manager.state.stock.returns == {2: 1, 3: MOST_RETURNS}
    manager.turn()
    manager.done(2, 2)
    manager.done(1, 1, 3)
    assert not manager.state.stock.returns


@pytest.mark.parametrize("tasks", [[1000], [2], [40, 40]])
def test_what_was_not_asked_for_is_refused(tasks: list[int]) -> None:
    manager = queued(1, 1)
    asked(manager, 0.001)
    before = manager.state.workers[1].held
    with pytest.raises(ProtocolError):
        retraction.on_returned(manager.state, 1, Returned(tasks=tasks))
    assert manager.state.workers[1].held == before
    with pytest.raises(ProtocolError, match="nobody has asked"):
        retraction.on_returned(manager.state, 2, Returned(tasks=[]))


def test_a_lost_worker_owes_no_answer() -> None:
    manager = queued(1, 1)
    asked(manager, 0.001)
    from_workers.on_worker_lost(manager.state, 1, "died")
    manager.state.check()
    assert not manager.state.stock.asked and not manager.state.stock.workers


# ---- at the worker --------------------------------------------------------------------------------------------


def test_a_worker_gives_back_what_has_not_begun_and_nothing_else() -> None:
    state, (port,) = workers.make()
    state.paces[0] = 1e-4  # so that the slot holds several
    workers.assign(state, 0, *range(10))
    assert len(state.slots[0].held) > 3
    port.left = len(state.slots[0].held) - 2  # two have begun
    giving_back.on_retract(state, Retract(tasks=[0, 1, 2, 8, 9]))
    returned = state.take_returned()
    assert returned is not None and returned.tasks == [2, 8, 9]
    assert [call.task for call in state.queue] == [3, 4, 5, 6, 7]
    assert [call.task for call in state.slots[0].held] == [0, 1]
    assert state.take_returned() is None


def test_a_question_is_answered_though_all_have_begun() -> None:
    state, _ = workers.make()
    workers.assign(state, 0, 7)
    giving_back.on_retract(state, Retract(tasks=[7]))
    assert state.take_returned() == Returned(tasks=[])
    assert [call.task for call in state.slots[0].held] == [7]


def test_a_call_that_has_lost_its_process_stays_where_that_is_counted() -> None:
    state, _ = workers.make()
    workers.assign(state, 0, 7, 8)
    running.on_slot_died(state, state.slots[0], -9, "", 0.0, "its template has ended")
    giving_back.on_retract(state, Retract(tasks=[7, 8]))
    assert state.take_returned() == Returned(tasks=[8])
