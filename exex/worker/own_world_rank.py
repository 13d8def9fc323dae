"""`python -m exex.worker.own_world_rank SCRIPT DIRECTORY`: a rank of an MPI world that was started for one call. See own_world.

SCRIPT is what functions find as sys.argv[0], DIRECTORY where its modules are.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any, NoReturn

from exex.errors import ManagerLost
from exex.protocol.messages import Outcome
from exex.worker.context import Place
from exex.worker.execute import flush_output
from exex.worker.own_world import VARIABLE
from exex.worker.together import handed, run_part

_CONNECT_S = 5.0

_OTHERS_S = 0.5
"""How long a rank that has failed lets the others tell their own failures before it ends them."""


def main(script: str, directory: str) -> None:
    """Be a rank."""
    address = os.environ.pop(VARIABLE, "")
    sys.argv = [script]
    sys.path.insert(0, directory)
    from exex.transport import mpi

    world = mpi.start()
    call: Any = None
    if world.rank == 0:
        with _connect(address) as connection:
            connection.send(None)
            call = (address, *connection.recv())
    address, task, head = mpi.tell_all(world, call)
    place = Place(world.rank, socket.gethostname())
    comm = mpi.form(range(world.size), 0, after_loss=False)
    outcome, payload, seconds = run_part(comm, task, head, place, {})
    flush_output()
    mine = (world.rank, place.node, int(outcome), handed(payload), seconds)
    if outcome != Outcome.DONE:
        _fail(address, mine)
    parts = mpi.gather(world, mine)
    if world.rank == 0:
        _tell(address, parts)
    mpi.finish()


def _fail(address: str, mine: tuple[Any, ...]) -> NoReturn:
    _tell(address, [mine])
    time.sleep(_OTHERS_S)
    from exex.transport import mpi

    mpi.abort(1)


def _tell(address: str, parts: list[tuple[Any, ...]]) -> None:
    with _connect(address) as connection:
        connection.send(parts)
        connection.recv()


def _connect(address: str) -> Connection[Any, Any]:
    """To the task process, at the first of its addresses that answers.

    Raises:
        ManagerLost: none does.
    """
    hosts, port, key = address.split(":")
    for host in sorted(hosts.split(","), key=lambda host: host.startswith("127.")):
        try:
            sock = socket.create_connection((host, int(port)), timeout=_CONNECT_S)
        except OSError:
            continue
        sock.settimeout(None)
        connection: Connection[Any, Any] = Connection(sock.detach())
        answer_challenge(connection, bytes.fromhex(key))
        deliver_challenge(connection, bytes.fromhex(key))
        return connection
    raise ManagerLost(f"the task that has started this rank cannot be reached at {hosts}, port {port}")


if __name__ == "__main__":
    main(*sys.argv[1:])
