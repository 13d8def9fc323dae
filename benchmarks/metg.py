"""`python -m benchmarks.metg`: METG(50 %) of Task Bench's graphs on all systems, turn by turn, as Markdown tables.

A run is one system with one number of slots; it measures all graphs, each as wide as there are slots. Before it, the compute
kernel runs alone on all cores: what it reaches there is what efficiency is measured by, also with more slots than cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.graphs import GRAPHS, cores
from benchmarks.harness import SYSTEMS, Results, run_driver
from benchmarks.table import choice, number

DEFAULT_SYSTEMS = ("exex-node", "exex", "exex-in-rank", "mpi4py", "mpi4py-spin", "dask", "parsl")
FIRST = "exex-node"  # what the others are compared with


def cell(summary: dict[str, Any] | None) -> str:
    """Median of one value with its range, or a dash."""
    if summary is None:
        return "-"
    low, high = min(summary["samples"]), max(summary["samples"])
    return f"{number(summary['value'])} ({number(low)} to {number(high)})"


def markdown(results: Results, systems: Sequence[str], slots: int) -> str:
    """One table: a row for each graph, and what the best of the others needs, in units of what exex needs."""
    found = {(summary["name"], summary["system"]): summary for summary in results.summaries()}
    others = [system for system in systems if not system.startswith("exex")]
    lines = [f"{slots} slots on {cores(slots)} cores, us:\n", f"| | {' | '.join(systems)} | best of the others : {FIRST} |"]
    lines.append(f"|---|{'---:|' * (len(systems) + 1)}")
    for name in GRAPHS:
        ours = found.get((name, FIRST))
        theirs = [found[name, system]["value"] for system in others if (name, system) in found]
        ratio = f"{min(theirs) / ours['value']:.1f}" if ours and theirs else "-"
        lines.append(f"| {name} | {' | '.join(cell(found.get((name, system))) for system in systems)} | {ratio} |")
    lines += ["", *(f"* {system}: {reason}" for (_, system), reason in sorted(results.reasons.items()))]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", default="2,8", help="numbers of slots; default: %(default)s")
    parser.add_argument("--systems", type=lambda text: choice(text, SYSTEMS), default=list(DEFAULT_SYSTEMS))
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds; a quarter for each length; default: %(default)s")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which a run is given up; default: %(default)s")
    parser.add_argument("--json", help="file to append one JSON line per value and system to")
    return parser.parse_args()


def main() -> None:
    """Run everything asked for, print the tables, append the JSON lines."""
    args = arguments()
    tables = []
    for slots in (int(each) for each in args.slots.split(",")):
        results = Results()
        for repeat in range(args.repeats):
            for system in args.systems:
                if results.is_hopeless("graphs", system):
                    continue
                load = os.getloadavg()[0]
                print(f"{slots} slots {repeat + 1}/{args.repeats} {system}, load {load:.1f}", file=sys.stderr, flush=True)
                results.add("graphs", system, run_driver(system, "graphs", args.budget, args.limit, slots))
        tables.append(markdown(results, args.systems, slots))
        if args.json:
            with open(args.json, "a", encoding="ascii") as file:
                file.writelines(json.dumps({**summary, "slots": slots}) + "\n" for summary in results.summaries())
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
