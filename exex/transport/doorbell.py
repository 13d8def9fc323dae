"""Waking a rank on the same node: MPI has no descriptor to sleep on, so who sends also rings.

Each rank binds a datagram socket to an abstract name made of a secret that all ranks share and its number. Whoever has
sent a message by MPI sends its own number there; a rank whose peers all ring may sleep on the socket instead of
polling. On another node the name does not exist: the first ring fails, and is the last. A ring says nothing but "look": a
false or a lost one costs a look, or a little time.
"""

from __future__ import annotations

import os
import socket

KEY_BYTES = 16


def new_key() -> bytes:
    """A secret for one world."""
    return os.urandom(KEY_BYTES)


class Doorbell:
    """This rank's own bell, and the cords to those of its peers.

    Attributes:
        heard: peers that have rung: they are on this node.
    """

    def __init__(self, key: bytes, rank: int) -> None:
        self._prefix = f"\0exex-{key.hex()}-"
        self._mine = rank.to_bytes(4, "little")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind(f"{self._prefix}{rank}")
        self._far: set[int] = set()
        self.heard: set[int] = set()

    def fileno(self) -> int:
        """Readable when somebody has rung."""
        return self._socket.fileno()

    def ring(self, peer: int) -> None:
        """Wake `peer` if it is on this node."""
        if peer in self._far:
            return
        try:
            self._socket.sendto(self._mine, f"{self._prefix}{peer}")
        except BlockingIOError:
            pass  # it has been rung often enough
        except OSError:
            self._far.add(peer)

    def answer(self) -> None:
        """Take all rings; to be called when `fileno` is readable."""
        try:
            while data := self._socket.recv(16):
                self.heard.add(int.from_bytes(data[:4], "little"))
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Release the socket."""
        self._socket.close()
