"""The proxy thread: what it says when, what it survives, and how a session ends."""

import concurrent.futures as cf
import gc
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from exex import DependencyError, ManagerLost, NoManagerError, StartError, join_app, python_app, wait_for_current_tasks
from exex.client import session
from exex.client.pressure import Pressure
from exex.client.session import Settings
from exex.protocol import codec
from exex.protocol.messages import Applied, Attach, Cancel, Finish, JobEnds, Submit, Verdict, Welcome
from exex.transport.stream import StreamLink
from exex.version import __version__
from tests.fakes import FakeManager, Job, shaken
from tests.unit.plain_apps import echo, fail, held


def proxy():
    return session.current("test").proxy


# ---- what is said ------------------------------------------------------------------------------------------------


def test_calls_travel_in_batches_with_consecutive_numbers(manager):
    futures = [echo(i) for i in range(20_000)]
    assert [future.result() for future in futures] == list(range(20_000))
    submits = manager.told(Submit)
    assert len(submits) < 2000
    assert all(len(message.payloads) <= 8192 for message in submits)
    numbers = [message.first + i for message in submits for i in range(len(message.payloads))]
    assert numbers == list(range(20_000))
    assert all(message.calls == [0] for message in submits)


def test_one_call_is_sent_at_once(manager):
    echo(0).result()
    times = []
    for i in range(50):
        began_s = time.perf_counter()
        echo(i).result()
        times.append(time.perf_counter() - began_s)
    assert min(times) < 0.02  # what waits for more calls to come waits each time


def test_answers_are_acknowledged_though_nothing_is_submitted(manager):
    echo(0).result()
    manager.until(lambda: manager.told(Applied))
    manager.until(lambda: not manager._kept)
    futures = [echo(np.zeros(10_000)) for i in range(100)]
    cf.wait(futures)
    manager.until(lambda: not manager._kept)


def test_needs_are_known_or_given_whatever_the_timing(manager):
    """The fake complains about a need that it does not know; see THE ORDER RULE."""
    with shaken():
        for round in range(300):
            first = echo(round)
            if round % 3 == 0:
                first.result()
            elif round % 3 == 1:
                cf.wait([first])
            layer = [echo(first, i) for i in range(5)]
            assert echo(layer).result() == [round] * 5
        given = sum(len(places) for message in manager.told(Submit) for places in message.given.values())
        assert given >= 1000


def test_many_threads_and_dependencies(manager):
    with shaken():

        def work(seed):
            futures = [echo(seed)]
            for i in range(300):
                futures.append(echo(futures[(i * 7) % len(futures)], [futures[-1]]))
                if i % 50 == 0:
                    futures[-1].result()
            return [future.result() for future in futures]

        with cf.ThreadPoolExecutor(8) as pool:
            results = list(pool.map(work, range(16)))
        assert results == [[seed] * 301 for seed in range(16)]


def test_a_need_of_which_the_value_cannot_be_pickled_again(manager):
    class Once:
        def __reduce__(self):
            return Once.load, ()

        @staticmethod
        def load():
            return threading.Lock()

    future = python_app(Once)()
    future.result()
    with pytest.raises(Exception, match=r"task 0 \(Once\) cannot be pickled again"):
        echo(future)
    manager.hold("held")
    assert echo(1).result() == 1


def test_a_need_that_failed_fails_the_call_at_once_and_frees_its_number(manager):
    bad = fail("x")
    cf.wait([bad])
    futures = [echo(1), echo(bad, np.zeros(50_000)), echo(2), echo([echo(bad)])]
    assert [type(future.exception()) for future in futures] == [type(None), DependencyError, type(None), DependencyError]
    assert sorted(manager.ran) == [0, 1, 3]
    manager.until(lambda: proxy().outbox.unsent_large_bytes == 0 and len(proxy().outbox) == 0)


def test_the_manager_keeps_running_what_the_script_dropped(manager):
    manager.hold("held")
    for i in range(10):
        echo(held(i))
    gc.collect()
    manager.release("held")
    wait_for_current_tasks()
    assert len(manager.ran) == 20


def test_futures_are_let_go_when_they_are_done_and_dropped(manager):
    future = echo(1)
    future.result()
    reference = weakref.ref(future)
    del future
    manager.until(lambda: gc.collect() is not None and reference() is None)


def test_nothing_is_left_in_the_count_of_bytes(manager):
    def handler(error, record):
        return record["try_id"]

    manager.hold("held")
    [held("x" * 1000 * i).cancel() for i in range(100)]
    [held(np.zeros(1000 * i)).cancel() for i in range(100)]
    cf.wait([python_app(fail.__wrapped__, retry_handler=handler)("x" * 100) for _ in range(10)])
    cf.wait([echo(fail("x"), np.zeros(1000)) for _ in range(10)])
    cf.wait([echo(np.zeros(1000)) for _ in range(10)])
    assert join_app(lambda x: echo(x))(np.zeros(1000)).result().sum() == 0
    manager.until(lambda: proxy()._count_unfinished() == (0, 0))


def test_cancel_follows_its_task(manager):
    manager.hold("held")
    for i in range(200):
        held(i).cancel()
    manager.until(lambda: sum(len(message.tasks) for message in manager.told(Cancel)) == 200 and not manager.tasks)
    kinds = [type(message) for message in manager.received if isinstance(message, (Submit, Cancel))]
    assert kinds[0] is Submit


# ---- back-pressure -----------------------------------------------------------------------------------------------


class Generator(threading.Thread):
    """A script that submits without end, until `stop`."""

    def __init__(self, argument=1):
        super().__init__(daemon=True)
        self.submitted = 0
        self.stop = False
        self._argument = argument

    def run(self):
        while not self.stop:
            held(self._argument)
            self.submitted += 1

    def is_stuck(self, manager):
        """Whether it is held back, and has nothing on the way."""
        if not proxy().pressure._waiting:
            return False
        before = self.submitted
        time.sleep(0.1)  # who is not held back any more goes on
        return before == self.submitted and len(manager.tasks) >= before


def test_submitting_blocks_and_goes_on(manager):
    session.finish(cancel=False)
    with Job(max_waiting=1000) as manager:
        manager.hold("held")
        script = Generator()
        script.start()
        manager.until(lambda: script.is_stuck(manager))
        assert 1000 <= script.submitted <= 1010
        with manager._lock:  # a few ends are not enough
            for task in list(manager.tasks.values())[:100]:
                manager._finish(task, 0, b"\x80\x05N.")
        manager._ring()
        manager.until(lambda: len(manager.told(Applied)) > 0)
        assert script.is_stuck(manager) or script.submitted <= 1011
        manager.release("held")
        manager.until(lambda: script.submitted > 10_000)
        assert len(manager.tasks) <= 1010
        script.stop = True
        script.join()


@pytest.mark.parametrize("slots, asked, most", [(2, "auto", 250_000), (262_144, "auto", 1_048_576), (262_144, 1000, 1000)])
def test_the_bound_grows_with_the_slots_of_the_world(slots, asked, most):
    with Job(FakeManager(slots=slots), max_waiting=asked):
        assert proxy().pressure.limit == most
        assert echo(1).result() == 1


def test_large_arguments_block_by_their_bytes():
    with Job(max_waiting_bytes=20_000_000) as manager:
        manager.hold("held")
        script = Generator(np.zeros(125_000))
        script.start()
        manager.until(lambda: script.is_stuck(manager))
        assert 19 <= script.submitted <= 22
        script.stop = True
        manager.release("held")
        script.join()
        wait_for_current_tasks()
        manager.until(lambda: proxy()._count_unfinished() == (0, 0))


def test_small_arguments_block_by_their_bytes():
    with Job(max_waiting_bytes=2_000_000) as manager:
        manager.hold("held")
        script = Generator("x" * 1000)
        script.start()
        manager.until(lambda: script.is_stuck(manager))
        assert 1900 <= script.submitted <= 60_000  # what the script does before the other thread gets its turn
        script.stop = True
        manager.release("held")
        script.join()


def test_callbacks_and_joins_are_never_held_back():
    with Job(max_waiting=50) as manager:
        inner = []

        def submit_more(_):
            inner.extend(echo(i) for i in range(500))

        @join_app
        def many(n):
            return [echo(i) for i in range(n)]

        held(1).add_done_callback(submit_more)
        assert many(500).result() == list(range(500))
        manager.until(lambda: len(inner) == 500)


def test_a_script_that_has_to_keep_a_promise_is_let_through(monkeypatch):
    monkeypatch.setattr("exex.client.pressure.PATIENCE_S", 0.1)
    with Job(max_waiting=20) as manager:
        promise = cf.Future()
        futures = [echo(promise) for _ in range(22)]
        promise.set_result(5)
        assert [future.result() for future in futures] == [5] * 22
        assert manager.complaints == []


def test_pressure_resumes_only_when_there_is_room_again():
    unfinished, passed = [101, 0], threading.Event()
    pressure = Pressure(100, 1000, lambda: tuple(unfinished))
    assert pressure.limit == 100
    thread = threading.Thread(target=lambda: (pressure.hold_back(lambda: False), passed.set()))
    thread.start()
    while not pressure._waiting:
        time.sleep(0.001)
    for tasks, size_bytes, resumes in ((76, 0, False), (75, 751, False), (75, 750, True)):
        unfinished[:] = tasks, size_bytes
        pressure.update(100 - tasks)
        assert passed.wait(20 if resumes else 0.05) == resumes
    unfinished[:] = 100, 1000
    pressure.update(99)
    assert pressure.limit == 199
    pressure.hold_back(lambda: False)
    unfinished[:] = 1, 1001
    pressure.update(99)
    assert pressure.limit == 0
    pressure.close()
    pressure.hold_back(lambda: False)


def test_a_blocked_script_hears_that_the_manager_is_gone():
    manager = FakeManager()
    with pytest.raises(ManagerLost), Job(manager, max_waiting=50):
        manager.hold("held")
        threading.Timer(0.2, manager.end, [None]).start()
        for i in itertools.count():
            held(i)


# ---- beginning ---------------------------------------------------------------------------------------------------


def answering(*messages):
    """A link whose other end sends these messages, or (None) closes."""
    ours, theirs = socket.socketpair()
    link = StreamLink(ours)
    for message in messages:
        if message is None:
            link.close()
        else:
            link.send(0, codec.Encoder().encode(message))
    return StreamLink(theirs), link


WELCOME = Welcome(version=__version__, client=0, manager_pid=1, workers=1, slots=1, run_dir="")


def test_the_handshake(manager):
    [attach] = manager.told(Attach)
    assert (attach.version, attach.pid) == (__version__, os.getpid())
    assert proxy().welcome.slots == 2


@pytest.mark.parametrize(
    ("messages", "error", "text"),
    [
        ([], StartError, "did not answer within 0.2 s"),
        ([None], ManagerLost, "the manager ended before|no manager at the other end"),
        ([JobEnds(reason="rank 2 is lost")], ManagerLost, "takes no client: rank 2 is lost"),
        ([Welcome(version="0.0.1", client=0, manager_pid=1, workers=1, slots=1, run_dir="")], StartError, "0.0.1"),
    ],
)
def test_handshakes_that_fail(messages, error, text):
    link, _other = answering(*messages)
    with pytest.raises(error, match=text):
        session.start(link, Settings(start_timeout_s=0.2))
    with pytest.raises(NoManagerError):
        echo(1)


# ---- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["rank 3 is lost", None])
def test_all_futures_fail_when_the_job_ends(reason):
    manager = FakeManager()
    with Job(manager):
        manager.hold("held")
        waiting = [held(i) for i in range(100)]
        dependent = echo(waiting[0])
        done = echo(7)
        cf.wait([done])
        seen = []
        waiting[1].add_done_callback(seen.append)
        began_s = time.monotonic()
        manager.end(reason)
        with pytest.raises(ManagerLost, match="rank 3 is lost" if reason else "the manager has ended"):
            waiting[0].result()
        assert time.monotonic() - began_s < 5
        assert all(isinstance(future.exception(), ManagerLost) for future in waiting)
        assert "task 5 (held)" in str(waiting[5].exception())
        assert isinstance(dependent.exception(), ManagerLost)
        assert done.result() == 7
        manager.until(lambda: seen)
        with pytest.raises(ManagerLost, match="app echo was called, but "):
            echo(1)


def test_nonsense_from_the_manager_ends_the_session():
    link, other = answering(WELCOME, Verdict(task=0, retry=True, payload=b""))
    session.start(link, Settings())
    try:
        with pytest.raises(ManagerLost, match="do not understand each other"):
            echo(1).result()
    finally:
        session.finish(cancel=True)
        other.close()


def test_the_end_waits_for_all_tasks():
    manager = FakeManager()
    with Job(manager):
        manager.hold("held")
        futures = [echo(held(i)) for i in range(50)]
        threading.Timer(0.1, manager.release, ["held"]).start()
    assert all(future.done() for future in futures)
    assert manager.finished.wait(20)
    assert manager.received[-1] == Finish(cancel=False)


def test_the_end_waits_for_what_callbacks_and_joins_start():
    manager, done = FakeManager(), []

    @join_app
    def again(n):
        return again(n - 1) if n else echo("end")

    with Job(manager):
        again(20).add_done_callback(lambda future: done.append(echo(future.result())))
    assert done[0].result() == "end"
    session.finish(cancel=False)


def test_an_end_that_cancels():
    manager = FakeManager()
    with pytest.raises(KeyError), Job(manager):
        manager.hold("held")
        futures = [held(i) for i in range(1000)]
        raise KeyError("of the script")
    assert all(future.cancelled() for future in futures)
    assert manager.finished.wait(20)
    assert manager.received[-1] == Finish(cancel=True)


def test_the_last_words_name_failures_that_nobody_saw(capsys):
    with Job():
        fail("unseen")
        echo(fail("seen through its dependent")).exception()
        fail("seen").exception()
        cf.wait([fail("waited for, but not looked at")])
    assert capsys.readouterr().err == (
        "exex: 2 tasks failed and nobody asked for their results; first: task 0 (fail): ValueError: unseen\n"
    )


def test_the_last_words_about_one_failure(capsys):
    with Job():
        bad = fail("x")
        cf.wait([bad])
        echo(bad)
    assert capsys.readouterr().err == "exex: 1 task failed and nobody asked for its result: task 1 (echo): a need of it failed\n"


def test_no_last_words_without_failures(capsys):
    with Job():
        echo(1)
        held(2).cancel()
        with pytest.raises(ValueError, match="x"):
            fail("x").result()
    assert capsys.readouterr().err == ""


def test_many_sessions_leave_nothing_behind():
    def count():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    def sessions(many):
        for _ in range(many):
            with Job() as manager:
                echo(1).result()
            del manager
        gc.collect()
        return count()

    before = sessions(1)
    assert sessions(19) <= (before[0] + 2, before[1])


def test_ctrl_c_reaches_a_waiting_script(manager):
    manager.hold("held")
    future = held(1)
    threading.Timer(0.2, lambda: os.kill(os.getpid(), 2)).start()
    with pytest.raises(KeyboardInterrupt):
        future.result()
    assert future.cancel()


INTERRUPTED = """
import os, random, signal, sys, threading, time
from exex import python_app
from tests.fakes import FakeManager, Job, shaken
from tests.unit.plain_apps import echo, held, fail

@python_app
def echo(x):
    return x

def interrupt():
    while not stop:
        time.sleep(rng.random() * 0.002)
        os.kill(os.getpid(), signal.SIGINT)

rng, stop, hits, kept = random.Random(int(sys.argv[1])), False, 0, []
manager = FakeManager()
with Job(manager):
    thread = threading.Thread(target=interrupt, daemon=True)
    going = True
    while going:
        try:
            if thread.ident is None:
                thread.start()
            going = hits < 400 or len(kept) < 400
            kept.append(echo(len(kept)))
            kept[-1].result()
            if len(kept) % 50 == 0:
                some = [echo(i) for i in range(30)]
                kept += some
                [future.result() for future in some]
        except KeyboardInterrupt:
            hits += 1
    while thread.is_alive() or not stop:
        try:
            stop = True
            thread.join()
        except KeyboardInterrupt:
            pass
    assert all(isinstance(future.result(timeout=20), int) for future in kept)
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print(hits, len(kept))
"""


@pytest.mark.parametrize("seed", range(2))
def test_ctrl_c_at_any_moment_loses_nothing(seed, tmp_path):
    """A script that goes on after each of hundreds of interruptions gets every result."""
    (tmp_path / "script.py").write_text(INTERRUPTED)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, str(tmp_path / "script.py"), str(seed)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    hits, kept = map(int, done.stdout.split())
    assert hits >= 400 and kept >= 400


def test_while_one_thread_waits_others_submit_and_wait(manager):
    with shaken():
        manager.hold("held")
        waiting = held(1)
        waiters = [threading.Thread(target=waiting.result) for _ in range(3)]
        for thread in waiters:
            thread.start()
        for i in range(300):
            assert echo(i).result() == i
        done = threading.Event()
        threading.Thread(target=lambda: (sum(echo(i).result() for i in range(300)), done.set())).start()
        assert done.wait(20)
        assert all(thread.is_alive() for thread in waiters)
        manager.release("held")
        for thread in waiters:
            thread.join(20)
            assert not thread.is_alive()


def test_callbacks_are_called_by_the_proxy_thread(manager):
    names = []
    for i in range(200):
        manager.hold("held")
        future = held(i)
        future.add_done_callback(lambda _: names.append(threading.current_thread().name))
        manager.release("held")
        future.result()
    manager.until(lambda: len(names) == 200)
    assert set(names) == {"exex-proxy"}


def test_a_script_that_handles_ctrl_c_itself_keeps_its_handler(manager):
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert [echo(i).result() for i in range(20)] == list(range(20))
        session.finish(cancel=False)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_waiting_for_what_exists(manager):
    manager.hold("held")
    futures = [held(i) for i in range(5)]
    threading.Timer(0.1, manager.release, ["held"]).start()
    wait_for_current_tasks()
    assert all(future.done() for future in futures)


# ---- forks -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="forking a process with threads warns there")
def test_a_forked_child_is_no_client(manager):
    manager.hold("held")
    unfinished = held(1)
    finished = echo(2)
    finished.result()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        text = b""
        for action in (lambda: echo(1), unfinished.result, lambda: str(finished.result())):
            try:
                text += str(action()).encode() + b"\n"
            except BaseException as error:
                text += f"{type(error).__name__}: {error}\n".encode()
        os.write(write, text)
        os._exit(0)
    os.close(write)
    assert select.select([read], [], [], 20)[0]
    lines = os.read(read, 10_000).decode().splitlines()
    os.close(read)
    os.waitpid(child, 0)
    assert lines[0].startswith("NoManagerError: app echo was called, but this process was forked from the client")
    assert lines[1].startswith("NoManagerError: task 0 (held) belongs to the process from which this one was forked")
    assert lines[2] == "2"
    manager.release("held")
    assert unfinished.result() == 1


# ---- rest --------------------------------------------------------------------------------------------------------


def test_an_idle_client_sleeps(manager):
    echo(1).result()
    time.sleep(0.1)
    began_s = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - began_s < 0.025
