"""How futures and connections look, progress bars, and what Ctrl-C in a cell cancels."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures as cf
import re
import sys
import threading
import types
from functools import partial

import pytest

import exex
from exex import Executor, File, join_app, progress, python_app
from exex.client import cells, session
from exex.client.bars import _LOG_PERIOD_S
from exex.client.connect import Client
from exex.client.display import duration, short
from exex.client.start import World
from exex.protocol.messages import Finish, Submit
from tests.fakes import Job


@pytest.fixture
def manager():
    with Job() as manager:
        yield manager


@pytest.fixture(autouse=True)
def no_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)


@python_app
def echo(value):
    return value


@python_app
def held(value):
    return value


@python_app
def fail(text):
    raise ValueError(text)


@python_app
def write(text, outputs=()):
    return text


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


# ---- how they look -----------------------------------------------------------------------------------------------


def words(html):
    """A line of HTML as it is read."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)).strip()


def test_a_future_says_what_its_task_does(manager):
    manager.hold("held")
    first = held(1)
    second = echo(first)
    manager.until(lambda: second._raw.__class__ is int)
    assert re.fullmatch(r"<AppFuture 0 held: queued for [\d.]+ m?s>", repr(first))
    assert re.fullmatch(r"<AppFuture 1 echo: waiting for [\d.]+ m?s>", repr(second))
    assert re.fullmatch(r"● echo · task 1 · waiting for [\d.]+ m?s", words(second._repr_html_()))
    manager.report_started(0)
    manager.until(first.running)
    assert re.fullmatch(r"● held · task 0 · running for [\d.]+ m?s", words(first._repr_html_()))
    manager.release("held")
    assert second.result() == 1
    assert re.fullmatch(r"<AppFuture 1 echo: done after [\d.]+ m?s>", repr(second))
    assert re.fullmatch(r"● echo · task 1 · done after [\d.]+ m?s", words(second._repr_html_()))


def test_a_future_that_was_not_sent_has_no_time(manager):
    future = exex.AppFuture(types.SimpleNamespace(proxy=session.current("").proxy, name="echo"), 7, b"")
    assert repr(future) == "<AppFuture 7 echo: waiting>"


def test_an_error_is_shown_in_short_and_what_it_says_is_no_html(manager):
    bad = fail("no <b>file</b>\nin any directory")
    dependent = echo(bad)
    cf.wait([bad, dependent])
    assert re.fullmatch(r"<AppFuture 0 fail: failed after [\d.]+ m?s: ValueError: no <b>file</b>>", repr(bad))
    html = bad._repr_html_()
    assert "ValueError: no &lt;b&gt;file&lt;/b&gt;</div>" in html
    assert "directory" not in html
    assert re.search(r"task 1 · a need failed after [\d.]+ m?s task 0 \(fail\)$", words(dependent._repr_html_()))
    with pytest.raises(exex.DependencyError):
        dependent.result()
    assert "a need failed" in dependent._repr_html_()  # also when it is opened


def test_looking_is_not_asking(manager):
    bad = fail("x")
    cf.wait([bad])
    before = len(manager.told(Submit))
    assert "ValueError" in bad._repr_html_()
    assert "ValueError" in repr(bad)
    good = echo([1])
    cf.wait([good])
    good._repr_html_()
    assert good._raw is not None  # it is not unpickled
    exex.wait_for_current_tasks()
    assert len(manager.told(Submit)) == before + 1  # no item or attribute of a future was taken
    assert "1 task failed and nobody asked" in session.current("").proxy.inbox.last_words()


def test_an_error_that_has_no_words_has_a_name():
    assert short(Mute()) == "Mute"
    assert short(ValueError()) == "ValueError"
    assert len(short(ValueError("x" * 10_000))) == 300


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.0404, "40 ms"), (0.9996, "1.0 s"), (3.21, "3.2 s"), (59.96, "1 min 0 s"), (312, "5 min 12 s"), (93_780, "26 h 3 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_files_of_tasks(manager, tmp_path):
    future = write("x", outputs=[File(f"{tmp_path}/<a>")])
    future.result()
    assert f"makes {tmp_path}/<a>" in words(future._repr_html_()).replace("&lt;", "<").replace("&gt;", ">")
    file = future.outputs[0]
    assert re.fullmatch(rf"<DataFuture '{tmp_path}/<a>' of <AppFuture 0 write: done after [\d.]+ m?s>>", repr(file))
    assert "&lt;a&gt;" in file._repr_html_()
    assert "of task 0 (write)" in file._repr_html_()


def test_a_join_says_that_it_joins(manager):
    @join_app
    def both():
        return [held(1), held(2)]

    manager.hold("held")
    future = both()
    manager.until(lambda: future.task_status() == "joining")
    assert "joining" in future._repr_html_()
    assert repr(future) == "<PromisedFuture 0 both: joining>"
    manager.release("held")
    future.result()


def test_an_executor_a_client_and_a_world(manager):
    manager.hold("held")
    with Executor(retries=2, memory=4096, cores=2) as executor:
        future = executor.submit(held.func, 1)
        assert repr(executor) == "<exex executor: 2 slots>"
        assert words(executor._repr_html_()) == (
            "● exex executor · open slots 2 retries 2 memory 4,096 bytes cores 2 tasks 1 not done"
        )
        manager.release("held")
    assert future.result() == 1
    assert repr(executor) == "<exex executor: shut down>"
    for thing, title, after in (
        (Client(session._current, "<ada>", True), "exex client &lt;ada&gt; · connected · detached", "closed · detached"),
        (World(session._current, types.SimpleNamespace(end=lambda told: None)), "exex world · runs", "has ended"),
    ):
        atexit.unregister(thing._close_at_exit)
        assert words(thing._repr_html_()) == f"● {title} workers 1 with 2 slots tasks 0 not done"
        current, session._current = session._current, None
        try:
            assert after in thing._repr_html_()
        finally:
            session._current = current


# ---- progress ----------------------------------------------------------------------------------------------------


def test_progress_yields_futures_as_they_end(manager, capsys):
    manager.hold("held")
    slow, quick, bad = held(1), echo(2), fail("x")
    bar = progress([slow, quick, quick, bad], "both")
    arrivals = iter(bar)
    assert {next(arrivals), next(arrivals)} == {quick, bad}
    assert repr(bar) == "<Progress: 1 of 3 done, 1 failed>"
    manager.report_started(0)
    manager.until(lambda: bar.running)
    assert repr(bar) == "<Progress: 1 of 3 done, 1 failed, 1 running>"
    assert not bar.wait(0)
    manager.release("held")
    assert list(arrivals) == [slow]
    assert list(bar)[-1] is slow  # again
    assert bar.wait()
    assert (len(bar), bar.ended, bar.failed, bar.cancelled, bar.running) == (3, 3, 1, 0, 0)
    assert re.fullmatch(r"both: 2 of 3 done, 1 failed, after \d.*s\n", capsys.readouterr().err)


def test_progress_of_what_runs_already(manager):
    manager.hold("held")
    future = held(1)
    manager.until(lambda: 0 in manager.tasks)
    manager.report_started(0)
    manager.until(future.running)
    bar = progress([future])
    assert bar.running == 1
    future.cancel()
    assert bar.wait()
    assert (bar.running, bar.cancelled) == (0, 1)


def test_progress_of_nothing_and_of_others(manager, tmp_path):
    bar = progress([])
    assert isinstance(bar, exex.Progress)
    assert bar.wait()
    assert list(progress([])) == []
    foreign, broken = cf.Future(), cf.Future()
    file = write("x", outputs=[File(f"{tmp_path}/x")]).outputs[0]
    bar = progress([foreign, broken, file])
    foreign.set_result(1)
    broken.set_exception(ValueError("x"))
    assert set(bar) == {foreign, broken, file}
    assert bar.failed == 1


def test_nobody_waits_for_a_bar_in_the_thread_that_moves_it(manager):
    errors = []

    def wait(future):
        try:
            bar.wait()
        except RuntimeError as error:
            errors.append(str(error))

    manager.hold("held", "echo")
    first, second = held(1), echo(2)
    bar = progress([first, second])
    first.add_done_callback(wait)
    manager.release("held")
    first.result()
    manager.until(lambda: errors)
    assert "a done-callback waits" in errors[0]
    manager.release("echo")
    assert bar.wait()


@pytest.mark.parametrize("how", ["wait", "iterate"])
def test_an_interrupt_cancels_what_progress_waits_for(manager, monkeypatch, how):
    manager.hold("held")
    futures = [echo(0), held(1), held(2)]
    futures[0].result()
    bar = progress(futures)
    assert next(iter(bar)) is futures[0]
    waits = bar._all_ended if how == "wait" else bar._changed
    real = waits.wait

    def wait(timeout=None):
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return real(timeout)

    monkeypatch.setattr(waits, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        bar.wait() if how == "wait" else list(bar)
    assert [future.cancelled() for future in futures] == [False, True, True]
    bar._drawer.join()


def test_a_line_is_rewritten_where_somebody_looks(manager, monkeypatch, capsys):
    monkeypatch.setattr("exex.client.bars._is_seen", lambda: True)
    manager.hold("held")
    future = held(1)
    bar = progress([future], "one")
    drawn = []
    manager.until(lambda: drawn.append(capsys.readouterr().err) or "one: 0 of 1 done" in "".join(drawn))
    manager.release("held")
    assert bar.wait()
    assert re.fullmatch(r"\rone: 0 of 1 done.*\rone: 1 of 1 done, after [\d.]+ m?s *\n", "".join(drawn) + capsys.readouterr().err, re.S)


class FakeBar:
    """tqdm, as far as it is used."""

    def __init__(self, made, **options):
        self.options, self.n, self.colour, self.postfix, self.closed = options, 0, None, "", False
        made.append(self)

    def set_postfix_str(self, text, refresh):
        self.postfix = text

    def update(self, count):
        self.n += count

    def refresh(self):
        pass

    def close(self):
        self.closed = True


def test_tqdm_draws_where_it_is(manager, monkeypatch, capsys):
    made = []
    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=partial(FakeBar, made)))
    assert progress([echo(1), fail("x")], "pair").wait()
    (bar,) = made
    assert (bar.options["total"], bar.options["desc"], bar.options["mininterval"]) == (2, "pair", _LOG_PERIOD_S)
    assert (bar.n, bar.postfix, bar.colour, bar.closed) == (2, "1 failed", "red", True)
    assert capsys.readouterr().err == ""


# ---- cells -------------------------------------------------------------------------------------------------------


class Shell:
    """IPython's shell: its events, and cells that run in it."""

    def __init__(self):
        self.events = self
        self.callbacks = {"pre_run_cell": [], "post_run_cell": []}

    def register(self, name, function):
        self.callbacks[name].append(function)

    def unregister(self, name, function):
        self.callbacks[name].remove(function)

    def trigger(self, name, argument):
        for function in self.callbacks[name]:
            function(argument)

    def run(self, cell):
        """Run a function as a cell; its error."""
        self.trigger("pre_run_cell", None)
        error = None
        try:
            cell()
        except BaseException as raised:
            error = raised
        self.trigger("post_run_cell", types.SimpleNamespace(error_in_exec=error))
        return error


@pytest.fixture
def shell(monkeypatch):
    shell = Shell()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    return shell


@pytest.fixture
def notebook(shell):
    """The manager of a client that is a notebook."""
    with Job() as manager:
        manager.hold("held")
        yield manager
        manager.release("held")
    assert shell.callbacks == {"pre_run_cell": [], "post_run_cell": []}


def interrupted(*_):
    raise KeyboardInterrupt


def cancelled(futures):
    return [future.cancelled() for future in futures]


def test_an_interrupt_cancels_what_its_cell_has_started(notebook, shell, capsys):
    old, new = [held(0)], []

    def cell():
        new.extend([held(1), echo(2), held(3)])
        new[1].result()
        interrupted()

    assert isinstance(shell.run(cell), KeyboardInterrupt)
    assert cancelled(old + new) == [False, True, False, True]
    assert "the interrupt has cancelled 2 tasks" in capsys.readouterr().err
    newer = held(4)
    shell.run(interrupted)  # which has started nothing
    assert not newer.cancelled()
    assert capsys.readouterr().err == ""


def test_an_interrupt_ends_a_map_that_nobody_iterates_over(notebook, shell):
    maps = []

    def cell():
        maps.append(exex.map(held, range(1000), chunksize=1))
        interrupted()

    shell.run(cell)
    assert session.current("").mappings == set()  # no more of it is sent
    notebook.until(lambda: not notebook.tasks)
    with pytest.raises(cf.CancelledError):
        list(maps[0])


def test_an_error_or_the_end_of_a_cell_cancels_nothing(notebook, shell):
    futures = []
    shell.run(lambda: futures.append(held(1)))
    shell.run(lambda: futures.append(held(2)) or 1 / 0)
    assert cancelled(futures) == [False, False]


WAITS = {
    "result": lambda futures: futures[0].result(),
    "exception": lambda futures: futures[0].exception(timeout=100),
    "wait": lambda futures: cf.wait(futures[:2]),
    "as_completed": lambda futures: list(cf.as_completed(futures[:2])),
    "all": lambda futures: exex.wait_for_current_tasks(),
}


@pytest.mark.parametrize(("how", "expected"), list(zip(WAITS, ["100", "100", "110", "110", "111"], strict=True)))
def test_an_interrupt_cancels_what_its_cell_waits_for(notebook, shell, monkeypatch, how, expected):
    futures = [held(0), held(1), held(2)]
    with monkeypatch.context() as patch:
        patch.setattr(session.current("").proxy, "lead", interrupted)
        patch.setattr(cf._base, "_create_and_install_waiters", interrupted)
        assert isinstance(shell.run(lambda: WAITS[how](futures)), KeyboardInterrupt)
    assert cancelled(futures) == [flag == "1" for flag in expected]


def test_an_interrupt_cancels_what_its_executor_waits_for(notebook, shell):
    with Executor() as early:
        other = early.submit(echo.func, 1)
    executor = Executor()
    mine = executor.submit(held.func, 1)

    def cell():
        with executor:
            interrupted()

    assert isinstance(shell.run(cell), KeyboardInterrupt)  # it has not waited for the task
    assert (mine.cancelled(), other.cancelled()) == (True, False)


def test_without_a_notebook_an_executor_waits_after_an_interrupt(manager):
    with pytest.raises(KeyboardInterrupt):
        with Executor() as executor:
            future = executor.submit(echo.func, 1)
            interrupted()
    assert future.result() == 1


def test_an_interrupt_of_a_cell_that_awaits(notebook, shell, capsys):
    """ipykernel runs such a cell in an asyncio task, which it cancels, and looks at its result in another."""
    new = []

    async def cell():
        shell.trigger("pre_run_cell", None)
        new.extend([held(1), held(2)])
        try:
            await new[0]
        except asyncio.CancelledError as error:
            return types.SimpleNamespace(error_in_exec=error)

    async def main(cancel):
        task = asyncio.create_task(cell())
        while not new:
            await asyncio.sleep(0)
        (task if cancel else new[0]).cancel()
        shell.trigger("post_run_cell", await task)

    asyncio.run(main(cancel=False))  # the cell has awaited a task that was cancelled: that is no interrupt
    assert cancelled(new) == [True, False]
    new.pop().cancel()
    new.clear()
    asyncio.run(main(cancel=True))
    assert cancelled(new) == [True, sys.version_info >= (3, 11)]


def test_a_kernel_that_ends_cancels_its_tasks(notebook, shell):
    future = held(1)
    World(session._current, types.SimpleNamespace(end=lambda told: None))._close_at_exit()
    assert future.cancelled()
    assert [message.cancel for message in notebook.until(lambda: notebook.told(Finish))] == [True]


def test_a_program_that_ends_waits_for_its_tasks(manager):
    future = echo(1)
    Client(session._current, "", False)._close_at_exit()
    assert future.result() == 1
    assert [message.cancel for message in manager.until(lambda: manager.told(Finish))] == [False]


def test_what_a_detached_client_of_a_kernel_has_started_goes_on(shell):
    job = Job()
    manager = job.__enter__()
    manager.hold("held")
    future = held(1)
    Client(session._current, "ada", True)._close_at_exit()
    assert not future.cancelled()
    assert manager.told(Finish) == []
    manager.close()


def test_nothing_but_futures_of_ours_is_waited_for(monkeypatch):
    monkeypatch.setattr(cf._base, "_create_and_install_waiters", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        cf.wait([cf.Future()])
    assert cells.waited_for(caught.value) == []
