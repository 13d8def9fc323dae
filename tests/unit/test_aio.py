"""Futures in an event loop, and `exex.aio`: nothing blocks the loop, and cancelling goes both ways."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import itertools
import threading
import time

import pytest

from exex import Executor, File, NoManagerError, aio, join_app, python_app
from exex.client import awaiting
from exex.protocol.messages import Cancel, Submit
from tests.fakes import Job
from tests.unit.plain_apps import echo, fail, held


@python_app
def write(text, outputs=()):
    return text


def double(x):
    return 2 * x


def hold_back(x):
    return x


def fail_at_three(x):
    if x == 3:
        raise ValueError("three")
    return x


async def eventually(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def take(values, count):
    return [value async for value, _ in zip_async(values, range(count))]


async def zip_async(values, numbers):
    for number in numbers:
        yield await anext(values), number


# ---- await ---------------------------------------------------------------------------------------------------------


def test_a_future_can_be_awaited(manager):
    async def main():
        future = echo([1])
        assert await future is await future  # the same object at each asking
        assert await asyncio.gather(*map(echo, range(50))) == list(range(50))
        assert await asyncio.wait_for(echo(3), 20) == 3
        with pytest.raises(ValueError, match="x") as caught:
            await fail("x")
        assert caught.value.__cause__ is not None

    asyncio.run(main())


def test_awaiting_what_has_ended_makes_nothing(manager):
    async def main():
        future = echo(1)
        while not future.done():
            time.sleep(0.001)
        assert await future == 1
        assert future._rare is None

    asyncio.run(main())


def test_data_futures_can_be_awaited(manager):
    async def main():
        file = await write("x", outputs=[File("a.txt")]).outputs[0]
        assert file.filepath == "a.txt"

    asyncio.run(main())


def test_the_loop_goes_on_while_a_future_is_awaited(manager):
    manager.hold("held")

    async def main():
        waiting = asyncio.ensure_future(await_it(held(1)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        manager.release("held")
        assert await waiting == 1

    asyncio.run(main())


async def await_it(future):
    return await future


def test_cancelling_who_awaits_cancels_the_task(manager):
    manager.hold("held")

    async def main():
        future = held(1)
        waiting = asyncio.ensure_future(await_it(future))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert future.cancelled()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(late := held(2), 0.01)
        assert late.cancelled()
        shielded = held(3)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(shielded), 0.01)
        assert not shielded.cancelled()
        manager.release("held")
        assert await shielded == 3

    asyncio.run(main())
    assert manager.until(lambda: [tid for message in manager.told(Cancel) for tid in message.tasks]) == [0, 1]


def test_a_cancelled_future_raises_where_it_is_awaited(manager):
    manager.hold("held")

    async def main():
        future = held(1)
        waiting = asyncio.ensure_future(await_it(future))
        await asyncio.sleep(0)
        threading.Thread(target=future.cancel).start()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(asyncio.CancelledError):
            await future

    asyncio.run(main())


def test_a_loop_that_has_ended_does_no_harm(manager, caplog):
    manager.hold("held")

    async def main():
        futures.append(held(1))
        waiter = asyncio.shield(futures[0])
        await asyncio.wait([waiter], timeout=0.001)

    futures: list = []
    asyncio.run(main())
    manager.release("held")
    assert asyncio.run(await_it(echo(1))) == 1
    assert "exception" not in caplog.text


def test_one_wake_up_for_many(monkeypatch):
    async def main():
        loop, wake_ups, seen = asyncio.get_running_loop(), [], []
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (wake_ups.append(1), wake(*args)))
        hub = awaiting.hub()
        for times in (1, 2):
            ending = threading.Thread(target=lambda: [hub.call(lambda i=i: seen.append(i)) for i in range(1000)])
            ending.start()
            ending.join()  # blocks the loop: nothing has been called yet
            await eventually(lambda: len(seen) == 1000 * times)
            assert seen[-1000:] == list(range(1000))
            assert len(wake_ups) == times

    asyncio.run(main())


def test_outside_a_loop(manager):
    with pytest.raises(RuntimeError, match="no running event loop"):
        awaiting.hub()


# ---- as_completed and gather ---------------------------------------------------------------------------------------


def test_as_completed(manager):
    manager.hold("held")

    async def main():
        last, first = held(1), echo(2)
        with cf.ThreadPoolExecutor(1) as threads:
            other = threads.submit(pow, 2, 3)
            seen = []
            async for future in aio.as_completed([last, first, other, first]):
                seen.append(future)
                if len(seen) == 2:
                    manager.release("held")
        assert set(seen[:2]) == {first, other}
        assert seen[2:] == [last]
        assert [future async for future in aio.as_completed([])] == []
        assert [future async for future in aio.as_completed([last])] == [last]

    asyncio.run(main())


def test_as_completed_times_out_and_cancels_nothing(manager):
    manager.hold("held")

    async def main():
        future, done, seen = held(1), echo(1), []
        await done
        with pytest.raises(asyncio.TimeoutError):
            async for ended in aio.as_completed([future, done], timeout=0.05):
                seen.append(ended)
        assert seen == [done]
        assert not future.done()
        manager.release("held")

    asyncio.run(main())


def test_gather(manager):
    async def main():
        same = echo(7)
        assert await aio.gather(same, echo(8), same) == [7, 8, 7]
        assert await aio.gather() == []
        results = await aio.gather(echo(1), fail("x"), return_exceptions=True)
        assert results[0] == 1
        assert isinstance(results[1], ValueError)
        manager.hold("held")
        others = [held(1), held(2)]
        with pytest.raises(ValueError, match="y"):
            await aio.gather(others[0], fail("y"))
        assert not others[0].done()
        others[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await aio.gather(*others)
        assert not others[0].done()
        task = asyncio.ensure_future(aio.gather(others[0], held(3)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert others[0].cancelled()

    asyncio.run(main())


# ---- submit: back-pressure -----------------------------------------------------------------------------------------


def test_submit(manager):
    async def main():
        assert await (await aio.submit(double, 3)) == 6
        assert await (await aio.submit(echo, 4, walltime=9)) == 4
        assert await (await aio.submit(join_app(lambda x: echo(x)), 5)) == 5
        with pytest.raises(TypeError):
            await aio.submit(3)

    asyncio.run(main())
    with pytest.raises(NoManagerError):
        asyncio.run(out_of_a_job())


async def out_of_a_job():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exex.client.session._current", None)
        await aio.submit(double, 1)


def test_back_pressure_does_not_block_the_loop():
    with Job(max_waiting=10) as manager:
        manager.hold("held")

        async def main():
            futures, turns = [], itertools.count()

            async def fill():
                for i in range(100):
                    futures.append(await aio.submit(held, i))

            filling = asyncio.ensure_future(fill())
            await eventually(lambda: len(futures) >= 10)
            for _ in range(100):
                await asyncio.sleep(0.001)
                next(turns)
            assert len(futures) <= 12
            assert not filling.done()
            manager.release("held")
            await filling
            assert await aio.gather(*futures) == list(range(100))

        asyncio.run(main())


def test_back_pressure_gives_way_to_promises(monkeypatch):
    monkeypatch.setattr("exex.aio.PATIENCE_S", 0.05)
    with Job(max_waiting=2):

        async def main():
            promised: cf.Future = cf.Future()
            futures = [await aio.submit(echo, promised) for _ in range(6)]
            promised.set_result("kept")
            assert await aio.gather(*futures) == ["kept"] * 6

        asyncio.run(main())


# ---- Executor and map ----------------------------------------------------------------------------------------------


def test_the_context_waits_and_does_not_block(manager):
    manager.hold("held")

    async def main():
        asyncio.get_running_loop().call_later(0.05, manager.release, "held")  # not called if the loop is blocked
        async with aio.Executor(retries=1) as executor:
            future = await executor.submit(held.func, 1)
            executor.map(double, range(500))
        assert future.done()
        with pytest.raises(RuntimeError, match="after shutdown"):
            await executor.submit(double, 1)

    asyncio.run(main())
    assert [spec.retries for message in manager.told(Submit) for spec in message.apps] == [1, 1]


def test_an_error_in_the_context_cancels(manager):
    manager.hold("held")

    async def main():
        futures = []
        with pytest.raises(ZeroDivisionError):
            async with aio.Executor() as executor:
                futures.append(await executor.submit(held.func, 1))
                raise ZeroDivisionError
        assert futures[0].cancelled()

    asyncio.run(main())


def test_map(manager):
    async def main():
        assert [value async for value in aio.map(double, range(1000))] == list(range(0, 2000, 2))
        assert [value async for value in aio.map(pow, [2, 3], [3, 2])] == [8, 9]
        assert [value async for value in aio.map(double, [])] == []
        assert await take(aio.map(double, itertools.count()), 5) == [0, 2, 4, 6, 8]
        values = aio.map(fail_at_three, range(10))
        assert await take(values, 3) == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            await anext(values)
        async with aio.Executor() as executor:
            assert [value async for value in executor.map(double, range(9), chunksize=2)] == list(range(0, 18, 2))

    asyncio.run(main())


def test_map_lets_the_loop_run_and_times_out(manager):
    manager.hold("hold_back")

    async def main():
        values = aio.map(hold_back, range(100), timeout=0.2)
        turns = itertools.count()
        ticking = asyncio.ensure_future(tick(turns))
        with pytest.raises(asyncio.TimeoutError):
            await anext(values)
        ticking.cancel()
        assert next(turns) > 10
        manager.until(lambda: manager.told(Cancel))
        manager.release("hold_back")

    asyncio.run(main())


async def tick(turns):
    while True:
        next(turns)
        await asyncio.sleep(0.001)


def test_map_over_an_asynchronous_source(manager):
    async def numbers(count):
        for number in range(count):
            taken.append(number)
            await asyncio.sleep(0)
            yield number

    async def broken():
        yield 1
        raise OSError("disk")

    taken: list[int] = []

    async def main():
        assert [value async for value in aio.map(double, numbers(100))] == list(range(0, 200, 2))
        taken.clear()
        values = aio.map(double, numbers(1000), buffersize=3)
        assert await take(values, 5) == [0, 2, 4, 6, 8]
        assert len(taken) <= 5 + 3 + 1
        await values.aclose()
        values = aio.map(double, broken())
        assert await anext(values) == 2
        with pytest.raises(OSError, match="disk"):
            await anext(values)
        with pytest.raises(TypeError, match="one asynchronous iterable"):
            aio.map(pow, numbers(3), [1, 2])
        values = aio.map(fail_at_three, numbers(10))
        assert await take(values, 3) == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            await anext(values)

    asyncio.run(main())


# ---- the standard library's way ------------------------------------------------------------------------------------


def test_run_in_executor(manager):
    async def main():
        loop = asyncio.get_running_loop()
        with Executor() as executor:
            assert await loop.run_in_executor(executor, double, 4) == 8
            with pytest.raises(ValueError, match="three"):
                await loop.run_in_executor(executor, fail_at_three, 3)
            manager.hold("hold_back")
            waiting = loop.run_in_executor(executor, hold_back, 1)
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await eventually(lambda: manager.told(Cancel))  # the end of the `with` block blocks the loop

    asyncio.run(main())
