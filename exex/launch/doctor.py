"""`exex doctor`: whether a job can start here, one line per thing that has to be right. Starts a small world for proof."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from exex.errors import ConfigError, StartError
from exex.launch.allocation import Allocation, find_allocation, usable_cores
from exex.launch.deadline import find_end_s
from exex.launch.foreground import descendants
from exex.launch.launcher import Launcher, Library, find_mpiexec, launch_argv, mpi_library
from exex.launch.world import task_environment
from exex.version import __version__

_HELLO_RANKS = 3
_HELLO_TIMEOUT_S = 60.0
_HELLO_PROGRAM = """
import sys
from mpi4py import MPI
world = MPI.COMM_WORLD
sys.stdout.write(f"hello {world.size} {world.allreduce(world.rank)}\\n")  # one write: ranks must not mix
"""
_SHARED_MEMORY = "/dev/shm"
_SHARED_BYTES = 32 << 20  # MPICH takes 3 to 5 MB for a job
_SHARED_BYTES_PER_RANK = 16 << 20  # Open MPI


class Check(NamedTuple):
    """One line."""

    ok: bool
    subject: str
    text: str  # what was found, or what to do

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'FAIL':<4}  {self.subject:<13}  {self.text}"


def run_doctor(env: Mapping[str, str]) -> int:
    """Print every check as soon as it is made; 1 if any failed, else 0."""
    failed = False
    for check in checks(env):
        print(check, flush=True)
        failed |= not check.ok
    return int(failed)


def checks(env: Mapping[str, str]) -> Iterator[Check]:
    """All checks, in the order in which a job meets them; those that a failed one makes pointless are left out."""
    yield Check(True, "Python", f"{platform.python_version()}, {sys.executable}")
    yield Check(True, "exex", __version__)
    yield _allocation(env)
    yield _shared_memory()
    try:
        library = mpi_library(sys.executable, env)
        yield Check(True, "mpi4py", library.mpi4py)
        yield Check(True, "MPI library", f"{library.name} ({library.path})")
        launcher = find_mpiexec(library, sys.executable, env)
    except StartError as error:
        yield Check(False, "MPI", str(error))
        return
    yield Check(True, "mpiexec", f"{launcher.name} ({launcher.path})")
    yield _world(library, launcher, env)


def _allocation(env: Mapping[str, str]) -> Check:
    here = f"here {_count(usable_cores(), 'core')} by affinity"
    try:
        found = find_allocation(env)
    except ConfigError as error:
        return Check(False, "allocation", f"{error}; {here}")
    if not found.batch_system:
        return Check(True, "allocation", f"none: this machine, {here.removeprefix('here ')}")
    words = [f"{found.batch_system} job {found.job}".rstrip(), _nodes(found)]
    cores = found.cores()
    if cores is not None:
        words.append(_count(cores, "core"))
    now_s = time.time()
    end_s = find_end_s(env, now_s)
    if end_s is None:
        words.append("end unknown")
    else:
        left = datetime.timedelta(seconds=round(max(0.0, end_s - now_s)))
        words.append(f"ends at {datetime.datetime.fromtimestamp(end_s):%Y-%m-%d %H:%M:%S} (in {left})")
    return Check(found.size is not None, "allocation", f"{', '.join(words)}; {here}")


def _nodes(found: Allocation) -> str:
    """How many, and the first and the last."""
    if found.size is None:
        return "nodes unknown"
    names = [node.name for node in found.nodes]
    shown = f" ({names[0]} ... {names[-1]})" if len(names) > 2 else f" ({', '.join(names)})" if names else ""
    return _count(found.size, "node") + shown


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _shared_memory() -> Check:
    need = _SHARED_BYTES + _SHARED_BYTES_PER_RANK * (usable_cores() + 1)
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError as error:
        return Check(False, "shared memory", f"{_SHARED_MEMORY}: {error.strerror}; MPI needs it: mount a tmpfs there")
    room = f"{free >> 20} MiB free in {_SHARED_MEMORY}"
    if free < need:
        return Check(
            False,
            "shared memory",
            f"{room}, {need >> 20} MiB wanted: remove mpich_shm_* and sm_segment.* there that killed jobs of yours have left, "
            "or make it larger (in a container: --shm-size)",
        )
    return Check(True, "shared memory", room)


def _world(library: Library, launcher: Launcher, env: Mapping[str, str]) -> Check:
    """Start ranks, and have them talk."""
    try:
        argv, additions = launch_argv(launcher, _HELLO_RANKS, os.getuid())
    except ConfigError as error:  # a launcher's file of the user
        return Check(False, "world", str(error))
    began_s = time.monotonic()
    status, output = _run([*argv, sys.executable, "-c", _HELLO_PROGRAM], {**task_environment(env), **additions})
    took_s = time.monotonic() - began_s
    command = f"`{' '.join(argv)} python`"
    if status is None:
        return Check(False, "world", f"{command} did not end within {_HELLO_TIMEOUT_S:g} s; it printed: {output or 'nothing'}")
    hellos = [line for line in output.splitlines() if line.startswith("hello ")]
    if status != 0 or not hellos:
        return Check(False, "world", f"{command} ended with status {status}; it printed: {output or 'nothing'}")
    if hellos != [f"hello {_HELLO_RANKS} {sum(range(_HELLO_RANKS))}"] * _HELLO_RANKS:
        return Check(
            False,
            "world",
            f"{command} started {len(hellos)} processes that are no world of {_HELLO_RANKS} ({', '.join(hellos)}): "
            f"{launcher.path} is not of the same installation as {library.path}",
        )
    return Check(True, "world", f"{_HELLO_RANKS} ranks started and talked in {took_s:.1f} s")


def _run(argv: list[str], env: Mapping[str, str]) -> tuple[int | None, str]:
    """Exit status, None if it took too long, and all output. Leaves nothing running."""
    with subprocess.Popen(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=_HELLO_TIMEOUT_S)
            return process.returncode, output.strip()
        except subprocess.TimeoutExpired:
            for pid in descendants(process.pid) | {process.pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            output, _ = process.communicate()
            return None, output.strip()
