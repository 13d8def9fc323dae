"""The contract of `concurrent.futures.Executor`, as its documentation states it, and what ours promises beside it."""

import concurrent.futures as cf
import functools
import gc
import itertools
import operator
import threading
import time
from datetime import date

import numpy as np
import pytest

import exex
from exex import Executor, SerializationError, bash_app, join_app, python_app
from exex.client import mapping, session
from exex.protocol.messages import Cancel, Submit
from tests.fakes import FakeManager, Job, shaken


@pytest.fixture
def executor(manager):
    with Executor() as executor:
        yield executor


def double(x):
    return 2 * x


def held(x):
    return x


def fail(x):
    raise ValueError(x)


def fail_at_five(x):
    if x == 5:
        raise ValueError("five")
    return x


def slow(x):
    time.sleep(0.002)
    return x


class Counter:
    def __init__(self, start):
        self.value = start

    def plus(self, n):
        return self.value + n

    def __call__(self, n):
        return self.value * n


def sizes(manager):
    """Number of chunks that were sent."""
    return sum(len(message.payloads) for message in manager.told(Submit))


# ---- submit --------------------------------------------------------------------------------------------------------


def test_submit(executor):
    future = executor.submit(pow, 323, 1235, 1000)
    assert isinstance(future, cf.Future)
    assert future.result() == pow(323, 1235, 1000)
    assert executor.submit(dict, fn=1, self=2).result() == {"fn": 1, "self": 2}
    assert executor.submit(date, year=2020, month=2, day=29).result() == date(2020, 2, 29)


def test_the_function_is_positional_only(executor):
    with pytest.raises(TypeError):
        executor.submit(fn=double, x=1)
    with pytest.raises(TypeError):
        executor.submit()
    with pytest.raises(TypeError, match="runs functions"):
        executor.submit(3)


def test_errors_of_calls(executor):
    future = executor.submit(fail, "x")
    with pytest.raises(ValueError, match="x"):
        future.result()
    assert isinstance(future.exception(), ValueError)


def test_any_callable_will_do(executor):
    counter, factor = Counter(5), 3
    assert executor.submit(counter.plus, 1).result() == 6
    assert executor.submit(counter, 2).result() == 10
    assert executor.submit(functools.partial(pow, 2), 5).result() == 32
    assert executor.submit(lambda x: factor * x, 2).result() == 6
    assert executor.submit(operator.itemgetter(1), [1, 2]).result() == 2
    assert executor.submit("a-b".split, "-").result() == ["a", "b"]


def test_callables_that_change_are_taken_as_they_are(executor):
    counter = Counter(1)
    futures = []
    for _ in range(5):
        counter.value += 1
        futures += [executor.submit(counter.plus, 0), executor.submit(counter, 1)]
    assert [future.result() for future in futures] == [2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert [executor.submit(lambda i=i: i).result() for i in range(5)] == list(range(5))


def test_a_function_travels_once(manager, executor):
    def local(x):
        return -x

    for _ in range(20):
        executor.submit(double, 1)
        executor.submit(local, 1)
        executor.submit(lambda: 1)
    cf.wait([executor.submit(double, 1)])
    functions = sum(len(message.functions) for message in manager.told(Submit))
    assert functions == 3  # double, local from its second call on, and the one that calls its argument


def test_futures_are_arguments(executor):
    first = executor.submit(double, 1)
    assert executor.submit(double, first).result() == 4
    assert executor.submit(sum, [first, executor.submit(double, first)]).result() == 6
    assert list(executor.map(double, [first, 5])) == [4, 10]


def test_what_cannot_be_pickled(executor):
    with pytest.raises(SerializationError):
        executor.submit(double, threading.Lock())
    with pytest.raises(SerializationError):
        executor.submit(threading.Lock().acquire)


def test_apps_are_taken_for_their_functions(manager, executor):
    assert executor.submit(python_app(double), 4).result() == 8
    assert list(executor.map(python_app(double), range(3))) == [0, 2, 4]
    assert executor.submit(bash_app(lambda x: "true"), 4).result() == 0
    assert list(executor.map(bash_app(lambda x: "true"), range(5))) == [0] * 5
    join = join_app(lambda x: executor.submit(double, x))
    assert executor.submit(join, 4).result() == 8
    assert list(executor.map(join, range(5))) == [0, 2, 4, 6, 8]


def test_options(manager):
    executor = Executor(retries=2, priority=-1, walltime=9, memory=5000)
    executor.submit(double, 1).result()
    assert list(executor.map(double, [1])) == [2]
    specs = [spec for message in manager.told(Submit) for spec in message.apps]
    assert {(spec.retries, spec.priority, spec.walltime_s, spec.memory_bytes) for spec in specs} == {(2, -1, 9.0, 5000)}
    for wrong in ({"retries": -1}, {"walltime": 0}, {"memory": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Executor(**wrong)


# ---- shutdown --------------------------------------------------------------------------------------------------------


def test_nothing_is_accepted_after_shutdown(manager):
    executor = Executor()
    executor.submit(double, 1)
    executor.shutdown()
    executor.shutdown()
    for action in (lambda: executor.submit(double, 1), lambda: executor.map(double, [1])):
        with pytest.raises(RuntimeError, match="after shutdown"):
            action()


def test_shutdown_waits(manager):
    manager.hold("held")
    executor = Executor()
    futures = [executor.submit(held, i) for i in range(5)]
    threading.Timer(0.1, manager.release, ["held"]).start()
    executor.shutdown()
    assert all(future.done() for future in futures)


def test_shutdown_need_not_wait(manager):
    manager.hold("held")
    executor = Executor()
    future = executor.submit(held, 1)
    executor.shutdown(wait=False)
    assert not future.done()
    manager.release("held")
    assert future.result() == 1


def test_the_with_statement_waits(manager):
    manager.hold("held")
    threading.Timer(0.1, manager.release, ["held"]).start()
    with Executor() as executor:
        future = executor.submit(held, 1)
    assert future.done()


def test_shutdown_can_cancel_what_does_not_run(manager):
    manager.hold("held")
    executor, other = Executor(), Executor()
    done = executor.submit(double, 1)
    done.result()
    futures = [executor.submit(held, i) for i in range(10)]
    foreign = other.submit(held, 1)
    manager.until(lambda: futures[0].tid in manager.tasks)
    manager.report_started(futures[0].tid)
    manager.until(futures[0].running)
    executor.shutdown(wait=False, cancel_futures=True)
    assert not futures[0].cancelled()
    assert all(future.cancelled() for future in futures[1:])
    assert done.result() == 2
    assert not foreign.cancelled()
    manager.release("held")
    assert futures[0].result() == 0
    assert foreign.result() == 1


def test_executors_do_not_wait_for_each_other(manager):
    manager.hold("held")
    first = Executor().submit(held, 1)
    with Executor() as executor:
        assert executor.submit(double, 1).result() == 2
    assert not first.done()
    manager.release("held")


# ---- map: the contract -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [None, 1, 3, 1000])
def test_map_is_like_map(executor, chunksize):
    results = executor.map(pow, range(10), range(10), chunksize=chunksize)
    assert next(results) == 1
    assert list(results) == list(map(pow, range(1, 10), range(1, 10)))
    assert list(executor.map(double, "", chunksize=chunksize)) == []
    assert list(executor.map(double)) == []
    assert list(executor.map(pow, [2, 3, 4], itertools.count(1), chunksize=chunksize)) == [2, 9, 64]
    assert list(executor.map(pow, [2, 3, 4], (1, 2), chunksize=chunksize)) == [2, 9]
    assert list(executor.map(double, iter(range(100)), chunksize=chunksize)) == list(range(0, 200, 2))
    assert list(executor.map(double, {"a": 1, "b": 2}, chunksize=chunksize)) == ["aa", "bb"]
    assert [int(x) for x in executor.map(double, np.arange(5), chunksize=chunksize)] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("chunksize", [0, -1])
def test_wrong_chunksizes(executor, chunksize):
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        executor.map(double, [1], chunksize=chunksize)


@pytest.mark.parametrize("chunksize", [None, 1, 2, 100])
@pytest.mark.parametrize("make", [list, iter])
def test_an_error_has_its_turn(executor, chunksize, make):
    results = executor.map(fail_at_five, make(range(10)), chunksize=chunksize)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five") as caught:
        next(results)
    assert caught.value.__cause__ is not None
    with pytest.raises(StopIteration):
        next(results)


def test_an_error_of_the_iterable(executor):
    def items():
        yield 1
        yield 2
        raise OSError("disk")

    results = executor.map(double, items())
    assert [next(results), next(results)] == [2, 4]
    with pytest.raises(OSError, match="disk"):
        next(results)
    with pytest.raises(TypeError):
        executor.map(double, 3)
    with pytest.raises(ZeroDivisionError):
        executor.map(double, (1 // x for x in [0]))


def test_items_that_cannot_be_pickled(executor):
    with pytest.raises(SerializationError):
        executor.map(double, [threading.Lock()])
    results = executor.map(double, [1, threading.Lock()], chunksize=1)
    assert next(results) == 2
    with pytest.raises(SerializationError):
        next(results)


def test_the_timeout_counts_from_the_call(manager):
    manager.hold("held")
    executor = Executor()
    began_s = time.monotonic()
    results = executor.map(held, range(3), timeout=0.3)
    time.sleep(0.2)
    with pytest.raises(cf.TimeoutError):
        next(results)
    assert 0.25 < time.monotonic() - began_s < 3
    manager.until(lambda: manager.told(Cancel))
    manager.release("held")
    assert list(executor.map(held, range(3), timeout=20)) == [0, 1, 2]
    assert list(executor.map(double, range(3), timeout=20.5)) == [0, 2, 4]


def test_timeout_zero_after_the_results_are_there(executor):
    results = executor.map(double, range(3), chunksize=3, timeout=0)
    executor.submit(double, 1).result()
    assert list(results) == [0, 2, 4]


@pytest.mark.parametrize("how", ["close", "drop", "error"])
def test_what_is_left_is_cancelled(manager, how):
    manager.hold("held")
    executor = Executor()
    results = executor.map(fail if how == "error" else double, [1], chunksize=1)
    if how == "error":
        results = executor.map(fail_or_held, range(100), chunksize=1)
        with pytest.raises(ValueError, match="first"):
            next(results)
    else:
        manager.hold("double")
        results = executor.map(double, range(100), chunksize=1)
        threading.Timer(0.05, manager.release, ["double"]).start()
        next(results)
        manager.hold("double")
        if how == "close":
            results.close()
        del results
        gc.collect()
    executor.shutdown()
    manager.until(lambda: not manager.tasks)


def fail_or_held(x):
    if x == 0:
        raise ValueError("first")
    return x


def test_calls_run_though_nobody_iterates(manager):
    executor = Executor()
    results = executor.map(double, range(5000))
    manager.until(lambda: sizes(manager) > 4)
    executor.shutdown()
    assert session.current("x").proxy.outbox.open_futures() == []
    assert list(results) == list(range(0, 10_000, 2))


def test_a_generator_is_run_out_by_shutdown(manager):
    taken = []
    with Executor() as executor:
        results = executor.map(double, (taken.append(i) or i for i in range(500)), chunksize=7)
        assert len(taken) < 100
    assert len(taken) == 500
    assert list(results) == list(range(0, 1000, 2))


def test_a_dropped_map_is_run_out_by_the_end_of_the_session():
    manager = FakeManager()
    with Job(manager):
        exex.map(double, iter(range(300)), chunksize=10)
        exex.map(double, range(300), chunksize=10)
        gc.collect()
    assert sizes(manager) == 60


def test_results_can_be_taken_after_shutdown(manager):
    with Executor() as executor:
        results = executor.map(double, itertools.count(), chunksize=5)
        assert next(results) == 0
    assert list(itertools.islice(results, 300)) == list(range(2, 602, 2))


def test_shutdown_can_cancel_a_map(manager):
    manager.hold("double")
    executor = Executor()
    results = executor.map(double, range(10_000), chunksize=1)
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(cf.CancelledError):
        next(results)
    manager.release("double")
    other = Executor()
    results = other.map(double, iter(range(10_000)), chunksize=1)
    taken = [next(results), next(results)]
    other.shutdown(cancel_futures=True)
    with pytest.raises(cf.CancelledError):
        taken += results
    assert taken[:2] == [0, 2]


# ---- map: what it costs ----------------------------------------------------------------------------------------------


def test_generators_are_read_lazily(executor):
    taken = []
    results = executor.map(double, (taken.append(i) or i for i in itertools.count()), chunksize=10)
    assert len(taken) == 2 * 2 * 10
    for i in range(200):
        assert next(results) == 2 * i
        assert len(taken) <= i + 2 * 2 * 10 + 20


def test_a_buffersize_bounds_what_is_ahead(executor):
    taken = []
    results = executor.map(double, (taken.append(i) or i for i in itertools.count()), buffersize=3)
    for i in range(50):
        assert next(results) == 2 * i
        assert len(taken) <= i + 1 + 3
    assert list(executor.map(double, range(10), buffersize=1)) == list(range(0, 20, 2))


@pytest.mark.parametrize("make", [list, iter])
def test_chunks_of_short_calls_grow(manager, executor, make):
    assert sum(executor.map(double, make(range(100_000)))) == 2 * sum(range(100_000))
    assert sizes(manager) < 500


def test_chunks_of_long_calls_stay_small(manager, executor):
    assert list(executor.map(slow, range(60))) == list(range(60))
    assert sizes(manager) >= 12


def test_a_range_is_not_expanded_here(manager, executor):
    assert sum(executor.map(double, range(100_000), chunksize=50_000)) == 2 * sum(range(100_000))
    assert all(len(payload) < 200 for message in manager.told(Submit) for payload in message.payloads)


def test_large_items_are_not_all_taken_at_once(monkeypatch):
    monkeypatch.setattr(mapping, "_MOST_BYTES", 1_000_000)
    with Job(FakeManager(slots=1000)):
        taken = []
        results = exex.map(np.size, (taken.append(1) or np.zeros(12_500) for _ in range(100)), chunksize=1)
        assert 10 <= len(taken) < 15
        results.close()


def test_maps_side_by_side(manager):
    with shaken():
        with cf.ThreadPoolExecutor(6) as pool:
            work = [pool.submit(lambda: sum(exex.map(double, range(5000)))) for _ in range(12)]
            assert [future.result() for future in work] == [2 * sum(range(5000))] * 12


def test_one_iterator_while_another_thread_shuts_down(manager):
    with shaken():
        for _ in range(30):
            executor = Executor()
            results = executor.map(double, range(2000), chunksize=3)
            thread = threading.Thread(target=executor.shutdown)
            thread.start()
            assert list(results) == list(range(0, 4000, 2))
            thread.join(20)
            assert not thread.is_alive()


# ---- map: retries ----------------------------------------------------------------------------------------------------

tries: dict[int, int] = {}


def flaky(x):
    tries[x] = tries.get(x, 0) + 1
    if x % 3 == 0 and tries[x] <= 2:
        raise ValueError(f"{x}, try {tries[x]}")
    return x


@pytest.mark.parametrize("chunksize", [None, 1, 4, 100])
def test_items_are_tried_again(manager, chunksize):
    tries.clear()
    assert list(Executor(retries=2).map(flaky, range(50), chunksize=chunksize)) == list(range(50))
    assert all(tries[x] == (3 if x % 3 == 0 else 1) for x in range(50))
    tries.clear()
    results = Executor(retries=1).map(flaky, range(1, 50), chunksize=chunksize)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="3, try 2"):
        next(results)


def test_a_handler_decides_about_items():
    tries.clear()
    with Job(retry_handler=lambda error, record: 0 if record["fail_count"] < 9 else 1):
        assert list(exex.map(flaky, range(20))) == list(range(20))


def test_a_map_begins_with_what_earlier_maps_have_found(manager, executor):
    def chunks(function, count):
        before = sizes(manager)
        assert len(list(executor.map(function, range(count)))) == count
        return sizes(manager) - before

    def begin(function):
        taken = []
        executor.map(function, (taken.append(i) or i for i in range(100)))
        return len(taken)

    assert chunks(double, 8) > 4
    chunks(double, 1000)
    assert chunks(double, 8) == 1  # it takes microseconds
    assert chunks(slow, 8) == 8  # of another function nothing is known
    assert chunks(slow, 8) > 2
    assert begin(double) == 2 * 2 * 16
