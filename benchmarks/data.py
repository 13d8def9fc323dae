"""Large values and arguments: how fast they get where they are needed, how often they are in memory, what rank 0 moves.

`python -m benchmarks.data` runs jobs on this machine. Argument and result of 64 MiB are timed beside `memcpy` of as much into
fresh memory, in one run, turn by turn; copies are counted from `smaps_rollup` of all processes of the job and from the files of
the store. Then 8 dependents use a result of 8 MiB on ranks that play nodes of their own, and all bytes are counted that rank 0
sends and receives; once more with a result of 8 bytes, for what the tasks themselves cost. Last, tasks that take an array and
return another, all submitted at once, with values that stay where they are and with values that travel (`--keep-bytes 0`).
Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.harness import ROOT, mpiexec

MIB = 1 << 20


# ---- in the job -----------------------------------------------------------------------------------------------


def pids() -> list[int]:
    """All processes of this job."""
    mark = f"{processes.RUN_MARK}={os.environ[processes.RUN_MARK]}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                environment = Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue
            if mark in environment.split(b"\0"):
                found.append(int(name))
    return found


def held_bytes(numbers: list[int], store: str) -> int:
    """Memory of the processes' own, and files of the store."""
    total = sum(entry.stat().st_blocks * 512 for entry in os.scandir(store) if entry.is_file()) if store else 0
    for number in numbers:
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))
    return total


class Watch:
    """Samples the memory of the whole job; a context."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._numbers = pids()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.before = held_bytes(self._numbers, store)
        self.most = self.before

    def _run(self) -> None:
        while not self._ended.wait(0.002):
            self.most = max(self.most, held_bytes(self._numbers, self._store))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def timed(what: Callable[[], Any]) -> float:
    """Seconds."""
    began_s = time.perf_counter()
    what()
    return time.perf_counter() - began_s


def one_node(size: int, rounds: int) -> dict[str, Any]:
    """Argument and result of `size` bytes beside memcpy."""
    import numpy as np

    from exex import python_app
    from exex.client.session import current

    @python_app
    def look(array: Any) -> float:
        return float(array[-1])

    @python_app
    def add_up(array: Any) -> float:
        return float(array.sum())

    @python_app
    def make(count: int) -> Any:
        return np.ones(count)

    def ask(array: Any) -> None:
        look(array).result()

    store = current("benchmark").proxy.welcome.store
    count = size // 8
    spent: dict[str, list[float]] = {"memcpy, huge pages": [], "memcpy": [], "argument": [], "result": [], "no-op": []}
    look(np.ones(1)).result()
    add_up(np.ones(count)).result()
    for _ in range(rounds):
        source = np.ones(count)
        spent["memcpy, huge pages"].append(timed(source.copy))
        spent["memcpy"].append(timed(partial(bytearray, memoryview(source).cast("B"))))
        spent["no-op"].append(timed(partial(ask, np.ones(1))))
        spent["argument"].append(timed(partial(ask, source)))
        future = make(count)
        while not future.done():
            time.sleep(0.001)
        spent["result"].append(timed(future.result))
        del future, source
    time.sleep(0.2)
    copies = {}
    with Watch(store) as watch:
        source = np.ones(count)
        add_up(source).result()
        time.sleep(0.05)
    copies["argument"] = (watch.most - watch.before) / size
    del source
    time.sleep(0.2)
    with Watch(store) as watch:
        value = make(count).result()
        value.sum()
        time.sleep(0.05)
    copies["result"] = (watch.most - watch.before) / size
    return {"seconds": {name: statistics.median(each) for name, each in spent.items()}, "copies": copies}


def dependents(size: int, count: int) -> dict[str, Any]:
    """A result of `size` bytes is used by `count` dependents on all ranks."""
    import numpy as np

    from exex import python_app

    @python_app
    def make(count: int) -> Any:
        return np.ones(count)

    @python_app
    def add_up(array: Any) -> tuple[float, int]:
        time.sleep(0.1)
        return float(array.sum()), os.getpid()

    began_s = time.perf_counter()
    future = make(size // 8)
    found = [each.result() for each in [add_up(future) for _ in range(count)]]
    assert all(total == size // 8 for total, _ in found)
    return {"seconds": time.perf_counter() - began_s, "processes": len({pid for _, pid in found})}


def through(size: int, count: int) -> dict[str, Any]:
    """Arrays of `size` bytes in and out of tasks."""
    import numpy as np

    from exex import python_app

    @python_app
    def add_one(array: Any) -> Any:
        return array + 1

    array = np.ones(size // 8)

    def all_of_them() -> None:
        for future in [add_one(array) for _ in range(count)]:
            future.result()

    all_of_them()
    return {"seconds": min(timed(all_of_them) for _ in range(5)) / count}


# ---- outside --------------------------------------------------------------------------------------------------


def run(words: list[str], ranks: int, *options: str, module: str = "exex.run") -> tuple[dict[str, Any], dict[str, int]]:
    """Run a job with this file as its script; what it says, and what was counted."""
    mark = uuid.uuid4().hex
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        processes.RUN_MARK: mark,
    }
    argv = [mpiexec(), "-n", str(ranks), sys.executable, "-m", module, "--slots", "1", *options, __file__, "--inside", *words]
    try:
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=600, check=False)
    finally:
        processes.end(mark, 1.0)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stderr[-3000:]}")
    counted = [line for line in done.stderr.splitlines() if line.startswith("counted ")]
    return json.loads(done.stdout.splitlines()[-1]), json.loads(counted[0].removeprefix("counted ")) if counted else {}


def show_one_node(size: int, rounds: int) -> None:
    """First table."""
    found, _ = run(["one_node", str(size), str(rounds)], 2)
    seconds, copies = found["seconds"], found["copies"]
    print(f"| {size / MIB:.0f} MiB on one node | ms | of memcpy's best speed | copies, at most |\n|---|---|---|---|")
    for name in ("memcpy, huge pages", "memcpy", "argument", "result"):
        share = f"{seconds['memcpy, huge pages'] / seconds[name]:.0%}"
        print(f"| {name} | {seconds[name] * 1e3:.1f} | {share} | {f'{copies[name]:.2f}' if name in copies else ''} |")
    print(f"| (a no-op, there and back) | {seconds['no-op'] * 1e3:.1f} | | |\n")


def show_dependents(size: int, count: int, ranks: int) -> None:
    """Second table."""
    print("| a result, and 8 dependents on other nodes | s | bytes to and from rank 0 |\n|---|---|---|")
    totals = []
    for each in (8, size):
        with tempfile.TemporaryDirectory() as directory:
            for rank in range(ranks):
                os.mkdir(f"{directory}/node{rank}")
            variable = "PMI_RANK" if "MPICH" in mpi_library() else "OMPI_COMM_WORLD_RANK"
            words = ["dependents", str(each), str(count)]
            options = ("--store-dir", f"{directory}/node${variable}")
            found, counted = run(words, ranks, *options, module="benchmarks.drivers.counted_run")
        totals.append(sum(counted.values()))
        print(f"| {each} bytes | {found['seconds']:.2f} | {totals[-1]:,} |")
    print(f"| of it | | {totals[1] - totals[0]:,} |\n")


def show_through(sizes: list[int], rounds: int) -> None:
    """Third table."""
    print("| an array in, an array out | stays, ms per task | travels, ms per task |\n|---|---|---|")
    for size in sizes:
        spent: dict[str, list[float]] = {"65536": [], "0": []}
        for _ in range(rounds):
            for keep_bytes, found in spent.items():
                words = ["through", str(size), str(max(4, min(200, 64 * MIB // size)))]
                found.append(run(words, 3, "--keep-bytes", keep_bytes)[0]["seconds"])
        stays, travels = (statistics.median(found) * 1e3 for found in spent.values())
        print(f"| {size >> 10} KiB | {stays:.2f} | {travels:.2f} |")


def mpi_library() -> str:
    """Its name and version."""
    code = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        what, *numbers = args.inside
        print(json.dumps({"one_node": one_node, "dependents": dependents, "through": through}[what](*map(int, numbers))))
        return
    show_one_node(64 * MIB, args.rounds)
    show_dependents(8 * MIB, 8, 5)
    show_through([64 << 10, 256 << 10, MIB, 8 * MIB], 3)


if __name__ == "__main__":
    main()
