"""Run under mpiexec: functions on communicators of some ranks, without a manager. The first argument is the scenario."""

from __future__ import annotations

import os
import signal
import sys
import time

from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Kind, Outcome
from exex.transport import interrupt as interrupts
from exex.transport import mpi
from exex.worker.context import Place, TaskStopped
from exex.worker.together import Head, Together, handed


def stopped(number, frame):
    raise TaskStopped


def world():
    comm = mpi.start()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    own = interrupts.Interrupts(b"k" * 32, signal.SIGUSR2, stopped)
    ports = comm.allgather(own.port)
    return comm, Together(mpi.form, Place(comm.rank, "here"), own), ports


def head(function, *args, every_rank=False, **kwargs):
    spec = AppSpec(app=0, name="f", function=function.__name__.encode(), kind=Kind.TOGETHER, every_rank=every_rank)
    return Head(spec, handed(payloads.dump_function(function)[1]), handed(payloads.dump((args, kwargs))), None, 1)


def add_up(comm, x):
    return comm.rank, comm.allreduce(x * (comm.rank + 1))


def nothing(comm):
    return None


def one_raises(comm):
    if comm.rank == 1:
        raise ValueError("of rank 1")
    return comm.rank


def loops(comm):
    while True:
        time.sleep(0.001)


def values():
    comm, together, _ = world()
    ranks = [2, 1, 3]
    if comm.rank in ranks:
        share = together.run(7, ranks, head(add_up, 10, every_rank=True) if comm.rank == 2 else None)
        assert share.outcome == Outcome.DONE
        assert payloads.load(share.payload) == (ranks.index(comm.rank), 60)
        share = together.run(8, ranks, head(add_up, 10) if comm.rank == 2 else None)
        assert payloads.load(share.payload) == ((0, 60) if comm.rank == 2 else None)
        share = together.run(9, ranks, head(one_raises) if comm.rank == 2 else None)
        assert share.outcome == (Outcome.FAILED if comm.rank == 1 else Outcome.DONE)
    comm.Barrier()
    return "all right"


def many():
    """10,000 in a row: communicators would run out if one leaked."""
    comm, together, _ = world()
    count = int(sys.argv[2])
    if comm.rank in (1, 2):
        what = head(nothing)
        began = time.perf_counter()
        for task in range(count):
            assert together.run(task, [1, 2], what if comm.rank == 1 else None).outcome == Outcome.DONE
        rate = count / (time.perf_counter() - began)
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.01)
    return f"{rate:.0f} per second" if comm.rank == 1 else "all right"


def interrupted():
    comm, together, ports = world()
    if comm.rank in (1, 2):
        share = together.run(5, [1, 2], head(loops) if comm.rank == 1 else None)
        assert share.outcome == Outcome.FAILED
        assert "was stopped" in str(payloads.load(share.payload))
    elif comm.rank == 0:
        time.sleep(0.3)
        while not comm.Iprobe():
            for rank in (1, 2):
                interrupts.interrupt("127.0.0.1", ports[rank], b"k" * 32, 4, True)  # another task
                interrupts.interrupt("127.0.0.1", ports[rank], b"x" * 32, 5, True)  # another world
                interrupts.interrupt("127.0.0.1", ports[rank], b"k" * 32, 5, False)
            time.sleep(0.05)
    if comm.rank in (1, 2):
        comm.send("ended", 0)
    elif comm.rank == 0:
        assert [comm.recv() for _ in (1, 2)] == ["ended"] * 2
    comm.Barrier()
    return "all right"


if __name__ == "__main__":
    said = {"values": values, "many": many, "interrupted": interrupted}[sys.argv[1]]()
    print(f"rank {os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK'))}: {said}", flush=True)
    mpi.finish()
