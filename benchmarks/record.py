"""What the run record costs, and what a report of 2,000,000 tasks costs.

`python -m benchmarks.record` measures what rank 0 and the record's writer take, each alone; runs no-ops with and without a
record, in turns, and prints the ratio of the rates; then it makes a record of 2,000,000 made-up tasks through the real writer,
and reports it. `--sides` only measures the first, `--made FILE` only makes that record.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, mpiexec
from exex.protocol.messages import Answer, AppSpec, Assign, Done, Submit
from exex.record.frames import Frame, Kind
from exex.record.hdf5 import RecordFile
from exex.record.recorder import PAUSE_US, Recorder
from exex.record.rows import Assembler
from exex.worker.peak import LEAST_S

TASKS = 2_000_000
NODES, SLOTS = 64, 32
WORKLOAD = """
import sys, time, exex
@exex.python_app
def noop(i): return i
count = int(sys.argv[1])
for future in [noop(i) for i in range(2000)]: future.result()
began_s = time.perf_counter()
for future in [noop(i) for i in range(count)]: future.result()
print(count / (time.perf_counter() - began_s), flush=True)
"""


# ---- the cost ----


def rate(folder: Path, count: int, record: str) -> tuple[float, float]:
    """No-ops per second of one job with two workers, and CPU seconds of all of its processes."""
    script = folder / "noops.py"
    script.write_text(WORKLOAD)
    argv = [mpiexec(), "-n", "3", sys.executable, "-m", "exex.run", "--max-waiting", "4000000", "--record", record]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*argv, str(script), str(count)], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(done.stdout.split()[-1]), cpu_s


def compare(count: int, repeats: int) -> None:
    """In turns: without and with a record."""
    rates: dict[str, list[float]] = {"none": [], "run.h5": []}
    cpus: dict[str, list[float]] = {"none": [], "run.h5": []}
    with tempfile.TemporaryDirectory(prefix="exex-bench-") as name:
        folder = Path(name)
        start_s = {record: min(rate(folder, 1, record)[1] for _ in range(3)) for record in rates}
        for repeat in range(repeats):
            for record in sorted(rates, reverse=bool(repeat % 2)):
                got, cpu_s = rate(folder, count, record)
                rates[record].append(got)
                cpus[record].append((cpu_s - start_s[record]) / count * 1e6)
        size = max(path.stat().st_size for path in folder.glob("run*.h5"))
    ratios = [on / off for on, off in zip(rates["run.h5"], rates["none"])]
    show("record_rate_ratio", statistics.median(ratios), "with/without", samples=ratios)
    ratios = [on / off for on, off in zip(cpus["run.h5"], cpus["none"])]
    show("record_cpu_ratio", statistics.median(ratios), "with/without", samples=ratios)
    show("record_start", start_s["run.h5"] - start_s["none"], "s of CPU")
    for record, values in rates.items():
        show(f"submit_{'on' if record != 'none' else 'off'}", statistics.median(values), "tasks/s", samples=values)
    for record, values in cpus.items():
        show(f"cpu_{'on' if record != 'none' else 'off'}", statistics.median(values), "us/task", samples=values)
    show("noop_bytes", size / count, "B/task", size=count)


def show(name: str, value: float, unit: str, **more: object) -> None:
    """One JSON line."""
    print(json.dumps({"name": name, "value": value, "unit": unit, **more}), flush=True)


# ---- the cost of each side ----


def sides(count: int, per_message: int, repeats: int = 3) -> None:
    """CPU time per task at rank 0 and in the writer, one after the other, for no-ops in messages of so many tasks."""
    with tempfile.TemporaryDirectory(prefix="exex-bench-") as name:
        told, few = Path(name, "told"), Path(name, "few")
        tell(few, 1000, per_message)
        rank_0_s = min(tell(told, count, per_message) for _ in range(repeats))
        writer_s = min(written(told) for _ in range(repeats)) - min(written(few) for _ in range(repeats))
    show(f"rank_0_{per_message}_a_message", rank_0_s / count * 1e6, "us/task")
    show(f"writer_{per_message}_a_message", writer_s / count * 1e6, "us/task")


def tell(path: Path, count: int, per_message: int) -> float:
    """Tell of no-ops, with a turn for each message, into a file; CPU seconds of that."""
    messages = list(_messages(count, per_message))
    now_s, app = 1.0, namedtuple("app", "number")(0)
    with path.open("wb", buffering=0) as file:
        recorder = Recorder(os.dup(file.fileno()), 0.0, lambda: (0,) * 8, clock=lambda: now_s)
        recorder.begin(str(path) + ".h5", {"began_unix_s": 1.8e9, "meta": {}})
        began_s = time.process_time()
        for submit, assign, done, answer in messages:
            now_s += per_message / 90_000
            recorder.turn_begins(now_s)
            recorder.client_said(0, submit, {0: app})
            recorder.done(1, done)
            recorder.assign(1, assign)
            recorder.answer(0, answer)
            recorder.turn_ends()
        took_s = time.process_time() - began_s
        recorder.close()
    return took_s


def _messages(count: int, per_message: int) -> Iterator[tuple[Submit, Assign, Done, Answer]]:
    spec = AppSpec(app=0, name="noop", function=b"")
    rest: dict[str, Any] = {"functions": {}, "calls": [0]}
    for first in range(0, count, per_message):
        tasks, payloads = list(range(first, first + per_message)), [b"0123456789"] * per_message
        outcomes, seconds = bytes(per_message), [1e-6 + 1e-8 * (task % 100) for task in tasks]
        yield (
            Submit(first=first, apps=[] if first else [spec], payloads=payloads, needs={}, given={}, answered=0, **rest),
            Assign(apps=[], tasks=tasks, payloads=payloads, values={}, attempts={}, **rest),
            Done(tasks=list(tasks), outcomes=outcomes, payloads=payloads, seconds=seconds, started=[]),
            Answer(sequence=1, tasks=list(tasks), outcomes=outcomes, payloads=payloads, causes={}, started=[]),
        )


def written(path: Path) -> float:
    """CPU seconds of a writer that is told so."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with path.open("rb") as file:
        env = {**os.environ, **threads, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "exex.record.writer"], stdin=file, env=env, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    Path(str(path) + ".h5").unlink()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# ---- a record of made-up tasks ----


def events(tasks: int, seed: int = 1) -> Iterator[Frame]:
    """Frames of a job: 64 nodes of 32 slots; 97 of 100 tasks are short or long simulations, 3 gather ten of them each."""
    random = np.random.default_rng(seed)
    slots = NODES * SLOTS
    yield from _beginning()
    kind = np.where(np.arange(tasks) % 100 >= 97, 2, (np.arange(tasks) // 1000) % 2)
    lengths_s = [random.lognormal(-1.5, 0.6, tasks), random.lognormal(0.3, 0.9, tasks), random.gamma(2.0, 0.02, tasks)]
    run_s = np.clip(np.choose(kind, lengths_s), 1e-4, 300.0)
    submit_us = 2_000_000 + np.arange(tasks) // 1000 * 1000 * 20
    free = [(2.5 + slot * 1e-5, slot) for slot in range(slots)]  # a heap: when each slot is free
    slot_of, start_s = np.empty(tasks, "i8"), np.empty(tasks)
    for task, length_s in enumerate(run_s.tolist()):
        free_s, slot = free[0]
        slot_of[task], start_s[task] = slot, free_s
        heapq.heapreplace(free, (free_s + length_s + 0.0008, slot))
    end_us = np.maximum(((start_s + run_s) * 1e6).astype("i8"), submit_us + 1000)
    assign_us = np.maximum(((start_s - 0.0007) * 1e6).astype("i8") // 500 * 500, submit_us)
    how = (random.random(tasks) < 0.001).astype("u1")
    sizes = random.integers(20, 4000, tasks).astype("u4")
    out: list[tuple[int, int, Frame]] = []
    for first in range(0, tasks, 1000):
        count = min(1000, tasks - first)
        body = sizes[first : first + count].tobytes() + kind[first : first + count].astype("u4").tobytes()
        out.append((int(submit_us[first]), 0, Frame(Kind.SUBMIT, int(submit_us[first]), first, count, body)))
        gathers = np.flatnonzero(kind[first : first + count] == 2)
        if first and len(gathers):
            needs = (first - 1 - random.integers(0, 900, 10 * len(gathers))).astype("i8")
            body = gathers.astype("u4").tobytes() + np.full(len(gathers), 10, "u4").tobytes() + needs.tobytes()
            out.append((int(submit_us[first]), 1, Frame(Kind.NEEDS, int(submit_us[first]), first, len(gathers), body)))
    rank = slot_of // SLOTS + 1
    _group(out, 2, Kind.ASSIGN, rank, assign_us, lambda some: some.astype("i8").tobytes())
    floats = run_s.astype("f4")
    number, slot = np.arange(tasks), (slot_of % SLOTS).astype("i4")
    peaks = np.where(run_s < LEAST_S, 0, 60_000 + (run_s * 1e6).astype("i8") % 9000).astype("u4")  # KiB
    _group(
        out,
        3,
        Kind.DONE,
        rank,
        end_us + 150,
        lambda some: b"".join(
            (
                *(column[some].tobytes() for column in (number, how, floats, sizes, slot)),
                np.stack([np.arange(len(some), dtype="u4"), peaks[some]], 1).tobytes(),
            )
        ),
    )
    nobody = np.zeros(tasks, "i8")
    _group(out, 4, Kind.ANSWER, nobody, end_us + 150, lambda some: some.astype("i8").tobytes() + how[some].tobytes())
    out.sort(key=lambda item: item[:2])
    last_us = out[-1][0]
    ended, begun = np.sort(end_us), np.sort((start_s * 1e6).astype("i8"))
    for time_us in range(0, last_us, last_us // 4000):
        done, running = int(np.searchsorted(ended, time_us)), int(np.searchsorted(begun, time_us))
        there = int(np.searchsorted(submit_us, time_us))
        queues = (0, there - running, running - done, done, 0, 0)
        values = (time_us // 900, time_us // 3, 4000, *queues, slots, 10**8 + 600 * (there - done), 0)
        out.append((time_us, 5, Frame(Kind.SAMPLE, time_us, 0, 0, array("q", values).tobytes())))
    out.sort(key=lambda item: item[:2])
    for _, _, frame in out:
        yield frame
    yield Frame(Kind.END, last_us, 0, 0, b"")


def _beginning() -> Iterator[Frame]:
    for rank in range(1, NODES + 1):
        times = {"forked_s": 0.3, "imported_s": 0.4, "initialised_s": 0.9}
        body = {"node": f"nid{rank:05d}", "pid": 1000 + rank, "gpus": 0, "memory_bytes": 256 * 1024**3, **times}
        yield Frame(Kind.HELLO, 1_500_000 + 1000 * rank, rank, SLOTS, json.dumps(body).encode())
    for number, name in enumerate(("equilibrate", "simulate", "gather")):
        values = {"kind": 0, "priority": 0, "retries": 1, "cores": 0, "gpus": 0, "nodes": 0, "memory_bytes": 0, "walltime_s": 0.0}
        yield Frame(Kind.APP, 1_900_000, 0, number, json.dumps({"app": number, "name": name, **values}).encode())


def _group(out, order, kind, rank, times_us, body) -> None:  # type: ignore[no-untyped-def]
    """Messages: what one rank says within half a millisecond is one. A block has those of a tenth of a second, as at rank 0."""
    ticks = times_us // 500
    by = np.lexsort((ticks, rank))
    begins = np.append(0, np.flatnonzero((np.diff(ticks[by]) != 0) | (np.diff(rank[by]) != 0)) + 1)
    counts = np.diff(np.append(begins, len(by)))
    heads = np.stack([np.maximum.reduceat(times_us[by], begins), rank[by][begins], counts], 1)
    by = by[np.argsort(np.repeat(heads[:, 0], counts), kind="stable")]
    heads = heads[np.argsort(heads[:, 0], kind="stable")]
    blocks = heads[:, 0] // PAUSE_US
    cuts = np.flatnonzero(np.diff(blocks)) + 1
    tasks = np.split(by, np.cumsum(heads[:, 2])[cuts - 1])
    for some, said, block in zip(tasks, np.split(heads, cuts), blocks[np.append(0, cuts)].tolist()):
        time_us = (block + 1) * PAUSE_US - 1
        out.append((time_us, order, Frame(kind, time_us, len(said), len(some), said.tobytes() + body(some))))


def make(path: str, tasks: int = TASKS) -> float:
    """Write a record of made-up tasks; CPU seconds per task that the writer took."""
    frames = list(events(tasks))
    meta = json.dumps({"script": "made_up.py", "host": "nid00000", "settings": {}, "versions": {"exex": "0"}})
    began_s = time.process_time()
    file = RecordFile(path, {"began_unix_s": 1.8e9, "meta": meta})
    assembler = Assembler(file.add)
    window_us = 0
    for frame in frames:
        assembler.feed(frame)
        if assembler.now_us - window_us > 250_000:
            window_us = assembler.now_us
            assembler.close_window()
            file.flush_if_due(assembler.now_us)
    assembler.close()
    file.close(assembler.now_us, 0)
    return (time.process_time() - began_s) / tasks


def report(path: str) -> None:
    """Time, memory and size of the page of a record."""
    page = path + ".html"
    began_s = time.perf_counter()
    code = (
        "import re, sys; from exex.cli import main\n"
        "try: main(['report', sys.argv[1], '--html', sys.argv[2]])\n"
        "finally: print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, path, page], env=env, capture_output=True, check=True, text=True)
    show("report", time.perf_counter() - began_s, "s")
    show("report_memory", float(done.stderr.split()[-1]) / 1024, "MiB")
    show("report_page", os.path.getsize(page) / 1024**2, "MiB")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=TASKS, help="of the record that is reported")
    parser.add_argument("--noops", type=int, default=500_000, help="of each job that is compared; 0: none")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sides", action="store_true", help="only what rank 0 and the writer take, each alone")
    parser.add_argument("--made", metavar="FILE", help="only make a record")
    args = parser.parse_args()
    if args.made:
        show("writer_cpu", make(args.made, args.tasks) * 1e6, "us/task", size=args.tasks)
        return
    for per_message in (1, 100):
        sides(200_000, per_message)
    if args.sides:
        return
    if args.noops:
        compare(args.noops, args.repeats)
    with tempfile.TemporaryDirectory(prefix="exex-bench-") as folder:
        path = str(Path(folder, "run.h5"))
        show("writer_cpu", make(path, args.tasks) * 1e6, "us/task", size=args.tasks)
        show("made_bytes", os.path.getsize(path) / args.tasks, "B/task", size=args.tasks)
        report(path)


if __name__ == "__main__":
    main()
