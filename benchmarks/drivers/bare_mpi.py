"""The bare ceiling: what worker ranks can do at most if pickled calls travel in batches over MPI, no more.

No graph, no client, no safety: rank 0 keeps two batches in flight to each worker; a worker unpickles, calls,
pickles the results back. Every call of `submit` is pickled on its own, as a system that takes calls one by
one must; `map` pickles function and arguments of a batch as one. Ranks that find nothing sleep for a moment,
since they outnumber the cores.
"""

from __future__ import annotations

import ctypes
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mpi4py import MPI

from benchmarks import tasks
from benchmarks.measure import main
from benchmarks.system import NotOfferedError, System

BATCH = 100
IN_FLIGHT = 2  # batches per worker: one at work, one waiting, so that the round trip is hidden
ONE, MANY, STOP = 1, 2, 3  # tags: calls pickled one by one; one function over many arguments; go home
SPINS = 200  # empty probes before a rank begins to sleep
SLEEP_S = 20e-6
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: fresh pages for 1 MB cost far more than a copy of 1 MB."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that it accepts
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def wait_for_message(comm: MPI.Comm, status: MPI.Status) -> bytearray:
    """The next message to this rank; `status` then holds its sender and tag."""
    empty = 0
    while not comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
        empty += 1
        if empty > SPINS:
            time.sleep(SLEEP_S)
    message = bytearray(status.Get_count(MPI.BYTE))
    comm.Recv([message, MPI.BYTE], status.Get_source(), status.Get_tag())
    return message


def work(comm: MPI.Comm) -> None:
    """Main program of a worker rank: until STOP, answer each batch by its pickled results."""
    status = MPI.Status()
    while True:
        message = wait_for_message(comm, status)
        if status.Get_tag() == STOP:
            return
        batch = pickle.loads(message)
        if status.Get_tag() == ONE:
            results = []
            for payload in batch:
                fn, args = pickle.loads(payload)
                results.append(pickle.dumps(fn(*args), 5))
        else:
            fn, items = batch
            results = [fn(item) for item in items]
        comm.Send([pickle.dumps(results, 5), MPI.BYTE], 0, status.Get_tag())


class BareMpi(System):
    """Rank 0 of the bare loop."""

    name = "bare"
    packages = ("mpi4py",)

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.comm = MPI.COMM_WORLD

    def run(self, batches: Iterable[bytes], tag: int) -> Iterator[tuple[int, Any]]:
        """Pump `batches` through the workers; yields (number of the batch, unpickled answer) as they come."""
        source = enumerate(batches)
        order: dict[int, deque[int]] = {rank: deque() for rank in range(1, self.workers + 1)}
        sends: deque[MPI.Request] = deque()
        status = MPI.Status()

        def feed(rank: int) -> None:
            for index, message in source:
                order[rank].append(index)
                sends.append(self.comm.Isend([message, MPI.BYTE], rank, tag))
                break

        for _ in range(IN_FLIGHT):
            for rank in order:
                feed(rank)
        while any(order.values()):
            message = wait_for_message(self.comm, status)
            rank = status.Get_source()
            index = order[rank].popleft()
            feed(rank)  # before the answer is opened: the worker must not wait for us
            yield index, pickle.loads(message)
            while sends and sends[0].Test():
                sends.popleft()
        MPI.Request.Waitall(list(sends))

    def ordered(self, batches: Iterable[bytes], tag: int) -> list[Any]:
        """All answers, in order of the batches."""
        answers = dict(self.run(batches, tag))
        return [answers[index] for index in range(len(answers))]

    def calls(self, fn: Callable[..., Any], args: Sequence[tuple[Any, ...]], batch: int) -> list[Any]:
        """Results of calls that are pickled one by one and sent `batch` at a time."""
        lots = (args[first : first + batch] for first in range(0, len(args), batch))
        messages = (pickle.dumps([pickle.dumps((fn, each), 5) for each in lot], 5) for lot in lots)
        return [pickle.loads(result) for results in self.ordered(messages, ONE) for result in results]

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """No futures here: the call itself, for `gather`."""
        return fn, args

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        """Run the calls that `submit` has returned."""
        messages = (pickle.dumps([pickle.dumps(call, 5)], 5) for call in futures)
        return [pickle.loads(results[0]) for results in self.ordered(messages, ONE)]

    def map(self, fn: Callable[..., Any], items: Sequence[Any], chunksize: int | None) -> list[Any]:
        """Chunks of 100 unless told otherwise."""
        chunk = chunksize or BATCH
        messages = (
            pickle.dumps((fn, items[first : first + chunk]), 5) for first in range(0, len(items), chunk)
        )
        return [result for results in self.ordered(messages, MANY) for result in results]

    def noops(self, count: int) -> None:
        """Batches of 100 calls."""
        self.calls(tasks.noop, [(index,) for index in range(count)], BATCH)

    def spins(self, count: int, length_us: float) -> None:
        """Batches of at most 100 calls, and at least 8 batches per worker, so that the ends even out."""
        batch = max(1, min(BATCH, count // (8 * self.workers)))
        self.calls(tasks.spin, [(length_us,)] * count, batch)

    def echo(self, blocks: Iterable[bytes]) -> int:
        """Batches of one."""
        messages = (pickle.dumps([pickle.dumps((tasks.echo, (block,)), 5)], 5) for block in blocks)
        return sum(len(pickle.loads(results[0])) for _, results in self.run(messages, ONE))

    def chain(self, links: int) -> int:
        """Left out."""
        raise NotOfferedError("the bare loop has no graph")

    def tree(self, leaves: int) -> int:
        """Left out."""
        raise NotOfferedError("the bare loop has no graph")

    def close(self) -> None:
        """Send the workers home."""
        for rank in range(1, self.workers + 1):
            self.comm.Send([b"", MPI.BYTE], rank, STOP)


if __name__ == "__main__":
    keep_freed_memory()
    if MPI.COMM_WORLD.Get_rank() == 0:
        main(BareMpi)
    else:
        work(MPI.COMM_WORLD)
