"""Stored values and arguments as the client deals with them; the manager is a fake."""

from __future__ import annotations

import array
import gc
import threading
import time
from pathlib import Path

import pytest

import exex
from exex import join_app, python_app
from exex.errors import SerializationError, WorkerLost
from exex.protocol.messages import Release, Spread, Submit, Want
from exex.protocol.payload import Large, Stored
from exex.store.node_store import KEY, NodeStore
from tests.fakes import FakeManager, Job

N = 20_000


@python_app
def make(n: int, start: int = 0):
    return array.array("q", range(start, start + n))


@python_app
def total(*values):
    return sum(map(sum, values))


@python_app(cache=True)
def cached(n: int):
    return array.array("q", range(n))


@python_app
def shared(found, i: int):
    return found[0][i]


@join_app
def both():
    return [make(N), make(N, 1)]


@join_app
def one():
    return make(N)


def sum_of(n: int) -> int:
    return n * (n - 1) // 2


@pytest.fixture(params=["here", "far", "elsewhere"])
def kind(request) -> str:
    """Where values lie: on the client's node; on others, but they can be brought there; or the client is elsewhere."""
    return request.param


@pytest.fixture
def manager(kind: str, tmp_path: Path):
    (tmp_path / KEY).write_text("key")
    manager = FakeManager(store=None if kind == "elsewhere" else NodeStore(str(tmp_path)), keep_bytes=65536)
    manager.keeps_far = kind == "far"
    with Job(manager):
        yield manager


def test_a_value_is_fetched_when_it_is_asked_for(manager: FakeManager, kind: str) -> None:
    future = make(N)
    assert future.exception() is None and future.done() and future.task_status() == "exec_done"
    assert not manager.told(Want) and isinstance(future._raw, Stored)
    value = future.result()
    assert list(value) == list(range(N))
    value[0] = 7  # it can be written to
    assert len(manager.told(Want)) == (kind != "here")
    assert future.result() is value


def test_a_need_is_named_and_not_sent(manager: FakeManager) -> None:
    future = make(N)
    future._wait()
    assert total(future, future).result() == 2 * sum_of(N)
    (given,) = [message.given[0] for message in manager.told(Submit) if message.given]
    assert all(isinstance(payload, Stored) for payload in given.values()) and not manager.told(Want)


def test_what_nobody_holds_is_released_once(manager: FakeManager) -> None:
    futures = [make(N, i) for i in range(3)]
    assert total(*futures).result() == 3 * sum_of(N) + 3 * N
    names = {future._raw.name for future in futures if future.exception() is None}
    assert not manager.told(Release)
    del futures
    manager.until(lambda: len(manager.told(Release)) and not manager.kept.keys() & names)
    assert sorted(name for message in manager.told(Release) for name in message.names) == sorted(names)


def test_large_arguments_are_put_into_the_store(manager: FakeManager, kind: str) -> None:
    argument = array.array("q", range(N))
    future = total(argument, b"small")
    argument[0] = 1000  # too late
    assert future.result() == sum_of(N) + sum(b"small")
    (payload,) = manager.told(Submit)[-1].payloads
    assert type(payload) is (Large if kind == "elsewhere" else Stored)


def test_a_value_that_was_opened_goes_as_it_is_now(manager: FakeManager) -> None:
    future = make(N)
    future.result()[0] = 5
    assert total(future).result() == sum_of(N) + 5


def test_joins_and_callbacks_open_values(manager: FakeManager) -> None:
    heard = []
    future = make(N)
    future.add_done_callback(lambda f: heard.append(len(f.result())))
    assert [value[0] for value in both().result()] == [0, 1]
    assert len(one().result()) == N and total(one()).result() == sum_of(N)
    manager.until(lambda: heard)
    assert heard == [N]


def test_maps_open_values(manager: FakeManager) -> None:
    assert [len(value) for value in exex.map(bytes, [100_000, 3, 200_000], chunksize=1)] == [100_000, 3, 200_000]


def test_cached_calls_send_their_values(manager: FakeManager) -> None:
    future = cached(N)
    future._wait()
    assert not isinstance(future._raw, Stored) and len(future.result()) == N


def test_many_threads_want_the_same(manager: FakeManager, kind: str) -> None:
    future = make(N)
    future._wait()
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(future.result()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [N] * 8


@pytest.mark.parametrize("kind", ["far", "elsewhere"], indirect=True)
def test_a_value_that_is_lost_for_good(manager: FakeManager) -> None:
    future = make(N)
    assert future.exception() is None
    manager.far.clear()
    with pytest.raises(WorkerLost, match=r"t0\.1 is lost"):
        future.result()
    assert isinstance(future.exception(), WorkerLost)


@pytest.mark.parametrize("kind", ["far"], indirect=True)
def test_a_job_that_ends_while_a_value_is_wanted(manager: FakeManager) -> None:
    future = make(N)
    assert future.exception() is None
    manager._bring = lambda name, here: manager.end("the job ends")  # type: ignore[method-assign]
    with pytest.raises(exex.ManagerLost, match=r"t0\.1, which is stored on a node of the job, was not fetched"):
        future.result()


# ---- broadcast --------------------------------------------------------------------------------------------------


def test_a_broadcast_stands_for_its_value(manager: FakeManager, kind: str) -> None:
    handle = exex.broadcast([array.array("q", range(N))])
    assert [shared(handle, i).result() for i in range(3)] == [0, 1, 2]
    assert total(handle).exception() is not None, "the value is a list of arrays"
    assert shared({"deep": handle}["deep"], 4).result() == 4
    assert len(handle.value()[0]) == N and handle.size_bytes > 8 * N
    spread = manager.told(Spread)
    assert len(spread) == (kind != "elsewhere")
    handle.release()
    with pytest.raises(SerializationError, match="after its release"):
        shared(handle, 1)
    if spread:
        manager.until(lambda: spread[0].payload.name not in manager.kept)


def test_a_broadcast_is_released_with_its_handle(manager: FakeManager, kind: str) -> None:
    handle = exex.broadcast(bytes(200_000))
    assert total(handle, [1]).result() == 1
    del handle
    gc.collect()
    if kind != "elsewhere":
        manager.until(lambda: manager.told(Release) and not any(name.startswith("c") for name in manager.kept))


def test_a_small_broadcast_travels(manager: FakeManager) -> None:
    handle = exex.broadcast([[1, 2, 3]])
    assert shared(handle, 1).result() == 2 and not manager.told(Spread)


def test_a_broadcast_counts_by_its_value_in_keys(manager: FakeManager) -> None:
    cached(1).result()
    maker = cached._get_key_maker()
    handles = [exex.broadcast(list(range(last))) for last in (N, N, N + 1)]
    first, again, other = (maker.make((handle,), {}, []).partial for handle in handles)
    assert first == again != other


@python_app
def slow(i: int):
    time.sleep(0.001)
    return i


def test_small_values_are_as_they_were(manager: FakeManager) -> None:
    assert [f.result() for f in [slow(i) for i in range(50)]] == list(range(50))
    assert not manager.kept and not manager.told(Release)
