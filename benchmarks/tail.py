"""The end of a job: `python -m benchmarks.tail [--seeds 10]` plays jobs of mixed lengths on the real manager.

Each job is played four times: with what is queued left where it is or taken back, and with tasks as they come or longest first.
The time of each is compared with a lower bound, that no order of any kind can beat: the work over the slots, or the longest task.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.played_world import Costs, Shape, World, app, calls
from exex.manager import longest, placement

SHAPE = Shape(64, 1, 8)
NETWORK = Costs(one_way_s=20e-6)


class Job(NamedTuple):
    """Calls of several apps, shuffled: name, and for each app its lengths. `chunk` calls in a row are of one app."""

    name: str
    lengths_s: Sequence[Sequence[float]]
    chunk: int = 1


def jobs(seed: int) -> list[Job]:
    """The same kinds for each seed, with other lengths."""
    rng = random.Random(seed)
    mixed = [[mean * rng.uniform(0.5, 1.5) for _ in range(count)] for mean, count in ((0.2, 4000), (2.0, 400), (20.0, 60))]
    some_are_long = [[1e-3 if rng.random() < 0.95 else rng.uniform(1.0, 2.0) for _ in range(6000)]]
    wide = [[rng.lognormvariate(-6.9, 2.0) for _ in range(10_000)]]
    return [
        Job("three apps, 0.2, 2 and 20 s", mixed, 20),
        Job("1 ms, one in 20 1 to 2 s", some_are_long),
        Job("lognormal, median 1 ms", wide),
    ]


@contextlib.contextmanager
def without(retraction: bool, order: bool) -> Iterator[None]:
    """Leave out what is False while this lasts."""
    retract, size_of = placement.retract, longest.size_of
    if not retraction:
        placement.retract = lambda state: None
    if not order:
        longest.size_of = lambda app: 0
    try:
        yield
    finally:
        placement.retract, longest.size_of = retract, size_of


def play(job: Job, seed: int, retraction: bool, order: bool) -> tuple[float, float]:
    """Seconds from the first submission to the last answer, over the lower bound; part of the tasks that was taken back."""
    rng = random.Random(seed)
    of_app = [list(lengths) for lengths in job.lengths_s]
    sequence: list[int] = []
    left = [number for number, lengths in enumerate(of_app) for _ in range(-(-len(lengths) // job.chunk))]
    rng.shuffle(left)
    world = World(SHAPE, NETWORK)
    world.register()
    submits, lengths_s, named = [], list[float](), set[int]()
    for number in left:
        some = [of_app[number].pop() for _ in range(min(job.chunk, len(of_app[number])))]
        submits += calls(len(lengths_s), len(some), None if number in named else app(number, f"app{number}"), number)
        named.add(number)
        lengths_s += some
        sequence.append(number)
    with without(retraction, order):
        took_s = world.run(submits, lengths_s.__getitem__)
    bound_s = max(max(lengths_s), sum(lengths_s) / (SHAPE.ranks * SHAPE.slots))
    return took_s / bound_s, world.returned / len(lengths_s)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tail", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    print(f"{SHAPE.text()}, {len(seeds)} seeds: time over the lower bound, median and worst; tasks taken back")
    for number, job in enumerate(jobs(0)):
        for retraction, order in ((False, False), (True, False), (False, True), (True, True)):
            found = [play(jobs(seed)[number], seed, retraction, order) for seed in seeds]
            times = [time for time, _ in found]
            how = f"{'taken back' if retraction else 'left there'}, {'longest first' if order else 'as they come'}"
            returned = statistics.median(part for _, part in found)
            print(f"{job.name:28} {how:28} {statistics.median(times):7.3f} {max(times):7.3f} {returned:8.2%}")


if __name__ == "__main__":
    main()
