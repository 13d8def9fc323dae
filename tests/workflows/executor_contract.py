"""What the documentation of `concurrent.futures` says of executors and futures, asked of `exex.Executor` in a real job.

Each function `check_*` is one statement of it. Prints a line for each; the exit status is the number of those that do not hold.
"""

import asyncio
import concurrent.futures as cf
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from operator import mul

import exex
from exex import Executor, aio

FOREVER_S = 1000


def raises(kind, function, *args, **kwargs):
    """The error that a call raises, which must be of this kind."""
    try:
        value = function(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised, but {value!r} returned")


def eventually(condition):
    give_up_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_s, "it never became true"
        time.sleep(0.001)


class Refused(Exception):
    def __init__(self, code, *, why=""):
        super().__init__(code)
        self.code = code
        self.why = why


class Box:
    def __init__(self, content=None):
        self.content = content


def refuse(code):
    raise Refused(code, why="because")


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.002)
    return path


def write(path):
    with open(path, "w") as file:
        file.write("written")


def divide(a, b):
    return a / b


def leave(status):
    os._exit(status)


def interrupt():
    raise KeyboardInterrupt("as if")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def slow(x):
    time.sleep(0.3)
    return x


# ---- Executor.submit -----------------------------------------------------------------------------------------------


def check_submit_runs_the_call_elsewhere_and_returns_a_future(executor):
    future = executor.submit(pow, 323, exp=1235, mod=1000)
    assert isinstance(future, cf.Future)
    assert future.result() == pow(323, 1235, 1000)
    assert executor.submit(os.getpid).result() != os.getpid()
    assert isinstance(executor, cf.Executor)


def check_every_kind_of_value_comes_back(executor):
    values = [
        None,
        False,
        "",
        b"\0" * 100_000,
        {"a": [1, (2, {3})]},
        ValueError("a value"),
        NotImplemented,
        Ellipsis,
        int,
        10**400,
    ]
    for value, future in [(value, executor.submit(lambda x: x, value)) for value in values]:
        assert repr(future.result()) == repr(value)
    assert executor.submit(Box, 3).result().content == 3


def check_many_threads_may_submit(executor):
    sums = []

    def work(n):
        sums.append(sum(future.result() for future in [executor.submit(mul, n, i) for i in range(200)]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == [n * sum(range(200)) for n in range(8)]


def check_values_are_not_kept_by_the_executor(executor):
    future = executor.submit(Box)
    value = weakref.ref(future.result())
    assert value() is not None
    del future
    gc.collect()
    assert value() is None


# ---- Executor.map --------------------------------------------------------------------------------------------------


def check_map_is_map(executor):
    assert list(executor.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))
    assert list(executor.map(pow, range(10), range(3), chunksize=2)) == list(map(pow, range(10), range(3)))
    assert list(executor.map(str, [])) == []


def check_map_raises_where_the_value_would_be(executor):
    values = executor.map(divide, [6, 6, 6, 6], [1, 2, 0, 3])
    assert next(values) == 6
    assert next(values) == 3
    raises(ZeroDivisionError, next, values)


def check_the_timeout_of_map_counts_from_the_call(executor):
    began_s = time.monotonic()
    values = executor.map(time.sleep, [0, 0, FOREVER_S], timeout=1)
    assert next(values) is None
    assert next(values) is None
    raises(cf.TimeoutError, next, values)
    assert time.monotonic() - began_s < 10


# ---- Executor.shutdown ---------------------------------------------------------------------------------------------


def check_shutdown_waits_and_nothing_is_accepted_afterwards(_):
    executor = Executor()
    future = executor.submit(slow, 1)
    executor.shutdown()
    assert future.done()
    raises(RuntimeError, executor.submit, pow, 2, 3)
    raises(RuntimeError, executor.map, pow, [2], [3])
    executor.shutdown()
    with Executor() as executor:
        future = executor.submit(slow, 2)
    assert future.done()


def check_shutdown_without_waiting_lets_calls_end(_):
    executor = Executor()
    future = executor.submit(wait_for, "let-go")
    executor.shutdown(wait=False)
    assert not future.done()
    write("let-go")
    assert future.result() == "let-go"


def check_shutdown_can_cancel_what_has_not_begun(_):
    executor = Executor()
    futures = [executor.submit(wait_for, "begun") for _ in range(10)]
    eventually(lambda: any(future.running() for future in futures))
    running = [future for future in futures if future.running()]
    executor.shutdown(wait=False, cancel_futures=True)
    assert sum(future.cancelled() for future in futures) >= 10 - len(futures) // 2
    write("begun")
    assert [future.result() for future in running] == ["begun"] * len(running)
    executor.shutdown()


# ---- Future --------------------------------------------------------------------------------------------------------


def check_the_states_of_a_future(executor):
    future = executor.submit(wait_for, "state")
    assert not future.done()
    raises(cf.TimeoutError, future.result, timeout=0.01)
    raises(cf.TimeoutError, future.exception, timeout=0.01)
    eventually(future.running)
    write("state")
    assert future.result(timeout=30) == "state"
    assert future.exception() is None
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert not future.cancel()


def check_cancel(executor):
    blocking = [executor.submit(wait_for, "cancel") for _ in range(4)]
    waiting = executor.submit(pow, 2, 3)
    assert waiting.cancel()
    assert waiting.cancelled()
    assert waiting.done()
    raises(cf.CancelledError, waiting.result)
    raises(cf.CancelledError, waiting.exception)
    write("cancel")
    assert [future.result() for future in blocking] == ["cancel"] * 4


def check_an_error_comes_back_as_it_was(executor):
    future = executor.submit(refuse, 7)
    error = raises(Refused, future.result)
    assert (error.code, error.why) == (7, "because")
    assert future.exception() is error
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "in refuse" in text  # the remote traceback
    assert raises(KeyboardInterrupt, executor.submit(interrupt).result).args == ("as if",)
    assert executor.submit(pow, 2, 3).result() == 8


def check_callbacks_get_the_future_in_order_and_may_fail(executor):
    called, heard = [], []
    handler = logging.Handler()
    handler.emit = heard.append
    logging.getLogger("exex").addHandler(handler)
    future = executor.submit(slow, 1)
    future.add_done_callback(lambda given: called.append(("first", given)))
    future.add_done_callback(lambda given: 1 // 0)
    future.add_done_callback(lambda given: called.append(("second", given)))
    eventually(lambda: len(called) == 2)
    future.add_done_callback(lambda given: called.append(("late", given)))
    assert called == [("first", future), ("second", future), ("late", future)]
    logging.getLogger("exex").removeHandler(handler)
    assert len(heard) == 1
    cancelled = executor.submit(time.sleep, FOREVER_S)
    cancelled.add_done_callback(called.append)
    cancelled.cancel()
    eventually(lambda: called[-1] is cancelled)


# ---- wait and as_completed -----------------------------------------------------------------------------------------


def check_wait(executor):
    other = Executor()
    quick, late = executor.submit(pow, 2, 3), other.submit(wait_for, "wait")
    done, not_done = cf.wait([quick, late, quick], return_when=cf.FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {late})
    assert cf.wait([quick, late], timeout=0.05).not_done == {late}
    bad = other.submit(divide, 1, 0)
    assert bad in cf.wait([late, bad], return_when=cf.FIRST_EXCEPTION).done
    raises(ZeroDivisionError, bad.result)
    with cf.ThreadPoolExecutor(1) as threads:
        foreign = threads.submit(write, "wait")
        assert cf.wait([late, foreign, quick], return_when=cf.FIRST_EXCEPTION).done == {late, foreign, quick}
    assert cf.wait([late, quick, bad]).done == {late, quick, bad}


def check_as_completed(executor):
    before = executor.submit(pow, 2, 3)
    before.result()
    late, soon = executor.submit(wait_for, "completed"), executor.submit(pow, 3, 2)
    seen = []
    for future in cf.as_completed([late, soon, before, soon]):
        seen.append(future)
        if len(seen) == 2:
            write("completed")
    assert set(seen[:2]) == {before, soon}
    assert seen[2:] == [late]
    endless = executor.submit(time.sleep, FOREVER_S)
    raises(cf.TimeoutError, list, cf.as_completed([endless, before], timeout=0.05))
    endless.cancel()


# ---- workers that die ----------------------------------------------------------------------------------------------


def check_a_worker_that_dies_costs_its_call_and_not_the_executor(executor):
    futures = [executor.submit(leave, 3), executor.submit(pow, 2, 3), executor.submit(die), executor.submit(pow, 3, 2)]
    assert raises(exex.TaskProcessDied, futures[0].result).exitcode == 3
    raises(exex.TaskProcessDied, futures[2].result)
    assert [futures[1].result(), futures[3].result()] == [8, 9]
    assert executor.submit(pow, 2, 5).result() == 32


# ---- asyncio -------------------------------------------------------------------------------------------------------


def check_run_in_executor_and_await(executor):
    async def main():
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, pow, 2, 3) == 8
        assert await executor.submit(pow, 2, 4) == 16
        assert await asyncio.gather(*(executor.submit(mul, i, i) for i in range(500))) == [i * i for i in range(500)]
        ended = [await future async for future in aio.as_completed([executor.submit(mul, i, 2) for i in range(500)])]
        assert sorted(ended) == list(range(0, 1000, 2))
        assert [value async for value in aio.map(mul, range(5000), range(5000))] == [i * i for i in range(5000)]
        async with aio.Executor(retries=1) as own:
            futures = [await own.submit(mul, i, i) for i in range(500)]
        assert await aio.gather(*futures) == [i * i for i in range(500)]

    asyncio.run(main())


def check_cancelling_goes_both_ways_in_a_loop(executor):
    async def wait(future):
        return await future

    async def main():
        future = executor.submit(time.sleep, FOREVER_S)
        waiting = asyncio.ensure_future(wait(future))
        while not future.running():
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert future.cancelled()
        other = executor.submit(time.sleep, FOREVER_S)
        waiting = asyncio.ensure_future(wait(other))
        await asyncio.sleep(0)
        other.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    asyncio.run(main())


if __name__ == "__main__":
    bad = 0
    for name, check in list(globals().items()):
        if not name.startswith("check_"):
            continue
        try:
            with Executor() as executor:
                check(executor)
        except Exception:
            bad += 1
            print(f"BAD {name}\n{traceback.format_exc()}", flush=True)
        else:
            print(f"ok {name}", flush=True)
    Executor().submit(write, "after-the-end")  # nobody waits for it
    sys.exit(bad)
