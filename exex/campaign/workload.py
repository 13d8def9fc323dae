"""The script that a job of a campaign runs: no-ops or sleeps, or the user's own script; leaves a file of results.

It is handed to `python -m exex.run` and runs as the client. The file is JSON; docs/campaigns.md says what is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import socket
import sys
import time
from pathlib import Path
from typing import Any

import exex
from exex.client import session

BEGAN = "CAMPAIGN_BEGAN"
"""Variable with the time at which the job script began, in seconds since 1970."""

FORMAT = 1


def nothing() -> None:
    """A no-op."""


def sleep(seconds: float) -> tuple[float, float]:
    """Sleep; returns when it began and ended."""
    began_s = time.time()
    time.sleep(seconds)
    return began_s, time.time()


def run(tasks: int, length_s: float, slots: int) -> dict[str, float]:
    """Submit tasks one by one and take all results; seconds since the first call.

    A no-op for each slot runs before, and is timed alone: that starts the task processes. The tail is the time in which fewer
    tasks were left than there are slots; no-ops do not say when they end.
    """
    no_op, asleep = exex.python_app(nothing), exex.python_app(sleep)
    warm_s = time.perf_counter()
    for future in [no_op() for _ in range(slots)]:
        future.result()
    warm_s = time.perf_counter() - warm_s
    wall_s, began_s = time.time(), time.perf_counter()
    futures = [asleep(length_s) if length_s else no_op() for _ in range(tasks)]
    submitted_s = time.perf_counter() - began_s
    results: list[Any] = [future.result() for future in futures]
    times = {"warm_s": warm_s, "submit_s": submitted_s, "makespan_s": time.perf_counter() - began_s}
    if length_s:
        ends = sorted(ended for _, ended in results)
        times["first_start_s"] = min(started for started, _ in results) - wall_s
        times["last_end_s"] = ends[-1] - wall_s
        times["tail_s"] = ends[-1] - ends[max(0, tasks - slots)]
    return times


def run_script(script: str, args: list[str]) -> dict[str, float]:
    """The user's own, as `__main__`."""
    sys.argv = [script, *args]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    began_s = time.perf_counter()
    runpy.run_path(script, run_name="__main__")
    exex.wait_for_current_tasks()
    return {"makespan_s": time.perf_counter() - began_s}


def write(path: str, result: dict[str, Any]) -> None:
    """All of it or nothing."""
    part = Path(path + ".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def main() -> None:
    """See the module's docstring."""
    ready_s = time.time()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="file of results")
    parser.add_argument("--tasks", type=int, default=0)
    parser.add_argument("--each", type=int, default=0, help="tasks for each slot, instead of --tasks")
    parser.add_argument("--length", type=float, default=0.0, help="seconds; 0 for no-ops")
    parser.add_argument("--point", default="", help="which job of the campaign this is")
    parser.add_argument("script", nargs="*", help="script to run instead, and its arguments")
    args = parser.parse_args()
    welcome = session.current("the workload").proxy.welcome
    tasks = args.tasks or args.each * welcome.slots
    began = os.environ.get(BEGAN)
    result: dict[str, Any] = {
        "format": FORMAT,
        "point": args.point,
        "exex": exex.__version__,
        "host": socket.gethostname(),
        "nodes": sum(shape.count for shape in welcome.nodes),
        "workers": welcome.workers,
        "slots": welcome.slots,
        "tasks": tasks,
        "length_s": args.length,
        "startup_s": ready_s - float(began) if began else None,
    }
    times = run_script(args.script[0], args.script[1:]) if args.script else run(tasks, args.length, welcome.slots)
    write(args.out, {**result, **times})


if __name__ == "__main__":
    main()
