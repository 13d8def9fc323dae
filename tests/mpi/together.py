"""Run under mpiexec: functions on communicators of some ranks, without a manager. The first argument is the scenario."""

from __future__ import annotations

import os
import sys
import threading
import time

from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Join, Kind, Outcome
from exex.protocol.runs import as_runs
from exex.transport import mpi
from exex.transport.page import Page
from exex.worker.context import Place
from exex.worker.together import Together, make_head

SCENARIO, *NUMBERS = sys.argv[1:]  # `Together` has an argv of its own
MOST_MIB = 4.0


def world():
    comm = mpi.start()
    mpi.prepare_teams(comm)
    page = Page()
    return comm, Together(mpi.form, Place(comm.rank, "here"), page, sys.argv[0], os.getcwd()), page


def head(function, *args, every_rank=False, **kwargs):
    spec = AppSpec(app=0, name="f", function=function.__name__.encode(), kind=Kind.TOGETHER, every_rank=every_rank)
    return make_head(spec, payloads.dump_function(function)[1], payloads.dump((args, kwargs)), None, 1)


def join(call, ranks, task=0, after_loss=False):
    return Join(task, call, as_runs(ranks), after_loss)


def quietly(request):
    """Wait without a core of one's own."""
    while not request.Test():
        time.sleep(0.005)


def add_up(comm, x):
    return comm.rank, comm.allreduce(x * (comm.rank + 1))


def nothing(comm):
    return None


def one_raises(comm):
    if comm.rank == 1:
        raise ValueError("of rank 1")
    return comm.rank


def aborts(comm):
    comm.Abort(3)


def loops(comm):
    while True:
        time.sleep(0.001)


def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def values():
    comm, together, page = world()
    ranks = [2, 1, 3]
    if comm.rank in ranks:
        leads = comm.rank == 2
        outcome, value, seconds = together.run(join(1, ranks, task=7), head(add_up, 10, every_rank=True) if leads else None)
        assert outcome == Outcome.DONE and payloads.load(value) == (ranks.index(comm.rank), 60) and seconds >= 0
        _, value, _ = together.run(join(2, ranks), head(add_up, 10) if leads else None)
        assert payloads.load(value) == ((0, 60) if leads else None)
        large = head(len, b"x" * 1_000_000)
        assert isinstance(large.payload, bytes | list)
        outcome, value, _ = together.run(join(3, ranks), head(takes_bytes, b"x" * 1_000_000) if leads else None)
        assert outcome == Outcome.DONE and payloads.load(value) == (1_000_000 if leads else None)
        assert page.running() is None
    comm.Barrier()
    return "all right"


def takes_bytes(comm, data):
    return len(data)


def failed():
    """Each rank tells its own failure; the communicator is unusable then, and the next call has another."""
    comm, together, _ = world()
    ranks = [1, 2, 3]
    if comm.rank in ranks:
        leads = comm.rank == 1
        outcome, value, _ = together.run(join(1, ranks), head(one_raises) if leads else None)
        assert outcome == (Outcome.FAILED if comm.rank == 2 else Outcome.DONE)
        assert comm.rank != 2 or isinstance(payloads.load(value), ValueError)
        for call in range(2, 40):
            outcome, value, _ = together.run(join(call, ranks), head(aborts) if leads else None)
            assert outcome == Outcome.FAILED and "called Abort(3)" in str(payloads.load(value))
        outcome, value, _ = together.run(join(50, ranks, after_loss=True), head(add_up, 1) if leads else None)
        assert outcome == Outcome.DONE and (not leads or payloads.load(value) == (0, 6))
    comm.Barrier()
    return "all right"


def many():
    """So many in a row: if communicators leaked, MPICH would run out of them (at 2,045), and Open MPI would grow."""
    comm, together, _ = world()
    count = int(NUMBERS[0])
    rate = grown_mib = before_mib = 0.0
    if comm.rank in (1, 2):
        what = head(nothing)
        began = time.perf_counter()
        for call in range(1, count + 1):
            assert together.run(join(call, [1, 2]), what if comm.rank == 1 else None)[0] == Outcome.DONE
            if call == count // 10:
                before_mib = resident_mib()
        rate = count / (time.perf_counter() - began)
        grown_mib = resident_mib() - before_mib
    quietly(comm.Ibarrier())
    assert grown_mib < MOST_MIB, f"memory has grown by {grown_mib:.1f} MiB"
    return f"{rate:.0f} per second, {grown_mib:+.2f} MiB" if comm.rank == 1 else "all right"


def interrupted():
    """A guard's word ends the call that is meant, once, and the rank goes on."""
    comm, together, page = world()
    ranks = [1, 2]
    if comm.rank in ranks:
        ended = threading.Event()

        def guard():
            while not ended.is_set():
                page.stop(os.getpid(), 4, True)  # another call: it would kill this one
                if page.running() == 5:
                    page.stop(os.getpid(), 5, False)
                time.sleep(0.01)

        thread = threading.Thread(target=guard)
        thread.start()
        outcome, value, _ = together.run(join(5, ranks), head(loops) if comm.rank == 1 else None)
        assert (outcome, value) == (Outcome.CANCELLED, b"") and page.running() is None
        outcome, value, _ = together.run(join(6, ranks), head(add_up, 1) if comm.rank == 1 else None)
        assert outcome == Outcome.DONE
        ended.set()
        thread.join()
    comm.Barrier()
    return "all right"


if __name__ == "__main__":
    said = {"values": values, "failed": failed, "many": many, "interrupted": interrupted}[SCENARIO]()
    print(f"rank {os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK'))}: {said}", flush=True)
    mpi.finish()
