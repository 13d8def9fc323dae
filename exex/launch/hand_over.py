"""How a program that has started a world for itself becomes its client: both ends of a socket on their node.

The guard of rank 0 starts a client as ever. Where EXEX_CLIENT_SOCKET names a socket, that process is only a *deputy*: it
hands the stream to the manager to the program that waits there, and lives as long as that does. So the world ends with the
program, however that dies, as it would with its script.
"""

from __future__ import annotations

import contextlib
import os
import socket

from exex.errors import StartError
from exex.launch.lent import peer

CLIENT_SOCKET = "EXEX_CLIENT_SOCKET"
"""Names the socket at which a program waits for the stream to the manager."""

_DONE = b"\0"
"""The program's last word, if it ends in order."""

_FILE = "client.sock"


class Reception:
    """Where the program waits for its stream.

    Args:
        directory: that no other user can enter.
    """

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, _FILE)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1)

    def fileno(self) -> int:
        """Ready when somebody has come."""
        return self._listener.fileno()

    def take(self) -> tuple[socket.socket, Deputy] | None:
        """The stream to the manager, and who has brought it; None if that was not one of this user's worlds."""
        link, _ = self._listener.accept()
        pid, uid = peer(link)
        fds: list[int] = []
        if uid == os.getuid():
            with contextlib.suppress(OSError):
                _, fds, _, _ = socket.recv_fds(link, 1, 1)
        if not fds:
            link.close()
            return None
        return socket.socket(fileno=fds[0]), Deputy(link, pid)

    def close(self) -> None:
        """Wait no longer."""
        self._listener.close()


class Deputy:
    """The process that stands for the program in the world. It ends when this end is closed.

    Attributes:
        pid: of it.
    """

    def __init__(self, link: socket.socket, pid: int) -> None:
        self._link = link
        self.pid = pid

    def dismiss(self) -> None:
        """The program has done its work."""
        with contextlib.suppress(OSError):
            self._link.send(_DONE)
        self._link.close()

    def forget(self) -> None:
        """In a forked child: it is the parent's."""
        self._link.close()


def stand_in(path: str, stream: int) -> int:
    """Be the deputy: hand over the stream, and wait for the end of who has it.

    Args:
        path: of the program's socket.
        stream: descriptor; closed here when it has been handed over.

    Returns:
        The exit status: 0 if the program said that it is done, else 1.

    Raises:
        StartError: nobody waits there.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(path)
        socket.send_fds(link, [b"\0"], [stream])
    except OSError as error:
        link.close()
        raise StartError(
            f"the program that has started this world cannot be reached at {path} ({error.strerror}): it has ended, or runs on "
            f"another node than rank 0, which is at {socket.gethostname()}"
        ) from None
    os.close(stream)
    try:
        return 0 if link.recv(1) == _DONE else 1
    except OSError:
        return 1
