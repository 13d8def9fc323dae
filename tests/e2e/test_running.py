"""Starting, ending and dying: exit statuses, Ctrl-C, crashes, wrong starts, nothing left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.launch import ROOT, Launch

MARK = "MARK_OF_THIS_TEST"


@pytest.fixture
def mark() -> Iterator[str]:
    """A variable that every process of the test's job inherits; none may be left at the end."""
    value = uuid.uuid4().hex
    yield value
    until = time.monotonic() + 10
    while left := marked(value):
        assert time.monotonic() < until, f"left behind: {[(p.pid, p.status(), p.cmdline()) for p in left]}"
        time.sleep(0.02)


def marked(value: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


STATUSES = {
    "pass": 0,
    "import sys; sys.exit(0)": 0,
    "import sys; sys.exit(7)": 7,
    "import sys; sys.exit('words')": 1,
    "raise ValueError('boom')": 1,
    "import os; os._exit(9)": 9,
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": 137,
    "raise KeyboardInterrupt": 130,
}


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(("script", "status"), STATUSES.items(), ids=[str(s) for s in STATUSES.values()])
def test_the_scripts_status_is_the_jobs(launch: Launch, mark: str, ranks: int, script: str, status: int) -> None:
    (launch.cwd / "status").mkdir()
    work = "from exex import python_app\n@python_app\ndef f(x): return x\nassert f(1).result() == 1\n"
    done = launch.workflow(ranks, work + script, **{MARK: mark, "EXEX_JOB_DIR": str(launch.cwd / "status")})
    assert int((launch.cwd / "status" / "status").read_text()) == status, done.err
    assert done.status == 0, "a launcher need not complain of what `exex run` reads from the file"
    if "boom" in script:
        assert done.err.count("ValueError: boom") == 1 and "workflow.py" in done.err
        assert "exex/" not in done.err, done.err


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("status", [0, 1, 7])
def test_without_exex_run_the_launcher_hands_the_status_on(launch: Launch, mark: str, ranks: int, status: int) -> None:
    assert launch.workflow(ranks, f"import sys; sys.exit({status})", **{MARK: mark}).status == status


def test_arguments_of_the_script_are_untouched(launch: Launch) -> None:
    script = "import sys; print(sys.argv[1:], __name__, __file__.endswith('workflow.py'))"
    done = launch.workflow(2, script, "--slots", "x", "-n", "--", "a b")
    assert done.out == "['--slots', 'x', '-n', '--', 'a b'] __main__ True\n", done.err


def test_tasks_still_running_when_the_script_ends_are_finished(launch: Launch, mark: str) -> None:
    script = """
from exex import python_app
@python_app
def late(x, name):
    import time
    time.sleep(0.3)
    open(name, "w").close()
late(late(0, "one"), "two")
"""
    done = launch.workflow(3, script, **{MARK: mark})
    assert done.status == 0, done.err
    assert (launch.cwd / "two").exists()


def test_failures_nobody_looked_at_are_told(launch: Launch) -> None:
    script = "from exex import python_app\n@python_app\ndef f(): raise ValueError('unseen')\nf()\n"
    done = launch.workflow(2, script)
    assert done.status == 0
    assert "1 task failed" in done.err and "task 0 (f)" in done.err and "unseen" in done.err


def test_a_script_that_raises_amid_many_tasks(launch: Launch, mark: str) -> None:
    script = """
from exex import python_app
@python_app
def f(x): return x
futures = [f(i) for i in range(100_000)]
futures[5].result()
raise RuntimeError("enough")
"""
    done = launch.workflow(3, script, **{MARK: mark})
    assert done.status == 1 and done.err.count("RuntimeError: enough") == 1


CRASHES = {
    "os.kill(os.getpid(), signal.SIGSEGV)": ("SIGSEGV", -11),
    "os.kill(os.getpid(), signal.SIGKILL)": ("SIGKILL", -9),
    "os._exit(5)": ("exit code 5", 5),
    "sys.exit(6)": ("sys.exit", 6),
}


@pytest.mark.parametrize(("crash", "told"), CRASHES.items(), ids=list(CRASHES))
def test_a_task_process_that_dies_costs_one_attempt(launch: Launch, mark: str, crash: str, told: tuple[str, int]) -> None:
    script = f"""
import exex, socket
from exex import python_app
@python_app
def bad(x):
    import os, signal, sys
    print("last words", file=sys.stderr, flush=True)
    {crash}
@python_app
def good(x): return x
before = [good(i) for i in range(50)]
failed = bad(0)
after = [good(i) for i in range(50)]
assert [f.result() for f in before + after] == [*range(50), *range(50)]
error = failed.exception()
assert isinstance(error, exex.TaskProcessDied), repr(error)
assert error.exitcode == {told[1]}, error.exitcode
assert {told[0]!r} in str(error) and socket.gethostname() in str(error), error
if "sys.exit" not in {crash!r}:
    assert "last words" in str(error), error
assert isinstance(good(failed).exception(), exex.DependencyError)
print("fine")
"""
    done = launch.workflow(3, script, **{MARK: mark})
    assert done.status == 0 and done.out.endswith("fine\n"), done.err


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_template_that_dies_is_replaced(launch: Launch, mark: str, ranks: int) -> None:
    script = """
import os, signal
from exex import python_app
@python_app(retries=1)
def template(x):
    import os
    with open(f"/proc/{os.getppid()}/stat") as file:  # of the keeper
        return int(file.read().rpartition(")")[2].split()[1])
first = template(0).result()
os.kill(first, signal.SIGKILL)
futures = [template(i) for i in range(100)]
assert {f.result() for f in futures} - {first}
print("fine")
"""
    done = launch.workflow(ranks, script, **{MARK: mark})
    assert done.status == 0 and done.out == "fine\n", done.err
    assert "starts another template" in done.err


LONG = """
import sys, time
from exex import python_app, bash_app
@python_app
def sleep(s):
    import time
    time.sleep(s)
@bash_app
def shell():
    return "sleep 100 & sleep 100"
futures = [sleep(100), shell(), sleep(0)]
futures[2].result() if {wait} else None
print("started", flush=True)
sleep(100).result()
"""


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_ends_the_job(launch: Launch, mark: str, number: int, ranks: int) -> None:
    path = launch.cwd / "workflow.py"
    path.write_text(LONG.format(wait=True))
    (launch.cwd / "status").mkdir()
    argv = launch.argv(ranks, "-m", "exex.run", "--slots", "3", "--notice-s", "1", str(path))
    if ranks == 1:
        argv = argv[3:]
    process = launch.start(argv, **{MARK: mark, "EXEX_JOB_DIR": str(launch.cwd / "status")})
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    done = launch.finish(process, 30)
    if ranks == 1 or launch.family == "mpich":
        status = int((launch.cwd / "status" / "status").read_text())
        assert status == (75 if number == signal.SIGTERM else 130), done.err  # SIGTERM is notice of the end
    else:
        assert done.status != 0


def test_signals_that_a_batch_system_sends_to_all_processes_are_for_the_guard(launch: Launch, mark: str) -> None:
    """The script and running tasks survive them; what the script starts has the usual dispositions."""
    script = """
import multiprocessing, os, signal, subprocess, time
from exex import python_app
NOTICES = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
@python_app
def survive(numbers):
    import os
    for number in numbers:
        os.kill(os.getpid(), number)
        os.kill(os.getppid(), number)
    return "alive"
for number in NOTICES:
    os.kill(os.getpid(), number)
    started = subprocess.Popen(["sleep", "100"]), multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,))
    started[1].start()
    for pid in (started[0].pid, started[1].pid):
        os.kill(pid, number)
    started[1].join()
    assert (started[0].wait(), started[1].exitcode) == (-number, -number)
print(survive(NOTICES).result())
"""
    done = launch.workflow(2, script, **{MARK: mark})
    assert (done.status, done.out) == (0, "alive\n"), done.err


def test_killed_guards_leave_nobody_behind(launch: Launch, mark: str) -> None:
    """As launchers end a job: SIGKILL to what they started, while tasks have started programs in sessions of their own."""
    path = launch.cwd / "workflow.py"
    path.write_text("import exex\nprint(exex.manager_pid(), flush=True)\n" + LONG.format(wait=True))
    process = launch.start(launch.argv(3, "-m", "exex.run", "--slots", "3", str(path)), **{MARK: mark})
    assert process.stdout is not None
    guard = psutil.Process(int(process.stdout.readline())).parent()
    assert guard is not None and guard.parent() is not None
    assert process.stdout.readline() == "started\n"
    for other in guard.parent().children():
        other.kill()
    assert launch.finish(process, 30).status != 0


def exex_run(launch: Launch, *words: str) -> list[str]:
    return [sys.executable, "-c", "from exex.cli import main; main()", "run", *words]


def test_exex_run_passes_input_output_and_status(launch: Launch, mark: str) -> None:
    path = launch.cwd / "workflow.py"
    path.write_text(
        "import sys\nfrom exex import python_app\n@python_app\ndef f(x): return x.upper()\n"
        "print(f(sys.stdin.read()).result(), sys.argv[1:])\nsys.exit(7)\n"
    )
    process = launch.start(exex_run(launch, "-n", "2", str(path), "-n", "x"), stdin=True, **{MARK: mark})
    assert process.stdin is not None
    process.stdin.write("some words")
    process.stdin.close()
    process.stdin = None
    done = launch.finish(process)
    assert (done.status, done.out, done.err) == (7, "SOME WORDS ['-n', 'x']\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_exex_run_ends_the_job(launch: Launch, mark: str, number: int) -> None:
    path = launch.cwd / "workflow.py"
    path.write_text(LONG.format(wait=True))
    process = launch.start(exex_run(launch, "-n", "2", "--slots", "2", str(path)), **{MARK: mark})
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    process.send_signal(number)
    done = launch.finish(process, 30)
    assert done.status == 128 + number, done.err
    assert "Traceback" not in done.err


def test_ctrl_c_before_the_script_has_its_terminal(launch: Launch, mark: str) -> None:
    """`exex run` does not know the client yet: it tells the launcher, whose SIGTERM is no notice then."""
    path = launch.cwd / "workflow.py"
    path.write_text("print('must not run')")
    (launch.cwd / "sitecustomize.py").write_text(
        "import sys, time\n"
        "import exex.launch.lent as lent\n"
        f"if 'exex.run' in sys.orig_argv:\n"
        f"    lent.take_stdio = lambda env: (open({str(launch.cwd / 'begun')!r}, 'w').close(), time.sleep(100))\n"
    )
    process = launch.start(exex_run(launch, "-n", "2", str(path)), **{MARK: mark, "PYTHONPATH": f"{launch.cwd}:{ROOT}"})
    until = time.monotonic() + 60
    while not (launch.cwd / "begun").exists() and time.monotonic() < until:
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    done = launch.finish(process, 30)
    assert done.status == 130, done.err
    assert "must not run" not in done.out and time.monotonic() - began < 15


def test_no_job_one_sentence(tmp_path: Path) -> None:
    import subprocess

    script = "from exex import python_app\n@python_app\ndef f(): pass\nf()\n"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 1
    assert "NoManagerError" in done.stderr and "exex run" in done.stderr.splitlines()[-1]


def test_silent_singletons_are_recognised(launch: Launch, mark: str) -> None:
    """As if srun had been started without --mpi: the launcher's variables say 3, MPI says 1."""
    path = launch.cwd / "workflow.py"
    path.write_text("print('must not run')")
    argv = [sys.executable, "-m", "exex.run", str(path)]
    done = launch.finish(launch.start(argv, **{MARK: mark, "SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "3"}))
    assert done.status == 1 and "must not run" not in done.out
    assert "--mpi=" in done.err, done.err


def test_a_rank_that_runs_another_version_is_named(launch: Launch, mark: str) -> None:
    other = launch.cwd / "sitecustomize.py"
    other.write_text(
        "import os\nif os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')) == '2':\n"
        "    import exex.version\n    exex.version.__version__ = '9.9'\n"
    )
    done = launch.workflow(3, "print('must not run')", **{MARK: mark, "PYTHONPATH": f"{launch.cwd}:{ROOT}"})
    assert done.status != 0 and "must not run" not in done.out
    assert "rank 2 at " in done.err and "9.9" in done.err, done.err


def test_a_rank_that_cannot_preload_is_named(launch: Launch, mark: str) -> None:
    done = launch.workflow(3, "print('must not run')", options=("--preload", "no_such_module"), **{MARK: mark})
    assert done.status != 0 and "must not run" not in done.out
    assert "no_such_module" in done.err and "rank " in done.err, done.err


def test_a_rank_that_cannot_import_is_named(launch: Launch, mark: str) -> None:
    (launch.cwd / "sitecustomize.py").write_text(
        "import os, sys\nif os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')) == '1':\n    sys.modules['msgspec'] = None\n"
    )
    done = launch.workflow(3, "print('must not run')", **{MARK: mark, "PYTHONPATH": f"{launch.cwd}:{ROOT}"})
    assert done.status != 0 and "must not run" not in done.out
    assert "rank 1 at " in done.err and "msgspec" in done.err, done.err


def test_a_rank_that_never_arrives_is_given_up(launch: Launch, mark: str) -> None:
    (launch.cwd / "sitecustomize.py").write_text(
        "import os, sys, time\nif os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')) == '1':\n    time.sleep(600)\n"
    )
    done = launch.workflow(
        3, "print('must not run')", options=("--start-timeout-s", "2"), **{MARK: mark, "PYTHONPATH": f"{launch.cwd}:{ROOT}"}
    )
    assert done.status != 0 and "must not run" not in done.out
    assert done.seconds < 30
    assert "did not come up within 2 s" in done.err, done.err


DYING = """
import os, signal, sys
from exex import python_app

@python_app
def note(i, need=None):
    import os, time
    time.sleep(0.01)
    fd = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"x")
    os.close(fd)

note(-1).result()
last = None
for i in range(100):
    last = note(i, last)
note(-2).result()  # so the manager has them all
{end}
"""


@pytest.mark.parametrize("end, status", [("os.kill(os.getpid(), signal.SIGKILL)", 137), ("raise ValueError", 1), ("sys.exit(3)", 3)])
@pytest.mark.parametrize("detach", [False, True])
def test_a_script_that_dies_takes_its_tasks_along_or_not(launch: Launch, mark: str, end: str, status: int, detach: bool) -> None:
    path = launch.cwd / "workflow.py"
    path.write_text(DYING.format(end=end))
    options = ["--detach-on-client-exit"] if detach else []
    done = launch.finish(launch.start(exex_run(launch, "-n", "2", *options, str(path)), **{MARK: mark}), 60)
    assert done.status == status, done.err
    ran = len((launch.cwd / "ran").read_text())
    assert ran == 102 if detach else ran < 102
