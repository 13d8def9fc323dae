"""The manager at full size: `python -m benchmarks.manager_scale` drives the real one with up to 262,144 simulated ranks.

Loop, codec, graph, placement are the manager's own; links, workers and the client are played (see `played_world`). Each shape
runs in a process of its own, and only CPU time inside the manager's turns counts. The rate is compared with the end-to-end rate
of `submit` in a real world of two workers; what MPI itself costs is measured between two real ranks, in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.played_world import Shape, World, app, calls
from exex.protocol.messages import Beat

SHAPES = (Shape(1024, 1, 32), Shape(8192, 32, 1), Shape(262_144, 1, 32))
"""Compared; the bars are for the last against the first."""

STRONG_TASKS = 5000
LEAVES = 1 << 16
LOST = 32
GANG_NODES = 4


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Measured:
    """One shape: values by name."""

    def __init__(self, shape: Shape, tasks: int) -> None:
        gc.collect()
        self.before = resident_bytes()
        self.world = World(shape)
        self.shape, self.tasks = shape, tasks
        self.values: dict[str, float] = {"ranks": shape.ranks, "slots": shape.slots}
        self._next = 0

    def run(self) -> dict[str, float]:
        """All measurements, in an order in which none disturbs the next."""
        self.register()
        self.noops()
        self.seconds()
        self.mixed()
        self.dependencies()
        self.gangs()
        self.beats()
        self.losses()
        self.end()
        return self.values

    def register(self) -> None:
        """Every rank says Hello; what it costs, and what an idle worker takes."""
        self.world.register()
        ranks = self.shape.ranks
        self.values["hello_us"] = self.world.manager_s / ranks * 1e6
        self.values["idle_bytes"] = (resident_bytes() - self.before) / ranks

    def _run(self, count: int, number: int, length: Callable[[int], float], **options: Any) -> tuple[float, float, float]:
        """Run calls of one app; CPU seconds and messages for each, and seconds on the clock."""
        world = self.world
        submits = calls(self._next, count, app(number, f"app{number}", **options), number)
        self._next += count
        began_s, messages = world.manager_s, world.messages
        took_s = world.run(submits, length)
        return (world.manager_s - began_s) / count, (world.messages - messages) / count, took_s

    def noops(self) -> None:
        """As fast as can be."""
        self._run(1000, 0, lambda task: 0.0)  # the manager knows then how short they are
        each_s, messages, _ = self._run(self.tasks, 1, lambda task: 0.0)
        self.values |= {"noop_rate": 1 / each_s, "noop_us": each_s * 1e6, "noop_messages": messages}

    def seconds(self) -> None:
        """Tasks of a second: a message there and one back for each."""
        count = min(self.tasks, 2 * self.shape.ranks * self.shape.slots)
        each_s, messages, _ = self._run(count, 2, lambda task: 1.0)
        self.values |= {"second_us": each_s * 1e6, "second_messages": messages}
        _, _, took_s = self._run(STRONG_TASKS, 3, lambda task: 1.0)
        self.values["strong_s"] = took_s

    def mixed(self) -> None:
        """Lognormal lengths, median 10 ms, from a tenth of a millisecond to seconds."""
        rng = random.Random(1)
        lengths = [rng.lognormvariate(0.0, 2.0) * 0.01 for _ in range(4096)]
        each_s, messages, _ = self._run(self.tasks // 2, 4, lambda task: lengths[task % 4096])
        self.values |= {"mixed_us": each_s * 1e6, "mixed_messages": messages}

    def dependencies(self) -> None:
        """A binary reduction tree of no-ops."""
        first, needs = self._next, {}
        level = list(range(first, first + LEAVES))
        number = first + LEAVES
        while len(level) > 1:
            above = []
            for left in range(0, len(level), 2):
                needs[number] = level[left : left + 2]
                above.append(number)
                number += 1
            level = above
        count = number - first
        submits = calls(first, count, app(5, "tree"), 5, needs)
        self._next = number
        began_s = self.world.manager_s
        self.world.run(submits)
        self.values["tree_us"] = (self.world.manager_s - began_s) / count * 1e6

    def gangs(self) -> None:
        """Gangs of a few nodes between tasks of one slot, all of them longer than a second."""
        lengths = [random.Random(2).uniform(1.0, 3.0) for _ in range(1000)]
        nodes = self.shape.ranks // self.shape.per_node
        gangs = calls(self._next, nodes, app(6, "gang", nodes=GANG_NODES), 6)
        self._next += nodes
        serial = calls(self._next, 2 * nodes, app(7, "serial"), 7)
        self._next += 2 * nodes
        began_s = self.world.manager_s
        self.world.run([*gangs, *serial], lambda task: lengths[task % 1000])
        self.values["gang_us"] = (self.world.manager_s - began_s) / (3 * nodes) * 1e6

    def beats(self) -> None:
        """A Beat, answered; and a look at when each worker was heard of."""
        world, count = self.world, 20_000
        frames = world.encoder.encode(Beat())
        began_s = world.manager_s
        for at in range(0, count, 200):
            world.crowd.inbox.extend((1 + (at + i) % self.shape.ranks, frames) for i in range(200))
            world.turn()
        self.values["beat_us"] = (world.manager_s - began_s) / count * 1e6
        began_s = time.process_time()
        world.loop._liveness._swept_s = float("-inf")
        world.loop._liveness.silent(world.now_s)
        self.values["look_ms"] = (time.process_time() - began_s) * 1e3

    def losses(self) -> None:
        """A node's worth of ranks dies while many tasks wait."""
        world = self.world
        submits = calls(self._next, 200_000, app(8, "lost"), 8)
        self._next += 200_000
        world.begin(submits, lambda task: 1.0)
        for _ in range(300):
            world.turn()
        began_s = time.process_time()
        with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
            for rank in range(1, LOST + 1):
                world.loop.lose_worker(rank, "is dead")
        self.values["loss_ms"] = (time.process_time() - began_s) / LOST * 1e3
        world.finish()

    def end(self) -> None:
        """An orderly end."""
        state = self.world.loop.state
        assert not state.tasks and not state.assigned
        began_s = self.world.manager_s
        self.world.stop()
        self.values["stop_s"] = self.world.manager_s - began_s


def waiting_bytes(count: int, needs: bool) -> dict[str, float]:
    """Memory for each task that waits, its pickled call included: for a slot, or for another task's value."""
    world = World(Shape(1, 1, 1))
    world.register()
    for submit in calls(0, 2, app(0, "first")):
        world.send(submit)
    world.loop.turn()
    before, call_bytes, began_s, step = resident_bytes(), 0, time.process_time(), 8192
    turns_s = 0.0
    for at in range(2, count + 2, step):
        size = min(step, count + 2 - at)
        for submit in calls(at, size, None, 0, {task: [0] for task in range(at, at + size)} if needs else None):
            call_bytes += sum(map(len, submit.payloads))
            world.send(submit)
        began_s = time.process_time()
        world.loop.turn()
        turns_s += time.process_time() - began_s
    assert len(world.loop.state.tasks) == count + 2
    grown = resident_bytes() - before
    each_us = turns_s / count * 1e6
    return {"count": count, "bytes": grown / count, "call_bytes": call_bytes / count, "gib": grown / 2**30, "us": each_us}


# ---- the whole run ----


def _in_own_process(*words: str) -> dict[str, float]:
    argv = [sys.executable, "-m", "benchmarks.manager_scale", *words]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, cwd=harness.ROOT)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def measure(shape: Shape, tasks: int) -> dict[str, float]:
    """One shape, in a process of its own."""
    return _in_own_process("--one", f"{shape.ranks}x{shape.slots}x{shape.per_node}", "--tasks", str(tasks))


def link_cost() -> dict[str, float]:
    """See `link_cost`; in a world of two ranks."""
    argv = [harness.mpiexec(), "-n", "2", sys.executable, "-m", "benchmarks.link_cost"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, cwd=harness.ROOT, timeout=120)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def submit_rate() -> float:
    """End to end, two workers."""
    run = harness.run_driver("exex", "submit", 3.0, 150.0)
    if not run.values:
        raise RuntimeError(f"submit, end to end: {run.reason}")
    return float(run.values[0]["value"])


def costs_of(values: dict[str, float], link: dict[str, float]) -> dict[str, float]:
    """What a task and what a message there and back cost the manager, from tasks in large and in small messages."""
    per_message = (values["second_us"] - values["noop_us"]) / (values["second_messages"] - values["noop_messages"])
    task_us = values["noop_us"] - per_message * values["noop_messages"]
    return {
        "task_s": task_us * 1e-6,
        "message_s": per_message * 1e-6,
        "link_send_s": link["send_s"],
        "link_receive_s": link["receive_s"],
        "hello_s": values["hello_us"] * 1e-6,
    }


ROWS = (
    ("no-ops, tasks/s", "noop_rate", "{:,.0f}"),
    ("... messages for each", "noop_messages", "{:.3f}"),
    ("tasks of 1 s, µs of CPU each", "second_us", "{:.1f}"),
    ("lognormal lengths, median 10 ms, µs each", "mixed_us", "{:.1f}"),
    ("binary tree of no-ops, µs each", "tree_us", "{:.1f}"),
    (f"gangs of {GANG_NODES} nodes and serial tasks, µs each", "gang_us", "{:.1f}"),
    ("5,000 tasks of 1 s, s on the clock", "strong_s", "{:.3f}"),
    ("registration, µs for each rank", "hello_us", "{:.1f}"),
    ("memory of an idle worker, B", "idle_bytes", "{:,.0f}"),
    ("a heartbeat, answered, µs", "beat_us", "{:.1f}"),
    ("a look at all workers for silent ones, ms", "look_ms", "{:.2f}"),
    ("a lost rank while 200,000 tasks wait, ms", "loss_ms", "{:.2f}"),
    ("orderly end, s", "stop_s", "{:.3f}"),
)


def table(results: list[tuple[Shape, dict[str, float]]]) -> str:
    """Markdown."""
    lines = ["| | " + " | ".join(shape.text() for shape, _ in results) + " |", "|---|" + "---:|" * len(results)]
    for text, name, style in ROWS:
        lines.append(f"| {text} | " + " | ".join(style.format(values[name]) for _, values in results) + " |")
    return "\n".join(lines)


def main() -> int:
    """Print tables, and one JSON object to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.manager_scale", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="no-ops of each shape")
    parser.add_argument("--waiting", type=int, default=10_000_000, help="tasks that wait; 0 for none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write all values there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--needs", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(Measured(Shape(*map(int, args.one.split("x"))), args.tasks).run()))
        return 0
    if args.needs is not None:
        print(json.dumps(waiting_bytes(args.waiting, bool(args.needs))))
        return 0
    results: list[tuple[Shape, dict[str, float]]] = []
    submit: list[float] = []
    samples: dict[Shape, list[dict[str, float]]] = {shape: [] for shape in SHAPES}
    for _ in range(args.repeats):  # in turns: the machine's speed varies
        for shape in SHAPES:
            samples[shape].append(measure(shape, args.tasks))
        submit.append(submit_rate())
    for shape, found in samples.items():
        results.append((shape, {name: statistics.median(values[name] for values in found) for name in found[0]}))
    print(table(results))
    few, many = results[0][1], results[-1][1]
    ratios = [last["noop_rate"] / first["noop_rate"] for first, last in zip(samples[SHAPES[0]], samples[SHAPES[-1]])]
    end_to_end = statistics.median(submit)
    print(f"\n{SHAPES[-1].text()} against {SHAPES[0].text()}: {statistics.median(ratios):.0%} of the rate (bar: 90 %)")
    print(f"against {end_to_end:,.0f} tasks/s end to end: {many['noop_rate'] / end_to_end:.2f} x (bar: 1.5, aim: 3)")
    costs = costs_of(many, link_cost())
    print("costs: " + ", ".join(f"{name} {value * 1e6:.2f} us" for name, value in costs.items()))
    waiting = []
    if args.waiting:
        for needs in (0, 1):
            waiting.append(_in_own_process("--waiting", str(args.waiting), "--needs", str(needs)))
            one = waiting[-1]
            what = "for another" if needs else "for a slot"
            print(
                f"{one['count']:,.0f} tasks wait {what}: {one['gib']:.2f} GiB, {one['bytes']:.0f} B each, of which the call "
                f"{one['call_bytes']:.0f}; {one['us']:.2f} us each (bar: 12 GiB for 10,000,000)"
            )
    if args.json:
        everything = {"submit_rate": end_to_end, "costs": costs, "shapes": [values for _, values in results], "waiting": waiting}
        Path(args.json).write_text(json.dumps(everything | {"few": few}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
