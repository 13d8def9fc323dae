"""One attempt: every way in which a function, its arguments, its value or its bash can go wrong, told with its place."""

import contextlib
import itertools
import os
import select
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from exex import errors
from exex.files import arrivals
from exex.files.file import File
from exex.protocol import context
from exex.protocol import payload as payloads
from exex.protocol.messages import CLIENT_SHIFT, AppSpec, Kind, Outcome
from exex.worker import bash, execute
from exex.worker.context import STOP_SIGNAL, Place, Stop, TaskContext, TaskStopped

PLACE = Place(3, "nid00012")
TASK = (5 << CLIENT_SHIFT) + 7
WHERE = "task 7 (app) on rank 3 at nid00012, attempt 2"


def run(function, *args, kind=Kind.PYTHON, options=None, values=None, **kwargs):
    """The outcome, and the value or error, of one attempt."""
    spec = AppSpec(app=1, name="app", function=b"digest", kind=kind)
    call, _ = payloads.dump_call(args, kwargs, options)
    outcome, result, seconds = execute.execute(spec, function, call, values, TASK, 2, PLACE)
    assert 0 <= seconds < 60
    assert context.current_task is None
    return outcome, payloads.load(result)


def run_bash(command, options=None):
    return run(lambda: command, kind=Kind.BASH, options=options)


def failed(outcome_and_error, kind):
    outcome, error = outcome_and_error
    assert outcome == Outcome.FAILED
    assert type(error) is kind, error
    return error


# ---- Python ---------------------------------------------------------------------------------------------------


def test_a_value():
    assert run(lambda a, b: a * b, 6, b=7) == (Outcome.DONE, 42)
    assert run(lambda: None) == (Outcome.DONE, None)
    assert run(len, [1, 2]) == (Outcome.DONE, 2)


def test_the_seconds_are_those_of_the_function():
    class Slow:
        def __reduce__(self):
            return _spin, (0.05,)

    spec = AppSpec(app=1, name="app", function=b"")
    call, _ = payloads.dump_call((Slow(),), {}, None)
    assert execute.execute(spec, lambda _: None, call, None, 7, 1, PLACE)[2] < 0.04
    assert execute.execute(spec, lambda _: _spin(0.05), call, None, 7, 1, PLACE)[2] >= 0.05


def _spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_the_task_knows_itself():
    assert run(lambda: context.current_task) == (Outcome.DONE, TaskContext(7, 2, "app", 3, "nid00012"))
    assert run(lambda: str(context.current_task)) == (Outcome.DONE, "task 7 (app)")


def test_the_needs_fill_their_places():
    class Future:
        def __reduce__(self):
            return payloads.place_for(self)

    assert run(lambda x, y: x + y["k"][0], 1, {"k": [Future()]}, values=[payloads.dump(41)]) == (Outcome.DONE, 42)


def test_an_exception_comes_with_its_traceback():
    def divide():
        return 1 / 0

    error = failed(run(divide), ZeroDivisionError)
    text = error.__cause__.text
    assert text.startswith(f"{WHERE}:\nTraceback (most recent call last):\n")
    assert "in divide" in text
    assert "in execute" not in text


def test_wrong_arguments_are_the_functions_error():
    assert "unexpected keyword" in str(failed(run(lambda: 1, x=1), TypeError))


@pytest.mark.parametrize(
    ("code", "exitcode", "said"), [(3, 3, "code 3"), (None, 0, "code 0"), ("no input", 1, "code 1 (no input)"), (True, 1, "code")]
)
def test_sys_exit_is_a_failure(code, exitcode, said):
    error = failed(run(sys.exit, code), errors.TaskProcessDied)
    assert error.exitcode == exitcode
    assert (error.rank, error.node) == (3, "nid00012")
    assert str(error).startswith(f"{WHERE}, called sys.exit with exit {said}")

    def leave():
        sys.exit(code)

    assert "in leave" in failed(run(leave), errors.TaskProcessDied).__cause__.text


def test_base_exceptions_are_failures():
    def interrupted():
        raise KeyboardInterrupt

    failed(run(interrupted), KeyboardInterrupt)

    class Own(BaseException):
        pass

    def own():
        raise Own("x")

    assert "Own" in type(run(own)[1]).__name__


def test_deep_recursion_and_memory():
    def deep():
        return deep()

    failed(run(deep), RecursionError)
    failed(run(lambda: bytearray(1 << 60)), MemoryError)


def test_a_stopped_task_ends_the_process():
    def stopped():
        raise TaskStopped

    class Stopped:
        def __reduce__(self):
            raise TaskStopped

    with pytest.raises(TaskStopped):
        run(stopped)
    with pytest.raises(TaskStopped):
        run(Stopped)
    with pytest.raises(TaskStopped):
        run(lambda x: stopped(), [1], kind=Kind.MAP)
    assert context.current_task is None


def test_arguments_that_cannot_be_unpickled():
    class Evil:
        def __reduce__(self):
            return _not_here, ()

    error = failed(run(len, Evil()), errors.DeserializationError)
    assert str(error).startswith(f"{WHERE}: the arguments cannot be unpickled here: ImportError: not on this node")
    assert "in _not_here" in error.__cause__.text


def _not_here():
    raise ImportError("not on this node")


def test_an_error_of_ours_raised_by_the_function_is_left_as_it_is():
    def raises():
        raise errors.DeserializationError("mine")

    assert str(failed(run(raises), errors.DeserializationError)) == "mine"


def test_a_function_that_cannot_be_unpickled_fails_its_tasks():
    function = execute.open_function(b"cno_such_module\nf\n.")
    for kind in (Kind.PYTHON, Kind.BASH):
        error = failed(run(function, 1, kind=kind), errors.DeserializationError)
        assert str(error).startswith(
            f"{WHERE}: its function cannot be unpickled here (ModuleNotFoundError: No module named 'no_such"
        )
    outcome, (values, error, _) = run(function, [1, 2], kind=Kind.MAP)
    assert (outcome, values) == (Outcome.DONE, [])
    assert "task 7 (app), row 0, on rank 3 at nid00012, attempt 2: its function" in str(payloads.load(error))


def test_a_function_whose_module_exits():
    payload = payloads.dump_function(_Exits())[1]
    assert "SystemExit: 3" in str(failed(run(execute.open_function(payload)), errors.DeserializationError))


class _Exits:
    def __call__(self):
        pass

    def __reduce__(self):
        return sys.exit, (3,)


def test_a_function_is_opened():
    assert execute.open_function(payloads.dump_function(len)[1]) is len


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: threading.Lock(), "the value of type lock"),
        (lambda: {"a": [1, threading.Lock()]}, "the value['a'][1] of type lock"),
        (lambda: (x for x in ()), "the value of type generator"),
    ],
)
def test_a_value_that_cannot_be_pickled_is_named(make, said):
    error = failed(run(make), errors.SerializationError)
    assert str(error).startswith(f"{WHERE}: {said} cannot be pickled (")


def test_a_value_that_exits_when_pickled():
    class Exits:
        def __reduce__(self):
            sys.exit(4)

    assert "SystemExit: 4" in str(failed(run(Exits), errors.SerializationError))


def test_arrays():
    outcome, value = run(lambda a: a * 2, np.arange(100_000))
    assert outcome == Outcome.DONE
    assert np.array_equal(value, 2 * np.arange(100_000))


# ---- many rows ------------------------------------------------------------------------------------------------


def run_rows(function, *args, **kwargs):
    outcome, (values, error, seconds) = run(function, *args, kind=Kind.MAP, **kwargs)
    assert outcome == Outcome.DONE
    assert seconds >= 0
    return values, error if error is None else payloads.load(error)


def test_rows():
    assert run_rows(lambda x, y: x + y, range(5), [10, 20, 30, 40, 50]) == ([10, 21, 32, 43, 54], None)
    assert run_rows(lambda x, k: x * k, range(3), k=2) == ([0, 2, 4], None)
    assert run_rows(lambda x: x, []) == ([], None)


def test_the_first_row_that_fails_ends_it():
    seen = []

    def inverse(x):
        seen.append(x)
        return 1 / x

    values, error = run_rows(inverse, [1, 2, 0, 4])
    assert values == [1.0, 0.5]
    assert seen == [1, 2, 0]
    assert type(error) is ZeroDivisionError
    assert error.__cause__.text.startswith("task 7 (app), row 2, on rank 3 at nid00012, attempt 2:\nTraceback")
    assert "_run_rows" not in error.__cause__.text


def test_a_row_that_exits():
    values, error = run_rows(sys.exit, [3])
    assert values == []
    assert type(error) is errors.TaskProcessDied


def test_rows_of_unequal_columns():
    values, error = run_rows(lambda x, y: x, [1, 2], [1])
    assert values == [1]
    assert type(error) is ValueError


@pytest.mark.parametrize("bad", [0, 3, 9])
def test_rows_that_cannot_be_pickled(bad):
    values, error = run_rows(lambda i: {"lock": threading.Lock()} if i >= bad else i, range(10))
    assert values == list(range(bad))
    assert type(error) is errors.SerializationError
    assert f"row {bad}, on rank 3" in str(error)
    assert "the value['lock'] of type lock" in str(error)


def test_a_large_error_of_a_row():
    def fail(x):
        raise ValueError("x" * 100_000)

    assert len(str(run_rows(fail, [1])[1])) == 100_000


# ---- what surrounds a call ------------------------------------------------------------------------------------


@contextlib.contextmanager
def plain_output():
    """sys.stdout and sys.stderr over descriptors 1 and 2, as in a task process."""
    with open(1, "w", closefd=False) as out, open(2, "w", closefd=False) as err:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield


def chatter():
    print("printed")
    os.write(1, b"written\n")
    subprocess.run(["bash", "-c", "echo from bash; echo complaint >&2"], check=True)
    print("end", end="")
    print("error", file=sys.stderr)


def test_output_goes_to_files(tmp_path, capfd):
    out, err = tmp_path / "deep" / "er" / "out", tmp_path / "err"
    options = {"stdout": (str(out), "w"), "stderr": (str(err), "a")}
    err.write_text("before\n")
    with plain_output():
        assert run(chatter, options=options) == (Outcome.DONE, None)
        print("after")
    assert sorted(out.read_text().split("\n")) == ["end", "from bash", "printed", "written"]
    assert err.read_text() == "before\ncomplaint\nerror\n"
    assert capfd.readouterr() == ("after\n", "")


def test_output_comes_back_after_a_failure(tmp_path, capfd):
    def fail():
        print("told")
        raise ValueError

    with plain_output():
        failed(run(fail, options={"stdout": (str(tmp_path / "out"), "w")}), ValueError)
    assert (tmp_path / "out").read_text() == "told\n"
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"


def test_one_file_for_both_streams(tmp_path):
    spec = (str(tmp_path / "both"), "w")
    with plain_output():
        assert run(chatter, options={"stdout": spec, "stderr": spec})[0] == Outcome.DONE
    assert sorted((tmp_path / "both").read_text().split("\n"))[:3] == ["", "complaint", "enderror"]
    assert run_bash("echo one; echo two >&2; echo three", {"stdout": spec, "stderr": spec})[0] == Outcome.DONE
    assert (tmp_path / "both").read_text() == "one\ntwo\nthree\n"


@pytest.mark.parametrize("kind", [Kind.PYTHON, Kind.BASH, Kind.MAP])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("path", "mode"), [("{tmp}/file/below", "w"), ("{tmp}", "a"), ("{tmp}/new", "z"), ("{tmp}/file", "r"), ("", "w")]
)
def test_a_stream_that_cannot_be_opened_is_named(tmp_path, kind, name, path, mode):
    (tmp_path / "file").write_text("")
    path = path.format(tmp=tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    error = failed(run(lambda: "true", kind=kind, options={name: (path, mode)}), errors.BadStdStreamFile)
    assert error.reason.startswith(f"{WHERE}: {name}={path!r} cannot be opened with mode {mode!r}: ")
    assert len(os.listdir("/proc/self/fd")) <= before  # garbage of before may be closed meanwhile


def test_cwd(tmp_path):
    here = os.getcwd()
    assert run(os.getcwd, options={"cwd": str(tmp_path)}) == (Outcome.DONE, str(tmp_path))
    assert os.getcwd() == here
    assert run_bash("pwd > out", {"cwd": str(tmp_path), "outputs": ["out"]})[0] == Outcome.DONE
    assert (tmp_path / "out").read_text() == f"{tmp_path}\n"
    assert run(lambda: os.chdir("/"), options={"cwd": str(tmp_path)})[0] == Outcome.DONE
    assert os.getcwd() == here
    run_bash("echo x", {"cwd": str(tmp_path), "stdout": ("relative", "w")})
    assert (tmp_path / "relative").read_text() == "x\n"


def test_directories_of_outputs_are_made(tmp_path):
    made = tmp_path / "a" / "b"
    assert run(os.path.isdir, str(made), options={"directories": [str(made)]}) == (Outcome.DONE, True)
    assert run_bash(f"echo x > {made}/out", {"directories": [str(made)], "outputs": [f"{made}/out"]}) == (Outcome.DONE, 0)


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A directory of this node, and a file that is to be copied there."""
    monkeypatch.setattr(arrivals, "directory", str(tmp_path / "node"))
    (tmp_path / "a.txt").write_text("content")
    return tmp_path / "node"


def test_files_are_on_the_node_when_the_function_is_called(node, tmp_path):
    arriving = arrivals.Arriving(File("http://host/a.txt"), str(tmp_path / "a.txt"))
    outcome, (content, path) = run(lambda file: (open(file).read(), file.filepath), arriving)
    assert (outcome, content) == (Outcome.DONE, "content")
    assert path.startswith(f"{node}/") and path.endswith("/a.txt")


def test_a_file_that_does_not_come_fails_the_attempt(node, tmp_path):
    ran = []
    error = failed(run(ran.append, arrivals.Arriving(File("http://host/b.txt"), str(tmp_path / "none"))), errors.TransferError)
    assert str(error).startswith("task 7 (app) on rank 3 at nid00012: http://host/b.txt cannot be fetched to ")
    assert ran == []


def test_files_of_a_call_that_cannot_be_opened_are_forgotten(node, tmp_path):
    class Bad:
        def __reduce__(self):
            return int, ("x",)

    arriving = arrivals.Arriving(File("http://host/b.txt"), str(tmp_path / "none"))
    failed(run(lambda *_: None, arriving, Bad()), errors.DeserializationError)
    assert run(lambda: 1) == (Outcome.DONE, 1)


def test_a_cwd_that_is_not_there(tmp_path):
    here = os.getcwd()
    error = failed(run(os.getcwd, options={"cwd": str(tmp_path / "no")}), errors.ConfigError)
    assert str(error).startswith(f"{WHERE}: cwd={str(tmp_path / 'no')!r} cannot be entered (No such file")
    assert os.getcwd() == here


def test_env(monkeypatch):
    monkeypatch.setenv("EXEX_TEST_OLD", "old")

    def look():
        seen = (os.environ["EXEX_TEST_OLD"], os.environ["EXEX_TEST_NEW"])
        del os.environ["EXEX_TEST_NEW"]
        return seen

    options = {"env": {"EXEX_TEST_OLD": "changed", "EXEX_TEST_NEW": "made"}}
    assert run(look, options=options) == (Outcome.DONE, ("changed", "made"))
    assert run_bash('test "$EXEX_TEST_OLD$EXEX_TEST_NEW" = changedmade', options)[0] == Outcome.DONE
    assert os.environ["EXEX_TEST_OLD"] == "old"
    assert "EXEX_TEST_NEW" not in os.environ


def test_an_env_that_is_none():
    failed(run(os.getcwd, options={"env": {"EXEX_TEST_NEW": 3}}), TypeError)
    assert "EXEX_TEST_NEW" not in os.environ


# ---- bash -----------------------------------------------------------------------------------------------------


def test_bash_gives_its_exit_code(tmp_path):
    assert run_bash(f"echo hello > {tmp_path}/out") == (Outcome.DONE, 0)
    assert (tmp_path / "out").read_text() == "hello\n"


def test_the_function_gets_the_arguments(tmp_path):
    assert run(lambda a, b: f"echo {a} {b} > {tmp_path}/out", 1, b="x", kind=Kind.BASH) == (Outcome.DONE, 0)
    assert (tmp_path / "out").read_text() == "1 x\n"


def test_bash_knows_its_task(tmp_path):
    out = str(tmp_path / "out")
    run_bash('echo "$EXEX_TASK_ID $EXEX_ATTEMPT $EXEX_RANK $EXEX_NODE"', {"stdout": (out, "w")})
    assert (tmp_path / "out").read_text() == "7 2 3 nid00012\n"


@pytest.mark.parametrize(("command", "exitcode"), [("exit 3", 3), ("no-such-command", 127), ("kill -9 $$", -9), ("if", 2)])
def test_another_exit_code_is_a_failure(command, exitcode, capfd):
    error = failed(run_bash(command), errors.BashExitFailure)
    assert error.exitcode == exitcode
    assert error.app_name == "app"
    assert f"({WHERE}; command: {command})" in str(error)


@pytest.mark.parametrize("pidfd", [True, False])
def test_the_end_of_stderr_is_quoted_and_all_of_it_passed_on(capfd, monkeypatch, pidfd):
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    command = "for ((i = 0; i < 20000; i++)); do echo line $i; done >&2; exit 4"
    error = failed(run_bash(command), errors.BashExitFailure)
    assert len(error.stderr_tail) == bash.TAIL_BYTES
    assert error.stderr_tail.endswith("line 19998\nline 19999\n")
    assert str(error).endswith(f"its stderr ends:\n{error.stderr_tail}")
    assert capfd.readouterr().err == "".join(f"line {i}\n" for i in range(20000))


@pytest.mark.parametrize("mode", ["w", "a"])
def test_the_end_of_a_stderr_file_is_quoted_with_its_path(tmp_path, mode):
    path = tmp_path / "err"
    path.write_text("of another task\n")
    options = {"stderr": (str(path), mode), "stdout": (str(tmp_path / "out"), "w")}
    error = failed(run_bash("echo broken >&2; exit 1", options), errors.BashExitFailure)
    assert error.stderr_tail == "broken\n"
    assert f"stdout: {tmp_path}/out; stderr: {path}" in str(error)
    assert path.read_text() == ("of another task\n" if mode == "a" else "") + "broken\n"


def test_a_long_command_is_quoted_in_part(capfd):
    text = str(failed(run_bash(f"false {'x' * 1000}"), errors.BashExitFailure))
    assert f"command: false {'x' * 194} ...)" in text


@pytest.mark.parametrize("value", [None, 3, b"true", ["true"]])
def test_a_function_that_returns_no_command_line(value):
    error = failed(run_bash(value), errors.BashAppNoReturn)
    assert "bash_app app" in error.reason
    assert ("None" if value is None else type(value).__name__) in error.reason


@pytest.mark.parametrize("template", ["{1}", "{0.no_such}"])
def test_a_command_line_that_cannot_be_formatted(template):
    error = failed(run(lambda: template.format("a"), kind=Kind.BASH), errors.AppBadFormatting)
    assert "the command line of bash_app app cannot be formatted" in str(error)
    assert "direct cause" in error.__cause__.text


def test_other_errors_of_the_function_are_its_own():
    failed(run(lambda: 1 / 0, kind=Kind.BASH), ZeroDivisionError)
    failed(run(sys.exit, 3, kind=Kind.BASH), errors.TaskProcessDied)


def test_outputs_must_exist(tmp_path):
    there, missing = str(tmp_path / "there"), str(tmp_path / "missing")
    assert run_bash(f"touch {there}", {"outputs": [there]}) == (Outcome.DONE, 0)
    error = failed(run_bash("true", {"outputs": [there, missing]}), errors.MissingOutputs)
    assert error.outputs == [missing]
    assert WHERE in error.reason
    failed(run_bash("exit 1", {"outputs": [missing]}), errors.BashExitFailure)


def test_no_bash(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    error = failed(run_bash("true"), errors.AppException)
    assert str(error) == f"{WHERE}: there is no bash in PATH={tmp_path}"


def test_a_command_that_is_too_long_for_the_kernel():
    error = failed(run_bash("true " + "x" * 200_000), errors.AppException)
    assert "bash cannot be started for a command of 200005 characters" in str(error)
    assert "put long scripts into a file" in str(error)
    failed(run_bash("true \0"), errors.AppException)


def test_bash_starts_with_default_signals_an_empty_stdin_and_a_group_of_its_own(tmp_path):
    out = str(tmp_path / "out")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        command = "read line; echo [$line]; grep SigIgn /proc/$$/status; ps -o pgid=,sid= $$; echo $$"
        assert run_bash(command, {"stdout": (out, "w")})[0] == Outcome.DONE
    finally:
        signal.signal(signal.SIGTERM, before)
    line, ignored, ids, pid = (tmp_path / "out").read_text().splitlines()
    assert line == "[]"
    mask = int(ignored.split()[1], 16)
    assert not any(mask >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2))
    assert ids.split() == [pid, str(os.getsid(0))]


@pytest.mark.parametrize("pidfd", [True, False])
@pytest.mark.parametrize("to_file", [True, False])
def test_what_it_leaves_in_the_background_is_not_waited_for(tmp_path, monkeypatch, capfd, pidfd, to_file):
    """The one left behind holds stderr open, and may go on writing there."""
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    fifo, pid_file = str(tmp_path / "fifo"), tmp_path / "pid"
    os.mkfifo(fifo)
    command = f"(read line < {fifo}; echo still here >&2) & echo $! > {pid_file}; echo early >&2; exit 5"
    options = {"stderr": (str(tmp_path / "err"), "w")} if to_file else None
    others = set(threading.enumerate())
    error = failed(run_bash(command, options), errors.BashExitFailure)
    assert error.stderr_tail == "early\n"
    pid = int(pid_file.read_text())
    monkeypatch.undo()
    left = os.pidfd_open(pid)
    with open(fifo, "w") as release:
        release.write("go\n")
    poll = select.poll()
    poll.register(left, select.POLLIN)
    assert poll.poll(10_000)
    os.close(left)
    for thread in set(threading.enumerate()) - others:
        thread.join(10)
    told = (tmp_path / "err").read_text() if to_file else capfd.readouterr().err
    assert told == "early\nstill here\n"


def test_a_flood_in_the_background_does_not_hide_the_end(monkeypatch):
    null = os.open(os.devnull, os.O_WRONLY)
    saved = os.dup(2)
    os.dup2(null, 2)
    try:
        assert run_bash("yes 1>&2 & echo $! > /dev/null; exec 1>&2; sleep 0.05; kill $!") == (Outcome.DONE, 0)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def test_a_bash_that_closes_its_stderr():
    assert run_bash("exec 2>&-; sleep 0.02; exit 0") == (Outcome.DONE, 0)


@pytest.mark.parametrize("to_file", [True, False])
def test_a_stopped_bash_may_clean_up(tmp_path, to_file, monkeypatch):
    """The template sends SIGTERM to bash and the stop signal to us; we wait until bash has done what its trap says."""
    fifo, done = str(tmp_path / "fifo"), tmp_path / "done"
    os.mkfifo(fifo)

    def signal_both():
        with open(fifo) as started:
            pid = int(started.read())
        os.kill(pid, signal.SIGTERM)
        os.kill(os.getpid(), STOP_SIGNAL)

    monkeypatch.setattr(bash, "stop", Stop())  # as in a task process: it raises nothing before bash can be waited for
    before = signal.signal(STOP_SIGNAL, bash.stop.on_signal)
    thread = threading.Thread(target=signal_both)
    thread.start()
    options = {"stderr": (str(tmp_path / "err"), "w")} if to_file else None
    try:
        with pytest.raises(TaskStopped):
            run_bash(f"trap 'sleep 0.1; touch {done}; exit 1' TERM; echo $$ > {fifo}; while :; do sleep 0.01; done", options)
    finally:
        thread.join()
        signal.signal(STOP_SIGNAL, before)
    assert done.exists()


def test_descriptors_are_released(capfd):
    before = len(os.listdir("/proc/self/fd"))
    for command, options in itertools.product(("true", "exit 1", "echo x >&2"), (None, {"stderr": (os.devnull, "w")})):
        run_bash(command, options)
    assert len(os.listdir("/proc/self/fd")) <= before  # garbage of before may be closed meanwhile
