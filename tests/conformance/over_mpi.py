"""The contract between real ranks: `mpiexec -n 3 python -m tests.conformance.over_mpi`. Rank 0 checks, others echo."""

from __future__ import annotations

from exex.transport import mpi
from tests.conformance.contract import CHECKS, END, Echo


def main() -> None:
    world = mpi.start()
    link = mpi.MpiLink(world, world.size - 1 if world.rank == 0 else 1)
    if world.rank:
        Echo(link).run()
    else:
        peers = list(range(1, world.size))
        for check in CHECKS:
            check(link, peers, lambda: None)
            print(f"ok {check.__name__}", flush=True)
        for peer in peers:
            link.send(peer, [END])
        while link.progress():
            pass
    mpi.finish()


if __name__ == "__main__":
    main()
