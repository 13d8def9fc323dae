"""The functions that every system runs as tasks.

They live in a module that workers can import, so that every system may pickle them by reference, which is its
fastest way. Nothing here may import a third-party package: an interpreter per task (HyperQueue) would pay.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time


def noop(*_args: object) -> None:
    """Do nothing with any arguments: what remains is the system's own cost."""


def identity(value: int) -> int:
    """Return `value`: the leaf of a reduction tree."""
    return value


def increment(value: int) -> int:
    """Return `value` + 1: one link of a chain."""
    return value + 1


def add(left: int, right: int) -> int:
    """Return the sum: an inner node of a reduction tree."""
    return left + right


def add_pair(pair: tuple[int, int]) -> int:
    """Return the sum of a pair: an inner node for systems that map over one iterable."""
    return pair[0] + pair[1]


def echo(data: bytes) -> bytes:
    """Return `data` as it came: as many bytes out as in."""
    return data


def spin(length_us: float) -> None:
    """Burn `length_us` microseconds of CPU time of this thread.

    CPU time, not wall time: on a machine with fewer cores than busy processes a task that waits for a core
    must not pass for one that works.
    """
    end_ns = time.thread_time_ns() + int(length_us * 1e3)
    while time.thread_time_ns() < end_ns:
        pass


def kernel(iterations: int) -> float:
    """Dependent multiplications and additions, as Task Bench's compute-bound kernel has."""
    value = 1.0
    for _ in range(iterations):
        value = value * 0.5 + 0.25
    return value


def kernel_rate(seconds: float) -> float:
    """Iterations/s of the kernel in this process: the median of pieces of about 20 ms."""
    end_s = time.perf_counter() + seconds
    rates: list[float] = []
    iterations = 1000
    while (start_s := time.perf_counter()) < end_s:
        kernel(iterations)
        rates.append(iterations / (time.perf_counter() - start_s))
        iterations = int(rates[-1] * 0.02)
    return statistics.median(rates)


def point(iterations: int, *needs: int) -> int:
    """A point of a task graph: the kernel, then the number of the step, one more than that of all that it needs."""
    kernel(iterations)
    if not needs:
        return 1
    if min(needs) != max(needs):
        raise ValueError(f"needs of different steps: {needs}")
    return needs[0] + 1


def run_true() -> int:
    """Run `true` under bash, as a Python task of a system without bash tasks; returns the exit code."""
    return subprocess.run(["bash", "-c", "true"], check=True).returncode


def wait_for_file(path: str) -> None:
    """Return once `path` exists, looking every 50 ms: a task that blocks its dependents."""
    while not os.path.exists(path):
        time.sleep(0.05)
