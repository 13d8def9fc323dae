"""The task graphs of Task Bench, and METG(50 %) of a started system at each of them.

Slaughter et al., "Task Bench: a parameterized benchmark for evaluating parallel runtime performance", SC20. A graph has
`width` points at each of its steps; a point needs some points of the step before. Efficiency is the rate of the compute
kernel, as a share of what all cores reach with nothing beside it. A task's granularity is wall time x cores / tasks, and
METG(50 %) is the granularity at which half of that rate is left: the smallest that a user can afford.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.system import System

KERNEL_RATE = "BENCHMARK_KERNEL_RATE"  # iterations/s of all cores together, which the harness measured before the run
RADIX = 5  # of `nearest` and `spread`: needs of a point
PERIOD = 3  # of `spread`: steps after which its pattern repeats, Task Bench's default
STEPS = 12  # fewest of a run that counts
MOST_TASKS = 200_000  # of one run
HALVINGS = 12  # of the length, before a search is given up
KERNEL_S = 0.5  # how long the kernel runs alone


def trivial(width: int, step: int, point: int) -> list[int]:
    """No needs."""
    return []


def stencil_1d(width: int, step: int, point: int) -> list[int]:
    """The point and its neighbours."""
    return list(range(max(0, point - 1), min(width, point + 2)))


def nearest(width: int, step: int, point: int) -> list[int]:
    """The RADIX points around it."""
    return list(range(max(0, point - RADIX // 2), min(width, point + (RADIX - 1) // 2 + 1)))


def spread(width: int, step: int, point: int) -> list[int]:
    """RADIX points over the whole width, others at each step; with fewer points than that, some of them only once."""
    shift = step % PERIOD
    return sorted({(point + i * width // RADIX + (shift if i else 0)) % width for i in range(RADIX)})


def all_to_all(width: int, step: int, point: int) -> list[int]:
    """All points."""
    return list(range(width))


GRAPHS: dict[str, Callable[[int, int, int], list[int]]] = {
    "trivial": trivial,
    "stencil_1d": stencil_1d,
    "nearest": nearest,
    "spread": spread,
    "all_to_all": all_to_all,
}


def cores(slots: int) -> int:
    """Cores that so many slots can keep busy on this machine."""
    return min(slots, len(os.sched_getaffinity(0)))


def kernel_rate(slots: int) -> float:
    """Iterations/s that the kernel reaches in a process on each core, all at once, with nothing beside it."""
    code = f"from benchmarks.tasks import kernel_rate; print(kernel_rate({KERNEL_S}))"
    argv = [sys.executable, "-c", code]
    started = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(cores(slots))]
    return sum(float(process.communicate()[0]) for process in started)


@dataclass
class Sweep:
    """Runs of one graph at several task lengths.

    Attributes:
        system: has as many workers as the graph is wide.
        name: key of `GRAPHS`.
        peak: iterations/s of all cores together.
        budget_s: seconds that one run should last.
        step_s: what a step takes beside the kernel, as the last run showed.
        most_tasks: of the largest run so far.
    """

    system: System
    name: str
    peak: float
    budget_s: float
    step_s: float = 0.0
    most_tasks: int = 0

    def run(self, length_s: float, steps: int) -> float:
        """Seconds of a run; checks what came out."""
        iterations = int(length_s * self.peak / cores(self.system.workers))
        needs, width = GRAPHS[self.name], self.system.workers
        start_s = time.perf_counter()
        got = self.system.graph(needs, width, steps, iterations)
        took_s = time.perf_counter() - start_s
        expected = [1] * width * steps if needs is trivial else [steps] * width
        if got != expected:
            raise RuntimeError(f"{self.name} of {steps} steps: its last points are {got[:width]}")
        self.most_tasks = max(self.most_tasks, width * steps)
        self.step_s = max(1e-9, took_s / steps - self.work_s(length_s))
        return took_s

    def work_s(self, length_s: float) -> float:
        """What all cores need for a step's kernels alone."""
        return length_s * self.system.workers / cores(self.system.workers)

    def warm_up(self) -> None:
        """Find out what a step costs without any kernel."""
        steps = STEPS
        while self.run(0.0, steps) < self.budget_s / 2 and 2 * steps * self.system.workers <= MOST_TASKS:
            steps *= 2

    def efficiency(self, length_s: float) -> float:
        """The share of the peak that is left at tasks of this length, in a run of about the budget."""
        steps = int(self.budget_s / (self.step_s + self.work_s(length_s)))
        steps = max(STEPS, min(steps, MOST_TASKS // self.system.workers))
        return self.work_s(length_s) * steps / self.run(length_s, steps)

    def metg_s(self) -> float:
        """Sweep downwards by factors of two until less than half is left, then once in between.

        The crossing is interpolated in the logarithm of the length.

        Raises:
            RuntimeError: no length leaves half of the rate.
        """
        self.warm_up()
        length_s = 8 * self.step_s * cores(self.system.workers) / self.system.workers
        while (got := self.efficiency(length_s)) < 0.5:
            length_s *= 4
            if length_s > 100 * self.budget_s:
                raise RuntimeError(f"{self.name}: efficiency {got:.2f} with tasks of {length_s:.3g} s: busy machine?")
        high, low = (length_s, got), (length_s, got)
        for _ in range(HALVINGS):
            length_s = high[0] / 2
            low = (length_s, self.efficiency(length_s))
            if low[1] < 0.5:
                break
            high = low
        else:
            raise RuntimeError(f"{self.name}: efficiency {low[1]:.2f} with tasks of {length_s:.3g} s: no length at 0.5")
        between_s = crossing(low, high)
        middle = (between_s, self.efficiency(between_s))
        if middle[1] < 0.5:
            low = middle
        else:
            high = middle
        return crossing(low, high) / 0.5


def crossing(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Length at which the efficiency is one half, between two (length, efficiency) on either side of it."""
    share = (0.5 - low[1]) / (high[1] - low[1])
    return math.exp(math.log(low[0]) + share * math.log(high[0] / low[0]))


def sweep_all(system: System, budget_s: float, names: Sequence[str] = tuple(GRAPHS)) -> dict[str, tuple[float, int]]:
    """METG(50 %) in seconds and the largest number of tasks, by graph; `width` is the number of workers."""
    peak = float(os.environ[KERNEL_RATE])
    found = {}
    for name in names:
        sweep = Sweep(system, name, peak, budget_s)
        found[name] = sweep.metg_s(), sweep.most_tasks
    return found
