"""The contract between real ranks: `mpiexec -n 3 python -m tests.conformance.over_mpi [joined]`. Rank 0 checks, others echo.

With `joined`, rank 0 also echoes to itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from exex.transport import mpi
from exex.transport.base import Ranks
from exex.transport.joined import OWN, JoinedRanks
from tests.conformance.contract import CHECKS, END, Echo


def lead(link: Ranks, peers: list[int], turn: Callable[[], None]) -> None:
    """Check all, then let the others go."""
    for check in CHECKS:
        check(link, peers, turn)
        print(f"ok {check.__name__}", flush=True)
    for peer in peers:
        link.send(peer, [END])
    while link.progress():
        pass


def main() -> None:
    world = mpi.start()
    link = mpi.MpiLink(world, world.size - 1 if world.rank == 0 else 1)
    if world.rank:
        Echo(link).run()
    elif sys.argv[1:] == ["joined"]:
        both = JoinedRanks(link)
        lead(both, [OWN, *range(1, world.size)], Echo(both.own).turn)
    else:
        lead(link, list(range(1, world.size)), lambda: None)
    mpi.finish()


if __name__ == "__main__":
    main()
