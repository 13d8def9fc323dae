"""Many real ranks on one machine: what their start is made of, no-ops, memory, and the end.

`python -m benchmarks.many_ranks --shapes 16x8,128x1` prints a Markdown table; a shape is ranks (the manager included) and slots.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.harness import ROOT, mpiexec

STEPS = ("first line", "rank forked", "mpi4py imported", "MPI_Init done", "template ready")


def run(ranks: int, slots: int, tasks: int, limit_s: float, options: list[str]) -> dict[str, Any]:
    """One job.

    Raises:
        RuntimeError: it failed, took too long, or left a process behind.
    """
    mark = uuid.uuid4().hex
    drivers = ROOT / "benchmarks" / "drivers"
    with tempfile.TemporaryDirectory() as directory:
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MANY_RANKS_PIDS": str(Path(directory) / "pids"),
            "MANY_RANKS_LAUNCHED": repr(time.monotonic()),
            processes.RUN_MARK: mark,
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
            "PRTE_MCA_hwloc_default_binding_policy": "none",
        }
        exex = ["--slots", str(slots), "--manager-slots", "0", *options, str(drivers / "many_ranks_script.py"), str(tasks)]
        argv = [mpiexec(), "-n", str(ranks), sys.executable, str(drivers / "many_ranks.py"), *exex]
        try:
            done = subprocess.run(argv, env=env, cwd=directory, capture_output=True, text=True, timeout=limit_s, check=False)
        finally:
            ended_s = time.monotonic()
            left = processes.end(mark, 1.0)
    if done.returncode or left:
        raise RuntimeError(f"{ranks} ranks: exit status {done.returncode}, {left} processes left\n{done.stderr[-3000:]}")
    start, end = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    return {**start, **end, "end_s": ended_s - end["ended_s"], "ranks": ranks, "slots": slots}


def row(runs: list[dict[str, Any]]) -> str:
    """A line of the table: medians over runs; of the ranks of a run the last one, of which all depends."""
    first = runs[0]

    def median(values: list[float]) -> float:
        return statistics.median(values)

    cells = [f"{first['ranks']} x {first['slots']}"]
    cells += [f"{median([each['steps'][number][-1] for each in runs]):.2f}" for number in range(len(STEPS))]
    cells += [f"{median([each[name] for each in runs]):.2f}" for name in ("last_hello_s", "first_result_s")]
    cells.append(f"{median([each['noops_per_s'] for each in runs]):,.0f}")
    cells.append(f"{median([each['end_s'] for each in runs]):.2f}")
    total = median([sum(role["mib"] for name, role in each["memory"].items() if name != "launcher") for each in runs])
    cells.append(f"{total / first['ranks']:.1f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run all shapes in turns, then print the table and the memory by role."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="2x1,8x1,32x1,128x1,16x8", help="RANKSxSLOTS,...; default: %(default)s")
    parser.add_argument("--tasks", type=int, default=100_000, help="no-ops; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one run; default: %(default)s")
    parser.add_argument("--json", help="file to which each run is appended as a line")
    parser.add_argument("options", nargs="*", help="of exex, after --")
    words = parser.parse_args()
    shapes = [tuple(int(number) for number in shape.split("x")) for shape in words.shapes.split(",")]
    runs: dict[tuple[int, ...], list[dict[str, Any]]] = {shape: [] for shape in shapes}
    for _ in range(words.repeats):
        for shape in shapes:
            runs[shape].append(run(shape[0], shape[1], words.tasks, words.limit, words.options))
            if words.json:
                with open(words.json, "a") as file:
                    file.write(json.dumps(runs[shape][-1]) + "\n")
    print(f"| ranks x slots | {' | '.join(STEPS)} | last Hello | first result | no-ops/s | end, s | MiB per rank |")
    print("|---|" + "---:|" * (len(STEPS) + 5))
    for shape in shapes:
        print(row(runs[shape]))
    for shape in shapes:
        roles = runs[shape][-1]["memory"]
        shown = ", ".join(f"{role} {each['mib'] / each['processes']:.1f} ({each['processes']})" for role, each in roles.items())
        print(f"\n{shape[0]} x {shape[1]}: MiB of one (processes): {shown}")


if __name__ == "__main__":
    main()
