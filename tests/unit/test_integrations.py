"""What `exex.integrations` promises beside what its libraries do with it, which `tests/e2e/test_integrations.py` shows."""

from __future__ import annotations

import concurrent.futures as cf
import gc
import os
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest

from exex import ConfigError, SerializationError, bash_app, python_app
from exex.client import session
from exex.integrations import mpi4py_futures, pool
from exex.integrations.mpi4py_futures import MPICommExecutor, MPIPoolExecutor, collect, compose
from exex.integrations.pool import Pool
from exex.protocol.messages import Cancel, Fulfil, Submit


def double(x):
    return 2 * x


def held(x):
    return x


def add(a, b):
    return a + b


def fail_at_three(x):
    if x == 3:
        raise ValueError("three")
    return x


class Factor:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


def last_words():
    return session._current.proxy.inbox.last_words()


def functions(manager):
    """How many functions were sent."""
    return sum(len(message.functions) for message in manager.told(Submit))


# ---- pool ----------------------------------------------------------------------------------------------------------


def test_a_pool_has_what_multiprocessing_has(manager):
    with Pool(retries=1) as some:
        assert some.size == 2
        assert some.is_master()
        assert some.map(double, range(100)) == list(range(0, 200, 2))
        assert some.map(double, iter(range(10)), 3) == list(range(0, 20, 2))
        assert some.map(double, []) == []
        assert some.starmap(add, [(1, 2), (3, 4)]) == [3, 7]
        assert list(some.imap(double, range(5))) == [0, 2, 4, 6, 8]
        assert sorted(some.imap_unordered(double, range(5), 2)) == [0, 2, 4, 6, 8]
        assert some.apply(add, (1,), {"b": 2}) == 3
        assert some.map_async(double, range(9)).get(20) == list(range(0, 18, 2))
        assert some.starmap_async(add, [(1, 2)]).get() == [3]
        assert some.map_async(double, []).get() == []
        with pytest.raises(ValueError, match="three"):
            some.map(fail_at_three, range(10))
    for method in (some.map, some.imap, some.map_async):
        with pytest.raises(ValueError, match="closed"):
            method(double, [1])


def test_arrays_travel_as_slices(manager):
    values = Pool().map(np.sum, np.arange(6.0).reshape(3, 2))
    assert [float(value) for value in values] == [1.0, 5.0, 9.0]
    assert Pool().map(int, np.arange(10_000), chunksize=5_000) == list(range(10_000))
    assert sum(len(message.payloads) for message in manager.told(Submit)) == 3 + 2


def test_callbacks_of_a_pool(manager):
    called = []
    some = Pool()
    some.map_async(double, range(3), callback=called.append).wait()
    some.apply_async(fail_at_three, (3,), error_callback=lambda error: called.append(str(error))).wait()
    some.map_async(double, [], callback=called.append)
    manager.until(lambda: len(called) == 3)
    assert [0, 2, 4] in called
    assert "three" in called
    assert [] in called


def test_an_async_result(manager):
    manager.hold("held")
    result = Pool().apply_async(held, (1,))
    assert not result.ready()
    with pytest.raises(TimeoutError):
        result.get(0.01)
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    manager.release("held")
    assert result.get() == 1
    assert result.successful()
    failed = Pool().apply_async(fail_at_three, (3,))
    failed.wait()
    assert not failed.successful()


def test_a_pool_ends_as_it_is_told(manager):
    manager.hold("held")
    some = Pool()
    result = some.apply_async(held, (1,))
    with pytest.raises(ValueError, match="close"):
        some.join()
    some.close()
    threading.Timer(0.05, manager.release, ["held"]).start()
    some.join()
    assert result.get(0) == 1
    manager.hold("held")
    some = Pool()
    result = some.apply_async(held, (1,))
    some.terminate()
    some.join()
    with pytest.raises(cf.CancelledError):
        result.get()


def test_objects_that_change_are_taken_as_they_are_and_do_not_pile_up(manager, monkeypatch):
    monkeypatch.setattr(pool, "_KEPT", 5)
    some = Pool()
    for factor in range(20):
        assert some.map(Factor(factor), [1, 2]) == [factor, 2 * factor]
    for _ in range(10):
        assert some.map(Factor(1), [3]) == [3]
        assert some.map(partial(add, 4), [3]) == [7]
    assert functions(manager) <= 5 + 2


# ---- mpi4py.futures ------------------------------------------------------------------------------------------------


def initialise(value):
    global given
    given = value


def use(x):
    return given + x


_counted: list = []


def count(value):
    _counted.append(value)


def test_the_names_of_mpi4py_futures(manager):
    with MPIPoolExecutor() as executor:
        assert executor.bootup() is executor
        assert executor.num_workers == 2
        assert executor.submit(add, 1, b=2).result() == 3
        assert list(executor.map(add, range(5), range(5))) == [0, 2, 4, 6, 8]
        assert list(executor.starmap(add, [(1, 2), (3, 4)], chunksize=2)) == [3, 7]
        assert sorted(executor.map(double, range(5), unordered=True, chunksize=2)) == [0, 2, 4, 6, 8]
        assert sorted(executor.starmap(add, [(1, 2), (3, 4)], unordered=True)) == [3, 7]
        assert executor.submit(python_app(double), 2).result() == 4
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(double, [1], unordered=True, chunksize=0)
        with pytest.raises(ValueError, match="buffersize"):
            executor.map(double, [1], unordered=True, buffersize=1)
    assert executor.num_workers == 0
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.bootup()
    with MPICommExecutor(None, 0, retries=1) as executor:
        assert executor.submit(double, 1).result() == 2


def test_unordered_values_come_as_they_are_there(manager):
    manager.hold("held")
    executor = MPIPoolExecutor()
    executor.submit(held, 1)
    values = executor.map(double, [1, 2], unordered=True, timeout=20)
    assert sorted(values) == [2, 4]
    with pytest.raises(cf.TimeoutError):
        next(executor.map(held, [1], unordered=True, timeout=0.01))
    manager.release("held")


def test_an_initializer_runs_once_in_a_process(manager):
    _counted.clear()
    executor = MPIPoolExecutor(initializer=count, initargs=(1,))
    assert [executor.submit(double, i).result() for i in range(10)] == list(range(0, 20, 2))
    assert list(executor.map(double, range(10))) == list(range(0, 20, 2))
    assert executor.submit(add, 1, 2).result() == 3
    assert _counted == [1]
    assert functions(manager) == 2  # each travels once, with what it is initialised with
    executor = MPIPoolExecutor(initializer=initialise, initargs=(100,))
    assert executor.submit(use, 1).result() == 101
    assert list(executor.starmap(use, [(2,)])) == [102]
    with pytest.raises(TypeError, match="double runs no function"):
        executor.submit(bash_app(double), 1)


def test_an_initializer_that_fails(manager):
    executor = MPIPoolExecutor(initializer=fail_at_three, initargs=(3,))
    with pytest.raises(cf.BrokenExecutor, match="the initializer fail_at_three failed: ValueError: three"):
        executor.submit(double, 1).result()


def test_paths_directories_and_variables(manager, tmp_path, monkeypatch):
    monkeypatch.chdir(os.getcwd())  # the fake manager undoes nothing
    monkeypatch.setenv("EXEX_TEST_TINT", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "far_away.py").write_text("def far(x): return -x\n")
    settings = {"path": [tmp_path], "wdir": tmp_path, "env": {"EXEX_TEST_TINT": "red"}, "main": False, "use_pkl5": True}
    executor = MPIPoolExecutor(globals={"shade": 3}, **settings)
    there, tint, far, shade = executor.submit(eval, "look()", {"look": look}).result()
    assert (there, tint, far) == (str(tmp_path), "red", -4)
    assert shade is None
    assert executor.submit(made_on_the_fly()).result() == 3


def look():
    import far_away

    return os.getcwd(), os.environ["EXEX_TEST_TINT"], far_away.far(4), globals().get("shade")


def made_on_the_fly():
    """As functions of a script, which travel by value and see variables of their own."""
    variables: dict = {"__name__": "__main__"}
    exec("def get_shade(): return shade", variables)
    return variables["get_shade"]


def test_what_only_spawned_processes_could_have_is_refused(manager):
    for name in ("python_exe", "python_args", "mpi_info"):
        with pytest.raises(ConfigError, match=f"{name}=.*the job"):
            MPIPoolExecutor(**{name: "x"})
        MPIPoolExecutor(**{name: None})
    with pytest.raises(TypeError, match="nonsense"):
        MPIPoolExecutor(nonsense=1)
    with pytest.raises(TypeError, match="callable"):
        MPIPoolExecutor(initializer=3)
    with pytest.raises(ValueError, match="greater than 0"):
        MPIPoolExecutor(max_workers=0)
    with pytest.warns(UserWarning, match="all 2 slots"):
        MPIPoolExecutor(1)
    MPIPoolExecutor(2)
    with pytest.raises(ConfigError, match="mpi_app"):
        mpi4py_futures.get_comm_workers()


def test_collect(manager):
    executor = MPIPoolExecutor()
    same = executor.submit(double, 4)
    assert collect([same, executor.submit(double, 5), same]).result(20) == [8, 10, 8]
    assert collect([]).result() == []
    manager.hold("held")
    others = [executor.submit(held, i) for i in range(3)]
    failing = collect([*others[:2], executor.submit(fail_at_three, 3)])
    assert isinstance(failing.exception(20), ValueError)
    manager.until(lambda: all(future.cancelled() for future in others[:2]))
    collected = collect(others[2:])
    assert collected.cancel()
    assert others[2].cancelled()
    assert cf.wait([collected], timeout=20).done
    assert collect(others).cancelled()


def test_compose(manager):
    executor = MPIPoolExecutor()
    assert compose(executor.submit(double, 1)).result(20) == 2
    assert compose(executor.submit(double, 1), str).result(20) == "2"
    assert isinstance(compose(executor.submit(fail_at_three, 3)).exception(20), ValueError)
    assert compose(executor.submit(fail_at_three, 3), excepthook=str).result(20) == "three"
    assert isinstance(compose(executor.submit(fail_at_three, 3), excepthook=OSError).exception(20), OSError)
    assert isinstance(compose(executor.submit(double, 1), lambda value: value[0]).exception(20), TypeError)
    manager.hold("held")
    future = executor.submit(held, 1)
    composed = compose(future)
    assert composed.cancel()
    assert future.cancelled()
    assert cf.wait([composed], timeout=20).done
    other = executor.submit(held, 1)
    composed = compose(other)
    other.cancel()
    assert composed.cancelled()


# ---- joblib --------------------------------------------------------------------------------------------------------


@pytest.fixture
def parallel(manager):
    joblib = pytest.importorskip("joblib")
    from exex.integrations import joblib as ours

    with joblib.parallel_config(ours.NAME, retries=1):
        yield joblib


def test_joblib(parallel, manager):
    delayed = parallel.delayed
    assert parallel.effective_n_jobs() == 2
    assert parallel.effective_n_jobs(1) == 1
    assert parallel.effective_n_jobs(100) == 2
    assert parallel.effective_n_jobs(-2) == 1
    assert parallel.Parallel()(delayed(double)(i) for i in range(1000)) == list(range(0, 2000, 2))
    assert sorted(parallel.Parallel(return_as="generator_unordered")(delayed(double)(i) for i in range(9))) == list(
        range(0, 18, 2)
    )
    assert {spec.retries for message in manager.told(Submit) for spec in message.apps} == {1}


def test_errors_under_joblib(parallel, manager):
    delayed = parallel.delayed
    with pytest.raises(ValueError, match="three"):
        parallel.Parallel(batch_size=1)(delayed(fail_at_three)(3) for i in range(20))
    manager.until(lambda: not manager.tasks)
    assert last_words() == ""
    with pytest.raises(SerializationError, match="lock"):  # it is found out in the thread that calls back
        parallel.Parallel(batch_size=1)(delayed(double)(threading.Lock() if i == 15 else i) for i in range(20))

    def items():
        yield from [delayed(double)(i) for i in range(20)]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        parallel.Parallel(batch_size=1)(items())
    assert parallel.Parallel()([delayed(double)(1)]) == [2]


def test_an_error_under_joblib_cancels_the_rest(parallel, manager):
    manager.hold("held")
    calls = [parallel.delayed(fail_at_three)(3), *(parallel.delayed(held)(i) for i in range(3))]
    with pytest.raises(ValueError, match="three"):
        parallel.Parallel(batch_size=1)(calls)
    assert manager.until(lambda: not manager.tasks)


def test_a_generator_may_use_exex_while_joblib_reads_it(parallel, manager):
    def items():
        for i in range(30):
            yield parallel.delayed(double)(Pool().apply(double, (i,)))  # it waits, which no callback may

    assert parallel.Parallel(batch_size=1)(items()) == list(range(0, 120, 4))


# ---- dask ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def dask(manager):
    return pytest.importorskip("dask")


@pytest.fixture
def get(dask):
    from exex.integrations.dask import get

    return get


def test_graphs(get):
    graph = {"a": 1, "b": (double, "a"), "c": "b", "unused": (fail_at_three, 3)}
    assert get(graph, "b") == 2
    assert get(graph, ["a", ["b", "c"]]) == (1, (2, 2))
    assert get(graph, [["c"], "c"], num_workers=7, pool=None) == ((2,), 2)


def test_dependencies_are_needs_and_nothing_is_computed_twice(dask, get, manager):
    doubled, summed = dask.delayed(double), dask.delayed(sum)
    parts = [doubled(i) for i in range(50)]
    assert dask.compute(summed(parts), parts[3], scheduler=get, retries=2) == (sum(range(0, 100, 2)), 6)
    submits = manager.told(Submit)
    assert sum(len(message.payloads) for message in submits) == 51
    assert {spec.retries for message in submits for spec in message.apps} == {2}


def test_a_value_of_the_script_that_many_need_travels_once(dask, get, manager):
    big = np.arange(100_000.0)
    shared = dask.delayed(big)
    total = dask.delayed(sum)([dask.delayed(np.sum)(shared) for _ in range(10)])
    assert total.compute(scheduler=get, optimize_graph=False) == 10 * big.sum()
    assert len(manager.told(Fulfil)) == 1
    for message in manager.told(Submit):
        assert all(len(payload) < 10_000 for payload in message.payloads) and not message.given


def test_a_failure_is_the_task_s_own_error_and_cancels_the_rest(dask, get, manager):
    manager.hold("held")
    fail = dask.delayed(fail_at_three)
    endless = dask.delayed(dask.delayed(held)(1))
    with pytest.raises(ValueError, match="three") as caught:
        dask.compute(dask.delayed(sum)([fail(3), fail(2)]), fail(3), endless, scheduler=get)
    assert "task" in str(caught.value.__cause__)
    manager.until(lambda: not manager.tasks)
    assert last_words() == ""


def test_an_interrupt_cancels(get, manager, monkeypatch):
    from exex.integrations import dask as ours

    manager.hold("dask_task")

    def interrupted(futures, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ours, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get({"a": (double, 1), "b": (double, "a")}, "b")
    manager.until(lambda: manager.told(Cancel))
    assert not session._current.proxy.outbox.open_futures()


def test_values_in_between_are_let_go(get, manager, monkeypatch):
    from exex.integrations import dask as ours

    runs, left = [], []
    make, wait = ours._Run, ours.wait

    def recorded(*args):
        runs.append(make(*args))
        return runs[0]

    def waited(futures, **options):
        wait(futures, **options)
        gc.collect()
        left.extend(runs[0]._all)

    monkeypatch.setattr(ours, "_Run", recorded)
    monkeypatch.setattr(ours, "wait", waited)
    graph = {"x0": (double, 1), **{f"x{i}": (double, f"x{i - 1}") for i in range(1, 20)}}
    assert get(graph, "x19") == 2**20
    assert [future.result() for future in left] == [2**20]


def test_callbacks_of_dask(dask, get, manager):
    from dask.callbacks import Callback

    seen: list = []
    with Callback(
        start=lambda graph: seen.append(("start", len(graph))),
        start_state=lambda graph, state: seen.append(("state", len(state["waiting"]))),
        pretask=lambda key, graph, state: seen.append(("pre", key)),
        posttask=lambda key, value, graph, state, worker: seen.append(("post", key, value, len(state["finished"]))),
        finish=lambda graph, state, failed: seen.append(("finish", failed, len(state["finished"]))),
    ):
        assert get({"a": (double, 1), "b": (double, "a")}, "b") == 4
        assert seen[:4] == [("start", 2), ("state", 2), ("pre", "a"), ("pre", "b")]
        assert ("post", "a", 2, 1) in seen
        with pytest.raises(ValueError, match="three"):
            get({"a": (fail_at_three, 3)}, "a")
    assert [each[1] for each in seen if each[0] == "finish"] == [False, True]


def test_a_graph_may_be_large(get):
    count = 3000
    began_s = time.monotonic()
    graph = {**{("x", i): (double, i) for i in range(count)}, "sum": (sum, [("x", i) for i in range(count)])}
    assert get(graph, "sum") == count * (count - 1)
    assert time.monotonic() - began_s < 60


def test_outside_a_job_it_says_so():
    pytest.importorskip("dask")
    from exex import NoManagerError
    from exex.integrations.dask import get

    with pytest.raises(NoManagerError, match="dask"):
        get({"a": 1}, "a")
