"""Messages over MPI point to point: between rank 0 and the workers. The only importer of mpi4py.

A message of one frame travels as it is with tag `_ONE`. A message of several frames travels with tag `_MANY` as one MPI
message: a table of lengths (int64: count, then each length) and the frames, gathered by MPI from where they lie through
a derived datatype, so that nothing is copied here. The receiver cuts its one buffer into views.

Nothing here waits inside MPI: a peer that dies in the middle of a message would be waited for without end. Where the
library reports dead ranks (ULFM: Open MPI under `mpiexec --with-ft ulfm`), they are received as GONE. Where it can refuse a
message for now (see tries), the messages to that peer are kept here, and `_KNOCK`, which is empty and thrown away, is sent to it
now and then: a call that is refused may cost memory as large as its message.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import mpi4py

from exex.errors import AppException, StartError
from exex.protocol.payload import Buffer
from exex.transport import tries
from exex.transport.base import GONE
from exex.transport.doorbell import Doorbell, new_key
from exex.transport.refused import Refused

mpi4py.rc.initialize = False
mpi4py.rc.finalize = False

from mpi4py import MPI  # noqa: E402

LOOKS = 20
"""Probes in a row for a message that a ring has announced: a probe of MPICH does not look everywhere each time."""

SMALL_BYTES = 4096
"""A message of this size travels in one piece in every library: once it is seen, it can be taken without waiting."""

_ONE, _MANY, _KNOCK = 1, 2, 3
_NOTHING: list[Buffer] = []
_NETWORK = {"FI_TCP_MAX_INJECT": "16384"}
"""Settings of network layers, unless the user has some. libfabric's tcp provider copies messages of up to this size (bytes) as
soon as they are sent. If a longer one breaks off with its peer's death, MPICH ends the process that sent it."""

_DEAD = {getattr(MPI, name, MPI.ERR_UNKNOWN) for name in ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING")} - {MPI.ERR_UNKNOWN}


def start() -> MPI.Intracomm:
    """Initialise MPI, single-threaded; errors in MPI calls become exceptions.

    Raises:
        StartError: the library says no.
    """
    ours = [name for name in _NETWORK if name not in os.environ]
    os.environ.update({name: _NETWORK[name] for name in ours})
    try:
        MPI.Init_thread(MPI.THREAD_FUNNELED)
    except Exception as error:
        raise StartError(f"MPI_Init failed: {error}") from error
    finally:
        for name in ours:  # tasks do not inherit them
            del os.environ[name]
    world = MPI.COMM_WORLD
    for each in (world, MPI.COMM_SELF):  # of the latter are calls without a communicator
        each.Set_errhandler(MPI.ERRORS_RETURN)
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


def leaders_and_node(world: MPI.Intracomm) -> tuple[MPI.Comm | None, MPI.Comm]:
    """The lowest ranks of all nodes (None on other ranks), and the ranks of this node, both in their order. Collective."""
    node = world.Split_type(MPI.COMM_TYPE_SHARED, world.rank)
    leaders = world.Split(0 if node.rank == 0 else MPI.UNDEFINED, world.rank)
    return (leaders if node.rank == 0 else None), node


def tell_all(world: MPI.Intracomm, what: Any) -> Any:
    """What rank 0 has passed. Collective."""
    return world.bcast(what)


def gather(world: MPI.Intracomm, what: Any) -> list[Any]:
    """At rank 0, what each rank has passed; elsewhere an empty list. Collective."""
    return world.gather(what) or []


def abort(status: int) -> NoReturn:
    """End all ranks of the world at once."""
    MPI.COMM_WORLD.Abort(status)
    raise SystemExit(status)


_everybody = MPI.COMM_WORLD
_REPORTS_DEAD = bool(_DEAD)


def prepare_teams(world: MPI.Intracomm) -> None:
    """Before `form` is used beside an MpiLink. Collective.

    Open MPI sends what MPI_Comm_create_group needs as messages with the caller's tag, which the link would take for its own.
    """
    global _everybody  # noqa: PLW0603
    _everybody = world.Dup()
    _everybody.Set_errhandler(MPI.ERRORS_RETURN)


def world_rank() -> int:
    """This process's number in the world."""
    return int(MPI.COMM_WORLD.rank)


class _TaskComm(MPI.Intracomm):
    """The communicator of a task: it cannot end the job."""

    def Abort(self, errorcode: int = 0) -> NoReturn:  # noqa: N802
        """Fail the task instead."""
        raise AppException(f"it called Abort({errorcode}) of its communicator")


def form(ranks: Sequence[int], tag: int, after_loss: bool) -> MPI.Intracomm:
    """A communicator of these ranks of the world, in this order. Collective over them, and nobody else; `Free` it.

    Args:
        after_loss: other ranks have died. MPI_Comm_create_group of Open MPI 5 then fails now and then, also where none of them is
            in the group; MPI_Comm_create_from_group, at a twentieth of its speed, does not.
    """
    everybody = _everybody.Get_group()
    group = everybody.Incl(ranks)
    try:
        if after_loss and _REPORTS_DEAD:
            return _TaskComm(MPI.Intracomm.Create_from_group(group, f"exex-{tag}", errhandler=MPI.ERRORS_RETURN))
        return _TaskComm(_everybody.Create_group(group, tag))
    finally:
        group.Free()
        everybody.Free()


def finish() -> None:
    """MPI_Finalize. The process must end normally afterwards, never by `os._exit`: MPICH ends its PMI at exit."""
    MPI.Finalize()


class _Sending(NamedTuple):
    """A message that has not left yet."""

    request: MPI.Request
    data: Any
    peer: int


class _Arriving(NamedTuple):
    """A message that is being received."""

    request: MPI.Request
    data: bytearray
    tag: int


class MpiLink:
    """This rank's end; peers are ranks of `comm`. Collective.

    Args:
        peers: how many ranks may send to this one without being asked.
        is_far: ranks of other nodes may, too: they ring nobody.
    """

    def __init__(self, comm: MPI.Intracomm, peers: int, is_far: bool = False) -> None:
        self._comm = comm
        self._peers = peers
        self._is_far = is_far
        self._bell = Doorbell(comm.bcast(new_key() if comm.rank == 0 else None), comm.rank)
        self._to_ring: set[int] = set()
        self._sent: dict[int, int] = {}  # messages to each peer
        self._received: dict[int, int] = {}  # and from each
        self._owing: set[int] = set()  # peers that have rung for more than was received
        self._status = MPI.Status()
        self._unsent: deque[_Sending] = deque()
        self._arriving: dict[int, deque[_Arriving]] = {}  # by sender, in order; none is empty
        self._forgotten: set[int] = set()
        self._dead: set[int] = set()  # reported by the library
        self._to_report: deque[int] = deque()  # of these, the ones not received as GONE yet
        self._refused = Refused()
        self._tries = tries.find()
        if self._tries is not None:
            hint = MPI.Info.Create(tries.HINT)
            comm.Set_info(hint)
            hint.Free()
        self._late: list[_Sending | _Arriving] = []  # let go
        self._kept: list[_Sending | _Arriving] = []  # of peers given up: MPI may touch the buffers as long as it lives

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        if peer in self._dead or peer in self._forgotten:
            raise ConnectionError(f"rank {peer} is gone")
        if peer in self._refused or not self._start(peer, frames):
            self._refused.keep(peer, frames, time.monotonic())

    def _start(self, peer: int, frames: list[Buffer]) -> bool:
        """Give MPI a message; False if the network does not take it for now.

        Raises:
            ConnectionError: the peer is gone.
        """
        limit = self._tries
        if limit is not None:
            limit.limit()
        try:
            if len(frames) == 1:
                data: Any = frames[0]
                request = self._comm.Isend([data, len(data), MPI.BYTE], peer, _ONE)
            elif frames:
                table = struct.pack(f"<{len(frames) + 1}q", len(frames), *(memoryview(frame).nbytes for frame in frames))
                data = [table, *(memoryview(frame).cast("B") for frame in frames)]
                request = self._send_gathered(peer, data)
            else:
                data = b""
                request = self._comm.Isend([data, 0, MPI.BYTE], peer, _KNOCK)
        except MPI.Exception as error:
            if limit is not None and "EAGAIN" in error.Get_error_string():
                return False
            self._on_error(error)
            raise ConnectionError(f"rank {peer} is gone") from None
        finally:
            if limit is not None:
                limit.lift()
        try:
            if not request.Test():
                self._unsent.append(_Sending(request, data, peer))
        except MPI.Exception as error:
            self._on_error(error)
            raise ConnectionError(f"rank {peer} is gone") from None
        if frames:
            self._sent[peer] = self._sent.get(peer, 0) + 1
            self._to_ring.add(peer)
        return True

    def _knock(self) -> None:
        """Knock at the peer whose turn it is; if it opens, give it what was kept. One at a time: each may take a while."""
        refused, now_s = self._refused, time.monotonic()
        peer = refused.due(now_s)
        if peer is None:
            return
        try:
            if self._start(peer, _NOTHING):
                messages = refused.opens(peer)
                while messages and self._start(peer, messages[0]):
                    messages.popleft()
                if not messages:
                    refused.drop(peer)
                    return
        except ConnectionError:
            refused.drop(peer)  # it will be received as GONE
            return
        refused.stays_shut(peer, now_s)

    def _send_gathered(self, peer: int, pieces: list[Any]) -> MPI.Request:
        filled = [piece for piece in pieces if len(piece)]
        memory = [MPI.buffer.frombuffer(piece, readonly=True) for piece in filled]
        datatype = MPI.BYTE.Create_hindexed([len(piece) for piece in filled], [piece.address for piece in memory]).Commit()
        try:
            return self._comm.Isend([MPI.BOTTOM, 1, datatype], peer, _MANY)
        finally:
            datatype.Free()  # MPI keeps it until the send is complete

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`. GONE comes only where the library reports dead ranks."""
        if self._to_report:
            return self._to_report.popleft(), GONE
        try:
            return self._take_arrived() if self._arriving else self._take_next()
        except MPI.Exception as error:
            self._on_error(error)
            return self.receive()

    def _take_arrived(self) -> tuple[int, list[Buffer]] | None:
        """A message that was seen before and is complete now; else the next of a sender from whom none is under way."""
        for source, queue in self._arriving.items():
            if queue[0].request.Test():
                first = queue.popleft()
                if not queue:
                    del self._arriving[source]
                return self._count(source, first.tag, first.data)
        return self._take_next()

    def _take_next(self) -> tuple[int, list[Buffer]] | None:
        """The next message that is not waited for yet, if all of it is there."""
        status = self._status
        looks = LOOKS if self._owing else 1
        while True:
            message = self._comm.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
            if message is None:
                looks -= 1
                if not looks:
                    return None
                continue
            size = status.Get_count(MPI.BYTE)
            source, tag = status.Get_source(), status.Get_tag()
            data = bytearray(size)
            if tag == _KNOCK:
                message.Recv([data, 0, MPI.BYTE])
                continue
            if size <= SMALL_BYTES and source not in self._arriving:
                message.Recv([data, size, MPI.BYTE])
                if source not in self._forgotten:
                    return self._count(source, tag, data)
                continue
            arriving = _Arriving(message.Irecv([data, size, MPI.BYTE]), data, tag)
            if source in self._forgotten:
                self._kept.append(arriving)
            elif source in self._arriving or not arriving.request.Test():
                self._arriving.setdefault(source, deque()).append(arriving)
            else:
                return self._count(source, tag, data)

    def _count(self, source: int, tag: int, data: bytearray) -> tuple[int, list[Buffer]]:
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
            sending = unsent.popleft()
            try:
                if not sending.request.Test():
                    unsent.append(sending)
            except MPI.Exception as error:
                self._kept.append(sending)
                self._on_error(error)
        if self._late:
            self._look_at_late()
        if self._refused:
            self._knock()
        if self._to_ring:
            ring, sent = self._bell.ring, self._sent
            self._to_ring = {peer for peer in self._to_ring if not ring(peer, sent.get(peer, 0))}
        return bool(unsent or self._refused)

    def forget(self, peer: int) -> None:
        """See `Ranks.forget`."""
        self._forgotten.add(peer)
        self._kept += [sending for sending in self._unsent if sending.peer == peer]
        self._unsent = deque(sending for sending in self._unsent if sending.peer != peer)
        self._refused.drop(peer)
        self._kept += self._arriving.pop(peer, ())
        self._owing.discard(peer)
        self._to_ring.discard(peer)

    def let_go(self, peer: int) -> None:
        """Wait no longer for what is under way to this peer, or from it: it is silent, and may be dead. What is lost is lost.

        A peer that lives after all can be talked with as before.
        """
        self._late += [sending for sending in self._unsent if sending.peer == peer]
        self._unsent = deque(sending for sending in self._unsent if sending.peer != peer)
        self._refused.drop(peer)
        self._late += self._arriving.pop(peer, ())
        self._owing.discard(peer)

    def _look_at_late(self) -> None:
        """See which of those that nobody waits for have come to their end after all."""
        late, self._late = self._late, []
        for each in late:
            try:
                if not each.request.Test():
                    self._late.append(each)
            except MPI.Exception as error:
                self._kept.append(each)
                self._on_error(error)

    def _on_error(self, error: MPI.Exception) -> None:
        """Note which ranks the library reports dead; anything else is an error of ours."""
        if error.Get_error_class() not in _DEAD:
            raise error
        group = self._comm.Get_failed()
        ranks = MPI.Group.Translate_ranks(group, range(group.Get_size()), self._comm.Get_group())
        self._comm.Ack_failed(group.Get_size())  # else no message from any rank could be received
        for rank in ranks:
            if rank not in self._dead:
                self._dead.add(rank)
                self._to_report.append(rank)

    def fileno(self) -> int:
        """See `Link.fileno`: readable when a rank on this node has sent."""
        return self._bell.fileno()

    def polled(self) -> bool:
        """See `Link.polled`: until all peers are known to be on this node, and while one that was announced is missing."""
        return self._is_far or bool(self._owing) or len(self._bell.heard) < self._peers

    def transferring(self) -> bool:
        """See `Link.transferring`: large messages, of which MPI moves a piece with each look."""
        return bool(self._arriving or self._unsent or self._refused)

    def woken(self) -> None:
        """See `Link.woken`."""
        heard, received = self._bell.heard, self._received
        rung = [peer for peer in self._bell.answer() if heard[peer] > received.get(peer, 0)]
        self._owing.update(peer for peer in rung if peer not in self._forgotten)

    def close(self) -> None:
        """See `Link.close`."""
        self._unsent.clear()
        self._refused.clear()
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
