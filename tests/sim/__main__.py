"""Seeds of the simulation: `python -m tests.sim --seeds 10000 [--start K]`, or one of them again: `--seed 57`."""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.simulation import Past, Simulation


class SeedFailed(AssertionError):
    """A seed broke an invariant; the text is its story."""


def run_seed(seed: int) -> Simulation:
    """Run one seed to its end: one life of the job after the other. Returns the last.

    Raises:
        SeedFailed: with the last events in readable form, and how to see them again.
    """
    past = Past()
    try:
        while True:
            sim = Simulation.of_seed(seed, past)
            sim.run()
            past.attempts += sum(sim.begun.values())
            if not sim.goes_on:
                return sim
            past.lives += 1
            past.story.append(f"---- life {past.lives + 1}, with {len(past.disk)} rows on disk")
    except Exception as error:
        story = "\n".join(past.story)
        what = f"{type(error).__name__}: {error}"
        raise SeedFailed(f"seed {seed}: {what}\nthe last events:\n{story}\nreplay: python -m tests.sim --seed {seed}") from error


def main() -> int:
    """Run seeds; 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="this one only, and print its story")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    args = parser.parse_args()
    seeds = range(args.start, args.start + args.seeds) if args.seed is None else [args.seed]
    began_s = time.monotonic()
    attempts = lives = 0
    for seed in seeds:
        try:
            sim = run_seed(seed)
        except SeedFailed as failed:
            print(failed)
            if args.seed is not None:
                raise
            return 1
        attempts += sim.past.attempts
        lives += sim.past.lives + 1
        if len(seeds) > 1 and (seed + 1 - args.start) % 1000 == 0:
            print(f"{seed + 1 - args.start} seeds so far", file=sys.stderr, flush=True)
        if args.seed is not None:
            print("\n".join(sim.story))
    print(f"{len(seeds)} seeds, {lives:,} lives, {attempts:,} attempts, {time.monotonic() - began_s:.0f} s: no violation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
