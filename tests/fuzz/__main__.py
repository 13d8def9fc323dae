"""See the package's docstring."""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.targets import TARGETS

GROWTH_MIB = 24.0
"""What a target's memory may grow by after its first tenth: the allocator's own unrest, not a leak."""


def rss_mib() -> float:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def run(name: str, count: int, seed: int) -> str:
    """Fire at one target; a line about it.

    Raises:
        AssertionError: it was harmed; the message says how to replay.
    """
    cls, _ = TARGETS[name]
    rng = random.Random(f"{name} {seed}")
    began_s = time.monotonic()
    number = 0
    with tempfile.TemporaryDirectory() as directory:
        bomb = Path(directory) / "opened"
        target = cls(rng, bomb)
        base = rss_mib()
        try:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                for number in range(count):
                    target.fire()
                    if number == count // 10:
                        base = rss_mib()
                    if number % 4096 == 0:
                        said.seek(0)
                        said.truncate()
                target.close()
        except BaseException as error:
            error.add_note(f"target {name}, message {number}: python -m tests.fuzz --target {name} --messages {count} --seed {seed}")
            raise
        grown = rss_mib() - base
        assert not bomb.exists(), f"target {name}, seed {seed}: a payload was opened"
    assert grown < GROWTH_MIB, f"target {name}, seed {seed}: memory grew by {grown:.1f} MiB"
    seconds = time.monotonic() - began_s
    about = " ".join(f"{key} {value}" for key, value in vars(target).items() if type(value) is int and key not in ("fired", "next", "sequence", "hostile_next", "next_number"))
    return f"{name:8} {count:8} messages in {seconds:6.1f} s ({count / seconds:,.0f}/s), memory {grown:+.1f} MiB  {about}"


def main() -> int:
    """Fire at all targets, or at one."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000, help="for all targets together; for the one of --target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--target", choices=sorted(TARGETS))
    args = parser.parse_args()
    print(f"seed {args.seed}")
    for name, (_, share) in TARGETS.items():
        if args.target in (None, name):
            print(run(name, args.messages if args.target else int(args.messages * share), args.seed), flush=True)
    print("no crash, no growth, nothing opened")
    return 0


if __name__ == "__main__":
    sys.exit(main())
