"""Starts drivers as processes under a time limit, reads their values, keeps medians and spread.

Knows how each system is launched and nothing of how it is driven. `python -m benchmarks.harness WORKLOAD
SYSTEM` prints one JSON line per value of one benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from benchmarks import graphs, processes
from benchmarks.measure import LAUNCH_TIME, WORKLOADS

ROOT = Path(__file__).resolve().parent.parent
MAX_FAILURES = 2  # of one system at one workload, before it is given up
START_WORKERS = 16  # of the workload `start`: a world of 17 ranks


def mpiexec() -> str:
    """The launcher beside this interpreter, else the one on PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else (shutil.which("mpiexec") or "mpiexec")


@dataclass(frozen=True)
class Launch:
    """How a system's driver is started.

    Attributes:
        driver: file name in `benchmarks/drivers`.
        mpi: started as an MPI world of one rank more than workers.
        module: words between the interpreter and the driver; `{workers}` is their number.
        settings: environment variables of this system, beside the harness's own.
    """

    driver: str
    mpi: bool = False
    module: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    def argv(self, workload: str, workers: int, budget_s: float) -> list[str]:
        """Command line for one run."""
        world = [mpiexec(), "-n", str(workers + 1)] if self.mpi else []
        script = str(ROOT / "benchmarks" / "drivers" / self.driver)
        size = [workload, "--workers", str(workers), "--budget", str(budget_s)]
        module = [word.format(workers=workers) for word in self.module]
        return [*world, sys.executable, *module, script, *size]


EXEX = ("-m", "exex.run", "--max-waiting", "2000000")

SYSTEMS: dict[str, Launch] = {
    "exex": Launch("exex_run.py", mpi=True, module=EXEX),
    "exex-in-rank": Launch("exex_run.py", mpi=True, module=(*EXEX, "--isolation", "none")),
    "exex-node": Launch("exex_run.py", module=(*EXEX, "--slots", "{workers}")),
    "mpi4py": Launch("mpi4py_futures.py", mpi=True, module=("-m", "mpi4py.futures")),
    "mpi4py-spin": Launch(
        "mpi4py_futures.py",
        mpi=True,
        module=("-m", "mpi4py.futures"),
        settings=(("MPI4PY_FUTURES_BACKOFF", "0"),),
    ),
    "parsl": Launch("parsl_htex.py"),
    "dask": Launch("dask_distributed.py"),
    "hyperqueue": Launch("hyperqueue_local.py"),
    "bare": Launch("bare_mpi.py", mpi=True),
}


@dataclass
class Run:
    """What one run of a driver gave: values, or the reason why there are none.

    Attributes:
        values: one per JSON line of the driver.
        reason: why there is no value.
        offered: False where the system lacks the feature, so that another try is idle.
    """

    values: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None
    offered: bool = True


def reason_of(returncode: int | None, limit_s: float, errors: str) -> str:
    """One line that says why a driver gave no value: the end of its standard error, or the time limit."""
    if returncode is None:
        return f"no result within {limit_s:g} s"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "Exception" in line]
    last = (named or lines or ["no message"])[-1]
    return f"exit code {returncode}: {last[:200]}"


def wait(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """Exit code, or None where the process outlives the limit."""
    try:
        return process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return None


def read_run(out: TextIO, err: TextIO, returncode: int | None, limit_s: float) -> Run:
    """Values among the lines of a driver's output; other lines are somebody's talk."""
    out.seek(0)
    err.seek(0)
    run = Run()
    for line in out:
        if not line.startswith('{"name"'):
            continue
        value = json.loads(line)
        if "skip" in value:
            run.reason, run.offered = str(value["skip"]), False
        else:
            run.values.append(value)
    if not run.values and run.reason is None:
        run.reason = reason_of(returncode, limit_s, err.read())
    return run


def environment(launch: Launch, mark: str) -> dict[str, str]:
    """Environment of a driver that starts now: this one, the mark of the run, the system's settings."""
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # Parsl's scripts
    mine = {"PATH": path, "PYTHONPATH": search, processes.RUN_MARK: mark, LAUNCH_TIME: repr(time.time())}
    return {**os.environ, **mine, **dict(launch.settings)}


def run_driver(system: str, workload: str, budget_s: float, limit_s: float, workers: int = 2) -> Run:
    """Run one workload on one system in processes of its own, all of which are gone afterwards.

    Args:
        system: key of `SYSTEMS`.
        workload: key of `benchmarks.measure.WORKLOADS`.
        budget_s: seconds that the counted part should last.
        limit_s: seconds after which the run is given up.
        workers: number of workers; `start` has its own.
    """
    workers = START_WORKERS if workload == "start" else workers
    launch = SYSTEMS[system]
    argv = launch.argv(workload, workers, budget_s)
    mark = uuid.uuid4().hex
    with (
        tempfile.TemporaryDirectory(prefix="exex-bench-") as cwd,
        open(Path(cwd, "out"), "w+", encoding="utf-8", errors="replace") as out,
        open(Path(cwd, "err"), "w+", encoding="utf-8", errors="replace") as err,
    ):
        env = environment(launch, mark)
        if workload == "graphs":
            env[graphs.KERNEL_RATE] = repr(graphs.kernel_rate(workers))  # now, while nothing else runs
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd)
        try:
            returncode = wait(process, limit_s)
        finally:
            processes.end(mark, grace_s=5.0)
            process.wait()
        return read_run(out, err, returncode, limit_s)


@dataclass
class Series:
    """All repeats of one value of one system."""

    system: str
    samples: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """One benchmark's JSON object: the median, and the spread as (max - min) / median."""
        values = [float(sample["value"]) for sample in self.samples]
        median = statistics.median(values)
        first = self.samples[0]
        return {
            "name": first["name"],
            "system": self.system,
            "value": median,
            "unit": first["unit"],
            "repeats": len(values),
            "spread": (max(values) - min(values)) / median if median else 0.0,
            "size": statistics.median(sample["size"] for sample in self.samples),
            "ranks": first["ranks"],
            "versions": first["versions"],
            "extra": first["extra"],
            "samples": values,
        }


class Results:
    """Values and failures of all runs so far."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], Series] = {}  # by (name of the value, system)
        self.reasons: dict[tuple[str, str], str] = {}  # by (workload, system): the latest
        self.failures: Counter[tuple[str, str]] = Counter()  # by (workload, system): runs without a value

    def is_hopeless(self, workload: str, system: str) -> bool:
        """Whether another run is a waste of time: not offered, or MAX_FAILURES runs gave nothing."""
        return self.failures[workload, system] >= MAX_FAILURES

    def add(self, workload: str, system: str, run: Run) -> None:
        """Keep what one run gave."""
        for value in run.values:
            self.series.setdefault((value["name"], system), Series(system)).samples.append(value)
        if run.reason is not None:
            self.reasons[workload, system] = run.reason
            self.failures[workload, system] += 1 if run.offered else MAX_FAILURES

    def summaries(self) -> list[dict[str, Any]]:
        """One JSON object per benchmark and system."""
        return [series.summary() for series in self.series.values()]


def main() -> None:
    """Command line: one workload on one system, one JSON line per value."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds that one counted run should last")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds after which a run is given up")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    results = Results()
    for _ in range(args.repeats):
        run = run_driver(args.system, args.workload, args.budget, args.limit)
        results.add(args.workload, args.system, run)
    for summary in results.summaries():
        print(json.dumps(summary))
    for reason in results.reasons.values():
        print(f"{args.workload} on {args.system}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
