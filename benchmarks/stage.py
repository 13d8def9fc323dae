"""What staging costs and saves: seconds, and opens on the shared path, which strace counts.

`python -m benchmarks.stage` copies the environment that it runs in to a directory that plays the shared file system, packs it,
and runs jobs whose tasks import packages: from the shared directory, and from what was staged. Prints two Markdown tables.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from benchmarks import processes
from benchmarks.harness import ROOT

SCRIPT = """
import sys, time
from exex import Executor
def load(number, names):
    import importlib, time
    found = [importlib.import_module(name) for name in names]
    time.sleep(0.5)
    return found[0].__file__
with Executor() as executor:
    futures = [executor.submit(load, number, sys.argv[2].split(",")) for number in range(int(sys.argv[1]))]
    print([future.result() for future in futures][0])
"""


class Shared:
    """The directory that plays the shared file system, and a node's own one.

    Attributes:
        opened: prefixes that count as shared: the environment, its interpreter, and exex.
    """

    def __init__(self, directory: Path, node: Path, imports: str) -> None:
        self.imports = imports
        self.environment = directory / "shared" / "env"
        self.node = node
        self.directory = directory
        self.environment.parent.mkdir()
        subprocess.run(["cp", "-a", sys.prefix, str(self.environment)], check=True)
        self.python = str(self.environment / "bin" / "python")
        self.archive = str(self.environment.parent / "env.tar.zst")
        self.opened = (str(self.environment), self.archive, os.path.realpath(sys.base_prefix), str(ROOT / "exex"))
        (directory / "script.py").write_text(SCRIPT)

    def argv(self, ranks: int, *options: str) -> list[str]:
        """Words that start a job of so many ranks."""
        launcher = [str(self.environment / "bin" / "mpiexec"), "-n", str(ranks), self.python, "-m", "exex.run", "--slots", "1"]
        return [*launcher, "--manager-slots", "0", *options, str(self.directory / "script.py"), str(ranks - 1), self.imports]

    def run(self, argv: list[str]) -> tuple[float, str]:
        """Seconds and output of a command.

        Raises:
            RuntimeError: it failed.
        """
        mark = uuid.uuid4().hex
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        env = {**env, "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", processes.RUN_MARK: mark}
        began_s = time.monotonic()
        try:
            done = subprocess.run(argv, env=env, cwd=self.directory, capture_output=True, text=True, timeout=600, check=False)
            spent_s = time.monotonic() - began_s
        finally:
            processes.end(mark, 1.0)
        if done.returncode:
            raise RuntimeError(f"{argv}: exit status {done.returncode}\n{done.stderr[-3000:]}")
        return spent_s, done.stdout + done.stderr

    def opens(self, argv: list[str]) -> tuple[int, int]:
        """Opens below the shared path that a command and all of its processes make or try; and how many of the archive."""
        trace = self.directory / f"trace.{uuid.uuid4().hex}"
        self.run(["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=open,openat", "-o", str(trace), *argv])
        paths = re.findall(r'open(?:at\(\w+, |\()"([^"]*)"', trace.read_text())
        trace.unlink()
        return sum(path.startswith(self.opened) for path in paths), sum(path == self.archive for path in paths)


def median_s(repeats: int, call: Callable[[], float]) -> float:
    """Of some calls."""
    return statistics.median(call() for _ in range(repeats))


def times(shared: Shared, ranks: int, repeats: int) -> None:
    """Print how long each way takes."""
    staged: list[float] = []

    def copy() -> float:
        target = shared.node / "copy"
        spent_s, _ = shared.run(["cp", "-a", str(shared.environment), str(target)])
        shutil.rmtree(target)
        return spent_s

    def job(*options: str) -> float:
        spent_s, said = shared.run(shared.argv(ranks, *options))
        staged.extend(float(each) for each in re.findall(r"exex: staged .* in ([\d.]+) s", said))
        return spent_s

    began_s = time.monotonic()
    print(shared.run([shared.python, "-m", "exex", "pack", str(shared.environment), "--output", shared.archive])[1])
    print(f"packed in {time.monotonic() - began_s:.1f} s\n")
    where = ("--stage-dir", str(shared.node))
    rows = [
        ("`cp -a` of the environment, alone", median_s(repeats, copy), ""),
        (f"{ranks} ranks, no staging", median_s(repeats, job), ""),
    ]
    for name, source in (("an archive", shared.archive), ("a directory", str(shared.environment))):
        staged.clear()
        total_s = median_s(repeats, lambda source=source: job("--stage", source, *where))  # type: ignore[misc]
        rows.append((f"{ranks} ranks, `--stage` of {name}", total_s, f"{statistics.median(staged):.1f}"))
    print("| what | seconds, launch to end | of these staging |\n|---|---:|---:|")
    for name, spent_s, inside in rows:
        print(f"| {name} | {spent_s:.1f} | {inside} |")


def counts(shared: Shared, sizes: list[int]) -> None:
    """Print how many opens each way makes."""
    print("\n| ranks | opens on the shared path, no staging | with `--stage` | of the archive |\n|---:|---:|---:|---:|")
    for ranks in sizes:
        without, _ = shared.opens(shared.argv(ranks))
        staged, archive = shared.opens(shared.argv(ranks, "--stage", shared.archive, "--stage-dir", str(shared.node)))
        print(f"| {ranks} | {without:,} | {staged:,} | {archive} |", flush=True)


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=16, help="for the times; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--sizes", default="2,4,8,16", help="ranks for the counts; default: %(default)s")
    parser.add_argument("--node", default="/dev/shm", help="directory that plays a node's own; default: %(default)s")
    parser.add_argument("--imports", default="numpy,h5py,matplotlib.pyplot", help="what tasks import; default: %(default)s")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory(dir=words.node) as node:
        shared = Shared(Path(directory), Path(node), words.imports)
        times(shared, words.ranks, words.repeats)
        if shutil.which("strace"):
            counts(shared, [int(size) for size in words.sizes.split(",")])
        else:
            print("\nno strace (Debian's package strace): opens are not counted")


if __name__ == "__main__":
    main()
