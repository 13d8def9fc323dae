"""What an `exex run` on this node lends to its job: its terminal to the script, its signals to that or to rank 0's guard."""

from __future__ import annotations

import io
import os
import socket
import struct
import sys
from collections.abc import Mapping

CLIENT, GUARD = b"c", b"g"
"""Who has come to the socket."""

_SAID_S = 5.0

_held: list[socket.socket] = []  # open for as long as this process lives: whose end is heard of by that


def take_stdio(env: Mapping[str, str]) -> bool:
    """In the client: take over stdin, stdout and stderr of the `exex run` that started this job, and its signals.

    False, with everything as it was, if the job was started in another way.
    """
    link = _connect(env, CLIENT)
    if link is None:
        return False
    try:
        _, fds, _, _ = socket.recv_fds(link, 1, 3)
    except OSError:
        link.close()
        return False
    if len(fds) == 3:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
    for fd in fds:
        os.close(fd)
    if len(fds) != 3:
        link.close()
        return False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    _held.append(link)
    return True


def take_signals(env: Mapping[str, str]) -> None:
    """In the guard of rank 0 of a job without a script: be the one that `exex run` interrupts."""
    link = _connect(env, GUARD)
    if link is not None:
        _held.append(link)


def _connect(env: Mapping[str, str], who: bytes) -> socket.socket | None:
    """A connection with our `exex run`; None if there is none."""
    directory = env.get("EXEX_JOB_DIR")
    if not directory:
        return None
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(os.path.join(directory, "job.sock"))
        if peer(link)[1] == os.getuid():  # else on another node: a directory of that name, but of another user
            link.sendall(who)
            return link
    except OSError:
        pass
    link.close()
    return None


def peer(link: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a socket of this node."""
    pid, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid


def said(link: socket.socket) -> bytes:
    """Who has come; empty if nobody says so."""
    link.settimeout(_SAID_S)
    try:
        return link.recv(1)
    except OSError:
        return b""
    finally:
        link.settimeout(None)
