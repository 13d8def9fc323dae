"""How a guard tells the manager that its rank has died, within a millisecond and under any launcher.

A guard is no MPI process, and no MPI library but Open MPI's ULFM reports a dead rank. So rank 0 opens a UDP socket, its
name and a secret go to all ranks by MPI, and from each rank to its guard. One datagram tells a death; where it does not
arrive, because a node died as a whole or the network between nodes carries no UDP, missed heartbeats tell it later.

A datagram: u32 rank, i32 exit code (minus the signal's number where a signal ended it), 16 bytes of keyed BLAKE2s over
both. The secret itself never travels outside MPI, and a repeated datagram says nothing new.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
from typing import NamedTuple

_BODY = struct.Struct("<Ii")
_MAC_BYTES = 16


class Address(NamedTuple):
    """Where alarms are raised."""

    host: str
    port: int
    key: bytes


class Death(NamedTuple):
    """A rank has ended before its time."""

    rank: int
    code: int  # exit code, or minus the signal's number


def _mac(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2s(body, key=key, digest_size=_MAC_BYTES).digest()


class AlarmReceiver:
    """The manager's end."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind(("", 0))
        self.address = Address(socket.gethostname(), self._socket.getsockname()[1], os.urandom(32))

    def fileno(self) -> int:
        """Readable when there is an alarm."""
        return self._socket.fileno()

    def receive(self) -> Death | None:
        """The next alarm; None for now. What is not signed with the secret is passed over."""
        while True:
            try:
                data = self._socket.recv(64)
            except OSError:  # nothing there, or an ICMP error of somebody's
                return None
            body, mac = data[: _BODY.size], data[_BODY.size :]
            if len(body) == _BODY.size and hmac.compare_digest(mac, _mac(self.address.key, body)):
                return Death(*_BODY.unpack(body))

    def close(self) -> None:
        """Release the socket."""
        self._socket.close()


def raise_alarm(address: Address, death: Death) -> None:
    """Tell the manager; where that cannot be done, its heartbeats will."""
    body = _BODY.pack(death.rank, death.code)
    host = "127.0.0.1" if address.host == socket.gethostname() else address.host
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(body + _mac(address.key, body), (host, address.port))
    except OSError:
        pass
