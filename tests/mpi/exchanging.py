"""Stored payloads over real ranks that play nodes of their own: `mpiexec -n 4 python -m tests.mpi.exchanging DIR`.

Ranks 0 and 1 have stores of their own, 2 and 3 have one together.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import numpy as np

from exex.protocol import codec
from exex.protocol import payload as payloads
from exex.protocol.payload import Stored
from exex.store.exchange import WINDOW_BYTES, Exchange
from exex.store.holdings import Holdings
from exex.store.node_store import NodeStore, offsets
from exex.transport import mpi
from exex.transport.base import GONE
from exex.transport.wait import Waiter

LIMIT_S = 60.0


class Rank:
    """One of them, with a loop."""

    def __init__(self, directory: str) -> None:
        self.world = mpi.start()
        self.rank = self.world.rank
        self.link = mpi.MpiLink(self.world, 1, is_far=True)
        store = f"{directory}/node{min(self.rank, 2)}"
        os.makedirs(store, exist_ok=True)
        self.world.Barrier()
        encoder = codec.Encoder()
        holdings = Holdings(NodeStore.begin(store, "", 1 << 40), 1 << 40)
        self.exchange = Exchange(self.rank, holdings, lambda rank, msg: self.link.send(rank, encoder.encode(msg)))
        self._decoder = codec.to_worker()
        self._waiter = Waiter()
        self._waiter.watch_link(self.link)

    def until(self, done: Callable[[], bool]) -> None:
        """Turn until something is true."""
        give_up_s = time.monotonic() + LIMIT_S
        while not done():
            assert time.monotonic() < give_up_s, f"rank {self.rank} waits in vain"
            traffic = False
            while (arrived := self.link.receive()) is not None:
                assert arrived[1] is not GONE
                self.exchange.on_message(arrived[0], self._decoder.decode(arrived[1]))
                traffic = True
            self.link.progress()
            self._waiter.wait(traffic, False)

    def meet(self) -> None:
        """Serve others until all have come here."""
        request = self.world.Ibarrier()
        self.until(lambda: bool(request.Test()))


def check(rank: Rank, sizes: list[int]) -> None:
    """Rank 1 gets payloads from 0, rank 2 from 1 while they still come, and rank 3 finds them in the store of 2."""
    arrays = [np.arange(size, dtype=np.int64) for size in sizes]
    frames = [payloads.dump([array]).frames for array in arrays]
    stored = [Stored(f"t{i}.1", [len(memoryview(frame).cast("B")) for frame in each]) for i, each in enumerate(frames)]
    if rank.rank == 0:
        for each, pieces in zip(stored, frames):
            rank.exchange.adopt(rank.exchange.store.write(each.name, pieces))
    rank.meet()
    if rank.rank:
        for each in stored:
            rank.exchange.fetch(each, rank.rank - 1)
        arrived: list[tuple[str, bool]] = []

        def all_here() -> bool:
            arrived.extend(rank.exchange.events())
            return len(arrived) == len(stored)

        rank.until(all_here)
        assert sorted(arrived) == sorted((each.name, True) for each in stored), arrived
        for each, array in zip(stored, arrays):
            [found] = payloads.load(rank.exchange.payload(each))
            assert np.array_equal(found, array) and found.flags.writeable
    rank.meet()
    everything = sum(offsets(each.sizes)[1] for each in stored)
    moved = (rank.exchange.sent_bytes, rank.exchange.fetched_bytes)
    assert moved == [(everything, 0), (everything, everything), (0, everything), (0, 0)][rank.rank], moved


def check_silence(rank: Rank) -> None:
    """Who is not waited for any more holds nobody up, and is heard again."""
    one, two = 1, 2
    if rank.rank == one:
        rank.link.send(two, [b"head", bytes(1_000_000)])
        rank.until(lambda: rank.link.progress() and rank.link.transferring())
        rank.link.let_go(two)
        assert not rank.link.progress() and not rank.link.transferring()
        rank.link.send(two, [b"once more"])
    request = rank.world.Ibarrier()
    while not request.Test():
        time.sleep(0.005)  # until here rank 2 receives nothing
    if rank.rank == two:
        arrived: list[bytes] = []
        give_up_s = time.monotonic() + LIMIT_S
        while len(arrived) < 2 and time.monotonic() < give_up_s:
            if (message := rank.link.receive()) is not None:
                arrived.append(bytes(message[1][0]))
            os.sched_yield()
        assert arrived == [b"head", b"once more"], arrived
    rank.meet()


def main() -> None:
    rank = Rank(sys.argv[1])
    check(rank, [1, 10_000, WINDOW_BYTES // 8, 3 * WINDOW_BYTES // 8 + 5])
    check_silence(rank)
    os.write(1, f"rank {rank.rank} is content\n".encode())
    mpi.finish()


if __name__ == "__main__":
    main()
