"""Clients of a job that listens: other processes, another network, the shell."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from exex import cli
from tests.launch import Launch

LIMIT_S = 60.0
ELSEWHERE = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$0" "$@"')
"""Runs a program that sees the files of this machine, and not its memory."""
FILE = "job.json"

ON_EVERY_LIBRARY = (
    "test_apps_executor_and_map_work_as_in_a_script",
    "test_large_values_and_arguments",
    "test_ctrl_c_ends_a_job_without_a_script_in_order",
)


class Job:
    """A world that listens, and programs that connect to it."""

    def __init__(self, launch: Launch, *options: str, script: str = "", ranks: int = 3, own: tuple[str, ...] = ()) -> None:
        self.launch = launch
        self.path = launch.cwd / FILE
        self.started = 0
        words = ["--connection-file", FILE, *options]
        if script:
            (launch.cwd / "workflow.py").write_text(script)
            words.append("workflow.py")
        self.process = launch.start([*own, *words] if own else launch.argv(ranks, "-m", "exex.run", *words))
        assert self.process.stderr is not None
        read = []
        while "clients are welcome at" not in (line := self.process.stderr.readline()):
            read.append(line)
            assert line, f"the job ended: {read}"

    def start(self, script: str, *args: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start a program that is a client, with `exex` and `connect(**more)` at hand."""
        self.started += 1
        path = self.launch.cwd / f"client{self.started}.py"
        path.write_text(f"import exex, os, sys, time\ndef connect(**more): return exex.connect({FILE!r}, **more)\n" + script)
        return self.launch.start([*before, sys.executable, str(path), *args])

    def client(self, script: str, *args: str, status: int = 0, before: tuple[str, ...] = ()) -> str:
        """Run such a program to its end; what it printed, on stderr if it must fail."""
        ended = self.launch.finish(self.start(script, *args, before=before), LIMIT_S)
        assert ended.status == status, (ended.out, ended.err)
        return ended.err if status else ended.out

    def exex(self, *words: str, status: int = 0) -> str:
        """Run an `exex` command, in this process, which is quicker; what it printed."""
        before = os.getcwd()
        os.chdir(self.launch.cwd)
        try:
            ended = CliRunner().invoke(cli.main, words)
        finally:
            os.chdir(before)
        assert ended.exit_code == status, (ended.stdout, ended.stderr, ended.exception)
        return ended.stderr if status else ended.stdout

    def until(self, holds: Callable[[str], bool]) -> str:
        """Ask for the clients until something is so."""
        give_up_s = time.monotonic() + LIMIT_S
        while not holds(table := self.exex("clients", FILE)):
            assert time.monotonic() < give_up_s, table
        return table

    def end(self, shutdown: bool) -> str:
        """See that it ends well, by order or by itself; what it printed."""
        if shutdown:
            self.exex("shutdown", FILE, "--cancel")
        ended = self.launch.finish(self.process, LIMIT_S)
        assert ended.status == 0, ended.err
        assert not self.path.exists(), "the connection file is left"
        return ended.out


@contextmanager
def running(launch: Launch, *options: str, **more) -> Iterator[Job]:
    job = Job(launch, *options, **more)
    try:
        yield job
        if job.process.returncode is None:
            job.end(shutdown=True)
    finally:
        if job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGTERM)
            job.process.communicate()


@pytest.fixture(autouse=True)
def library(request: pytest.FixtureRequest, launch: Launch) -> None:
    """Of most of this no MPI library takes notice."""
    if launch.family == "openmpi" and request.node.originalname not in ON_EVERY_LIBRARY:
        pytest.skip("the library has no part in it")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    with running(Launch(tmp_path_factory.mktemp("job")), "--listen", "127.0.0.1:0") as job:
        yield job


APPS = """
@exex.python_app
def inc(x): return x + 1
@exex.python_app
def nap(seconds): import time; time.sleep(seconds); return seconds
"""


def test_apps_executor_and_map_work_as_in_a_script(job: Job) -> None:
    out = job.client(
        APPS
        + """
class Mine:
    def __init__(self, x): self.x = x
def times(a, b): return a * b
@exex.python_app
def fails(mine): raise ValueError(mine.x)
with connect() as client:
    print(client.workers, client.slots, client.connected, client.futures())
    print(inc(inc(inc(1))).result(), sum(f.result() for f in [inc(i) for i in range(3000)]))
    with exex.Executor() as executor:
        print(list(executor.map(times, range(4), range(4))), executor.submit(times, b"x" * 3_000_000, 2).result() == b"x" * 6_000_000)
    try: fails(Mine(7)).result()
    except ValueError as error: print("raised", error)
    from exex.integrations.pool import Pool
    with Pool() as pool: print(pool.map(abs, range(-3, 1)))
print(client.connected)
try: inc(1)
except exex.NoManagerError as error: print("exex.connect(FILE)" in str(error))
with connect() as client:
    print(inc(41).result())
"""
    )
    assert out.splitlines() == ["2 2 True []", "4 4501500", "[0, 1, 4, 9] True", "raised 7", "[3, 2, 1, 0]", "False", "True", "42"]


def test_a_client_that_leaves_waits_for_its_tasks_unless_it_fails(job: Job) -> None:
    out = job.client(APPS + "connect(); f = nap(0.5); f.add_done_callback(lambda f: print('done', f.result()))")
    assert out == "done 0.5\n"
    job.client(APPS + "with connect():\n    nap(1000)\n    raise SystemExit(3)", status=3)
    assert "nap" not in job.until(lambda table: " 1 " not in table.partition("\n")[2])


def test_a_detached_client_is_found_again_by_its_name(job: Job) -> None:
    apps = APPS + """
@exex.python_app
def gated(x):
    import os, time
    while not os.path.exists('gate'): time.sleep(0.01)
    return x * 300_000 if isinstance(x, bytes) else x / 10
@exex.python_app
def total(x): return len(x)
"""
    job.client(
        apps
        + """
connect(name='ann', detach=True)
looked_at, other = inc(1), inc(2)
looked_at.result()
for i in [*range(4), 'x', b'y']: gated(i, tag=f'n{i}')
"""
    )
    out = job.client(
        apps
        + """
client = connect(name='ann', detach=True)
found = client.futures()
print([(f.tid, f.app_name, f.tag) for f in found][:3], len(found))
open('gate', 'w').close()
more = inc(found[2])
print([f.result() for f in found[:5]], type(found[5].exception()).__name__, more.tid, more.result())
print(total(found[6]).result())
"""
    )
    assert out.splitlines() == ["[(1, 'inc', ''), (2, 'gated', 'n0'), (3, 'gated', 'n1')] 7", "[3, 0.0, 0.1, 0.2, 0.3] TypeError 8 1.1", "300000"]
    assert "away" in job.exex("clients", FILE)
    out = job.client(
        "client = connect(name='ann', detach=True)\nprint([(f.tag, f.result() == b'y' * 300_000) for f in client.futures()])"
    )
    assert out == """[("nb'y'", True)]\n""", "a large value waits until somebody has looked at it"
    assert "ann" not in job.exex("clients", FILE), "everything is collected"
    assert job.client("print(connect(name='ann', detach=True).futures())") == "[]\n"


def test_a_name_belongs_to_one_client_at_a_time(job: Job) -> None:
    out = job.client(
        """
import subprocess
client = connect(name='only')
other = subprocess.run([sys.executable, '-c', f'import exex; exex.connect({sys.argv[1]!r}, name="only")'], capture_output=True, text=True)
print(other.returncode, f'a client named only is attached already (process {os.getpid()} on ' in other.stderr)
try: connect()
except exex.StartError as error: print('already' in str(error))
""",
        FILE,
    )
    assert out.splitlines() == ["1 True", "True"]


@pytest.mark.parametrize("where", ["on its node", "elsewhere"])
def test_large_values_and_arguments(job: Job, where: str) -> None:
    before: tuple[str, ...] = ()
    if where == "elsewhere":
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            pytest.skip("not to see the memory of rank 0's node takes root and `unshare`")
        before = ELSEWHERE
    out = job.client(
        """
import asyncio, exex.aio
@exex.python_app
def make(x, n): return bytes([x]) * n
@exex.python_app
def size(*values): return sum(map(len, values))
@exex.python_app
def item(shared, i): return shared[0][i]
async def wait(*futures): return await exex.aio.gather(*futures)
async def main():
    with connect(max_waiting_bytes=10_000_000):
        parts = [make(i, 1_000_000 + i) for i in range(4)]
        print(size(*parts).result(), [len(f.result()) for f in parts], size(b"x" * 3_000_000, parts[0]).result())
        shared = exex.broadcast([b"abc" * 200_000])
        print([chr(item(shared, i).result()) for i in range(3)], len(shared.value()[0]))
        values = await wait(make(7, 2_000_000), size(make(8, 500_000)))
        print(len(values[0]), values[1], await size(parts[1]))
asyncio.run(main())
""",
        before=before,
    )
    assert out.splitlines() == [
        "4000006 [1000000, 1000001, 1000002, 1000003] 4000000", "['a', 'b', 'c'] 600000", "2000000 500000 1000001",
    ]  # fmt: skip


def test_a_task_is_no_client(job: Job) -> None:
    out = job.client(
        """
@exex.python_app
def inside(file):
    import exex
    exex.connect(file)
with connect(): print(inside(sys.argv[1]).exception())
""",
        FILE,
    )
    assert "exex.connect was called inside task 0 (inside), which is a client of its own job: apps work there" in out, out


def test_clients_at_once_do_not_mix(job: Job) -> None:
    script = "with connect():\n    with exex.Executor() as e: print(sum(e.map(lambda i, k=int(sys.argv[1]): i * k, range(2000))))"
    processes = [job.start(script, str(number)) for number in range(4)]
    assert [job.launch.finish(process, LIMIT_S).out for process in processes] == [f"{number * 1999000}\n" for number in range(4)]


def test_calls_from_the_shell(job: Job) -> None:
    assert job.exex("submit-call", FILE, "math:hypot", "3", "4") == "5.0\n"
    assert job.exex("submit-call", FILE, "os.path:join", "a", "b c") == "a/b c\n"
    assert "raised ValueError" in job.exex("submit-call", FILE, "math:sqrt", "--", "-1", status=1)
    assert "module:function" in job.exex("submit-call", FILE, "sqrt", status=2)
    assert "needs --name" in job.exex("submit-call", FILE, "math:sqrt", "4", "--detach", status=2)
    assert job.exex("submit-call", FILE, "time:sleep", "1000", "--detach", "--name", "bob", "--tag", "nap") == "0\n"
    assert "bob" in job.until(lambda table: "away" in table)
    assert "no client eve" in job.exex("cancel", FILE, "--client", "eve", status=2)
    assert job.exex("cancel", FILE, "--client", "bob", "--task", "7") == "0 tasks cancelled\n"
    assert job.exex("cancel", FILE, "--client", "bob", "--task", "0") == "1 task cancelled\n"
    assert "CancelledError" in job.exex("results", FILE, "bob")
    assert job.exex("results", FILE, "bob") == ""


def test_a_task_that_is_cancelled_from_the_shell_is_cancelled_for_its_client(job: Job) -> None:
    process = job.start(APPS + "connect(name='target'); f = nap(1000); g = inc(f); inc(1).result(); print('ready', flush=True)\n"
                        "try: f.result()\nexcept BaseException as error: print(f.cancelled(), type(error).__name__, type(g.exception()).__name__)")
    job.launch.read_until(process, "ready")
    job.exex("cancel", FILE, "--client", "target")
    assert job.launch.finish(process, LIMIT_S).out == "True CancelledError DependencyError\n"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"server_key": "x" * 40}, "not the job of"),
        ({"client_public": "key"}, "is not a connection file"),
        ({"addresses": ["127.0.0.1:1"]}, "nobody listens at 127.0.0.1:1"),
        ({"version": "9.9"}, "runs exex 9.9"),
        ({"python": "2.7.18"}, "runs Python 2.7.18"),
        ({"format": "other"}, "is not a connection file"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_file_that_does_not_fit_is_refused_with_the_reason(job: Job, change: dict, reason: str) -> None:
    bad = job.launch.cwd / "bad.json"
    bad.write_text(json.dumps(json.loads(job.path.read_text()) | change))
    bad.chmod(0o600)
    assert reason in job.exex("clients", "bad.json", status=2 if "connection file" in reason else 1)
    bad.unlink()


def test_an_unknown_client_key_is_refused_with_the_reason(job: Job) -> None:
    from exex.transport.zeromq import new_keys

    public, secret = new_keys()
    bad = job.launch.cwd / "stranger.json"
    bad.write_text(json.dumps(json.loads(job.path.read_text()) | {"client_public": public, "client_secret": secret}))
    bad.chmod(0o600)
    assert "its key is refused" in job.exex("clients", "stranger.json", status=1)


def test_the_connection_file_is_for_its_owner_only(job: Job) -> None:
    assert job.path.stat().st_mode & 0o777 == 0o600
    copy = job.launch.cwd / "copy.json"
    shutil.copy(job.path, copy)
    copy.chmod(0o644)
    assert "chmod 600 copy.json" in job.exex("clients", "copy.json", status=2)
    assert "there is no connection file none.json" in job.exex("clients", "none.json", status=2)


def test_a_script_and_clients_from_elsewhere_share_a_job(launch: Launch) -> None:
    script = """
import exex, os, time
@exex.python_app
def inc(x): return x + 1
import subprocess, sys
refused = subprocess.run([sys.executable, '-m', 'exex', 'shutdown', 'job.json'], capture_output=True, text=True)
assert refused.returncode == 2 and 'runs a script' in refused.stderr, refused
while not os.path.exists('go'):
    assert inc(1).result() == 2
    time.sleep(0.01)
print('the script ends')
"""
    with running(launch, "--listen", "127.0.0.1:0", script=script) as job:
        out = job.client(
            APPS
            + """
connect()
print(inc(2).result())
long = nap(1000)
open('go', 'w').close()
try: long.result()
except exex.ManagerLost as error: print('script has ended' in str(error))
"""
        )
        assert out == "3\nTrue\n"
        assert job.end(shutdown=False) == "the script ends\n"


def test_clients_that_died_are_given_up_after_the_grace_period(launch: Launch) -> None:
    """The tasks of one are cancelled; those of a detached one go on. In the end the job waits for what is left."""
    with running(launch, "--listen", "127.0.0.1:0", "--client-grace-s", "5", ranks=4) as job:
        doing = ("connect(name='dead'); nap(1000); nap(1000).cancel()", "connect(name='ghost', detach=True); nap(4, tag='mine')")
        end = "inc(1).result(); print('ready', flush=True); time.sleep(1000)"
        processes = [job.start(f"{APPS}{words}; {end}") for words in doing]
        for process in processes:
            job.launch.read_until(process, "ready")
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        assert "dead" in job.exex("clients", FILE)
        table = job.until(lambda table: "dead" not in table and "away" in table)
        assert "ghost" in table
        assert job.exex("results", FILE, "ghost").startswith("0 nap [mine]: 4\n")  # what came last may be there once more
        job.exex("submit-call", FILE, "time:sleep", "0.5", "--detach", "--name", "last")
        assert job.exex("shutdown", FILE) == "the job ends after 1 task\n"
        job.end(shutdown=False)


def test_ctrl_c_ends_a_job_without_a_script_in_order(launch: Launch) -> None:
    job = Job(launch, "--listen", "127.0.0.1:0", own=(sys.executable, "-m", "exex", "run", "-n", "2"))
    process = job.start(APPS + "connect(); f = nap(1000); print('ready', flush=True); print(f.exception())")
    launch.read_until(process, "ready")
    job.process.send_signal(signal.SIGINT)
    ended = launch.finish(job.process, LIMIT_S)
    assert ended.status == 130 and "stop" not in ended.err, ended.err
    assert "the job was ended by SIGINT" in launch.finish(process, LIMIT_S).out
    assert not job.path.exists(), "the connection file is left"


def test_without_a_script_and_without_listening_there_is_nothing_to_do(launch: Launch) -> None:
    ended = launch.finish(launch.start([sys.executable, "-m", "exex.run"]))
    assert ended.status == 2 and "needs --listen" in ended.err


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="a second network namespace takes root and `ip`")
def test_a_client_in_another_network_survives_a_cut_cable(launch: Launch) -> None:
    name = f"exex{os.getpid() % 100000}"
    near, far = f"{name}n", f"{name}f"
    net = f"10.{97 + os.getpid() % 50}.{os.getpid() // 50 % 250}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        ip("addr", "add", f"{net}.1/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "addr", "add", f"{net}.2/30", "dev", far)
        ip("-n", name, "link", "set", far, "up")
        with running(launch, "--listen", "0", "--interface", near) as job:
            assert json.loads(job.path.read_text())["addresses"][0].startswith(f"{net}.1:")
            process = job.start(
                APPS
                + """
@exex.python_app
def large(): return b'x' * (64 << 20)
with connect():
    first = [inc(i) for i in range(4000)]
    last = large()
    exex.wait_for_current_tasks()
    print('under way', flush=True)
    then = [inc(i) for i in range(4000)]
    print(len(last.result()), sum(f.result() for f in first + then))
""",
                before=("ip", "netns", "exec", name, *ELSEWHERE),
            )
            launch.read_until(process, "under way")
            ip("link", "set", near, "down")
            time.sleep(1)  # how long the cable is out
            ip("link", "set", near, "up")
            ended = launch.finish(process, LIMIT_S)
            assert ended.out == f"{64 << 20} {2 * sum(range(1, 4001))}\n", ended.err
    finally:
        ip("netns", "del", name)
