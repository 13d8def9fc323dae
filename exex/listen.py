"""Where a job takes clients from other nodes, and the connection file that tells them. Runs at rank 0."""

from __future__ import annotations

import os
import platform
import select
import socket
import sys
import time
from collections.abc import Mapping

from exex.config import Config
from exex.errors import StartError
from exex.launch.allocation import find_allocation
from exex.launch.connection import Connection, remove, write
from exex.launch.interfaces import bracketed, choose_addresses, parse_listen, read_interfaces, usual_addresses
from exex.transport.curve import CurveServer
from exex.transport.zeromq import Listener, new_keys
from exex.version import __version__

_FAREWELL_S = 3.0
"""For how long the last words to clients are under way at the most."""


class Listening:
    """See the module docstring.

    Attributes:
        server: the manager's end.

    Raises:
        ConfigError: there is no such address or interface.
        StartError: it cannot listen there.
    """

    def __init__(self, config: Config, env: Mapping[str, str]) -> None:
        host, port = parse_listen(config.listen)
        wanted = config.interface
        self._addresses = choose_addresses(read_interfaces(), usual_addresses(), wanted) if wanted or not host else [host]
        (public, secret), (client_public, client_secret) = new_keys(), new_keys()
        bound = tuple(self._addresses) if wanted else (host or "*",)
        listener = Listener(bound, port, secret, frozenset((client_public,)))
        self.server = CurveServer(listener, config.client_grace_s)
        job = find_allocation(env).job or str(os.getpid())
        self._path = os.path.abspath(config.connection_file or f"exex-{job}.json")
        self._connection = Connection(
            addresses=[f"{bracketed(address)}:{listener.port}" for address in self._addresses],
            server_key=public,
            client_public=client_public,
            client_secret=client_secret,
            job=job,
            version=__version__,
            python=platform.python_version(),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        self._announced = False

    def announce(self) -> None:
        """Every worker is up: write the connection file.

        Raises:
            StartError: it cannot be written.
        """
        try:
            write(self._path, self._connection)
        except OSError as error:
            raise StartError(
                f"cannot write the connection file {self._path}: {error.strerror}; name another place by --connection-file"
            ) from None
        self._announced = True
        at = ", ".join(self._connection.addresses)
        print(f"exex: clients are welcome at {at}: exex.connect({self._path!r})", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the file, and leave when all clients have heard the last words, or after a few seconds."""
        if self._announced:
            remove(self._path, self._connection)
        give_up_s = time.monotonic() + _FAREWELL_S
        while not self.server.is_settled() and time.monotonic() < give_up_s:
            select.select([self.server], (), (), 0.02)
            while self.server.receive() is not None:
                pass
        self.server.close()
