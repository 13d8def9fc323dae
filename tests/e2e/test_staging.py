"""Staging as a user sees it: tasks start from an archive, find files, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tarfile
import time
import venv
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.launch import ROOT, Launch
from tests.staged_environment import make_archive

SHOW = """
import os, subprocess
import exex
from exex import python_app, bash_app

@python_app
def where():
    import sys, mine, exex, cloudpickle
    return sys.prefix, sys.executable, mine.__file__, exex.__file__, os.environ["PATH"].split(":")[0]

@bash_app
def said(stdout="said"):
    return "tool && cat $EXEX_STAGED/table"

@python_app
def table():
    import exex
    return open(exex.staged("table")).read()

prefix, python, mine, own, path = where().result()
assert prefix.startswith(os.environ["NODE"]) and python == prefix + "/bin/python" and mine.startswith(prefix), (prefix, python, mine)
assert own.startswith(os.environ["NODE"]) and path == prefix + "/bin"
said().result()
assert open("said").read() == f"{prefix}\\nhello", open("said").read()
assert table().result() == open(exex.staged("table")).read() == "hello"
print("all is there")
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment of this test's own interpreter, without that: a few KB."""
    directory = tmp_path_factory.mktemp("archive")
    venv.create(directory / "env", symlinks=True)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (directory / "env" / "lib" / version / "site-packages" / "mine.py").write_text("x = 1\n")
    tool = directory / "env" / "bin" / "tool"
    tool.write_text("#!/usr/bin/env python\nimport sys; print(sys.prefix)\n")
    tool.chmod(0o755)
    with tarfile.open(directory / "env.tar.gz", "w:gz") as tar:
        tar.add(directory / "env", "env")
    shutil.rmtree(directory / "env")
    return directory / "env.tar.gz"


@pytest.fixture
def node(launch: Launch) -> Path:
    (launch.cwd / "node").mkdir()
    (launch.cwd / "table").write_text("hello")
    return launch.cwd / "node"


def options(node: Path, archive: Path) -> tuple[str, ...]:
    return ("--stage", str(archive), "--stage-dir", str(node), "--stage-file", "table")


def left(node: Path) -> list[Path]:
    return [Path(directory, name) for directory, _, names in os.walk(node) for name in names]


@pytest.mark.parametrize("ranks", [1, 3])
def test_tasks_start_from_the_archive(launch: Launch, node: Path, archive: Path, ranks: int) -> None:
    done = launch.workflow(ranks, SHOW, options=options(node, archive), NODE=str(node))
    assert done.out == "all is there\n", done.err
    assert done.err.count("exex: staged ") == 1
    assert not left(node)


def test_without_an_interpreter_its_packages_go_first(launch: Launch, node: Path) -> None:
    (launch.cwd / "modules").mkdir()
    (launch.cwd / "modules" / "mine.py").write_text("")
    script = "from exex import python_app\n@python_app\ndef f():\n    import mine\n    return mine.__file__\nprint(f().result())"
    done = launch.workflow(2, script, options=("--stage", "modules", "--stage-dir", str(node)))
    assert done.out.startswith(str(node)), done.err
    assert not left(node)


def test_what_cannot_be_staged_is_said_once_and_ends_the_job(launch: Launch, node: Path) -> None:
    done = launch.workflow(3, "print('never')", options=("--stage", "nothere.tar.gz"))
    assert done.status != 0 and "never" not in done.out
    assert done.err.count("exex: rank 0 at") == 1 and "cannot stage nothere.tar.gz: No such file or directory" in done.err
    done = launch.workflow(3, "print('never')", options=("--stage-file", "table", "--stage-dir", "/proc"))
    assert done.status != 0 and "never" not in done.out and done.err.count("no directory for what is staged") == 1 and "--stage-dir DIR" in done.err


def test_an_interpreter_that_does_not_start_is_told(launch: Launch, node: Path) -> None:
    (launch.cwd / "broken" / "bin").mkdir(parents=True)
    (launch.cwd / "broken" / "bin" / "python").write_text("#!/bin/sh\necho cannot open libpython >&2\nexit 127\n")
    (launch.cwd / "broken" / "bin" / "python").chmod(0o755)
    # alone: a launcher has a status of its own, and may lose the last words of a job that it aborts
    done = launch.workflow(1, "print('never')", options=("--stage", "broken", "--stage-dir", str(node)))
    assert done.status != 0 and "never" not in done.out
    assert "cannot open libpython" in done.err and "the template ended while it imported what it must" in done.err


def test_another_python_is_told(launch: Launch, node: Path) -> None:
    (launch.cwd / "other" / "bin").mkdir(parents=True)
    python = launch.cwd / "other" / "bin" / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.version_info = (3, 1); sys.argv = sys.argv[2:]; "
                      "exec(open(sys.argv[0]).read())' \"$@\"\n")
    python.chmod(0o755)
    done = launch.workflow(1, "print('never')", options=("--stage", "other", "--stage-dir", str(node)))
    assert done.status != 0 and "it has Python 3.1, and the job runs with" in done.err


WAITS = """
from exex import python_app
@python_app
def wait():
    import os, time
    print("pid", os.getpid(), flush=True)
    time.sleep(100)
[wait(), wait()]
"""


def test_a_killed_job_leaves_nothing(launch: Launch, node: Path, archive: Path) -> None:
    """Every process of the job gets SIGKILL, but the reapers, which no launcher knows."""
    path = launch.cwd / "workflow.py"
    path.write_text(WAITS)
    argv = launch.argv(3, "-m", "exex.run", *options(node, archive), str(path))
    process = launch.start(argv)
    launch.read_until(process, "pid")
    assert left(node)
    for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()
    until = time.monotonic() + 20
    while left(node):
        assert time.monotonic() < until, left(node)
        time.sleep(0.02)


def test_exex_run_and_exex_pack(launch: Launch, node: Path) -> None:
    (launch.cwd / "modules").mkdir()
    (launch.cwd / "modules" / "mine.py").write_text("x = 7\n")
    packed = launch.finish(launch.start([sys.executable, "-m", "exex", "pack", "modules"]))
    assert packed.status == 0 and re.match(r"modules\.tar\.(zst|gz): 0\.0 MB, 1 files of 0\.0 MB\n", packed.out), packed
    (launch.cwd / "w.py").write_text("from exex import python_app\n@python_app\ndef f():\n    import mine\n    return mine.x\nprint(f().result())")
    name = packed.out.split(":")[0]
    argv = [sys.executable, "-m", "exex", "run", "-n", "1", "--stage", name, "--stage-dir", str(node), "w.py"]
    done = launch.finish(launch.start(argv))
    assert done.out == "7\n" and done.status == 0, done.err
    assert f"exex: ranks start from {sys.executable}, and only tasks from what is staged: it has no interpreter" in done.err
    assert not left(node)


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace (Debian's package strace)")
def test_the_environment_is_opened_by_rank_0_alone(launch: Launch, node: Path) -> None:
    """Each file once, however many ranks there are."""
    if launch.family != "mpich":
        pytest.skip("the library has no part in it, and Open MPI's launcher is slow under strace")
    env = launch.cwd / "shared" / "env"
    env.mkdir(parents=True)
    for number in range(20):
        (env / f"mine{number}.py").write_text("")
    script = "from exex import python_app\n@python_app\ndef f(x):\n    import mine3, mine4\nfor x in [f(i) for i in range(50)]: x.result()"
    (launch.cwd / "w.py").write_text(script)
    argv = launch.argv(3, "-m", "exex.run", "--stage", str(env), "--stage-dir", str(node), "w.py")
    trace = launch.cwd / "trace"
    done = launch.finish(launch.start(["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=open,openat", "-o", str(trace), *argv]))
    assert done.status == 0, done.err
    opened = re.findall(rf'"{re.escape(str(env))}([^"]*)", [^\n]*= \d+$', trace.read_text(), re.MULTILINE)
    assert sorted(opened) == ["", *sorted(f"/mine{number}.py" for number in range(20))]
    assert not left(node)


# ---- ranks that start from there ----

FROM_THERE = """
import os, sys
import exex
from exex import python_app

@python_app
def where():
    import sys, exex, msgspec
    return sys.prefix, exex.__file__, msgspec.__file__, sorted(name for name in os.environ if name.startswith("EXEX_STAGED"))

found = where().result()
assert found == (sys.prefix, exex.__file__, sys.modules["msgspec"].__file__, ["EXEX_STAGED"]), found
assert sys.prefix.startswith(os.environ["NODE"]) and exex.__file__.startswith(os.environ["NODE"]), found
assert open(exex.staged("table")).read() == "hello"
print("all from there")
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("whole"), copied=True)


def exex_run(ranks: int, node: Path, archive: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "exex", "run", "-n", str(ranks), "--slots", "1", *options(node, archive), *words]


def test_exex_run_starts_its_ranks_from_the_archive(launch: Launch, node: Path, whole: Path) -> None:
    """So they open nothing of the shared environment: of what is opened there nothing is opened once more by each rank more."""
    (launch.cwd / "w.py").write_text(FROM_THERE)
    if launch.family != "mpich" or not shutil.which("strace"):  # Open MPI's launcher is slow under strace
        ended = launch.finish(launch.start(exex_run(2, node, whole, "w.py"), NODE=str(node)))
        assert (ended.status, ended.out) == (0, "all from there\n"), ended.err
        return
    shared = "|".join(re.escape(path) for path in (str(whole.parent), sys.prefix, str(ROOT)))
    counts = []
    for ranks in (1, 6):
        trace = launch.cwd / f"trace{ranks}"
        strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=open,openat,execve", "-o", str(trace)]
        ended = launch.finish(launch.start([*strace, *exex_run(ranks, node, whole, "w.py")], NODE=str(node)))
        assert (ended.status, ended.out) == (0, "all from there\n"), ended.err
        assert "ranks start from" not in ended.err and not left(node)
        counts.append(Counter(re.findall(rf'^\d+ +\w+\((?:\w+, )?"((?:{shared})/[^"]*)"', trace.read_text(), re.MULTILINE)))
    assert counts[0], "what exex run itself opens"
    by_each = [path for path, times in counts[1].items() if times - counts[0][path] >= 6 - 1]  # once more: a second look of one process
    assert not by_each


def test_a_step_then_ranks_by_hand(launch: Launch, node: Path, whole: Path) -> None:
    """Three processes of the step on one node, of which one stages."""
    (launch.cwd / "w.py").write_text(FROM_THERE)
    step = launch.argv(3, "-m", "exex.stage", *options(node, whole), "w.py")
    done = launch.finish(launch.start(step, EXEX_JOB_DIR=str(launch.cwd)))
    assert done.status == 0 and done.err.count("exex: staged ") == 1, done.err
    assert left(node)
    start = ["/bin/sh", "-c", (launch.cwd / "staged").read_text(), "exex"]
    done = launch.finish(launch.start([*launch.argv(3)[:-1], *start, *options(node, whole), "w.py"], NODE=str(node)))
    assert (done.status, done.out) == (0, "all from there\n"), done.err
    assert not left(node)


def test_a_step_that_cannot_stage_says_so_once(launch: Launch, node: Path) -> None:
    (launch.cwd / "w.py").write_text("")
    alone = [sys.executable]
    for ranks, words, directory, problem in (
        (launch.argv(3), ["--stage-file", "nothere"], str(launch.cwd), "cannot stage nothere: No such file or directory"),
        (alone, ["--stage-file", "table"], "", "EXEX_JOB_DIR must name a directory of this job"),
        (alone, ["--stage-file", "table"], "nothere", "cannot make ready what is staged: [Errno 2] No such file or directory: 'nothere/staged.new'"),
        (alone, [], str(launch.cwd), "nothing is to be staged: give --stage or --stage-file"),
    ):
        argv = [*ranks, "-m", "exex.stage", "--stage-dir", str(node), *words, "w.py"]
        done = launch.finish(launch.start(argv, EXEX_JOB_DIR=directory))
        assert done.status != 0 and done.err.count(problem) == 1, done.err
    assert not left(node) and not (launch.cwd / "staged").exists()


def test_a_killed_exex_run_leaves_nothing(launch: Launch, node: Path) -> None:
    (launch.cwd / "w.py").write_text(WAITS)
    (launch.cwd / "modules").mkdir()
    process = launch.start(exex_run(2, node, Path("modules"), "w.py"))
    launch.read_until(process, "pid")
    assert left(node)
    process.kill()
    process.communicate()
    until = time.monotonic() + 20
    while left(node):
        assert time.monotonic() < until, left(node)
        time.sleep(0.02)
