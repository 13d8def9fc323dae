"""`python -m benchmarks.table`: runs workloads on all systems, turn by turn, and prints a Markdown table.

In every repeat each system has one turn at a workload before any has its second, so that a machine that slows
down or warms up does so for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import SYSTEMS, Results, run_driver

DEFAULT_SYSTEMS = ("exex", "mpi4py", "mpi4py-spin", "parsl", "dask", "hyperqueue", "bare")


@dataclass(frozen=True)
class Row:
    """One row: the value's name, the workload that yields it, and what it is called in print."""

    name: str
    workload: str
    title: str


ROWS = (
    Row("submit", "submit", "no-op by `submit`, tasks/s"),
    Row("map", "map", "no-op by `map`, default chunks, tasks/s"),
    Row("map100", "map100", "no-op by `map`, chunks of 100, tasks/s"),
    Row("latency_p50", "latency", "round trip p50, us (less is better)"),
    Row("latency_p99", "latency", "round trip p99, us (less is better)"),
    Row("chain", "chain", "chain of dependents, links/s"),
    Row("tree", "tree", "binary reduction tree, tasks/s"),
    Row("bash", "bash", "bash tasks running `true`, tasks/s"),
    Row("megabyte", "megabyte", "1 MB argument and result, tasks/s (= MB/s each way)"),
    Row("metg", "metg", "METG(50 %), us (less is better)"),
    Row("idle", "idle", "idle CPU per rank, % of a core (less is better)"),
    Row("memory", "memory", "manager's memory per waiting task, B (less is better)"),
    Row("start", "start", "start of a world of 17 ranks to first result, s (less is better)"),
)


def number(value: float) -> str:
    """Three significant digits, with thousands separated and no exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def cell(summary: dict[str, Any] | None) -> str:
    """Median and spread of one value, or a dash."""
    if summary is None:
        return "-"
    return f"{number(summary['value'])} ±{50 * summary['spread']:.0f} %"


def markdown(results: Results, systems: Sequence[str], workloads: Sequence[str]) -> str:
    """The table, then the reasons for its dashes."""
    found = {(summary["name"], summary["system"]): summary for summary in results.summaries()}
    lines = [f"| | {' | '.join(systems)} |", f"|---|{'---:|' * len(systems)}"]
    for row in ROWS:
        if row.workload in workloads:
            cells = [cell(found.get((row.name, system))) for system in systems]
            lines.append(f"| {row.title} | {' | '.join(cells)} |")
    lines.append("")
    for (workload, system), reason in sorted(results.reasons.items()):
        lines.append(f"* {workload}, {system}: {reason}")
    return "\n".join(lines)


def heading(results: Results, repeats: int, load: Sequence[tuple[float, float, float]]) -> str:
    """What was measured, where and how: versions, machine, load by others."""
    versions: dict[str, str] = {}
    for summary in results.summaries():
        versions.update(summary["versions"])
    named = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    loads = [one[0] for one in load]
    return (
        f"2 workers each; median of {repeats} runs ± half of (max - min) / median; systems take turns.\n"
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {named};"
        f" load average between {min(loads):.1f} and {max(loads):.1f}.\n"
    )


def choice(text: str, known: Collection[str]) -> list[str]:
    """Comma-separated names out of `known`, in the order given."""
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return names


def arguments() -> argparse.Namespace:
    """Command line of the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repeat of 0.5 s: does everything work?")
    every = {row.workload: None for row in ROWS}
    parser.add_argument("--only", type=lambda text: choice(text, every), default=list(every))
    parser.add_argument("--systems", type=lambda text: choice(text, SYSTEMS), default=list(DEFAULT_SYSTEMS))
    parser.add_argument("--repeats", type=int, help="5, or 1 with --quick")
    parser.add_argument("--budget", type=float, help="seconds per counted run; 3, or 0.5 with --quick")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds after which a run is given up")
    parser.add_argument("--json", help="file to append one JSON line per benchmark and system to")
    return parser.parse_args()


def main() -> None:
    """Run everything asked for, print the table, append the JSON lines."""
    args = arguments()
    repeats = args.repeats or (1 if args.quick else 5)
    budget_s = args.budget or (0.5 if args.quick else 3.0)
    results = Results()
    load = [os.getloadavg()]
    for workload in args.only:
        for repeat in range(repeats):
            for system in args.systems:
                if results.is_hopeless(workload, system):
                    continue
                print(f"{workload} {repeat + 1}/{repeats} {system}", file=sys.stderr, flush=True)
                results.add(workload, system, run_driver(system, workload, budget_s, args.limit))
                load.append(os.getloadavg())
    print(heading(results, repeats, load))
    print(markdown(results, args.systems, args.only))
    if args.json:
        with open(args.json, "a", encoding="ascii") as file:
            file.writelines(json.dumps(summary) + "\n" for summary in results.summaries())


if __name__ == "__main__":
    main()
