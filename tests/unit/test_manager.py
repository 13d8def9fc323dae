"""Handlers of the manager, one at a time; whole stories are in tests/sim."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from exex.errors import ProtocolError
from exex.manager import from_clients, from_workers
from exex.manager.placement import place
from exex.manager.state import ClientRecord, ManagerState
from exex.manager.task import Status
from exex.protocol import payload
from exex.protocol.messages import AppSpec, Assign, Attach, Cancel, Done, Finish, Fulfil, Hello, Outcome, Promise, Submit, Verdict


def hello(slots: int) -> Hello:
    return Hello(version="1", python="3", node="n", pid=1, slots=slots, error="", times_s=[])


class Manager:
    """A state with one client, and short ways to say what happens to it."""

    def __init__(self, *slots: int, **spec: object) -> None:
        self.state = ManagerState()
        self.client: ClientRecord = from_clients.on_attach(self.state, Attach(version="1", pid=1, title="t"))
        for rank, count in enumerate(slots, 1):
            from_workers.on_hello(self.state, rank, hello(count))
        self.next = 0
        self.spec = AppSpec(app=0, name="f", function=b"d", **spec)  # type: ignore[arg-type]

    def submit(self, count: int = 1, needs: dict[int, list[int]] | None = None, given: dict | None = None, call: int = 0) -> None:
        first = self.next == 0
        message = Submit(
            first=self.next,
            apps=[self.spec] if first else [],
            functions={b"d": b"code"} if first else {},
            calls=[call],
            payloads=[b"args"] * count,
            needs=needs or {},
            given=given or {},
            answered=0,
        )
        self.next += count
        from_clients.on_submit(self.state, self.client, message)

    def turn(self) -> dict[int, Assign]:
        place(self.state)
        assigned = {worker.rank: self.state.take_assign(worker) for worker in self.state.refilled}
        self.state.refilled.clear()
        self.state.check()
        return assigned

    def done(self, rank: int, *tasks: int, outcome: int = Outcome.DONE, seconds: float = 1.0, value: bytes = b"v") -> None:
        count = len(tasks)
        message = Done(tasks=list(tasks), outcomes=bytes([outcome]) * count, payloads=[value] * count, seconds=[seconds] * count, started=[])
        from_workers.on_done(self.state, rank, message)
        self.state.check()

    def answers(self) -> dict[int, tuple[int, object]]:
        answer = self.client.take_answer()
        return {task: (outcome, value) for task, outcome, value in zip(answer.tasks, answer.outcomes, answer.payloads)}


def test_tasks_are_spread_evenly_over_free_slots() -> None:
    manager = Manager(4, 4, 4)
    manager.submit(6)
    assert [len(assign.tasks) for assign in manager.turn().values()] == [2, 2, 2]


def test_function_and_app_travel_once_to_each_worker() -> None:
    manager = Manager(1, 1)
    manager.submit(2)
    first = manager.turn()
    for assign in first.values():
        assert assign.functions == {b"d": b"code"} and len(assign.apps) == 1
    manager.done(1, *first[1].tasks)
    manager.submit(1)
    (assign,) = manager.turn().values()
    assert not assign.functions and not assign.apps


def test_nothing_is_prefetched_behind_tasks_of_unknown_length() -> None:
    manager = Manager(2)
    manager.submit(100)
    assert len(manager.turn()[1].tasks) == 2


@pytest.mark.parametrize(("seconds", "least", "most"), [(1e-6, 100, 600), (1e-3, 3, 12), (1.0, 2, 2)])
def test_prefetch_follows_the_measured_length(seconds: float, least: int, most: int) -> None:
    manager = Manager(2)
    manager.submit(2000)
    manager.turn()
    manager.done(1, 0, 1, seconds=seconds)
    manager.turn()
    assert least <= manager.state.workers[1].held <= most


def test_deeper_tasks_run_first_among_equals_and_priority_beats_depth() -> None:
    manager = Manager(1)
    manager.submit(1)
    manager.submit(3)
    manager.submit(1, needs={0: [0]})
    urgent = AppSpec(app=1, name="urgent", function=b"d", priority=-5)
    message = Submit(first=5, apps=[urgent], functions={}, calls=[1], payloads=[b""], needs={}, given={}, answered=0)
    order = manager.turn()[1].tasks
    from_clients.on_submit(manager.state, manager.client, message)
    while manager.state.tasks:
        manager.done(1, order[-1])
        order += [task for assign in manager.turn().values() for task in assign.tasks]
    assert order == [0, 5, 4, 1, 2, 3]


def test_a_need_given_or_kept_or_unfinished_fills_its_place() -> None:
    manager = Manager(1)
    manager.submit(1)
    manager.turn()
    manager.done(1, 0, value=b"kept")
    manager.submit(1)  # task 1
    manager.submit(1, needs={0: [-1, 0, 1]}, given={0: {0: b"given"}})
    manager.turn()
    manager.done(1, 1, value=b"later")
    assert manager.turn()[1].values == {0: [b"given", b"kept", b"later"]}


def test_a_value_is_kept_until_its_answer_is_applied_and_then_unknown() -> None:
    manager = Manager(1)
    manager.submit(1)
    manager.turn()
    manager.done(1, 0)
    sequence = manager.client.take_answer().sequence
    assert 0 in manager.client.kept
    manager.client.applied(sequence)
    assert not manager.client.kept
    with pytest.raises(ProtocolError, match="needs task 0, which is unknown"):
        manager.submit(1, needs={0: [0]})


def test_failure_reaches_all_dependents_and_names_the_need() -> None:
    manager = Manager(1)
    manager.submit(1)
    manager.submit(1, needs={0: [0]})
    manager.submit(1, needs={0: [1]})
    manager.turn()
    manager.done(1, 0, outcome=Outcome.FAILED, value=b"error")
    answer = manager.client.take_answer()
    assert answer.tasks == [0, 1, 2]
    assert list(answer.outcomes) == [Outcome.FAILED, Outcome.NEED_FAILED, Outcome.NEED_FAILED]
    assert answer.payloads == [b"error"] * 3
    assert answer.causes == {1: [0], 2: [1]}
    assert not manager.state.tasks


def test_retries_are_counted() -> None:
    manager = Manager(1, retries=2)
    manager.submit(1)
    attempts = []
    for _ in range(3):
        assign = manager.turn()[1]
        attempts.append(assign.attempts.get(0, 1))
        manager.done(1, 0, outcome=Outcome.FAILED)
    assert attempts == [1, 2, 3]
    assert manager.answers()[0][0] == Outcome.FAILED


@pytest.mark.parametrize("retry", [True, False])
def test_the_retry_handler_is_asked(retry: bool) -> None:
    manager = Manager(1, asks=True)
    manager.submit(1)
    manager.turn()
    manager.done(1, 0, outcome=Outcome.FAILED, value=b"error")
    assert manager.answers() == {0: (Outcome.ASK, b"error")}
    from_clients.on_verdict(manager.state, manager.client, Verdict(task=0, retry=retry, payload=b"final"))
    if retry:
        assert manager.turn()[1].attempts == {0: 2}
    else:
        assert manager.answers() == {0: (Outcome.FAILED, b"final")}


@pytest.mark.parametrize("placed", [True, False])
def test_cancel_of_a_ready_and_of_a_running_task(placed: bool) -> None:
    manager = Manager(1)
    manager.submit(1)
    manager.submit(1, needs={0: [0]})
    if placed:
        manager.turn()
    from_clients.on_cancel(manager.state, manager.client, Cancel(tasks=[0]))
    outcome, error = manager.answers()[1]
    assert outcome == Outcome.NEED_FAILED
    assert "was cancelled" in str(payload.load(error))
    assert manager.state.drops == ({1: [0]} if placed else {})
    assert not manager.turn()
    if placed:
        manager.done(1, 0, outcome=Outcome.CANCELLED)
    assert manager.state.workers[1].held == 0


def test_a_promise_holds_back_its_dependents() -> None:
    manager = Manager(1)
    from_clients.on_promise(manager.state, manager.client, Promise(first=0, count=1))
    manager.next = 1
    manager.state.functions[b"d"] = b"code"
    manager.client.apps.clear()
    manager.state.new_app(manager.client, manager.spec)
    manager.submit(1, needs={0: [0]})
    assert not manager.turn()
    from_clients.on_fulfil(manager.state, manager.client, Fulfil(tasks=[0], outcomes=bytes([0]), payloads=[b"x"]))
    assert manager.turn()[1].values == {0: [b"x"]}


def test_a_lost_worker_gives_its_attempts_back() -> None:
    manager = Manager(1, 1)
    manager.submit(2)
    first = manager.turn()
    (lost,) = first[1].tasks
    from_workers.on_worker_lost(manager.state, 1, "test")
    manager.done(2, *first[2].tasks)
    again = manager.turn()[2]
    assert again.tasks == [lost] and again.attempts == {0: 2}
    with pytest.raises(ProtocolError, match="before its Hello"):
        manager.done(1, lost)  # the loop passes over late words of a lost worker
    assert manager.state.tasks[lost].status == Status.ASSIGNED


def test_losses_are_no_failures_but_end_somewhere() -> None:
    manager = Manager(1, 1, 1, 1, 1)
    manager.submit(1)
    for rank in range(from_workers.LOSSES_TOLERATED):
        (holder,) = manager.turn()
        from_workers.on_worker_lost(manager.state, holder, f"loss {rank}")
    (holder,) = manager.turn()
    from_workers.on_worker_lost(manager.state, holder, "was killed by SIGKILL")
    outcome, error = manager.answers()[0]
    assert outcome == Outcome.LOST
    assert "lost its worker 4 times" in str(payload.load(error))
    manager.state.check()


def test_a_loss_does_not_use_up_a_retry() -> None:
    manager = Manager(1, 1, retries=1)
    manager.submit(1)
    (holder,) = manager.turn()
    from_workers.on_worker_lost(manager.state, holder, "test")
    (holder,) = manager.turn()
    manager.done(holder, 0, outcome=Outcome.FAILED)
    (assign,) = manager.turn().values()
    assert assign.attempts == {0: 3}
    manager.done(holder, 0, outcome=Outcome.FAILED)
    assert manager.answers()[0][0] == Outcome.FAILED


def test_what_does_not_fit_into_the_allocation_is_set_aside() -> None:
    manager = Manager(2, walltime_s=10.0)
    manager.state.ends_s, manager.state.now_s = 100.0, 89.0
    manager.submit(3)
    assert manager.turn()[1].tasks == [0, 1]
    manager.state.now_s = 91.0
    manager.done(1, 0, seconds=1.0)
    assert not manager.turn() and manager.state.shelved == 1
    from_clients.on_cancel(manager.state, manager.client, Cancel(tasks=[2]))
    manager.state.check()
    assert not manager.state.shelved


def test_without_a_walltime_the_slowest_attempts_decide_what_fits() -> None:
    manager = Manager(1)
    manager.submit(102)
    for task in range(100):
        assert manager.turn()[1].tasks == [task]
        manager.done(1, task, seconds=7.0 if task in {10, 20, 30, 40, 50, 60} else 2.0)
    manager.state.ends_s, manager.state.now_s = 100.0, 94.0
    assert not manager.turn() and manager.state.shelved == 2  # one in twenty takes longer than the 6 s that are left


def test_after_a_notice_nothing_of_unknown_length_begins() -> None:
    manager = Manager(1)
    manager.submit(1)
    manager.state.ends_s, manager.state.noticed = 100.0, True
    assert not manager.turn() and manager.state.shelved == 1


def test_finish_with_cancel_leaves_nothing() -> None:
    manager = Manager(1)
    manager.submit(5)
    manager.submit(2, needs={0: [0], 1: [0, 1]})
    manager.turn()
    from_clients.on_finish(manager.state, manager.client, Finish(cancel=True))
    assert not manager.state.tasks and manager.state.ready.count == 0
    assert manager.state.drops == {1: [0]}


BAD: list[tuple[str, Callable[[Manager], object]]] = [
    ("which it does not hold", lambda m: m.done(1, 77)),
    ("exists already", lambda m: (m.submit(1), setattr(m, "next", 0), m.submit(1))),
    ("never named", lambda m: (m.submit(1), m.submit(1, call=9))),
    ("not an open promise", lambda m: from_clients.on_fulfil(m.state, m.client, Fulfil(tasks=[3], outcomes=b"\0", payloads=[b""]))),
    ("said Hello twice", lambda m: from_workers.on_hello(m.state, 1, hello(1))),
]


@pytest.mark.parametrize(("message", "act"), BAD, ids=[message for message, _ in BAD])
def test_what_may_not_be_said_is_a_protocol_error(message: str, act: Callable[[Manager], object]) -> None:
    with pytest.raises(ProtocolError, match=message):
        act(Manager(1))
