"""Tasks that make tasks, at the manager: whose they are, in which order they run, when they end."""

from __future__ import annotations

import pytest

from exex.errors import ProtocolError
from exex.manager import ends, from_clients, nesting
from exex.manager.inner import Inner
from exex.manager.state import ClientRecord, ManagerState
from exex.protocol import payload as payloads
from exex.protocol.messages import CLIENT_SHIFT, AppSpec, Attach, Cancel, Finish, FromTasks, Outcome, Promise, Submit
from exex.protocol.payload import Payload
from exex.protocol.task_numbers import INNER
from tests.unit.test_manager import Manager

SPEC = AppSpec(app=0, name="child", function=b"d")


class Process:
    """A task process of a worker as a client."""

    def __init__(self, manager: Manager, rank: int = 1) -> None:
        self.manager, self.state = manager, manager.state
        self.client: ClientRecord = from_clients.on_attach(self.state, Attach(version="1", pid=0, title="task"), inner=Inner(rank))
        self.next = 0

    def make(self, parent: int, count: int = 1) -> list[int]:
        first, self.next = self.next, self.next + count
        message = Submit(
            first=first,
            apps=[] if first else [SPEC],
            functions={} if first else {b"d": b"code"},
            calls=[0],
            payloads=[b"args"] * count,
            needs={},
            given={},
            answered=0,
        )
        if nesting.on_said(self.state, self.client, parent):
            from_clients.on_submit(self.state, self.client, message)
        else:
            nesting.on_unwanted(self.state, self.client, message)
        return [self.client.base + first + i for i in range(count)]


def moves(manager: Manager, waiting: list[int] | None = None, back: list[int] | None = None) -> list[int]:
    nesting.on_moves(manager.state, 1, FromTasks([], [], [], waiting=waiting or [], back=back or []))
    return nesting.seats(manager.state).get(1, [])


def test_a_task_that_waits_makes_room_for_its_own() -> None:
    manager = Manager(1)
    manager.submit(3)
    manager.turn()
    (child,) = Process(manager).make(0)
    assert manager.turn() == {}
    moves(manager, waiting=[0])
    assert manager.turn()[1].tasks == [child], "before the others, since it is deeper"
    assert moves(manager, back=[0]) == [0]
    assert manager.turn() == {}
    manager.done(1, child)
    assert manager.turn() == {}, "the one that goes on has the slot"
    manager.done(1, 0)
    assert manager.turn()[1].tasks == [1]


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.FAILED, Outcome.LOST])
def test_what_a_task_has_made_ends_with_it(outcome: Outcome) -> None:
    manager = Manager(1, 1)
    manager.submit(1)
    (rank,) = manager.turn()
    running, waits = Process(manager, rank).make(0, 2)
    assert manager.turn()[3 - rank].tasks == [running]
    (deepest,) = Process(manager, rank=3 - rank).make(running)
    manager.done(rank, 0, outcome=outcome)
    nesting.end_orphans(manager.state)
    manager.state.check()
    assert manager.state.tasks.keys().isdisjoint({running, waits, deepest}) and manager.state.dropped == {running: 3 - rank}
    assert manager.state.drops == {3 - rank: [running]}


def test_cancelling_a_task_cancels_what_it_has_made() -> None:
    manager = Manager(2)
    manager.submit(1)
    manager.turn()
    process = Process(manager)
    process.make(0, 5)
    nesting.on_said(manager.state, process.client, 0)
    from_clients.on_promise(manager.state, process.client, Promise(first=5, count=1))
    from_clients.on_cancel(manager.state, manager.client, Cancel(tasks=[0]))
    nesting.end_orphans(manager.state)
    assert not manager.state.tasks and manager.state.counts.cancelled == 7


def test_what_an_unwanted_task_makes_is_not_made_but_its_process_may_go_on() -> None:
    manager = Manager(2)
    manager.submit(2)
    manager.turn()
    process = Process(manager)
    from_clients.on_cancel(manager.state, manager.client, Cancel(tasks=[0]))
    process.make(0, 3)
    assert not process.client.unfinished
    manager.done(1, 0)
    assert len(process.make(1, 2)) == 2 and process.client.unfinished == 2, "it knows the app"
    manager.state.check()


def test_the_next_task_of_a_process_does_not_inherit() -> None:
    manager = Manager(2)
    manager.submit(2)
    manager.turn()
    process = Process(manager)
    (old,) = process.make(0)
    manager.done(1, 0)
    (new,) = process.make(1)
    assert old not in manager.state.tasks and new in manager.state.tasks
    nesting.end_orphans(manager.state)
    assert new in manager.state.tasks


def test_tasks_of_a_task_take_turns_as_its_client_does() -> None:
    manager = Manager(1)
    manager.submit(1)
    manager.turn()
    Process(manager).make(0, 4)
    moves(manager, waiting=[0])
    other = from_clients.on_attach(manager.state, Attach(version="1", pid=1, title="other"))
    again = Submit(0, [SPEC], {}, [0], [b""] * 4, {}, {}, 0)
    from_clients.on_submit(manager.state, other, again)
    clients = []
    for _ in range(8):
        (assign,) = manager.turn().values()
        clients.append(assign.tasks[0] >> CLIENT_SHIFT)
        manager.done(1, *assign.tasks)
    inner = INNER + 1
    assert clients in ([inner, 1] * 4, [1, inner] * 4)


def test_processes_share_the_apps_that_they_name() -> None:
    manager = Manager(2)
    manager.submit(2)
    manager.turn()
    first, second = Process(manager), Process(manager)
    first.make(0)
    second.make(1)
    assert first.client.apps[0] is second.client.apps[0]
    number = first.client.apps[0].number
    from_clients.on_finish(manager.state, first.client, Finish(cancel=True))
    assert number in manager.state.apps
    from_clients.on_finish(manager.state, second.client, Finish(cancel=True))
    assert number not in manager.state.apps and not manager.state.inner_apps


def test_a_worker_that_has_lent_its_slot_is_not_used_by_who_has_waited() -> None:
    manager = Manager(1)
    manager.submit(1)
    manager.turn()
    moves(manager, waiting=[0])
    worker = manager.state.workers[1]
    worker.lent = 1
    worker.change_room(-1)
    assert moves(manager, back=[0]) == []
    worker.lent = 0
    worker.change_room(1)
    assert nesting.seats(manager.state) == {1: [0]}


def test_a_worker_that_tells_of_others_tasks_is_not_believed() -> None:
    manager = Manager(1, 1)
    manager.submit(1)
    (rank,) = manager.turn()
    with pytest.raises(ProtocolError, match="task 0 waits, which it does not run"):
        nesting.on_moves(manager.state, 3 - rank, FromTasks([], [], [], waiting=[0]))
    with pytest.raises(ProtocolError, match="task 0 goes on, which does not wait there"):
        nesting.on_moves(manager.state, rank, FromTasks([], [], [], back=[0]))


def test_apps_of_which_tasks_wait_are_not_prefetched() -> None:
    manager = Manager(1)
    manager.submit(40)
    manager.turn()
    manager.done(1, 0, seconds=1e-6)
    assert len(manager.turn()[1].tasks) > 1
    manager = Manager(1)
    manager.submit(40)
    manager.turn()
    moves(manager, waiting=[0])
    moves(manager, back=[0])
    manager.done(1, 0, seconds=1e-6)
    assert len(manager.turn()[1].tasks) == 1


def test_the_error_of_a_task_of_a_task_calls_it_by_the_name_it_has_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Manager(1)
    manager.submit(1)
    manager.turn()
    process = Process(manager)
    child, needs_it = process.make(0, 2)
    manager.state.tasks[child].dependents = [(manager.state.tasks[needs_it], 0)]
    ends_as: dict[int, Payload] = {}
    monkeypatch.setattr(ManagerState, "finish_task", lambda state, task, outcome, error, *_: ends_as.update({task.id: error}))
    ends.cancel(manager.state, manager.state.tasks[child])
    assert str(payloads.load(ends_as[needs_it])) == f"task {process.client.number - INNER}.0 was cancelled"
