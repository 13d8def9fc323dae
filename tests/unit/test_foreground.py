"""A job in the foreground of `exex run`. Its launcher here is a small Python program, which is rank and client as well."""

import contextlib
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import pytest

from exex.errors import StartError
from exex.launch.foreground import run_world
from exex.launch.lent import take_stdio

ROOT = str(Path(__file__).resolve().parents[2])

EXEX_RUN = """
import os, sys
from exex.errors import StartError
from exex.launch import foreground
foreground._LAUNCHER_STOP_S = foreground._LEFT_BEHIND_S = 0.3
try:
    sys.exit(foreground.run_world([sys.executable, "-c", sys.argv[1]], os.environ, float(sys.argv[2])))
except StartError as error:
    sys.exit(f"StartError: {error}")
"""
BEGIN = """
import os, signal, sys
from exex.launch.lent import take_stdio
exex_run = os.getppid()
def end(status):
    with open(os.path.join(os.environ["EXEX_JOB_DIR"], "status"), "w") as file:
        print(status, file=file)
"""


def command(job, stop_timeout_s=30.0):
    return [sys.executable, "-c", EXEX_RUN, BEGIN + textwrap.dedent(job), str(stop_timeout_s)]


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(tmp_path)}


@pytest.fixture
def exex_run(environment, tmp_path):
    """Runs a job, `exex_run(job, ...)`; exit status, stdout and stderr. Nothing of it is left in the temporary directory."""

    def run(job, stop_timeout_s=30.0, **options):
        done = subprocess.run(
            command(job, stop_timeout_s), env=environment, capture_output=True, text=True, timeout=60, **options
        )
        assert list(tmp_path.iterdir()) == []
        return done.returncode, done.stdout, done.stderr

    return run


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    "job, status, launcher_ended",
    [
        ("end(3); sys.exit(0)", 3, None),
        ("end(0); sys.exit(9)", 0, None),
        ("end(0); os.kill(os.getpid(), signal.SIGKILL)", 0, None),
        ("sys.exit(5)", 5, "exit status 5"),
        ("sys.exit(0)", 1, "exit status 0"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "SIGKILL"),
        ("end('?'); sys.exit(7)", 7, "exit status 7"),
    ],
)
def test_the_status_is_the_jobs_own(exex_run, job, status, launcher_ended):
    says = f"exex run: the job ended without a status of its own; {sys.executable} ended with {launcher_ended}\n"
    assert exex_run(job) == (status, "", says if launcher_ended else "")


def test_a_launcher_that_cannot_be_run(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(StartError, match="cannot run /no/mpiexec: No such file or directory"):
        run_world(["/no/mpiexec"], {})
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_client_has_our_stdio_though_the_launcher_has_none(exex_run):
    job = """
        print("launcher reads", repr(sys.stdin.read()), flush=True)
        sys.stdin = open(0, closefd=False)
        taken = take_stdio(os.environ)
        print("client reads", len(sys.stdin.read()), taken)
        print("and complains", file=sys.stderr)
        end(0)
    """
    text = "x" * 200_000  # three times what a pipe holds
    assert exex_run(job, input=text) == (0, "launcher reads ''\nclient reads 200000 True\n", "and complains\n")


def test_closed_stdio_is_dev_null(exex_run):
    job = "take_stdio(os.environ); print(repr(open(0, closefd=False).read())); end(0)"
    assert exex_run(job, preexec_fn=lambda: os.close(0)) == (0, "''\n", "")


def test_without_exex_run_stdio_stays(monkeypatch, tmp_path):
    assert take_stdio({}) is False
    assert take_stdio({"EXEX_JOB_DIR": str(tmp_path)}) is False


def test_the_job_directory_is_private(exex_run, tmp_path):
    status, out, _ = exex_run('print(os.environ["EXEX_JOB_DIR"], oct(os.stat(os.environ["EXEX_JOB_DIR"]).st_mode)); end(0)')
    path, mode = out.split()
    assert status == 0 and os.path.dirname(path) == str(tmp_path)
    assert int(mode, 8) == stat.S_IFDIR | 0o700


def test_a_long_path_of_the_temporary_directory(environment, tmp_path):
    long = tmp_path / ("d" * 100)
    long.mkdir()
    done = subprocess.run(
        command("take_stdio(os.environ); print('in'); end(0)"),
        env=environment | {"TMPDIR": str(long)},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, b"in\n")


def test_the_first_interrupt_goes_to_the_client_alone(exex_run):
    job = """
        take_stdio(os.environ)
        try:
            os.kill(exex_run, signal.SIGINT)
            signal.pause()
        except KeyboardInterrupt:
            end(42)
    """
    assert exex_run(job) == (42, "", "")


def test_the_second_interrupt_ends_the_client(exex_run):
    job = """
        take_stdio(os.environ)
        signal.signal(signal.SIGINT, lambda *_: os.kill(exex_run, signal.SIGINT))
        signal.signal(signal.SIGTERM, lambda *_: (end(7), sys.exit()))
        os.kill(exex_run, signal.SIGINT)
        while True:
            signal.pause()
    """
    assert exex_run(job) == (7, "", "exex run: ending the job; interrupt again to end it at once\n")


def test_before_there_is_a_client_an_interrupt_ends_the_launcher(exex_run):
    status, _, err = exex_run("os.kill(exex_run, signal.SIGINT)\nsignal.pause()")
    assert status == 130
    assert err.splitlines()[1].endswith("ended with SIGTERM")


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_sigterm_and_sighup_end_the_job(exex_run, number, status):
    job = f"take_stdio(os.environ)\nos.kill(exex_run, {int(number)})\nsignal.pause()"
    assert exex_run(job)[0] == status


def test_nohup_is_respected(exex_run):
    job = "take_stdio(os.environ)\nos.kill(exex_run, signal.SIGHUP)\nend(0)"
    assert exex_run(job, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) == (0, "", "")


STUBBORN = """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    take_stdio(os.environ)
"""


def test_who_does_not_end_in_time_is_killed(exex_run):
    status, _, err = exex_run(STUBBORN + "    os.kill(exex_run, signal.SIGTERM)\n    signal.pause()", 0.3)
    assert status == 143
    assert [line.partition(" ended with ")[2] or line for line in err.splitlines()] == [
        "exex run: ending the job; interrupt again to end it at once",
        "exex run: the job did not end within 0.3 s: stopping it",
        "SIGKILL",
    ]


def test_who_keeps_interrupting_waits_for_nothing(exex_run):
    job = """
        take_stdio(os.environ)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os.kill(exex_run, signal.SIGINT))
        os.kill(exex_run, signal.SIGINT)
        while True:
            signal.pause()
    """
    status, _, err = exex_run(job)
    assert status == 130
    assert [line.partition(" ended with ")[2] or line for line in err.splitlines()] == [
        "exex run: ending the job; interrupt again to end it at once",
        "exex run: stopping the job",
        "SIGKILL",
    ]


ORPHAN = """
    ready, started = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.write(started, b"%d" % os.getpid())
        signal.pause()
    print(os.read(ready, 20).decode(), flush=True)
"""


def test_no_process_is_left_behind(exex_run):
    status, out, err = exex_run(ORPHAN + "    end(0)")
    assert (status, err) == (0, "")
    assert is_gone(int(out))


def test_a_launcher_that_outlives_its_job_is_stopped(exex_run):
    job = (
        ORPHAN
        + """
    client = os.fork()
    if client == 0:
        take_stdio(os.environ)
        end(5)
        os._exit(0)
    os.waitpid(client, 0)
    signal.pause()
    """
    )
    status, out, err = exex_run(job, 0.2)
    assert (status, err) == (5, "exex run: the job did not end within 0.2 s: stopping it\n")
    assert is_gone(int(out))


def test_the_job_ends_if_exex_run_is_killed(environment):
    with subprocess.Popen(command("print('up', flush=True); signal.pause()"), env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.kill()
        assert process.stdout.read() == b""  # returns when the last process that could write has ended


def test_a_terminal(environment):
    """Typed lines and Ctrl-C reach the client alone, and the terminal's modes are restored."""
    job = """
        import termios
        signal.signal(signal.SIGINT, lambda *_: sys.exit("the launcher was interrupted"))
        client = os.fork()
        if client == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            take_stdio(os.environ)
            try:
                print("client got", input("? "))
                modes = termios.tcgetattr(0)
                modes[3] &= ~termios.ECHO
                termios.tcsetattr(0, termios.TCSANOW, modes)
                print("press")
                signal.pause()
            except KeyboardInterrupt:
                print("interrupted")
            os._exit(0)
        os.waitpid(client, 0)
        end(6)
    """
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(sys.executable, command(job), environment)
    echo_before = termios.tcgetattr(fd)[3] & termios.ECHO
    text = b""
    for until, typed in [(b"? ", b"hello\n"), (b"press", b"\x03"), (b"interrupted", b"")]:
        while until not in text:
            assert select.select([fd], [], [], 60)[0], text
            text += os.read(fd, 4096)
        os.write(fd, typed)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 6
    assert b"client got hello" in text and b"the launcher" not in text
    assert echo_before and termios.tcgetattr(fd)[3] & termios.ECHO
    with contextlib.suppress(OSError):
        os.close(fd)
