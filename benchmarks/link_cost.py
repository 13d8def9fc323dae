"""What a small message costs the manager at its MPI link: `mpiexec -n 2 python -m benchmarks.link_cost` prints JSON.

CPU seconds of rank 0 for each message that it sends, and for each that has arrived and that it takes: the overhead *o* of the
LogP models, Python included. Both ranks are on one node, so no wire is measured.
"""

from __future__ import annotations

import json
import statistics
import time

from exex.transport import mpi

BURST = 256
BURSTS = 60
MESSAGE = bytes(200)


def main() -> None:
    """Bursts in both directions, in turns."""
    world = mpi.start()
    link = mpi.MpiLink(world, 1)
    other = 1 - world.rank
    sends: list[float] = []
    receives: list[float] = []
    for _ in range(BURSTS):
        if world.rank:
            _send(link, other)
            _receive(link)
        else:
            time.sleep(0.02)  # all of it is there then
            receives.append(_receive(link))
            sends.append(_send(link, other))
    if not world.rank:
        print(json.dumps({"send_s": statistics.median(sends), "receive_s": statistics.median(receives)}))
    mpi.finish()


def _send(link: mpi.MpiLink, peer: int) -> float:
    began_s = time.process_time()
    for _ in range(BURST):
        link.send(peer, [MESSAGE])
    took_s = time.process_time() - began_s
    while link.progress():
        pass
    return took_s / BURST


def _receive(link: mpi.MpiLink) -> float:
    began_s, left = time.process_time(), BURST
    while left:
        left -= link.receive() is not None
    return (time.process_time() - began_s) / BURST


if __name__ == "__main__":
    main()
