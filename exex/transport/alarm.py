"""How guards tell each other that a rank has died, within milliseconds and under any launcher.

A guard is no MPI process, and no MPI library but Open MPI's ULFM reports a dead rank. So each guard has a UDP socket. Where
that of rank 0 is, and a secret, go to all ranks by MPI, and from each rank to its guard. The other guards sign on with the
first one, which so learns where they are. When a worker rank dies, its guard tells the first one; when the manager dies,
the first one tells all that have signed on to end. Each telling is answered, and repeated a few times if it is not. Where
datagrams do not arrive, because a node died as a whole or the network between nodes carries no UDP, missed heartbeats tell
it later.

While a rank runs a function of the user's on a communicator, its guard also hears what the manager has to say to it.

A datagram: u8 kind, u32 rank of the sender, i32 code, u64 call, 16 bytes of keyed BLAKE2s over these. The secret itself never
travels outside MPI, and a repeated datagram says nothing new.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

_BODY = struct.Struct("<BIiQ")
_MAC_BYTES = 16
_MOST_TAKEN = 1024  # datagrams in a row: who floods a guard does not keep it from its work
_SIOCGIFADDR = 0x8915
_LOOPBACK = "127.0.0.1"
_IFREQ = struct.Struct("16s16x")  # netdevice(7): a name, then a sockaddr_in with the address at its byte 4

SIGN_ON_S = 0.25
"""Pause after which a guard signs on again; it doubles each time."""

GIVE_UP_S = 64.0
"""Pause after which it does so no more: nothing gets through."""

SIGN_ONS_PER_S = 10_000
"""How many the first guard shall have to answer."""

_TELLINGS = 3
_ANSWER_S = 0.1

Host = tuple[str, int]


class Kind(IntEnum):
    """What a datagram says."""

    HERE = 1  # to the first guard: this is where I am
    HEARD = 2  # the answer to all others; its code is their kind
    DIED = 3  # to the first guard: my rank has died; code: exit code, or minus the signal's number
    END = 4  # from the first guard: the manager has died; code: the job's status
    STOP = 5  # from the first guard: your rank must stop `call`; code: 1 if by being killed
    PROBE = 6  # from the first guard: say that you are there


class Note(NamedTuple):
    """One datagram."""

    kind: int
    rank: int  # of the sender
    code: int
    call: int = 0  # number of a call on a communicator, in STOP


class Meeting(NamedTuple):
    """Where the first guard can be reached, and the world's secret."""

    hosts: tuple[str, ...]  # IPv4 addresses of its node; not all may be reachable
    port: int
    key: bytes
    ranks: int  # of the world


def addresses() -> tuple[str, ...]:
    """IPv4 addresses of this node's interfaces, without asking a name server; the loopback last."""
    found = [_LOOPBACK]
    try:
        interfaces = socket.if_nameindex()
    except OSError:  # some containers do not let anybody ask
        interfaces = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in interfaces:
            try:
                answer = fcntl.ioctl(sock, _SIOCGIFADDR, _IFREQ.pack(name.encode()))
            except OSError:  # without an address
                continue
            found.append(socket.inet_ntoa(answer[20:24]))
    return tuple(sorted(set(found), key=lambda host: host.startswith("127.")))


class Alarm:
    """One guard's end. Nothing is sent or believed before `join`.

    Attributes:
        port: of the socket.
        rank: of the world; -1 before `join`.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind(("", 0))
        self.port: int = self._socket.getsockname()[1]
        self.rank = -1
        self._key = b""
        self._first: list[Host] = []  # where the first guard may be; one once it has answered
        self._signed_on: dict[int, Host] = {}  # at the first guard: all others, by rank
        self._pause_s = SIGN_ON_S
        self._next_s: float | None = None

    def fileno(self) -> int:
        """Readable when there is something to receive."""
        return self._socket.fileno()

    def join(self, meeting: Meeting, rank: int, now_s: float) -> None:
        """Take part, as the guard of `rank`."""
        self.rank = rank
        self._key = meeting.key
        if rank:
            self._first = [(host, meeting.port) for host in meeting.hosts]
            self._next_s = now_s + random.random() * meeting.ranks / SIGN_ONS_PER_S

    def next_s(self) -> float | None:
        """When `tend` has something to do; None for never."""
        return self._next_s

    def tend(self, now_s: float) -> None:
        """Sign on, if it is time and nobody has answered yet."""
        if self._next_s is None or now_s < self._next_s:
            return
        self._send(self._first, Kind.HERE, 0)
        self._next_s = now_s + self._pause_s * random.uniform(1.0, 2.0) if self._pause_s < GIVE_UP_S else None
        self._pause_s *= 2

    def receive(self) -> list[tuple[Note, Host]]:
        """What others have told: DIED, and HEARD of a PROBE, at the first guard; END, STOP and PROBE at others.

        DIED, END and PROBE are to be answered by `confirm`.
        """
        told = []
        for note, sender in self._take():
            if note.kind == Kind.HERE and not self.rank:
                self._signed_on[note.rank] = sender
                self.confirm(note, sender)
            elif note.kind == Kind.HEARD and note.code == Kind.HERE and note.rank == 0:
                self._first, self._next_s = [sender], None
            elif self.rank:
                if note.rank == 0 and note.kind in (Kind.END, Kind.STOP, Kind.PROBE):
                    told.append((note, sender))
            elif note.kind == Kind.DIED or (note.kind == Kind.HEARD and note.code == Kind.PROBE):
                told.append((note, sender))
        return told

    def confirm(self, note: Note, sender: Host) -> None:
        """Answer, so that it is not told again."""
        self._send([sender], Kind.HEARD, note.kind)

    def tell_ranks(self, ranks: Iterable[int], kind: Kind, code: int = 0, call: int = 0) -> list[int]:
        """At the first guard: tell those of some ranks, once. Returns ranks of which nobody knows where their guards are."""
        unknown = []
        for rank in ranks:
            host = self._signed_on.get(rank)
            if host is None:
                unknown.append(rank)
            else:
                self._send([host], kind, code, call)
        return unknown

    def tell_death(self, code: int) -> None:
        """Tell the first guard that this guard's rank has died. Takes up to `_TELLINGS` times `_ANSWER_S`, as `tell_end`."""
        self._tell({0: self._first}, Kind.DIED, code)

    def tell_end(self, code: int) -> None:
        """Tell all others that the job has ended."""
        self._tell({rank: [host] for rank, host in self._signed_on.items()}, Kind.END, code)

    def _tell(self, whom: dict[int, list[Host]], kind: Kind, code: int) -> None:
        silent = dict(whom)
        for _ in range(_TELLINGS):
            for hosts in silent.values():
                self._send(hosts, kind, code)
            until = time.monotonic() + _ANSWER_S
            while silent and (left_s := until - time.monotonic()) > 0:
                select.select([self._socket], (), (), left_s)
                for note, _ in self._take():
                    if note.kind == Kind.HEARD and note.code == kind:
                        silent.pop(note.rank, None)
            if not silent:
                return

    def _send(self, hosts: Iterable[Host], kind: Kind, code: int, call: int = 0) -> None:
        body = _BODY.pack(kind, self.rank, code, call)
        data = body + _mac(self._key, body)
        for host in hosts:
            try:
                self._socket.sendto(data, host)
            except OSError:
                pass  # unreachable, or too much at once; it is repeated, and heartbeats remain

    def _take(self) -> list[tuple[Note, Host]]:
        """All that has arrived. What is not signed with the secret is passed over."""
        arrived = []
        for _ in range(_MOST_TAKEN):
            try:
                data, sender = self._socket.recvfrom(64)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error of somebody's
                continue
            body, mac = data[: _BODY.size], data[_BODY.size :]
            if self._key and len(body) == _BODY.size and hmac.compare_digest(mac, _mac(self._key, body)):
                arrived.append((Note(*_BODY.unpack(body)), sender))
        return arrived

    def close(self) -> None:
        """Release the socket."""
        self._socket.close()


def new_meeting(port: int, ranks: int) -> Meeting:
    """A meeting at the guard on this node that listens at `port`, with a new secret."""
    return Meeting(addresses(), port, os.urandom(32), ranks)


def _mac(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2s(body, key=key, digest_size=_MAC_BYTES).digest()
