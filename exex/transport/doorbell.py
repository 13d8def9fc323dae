"""Waking a rank on the same node: MPI has no descriptor to sleep on, so who sends also rings.

Each rank binds a datagram socket to an abstract name made of a key that all ranks share and its number. Whoever has
sent messages by MPI sends there its own number, and how many it has sent so far; a rank whose peers all ring may sleep
on the socket instead of polling, and knows whether it has taken all that was sent. On another node the name does not
exist: the first ring fails, and is the last. A lost ring costs a little time.

Everybody on a node can read abstract names (/proc/net/unix) and send there, so the name holds a digest of the key and
each ring a part of it. A datagram without it, or of another size, is thrown away and can only have cost a look.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct

KEY_BYTES = 16

_RING = struct.Struct("<16sIQ")  # the key, who rings, and how many messages it has sent to the rung one
_MOST_RINGS = 1024  # looked at in a row: who floods the bell does not keep its owner from its work


def new_key() -> bytes:
    """A secret for one world."""
    return os.urandom(KEY_BYTES)


class Doorbell:
    """This rank's own bell, and the cords to those of its peers.

    Attributes:
        heard: peers that have rung, and so are on this node; how many messages each says it has sent here.
    """

    def __init__(self, key: bytes, rank: int) -> None:
        self._key = key
        self._prefix = f"\0exex-{hashlib.blake2b(key, digest_size=16).hexdigest()}-"
        self._rank = rank
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind(f"{self._prefix}{rank}")
        self._far: set[int] = set()
        self.heard: dict[int, int] = {}

    def fileno(self) -> int:
        """Readable when somebody has rung."""
        return self._socket.fileno()

    def ring(self, peer: int, sent: int) -> bool:
        """Wake `peer` if it is on this node. False if it has been rung so often that it must be rung again later."""
        if peer in self._far:
            return True
        try:
            self._socket.sendto(_RING.pack(self._key, self._rank, sent), f"{self._prefix}{peer}")
        except BlockingIOError:
            return False
        except OSError:
            self._far.add(peer)
        return True

    def answer(self) -> list[int]:
        """Take all rings into `heard`; to be called when `fileno` is readable. Returns who has rung."""
        rung = []
        try:
            for _ in range(_MOST_RINGS):
                data = self._socket.recv(64)
                if len(data) != _RING.size:
                    continue
                key, peer, sent = _RING.unpack(data)
                if key == self._key:
                    self.heard[peer] = sent
                    rung.append(peer)
        except BlockingIOError:
            pass
        return rung

    def close(self) -> None:
        """Release the socket."""
        self._socket.close()
