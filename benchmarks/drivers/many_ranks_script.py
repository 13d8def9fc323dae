"""The workflow of `benchmarks.many_ranks`: no-ops, then the memory of every process of the job."""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict

import psutil

from benchmarks import processes
from exex import Executor


def noop(number: int) -> None:
    """Do nothing."""


def run(count: int) -> dict[str, float]:
    """First result, then `count` no-ops by `submit`."""
    launched_s = float(os.environ["MANY_RANKS_LAUNCHED"])
    script_s = time.monotonic() - launched_s
    with Executor() as executor:
        executor.submit(noop, 0).result()
        first_s = time.monotonic() - launched_s
        began_s = time.monotonic()
        futures = [executor.submit(noop, number) for number in range(count)]
        for future in futures:
            future.result()
        spent_s = time.monotonic() - began_s
    return {"script_s": script_s, "first_result_s": first_s, "noops_per_s": count / spent_s}


def memory() -> dict[str, dict[str, float]]:
    """Proportional share (Pss) of all processes in MiB, by role: how many, and their sum."""
    with open(os.environ["MANY_RANKS_PIDS"]) as file:
        ranks = set(json.load(file))
    guards = {psutil.Process(pid).ppid() for pid in ranks}
    templates: set[int] = set()
    for guard in guards:
        templates |= {child.pid for child in psutil.Process(guard).children()} - ranks - {os.getpid()}
    found: dict[str, list[float]] = defaultdict(list)
    for process in processes.marked(os.environ[processes.RUN_MARK]):
        try:
            role = "task process and keeper"
            if process.name() in processes.LAUNCHERS:
                role = "launcher"
            elif process.pid == os.getpid():
                role = "client"
            elif process.pid in ranks:
                role = "rank"
            elif process.pid in guards:
                role = "guard"
            elif process.pid in templates:
                role = "template"
            elif process.ppid() == 1:
                role = "reaper"
            found[role].append(process.memory_full_info().pss / 2**20)
        except psutil.Error:
            continue
    return {role: {"processes": len(sizes), "mib": sum(sizes)} for role, sizes in found.items()}


if __name__ == "__main__":
    figures = run(int(sys.argv[1]))
    print(json.dumps({**figures, "memory": memory(), "ended_s": time.monotonic()}), flush=True)
