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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

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


class Shape(NamedTuple):
    """So many ranks, in blocks on so many nodes."""

    nodes: int
    ranks: int

    @classmethod
    def of(cls, text: str) -> Shape:
        """`4x16` is 16 ranks on 4 nodes."""
        nodes, _, ranks = text.partition("x")
        return cls(int(nodes), int(ranks))

    def variables(self) -> dict[str, str]:
        """What makes MPICH play nodes: ranks of different ones share no memory, and each has a leader of its own."""
        return {"MPIR_CVAR_NUM_CLIQUES": str(self.nodes), "MPIR_CVAR_CLIQUES_BY_BLOCK": "1"} if self.nodes > 1 else {}


class Opens(NamedTuple):
    """Opens below the shared path that a job makes or tries.

    Attributes:
        nodes: by all processes of each node; rank 0's first.
        tasks: of these by task processes, whose template runs from what was staged.
        archive: of the archive, by the whole job.
    """

    nodes: list[int]
    tasks: int
    archive: int


_FORKED = re.compile(r"^(\d+) .*\b(?:clone3?|v?fork)(?:\(| resumed>).*\)\s+= (\d+)$")
_EXECUTED = re.compile(r'^(\d+) +execve\("([^"]*)"')
_OPENED = re.compile(r'^(\d+) +open(?:at\(\w+, |\()"([^"]*)"')


def count(lines: Iterable[str], shape: Shape, python: str, node: str, shared: tuple[str, ...], archive: str) -> Opens:
    """Read a trace of strace.

    Args:
        python: the first to execute it in a family are the ranks, in the order in which the launcher has forked them.
        node: what executes a program below it runs from what was staged.

    Raises:
        RuntimeError: not as many ranks as there were.
    """
    parents: dict[str, str] = {}
    executed: list[tuple[str, str]] = []
    opened: list[tuple[str, str]] = []
    for line in lines:
        if found := _FORKED.match(line):
            parents[found[2]] = found[1]
        elif found := _EXECUTED.match(line):
            executed.append((found[1], found[2]))
        elif (found := _OPENED.match(line)) and found[2].startswith(shared):
            opened.append((found[1], found[2]))
    pythons = {pid for pid, path in executed if path == python}
    ranks = sorted((pid for pid in pythons if not lineage(parents.get(pid, ""), parents) & pythons), key=int)
    if len(ranks) != shape.ranks:
        raise RuntimeError(f"{len(ranks)} ranks in the trace of a job of {shape.ranks}")
    node_of = {pid: number * shape.nodes // shape.ranks for number, pid in enumerate(ranks)}
    is_staged = {pid for pid, path in executed if path.startswith(node)}
    opens = Opens([0] * shape.nodes, 0, 0)
    for pid, path in opened:
        family = lineage(pid, parents)
        if at := family & node_of.keys():  # else it is the launcher
            opens.nodes[node_of[at.pop()]] += 1
            by_task = bool((family - {pid}) & is_staged)
            opens = opens._replace(tasks=opens.tasks + by_task, archive=opens.archive + (path == archive))
    return opens


def lineage(pid: str, parents: dict[str, str]) -> set[str]:
    """A process and all that it descends from."""
    found = {pid}
    while pid in parents:
        pid = parents[pid]
        found.add(pid)
    return found


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

    def run(self, argv: list[str], **variables: str) -> tuple[float, str]:
        """Seconds and output of a command.

        Raises:
            RuntimeError: it failed.
        """
        mark = uuid.uuid4().hex
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        env = {**env, "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", processes.RUN_MARK: mark, **variables}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # as it is installed, exex is compiled
        began_s = time.monotonic()
        try:
            done = subprocess.run(argv, env=env, cwd=self.directory, capture_output=True, text=True, timeout=600, check=False)
            spent_s = time.monotonic() - began_s
        finally:
            processes.end(mark, 1.0)
        if done.returncode:
            raise RuntimeError(f"{argv}: exit status {done.returncode}\n{done.stderr[-3000:]}")
        return spent_s, done.stdout + done.stderr

    def opens(self, shape: Shape, *options: str) -> Opens:
        """Run a job of this shape under strace, and count."""
        trace = self.directory / f"trace.{uuid.uuid4().hex}"
        calls = "trace=open,openat,execve,clone,clone3,fork,vfork"
        strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", calls, "-o", str(trace)]
        self.run([*strace, *self.argv(shape.ranks, *options)], **shape.variables())
        found = count(trace.read_text().splitlines(), shape, self.python, str(self.node), self.opened, self.archive)
        trace.unlink()
        return found


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


def counts(shared: Shared, shapes: list[Shape]) -> None:
    """Print how many opens each way makes on each node."""
    print("\n| nodes | ranks on each | no staging | with `--stage` | ... on other nodes | ... in tasks | ... of the archive |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for shape in shapes:
        without = shared.opens(shape)
        staged = shared.opens(shape, "--stage", shared.archive, "--stage-dir", str(shared.node))
        others = f"{max(staged.nodes[1:]):,}" if shape.nodes > 1 else ""
        cells = [f"{max(without.nodes):,}", f"{staged.nodes[0]:,}", others, f"{staged.tasks:,}", str(staged.archive)]
        print(f"| {shape.nodes} | {shape.ranks // shape.nodes} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=16, help="for the times; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--shapes", default="1x2,1x8,1x16,4x4,4x16", help="NODESxRANKS for the counts; default: %(default)s")
    parser.add_argument("--node", default="/dev/shm", help="directory that plays a node's own; default: %(default)s")
    parser.add_argument("--imports", default="numpy,h5py,matplotlib.pyplot", help="what tasks import; default: %(default)s")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory(dir=words.node) as node:
        shared = Shared(Path(directory), Path(node), words.imports)
        times(shared, words.ranks, words.repeats)
        if shutil.which("strace"):
            counts(shared, [Shape.of(text) for text in words.shapes.split(",")])
        else:
            print("\nno strace (Debian's package strace): opens are not counted")


if __name__ == "__main__":
    main()
