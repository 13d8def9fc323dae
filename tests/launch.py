"""Starting real worlds in tests: `mpiexec` of the MPI library in this environment, with time limits and no leftovers."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 100.0


def _hear_interrupts() -> None:
    """What runs in the background (`python -m tests.endurance &`) inherits an ignored SIGINT, and would hand it on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@functools.cache
def _session_directories() -> str:
    top = tempfile.mkdtemp(prefix="exex-prte-")
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    return top


_starts = itertools.count()


def session_directory() -> str:
    """A new directory for what a mpiexec of Open MPI keeps while it runs.

    It is called after its process, and one that was killed leaves it: the next with its number would not start ("The PMIx server's
    listener thread failed to start"). Tests kill many, and numbers come again after some ten thousand processes.
    """
    directory = os.path.join(_session_directories(), str(next(_starts)))
    os.mkdir(directory)
    return directory


@functools.cache
def _family(mpiexec: str) -> str:
    """Whose mpiexec it is."""
    version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, env=_environment(), check=False)
    return "openmpi" if "open" in version.stdout.lower() else "mpich"


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
    }


@dataclass
class Ended:
    """How a launched program ended."""

    status: int
    out: str
    err: str
    seconds: float


class Launch:
    """Starts programs under the mpiexec beside this Python.

    Args:
        cwd: where they run.
    """

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        beside = Path(sys.executable).with_name("mpiexec")
        self.mpiexec = str(beside) if beside.exists() else "mpiexec"
        self.family = _family(self.mpiexec)

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment of launched programs: this checkout first, and what Open MPI wants of root on a small machine."""
        own = {"PRTE_MCA_prte_tmpdir_base": session_directory()} if self.family == "openmpi" else {}
        return {**_environment(), **own, **extra}

    def argv(self, ranks: int, *words: str) -> list[str]:
        """Words that start `ranks` ranks of a Python program."""
        return [self.mpiexec, "-n", str(ranks), sys.executable, *words]

    def start(self, argv: list[str], stdin: bool = False, **extra: str) -> subprocess.Popen[str]:
        """Start a program in a session of its own, with a pipe as its stdin if asked."""
        return subprocess.Popen(
            argv,
            cwd=self.cwd,
            env=self.environment(**extra),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_interrupts,
        )

    def finish(self, process: subprocess.Popen[str], limit_s: float = LIMIT_S) -> Ended:
        """Wait for a started program; a program that does not end fails the test, with what it printed."""
        began = time.monotonic()
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            tree = describe(process.pid)
            os.killpg(process.pid, signal.SIGTERM)
            try:
                out, err = process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
            raise AssertionError(f"{process.args} did not end in {limit_s} s\n{tree}\nstdout:\n{out}\nstderr:\n{err}") from None
        return Ended(process.returncode, out, err, time.monotonic() - began)

    def read_until(self, process: subprocess.Popen[str], text: str) -> str:
        """Read a started program's stdout up to a line with this text; that line. If it ends before, the test fails with its stderr."""
        assert process.stdout is not None
        read = []
        while line := process.stdout.readline():
            if text in line:
                return line
            read.append(line)
        ended = self.finish(process)
        raise AssertionError(f"{text!r} never came; status {ended.status}\nstdout:\n{''.join(read)}\nstderr:\n{ended.err}")

    def module(self, ranks: int, module: str, *args: str, limit_s: float = LIMIT_S, **extra: str) -> Ended:
        """Run `mpiexec -n RANKS python -m MODULE ARGS` to its end."""
        return self.finish(self.start(self.argv(ranks, "-m", module, *args), **extra), limit_s)

    def workflow(self, ranks: int, script: str, *args: str, options: tuple[str, ...] = (), **extra: str) -> Ended:
        """Write `script` to a file and run it as a workflow. One rank means no launcher at all."""
        path = self.cwd / "workflow.py"
        path.write_text(script)
        words = ("-m", "exex.run", *options, str(path), *args)
        argv = self.argv(ranks, *words) if ranks > 1 else [sys.executable, *words]
        return self.finish(self.start(argv, **extra))


def describe(pid: int) -> str:
    """The processes below `pid`, for a test that hangs."""
    try:
        root = psutil.Process(pid)
        return "\n".join(f"{p.pid} {p.status()} {' '.join(p.cmdline())[:150]}" for p in [root, *root.children(recursive=True)])
    except psutil.Error as error:
        return str(error)
