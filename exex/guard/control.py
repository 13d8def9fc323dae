"""The socket between a guard and its rank, and what is said on it: JSON messages, `{"op": ...}`.

rank -> guard: `initialising` (about to call MPI_Init), `staging` (that gets on), `staged` (what this node has; the template can
be started), `store` (directories that this node's ranks have, to be held and removed), `watch` (MPI is up: its number, how long
it may hang, where the guards meet, its shared memory), `ready` (handshake passed), `alive` (it turns), `client` (start the
workflow's process), `serving` (there is none: the job serves clients from elsewhere), `recorder` (the writer of the run record:
its pid), `status` (end with this status; `orderly`: everybody was told), `stop` and `probe` (at rank 0: for the guards of
others, see alarm).
guard -> rank: `client-exited` (status), `notice` (a signal that announces the end of the job), `template` (a new one; its
socket comes along as a descriptor), `died` (another rank has, and how), `here` (ranks whose guards are there).
"""

from __future__ import annotations

import json
import socket
from typing import Any

_MESSAGE_BYTES = 65536


class Control:
    """One end of the socket between guard and rank."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    def fileno(self) -> int:
        """The socket."""
        return self._socket.fileno()

    def send(self, op: str, fd: int | None = None, **fields: Any) -> bool:
        """Send a message. False if it is lost: nobody reads any more, or for too long."""
        data = json.dumps({"op": op, **fields}).encode()
        try:
            socket.send_fds(self._socket, [data], [] if fd is None else [fd])
        except (BlockingIOError, ConnectionError):
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """The next message, with `"fd"` if a descriptor came along; `{"op": "gone"}` at the end; None for now."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _MESSAGE_BYTES, 1)
        except BlockingIOError:
            return None
        except ConnectionError:
            data, fds = b"", []
        if not data:
            return {"op": "gone"}
        message: dict[str, Any] = json.loads(data)
        if fds:
            message["fd"] = fds[0]
        return message

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
