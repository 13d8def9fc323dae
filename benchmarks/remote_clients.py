"""Clients that come over the network: their rate beside the script's own, many at once, and a cable that is cut.

`python -m benchmarks.remote_clients` as root: the job runs in this network namespace, its clients in another one, with a pair of
virtual interfaces between them. Prints a line of JSON for each measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import ROOT, mpiexec

NOOPS = """
import exex, sys, time, contextlib
@exex.python_app
def noop(x): return x
count, rounds = int(sys.argv[1]), int(sys.argv[2])
with exex.connect("job.json") if len(sys.argv) > 3 else contextlib.nullcontext():
    noop(0).result()
    for _ in range(rounds):
        began = time.monotonic()
        for future in [noop(i) for i in range(count)]:
            future.result()
        print(count / (time.monotonic() - began), flush=True)
"""

ONE_OF_MANY = """
import exex, sys, time
number, count = int(sys.argv[1]), int(sys.argv[2])
@exex.python_app
def mine(x): return x
with exex.connect("job.json"):
    mine(0).result()
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    values = [future.result() for future in [mine((number, i)) for i in range(count)]]
    print(time.monotonic() - began, values == [(number, i) for i in range(count)], flush=True)
"""

SCRIPT = """
import os, subprocess, sys, time
sys.argv = ["noops", *sys.argv[1:]]
exec(open("noops.py").read())
open("measured", "w").close()
while not os.path.exists("end"):
    time.sleep(0.05)
"""


class Nets:
    """A network namespace with a cable to this one."""

    def __init__(self) -> None:
        self.name = f"exexb{os.getpid() % 100000}"
        self.near = f"{self.name}n"
        self.words = ("ip", "netns", "exec", self.name)

    def ip(self, *words: str) -> None:
        """Run `ip`."""
        subprocess.run(["ip", *words], check=True)

    def __enter__(self) -> Nets:
        far = f"{self.name}f"
        self.ip("netns", "add", self.name)
        self.ip("link", "add", self.near, "type", "veth", "peer", "name", far, "netns", self.name)
        self.ip("addr", "add", "10.201.77.1/30", "dev", self.near)
        self.ip("link", "set", self.near, "up")
        self.ip("-n", self.name, "addr", "add", "10.201.77.2/30", "dev", far)
        self.ip("-n", self.name, "link", "set", far, "up")
        return self

    def __exit__(self, *_: object) -> None:
        self.ip("netns", "del", self.name)


@contextlib.contextmanager
def job(directory: Path, nets: Nets, *script: str) -> Iterator[subprocess.Popen[str]]:
    """A world of two workers that listens on the cable."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    words = ["--listen", "0", "--interface", nets.near, "--connection-file", "job.json", *script]
    argv = [mpiexec(), "-n", "3", sys.executable, "-m", "exex.run", *words]
    process = subprocess.Popen(argv, cwd=directory, env=env, stdout=subprocess.PIPE, text=True)
    try:
        while not (directory / "job.json").exists():
            time.sleep(0.05)
        yield process
    finally:
        if not script:
            subprocess.run([sys.executable, "-m", "exex", "shutdown", "job.json", "--cancel"], cwd=directory, env=env, check=True)
        process.wait(60)


def start(directory: Path, nets: Nets, script: str, *args: str) -> subprocess.Popen[str]:
    """Start a client on the other side."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [*nets.words, sys.executable, script, *args]
    return subprocess.Popen(argv, cwd=directory, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str]) -> list[str]:
    """All that it prints."""
    out = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"a client ended with status {process.returncode}")
    return out.splitlines()


def rates(directory: Path, nets: Nets, count: int, rounds: int) -> dict[str, float]:
    """No-ops per second of the script and of a remote client, in one job, one after the other."""
    (directory / "script.py").write_text(SCRIPT)
    with job(directory, nets, "script.py", str(count), str(rounds)) as process:
        while not (directory / "measured").exists():
            time.sleep(0.05)
        far = [float(line) for line in lines(start(directory, nets, "noops.py", str(count), str(rounds), "remote"))]
        (directory / "end").touch()
        assert process.stdout is not None
        near = [float(line) for line in process.stdout.read().split()]
    local, remote = statistics.median(near), statistics.median(far)
    return {"local_rate": local, "remote_rate": remote, "ratio": remote / local}


def many(directory: Path, nets: Nets, clients: int, tasks: int) -> dict[str, float]:
    """Seconds that clients wait for their tasks, all at once."""
    with job(directory, nets):
        processes = [start(directory, nets, "many.py", str(number), str(tasks)) for number in range(clients)]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        ended = [lines(process)[-1].split() for process in processes]
    if any(right != "True" for _, right in ended):
        raise RuntimeError("results are crossed")
    waits = [float(wait) for wait, _ in ended]
    median = statistics.median(waits)
    return {"clients": clients, "tasks": tasks, "median_s": median, "longest_s": max(waits), "ratio": max(waits) / median}


def cut(directory: Path, nets: Nets, tasks: int, cut_s: float) -> dict[str, float]:
    """Seconds for tasks in the midst of which the cable is out."""
    with job(directory, nets):
        began = time.monotonic()
        process = start(directory, nets, "noops.py", str(tasks), "1", "remote")
        time.sleep(1.5)
        nets.ip("link", "set", nets.near, "down")
        time.sleep(cut_s)
        nets.ip("link", "set", nets.near, "up")
        lines(process)
        return {"tasks": tasks, "cut_s": cut_s, "all_s": time.monotonic() - began}


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--each", type=int, default=1000, help="tasks of each of many clients")
    parser.add_argument("--cut-s", type=float, default=30.0)
    parser.add_argument("--only", choices=("rates", "many", "cut"))
    args = parser.parse_args()
    with Nets() as nets:
        for name, measure in (
            ("rates", lambda where: rates(where, nets, args.tasks, args.rounds)),
            ("many", lambda where: many(where, nets, args.clients, args.each)),
            ("cut", lambda where: cut(where, nets, args.tasks, args.cut_s)),
        ):
            if args.only in (None, name):
                with tempfile.TemporaryDirectory() as directory:
                    Path(directory, "noops.py").write_text(NOOPS)
                    Path(directory, "many.py").write_text(ONE_OF_MANY)
                    print(json.dumps({"what": name, **measure(Path(directory))}), flush=True)


if __name__ == "__main__":
    main()
