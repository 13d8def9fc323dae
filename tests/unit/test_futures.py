"""`AppFuture` and `DataFuture`: everything that a `concurrent.futures.Future` does, and what they do beside it."""

import asyncio
import concurrent.futures as cf
import copy
import logging
import pickle
import threading
import time

import numpy as np
import pytest

from exex import AppFuture, DataFuture, DependencyError, DeserializationError, File, python_app
from exex.client import lazy
from exex.client.futures import AppFuture as Future
from tests.fakes import shaken
from tests.unit.plain_apps import echo, fail, held


class Loads:
    """Counts how often it is unpickled."""

    count = 0
    lock = threading.Lock()

    def __init__(self, text="x"):
        self.text = text

    def __setstate__(self, state):
        with Loads.lock:
            Loads.count += 1
        self.__dict__.update(state)


def explode():
    raise OSError("no such library")


class Unloadable:
    def __reduce__(self):
        return explode, ()


@python_app
def make(kind):
    return Loads() if kind == "loads" else Unloadable() if kind == "unloadable" else np.zeros(kind)


# ---- results -----------------------------------------------------------------------------------------------------


def test_it_is_a_future(manager):
    future = echo(1)
    assert isinstance(future, cf.Future)
    assert isinstance(future, AppFuture)
    assert future.result() == 1
    assert future.result(timeout=0) == 1
    assert future.exception() is None
    assert future.done()
    assert not future.running()
    assert not future.cancelled()


def test_an_error_is_raised_again_and_again(manager):
    future = fail("why")
    for _ in range(2):
        with pytest.raises(ValueError, match="why"):
            future.result()
    assert type(future.exception()) is ValueError
    assert "task 0 (fail) on rank 1 at fake, attempt 1" in str(future.exception().__cause__)


def test_timeouts(manager):
    manager.hold("held")
    future = held(1)
    for method in (future.result, future.exception):
        with pytest.raises(cf.TimeoutError):
            method(timeout=0)
        with pytest.raises(cf.TimeoutError):
            method(timeout=-1)
        with pytest.raises(cf.TimeoutError):
            method(timeout=0.01)
    manager.release("held")
    assert future.result(timeout=1e12) == 1


def test_it_is_unpickled_when_it_is_asked_for_and_once(manager):
    Loads.count = 0
    future = make("loads")
    cf.wait([future])
    assert Loads.count == 0
    assert future.result() is future.result()
    assert future.exception() is None
    assert Loads.count == 1


def test_threads_that_ask_together_get_the_same_object(manager):
    with shaken():
        for _ in range(200):
            future = make("loads")
            cf.wait([future])
            barrier = threading.Barrier(4)
            seen = []

            def ask(future=future, barrier=barrier, seen=seen):
                barrier.wait()
                seen.append(future.result())

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all(value is seen[0] for value in seen)


def test_what_cannot_be_unpickled_names_the_task(manager):
    future = make("unloadable")
    with pytest.raises(DeserializationError, match=r"result of task 0 \(make\) cannot be unpickled .* OSError: no such"):
        future.result()
    assert isinstance(future.exception(), DeserializationError)
    assert isinstance(future.exception().__cause__, OSError)


@pytest.mark.parametrize("size", [1, 100, 100_000])
def test_arrays_can_be_written_to(manager, size):
    array = make(size).result()
    array += 1
    assert array.sum() == size


def test_a_result_that_was_looked_at_may_be_an_argument(manager):
    future = make(50_000)
    future.result()[:] = 7
    assert echo(future).result().sum() == 350_000
    other = make(50_000)
    cf.wait([other])
    again = echo(other)
    other.result()[:] = 7
    assert again.result().sum() == 0


def test_waiting_needs_no_open_value_for_the_standard_library(manager):
    future = echo(5)
    cf.wait([future])
    assert future._result == 5  # what 3.14's asyncio reads directly
    assert future._exception is None


# ---- wait, as_completed, callbacks, asyncio ----------------------------------------------------------------------


def test_wait_and_as_completed(manager):
    manager.hold("held")
    quick, slow, foreign = [echo(i) for i in range(5)], [held(i) for i in range(5)], cf.Future()
    done, rest = cf.wait([*quick, *slow, foreign], return_when=cf.FIRST_COMPLETED)
    assert done <= set(quick)
    cf.wait(quick)
    assert cf.wait([*quick, *slow], timeout=0).not_done == set(slow)
    foreign.set_result(0)
    manager.release("held")
    assert set(cf.as_completed([*quick, *slow, foreign])) == {*quick, *slow, foreign}
    assert cf.wait(slow).not_done == set()


def test_wait_for_the_first_exception(manager):
    manager.hold("held", "fail")
    futures = [held(1), fail("x")]
    threading.Timer(0.01, manager.release, ["fail"]).start()
    done, rest = cf.wait(futures, return_when=cf.FIRST_EXCEPTION)
    assert done == {futures[1]}
    manager.release("held")


def test_as_completed_times_out(manager):
    manager.hold("held")
    futures = [echo(1), held(2)]
    futures[0].result()
    seen = []
    with pytest.raises(cf.TimeoutError):
        for future in cf.as_completed(futures, timeout=0.05):
            seen.append(future)
    assert seen == futures[:1]
    manager.release("held")


def test_wait_sees_what_is_cancelled(manager):
    manager.hold("held")
    future = held(1)
    threading.Timer(0.01, future.cancel).start()
    assert cf.wait([future]).done == {future}
    other = held(2)
    threading.Timer(0.01, other.cancel).start()
    assert list(cf.as_completed([other])) == [other]


def test_wait_and_resolve_race(manager):
    """Whatever the interleaving, nobody waits for ever."""
    with shaken():
        for round in range(150):
            futures = [echo(i) for i in range(20)]
            waiters = [
                threading.Thread(target=cf.wait, args=[futures]),
                threading.Thread(target=lambda futures=futures: list(cf.as_completed(futures))),
                threading.Thread(target=lambda futures=futures: [future.result() for future in futures]),
            ]
            for thread in waiters:
                thread.start()
            for thread in waiters:
                thread.join(30)
                assert not thread.is_alive(), round


def test_callbacks_are_called_once_and_in_order(manager):
    manager.hold("held")
    future, seen, last = held(1), [], threading.Event()
    for i in range(5):
        future.add_done_callback(lambda future, i=i: seen.append((i, future.result())))
    future.add_done_callback(lambda _: last.set())
    assert seen == []
    manager.release("held")
    assert last.wait(20)
    assert seen == [(i, 1) for i in range(5)]
    future.add_done_callback(lambda future: seen.append("late"))
    assert seen[-1] == "late"


def test_every_callback_is_called_once_however_late_it_comes(manager):
    with shaken():
        for _ in range(300):
            future, calls = echo(1), []
            for i in range(10):
                future.add_done_callback(lambda _, i=i: calls.append(i))
            future.result()
            manager.until(lambda calls=calls: len(calls) == 10)
            assert sorted(calls) == list(range(10))


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_errors_in_callbacks_are_logged_and_do_no_harm(manager, caplog, error):
    def bad(future):
        raise error("oops")

    manager.hold("held")
    future, after = held(1), threading.Event()
    future.add_done_callback(bad)
    future.add_done_callback(lambda _: after.set())
    with caplog.at_level(logging.ERROR, logger="exex"):
        manager.release("held")
        assert after.wait(20)
    assert "exception calling callback" in caplog.text
    assert echo(2).result() == 2


def test_a_callback_may_submit_but_not_wait(manager):
    manager.hold("held")
    future, inner, errors = held(1), [], []

    def callback(future):
        inner.append(echo(future.result() + 1))
        try:
            held(0).result()
        except RuntimeError as error:
            errors.append(str(error))

    future.add_done_callback(callback)
    manager.release("held")
    manager.until(lambda: errors)
    assert inner[0].result() == 2
    assert "a done-callback waits for task 2 (held)" in errors[0]


def test_asyncio(manager):
    async def main():
        values = await asyncio.gather(*(asyncio.wrap_future(echo(i)) for i in range(50)))
        with pytest.raises(ValueError, match="x"):
            await asyncio.wrap_future(fail("x"))
        return values

    assert asyncio.run(main()) == list(range(50))


# ---- cancel ------------------------------------------------------------------------------------------------------


def test_cancel_a_waiting_task(manager):
    manager.hold("held")
    future, called = held(1), []
    future.add_done_callback(called.append)
    assert future.cancel()
    assert called == [future]
    assert future.cancelled()
    assert future.done()
    assert future.cancel()
    assert not future.running()
    for method in (future.result, future.exception):
        with pytest.raises(cf.CancelledError):
            method()
    assert manager.until(lambda: [m.tasks for m in manager.told(manager_messages.Cancel)]) == [[0]]
    assert repr(future).startswith("<AppFuture 0 held: cancelled after ")


def test_cancel_a_running_task(manager):
    manager.hold("held")
    future = held(1)
    manager.until(lambda: 0 in manager.tasks)
    manager.report_started(0)
    manager.until(future.running)
    assert future.task_status() == "running"
    assert future.cancel()
    manager.until(lambda: not manager.tasks)


def test_cancel_after_the_end(manager):
    future = echo(1)
    future.result()
    assert not future.cancel()
    assert not future.cancelled()
    assert future.result() == 1


def test_cancel_races_with_the_answer(manager):
    with shaken():
        for _ in range(300):
            future = echo(1)
            if future.cancel():
                with pytest.raises(cf.CancelledError):
                    future.result()
            else:
                assert future.result() == 1


def test_dependents_of_a_cancelled_task_fail(manager):
    manager.hold("held")
    future = held(1)
    before, after = echo(future), None
    manager.until(lambda: 1 in manager.tasks)
    future.cancel()
    after = echo(future)
    for dependent in (before, after):
        with pytest.raises(DependencyError, match=r"via task 0") as caught:
            dependent.result()
        assert dependent.task_status() == "dep_fail"
    assert isinstance(caught.value.__cause__, cf.CancelledError)


# ---- what Parsl's futures have -------------------------------------------------------------------------------------


def test_status_and_repr(manager):
    manager.hold("held")
    first = held(1)
    second = echo(first)
    manager.until(lambda: second._raw.__class__ is int)
    assert (first.task_status(), second.task_status()) == ("launched", "pending")
    assert repr(second).startswith("<AppFuture 1 echo: waiting for ")
    manager.release("held")
    cf.wait([second])
    assert second.task_status() == "exec_done"
    bad = fail("x")
    worse = echo(bad)
    cf.wait([bad, worse])
    assert (bad.task_status(), worse.task_status()) == ("failed", "dep_fail")
    assert worse.exception() is not None
    assert (bad.task_status(), worse.task_status()) == ("failed", "dep_fail")
    assert (bad.tid, bad.app_name, bad.stdout, bad.stderr, bad.outputs) == (2, "fail", None, None, [])


def test_items_and_attributes_are_tasks(manager):
    future = echo({"a": [1, 2], "b": 3 + 4j})
    assert future["a"][1].result() == 2
    assert future["b"].imag.result() == 4.0
    with pytest.raises(KeyError):
        future["c"].result()
    with pytest.raises(AttributeError):
        future["b"].nothing.result()
    with pytest.raises(DependencyError):
        fail("x")["a"].result()
    assert future["b"].app_name == "getitem"


def test_probing_makes_no_tasks(manager):
    future = echo([1, 2])
    for name in ("__array__", "_ipython_display_", "_repr_png_", "__len__", "__deepcopy__", "_x"):
        assert not hasattr(future, name)
    with pytest.raises(TypeError):
        iter(future)
    with pytest.raises(TypeError):
        1 in future
    np.array([future], dtype=object)
    future.result()
    assert manager.ran == [0]


def test_it_is_pickled_only_as_an_argument(manager):
    future = echo(1)
    for action in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="only as an argument of an app"):
            action(future)
    future.result()


def test_only_the_manager_decides(manager):
    future = echo(1)
    for action in (lambda: future.set_result(2), lambda: future.set_exception(OSError()), future.set_running_or_notify_cancel):
        with pytest.raises(cf.InvalidStateError):
            action()
    assert future.result() == 1


# ---- failed needs --------------------------------------------------------------------------------------------------


def test_a_failed_need_is_named_with_its_cause(manager):
    manager.hold("fail")
    first = fail("root")
    third = echo(echo(first))
    both = echo(first, [third])
    manager.release("fail")
    with pytest.raises(DependencyError) as caught:
        third.result()
    assert "task 2" in str(caught.value)
    assert "ValueError via task 1 (echo) <- task 0 (fail)" in str(caught.value)
    assert str(caught.value.__cause__) == "root"
    assert caught.value.__cause__ is first.exception()
    assert caught.value.task_id == 2
    [(error, name)] = caught.value.dependent_exceptions_tids
    assert isinstance(error, DependencyError)
    assert name == "task 1 (echo)"
    assert isinstance(both.exception(), DependencyError)
    late = echo(1, {"x": first}, third)
    assert "(+ others)" in str(late.exception())


def test_the_cause_is_known_though_the_script_has_dropped_the_need(manager):
    manager.hold("fail")
    last = echo(echo(fail("root")))
    manager.release("fail")
    with pytest.raises(DependencyError, match=r"ValueError via task 1 .*<- task 0"):
        last.result()


@pytest.mark.parametrize("late", [False, True])
def test_a_long_chain_of_failures(manager, late):
    manager.hold("fail")
    first = future = fail("root")
    if late:
        manager.release("fail")
        cf.wait([first])
    for _ in range(5000):
        future = echo(future)
    manager.release("fail")
    error = future.exception()
    assert isinstance(error, DependencyError)
    assert str(error.__cause__) == "root"
    assert len(str(error)) < 1000
    assert "task 0 (fail)" in str(error)


# ---- memory and threads --------------------------------------------------------------------------------------------


def test_a_new_future_has_neither_lists_nor_locks(manager):
    future = echo(1)
    assert future._rare is None
    future.result()


def test_a_lock_held_by_another_thread_does_not_survive_a_fork():
    before = lazy._lock
    try:
        lazy.renew_lock_after_fork()
        assert lazy._lock is not before
    finally:
        lazy._lock = before


def test_many_threads_submit_and_wait(manager):
    with shaken():

        def work(n):
            futures = [echo(i) for i in range(n)]
            return sum(future.result() for future in futures)

        with cf.ThreadPoolExecutor(8) as pool:
            totals = list(pool.map(work, [500] * 16))
        assert totals == [sum(range(500))] * 16
        assert sorted(manager.ran) == list(range(8000))


# ---- files ---------------------------------------------------------------------------------------------------------


@python_app
def write(text, outputs=()):
    if text == "fail":
        raise ValueError(text)
    return None


@python_app
def write_held(text, outputs=()):
    return None


def test_a_data_future_is_its_file(manager):
    file = File("/data/a.txt")
    future = write("x", outputs=[file])
    [data] = future.outputs
    assert isinstance(data, DataFuture)
    assert isinstance(data, cf.Future)
    assert data.result() is file
    assert data.done()
    assert data.exception() is None
    assert (data.filepath, data.filename, data.tid, data.file_obj) == ("/data/a.txt", "a.txt", 0, file)
    assert "a.txt" in repr(data)
    assert cf.wait([data]).done == {data}
    passed = echo([data])
    assert passed.result()[0].filepath == "/data/a.txt"


def test_a_data_future_has_the_error_of_its_task(manager):
    future = write("fail", outputs=[File("a")])
    [data] = future.outputs
    assert data.exception() is future.exception()
    with pytest.raises(ValueError, match="fail"):
        data.result()
    with pytest.raises(DependencyError):
        echo(data).result()


def test_a_data_future_waits_with_its_task(manager):
    manager.hold("write_held")
    future = write_held("x", outputs=[File("a"), File("b")])
    a, b = future.outputs
    dependent = echo({"file": a})
    assert not a.done()
    with pytest.raises(cf.TimeoutError):
        a.result(timeout=0)
    assert cf.wait([a], timeout=0.01).not_done == {a}
    called = threading.Event()
    b.add_done_callback(lambda _: called.set())
    manager.release("write_held")
    assert dependent.result()["file"].filename == "a"
    assert called.wait(20)
    assert set(cf.as_completed([a, b])) == {a, b}


def test_cancelling_a_data_future_cancels_the_task(manager):
    manager.hold("write_held")
    future = write_held("x", outputs=[File("a")])
    assert future.outputs[0].cancel()
    assert future.cancelled()
    assert future.outputs[0].cancelled()
    assert cf.wait(future.outputs).not_done == set()


def test_waiting_does_not_spin(manager):
    manager.hold("held")
    future = held(1)
    manager.until(lambda: 0 in manager.tasks)
    began_s = time.process_time()
    with pytest.raises(cf.TimeoutError):
        future.result(timeout=0.5)
    assert time.process_time() - began_s < 0.2
    manager.release("held")


assert Future is AppFuture
from exex.protocol import messages as manager_messages  # noqa: E402
