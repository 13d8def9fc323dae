"""What staging costs and saves: seconds, and opens on the shared path, which strace counts.

`python -m benchmarks.stage` copies the environment that it runs in to a directory that plays the shared file system, packs it,
and runs jobs whose tasks import packages: from the shared directory; from what was staged before the ranks were started
(`exex run`, and the step of a job script); and from what the ranks have staged themselves (`python -m exex.run`). Prints tables.
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


def count_all(lines: Iterable[str], shared: tuple[str, ...], archive: str) -> tuple[int, int]:
    """Opens below the shared path by all processes of a trace, and of these those of the archive."""
    paths = [found[2] for line in lines if (found := _OPENED.match(line)) and found[2].startswith(shared)]
    return len(paths), paths.count(archive)


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

    def pack(self) -> None:
        """Make the archive."""
        spent_s, said = self.run([self.python, "-m", "exex", "pack", str(self.environment), "--output", self.archive])
        print(f"{said}\npacked in {spent_s:.1f} s\n")

    def exex_run(self, ranks: int, *options: str) -> list[str]:
        """The same by `exex run`."""
        exex = [self.python, "-m", "exex", "run", "-n", str(ranks - 1), "--slots", "1", "--manager-slots", "0"]
        return [*exex, *options, str(self.directory / "script.py"), str(ranks - 1), self.imports]

    def step(self, nodes: int, job: Path) -> list[str]:
        """Words of a job script's step that stages, on nodes that MPICH plays: each has a directory of its own."""
        where = ["--stage", self.archive, "--stage-dir", f"{job}/node$PMI_RANK"]
        for node in range(nodes):
            (job / f"node{node}").mkdir(parents=True)
        launcher = [str(self.environment / "bin" / "mpiexec"), "-n", str(nodes), self.python, "-m", "exex.stage"]
        return [*launcher, *where, str(self.directory / "script.py")]

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
        if done.returncode or "ranks start from" in done.stderr:
            raise RuntimeError(f"{argv}: exit status {done.returncode}\n{done.stderr[-3000:]}")
        return spent_s, done.stdout + done.stderr

    def opens(self, shape: Shape, *options: str) -> Opens:
        """Run a job of this shape under strace, and count."""
        lines = self.trace(self.argv(shape.ranks, *options), **shape.variables())
        return count(lines, shape, self.python, str(self.node), self.opened, self.archive)

    def opens_of_step(self, nodes: int) -> Opens:
        """The same of a step that stages."""
        job = self.node / "job"
        try:
            variables = {"EXEX_JOB_DIR": str(job), **Shape(nodes, nodes).variables()}
            lines = self.trace(self.step(nodes, job), **variables)
        finally:
            shutil.rmtree(job)
        return count(lines, Shape(nodes, nodes), self.python, str(self.node), self.opened, self.archive)

    def trace(self, argv: list[str], **variables: str) -> list[str]:
        """Lines of strace about a command."""
        trace = self.directory / f"trace.{uuid.uuid4().hex}"
        calls = "trace=open,openat,execve,clone,clone3,fork,vfork"
        strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", calls, "-o", str(trace)]
        try:
            self.run([*strace, *argv], **variables)
            return trace.read_text().splitlines()
        finally:
            trace.unlink(missing_ok=True)


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

    def job(argv: list[str]) -> float:
        spent_s, said = shared.run(argv)
        staged.extend(float(each) for each in re.findall(r"exex: staged .* in ([\d.]+) s", said))
        return spent_s

    where = ("--stage-dir", str(shared.node))
    archive, directory = ("--stage", shared.archive, *where), ("--stage", str(shared.environment), *where)
    jobs = {
        "`exex run`, no staging": shared.exex_run(ranks),
        "`exex run --stage` of an archive": shared.exex_run(ranks, *archive),
        "`exex run --stage` of a directory": shared.exex_run(ranks, *directory),
        "`mpiexec python -m exex.run`, no staging": shared.argv(ranks),
        "`mpiexec python -m exex.run --stage` of an archive": shared.argv(ranks, *archive),
    }
    rows = [("`cp -a` of the environment, alone", median_s(repeats, copy), "")]
    for name, argv in jobs.items():
        staged.clear()
        total_s = median_s(repeats, lambda argv=argv: job(argv))  # type: ignore[misc]
        rows.append((f"{ranks} ranks, {name}", total_s, f"{statistics.median(staged):.1f}" if staged else ""))
    print("| what | seconds, launch to end | of these staging |\n|---|---:|---:|")
    for name, spent_s, inside in rows:
        print(f"| {name} | {spent_s:.1f} | {inside} |")


def counts(shared: Shared, shapes: list[Shape]) -> None:
    """Print how many opens each way makes on each node."""
    print("\n`exex run`, all processes, its own and the launcher's too\n")
    print("| ranks | no staging | with `--stage` | ... of the archive |\n|---:|---:|---:|---:|")
    for ranks in [shape.ranks for shape in shapes if shape.nodes == 1]:
        without, _ = count_all(shared.trace(shared.exex_run(ranks)), shared.opened, shared.archive)
        staged = ("--stage", shared.archive, "--stage-dir", str(shared.node))
        total, of_archive = count_all(shared.trace(shared.exex_run(ranks, *staged)), shared.opened, shared.archive)
        print(f"| {ranks} | {without:,} | {total:,} | {of_archive} |", flush=True)
    for nodes in sorted({shape.nodes for shape in shapes} - {1}):
        found = shared.opens_of_step(nodes)
        more = f"{max(found.nodes[1:]):,} on each other, {found.archive} of the archive in all"
        print(f"\nStep of a job script on {nodes} nodes: {found.nodes[0]:,} on that of rank 0, {more}", flush=True)
    print("\n`mpiexec python -m exex.run`, without the launcher\n")
    print("| nodes | ranks on each | no staging | with `--stage` | ... on other nodes | ... in tasks | ... of the archive |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for shape in shapes:
        opens = shared.opens(shape)
        staged_opens = shared.opens(shape, "--stage", shared.archive, "--stage-dir", str(shared.node))
        others = f"{max(staged_opens.nodes[1:]):,}" if shape.nodes > 1 else ""
        of_archive, of_tasks = str(staged_opens.archive), f"{staged_opens.tasks:,}"
        cells = [f"{max(opens.nodes):,}", f"{staged_opens.nodes[0]:,}", others, of_tasks, of_archive]
        print(f"| {shape.nodes} | {shape.ranks // shape.nodes} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=16, help="for the times; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--no-times", action="store_true", help="only count")
    parser.add_argument("--no-counts", action="store_true", help="only measure times")
    parser.add_argument("--shapes", default="1x2,1x8,1x16,4x4,4x16", help="NODESxRANKS for the counts; default: %(default)s")
    parser.add_argument("--node", default="/dev/shm", help="directory that plays a node's own; default: %(default)s")
    parser.add_argument("--imports", default="numpy,h5py,matplotlib.pyplot", help="what tasks import; default: %(default)s")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory(dir=words.node) as node:
        shared = Shared(Path(directory), Path(node), words.imports)
        shared.pack()
        if not words.no_times:
            times(shared, words.ranks, words.repeats)
        if words.no_counts:
            pass
        elif shutil.which("strace"):
            counts(shared, [Shape.of(text) for text in words.shapes.split(",")])
        else:
            print("\nno strace (Debian's package strace): opens are not counted")


if __name__ == "__main__":
    main()
