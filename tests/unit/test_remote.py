"""Launches through a launch helper: what a task sees of them, and that nothing of them is left, whoever dies when."""

import contextlib
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import time

import psutil
import pytest

from exex.errors import ConfigError
from exex.launch.helped import helped
from exex.remote import wire
from tests.launch_helper import LIMIT_S, ROOT, RunningHelper, next_frame, wait_until

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def helper(tmp_path_factory):
    """One for the tests that do not harm it."""
    running = RunningHelper(tmp_path_factory.mktemp("helper"), "--grace-s", "20").start()
    yield running
    running.await_nothing()
    running.stop()
    assert "Traceback" not in running.text()


@pytest.fixture
def own_helper(tmp_path):
    """`own_helper(*options)` starts another."""
    started = []

    def start(*options, **more):
        started.append(RunningHelper(tmp_path, *options, **more).start())
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.stop()
        assert "Traceback" not in running.text()


# ---- it behaves as the launcher would ----


@pytest.mark.parametrize(
    "script, code, out, err",
    [
        ("echo out; echo err >&2", 0, b"out\n", b"err\n"),
        ("exit 3", 3, b"", b""),
        ("exit 255", 255, b"", b""),
        ("kill -KILL $$", -signal.SIGKILL, b"", b""),
        ("kill -SEGV $$", -signal.SIGSEGV, b"", b""),
        ("kill -INT $$", -signal.SIGINT, b"", b""),
        (r"printf '\0\377\r\n'; exit 1", 1, b"\0\xff\r\n", b""),
        ("exec >&-; echo still >&2", 0, b"", b"still\n"),
    ],
)
def test_output_and_status(helper, script, code, out, err):
    assert helper.run("sh", "-c", script) == (code, out, err)


def test_words_directory_and_variables_arrive_as_they_are(helper, tmp_path):
    awkward = ["two words", "it's", "", "$HOME", "*", "new\nline", "ä", os.fsdecode(b"\xff\xfe"), "-x", "-e"]
    env = {**helper.environment, "A": "new\nline=", "B": "", "C": os.fsdecode(b"\xff"), "PATH": os.environ["PATH"]}
    code = "import os, sys; os.write(1, repr((sys.argv[1:], os.getcwd(), dict(os.environ))).encode())"
    _, out, err = helper.run(sys.executable, "-c", code, *awkward, env=env, cwd=tmp_path)
    words, directory, variables = eval(out)
    assert words == awkward, err
    assert directory == str(tmp_path)
    assert variables.pop("EXEX_GUARD")
    for name in ("LC_CTYPE", "PWD", "OLDPWD", "_", "SHLVL"):  # the shell's and Python's own
        variables.pop(name, None)
        env.pop(name, None)
    assert variables == env


def test_stdin_is_forwarded(helper):
    data = bytes(range(256)) * 1000
    assert helper.run("cat", input=data) == (0, data, b"")


def test_without_stdin_stdout_and_stderr(helper):
    """Some daemons start programs so; a socket must not take their place."""
    done = helper.popen("sh", "-c", "cat; echo x; echo y >&2; exit 4", preexec_fn=lambda: os.closerange(0, 3))
    assert done.wait(LIMIT_S) == 4
    done.communicate()


def test_limits_are_those_of_the_job_script(own_helper):
    """The helper's own limit of open files is higher, since many may wait."""
    running = own_helper(constants="import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (300, r.getrlimit(r.RLIMIT_NOFILE)[1]))")
    assert running.run("sh", "-c", "ulimit -Sn")[1] == b"300\n"
    assert psutil.Process(running.process.pid).rlimit(psutil.RLIMIT_NOFILE)[0] > 300


def test_dispositions_of_signals_are_the_usual_ones(helper):
    status = helper.run("grep", "-E", "Sig(Ign|Blk)", "/proc/self/status")[1].decode()
    ignored = int(status.split("SigIgn:")[1].split()[0], 16)
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    assert blocked == 0
    assert not ignored & sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT])
def test_signals_are_handed_on(helper, number):
    name = number.name.removeprefix("SIG")
    process = helper.popen("bash", "-c", f"trap 'echo got {name}; exit 7' {name}; echo up; while :; do :; done")
    assert process.stdout.readline() == b"up\n"
    process.send_signal(number)
    assert process.communicate(timeout=LIMIT_S) == (f"got {name}\n".encode(), b"")
    assert process.returncode == 7


def test_it_starts_quickly_because_it_imports_little(helper):
    code = "import sys; sys.argv[1:] = ['aprun', 'true']; import exex.remote.task_end as end; end._end_as = lambda code: None; end.main(sys.argv[1:]); sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-S", "-c", code], env=helper.environment, stderr=subprocess.PIPE, text=True, check=True)
    modules = set(done.stderr.split())
    assert {name for name in modules if name.startswith("exex")} == {
        "exex", "exex.version", "exex.remote", "exex.remote.task_end", "exex.remote.wire", "exex.remote.flows",
        "exex.remote.connection_file",
    }  # fmt: skip
    assert not modules & {"typing", "json", "subprocess", "click", "asyncio", "re", "mpi4py"}


def test_files_of_the_tasks_directory_do_not_stand_in_for_modules(helper, tmp_path):
    for name in ("socket.py", "select.py", "hmac.py", "exex.py", "struct.py"):
        (tmp_path / name).write_text("raise SystemExit('a file of the task')")
    assert helper.run("echo", "fine", cwd=tmp_path) == (0, b"fine\n", b"")


# ---- streams ----


def peak_mib(pid):
    """Most memory that a process has had at a time."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM:"))


def test_200_megabytes_both_ways_without_growth(helper, tmp_path):
    size = 200 * MEGABYTE
    os.mkfifo(tmp_path / "go")
    script = f"cat; echo $PPID >&2; read x < {tmp_path}/go"
    process = helper.popen("sh", "-c", script, stdin=subprocess.PIPE)
    sender = subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=process.stdin)
    process.stdin.close()
    process.stdin = None
    got = 0
    while got < size:
        data = process.stdout.read(MEGABYTE)
        assert data and not data.strip(b"\0")
        got += len(data)
    keeper = int(process.stderr.readline())
    assert peak_mib(process.pid) < 20
    assert peak_mib(keeper) < peak_mib(helper.process.pid) + 10
    (tmp_path / "go").write_text("")
    assert process.communicate(timeout=LIMIT_S) == (b"", b"")
    assert (process.returncode, sender.wait()) == (1, 0)


def test_a_reader_that_waits_stops_the_program_but_no_other_stream_and_no_signal(helper):
    process = helper.popen("sh", "-c", "echo first >&2; head -c 5000000 /dev/zero; echo done >&2; sleep 100", stdin=subprocess.PIPE)
    assert process.stderr.readline() == b"first\n"
    wait_until(lambda: any(each.io_counters().write_chars >= wire.WINDOW_BYTES for each in helper.started() if each.name() == "head"))
    process.stdin.write(b"x")  # and nobody takes this
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == -signal.SIGTERM
    assert 0 < len(out) < 2 * MEGABYTE and b"done" not in err


def test_a_reader_that_leaves_ends_the_program(helper):
    process = helper.popen("yes")
    assert process.stdout.read(2) == b"y\n"
    process.stdout.close()
    assert process.wait(LIMIT_S) == -signal.SIGPIPE
    process.stderr.close()


def test_a_program_that_does_not_read_ends_all_the_same(helper):
    with open("/dev/zero", "rb") as zeros:
        assert helper.run("true", stdin=zeros)[0] == 0
        assert helper.run("sh", "-c", "exec <&-; echo closed; exit 2", stdin=zeros) == (2, b"closed\n", b"")


def test_what_is_left_in_the_background_ends_with_the_program(helper):
    """Even from a session of its own; otherwise who reads the output would wait for it."""
    code, out, _ = helper.run("sh", "-c", "setsid sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & echo started; exit 5")
    assert (code, out) == (5, b"started\n")
    helper.await_nothing()


# ---- what is not started ----


def test_other_programs_are_refused(helper, tmp_path):
    argv = [*helper.words()[:-1], "touch", str(tmp_path / "made")]
    done = subprocess.run(argv, env=helper.environment, capture_output=True, text=True, check=False)
    assert done.returncode == wire.NOT_EXECUTABLE
    assert "exex: touch was not started: touch is none of the launchers that a launch helper starts: aprun;" in done.stderr
    assert "touch is none of the launchers" in helper.text()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "words, is_fine",
    [("env A=1 B=x=y aprun", True), ("/usr/bin/env aprun", True), ("env -i aprun", False), ("env A=1", False), ("env A=1 touch aprun", False)],
)
def test_variables_may_stand_before_the_launcher(helper, words, is_fine):
    path = f"{helper.directory}/bin:{os.environ['PATH']}"
    argv = [*helper.words()[:-1], *words.split(), "sh", "-c", "echo $A"]
    done = subprocess.run(argv, env={**helper.environment, "PATH": path}, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == is_fine, done.stderr
    assert done.stdout == ("" if not is_fine else "1\n" if "A=1" in words else "\n")


def test_a_launcher_that_is_not_there(helper, tmp_path):
    argv = [*helper.words()[:-1], "/nowhere/aprun", "true"]
    done = subprocess.run(argv, env=helper.environment, capture_output=True, text=True, check=False)
    assert done.returncode == wire.NOT_FOUND
    assert f"/nowhere/aprun is not on the PATH of the launch helper at {os.uname().nodename}" in done.stderr


def test_a_directory_that_the_helpers_node_does_not_see(helper, tmp_path):
    link = helper.ask(b"true", directory=bytes(tmp_path / "gone"))
    kind, data = next_frame(link)
    assert (kind, data[0]) == (wire.REFUSED, wire.NOT_STARTED)
    assert f"the task's directory {tmp_path}/gone is none at {os.uname().nodename}, where aprun would run" in data[1:].decode()
    link.close()


def test_a_directory_that_is_gone(helper, tmp_path):
    words = ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *helper.words("true")]
    done = subprocess.run(words, cwd=tmp_path, env=helper.environment, capture_output=True, text=True, check=False)
    assert done.returncode == wire.NOT_STARTED
    assert done.stderr == "exex: aprun was not started: the current directory is gone: No such file or directory\n"


def test_without_a_helper_it_says_what_is_missing():
    with pytest.raises(ConfigError, match="aprun starts programs only from where the job script runs; the job script must start `exex launch-helper`"):
        helped(["aprun", "-n", "2"], {})
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "exex.remote", "aprun"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == wire.NOT_STARTED
    assert done.stderr.startswith("exex: aprun was not started, for want of the launch helper: EXEX_LAUNCH_HELPER is not set;")


IMPATIENT = "import sys; from exex.remote import task_end as end; end.PATIENCE_S = 0.3; end._PAUSE_S = 0.1; sys.exit(end.main(sys.argv[1:]))"


def impatient(file):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "EXEX_LAUNCH_HELPER": str(file)}
    done = subprocess.run([sys.executable, "-c", IMPATIENT, "aprun", "true"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == wire.NOT_STARTED
    assert done.stderr.startswith("exex: aprun was not started, for want of the launch helper: ")
    return done.stderr


def test_connection_files_that_do_not_lead_to_a_helper(helper, tmp_path):
    file = tmp_path / "launch-helper"
    assert "cannot be read: No such file or directory" in impatient(file)
    text = helper.file.read_text()
    file.write_text(text)
    assert stat.S_IMODE(helper.file.stat().st_mode) == 0o600
    file.chmod(0o640)
    assert "belongs to somebody else, or others may read it" in impatient(file)
    file.chmod(0o600)
    file.write_text("port 1\n")
    assert "is not one" in impatient(file)
    file.write_text(text.replace("port ", "port 1\nport_ "))
    assert "Connection refused; has the job script ended?" in impatient(file)
    file.write_text(text.replace("key ", f"key {'00' * 32}\nkey_ "))
    assert "it has closed the connection: the key may be that of an earlier job script" in impatient(file)


def test_it_waits_for_a_helper_that_comes_late(tmp_path):
    late = RunningHelper(tmp_path)
    process = late.popen("echo", "here")
    wait_until(lambda: psutil.Process(process.pid).status() == "sleeping")
    late.start()
    assert process.communicate(timeout=LIMIT_S)[0] == b"here\n"
    late.stop()


# ---- many ----


def test_fifty_at_once(helper):
    processes = [helper.popen("sh", "-c", f"cat; exit {number}", stdin=subprocess.PIPE) for number in range(50)]
    for number, process in enumerate(processes):
        assert process.communicate(b"%d" % number, timeout=LIMIT_S) == (b"%d" % number, b"")
        assert process.returncode == number


def connections(running):
    """How many sockets the helper has: its own, and those of who has no keeper yet."""
    return len(psutil.Process(running.process.pid).net_connections())


def test_only_so_many_at_once(own_helper):
    running = own_helper("--most", "3")
    processes = []
    for _ in range(3):
        processes.append(running.popen("sh", "-c", "echo up; cat", stdin=subprocess.PIPE))
        assert processes[-1].stdout.readline() == b"up\n"
    processes += [running.popen("echo", "up") for _ in range(2)]
    wait_until(lambda: connections(running) == 3)
    assert len(running.keepers()) == 3
    for process in processes:
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0


def test_who_leaves_before_its_turn_is_not_started(own_helper, tmp_path):
    running = own_helper("--most", "1")
    first = running.popen("sh", "-c", "echo up; cat", stdin=subprocess.PIPE)
    assert first.stdout.readline() == b"up\n"
    second = running.popen("touch", str(tmp_path / "second"))
    third = running.popen("touch", str(tmp_path / "third"))
    wait_until(lambda: connections(running) == 3)
    second.kill()
    wait_until(lambda: "gone before its turn" in running.text())
    first.communicate(timeout=LIMIT_S)
    third.communicate(timeout=LIMIT_S)
    second.communicate()
    assert third.returncode == 0 and (tmp_path / "third").exists() and not (tmp_path / "second").exists()


# ---- ends ----

STUBBORN = "trap '' TERM INT HUP; echo up; while :; do sleep 0.01; done"


def test_when_the_tasks_end_is_killed_so_is_the_program_and_the_next_waits_for_that(own_helper, tmp_path):
    running = own_helper("--grace-s", "0.3")
    process = running.popen("sh", "-c", f"echo $$ > {tmp_path}/pid; {STUBBORN}")
    assert process.stdout.readline() == b"up\n"
    pid = (tmp_path / "pid").read_text().strip()
    process.kill()
    wait_until(lambda: not psutil.pid_exists(process.pid) or psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    # it connects after the keeper has seen the end, or before: TCP keeps no order between two connections
    wait_until(lambda: all(len(each.net_connections()) == 0 for each in running.keepers()))
    assert running.run("sh", "-c", f"kill -0 {pid} 2>&1 || echo gone")[1].endswith(b"gone\n")
    process.communicate()
    running.await_nothing()


def test_the_program_may_end_in_order_when_its_task_is_stopped(helper, tmp_path):
    process = helper.popen("bash", "-c", f"trap 'echo bye; echo saved > {tmp_path}/file; exit' TERM; echo up; while :; do sleep 0.01; done")
    assert process.stdout.readline() == b"up\n"
    process.kill()
    process.communicate()
    helper.await_nothing()
    assert (tmp_path / "file").read_text() == "saved\n"


def test_kills_at_any_moment_leave_nothing(own_helper):
    running = own_helper("--grace-s", "0.1")
    rng = random.Random(4)
    for number in range(24):
        process = running.popen("sh", "-c", "head -c 1000000 /dev/zero; sleep 1000 & setsid sleep 1000 & exec sleep 1000")
        time.sleep(rng.uniform(0, 0.08))  # any moment
        victims = ([], running.keepers(), running.programs())[number % 3][:1]
        with contextlib.suppress(psutil.NoSuchProcess):
            victims[0].kill() if victims else process.kill()
        process.communicate(timeout=LIMIT_S)
        running.await_nothing()
    assert running.run("echo", "fine") == (0, b"fine\n", b"")


def test_when_the_keeper_is_killed_the_task_is_told(own_helper):
    running = own_helper()
    process = running.popen("sh", "-c", "setsid sleep 1000 & echo up; sleep 1000")
    assert process.stdout.readline() == b"up\n"
    running.keepers()[0].kill()
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == wire.NOT_STARTED
    assert err.startswith(b"exex: aprun is lost with the launch helper at ") and err.endswith(b"it has closed the connection\n")
    running.await_nothing()
    assert "its keeper has died (-9); what it left is killed" in running.text()


def test_when_the_helper_is_killed_nothing_is_left(own_helper):
    running = own_helper()
    processes = [running.popen("sh", "-c", f"setsid sleep 1000 & {STUBBORN}") for _ in range(3)]
    keepers = [process.stdout.readline() for process in processes] and running.keepers()
    running.process.kill()
    running.process.wait()
    for process in processes:
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == wire.NOT_STARTED and b"is lost with the launch helper" in err
    wait_until(lambda: not running.started())
    psutil.wait_procs(keepers, LIMIT_S)


def test_the_end_of_the_job_script_ends_all(own_helper):
    running = own_helper("--grace-s", "0.2", "--most", "2")
    gentle = running.popen("bash", "-c", "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.01; done")
    stubborn = running.popen("sh", "-c", STUBBORN)
    assert gentle.stdout.readline() == stubborn.stdout.readline() == b"up\n"
    waiting = running.popen("echo", "never")
    wait_until(lambda: connections(running) == 2)
    running.stop()
    assert not running.file.exists()
    assert not running.started()
    for process in (gentle, stubborn):
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == wire.NOT_STARTED
    assert waiting.communicate(timeout=LIMIT_S) == (b"", b"exex: aprun was not started: the job script ends, and the launch helper with it\n")


def test_the_batch_systems_notices_end_nothing(own_helper):
    running = own_helper()
    process = running.popen("sh", "-c", "echo up; cat", stdin=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        for each in (psutil.Process(running.process.pid), *running.keepers()):
            each.send_signal(number)
    wait_until(lambda: "goes on until the job script ends" in running.text())
    assert process.communicate(b"fine", timeout=LIMIT_S)[0] == b"fine"
    assert running.run("echo", "more")[1] == b"more\n"


def test_it_ends_when_its_shell_is_gone(tmp_path):
    running = RunningHelper(tmp_path, "--grace-s", "0.2")
    shell = subprocess.Popen(
        ["bash", "-c", '"$@" & echo $!; wait', "bash", *running.argv], env=running.own, stdout=subprocess.PIPE, stderr=open(running.said, "wb")
    )
    helper = psutil.Process(int(shell.stdout.readline()))
    wait_until(running.file.exists)
    process = running.popen("sh", "-c", STUBBORN)
    assert process.stdout.readline() == b"up\n"
    shell.kill()
    shell.wait()
    process.communicate(timeout=LIMIT_S)
    wait_until(lambda: not helper.is_running() or helper.status() == psutil.STATUS_ZOMBIE)
    assert not running.started()
    assert not running.file.exists()
    shell.stdout.close()


# ---- who does not know the key ----


def closes(sock):
    """Whether the other side closes, and says nothing more."""
    sock.settimeout(LIMIT_S)
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def test_strangers_are_sent_away(own_helper):
    running = own_helper(constants="helper.PROOF_S = 0.3")
    greeting = 5 + len(wire.MAGIC) + wire.NUMBER_BYTES
    for data in (b"", b"GET / HTTP/1.0\r\n\r\n", os.urandom(1000), wire._HEADER.pack(wire.PROOF, 64) + os.urandom(64), wire._HEADER.pack(wire.PROOF, 0)):
        with running.connect() as sock:
            assert len(sock.recv(greeting, 0x100)) == greeting  # MSG_WAITALL
            sock.sendall(data)
            assert closes(sock), data
    assert "refused 127.0.0.1: " in running.text()
    assert "it does not know the key" in running.text() or "so far" in running.text()
    assert running.run("echo", "fine")[1] == b"fine\n"


def test_a_stranger_is_sent_away_though_a_launch_runs(helper):
    """The keeper holds no copy of others' connections."""
    with helper.connect() as sock:
        sock.recv(5 + len(wire.MAGIC) + wire.NUMBER_BYTES, 0x100)  # MSG_WAITALL
        process = helper.popen("sh", "-c", "echo up; cat", stdin=subprocess.PIPE)
        assert process.stdout.readline() == b"up\n"
        sock.sendall(b"nonsense")
        assert closes(sock)
        process.communicate(timeout=LIMIT_S)


def test_what_was_overheard_is_of_no_use(helper):
    link, key, theirs, ours = helper.insider()
    overheard = wire.proof(key, b"task", theirs, ours)
    link.close()
    with helper.connect() as sock:
        again = wire.Wire(sock, (wire.HELLO, wire.PROOF))
        number = next_frame(again)[1][len(wire.MAGIC) :]
        again.send(wire.PROOF, ours, overheard)
        assert next_frame(again) == (0, b"")
    with helper.connect() as sock:  # nor is its own number
        again = wire.Wire(sock, (wire.HELLO, wire.PROOF))
        number = next_frame(again)[1][len(wire.MAGIC) :]
        again.send(wire.PROOF, number, wire.proof(key, b"task", number, number))
        assert next_frame(again) == (0, b"")


def test_a_request_that_was_changed_is_not_executed(helper, tmp_path):
    link, key, theirs, ours = helper.insider()
    text = wire.pack_request(b"/", [b"aprun", b"true"], {b"A": b"1"})
    signature = wire.proof(key, b"request", theirs, ours, text)
    link.send(wire.REQUEST, signature, text.replace(b"true", b"false"))
    assert next_frame(link) == (0, b"")


def test_a_false_helper_is_not_told_what_to_start(helper, tmp_path):
    """It has the address, but not the key: it sees a proof of ours, and no word of the request."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        file = tmp_path / "launch-helper"
        text = helper.file.read_text().splitlines()
        file.write_text("\n".join(["hosts 127.0.0.1", f"port {server.getsockname()[1]}", *text[2:]]) + "\n")
        file.chmod(0o600)
        env = {**helper.environment, "EXEX_LAUNCH_HELPER": str(file)}
        impatient = IMPATIENT.replace("0.3", "3.0")
        process = subprocess.Popen([sys.executable, "-c", impatient, "aprun", "secret"], env=env, stderr=subprocess.PIPE)
        server.settimeout(0.05)
        seen = 0
        while process.poll() is None:
            try:
                sock, _ = server.accept()
            except TimeoutError:
                continue
            link = wire.Wire(sock, (wire.PROOF, wire.REQUEST))
            link.send(wire.HELLO, wire.MAGIC, wire.new_number())
            assert next_frame(link)[0] == wire.PROOF
            link.send(wire.PROOF, os.urandom(wire.PROOF_BYTES))
            assert next_frame(link) == (0, b"")
            link.close()
            seen += 1
        assert seen
        assert b"has not proved that it is the launch helper" in process.communicate(timeout=LIMIT_S)[1]


LIES = [
    (wire.DATA, b""),
    (wire.DATA, bytes([7]) + b"x"),
    (wire.CREDIT, wire.pack_credit(wire.STDOUT, 1)),
    (wire.CREDIT, wire.pack_credit(9, 1)),
    (wire.CREDIT, b"123"),
    (wire.SIGNAL, b""),
    (wire.SIGNAL, bytes([signal.SIGSTOP])),
    (wire.CLOSED, bytes([wire.STDIN])),
    (wire.REQUEST, b""),
    (99, b""),
]


@pytest.mark.parametrize("kind, data", LIES)
def test_a_task_that_keeps_to_no_protocol_loses_its_launch(helper, kind, data):
    link = helper.ask(b"sleep", b"1000")
    assert next_frame(link) == (wire.STARTED, b"")
    link.send(kind, data)
    assert next_frame(link) == (0, b"")
    link.close()
    helper.await_nothing()


def test_more_than_was_asked_for_is_not_kept(helper):
    link = helper.ask(b"sleep", b"1000")
    assert next_frame(link) == (wire.STARTED, b"")
    for _ in range(2 * wire.WINDOW_BYTES // wire.PIECE_BYTES + 2):
        link.send(wire.DATA, bytes([wire.STDIN]), bytes(wire.PIECE_BYTES))
    found = next_frame(link)
    while found[0] == wire.CREDIT:
        found = next_frame(link)
    assert found == (0, b"")
    link.close()
    helper.await_nothing()


# ---- a connection that is found to be broken when something is sent ----

BROKEN = """
import os, signal, socket, subprocess, sys
from exex.remote import wire
from exex.remote.wire import Wire
ours, theirs = socket.socketpair()
ours.setblocking(False)
link = Wire(ours, (wire.DATA,))
"""


def test_a_task_end_hears_of_it():
    code = BROKEN + "from exex.remote.task_end import TaskEnd\nlink.send(wire.CREDIT, b'12345')\ntheirs.close()\nTaskEnd(link).run()\nprint('over')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=LIMIT_S, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    assert done.stdout == b"over\n", done.stderr


def test_a_keeper_hears_of_it_and_ends_its_program():
    code = BROKEN + (
        "from exex.remote import keeper\n"
        "wake = keeper._hear_signals()\n"
        "process = subprocess.Popen(['sleep', '1000'], stdin=-1, stdout=-1, stderr=-1, bufsize=0, start_new_session=True)\n"
        "theirs.close()\n"
        "keeper._Keeper(link, process, wake, 5.0, os.open(os.devnull, os.O_WRONLY)).run()\n"
        "print('over')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=LIMIT_S, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    assert done.stdout == b"over\n", done.stderr
