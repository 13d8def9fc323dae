"""Remote clients in the manager's state: turns, results that wait, clients that come back, orders. No links."""

from __future__ import annotations

from concurrent.futures import CancelledError

import msgspec
import pytest

from exex.manager import data, from_clients, from_workers, retraction, visitors
from exex.manager.labels import Labels
from exex.manager.placement import place
from exex.manager.state import ClientRecord, ManagerState
from exex.manager.task import App
from exex.protocol import payload as payloads
from exex.protocol.messages import (
    CLIENT_SHIFT,
    Applied,
    AppSpec,
    Attach,
    Cancel,
    Collected,
    Done,
    Finish,
    Hello,
    Outcome,
    Promise,
    Release,
    Submit,
    Verdict,
    Want,
)
from exex.protocol.payload import Stored


def who(name: str = "", python: str = "3.12.1", detach: bool = False) -> Attach:
    return Attach(version="1", pid=7, title="nb.py", python=python, host="login1", name=name, detach=detach)


class Manager:
    """A manager with one worker of some slots."""

    def __init__(self, slots: int = 4, most_bytes: int = 10_000, ranks: int = 1) -> None:
        self.state = ManagerState(prefetch_s=0.0)
        self.state.data.set_home("n1")
        self.most_bytes = most_bytes
        for rank in range(1, ranks + 1):
            hello = Hello(version="1", python="3", node=f"n{rank}", pid=1, slots=slots, error="", times_s=[], store=f"n{rank}")
            from_workers.on_hello(self.state, rank, hello)

    def attach(self, *args, **kwargs) -> ClientRecord:
        return visitors.on_attach(self.state, who(*args, **kwargs), self.most_bytes)

    def submit(self, client: ClientRecord, first: int, count: int, **more) -> None:
        new = not client.apps
        spec = AppSpec(app=0, name="work", function=b"%d" % client.number, **more.pop("spec", {}))
        msg = Submit(
            first=first, apps=[spec] if new else [], functions={spec.function: b"f"} if new else {}, calls=[0],
            payloads=[b"p"] * count, needs=more.pop("needs", {}), given={}, answered=0, **more,
        )  # fmt: skip
        from_clients.on_submit(self.state, client, msg)

    def turn(self) -> list[int]:
        """Place; numbers of the tasks that the worker gets."""
        place(self.state)
        sent = [task.id for worker in self.state.refilled for task in worker.outgoing or ()]
        for worker in self.state.refilled:
            self.state.take_assign(worker)
        self.state.refilled.clear()
        self.state.check()
        return sent

    def done(self, *tasks: int, value: bytes = b"v", outcome: int = Outcome.DONE) -> None:
        count = len(tasks)
        from_workers.on_done(self.state, 1, Done(list(tasks), bytes([outcome] * count), [value] * count, [0.1] * count, []))
        self.state.check()

    def stored(self, *tasks: int, size: int = 1000, rank: int = 1) -> None:
        """Their values are stored on the rank's node."""
        values = [Stored(f"t{task}.1", [size]) for task in tasks]
        msg = Done(list(tasks), bytes([Outcome.DONE] * len(tasks)), values, [0.1] * len(tasks), [])
        from_workers.take_stored(self.state, rank, msg)
        from_workers.on_done(self.state, rank, msg)
        del msg, values
        self.state.check()

    def collect(self, client: ClientRecord) -> list[str]:
        """The client has its next Answer; names of the stored values in it."""
        answer = client.take_answer()
        names = [value.name for value in answer.payloads if isinstance(value, Stored)]
        from_clients.on_applied(self.state, client, Applied(answered=answer.sequence))
        del answer
        self.state.check()
        return names


def of(tasks: list[int]) -> list[int]:
    """Whose tasks they are."""
    return [task >> CLIENT_SHIFT for task in tasks]


def test_clients_take_turns_however_much_one_has() -> None:
    manager = Manager(slots=4)
    many, few, late = manager.attach(), manager.attach(), manager.attach()
    manager.submit(many, 0, 1000)
    first = manager.turn()
    assert of(first) == [0] * 4
    manager.submit(few, 0, 3)
    manager.submit(late, 0, 3)
    manager.done(*first)
    second = manager.turn()
    assert sorted(set(of(second))) == [0, 1, 2]
    manager.done(*second)
    assert sorted(set(of(second + manager.turn()))) == [0, 1, 2]


def test_within_a_client_priority_decides_and_between_clients_it_does_not() -> None:
    manager = Manager(slots=2)
    low, high = manager.attach(), manager.attach()
    manager.submit(low, 0, 4, spec={"priority": 100})
    manager.submit(high, 0, 4, spec={"priority": -100})
    assert sorted(of(manager.turn())) == [0, 1]


def five_clients(task_s: float) -> Manager:
    """Each has 2,000 tasks for one slot; it is known how long they take."""
    manager = Manager(slots=1)
    manager.state.prefetch_s = 0.01
    clients = [manager.attach() for _ in range(5)]
    for client in clients:
        manager.submit(client, 0, 2000)
    for _ in range(5):
        first = manager.turn()
        from_workers.on_done(manager.state, 1, Done(first, bytes(len(first)), [b"v"] * len(first), [task_s] * len(first), []))
    return manager


def test_short_tasks_of_several_clients_fill_a_worker_together() -> None:
    manager = five_clients(task_s=1e-5)
    sent = of(manager.turn())
    counts = [sent.count(number) for number in range(5)]
    assert min(counts) > 10 and max(counts) <= min(counts) + 2


def test_a_client_that_does_not_collect_waits_and_others_go_on() -> None:
    manager = Manager(slots=4, most_bytes=10_000)
    slow, other = manager.attach(), manager.attach()
    manager.submit(slow, 0, 100)
    manager.done(*manager.turn(), value=bytes(5_000))
    assert slow.labels is not None and slow.labels.is_full
    assert manager.turn() == [], "nothing more of it is begun"
    manager.submit(slow, 100, 10)
    manager.submit(other, 0, 2)
    assert of(manager.turn()) == [1, 1]
    answer = slow.take_answer()
    assert len(answer.tasks) == 4
    from_clients.on_applied(manager.state, slow, Applied(answered=answer.sequence))
    assert slow.labels.uncollected_bytes == 0 and not slow.kept
    assert of(manager.turn()) == [0, 0]


def test_a_cancelled_task_of_a_paused_client_is_counted_once() -> None:
    manager = Manager(slots=1, most_bytes=10)
    client = manager.attach()
    manager.submit(client, 0, 10)
    manager.done(*manager.turn())
    from_clients.on_cancel(manager.state, client, Cancel(tasks=list(range(1, 6))))
    assert manager.state.ready.count == 0
    manager.state.ready.pause(client.number, False)
    assert manager.state.ready.count == 4
    manager.state.check()


def test_a_detached_client_finds_what_it_has_left_with_its_tags() -> None:
    manager = Manager(slots=2)
    client = manager.attach("ann", detach=True)
    manager.submit(client, 0, 4, tags={1: "one", 2: "two"})
    first, second = manager.turn()
    manager.done(first)
    answer = client.take_answer()  # on its way when the client dies
    assert answer.tasks == [0]
    visitors.on_left(manager.state, client)
    manager.done(second, outcome=Outcome.FAILED, value=b"error")
    assert manager.turn() == [2, 3], "its tasks go on"
    again = manager.attach("ann", detach=True)
    assert again is client
    assert [(found.task, found.app, found.tag) for found in visitors.found(manager.state, again)] == [
        (0, "work", ""), (1, "work", "one"), (2, "work", "two"), (3, "work", ""),
    ]  # fmt: skip
    answer = again.take_answer()
    assert dict(zip(answer.tasks, answer.outcomes)) == {0: Outcome.DONE, 1: Outcome.FAILED}
    from_clients.on_applied(manager.state, again, Applied(answered=answer.sequence))
    assert [found.task for found in visitors.found(manager.state, again)] == [2, 3]
    with pytest.raises(Exception, match="exists already"):
        manager.submit(again, 3, 1)
    manager.submit(again, 4, 1, needs={0: [2]})
    manager.done(2, 3)
    manager.done(*manager.turn())
    answer = again.take_answer()
    assert sorted(answer.tasks) == [2, 3, 4]
    from_clients.on_applied(manager.state, again, Applied(answered=answer.sequence))
    assert not again.labels.apps and not again.labels.tags and not again.labels.uncollected_bytes  # type: ignore[union-attr]
    from_clients.on_finish(manager.state, again, Finish(cancel=False))
    assert not manager.state.clients


def test_what_waits_for_a_client_that_has_left_is_cancelled() -> None:
    manager = Manager(slots=2)
    client = manager.attach("ann", detach=True)
    manager.submit(client, 0, 2, spec={"asks": True})
    from_clients.on_promise(manager.state, client, Promise(first=2, count=1))
    manager.submit(client, 3, 1, needs={0: [2]})
    asking, later = manager.turn()
    manager.done(asking, outcome=Outcome.FAILED, value=b"error")
    visitors.on_left(manager.state, client)
    manager.state.check()
    manager.done(later, outcome=Outcome.FAILED, value=b"error")
    assert not manager.state.tasks, "nobody is asked any more"
    assert [found.task for found in visitors.found(manager.state, client)] == [0, 1, 3]
    from_clients.on_verdict(manager.state, client, Verdict(task=0, retry=True, payload=b""))


@pytest.mark.parametrize(
    ("attach", "reason"),
    [
        (who(python="3.11.9"), "pickles need the same minor version"),
        (who(python=""), "the client an unknown one"),
        (who("ann"), r"named ann is attached already \(process 7 on login1\)"),
        (who("bob"), None),
        (who(python="3.12.8"), None),
    ],
)
def test_who_is_let_in(attach: Attach, reason: str | None) -> None:
    manager = Manager()
    manager.attach("ann")
    why = visitors.why_not(manager.state, attach, "3.12.1")
    assert not why if reason is None else pytest.importorskip("re").search(reason, why), why


def test_a_name_of_a_client_that_has_finished_is_free() -> None:
    manager = Manager()
    client = manager.attach("ann")
    manager.submit(client, 0, 1)
    manager.turn()
    from_clients.on_finish(manager.state, client, Finish(cancel=False))
    assert not visitors.why_not(manager.state, who("ann"), "3.12.1")
    assert manager.attach("ann") is not client


def test_orders_cancel_tasks_of_one_client_or_all_and_the_clients_are_told() -> None:
    manager = Manager(slots=2)
    ann, bob = manager.attach("ann"), manager.attach()
    manager.submit(ann, 0, 3)
    manager.submit(ann, 3, 1, needs={0: [2]})
    manager.submit(bob, 0, 3)
    manager.turn()
    assert visitors.cancel(manager.state, "eve", []) == (0, "there is no client eve; `exex clients` lists them")
    assert "say which one" in visitors.cancel(manager.state, "", [1])[1]
    assert visitors.cancel(manager.state, "ann", [2, 77]) == (1, "")
    answer = ann.take_answer()
    assert dict(zip(answer.tasks, answer.outcomes)) == {2: Outcome.CANCELLED, 3: Outcome.NEED_FAILED}
    manager.submit(ann, 4, 1, needs={0: [2]})  # it has not heard yet
    answer = ann.take_answer()
    assert answer.tasks == [4] and answer.outcomes == bytes([Outcome.NEED_FAILED])
    assert isinstance(payloads.load(answer.payloads[0]), CancelledError)
    assert visitors.cancel(manager.state, "1", []) == (3, "")
    assert visitors.cancel(manager.state, "", []) == (2, "")
    assert not manager.state.tasks
    manager.state.check()


def test_rows_say_who_is_there_and_what_waits() -> None:
    manager = Manager(slots=1, most_bytes=10)
    from_clients.on_attach(manager.state, Attach(version="1", pid=1, title="workflow.py"))
    ann = manager.attach("ann", detach=True)
    manager.submit(ann, 0, 3)
    manager.done(*manager.turn())
    visitors.on_left(manager.state, ann)
    script, row = visitors.rows(manager.state)
    assert (script.title, script.attached) == ("the job's script", True)
    assert (row.name, row.host, row.pid, row.attached, row.unfinished, row.uncollected, row.paused) == ("ann", "login1", 7, False, 2, 1, True)


def test_labels_count_what_they_let_go() -> None:
    manager = Manager()
    client = manager.attach()
    labels = client.labels
    assert isinstance(labels, Labels)
    manager.submit(client, 0, 4)
    manager.done(*manager.turn(), value=bytes(100))
    assert labels.uncollected_bytes >= 400
    answer = client.take_answer()
    from_clients.on_applied(manager.state, client, Applied(answered=answer.sequence))
    assert labels.uncollected_bytes == 0 and not labels.has_room()


def test_where_a_part_of_the_time_is_too_short_one_client_gets_it_all() -> None:
    manager = five_clients(task_s=3e-3)
    assert len(manager.turn()) >= 3


def test_stored_values_of_a_client_that_dies_are_freed() -> None:
    manager = Manager(slots=2)
    client = manager.attach()
    manager.submit(client, 0, 3)
    first, second = manager.turn()
    manager.stored(first, second)
    assert manager.collect(client) == ["t0.1", "t1.1"] and set(client.owned) == {"t0.1", "t1.1"}
    from_clients.on_finish(manager.state, client, Finish(cancel=True))
    assert manager.state.data.frees == {1: ["t0.1", "t1.1"]} and not manager.state.data.records


def test_stored_values_wait_for_a_detached_client_until_it_has_looked_at_them() -> None:
    manager = Manager(slots=4)
    client = manager.attach("ann", detach=True)
    labels = client.labels
    assert labels is not None
    manager.submit(client, 0, 4, tags={1: "one"})
    kept, tagged, seen, told = manager.turn()
    manager.stored(kept, tagged, seen)
    assert labels.uncollected_bytes >= 3000, "what is stored counts with its size"
    manager.collect(client)
    assert labels.uncollected_bytes == 0
    from_clients.on_collected(manager.state, client, Collected(tasks=[seen, 77]))
    from_clients.on_release(manager.state, client, Release(names=[f"t{task}.1" for task in (kept, tagged, seen)]))
    assert manager.state.data.frees == {1: [f"t{seen}.1"]}
    manager.state.data.frees.clear()
    manager.stored(told)
    client.take_answer()  # on its way when the client dies
    visitors.on_left(manager.state, client)
    assert 3000 <= labels.uncollected_bytes < 4100
    assert [(found.task, found.tag) for found in visitors.found(manager.state, client)] == [(kept, ""), (tagged, "one"), (told, "")]
    manager.state.check()
    again = manager.attach("ann", detach=True)
    assert manager.collect(again) == [f"t{told}.1", f"t{kept}.1", f"t{tagged}.1"]
    from_clients.on_want(manager.state, again, Want(names=[f"t{kept}.1"]))
    data.settle(manager.state)
    ((number, name, record, maps),) = manager.state.data.brought
    assert (number, name, maps) == (again.number, f"t{kept}.1", False) and record is not None
    manager.state.data.brought.clear()
    del record
    from_clients.on_collected(manager.state, again, Collected(tasks=[kept, tagged, told]))
    from_clients.on_release(manager.state, again, Release(names=list(again.owned)))
    manager.state.check()
    assert not manager.state.data.records and not visitors.found(manager.state, again)


def test_what_has_arrived_and_nobody_has_looked_at_waits_again_as_far_as_there_is_room() -> None:
    manager = Manager(slots=8, most_bytes=10_000)
    client = manager.attach("ann", detach=True)
    manager.submit(client, 0, 8, tags={7: "last"})
    tasks = manager.turn()
    for task in tasks:
        manager.done(task, value=bytes(2000), outcome=Outcome.FAILED if task == tasks[6] else Outcome.DONE)
        manager.collect(client)
    assert client.labels is not None and not client.labels.is_full, "it has them: nothing waits"
    from_clients.on_collected(manager.state, client, Collected(tasks=[5]))
    visitors.on_left(manager.state, client)
    assert [(found.task, found.tag) for found in visitors.found(manager.state, client)] == [(4, ""), (6, ""), (7, "last")]
    assert [client.kept[task][0] for task in (4, 6, 7)] == [Outcome.DONE, Outcome.FAILED, Outcome.DONE]
    from_clients.on_finish(manager.state, client, Finish(cancel=True))
    assert not manager.state.clients


def test_stored_values_that_wait_are_bounded() -> None:
    manager = Manager(slots=4, most_bytes=10_000)
    client = manager.attach("ann", detach=True)
    manager.submit(client, 0, 20)
    manager.stored(*manager.turn(), size=4000)
    assert manager.turn() == [] and manager.state.ready.held_back() == 16
    manager.collect(client)
    assert len(manager.turn()) == 4
    visitors.on_left(manager.state, client)
    manager.stored(4, 5, 6, 7, size=400)
    assert manager.turn() == [], "what it had, and has not looked at, waits again"
    from_clients.on_finish(manager.state, client, Finish(cancel=True))
    assert not manager.state.data.records and not manager.state.clients


def test_orders_leave_alone_what_only_makes_again_what_was_lost() -> None:
    manager = Manager(slots=1, ranks=2)
    client = manager.attach("ann")
    manager.submit(client, 0, 1)
    (first,) = manager.turn()
    rank = manager.state.tasks[first].rank
    manager.stored(first, rank=rank)
    manager.collect(client)
    from_workers.on_worker_lost(manager.state, rank, "is dead")
    from_clients.on_want(manager.state, client, Want(names=[f"t{first}.1"]))
    data.settle(manager.state)
    assert first in manager.state.tasks, "its value is made again"
    assert visitors.cancel(manager.state, "ann", []) == (0, "") and not client.tasks
    assert visitors.found(manager.state, client) == []
    manager.state.check()


def test_what_came_back_from_a_worker_stands_in_its_clients_lane() -> None:
    manager = Manager(slots=4)
    one, other = manager.attach(), manager.attach()
    manager.submit(one, 0, 2)
    manager.submit(other, 0, 2)
    state = manager.state
    taken = [task for _ in range(4) for task in state.ready.take(2)]
    assert of([task.id for task in taken]) == [0, 1, 0, 1] and state.ready.count == 0
    state.ready.pause(1, True)
    state.ready.put_back(reversed(taken))
    assert state.ready.count == 2 and state.ready.held_back() == 2
    state.ready.pause(1, False)
    state.check()
    assert sorted(task.id for _ in range(2) for task in state.ready.take(2)) == [0, other.base]


def test_a_better_priority_makes_way_only_behind_its_own_client() -> None:
    manager = Manager(slots=1)
    low, high = manager.attach(), manager.attach()
    manager.submit(low, 0, 2, spec={"priority": 100})
    task, of_same = manager.state.ready.take(2)
    manager.submit(high, 0, 1, spec={"priority": -100})
    (better,) = manager.state.ready.take(1)
    state = manager.state
    assert not retraction._is_worse(state, task, better)
    assert of_same.app is not None
    of_same.app = App(msgspec.structs.replace(of_same.app.spec, priority=5), b"", None)
    assert retraction._is_worse(state, task, of_same) and not retraction._is_worse(state, of_same, task)


def test_where_data_is_clients_take_turns_as_well() -> None:
    manager = Manager(slots=1, ranks=2)
    near, other = manager.attach(), manager.attach()
    state = manager.state
    manager.submit(near, 0, 6)
    waiting = state.ready.take(6)
    store = state.data.store("n1")
    for task in waiting:
        state.ready.push_near(task, store, 1e9)
    assert all(state.ready.has_turn(task) for task in waiting), "nobody else waits"
    manager.submit(other, 0, 3)
    assert [state.ready.has_turn(task) for task in waiting[:2]] == [True, False]
    assert of([task.id for task in state.ready.take(1)]) == [1]
    assert state.ready.has_turn(waiting[2]), "the other one has had its turn"
    state.ready.pause(near.number, True)
    assert not len(state.ready.near) and state.ready.held_back() == 6
