"""Template and task processes with real forks, and this process in the place of guard and rank. No MPI."""

import contextlib
import ctypes
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest

from exex import errors
from exex.protocol import codec, context, payload
from exex.protocol.messages import AppSpec, Assign, Grant, Kind, Outcome, Share, Stop
from exex.transport.base import GONE
from exex.worker import condition, families, template
from exex.worker import context as worker_context
from exex.worker.context import TaskContext
from exex.worker.processes import Died, Failed, Forked, Kill, Measured, Ready, Template

PATIENCE_S = 30.0
"""For what takes milliseconds on an idle machine."""


class World:
    """A template and its task processes, as a rank has them."""

    def __init__(self, directory, preload=(), environment=None, script="", gpu_variable="", store=("", 0, 0)):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.template_pid = os.fork()
        if self.template_pid == 0:
            ours.close()
            template.template_main(theirs, {**os.environ, "EXEX_TEST": "1"} if environment is None else environment)
        theirs.close()
        self.template = Template(ours)
        self.directory = directory
        self.events = []
        self.done = {}  # task: (outcome, value)
        self.order = []
        self.output = {}  # process: {"stdout": bytes, "stderr": bytes}
        self._encoder = codec.Encoder()
        self._decoder = codec.from_worker()
        self._known = set()
        self._next = 0
        begin = (str(directory), str(directory), str(directory / "run"), preload, 3, "nid00012", script, gpu_variable)
        self.template.begin(*begin, store=store)

    def fork(self, slot=0, cores=()):
        process = self.template.fork(slot, cores)
        self.output[process] = {"stdout": b"", "stderr": b""}
        return process

    def give(self, process, *calls, tokens=True, kind=Kind.PYTHON, grant=None, stored=None, **spec):
        """Queue calls, each a tuple of a function and its arguments; their task numbers.

        Args:
            stored: what stands in the place of the pickled arguments of each.
        """
        apps, functions, numbers, payloads = [], {}, [], []
        for function, *args in calls:
            digest, pickled = payload.dump_function(function)
            app = int.from_bytes(digest[:4], "little") + kind + len(spec)
            if (process, app) not in self._known:
                self._known.add((process, app))
                apps.append(AppSpec(app=app, name=function.__name__, function=digest, kind=kind, **spec))
                functions[digest] = pickled
            numbers.append(app)
            payloads.append(payload.dump_call(tuple(args), {}, None)[0])
        payloads = stored or payloads
        tasks = list(range(self._next, self._next + len(calls)))
        self._next += len(calls)
        message = Assign(apps=apps, functions=functions, tasks=tasks, calls=numbers, payloads=payloads, values={}, attempts={})
        if grant is not None:
            message = msgspec.structs.replace(message, grants={0: grant})
        process.give(len(calls), self._encoder.encode(message))
        return tasks

    def take(self):
        """Take all that is there now."""
        self.events += self.template.events()
        for process, output in self.output.items():
            if process.link.fileno() < 0:
                continue
            while (frames := process.receive()) is not None and frames is not GONE:
                done = self._decoder.decode(frames)
                for task, outcome, result in zip(done.tasks, done.outcomes, done.payloads, strict=True):
                    assert task not in self.done, f"task {task} is reported twice"
                    self.done[task] = (outcome, payload.load(result) if result and type(result) is not payload.Stored else result)
                    self.order.append(task)
            for name in ("stdout", "stderr"):
                with contextlib.suppress(BlockingIOError):
                    while data := os.read(getattr(process, name), 65536):
                        output[name] += data

    def until(self, condition):
        """Take what comes until the condition holds."""
        end = time.monotonic() + PATIENCE_S
        while True:
            self.take()
            if condition():
                return
            left = end - time.monotonic()
            assert left > 0, f"not within {PATIENCE_S} s: {self.events} {self.done} {self.output}"
            poll = select.poll()
            if not self.template.gone:
                poll.register(self.template.fileno(), select.POLLIN)
            for process in self.output:
                if process.link.fileno() >= 0:
                    poll.register(process.link.fileno(), select.POLLIN | (select.POLLOUT if process.link.progress() else 0))
                    poll.register(process.stdout, select.POLLIN)
                    poll.register(process.stderr, select.POLLIN)
            for fd, event in poll.poll(left * 1e3):
                if not event & select.POLLIN and event & select.POLLHUP:  # ended, and all of it taken
                    time.sleep(0.001)

    def results(self, tasks):
        self.until(lambda: all(task in self.done for task in tasks))
        return [self.done[task] for task in tasks]

    def values(self, tasks):
        results = self.results(tasks)
        assert all(outcome == Outcome.DONE for outcome, _ in results), results
        return [value for _, value in results]

    def pid(self, process):
        self.until(lambda: process.pid is not None)
        return process.pid

    def printed(self, process, text, name="stdout"):
        self.until(lambda: text in self.output[process][name].decode())

    def told(self, kind, **fields):
        """Wait for an event; it is taken off the list."""

        def matches():
            return [
                event
                for event in self.events
                if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items())
            ]

        self.until(matches)
        event = matches()[0]
        self.events.remove(event)
        return event

    def close(self):
        """End the template; nothing may be left of it."""
        assert self.template.end(most_s=60.0)
        assert os.waitpid(self.template_pid, 0)[1] == 0
        self.release()

    def release(self):
        self.template.close()
        for process in self.output:
            if process.link.fileno() >= 0:
                process.close()


@pytest.fixture
def world(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    made = World(tmp_path)
    made.told(Ready)
    yield made
    if not made.template.gone:
        made.close()
    assert len(os.listdir("/proc/self/fd")) <= len(before)  # what was garbage before may be closed meanwhile


@pytest.fixture
def fifo(tmp_path):
    """What `hold` waits for."""
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    return path


def hold(path):
    print("holding")
    with open(path) as file:
        return file.read()


def release(path, text="released"):
    with open(path, "w") as file:
        file.write(text)


def number(n):
    return n


def double(n):
    return 2 * n


def crash(kind):
    print("last words", file=sys.stderr)
    if kind == "segfault":
        ctypes.string_at(0)
    elif kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "abort":
        os.abort()
    else:
        os._exit(kind)


def ended(pidfd, most_s=PATIENCE_S):
    """Whether the process of a pidfd ends in time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    try:
        return bool(poll.poll(most_s * 1e3))
    finally:
        os.close(pidfd)


def all_ended(pidfds):
    return [ended(pidfd) for pidfd in pidfds].count(False) == 0


# ---- start ----------------------------------------------------------------------------------------------------


def test_tasks_run_in_order(world):
    process = world.fork()
    tasks = world.give(process, *((double, n) for n in range(500)))
    assert world.values(tasks) == [2 * n for n in range(500)]
    assert world.order == tasks
    assert world.told(Forked, slot=0).pid == process.pid


def test_functions_and_apps_are_sent_once(world):
    process = world.fork()
    assert world.values(world.give(process, (double, 4))) == [8]
    assert world.values(world.give(process, (double, 5), (number, 6), (double, 7))) == [10, 6, 14]


def link_of(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return None  # of the directory that was listed


def about():
    return {
        "context": context.current_task,
        "run_dir": worker_context.run_dir,
        "cwd": os.getcwd(),
        "path": sys.path[0],
        "environment": dict(os.environ),
        "stdin": os.read(0, 100),
        "session": os.getsid(0) == os.getpid(),
        "files": [link for link in map(link_of, os.listdir("/proc/self/fd")) if link],
    }


def test_what_a_task_process_is(tmp_path):
    left_open = os.open("/dev/zero", os.O_RDONLY)  # as a launcher leaves PMI_FD
    os.set_inheritable(left_open, True)
    world = World(tmp_path, environment={"PATH": os.environ["PATH"], "ONLY": "this"})
    os.close(left_open)
    world.told(Ready)
    [told] = world.values(world.give(world.fork(), (about,)))
    assert told["context"] == TaskContext(0, 1, "about", 3, "nid00012")
    assert told["run_dir"] == str(tmp_path / "run")
    assert told["cwd"] == told["path"] == str(tmp_path)
    assert told["environment"].keys() - {"LC_CTYPE"} == {"PATH", "ONLY"}
    assert told["stdin"] == b""
    assert told["session"]
    kinds = sorted(link.split(":")[0] for link in told["files"])
    assert kinds == ["/dev/null", "anon_inode", "pipe", "pipe", "socket", "socket", "socket"]
    world.close()


@pytest.mark.parametrize(
    ("source", "said"),
    [(None, "ModuleNotFoundError: No module named 'preloaded'"), ("1 / 0", "ZeroDivisionError"), ("exit(3)", "SystemExit: 3")],
)
def test_a_module_that_cannot_be_preloaded_is_named(tmp_path, source, said):
    if source:
        (tmp_path / "preloaded.py").write_text(source)
    world = World(tmp_path, preload=["json", "preloaded"])
    error = world.told(Failed).error
    assert error.startswith("cannot import preloaded ")
    assert said in error
    world.close()


def test_a_directory_that_is_not_there(tmp_path):
    world = World(tmp_path / "gone")
    assert f"cannot enter the job's directory {tmp_path}/gone: No such file" in world.told(Failed).error
    world.close()


def preloaded_state():
    import preloaded

    return preloaded.loaded_by, os.getpid()


def test_modules_are_loaded_before_the_fork(tmp_path):
    (tmp_path / "preloaded.py").write_text("import os\nloaded_by = os.getpid()\n")
    world = World(tmp_path, preload=["preloaded"])
    world.told(Ready)
    [(loaded_by, pid)] = world.values(world.give(world.fork(), (preloaded_state,)))
    assert loaded_by == world.template_pid != pid
    world.close()


def cpus_and_variables():
    names = ("EXEX_GRANTED_CORES", "OMP_NUM_THREADS", "FAKE_DEVICES")
    return sorted(os.sched_getaffinity(0)), [os.environ.get(name) for name in names]


def test_a_task_process_is_bound_to_its_slot_and_a_big_call_to_what_it_was_granted(tmp_path):
    world = World(tmp_path, gpu_variable="FAKE_DEVICES")
    world.told(Ready)
    all_cpus = sorted(os.sched_getaffinity(0))
    bound, free = world.fork(0, all_cpus[:1]), world.fork(1)
    grant = Grant(2, all_cpus, [Share("n", 2, ["x", "y"], [3])])
    assert world.values(world.give(bound, (cpus_and_variables,)))[0][0] == all_cpus[:1]
    assert world.values(world.give(bound, (cpus_and_variables,), grant=grant)) == [(all_cpus, ["2", "2", "x,y"])]
    assert world.values(world.give(bound, (cpus_and_variables,), (cpus_and_variables,)))[1][0] == all_cpus[:1]
    assert world.values(world.give(free, (cpus_and_variables,)))[0][0] == all_cpus


def bind_to_one():
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


def test_a_task_that_binds_itself_binds_no_other(tmp_path):
    world = World(tmp_path)
    world.told(Ready)
    _, (cpus, _) = world.values(world.give(world.fork(), (bind_to_one,), (cpus_and_variables,)))
    assert cpus == sorted(os.sched_getaffinity(0))


def random_numbers():
    return random.random(), float(np.random.random())


def test_task_processes_do_not_share_their_random_numbers(tmp_path):
    world = World(tmp_path, preload=["numpy.random"])
    world.told(Ready)
    drawn = [world.values(world.give(world.fork(slot), (random_numbers,)))[0] for slot in range(3)]
    assert len({a for a, _ in drawn}) == len({b for _, b in drawn}) == 3
    world.close()


def test_many_at_once(world):
    processes = [world.fork(slot) for slot in range(16)]
    tasks = [world.give(process, (number, process.slot))[0] for process in processes]
    assert world.values(tasks) == list(range(16))
    assert len({world.pid(process) for process in processes}) == 16


def test_one_process_in_a_slot(world):
    world.fork(2)
    with pytest.raises(ValueError, match="slot 2"):
        world.template.fork(2)


def test_a_fork_that_fails(tmp_path, monkeypatch):
    fork = os.fork

    def no_more():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def first():
        monkeypatch.setattr(os, "fork", no_more)  # for the template: this side is set right below
        return fork()

    monkeypatch.setattr(os, "fork", first)
    world = World(tmp_path)
    monkeypatch.undo()
    world.told(Ready)
    process = world.fork(1)
    world.give(process, (number, 1), (number, 2))
    died = world.told(Died, slot=1)
    assert (died.pid, died.status) == (0, os.EX_OSERR)
    assert died.error == "cannot fork a task process: Resource temporarily unavailable"
    assert process.take_back() == 2
    world.close()


# ---- results --------------------------------------------------------------------------------------------------

buffer = np.zeros(1000)


def fill(n):
    """Returns the same memory each time."""
    buffer[:] = n
    return buffer


def test_results_are_those_of_their_tasks_though_memory_is_reused(world):
    process = world.fork()
    values = world.values(world.give(process, *((fill, n) for n in range(200))))
    assert [set(value) for value in values] == [{n} for n in range(200)]


def add_one(array):
    array += 1
    return float(array.sum())


@pytest.mark.parametrize("size", [0, 1, 100, 300_000])
def test_arguments_can_be_written_to(world, size):
    process = world.fork()
    assert world.values(world.give(process, *[(add_one, np.zeros(size))] * 5)) == [size] * 5


def test_large_calls_and_values(world):
    process = world.fork()
    data = [bytes([n]) * 1_000_000 for n in range(20)]
    assert world.values(world.give(process, *((number, each) for each in data))) == data


def test_results_are_not_held_back_while_a_task_runs(world, fifo):
    process = world.fork()
    tasks = world.give(process, (number, 1), (number, 2), (hold, fifo), (number, 3))
    assert world.values(tasks[:2]) == [1, 2]
    assert tasks[2] not in world.done
    release(fifo)
    assert world.values(tasks[2:]) == ["released", 3]


def fail():
    raise ValueError("of the task")


def test_failures_do_not_end_the_process(world):
    process = world.fork()
    results = world.results(world.give(process, (fail,), (sys.exit, 3), (number, 1)))
    assert [outcome for outcome, _ in results] == [Outcome.FAILED, Outcome.FAILED, Outcome.DONE]
    assert results[0][1].__cause__.text.startswith("task 0 (fail) on rank 3 at nid00012, attempt 1:\n")
    assert results[1][1].exitcode == 3


class Elsewhere:
    __name__ = "elsewhere"

    def __reduce__(self):
        return __import__, ("no_such_module",)


def test_a_function_that_cannot_be_unpickled(world):
    process = world.fork()
    results = world.results(world.give(process, (Elsewhere(),), (Elsewhere(),), (number, 1)))
    assert [type(value) for _, value in results[:2]] == [errors.DeserializationError] * 2
    assert "(elsewhere) on rank 3 at nid00012" in str(results[0][1])
    assert "No module named 'no_such_module'" in str(results[1][1])
    assert results[2] == (Outcome.DONE, 1)


def say(text, end):
    print(text, end=end)
    print(text.upper(), end=end, file=sys.stderr)
    ctypes.CDLL(None).printf(b"from C\n")


def test_all_output_has_arrived_with_the_result(world):
    process = world.fork()
    world.values(world.give(process, (say, "one", ""), (say, "two", "\n")))
    world.take()
    assert world.output[process]["stdout"].decode().replace("from C\n", "") == "onetwo\n"
    assert world.output[process]["stdout"].count(b"from C\n") == 2
    assert world.output[process]["stderr"] == b"ONETWO\n"


def command(text):
    return text


def test_bash(world):
    process = world.fork()
    text = 'echo "task $EXEX_TASK_ID on $EXEX_RANK at $EXEX_NODE"; echo broken >&2; exit 3'
    [(outcome, error)] = world.results(world.give(process, (command, text), kind=Kind.BASH))
    assert outcome == Outcome.FAILED
    assert (error.exitcode, error.stderr_tail) == (3, "broken\n")
    world.printed(process, "task 0 on 3 at nid00012\n")
    world.printed(process, "broken\n", "stderr")


def test_a_message_that_is_none_of_its_business(world):
    process = world.fork()
    process.link.send(0, codec.Encoder().encode(Stop(reason="")))
    assert world.told(Died, slot=0).status == os.EX_SOFTWARE
    world.take()
    assert b"ProtocolError: a task process got a Stop" in world.output[process]["stderr"]


# ---- death, and what was running ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status"), [("segfault", -signal.SIGSEGV), ("kill", -signal.SIGKILL), ("abort", -signal.SIGABRT), (0, 0), (3, 3)]
)
def test_the_task_that_ends_its_process_is_known(world, kind, status):
    process = world.fork()
    tasks = world.give(process, (number, 0), (number, 1), (crash, kind), (number, 3), (number, 4), (number, 5))
    died = world.told(Died, slot=0)
    assert (died.pid, died.status) == (process.pid, status)
    world.take()
    assert list(world.done) == tasks[:2]
    assert process.take_back() == 3  # so the one before them is the one that was running
    assert world.output[process]["stderr"].startswith(b"last words\n")
    if kind == "segfault":
        assert b"Fatal Python error: Segmentation fault" in world.output[process]["stderr"]
    process.close()
    again = world.fork(0)
    assert world.values(world.give(again, (number, 7))) == [7]


def test_calls_for_a_dead_process_can_be_taken_back(world):
    process = world.fork()
    world.give(process, (crash, 1))
    world.told(Died, slot=0)
    world.give(process, (number, 1), (number, 2))
    assert process.take_back() == 2


# ---- taking back ----------------------------------------------------------------------------------------------


def test_what_is_taken_back_does_not_run(world, fifo):
    process = world.fork()
    tasks = world.give(process, (hold, fifo), *((number, n) for n in range(9)))
    world.printed(process, "holding")
    assert process.take_back() == 9
    assert process.take_back() == 0
    release(fifo)
    assert world.values(tasks[:1]) == ["released"]
    more = world.give(process, (number, 42))
    assert world.values(more) == [42]
    assert list(world.done) == [tasks[0], *more]


def test_what_is_given_after_taking_back_does_not_start_what_was_taken_back(world, fifo):
    """The new tokens must not be taken for the old calls, which the task process still has."""
    process = world.fork()
    old = world.give(process, (hold, fifo), *((number, n) for n in range(5)))
    world.printed(process, "holding")
    assert process.take_back() == 5
    new = world.give(process, *((double, n) for n in range(5)))
    release(fifo)
    assert world.values(new) == [0, 2, 4, 6, 8]
    assert list(world.done) == [old[0], *new]


def test_what_is_given_after_taking_back_can_be_taken_back_too(world, fifo):
    process = world.fork()
    world.give(process, (hold, fifo), (number, 1), (number, 2))
    world.give(process, (number, 3))
    world.printed(process, "holding")
    assert process.take_back() == 3
    world.give(process, (number, 4), (number, 5))
    world.give(process, (number, 6))
    assert process.take_back() == 3
    last = world.give(process, (number, 7))
    release(fifo)
    assert world.values(last) == [7]
    assert list(world.done) == [0, *last]


def test_what_was_given_after_taking_back_is_not_lost_with_the_process(world, fifo):
    process = world.fork()
    world.give(process, (hold, fifo), (number, 1))
    world.printed(process, "holding")
    assert process.take_back() == 1
    world.give(process, (number, 2), (number, 3))
    world.template.kill(process, signal.SIGKILL)
    world.told(Died, slot=0)
    assert process.take_back() == 2
    assert not world.done


@pytest.mark.parametrize("seed", range(5))
def test_every_call_runs_once_whatever_is_taken_back(world, seed):
    """Gives and takes back at random while the task process runs at full speed."""
    rng = random.Random(seed)
    process = world.fork()
    ours, held, taken = list(range(1500)), [], 0
    names = {}  # number that World gives: our own

    def drop_done():
        while held and held[0] in world.done:
            held.pop(0)

    while ours or held:
        for _ in range(rng.randrange(3)):
            calls = [ours.pop(0) for _ in range(min(len(ours), rng.randrange(1, 40)))]
            if calls:
                given = world.give(process, *((number, n) for n in calls))
                names.update(zip(given, calls, strict=True))
                held += given
        if rng.random() < 0.5:
            count = process.take_back()
            taken += count
            back = held[len(held) - count :]
            del held[len(held) - count :]
            assert not any(task in world.done for task in back)
            ours = [names[task] for task in back] + ours
        if held and rng.random() < 0.7:
            before = len(world.done)
            world.until(lambda: len(world.done) > before or held[0] in world.done)
        drop_done()
    assert taken > 0
    assert sorted(value for _, value in world.done.values()) == list(range(1500))


# ---- signals and families -------------------------------------------------------------------------------------


def start_family(path):
    """Children in our session and in ones of their own, with and without a parent that lives, and a daemon."""
    script = f"""
    sleep 1000 & echo $! >> {path}
    setsid sleep 1000 & echo $! >> {path}
    setsid bash -c 'sleep 1000 & echo $! >> {path}; echo $$ >> {path}; wait' &
    (sleep 1000 & echo $! >> {path})
    echo $$ >> {path}
    wait
    """
    subprocess.Popen(["bash", "-c", script])
    daemonise(path)
    while not os.path.exists(path) or len(open(path).read().split()) < 8:
        time.sleep(0.005)
    print("family complete")


def daemonise(path):
    """Two processes in a session of their own that hold no descriptor of ours and have lost their parent."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            forked = os.fork()
            with open(path, "a") as file:
                file.write(f"{os.getpid()}\n")
            del forked
            os.closerange(0, 1 << 16)
            time.sleep(1000)
        os._exit(0)
    os.wait()


def start_family_and_stay(path, fifo):
    start_family(path)
    hold(fifo)


def family_of(path):
    return [os.pidfd_open(int(pid)) for pid in path.read_text().split()]


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_kill_reaches_all_that_a_task_has_started(tmp_path, fifo, listed, known, monkeypatch):
    monkeypatch.setattr(families, "_KERNEL_LISTS_CHILDREN", listed)
    world = World(tmp_path)
    world.told(Ready)
    process = world.fork()
    other = world.fork(1)
    world.give(process, (start_family_and_stay, str(tmp_path / "pids"), fifo), (number, 1))
    world.printed(process, "family complete")
    pids = family_of(tmp_path / "pids")
    assert len(pids) == 8
    if not known:
        process.pid = None
    world.template.kill(process, signal.SIGKILL)
    died = world.told(Died, slot=0)
    assert died.status == -signal.SIGKILL
    assert all_ended(pids)
    assert process.take_back() == 1
    assert world.values(world.give(other, (number, 5))) == [5]
    world.close()


def test_death_takes_along_what_is_left_of_the_session(world, tmp_path):
    """Children in the session of the task process, in other sessions, and daemons."""
    process = world.fork()
    world.values(world.give(process, (start_family, str(tmp_path / "pids"))))
    pids = family_of(tmp_path / "pids")
    assert not ended(os.pidfd_open(world.pid(process)), 0)
    world.give(process, (crash, 7))
    assert world.told(Died, slot=0).status == 7
    assert all_ended(pids)


def leave_note_on_sigterm(path):
    """Daemonised, so that nobody but its keeper knows of it."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, lambda *_: (open(path, "w").close(), os._exit(0)))
            print("holding", flush=True)
            time.sleep(1000)
        os._exit(0)
    os.wait()


def leave_note_on_sigterm_and_stay(path, fifo):
    leave_note_on_sigterm(path)
    hold(fifo)


def test_a_gentle_end_reaches_daemons(world, tmp_path, fifo):
    process = world.fork()
    world.give(process, (leave_note_on_sigterm_and_stay, str(tmp_path / "note"), fifo))
    world.printed(process, "holding\nholding\n")
    world.template.kill(process, signal.SIGTERM)
    assert world.told(Died, slot=0).status == 128 + signal.SIGTERM
    world.until((tmp_path / "note").exists)


def signal_parent(number, group):
    parent = os.getppid()
    assert os.getpgid(parent) == parent
    os.killpg(parent, number) if group else os.kill(parent, number)
    if number == signal.SIGKILL:
        time.sleep(1000)
    return "alive"


@pytest.mark.parametrize("group", [False, True])
def test_a_signal_to_the_parent_costs_its_own_slot_at_the_most(world, fifo, tmp_path, group):
    process, other = world.fork(), world.fork(1)
    world.give(other, (hold, fifo))
    world.printed(other, "holding")
    for number_of_signal in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        assert world.values(world.give(process, (signal_parent, number_of_signal, group))) == ["alive"]
    world.values(world.give(process, (start_family, str(tmp_path / "pids"))))
    pids = family_of(tmp_path / "pids")
    world.give(process, (signal_parent, signal.SIGKILL, group), (number, 1))
    assert world.told(Died, slot=0).status == -signal.SIGKILL
    assert all_ended(pids)
    assert process.take_back() == 1
    release(fifo)
    world.until(lambda: (Outcome.DONE, "released") in world.done.values())


def test_a_kill_that_comes_too_late_hits_nobody(world):
    process = world.fork()
    world.told(Forked)
    pid = process.pid
    world.give(process, (crash, 1))
    world.until(lambda: any(isinstance(event, Died) for event in world.events))
    world.template.kill(process, signal.SIGKILL)  # the rank knows
    process.close()
    other = world.fork(0)
    world.told(Forked, slot=0)
    world.template._send(Kill(0, pid, signal.SIGKILL))  # the template does
    assert world.values(world.give(other, (number, 5))) == [5]


def test_a_kill_before_the_fork_is_reported(world, fifo):
    process = world.fork()
    world.give(process, (hold, fifo))
    world.template.kill(process, signal.SIGKILL)
    assert world.told(Died, slot=0).status == -signal.SIGKILL


def survive(number_of_signal):
    os.kill(os.getpid(), number_of_signal)
    time.sleep(0)
    child = subprocess.Popen(["sleep", "1000"])
    child.send_signal(number_of_signal)
    ready, tell = os.pipe()
    forked = os.fork()
    if forked == 0:
        try:
            os.write(tell, b"x")
            time.sleep(1000)
        finally:
            os._exit(9)
    if number_of_signal == signal.SIGINT:  # in any Python, one that comes during the fork itself is lost
        os.read(ready, 1)
    os.kill(forked, number_of_signal)
    status = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
    return child.wait(), status


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_of_the_batch_system_do_not_end_it_but_what_it_starts(world, sent):
    """What tasks start has the usual dispositions: `Popen.terminate` and `multiprocessing` depend on it."""
    [(child, forked)] = world.values(world.give(world.fork(), (survive, sent)))
    assert child == -sent
    assert forked == (9 if sent == signal.SIGINT else -sent)  # KeyboardInterrupt: `finally` ran


def clean_up(path, fifo):
    try:
        hold(fifo)
    finally:
        with open(path, "w") as file:
            file.write("cleaned up")


def test_a_stopped_task_cleans_up(world, tmp_path, fifo):
    process = world.fork()
    world.give(process, (clean_up, str(tmp_path / "note"), fifo), (number, 1))
    world.printed(process, "holding")
    world.template.kill(process, signal.SIGTERM)
    assert world.told(Died, slot=0).status == 128 + signal.SIGTERM
    assert (tmp_path / "note").read_text() == "cleaned up"
    assert process.take_back() == 1
    assert not world.done


def test_a_stopped_bash_cleans_up(world, tmp_path):
    process = world.fork()
    text = f"trap 'sleep 0.2; echo cleaned up > {tmp_path}/note; exit 1' TERM; echo holding; while :; do sleep 0.01; done"
    world.give(process, (command, text), kind=Kind.BASH)
    world.printed(process, "holding")
    world.template.kill(process, signal.SIGTERM)
    assert world.told(Died, slot=0).status == 128 + signal.SIGTERM
    assert (tmp_path / "note").read_text() == "cleaned up\n"


def ignore_stop(fifo):
    while True:
        try:
            hold(fifo)
        except BaseException:
            print("no")


def test_a_task_that_will_not_stop_is_killed(world, fifo):
    process = world.fork()
    world.give(process, (ignore_stop, fifo))
    world.printed(process, "holding")
    world.template.kill(process, signal.SIGTERM)
    world.printed(process, "no\nholding")
    world.template.kill(process, signal.SIGKILL)
    assert world.told(Died, slot=0).status == -signal.SIGKILL


# ---- what a task leaves changed -------------------------------------------------------------------------------


def fds_of_ours():
    links = {fd: link_of(fd) for fd in map(int, os.listdir("/proc/self/fd"))}
    return sorted(fd for fd, link in links.items() if link and link.startswith(("socket:", "anon_inode:")))


def test_descriptors_of_ours_are_out_of_reach(world):
    [fds] = world.values(world.give(world.fork(), (fds_of_ours,)))
    assert len(fds) == 4 and fds[0] >= condition.LOWEST_FD


def surroundings():
    umask = os.umask(0)
    os.umask(umask)
    return os.getcwd(), umask, dict(os.environ), signal.getitimer(signal.ITIMER_REAL)[0], sys.stdout.name, os.getpid()


def change(what):
    if what == "cwd":
        os.chdir("/")
    elif what == "umask":
        os.umask(0o77)
    elif what == "environ":
        os.environ["CHANGED"] = "1"
        del os.environ["EXEX_TEST"]
    elif what == "another environ":
        os.environ = {"CHANGED": "1"}
    elif what == "timer":
        signal.setitimer(signal.ITIMER_REAL, 1000)
    elif what == "stdout":
        sys.stdout = sys.stderr
    elif what == "handler":
        signal.signal(worker_context.STOP_SIGNAL, signal.SIG_IGN)
    elif what == "mask":
        signal.pthread_sigmask(signal.SIG_BLOCK, (worker_context.STOP_SIGNAL,))
    elif what == "fd 1":
        os.close(1)
    elif what == "fd 2":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    elif what == "closed stream":
        sys.stdout.close()


@pytest.mark.parametrize("what", ["cwd", "umask", "environ", "another environ", "timer", "stdout"])
def test_the_next_task_finds_what_the_first_one_found(world, what):
    process = world.fork()
    first, _, then, *_ = world.values(world.give(process, (surroundings,), (change, what), (surroundings,), (number, 1)))
    assert then == first
    assert world.values(world.give(process, (change, what), (number, 1), (surroundings,)))[2] == first
    assert world.values(world.give(process, (change, what)))
    assert world.values(world.give(process, (surroundings,))) == [first]


@pytest.mark.parametrize("what", ["handler", "mask", "fd 1", "fd 2", "closed stream"])
def test_a_process_that_is_not_fit_for_another_task_ends(world, what):
    """Its results are there, and the calls behind are left to be taken back."""
    process = world.fork()
    tasks = world.give(process, (number, 1), (change, what), (number, 3), (number, 4))
    assert world.told(Died, slot=0).status == 0
    world.take()
    assert list(world.done) == tasks[:2]
    assert process.take_back() == 2
    process.close()
    again = world.fork(0)
    assert world.values(world.give(again, (change, what))) == [None]
    assert world.told(Died, slot=0).status == 0
    assert again.take_back() == 0


def change_seldom(n):
    if n == 30:
        os.chdir("/")
    return os.getcwd()


def test_short_calls_are_looked_at_after_each_batch(world):
    process = world.fork()
    values = world.values(world.give(process, *((change_seldom, n) for n in range(60))))
    assert values[0] == str(world.directory) and values[30] == "/"
    assert world.values(world.give(process, (change_seldom, 0))) == [str(world.directory)]


def test_tasks_see_the_script_as_argv(tmp_path):
    world = World(tmp_path, script="dir/workflow.py")
    world.told(Ready)
    assert world.values(world.give(world.fork(), (argv,))) == [["dir/workflow.py"]]
    world.close()


def argv():
    return sys.argv


# ---- memory ---------------------------------------------------------------------------------------------------


def grow(size, fifo):
    kept = b"x" * size
    child = subprocess.Popen([sys.executable, "-c", f"x = b'x' * {size}; print('holding', flush=True); import time; time.sleep(1000)"])
    hold(fifo)
    return len(kept), child.pid


def test_memory_of_the_whole_tree_is_measured(world, fifo):
    process, other = world.fork(), world.fork(1)
    world.pid(process), world.pid(other)
    size = 50 * 1024**2
    world.give(process, (grow, size, fifo))
    world.until(lambda: world.output[process]["stdout"].count(b"holding") == 2)
    world.template.measure(process, 1)
    measured = world.told(Measured, slot=0)
    assert 2 * size < measured.used_bytes < 2.4 * size and measured.pid == process.pid and measured.seconds > 0
    world.template.measure(other, 1)
    assert world.told(Measured, slot=1).used_bytes < size / 2
    world.template.kill(process, signal.SIGKILL)
    world.told(Died, slot=0)
    world.template.measure(process, 1)  # of a dead one: no answer
    assert world.values(world.give(other, (number, 1))) == [1]
    assert not [event for event in world.events if isinstance(event, Measured)]


# ---- the end --------------------------------------------------------------------------------------------------


def daemon(path):
    """A process of its own session, whose parent has ended."""
    subprocess.run(["bash", "-c", f"setsid bash -c 'sleep 1000 & echo $! > {path}.new; mv {path}.new {path}'"], check=True)
    while not os.path.exists(path):
        time.sleep(0.005)


@pytest.mark.parametrize("how", ["end", "rank dies"])
def test_nothing_outlives_the_template(tmp_path, fifo, how):
    world = World(tmp_path)
    world.told(Ready)
    process, other = world.fork(), world.fork(1)
    world.values(world.give(process, (daemon, str(tmp_path / "daemon"))))
    world.values(world.give(process, (start_family, str(tmp_path / "family"))))
    world.give(other, (hold, fifo))
    world.printed(other, "holding")
    pids = [*family_of(tmp_path / "family"), *family_of(tmp_path / "daemon")]
    pids += [os.pidfd_open(world.pid(process)), os.pidfd_open(world.pid(other))]
    if how == "end":
        assert world.template.end()
        world.take()
        assert {event.slot for event in world.events if isinstance(event, Died)} == {0, 1}
    else:
        world.template.close()
    assert os.waitpid(world.template_pid, 0)[1] == 0
    assert all_ended(pids)
    world.release()


def test_task_processes_die_with_the_template(world, fifo):
    processes = [world.fork(slot) for slot in range(3)]
    for process in processes:
        world.give(process, (hold, fifo), (number, 1))
        world.printed(process, "holding")
    pids = [os.pidfd_open(world.pid(process)) for process in processes]
    os.kill(world.template_pid, signal.SIGKILL)
    os.waitpid(world.template_pid, 0)
    assert all_ended(pids)
    for slot in range(3):
        assert world.told(Died, slot=slot).status == -signal.SIGKILL
    assert world.template.gone
    assert [process.take_back() for process in processes] == [1, 1, 1]
    late = world.fork(0)
    world.give(late, (number, 1))
    assert world.told(Died, slot=0).error == "its template has ended"
    assert late.take_back() == 1
    world.template.kill(late, signal.SIGKILL)
    assert world.template.end()
    world.release()


def test_the_end_of_a_stream_ends_its_task_process(world):
    process = world.fork()
    world.values(world.give(process, (number, 1)))
    process.close()
    assert world.told(Died, slot=0).status == 0
