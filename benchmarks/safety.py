"""What safety costs: no-op rates of exex with and without its parts, in turns: `python -m benchmarks.safety [--repeats 5]`.

Each run is a job of its own (two workers of one slot); the first waves warm up, the median wave counts. A ratio compares runs
that stand side by side; the table has their median, and the spread over all pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import ROOT, mpiexec

WORKFLOW = """
import sys, time
from exex import python_app

@python_app(cache={cache})
def noop(x):
    return None

rates, first = [], 0
for wave in range({waves}):
    numbers = range(first, first + {tasks})
    first += {tasks}
    began_s = time.perf_counter()
    futures = [noop(number) for number in numbers]
    for future in futures:
        future.result()
    rates.append({tasks} / (time.perf_counter() - began_s))
    del futures
print(sorted(rates[1:])[(len(rates) - 1) // 2])
"""


class Variant(NamedTuple):
    """One way to run the same tasks."""

    options: tuple[str, ...] = ()
    cache: bool = False


PAIRS: dict[str, tuple[Variant, Variant]] = {
    "heartbeats": (Variant(("--heartbeat-limit-s", "0")), Variant(("--heartbeat-s", "1", "--heartbeat-limit-s", "20"))),
    "a known end of the allocation": (Variant(("--walltime", "none")), Variant(("--walltime", "10:00:00"))),
    "isolation": (Variant(("--isolation", "none")), Variant(("--isolation", "process"))),
    "a journal, for cached calls": (Variant(cache=True), Variant(("--journal", "FILE"), cache=True)),
}
"""What is switched on: without, with."""


def rate(variant: Variant, tasks: int, waves: int) -> float:
    """Tasks per second of one run."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "workflow.py")
        script.write_text(WORKFLOW.format(cache=variant.cache, tasks=tasks, waves=waves))
        options = [str(Path(folder, "journal")) if word == "FILE" else word for word in variant.options]
        argv = [mpiexec(), "-n", "3", sys.executable, "-m", "exex.run", *options, str(script)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr[-2000:]}")
        return float(done.stdout.split()[-1])


def main() -> None:
    """Run all pairs in turns, print a table, and a JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=50_000, help="of one wave")
    parser.add_argument("--waves", type=int, default=6)
    parser.add_argument("--only", default="", help="names of pairs, with commas")
    args = parser.parse_args()
    chosen = {name: pair for name, pair in PAIRS.items() if not args.only or name in args.only.split(",")}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for repeat in range(args.repeats):
        for name, (without, switched_on) in chosen.items():
            order = (without, switched_on) if repeat % 2 == 0 else (switched_on, without)
            measured = {variant: rate(variant, args.tasks, args.waves) for variant in order}
            rates[name].append((measured[without], measured[switched_on]))
            print(f"{repeat + 1}/{args.repeats} {name}", file=sys.stderr, flush=True)
    print("| what | without, tasks/s | with, tasks/s | with/without |\n|---|---:|---:|---:|")
    for name, pairs in rates.items():
        ratios = sorted(100 * after / before for before, after in pairs)
        without_rate, with_rate = (statistics.median(column) for column in zip(*pairs))
        spread = f"{ratios[0]:.0f} to {ratios[-1]:.0f}"
        print(f"| {name} | {without_rate:,.0f} | {with_rate:,.0f} | {statistics.median(ratios):.0f} % ({spread}) |")
    for name, pairs in rates.items():
        print(json.dumps({"name": name, "unit": "tasks/s", "repeats": args.repeats, "pairs": pairs}))


if __name__ == "__main__":
    main()
