"""Ranks of a crowded node enter MPI_Init together.

MPI libraries spin in MPI_Init until all ranks have come. Where a node has more ranks than cores, those that have come first take
the cores of those that still import Python: 128 ranks on two cores took 31 s to get through MPI_Init, and take 15 s when
they sleep until all are ready. The first one on a node collects the others, on an abstract socket whose name only ranks of
this launch know; when all are there, or no other comes, it hangs up, and all go on.
"""

from __future__ import annotations

import os
import socket
import struct
import time

from exex.launch.world import ExpectedWorld

NO_OTHER_S = 5.0
"""How long the one who collects waits for the next: ranks that will not come are for MPI_Init to miss."""

MOST_S = 120.0
"""How long the others wait for it to hang up."""


CROWD = 8
"""So many ranks per core come up within the usual time."""


def patience(expected: ExpectedWorld, cores: int) -> float:
    """How many times longer than usual the ranks of this node may take to come up: they share its cores."""
    return max(1.0, (expected.ranks_on_node or 1) / (cores * CROWD))


def wait_for_node(expected: ExpectedWorld, cores: int, no_other_s: float = NO_OTHER_S) -> int:
    """Sleep until the ranks of this node are here, if there are more of them than cores.

    Args:
        cores: of the node.

    Returns:
        How many were here when this one went on, as far as it knows: all on the one who collects, 2 on another, 1 at once.
    """
    others = (expected.ranks_on_node or 1) - 1
    if others < cores:
        return 1
    launch = _launch()
    if not launch:
        return 1
    name = f"\0exex-together-{os.getuid()}-{launch}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(name)
        except OSError:
            return _join(sock, name)
        return _collect(sock, others, no_other_s)


def _collect(sock: socket.socket, others: int, no_other_s: float) -> int:
    """Wait for the others. They go on when their connections end."""
    sock.listen(others)
    sock.settimeout(no_other_s)
    here: list[socket.socket] = []
    try:
        while len(here) < others:
            connection, _ = sock.accept()
            if _is_ours(connection):
                here.append(connection)
            else:
                connection.close()
    except TimeoutError:
        pass
    for connection in here:
        connection.close()
    return len(here) + 1


def _join(sock: socket.socket, name: str) -> int:
    until_s = time.monotonic() + 1.0
    while True:
        try:
            sock.connect(name)
            break
        except ConnectionRefusedError:  # it does not listen yet, or no longer
            if time.monotonic() > until_s:
                return 1
            time.sleep(0.01)
        except OSError:
            return 1
    if _is_ours(sock):
        sock.settimeout(MOST_S)
        try:
            sock.recv(1)
        except OSError:
            pass  # it has died, or waits for somebody still
    return 2


def _is_ours(connection: socket.socket) -> bool:
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(uid == os.getuid())


def _launch() -> str:
    """What all ranks have in common that one launcher has started on this node: the parent of their guards, and its start."""
    try:
        launcher = _stat(os.getppid())[1]
        return f"{launcher}-{_stat(int(launcher))[19]}"
    except (OSError, IndexError, ValueError):
        return ""


def _stat(pid: int) -> list[str]:
    """Fields of proc_pid_stat(5), from the state on."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()
