"""Many tasks in one job: does anything grow, does anything slow down? `python -m tests.soak --tasks 5000000`.

Starts a real world (mpiexec, two workers), in which a script submits no-op tasks one by one and never holds more than a
window of futures. Beside it the memory of manager, client and workers is sampled ten times a second. Writes
`soak.csv`, and `soak.png` if matplotlib is there. Ends with 1 if the memory of manager or client grows after the
first tenth, or if the last tenth of the tasks is slower than 95 % of the first.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from tests.launch import Launch

SCRIPT = """
import os, sys, time
from collections import deque
import exex
from exex import python_app

@python_app
def nothing(x):
    return None

total, window = {tasks}, {window}
[future.result() for future in [nothing(i) for i in range(20_000)]]
print("pids", exex.manager_pid(), os.getpid(), flush=True)
tenth, wave = total // 10, window // 2
futures = deque()
began = time.perf_counter()
for number in range(total):
    futures.append(nothing(number))
    if len(futures) >= window:
        for _ in range(wave):
            assert futures.popleft().result() is None
    if (number + 1) % tenth == 0:
        now = time.perf_counter()
        print("rate", tenth / (now - began), flush=True)
        began = now
while futures:
    assert futures.popleft().result() is None
print("done", flush=True)
"""

GROWTH_MIB = 4.0
"""What a process may grow by between the first tenth and the end."""

SLOPE_MIB = 2.0
"""And what a line through its samples after the first tenth may rise by."""

KEPT_RATE = 0.95


class Samples:
    """Resident memory in MiB of the processes of a job, by role, with the time and the tasks done by then."""

    def __init__(self, processes: dict[str, psutil.Process]) -> None:
        self.processes = processes
        self.times_s: list[float] = []
        self.tenths: list[int] = []
        self.mib: dict[str, list[float]] = {role: [] for role in processes}

    def take(self, now_s: float, tenth: int) -> None:
        """One sample of each."""
        try:
            found = {role: process.memory_info().rss / 2**20 for role, process in self.processes.items()}
        except psutil.NoSuchProcess:
            return  # the job ends
        self.times_s.append(now_s)
        self.tenths.append(tenth)
        for role, value in found.items():
            self.mib[role].append(value)

    def steady(self, role: str) -> tuple[list[float], list[float]]:
        """Times and memory after the first tenth of the tasks, until the last was submitted."""
        chosen = [i for i, tenth in enumerate(self.tenths) if 1 <= tenth < 10]
        return [self.times_s[i] for i in chosen], [self.mib[role][i] for i in chosen]

    def growth(self, role: str) -> tuple[float, float]:
        """From the first to the last fifth of the steady samples, by their medians; and the rise of a fitted line, in MiB."""
        times, values = self.steady(role)
        if len(times) < 10:
            raise SystemExit("the job was too short to say anything: give it more tasks")
        fifth = len(values) // 5
        grown = sorted(values[-fifth:])[fifth // 2] - sorted(values[:fifth])[fifth // 2]
        mean_t, mean_v = sum(times) / len(times), sum(values) / len(values)
        spread = sum((t - mean_t) ** 2 for t in times)
        slope = sum((t - mean_t) * (v - mean_v) for t, v in zip(times, values)) / spread
        return grown, slope * (times[-1] - times[0])

    def write(self, path: Path) -> None:
        """As CSV: seconds, tenths of the tasks that are submitted, MiB of each process."""
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["seconds", "tenths", *self.mib])
            rows.writerows([f"{t:.2f}", n, *(f"{v[i]:.2f}" for v in self.mib.values())] for i, (t, n) in enumerate(zip(self.times_s, self.tenths)))

    def plot(self, path: Path) -> bool:
        """As a picture; False without matplotlib."""
        try:
            import matplotlib
        except ImportError:
            return False
        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8, 4))
        for role, values in self.mib.items():
            axes.plot(self.times_s, values, label=role)
        axes.set_xlabel("seconds")
        axes.set_ylabel("resident memory (MiB)")
        axes.set_ylim(bottom=0)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(path, dpi=100, bbox_inches="tight")
        return True


def workers_of(root: psutil.Process, manager: int) -> dict[str, psutil.Process]:
    """The worker ranks, known by the MPI library in their memory, and their templates and task processes."""
    found: dict[str, psutil.Process] = {}
    for guard in root.children(recursive=True):
        below = guard.children()
        rank = next((p for p in below if "libmpi" in Path(f"/proc/{p.pid}/maps").read_text()), None)
        if rank is None or manager in (guard.pid, rank.pid) or "exex.run" not in rank.cmdline():
            continue
        number = sum(name.startswith("worker") for name in found)
        found[f"worker {number}"] = rank
        for other in guard.children(recursive=True):
            if other.pid != rank.pid:
                found[f"process {other.pid} of worker {number}"] = other
    return found


def soak(tasks: int, window: int, directory: Path) -> tuple[Samples, list[float]]:
    """Run the job; its samples, and tasks per second in each tenth.

    Raises:
        AssertionError: the job did not end well.
    """
    launch = Launch(directory)
    script = directory / "soak_workflow.py"
    script.write_text(SCRIPT.format(tasks=tasks, window=window))
    job = launch.start(launch.argv(3, "-m", "exex.run", str(script)))
    assert job.stdout is not None
    os.set_blocking(job.stdout.fileno(), False)
    samples: Samples | None = None
    rates: list[float] = []
    pending, said, began_s = "", "", time.monotonic()
    try:
        while job.poll() is None:
            try:
                pending += os.read(job.stdout.fileno(), 65536).decode()
            except BlockingIOError:
                pass
            *lines, pending = pending.split("\n")
            for line in lines:
                said = line
                words = line.split()
                if words[:1] == ["pids"]:
                    manager, client = int(words[1]), int(words[2])
                    processes = {"manager": psutil.Process(manager), "client": psutil.Process(client)}
                    samples = Samples(processes | workers_of(psutil.Process(job.pid), manager))
                elif words[:1] == ["rate"]:
                    rates.append(float(words[1]))
                    print(f"tenth {len(rates):2}: {rates[-1]:,.0f} tasks/s", flush=True)
            if samples is not None:
                samples.take(time.monotonic() - began_s, len(rates))
            time.sleep(0.1)  # between samples
    except BaseException:
        os.killpg(job.pid, signal.SIGTERM)
        raise
    out, err = job.communicate()
    said = ((pending + out).strip().split("\n") or [said])[-1] or said
    assert job.returncode == 0 and said == "done", (job.returncode, said, err)
    assert samples is not None
    return samples, rates


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--tasks", type=int, default=5_000_000)
    parser.add_argument("--window", type=int, default=20_000, help="futures that the script holds at the most")
    parser.add_argument("--to", type=Path, default=Path("soak"), help="directory for what is written")
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    samples, rates = soak(args.tasks, args.window, args.to.resolve())
    samples.write(args.to / "soak.csv")
    samples.plot(args.to / "soak.png")
    good = True
    for role in samples.mib:
        grown, rise = samples.growth(role)
        _, values = samples.steady(role)
        judged = role in ("manager", "client")
        flat = grown < GROWTH_MIB and rise < SLOPE_MIB
        good &= flat or not judged
        verdict = ("flat" if flat else "GROWS") if judged else ""
        print(f"{role:24} {values[0]:8.1f} -> {values[-1]:8.1f} MiB after the first tenth, median {grown:+.2f}, line {rise:+.2f}  {verdict}")
    kept = rates[-1] / rates[0]
    good &= kept >= KEPT_RATE
    print(f"{args.tasks:,} tasks: last tenth {rates[-1]:,.0f}/s, first {rates[0]:,.0f}/s: {kept:.0%} {'' if kept >= KEPT_RATE else 'TOO SLOW'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
