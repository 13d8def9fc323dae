"""Runs one workload against one started system and prints its raw values: the part that all drivers share.

A driver calls `main(Driver)`; the harness passes the workload and its size on the command line, and the time
of the launch in the environment.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks import graphs, tasks
from benchmarks.processes import cpu_seconds
from benchmarks.system import WINDOW, NotOfferedError, System

LAUNCH_TIME = "BENCHMARK_LAUNCHED"  # time.time() at which the harness started the driver
BLOCK_BYTES = 1_000_000


@dataclass(frozen=True)
class Value:
    """One raw value of one run.

    Attributes:
        name: row of the table.
        value: in `unit`.
        unit: as printed.
        size: number of tasks (or samples) behind the value.
        extra: further numbers worth keeping, by name.
    """

    name: str
    value: float
    unit: str
    size: int
    extra: dict[str, float] = field(default_factory=dict)


def sized(run: Callable[[int], object], budget_s: float, start: int, cap: int) -> tuple[int, float]:
    """Grow the size of `run` until one run lasts about `budget_s`; earlier ones warm the system up.

    Args:
        run: does the work of the given size and returns when it is done.
        budget_s: seconds that the counted run should last; at least half of it, unless `cap` comes first.
        start: first size; sizes grow by factors of two, so that a power of two stays one.
        cap: largest size.

    Returns:
        Size and seconds of the last run.
    """
    size = start
    while True:
        start_s = time.perf_counter()
        run(size)
        took_s = time.perf_counter() - start_s
        if took_s >= budget_s / 2 or size >= cap:
            return size, took_s
        doublings = min(4, max(1, int(math.log2(budget_s / took_s))))
        size = min(cap, size << doublings)


def rate(name: str, run: Callable[[int], object], budget_s: float, start: int, cap: int) -> list[Value]:
    """Tasks per second of `run` at the size that fills the budget."""
    size, took_s = sized(run, budget_s, start, cap)
    return [Value(name, size / took_s, "tasks/s", size)]


def submit(system: System, budget_s: float) -> list[Value]:
    """Rate of no-op tasks submitted one by one, every result in hand."""
    return rate("submit", system.noops, budget_s, 64, 1 << 20)


def map_default(system: System, budget_s: float) -> list[Value]:
    """Rate of no-op tasks by `map` with the system's default chunk size."""
    return rate("map", lambda n: system.map(tasks.noop, range(n), None), budget_s, 64, 1 << 22)


def map_100(system: System, budget_s: float) -> list[Value]:
    """Rate of no-op tasks by `map` in chunks of 100."""
    return rate("map100", lambda n: system.map(tasks.noop, range(n), 100), budget_s, 1024, 1 << 22)


def latency(system: System, budget_s: float) -> list[Value]:
    """Median and 99th percentile of 1,000 round trips after 200 to warm up; fewer within 10 budgets."""
    first_s = system.round_trip_s()
    for _ in range(int(min(200, 2 * budget_s / first_s))):
        system.round_trip_s()
    end_s = time.perf_counter() + 10 * budget_s
    samples: list[float] = []
    while len(samples) < 3 or (len(samples) < 1000 and time.perf_counter() < end_s):
        samples.append(system.round_trip_s() * 1e6)
    p99 = sorted(samples)[min(len(samples) - 1, int(0.99 * len(samples)))]
    count = len(samples)
    return [
        Value("latency_p50", statistics.median(samples), "us", count),
        Value("latency_p99", p99, "us", count),
    ]


def chain(system: System, budget_s: float) -> list[Value]:
    """Links per second of a chain of up to 10,000 dependents."""

    def run(links: int) -> None:
        got = system.chain(links)
        if got != links:
            raise RuntimeError(f"a chain of {links} links returned {got}")

    size, took_s = sized(run, budget_s, 16, 10_000)
    return [Value("chain", size / took_s, "links/s", size)]


def tree(system: System, budget_s: float) -> list[Value]:
    """Tasks per second of a binary reduction tree of up to 2^15 leaves (2 * leaves - 1 tasks)."""

    def run(leaves: int) -> None:
        got = system.tree(leaves)
        if got != leaves * (leaves - 1) // 2:
            raise RuntimeError(f"a tree of {leaves} leaves returned {got}")

    leaves, took_s = sized(run, budget_s, 8, 1 << 15)
    return [Value("tree", (2 * leaves - 1) / took_s, "tasks/s", 2 * leaves - 1)]


def bash(system: System, budget_s: float) -> list[Value]:
    """Rate of up to 3,000 bash tasks that run `true`."""
    return rate("bash", system.bash, budget_s, 16, 3000)


def megabyte(system: System, budget_s: float) -> list[Value]:
    """Rate of tasks that take and return 1 MB of bytes that no compressor can shrink."""
    blocks = [os.urandom(BLOCK_BYTES) for _ in range(WINDOW)]

    def run(count: int) -> None:
        got = system.echo(blocks[index % WINDOW] for index in range(count))
        if got != count * BLOCK_BYTES:
            raise RuntimeError(f"{count} blocks of {BLOCK_BYTES} bytes came back as {got} bytes")

    return rate("megabyte", run, budget_s, 2 * WINDOW, 1 << 14)


def efficiency(system: System, length_us: float, overhead_us: float, budget_s: float) -> float:
    """Share of the slots' time that is useful work; `overhead_us` per task only sizes the run."""
    count = max(4 * system.workers, int(budget_s * 1e6 * system.workers / (length_us + overhead_us)))
    start_s = time.perf_counter()
    system.spins(count, length_us)
    return count * length_us / 1e6 / (system.workers * (time.perf_counter() - start_s))


def metg(system: System, budget_s: float) -> list[Value]:
    """Smallest task length at which half of the slots' time is useful work: METG(50 %).

    As in Slaughter et al., "Task Bench: a parameterized benchmark for evaluating parallel runtime
    performance", SC20. The length is swept in factors of two, and the crossing interpolated in the logarithm
    of the length.
    """
    count, took_s = sized(system.noops, budget_s / 2, 64, 1 << 20)
    overhead_us = took_s / count * system.workers * 1e6
    length_us = overhead_us / 2
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    got = 0.0
    for _ in range(16):
        got = efficiency(system, length_us, overhead_us, budget_s / 2)
        if got < 0.5:
            low = (length_us, got)
        else:
            high = (length_us, got)
        if (low and high) or length_us > budget_s * 1e6:
            break
        length_us *= 2 if high is None else 0.5
    if not (low and high):
        raise RuntimeError(f"efficiency {got:.2f} at {length_us:.0f} us, no length at 0.5: busy machine?")
    share = (0.5 - low[1]) / (high[1] - low[1])
    return [Value("metg", low[0] * (high[0] / low[0]) ** share, "us", count)]


def metg_graphs(system: System, budget_s: float) -> list[Value]:
    """METG(50 %) of each graph of Task Bench, as wide as there are workers."""
    found = graphs.sweep_all(system, budget_s / 4)
    return [Value(name, 1e6 * metg_s, "us", count) for name, (metg_s, count) in found.items()]


def idle(system: System, budget_s: float) -> list[Value]:
    """CPU of the idle system per rank, in percent of one core, from 5 s after the last task, over 3 s."""
    sized(system.noops, min(1.0, budget_s), 64, 1 << 16)
    time.sleep(5.0)
    start_s, before = time.perf_counter(), cpu_seconds()
    time.sleep(3.0)
    took_s, after = time.perf_counter() - start_s, cpu_seconds()
    used_s = sum(after[pid] - before.get(pid, 0.0) for pid in after)
    ranks = system.workers + 1
    return [Value("idle", 100 * used_s / took_s / ranks, "% of a core", ranks, {"processes": len(after)})]


def memory(system: System, budget_s: float) -> list[Value]:
    """Bytes at the manager per waiting task beyond its payload, at 1,000,000 (quick: 100,000) of them."""
    count = 1_000_000 if budget_s >= 1 else 100_000
    grown_bytes, payload_bytes = system.waiting_bytes(count)
    extra = {"payload_bytes": payload_bytes}
    return [Value("memory", grown_bytes - payload_bytes, "B/task", count, extra)]


def start(system: System, budget_s: float) -> list[Value]:
    """Seconds from the start of the launcher to the first result, with the driver's number of workers."""
    system.gather([system.submit(tasks.noop)])
    return [Value("start", time.time() - float(os.environ[LAUNCH_TIME]), "s", system.workers + 1)]


WORKLOADS: dict[str, Callable[[System, float], list[Value]]] = {
    "submit": submit,
    "map": map_default,
    "map100": map_100,
    "latency": latency,
    "chain": chain,
    "tree": tree,
    "bash": bash,
    "megabyte": megabyte,
    "metg": metg,
    "graphs": metg_graphs,
    "idle": idle,
    "memory": memory,
    "start": start,
}


def arguments() -> argparse.Namespace:
    """Command line of a driver: workload, budget in seconds, number of workers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds that one counted run should last")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def report(system: System, workload: str, budget_s: float) -> None:
    """Run `workload` and print one JSON line per value, or one that says why there is none."""
    shared = {"system": system.name, "versions": system.versions(), "ranks": system.workers + 1}
    try:
        if workload not in ("start", "idle"):
            system.gather([system.submit(tasks.noop) for _ in range(4 * system.workers)])
        values = WORKLOADS[workload](system, budget_s)
    except NotOfferedError as reason:
        print(json.dumps({"name": workload, "skip": str(reason), **shared}), flush=True)
        return
    for value in values:
        print(json.dumps({**vars(value), **shared}), flush=True)


def main(start_system: Callable[[int], System]) -> None:
    """Start the system, run the workload of the command line, stop the system."""
    args = arguments()
    system = start_system(args.workers)
    try:
        report(system, args.workload, args.budget)
    finally:
        system.close()
