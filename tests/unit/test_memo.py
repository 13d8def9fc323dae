"""Cached calls in the manager: equal ones run once, recorded ones do not run, whatever happens to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from exex.errors import ProtocolError
from exex.manager import ends, from_clients, from_workers
from exex.manager.memo import Memo, complete_key
from exex.manager.task import App, CachedTask, Status
from exex.protocol import codec
from exex.protocol.messages import AppSpec, CacheKey, Cancel, Fulfil, Outcome, Promise, Submit, Verdict
from exex.protocol.payload import Large
from tests.unit.test_manager import Manager

KEYS = {name: name.encode() * 16 for name in "abcdefg"}


class PlayedStore:
    """Answers when the test says so."""

    def __init__(self, **recorded: bytes) -> None:
        self.recorded = {KEYS[name]: value for name, value in recorded.items()}
        self.asked: list[tuple[bytes, Sequence[str]]] = []
        self.written: list[tuple[bytes, str, Any]] = []

    def has(self, key: bytes) -> bool:
        return key in self.recorded

    def fetch(self, key: bytes, outputs: Sequence[str]) -> None:
        self.asked.append((key, outputs))

    def record(self, key: bytes, app: str, value: Any, seconds: float) -> None:
        self.written.append((key, app, value))


class Cached(Manager):
    """A manager whose calls are named by letters: equal letters, equal calls."""

    def __init__(self, *slots: int, memo: Memo | None = None, **spec: object) -> None:
        super().__init__(*slots, **spec)
        if memo is not None:
            self.state.memo = memo

    def call(self, names: str, needs: dict[int, list[int]] | None = None, given: dict | None = None, **key: Any) -> None:
        message = Submit(
            first=self.next,
            apps=[self.spec] if not self.state.apps else [],
            functions={b"d": b"code"} if not self.state.apps else {},
            calls=[0],
            payloads=[b"args"] * len(names),
            needs=needs or {},
            given=given or {},
            answered=0,
            keys={i: CacheKey(KEYS[name], **key) for i, name in enumerate(names) if name != "."},
        )
        self.next += len(names)
        from_clients.on_submit(self.state, self.client, message)
        self.state.check()

    def assigned(self) -> list[int]:
        return [task for assign in self.turn().values() for task in assign.tasks]

    def fetched(self, name: str, value: bytes | None) -> None:
        ends.on_fetched(self.state, KEYS[name], value)
        self.state.check()


def test_equal_calls_in_flight_run_once_and_end_alike() -> None:
    manager = Cached(8)
    manager.call("aab.a")
    assert manager.assigned() == [0, 2, 3]
    manager.done(1, 0, value=b"A")
    assert manager.answers() == dict.fromkeys((0, 1, 4), (Outcome.DONE, b"A"))
    manager.call("a")  # remembered without any store
    assert manager.answers() == {5: (Outcome.DONE, b"A")} and manager.assigned() == []
    assert manager.state.memo.answered == 1


def test_a_failure_is_shared_but_not_remembered() -> None:
    manager = Cached(8)
    manager.call("aa")
    manager.assigned()
    manager.done(1, 0, outcome=Outcome.FAILED, value=b"bad")
    assert manager.answers() == {0: (Outcome.FAILED, b"bad"), 1: (Outcome.FAILED, b"bad")}
    manager.call("a")
    assert manager.assigned() == [2]


def test_a_failure_reaches_the_dependents_of_those_that_waited() -> None:
    manager = Cached(8)
    manager.call("aa")
    manager.call(".b", needs={0: [1], 1: [0]})
    manager.assigned()
    manager.done(1, 0, outcome=Outcome.FAILED, value=b"bad")
    assert {task: outcome for task, (outcome, _) in manager.answers().items()} == {
        0: Outcome.FAILED, 1: Outcome.FAILED, 2: Outcome.NEED_FAILED, 3: Outcome.NEED_FAILED,
    }  # fmt: skip
    assert not manager.state.tasks


def test_retries_are_those_of_the_one_that_runs() -> None:
    manager = Cached(8, retries=1)
    manager.call("aa")
    assert manager.assigned() == [0]
    manager.done(1, 0, outcome=Outcome.FAILED)
    assert manager.answers() == {} and manager.assigned() == [0]
    manager.done(1, 0, value=b"A")
    assert manager.answers() == {0: (Outcome.DONE, b"A"), 1: (Outcome.DONE, b"A")}


@pytest.mark.parametrize("retry", [True, False])
def test_a_retry_handler_decides_for_all(retry: bool) -> None:
    manager = Cached(8, asks=True)
    manager.call("aa")
    manager.assigned()
    manager.done(1, 0, outcome=Outcome.FAILED)
    assert manager.answers() == {0: (Outcome.ASK, b"v")}
    from_clients.on_verdict(manager.state, manager.client, Verdict(task=0, retry=retry, payload=b"final"))
    if retry:
        assert manager.assigned() == [0]
        manager.done(1, 0, value=b"A")
    assert manager.answers()[1] == ((Outcome.DONE, b"A") if retry else (Outcome.FAILED, b"final"))


@pytest.mark.parametrize("when", ["ready", "assigned"])
def test_when_the_running_one_is_cancelled_the_next_runs(when: str) -> None:
    manager = Cached(8)
    manager.call("aaaa")
    if when == "assigned":
        assert manager.assigned() == [0]
    from_clients.on_cancel(manager.state, manager.client, Cancel(tasks=[1]))  # only waited
    from_clients.on_cancel(manager.state, manager.client, Cancel(tasks=[0]))
    assert manager.assigned() == [2]
    if when == "assigned":
        manager.done(1, 0, outcome=Outcome.CANCELLED)
    manager.done(1, 2, value=b"A")
    assert manager.answers() == {2: (Outcome.DONE, b"A"), 3: (Outcome.DONE, b"A")}


def test_a_late_result_of_a_cancelled_one_is_not_recorded() -> None:
    store = PlayedStore()
    manager = Cached(8, memo=Memo(store))
    manager.call("a")
    manager.assigned()
    from_clients.on_cancel(manager.state, manager.client, Cancel(tasks=[0]))
    manager.done(1, 0, value=b"late")
    assert store.written == [] and manager.answers() == {}


def test_a_lost_worker_does_not_lose_those_that_wait() -> None:
    manager = Cached(1, 1)
    manager.call("aa")
    (task,) = manager.assigned()
    from_workers.on_worker_lost(manager.state, manager.state.tasks[task].rank, "gone")
    assert manager.assigned() == [0]
    manager.done(next(iter(manager.state.workers)), 0, value=b"A")
    assert len(manager.answers()) == 2


def test_results_are_recorded_once_and_failures_are_not() -> None:
    store = PlayedStore()
    manager = Cached(8, memo=Memo(store))
    manager.call("aab.")
    manager.assigned()
    manager.done(1, 0, value=b"A")
    manager.done(1, 2, outcome=Outcome.FAILED)
    manager.done(1, 3)
    assert store.written == [(KEYS["a"], "f", b"A")]


def test_recorded_calls_do_not_run() -> None:
    manager = Cached(8, memo=Memo(store := PlayedStore(a=b"A")))
    manager.call("aab")
    assert manager.assigned() == [2] and store.asked == [(KEYS["a"], [])]
    manager.fetched("a", b"A")
    assert manager.answers() == {0: (Outcome.DONE, b"A"), 1: (Outcome.DONE, b"A")}
    manager.call("a")
    assert manager.answers() == {3: (Outcome.DONE, b"A")} and len(store.asked) == 1, "it is in memory now"


def test_a_record_that_does_not_count_lets_one_run() -> None:
    manager = Cached(8, memo=Memo(store := PlayedStore(a=b"A")))
    manager.call("aa")
    manager.fetched("a", None)
    assert manager.assigned() == [0]
    manager.done(1, 0, value=b"new")
    assert manager.answers() == {0: (Outcome.DONE, b"new"), 1: (Outcome.DONE, b"new")}
    assert store.written == [(KEYS["a"], "f", b"new")]


def test_cancelled_while_the_store_looks() -> None:
    manager = Cached(8, memo=Memo(store := PlayedStore(a=b"A")))
    manager.call("aa")
    from_clients.on_cancel(manager.state, manager.client, Cancel(tasks=[0]))
    assert manager.assigned() == [], "the answer is still on its way"
    from_clients.on_cancel(manager.state, manager.client, Cancel(tasks=[1]))
    manager.call("a")
    assert len(store.asked) == 1
    manager.fetched("a", None)
    assert manager.assigned() == [2]
    from_clients.on_cancel(manager.state, manager.client, Cancel(tasks=[2]))
    manager.fetched("a", b"A")
    assert manager.answers() == {}


def test_calls_with_outputs_are_always_asked_for() -> None:
    manager = Cached(8, memo=Memo(store := PlayedStore(a=b"A")))
    manager.call("a", outputs=["/o"])
    manager.fetched("a", b"A")
    manager.call("a", outputs=["/o"])
    assert store.asked == [(KEYS["a"], ["/o"])] * 2, "the files may have gone"


@pytest.mark.parametrize("there", [True, False])
def test_outputs_without_a_store(there: bool) -> None:
    manager = Cached(8, memo=Memo(exist=lambda paths: there))
    manager.call("a", outputs=["/o"])
    manager.assigned()
    manager.done(1, 0, value=b"A")
    manager.call("a", outputs=["/o"])
    assert manager.assigned() == ([] if there else [1])


def test_a_long_chain_of_recorded_calls_ends_without_recursion() -> None:
    count = 20_000
    manager = Cached(1, memo=(memo := Memo()))
    manager.call(".")
    task = CachedTask(0, App(manager.spec, b""), b"", CacheKey(KEYS["a"]))
    task.values = [b"v"]
    memo.preload([(complete_key(task), b"v")])
    manager.call("a" * count, needs={i: [i] for i in range(count)})
    assert manager.assigned() == [0]
    manager.done(1, 0, value=b"v")
    assert len(manager.answers()) == count + 1 and not manager.state.tasks


def test_the_values_of_needs_are_part_of_the_key() -> None:
    manager = Cached(8)
    manager.call("a", needs={0: [-1]}, given={0: {0: b"one"}})
    manager.call("a", needs={0: [-1]}, given={0: {0: b"two"}})
    manager.call("a", needs={0: [-1]}, given={0: {0: b"one"}})
    assert manager.assigned() == [0, 1]
    manager.done(1, 0, 1, value=b"A")
    from_clients.on_promise(manager.state, manager.client, Promise(first=3, count=1))
    manager.next = 4
    manager.call("a", needs={0: [3]})
    from_clients.on_fulfil(manager.state, manager.client, Fulfil(tasks=[3], outcomes=bytes([Outcome.DONE]), payloads=[b"one"]))
    manager.state.check()
    assert 4 in manager.answers()


def test_complete_keys() -> None:
    def key(*values: Any, ignored: Sequence[int] = ()) -> bytes:
        task = CachedTask(0, App(AppSpec(app=0, name="f", function=b"d"), b""), b"", CacheKey(KEYS["a"], list(ignored)))
        task.values = list(values) or None
        return complete_key(task)

    different = [key(), key(b""), key(b"ab"), key(b"a", b"b"), key(b"b", b"a"), key(Large([b"a", b"b"])), key(Large([b"ab"])),
                 key(b"a", ignored=[0]), key(b"1", b"a", ignored=[0])]  # fmt: skip
    assert len(set(different)) == len(different) - 1 and different[5] != different[6]
    assert key(b"1", b"a", ignored=[0]) == key(b"2", b"a", ignored=[0]) != key(b"1", b"b", ignored=[0])
    assert key(bytearray(b"x")) == key(b"x") == key(memoryview(b"x"))


def test_memory_is_bounded_and_keeps_what_was_used_last() -> None:
    memo = Memo(memory_bytes=100_000)
    for number in range(1000):
        memo.remember(b"%016d" % number, bytes(1000))
        memo.remember(b"%016d" % 0, bytes(1000))
    memo.remember(b"big", bytes(20_000))
    memo.check({})
    assert 70 < len(memo._values) <= 80 and b"%016d" % 0 in memo._values and b"big" not in memo._values
    buffer = bytearray(b"x" * 1000)
    memo.remember(b"large", Large([memoryview(buffer)]))
    buffer[:] = bytes(1000)
    assert memo._values[b"large"].frames == (b"x" * 1000,), "a copy: the buffer belongs to others"


@pytest.mark.parametrize(
    "keys",
    [
        {1: CacheKey(KEYS["a"])},
        {-1: CacheKey(KEYS["a"])},
        {0: CacheKey(b"short")},
        {0: CacheKey(bytes(99))},
        {0: CacheKey(KEYS["a"], ignored=[0])},
    ],
)
def test_keys_that_are_none_break_the_protocol(keys: dict[int, CacheKey]) -> None:
    message = Submit(first=1, apps=[], functions={}, calls=[0], payloads=[b""], needs={}, given={}, answered=0, keys=keys)
    with pytest.raises(ProtocolError, match="a key"):
        codec.from_client().decode(codec.Encoder().encode(message))


def test_a_task_whose_result_is_known_never_becomes_ready() -> None:
    manager = Cached(1, memo=Memo(PlayedStore(a=b"A")))
    manager.call("a")
    assert manager.state.tasks[0].status == Status.WAITING and manager.state.ready.first() is None


def test_a_call_waits_for_an_answer_that_the_store_owes_to_a_cancelled_one() -> None:
    manager = Cached(8, memo=Memo(store := PlayedStore(a=b"A")))
    manager.call("a")
    from_clients.on_cancel(manager.state, manager.client, Cancel(tasks=[0]))
    del store.recorded[KEYS["a"]]  # it is damaged; the answer that says so is on its way
    manager.call("a")
    assert manager.assigned() == [] and len(store.asked) == 1
    manager.fetched("a", None)
    assert manager.assigned() == [1]
    manager.done(1, 1, value=b"new")
    assert manager.answers() == {1: (Outcome.DONE, b"new")} and not manager.state.tasks
