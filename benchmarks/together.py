"""Functions on communicators of worker ranks: how many per second, and whether anything is left behind.

`python -m benchmarks.together [--count 10000] [--ranks 2] [--workers 2]` starts `exex run` with one-slot workers, and submits
no-ops on communicators, all at once; the median of five rounds. Afterwards each worker says how much memory it has gained
since the first round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any


def workflow(count: int, ranks: int) -> dict[str, Any]:
    """Runs in the job."""
    from exex import mpi_app

    @mpi_app(ranks=ranks)
    def nothing(comm: Any) -> None:
        pass

    @mpi_app(ranks=ranks, every_rank=True)
    def resident_bytes(comm: Any) -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    nothing().result()
    rates, before = [], 0
    for _ in range(5):
        began = time.perf_counter()
        for future in [nothing() for _ in range(count)]:
            future.result()
        rates.append(count / (time.perf_counter() - began))
        before = before or max(resident_bytes().result())
    return {
        "ranks": ranks,
        "count": count,
        "per_s": round(statistics.median(rates)),
        "samples": [round(rate) for rate in rates],
        "gained_bytes": max(resident_bytes().result()) - before,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="calls in a round (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of each communicator (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="worker ranks (default: as --ranks)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(workflow(args.count, args.ranks)))
        return
    words = ["--workers", str(args.workers or args.ranks), "--slots", "1", __file__]
    given = ["--inside", "--count", str(args.count), "--ranks", str(args.ranks)]
    raise SystemExit(subprocess.run([sys.executable, "-m", "exex", "run", *words, *given], check=False).returncode)


if __name__ == "__main__":
    main()
