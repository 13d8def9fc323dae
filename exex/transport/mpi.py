"""Messages over MPI point to point: between rank 0 and the workers. The only importer of mpi4py.

A message of one frame travels as it is with tag `_ONE`. A message of several frames travels with tag `_MANY` as one MPI
message: a table of lengths (int64: count, then each length) and the frames, gathered by MPI from where they lie through
a derived datatype, so that nothing is copied here. The receiver cuts its one buffer into views.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

import mpi4py

from exex.errors import StartError
from exex.protocol.payload import Buffer
from exex.transport.doorbell import Doorbell, new_key

mpi4py.rc.initialize = False
mpi4py.rc.finalize = False

from mpi4py import MPI  # noqa: E402

LOOKS = 20
"""Probes in a row for a message that a ring has announced: a probe of MPICH does not look everywhere each time."""

_ONE, _MANY = 1, 2


def start() -> MPI.Intracomm:
    """Initialise MPI, single-threaded; errors in MPI calls become exceptions.

    Raises:
        StartError: the library says no.
    """
    try:
        MPI.Init_thread(MPI.THREAD_FUNNELED)
    except Exception as error:
        raise StartError(f"MPI_Init failed: {error}") from error
    world = MPI.COMM_WORLD
    world.Set_errhandler(MPI.ERRORS_RETURN)
    return world


def library() -> str:
    """Name and version of the loaded MPI library, one line. Needs no MPI_Init."""
    return MPI.Get_library_version().split("\n")[0].strip("\x00 ")


def share_on_node(world: MPI.Intracomm, mine: object) -> list[Any]:
    """What each rank of `world` on this node has passed as `mine`. Collective."""
    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        return list(node.allgather(mine))
    finally:
        node.Free()


def finish() -> None:
    """MPI_Finalize. The process must end normally afterwards, never by `os._exit`: MPICH ends its PMI at exit."""
    MPI.Finalize()


class MpiLink:
    """This rank's end; peers are ranks of `comm`. Collective.

    Args:
        peers: how many ranks may send to this one.
    """

    def __init__(self, comm: MPI.Intracomm, peers: int) -> None:
        self._comm = comm
        self._peers = peers
        self._bell = Doorbell(comm.bcast(new_key() if comm.rank == 0 else None), comm.rank)
        self._to_ring: set[int] = set()
        self._sent: dict[int, int] = {}  # messages to each peer
        self._received: dict[int, int] = {}  # and from each
        self._owing: set[int] = set()  # peers that have rung for more than was received
        self._status = MPI.Status()
        self._unsent: deque[tuple[MPI.Request, Any]] = deque()

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        if len(frames) == 1:
            data: Any = frames[0]
            request = self._comm.Isend([data, len(data), MPI.BYTE], peer, _ONE)
        else:
            table = struct.pack(f"<{len(frames) + 1}q", len(frames), *(memoryview(frame).nbytes for frame in frames))
            data = [table, *(memoryview(frame).cast("B") for frame in frames)]
            request = self._send_gathered(peer, data)
        if not request.Test():
            self._unsent.append((request, data))
        self._sent[peer] = self._sent.get(peer, 0) + 1
        self._to_ring.add(peer)

    def _send_gathered(self, peer: int, pieces: list[Any]) -> MPI.Request:
        filled = [piece for piece in pieces if len(piece)]
        memory = [MPI.buffer.frombuffer(piece, readonly=True) for piece in filled]
        datatype = MPI.BYTE.Create_hindexed([len(piece) for piece in filled], [piece.address for piece in memory]).Commit()
        try:
            return self._comm.Isend([MPI.BOTTOM, 1, datatype], peer, _MANY)
        finally:
            datatype.Free()  # MPI keeps it until the send is complete

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`. MPI has no end of stream: GONE never comes."""
        status = self._status
        message = self._comm.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
        looks = LOOKS if self._owing else 1
        while message is None:
            looks -= 1
            if not looks:
                return None
            message = self._comm.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
        size = status.Get_count(MPI.BYTE)
        source, tag = status.Get_source(), status.Get_tag()
        data = bytearray(size)
        message.Recv([data, size, MPI.BYTE])
        received = self._received.get(source, 0) + 1
        self._received[source] = received
        if received == 1:
            self._to_ring.add(source)  # so that it knows that we do
        if source in self._owing and received >= self._bell.heard[source]:
            self._owing.discard(source)
        return source, [data] if tag == _ONE else _cut(data)

    def progress(self) -> bool:
        """See `Link.progress`. Rings last: who is woken may take the core of who rings."""
        unsent = self._unsent
        for _ in range(len(unsent)):
            pair = unsent.popleft()
            if not pair[0].Test():
                unsent.append(pair)
        if self._to_ring:
            ring, sent = self._bell.ring, self._sent
            self._to_ring = {peer for peer in self._to_ring if not ring(peer, sent.get(peer, 0))}
        return bool(unsent)

    def fileno(self) -> int:
        """See `Link.fileno`: readable when a rank on this node has sent."""
        return self._bell.fileno()

    def polled(self) -> bool:
        """See `Link.polled`: until all peers are known to be on this node, and while an announced message is missing."""
        return bool(self._owing) or len(self._bell.heard) < self._peers

    def woken(self) -> None:
        """See `Link.woken`."""
        heard, received = self._bell.heard, self._received
        self._owing.update(peer for peer in self._bell.answer() if heard[peer] > received.get(peer, 0))

    def close(self) -> None:
        """See `Link.close`."""
        self._unsent.clear()
        self._bell.close()


def _cut(data: bytearray) -> list[Buffer]:
    view = memoryview(data)
    (count,) = struct.unpack_from("<q", data)
    lengths = struct.unpack_from(f"<{count}q", data, 8)
    at = 8 * (count + 1)
    frames: list[Buffer] = []
    for length in lengths:
        frames.append(view[at : at + length])
        at += length
    return frames
