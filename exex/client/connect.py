"""`exex.connect`: a program anywhere becomes a client of a running job. Runs in the client."""

from __future__ import annotations

import atexit
import os
import platform
import select
import selectors
import socket
import sys
import time
from types import TracebackType

from exex.client import interactive, session
from exex.client.executor import Executor
from exex.client.futures import AppFuture
from exex.errors import ManagerLost, StartError
from exex.launch import connection as connection_file
from exex.launch.connection import Connection
from exex.protocol import codec, context
from exex.protocol.messages import Attach, JobEnds, Order, Ordered
from exex.transport.base import GONE
from exex.transport.curve import CurveLink, Keys
from exex.version import __version__

_PROBE_S = 3.0
"""For how long addresses are tried before those that have not answered count as out of reach."""

_LATER_S = 0.2
"""For how much longer than the first that answers."""


def connect(
    file: str | os.PathLike[str],
    name: str = "",
    detach: bool = False,
    *,
    address: str = "",
    timeout_s: float = 30.0,
    retries: int = 0,
    max_waiting: int = 250_000,
    max_waiting_bytes: int = 2 * 1024**3,
) -> Client:
    """Become a client of a job that was started with --listen; from then on apps, `Executor` and `map` work as in its script.

    Args:
        file: the job's connection file.
        name: of this client. A detached one is found again by it.
        detach: when this client leaves or dies, its tasks go on, and what they return waits for a client of the same name;
            otherwise leaving waits for them, and who dies has them cancelled.
        address: `host:port` to use instead of those in the file, such as the near end of an SSH tunnel.
        timeout_s: within which the job must answer.
        retries: of apps that do not say how many they want.
        max_waiting: unfinished tasks from which on submitting blocks; `max_waiting_bytes`: bytes of theirs.

    Raises:
        ConfigError: the file cannot be used.
        StartError: the job cannot be reached, or does not let this client in; this process is a client already, or runs a task.
    """
    if context.current_task is not None:
        raise StartError(
            f"exex.connect was called inside {context.current_task}, which is a client of its own job: apps work there without it"
        )
    if detach and not name:
        raise StartError("detach=True needs a name, by which the tasks are found again: connect(file, name='...', detach=True)")
    link = _link(os.fspath(file), address, timeout_s)
    attach = Attach(
        version=__version__,
        pid=os.getpid(),
        title=os.path.basename(sys.argv[0] or "python") if sys.argv else "python",
        python=platform.python_version(),
        host=socket.gethostname(),
        name=name,
        detach=detach,
    )
    settings = session.Settings(
        title=attach.title,
        retries=retries,
        max_waiting=max_waiting,
        max_waiting_bytes=max_waiting_bytes,
        start_timeout_s=timeout_s,
        attach=attach,
    )
    try:
        return Client(session.start(link, settings), name, detach)
    except BaseException as error:
        link.close()
        if isinstance(error, ManagerLost):
            raise StartError(str(error)) from None
        raise


class Client:
    """A program's connection with a job. A context: it leaves at the end; after an error it cancels its tasks, if not detached.

    Attributes:
        name: as it was given; detached: whether its tasks go on without it.
    """

    def __init__(self, own: session.Session, name: str, detach: bool) -> None:
        self.name = name
        self.detached = detach
        self._session = own
        atexit.register(self._close_at_exit)

    def close(self, cancel: bool = False) -> None:
        """Leave the job: wait for all tasks first, or cancel them; detached ones go on. Idempotent."""
        atexit.unregister(self._close_at_exit)
        if session.is_current(self._session):
            session.finish(cancel, stay=self.detached and not cancel)

    def _close_at_exit(self) -> None:
        self.close(cancel=interactive.shell() is not None and not self.detached)  # who restarts a kernel waits for nothing

    def futures(self) -> list[AppFuture]:
        """Futures of all tasks that an earlier client of this name has left, and whose results nobody has collected yet.

        In the order of their numbers; `future.app_name`, `future.tid` and `future.tag` say which is which.
        """
        return list(self._session.proxy.found)

    def executor(self) -> Executor:
        """An `Executor`."""
        return Executor()

    @property
    def workers(self) -> int:
        """Workers of the job when this client came."""
        return self._session.proxy.welcome.workers

    @property
    def slots(self) -> int:
        """Their slots."""
        return self._session.proxy.welcome.slots

    @property
    def connected(self) -> bool:
        """Whether the job has not ended, and this client has not left. A network that is away for a while does not count."""
        return session.is_current(self._session) and self._session.proxy.open

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(cancel=kind is not None and not self.detached)

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        state = f"{self.workers} workers, {self.slots} slots" if self.connected else "closed"
        return f"<exex client{name}: {state}>"

    def _repr_html_(self) -> str:
        from exex.client import display

        details = ["connected" if self.connected else "closed", *(["detached"] if self.detached else [])]
        title = f"exex client {self.name}" if self.name else "exex client"
        return display.card(title, self.connected, " · ".join(details), display.job_rows(self._session.proxy))


def order(file: str, what: Order, *, address: str = "", timeout_s: float = 30.0) -> Ordered:
    """Say something to a job from the shell.

    Raises:
        ConfigError: the file cannot be used.
        StartError: the job cannot be reached.
        ManagerLost: it has ended, or refuses.
    """
    link = _link(file, address, timeout_s)
    try:
        link.send(0, codec.Encoder().encode(what))
        give_up_s = time.monotonic() + timeout_s
        while (received := link.receive()) is None:
            if time.monotonic() > give_up_s:
                raise StartError(f"the job did not answer within {timeout_s:g} s")
            select.select([link], (), (), 0.5)
        if received[1] is GONE:
            raise ManagerLost(link.error)
        message = codec.to_client().decode(received[1])
        if isinstance(message, JobEnds):
            raise ManagerLost(f"the job refuses: {message.reason}")
        assert isinstance(message, Ordered), message
        return message
    finally:
        link.close()


# ---- reaching it ------------------------------------------------------------------------------------------------


def _link(path: str, address: str, timeout_s: float) -> CurveLink:
    """A link to the job of a connection file, over which its manager has answered."""
    said = connection_file.read(path)
    if said.version != __version__:
        raise StartError(f"the job of {path} runs exex {said.version}, this client exex {__version__}: install the same version")
    if said.python.split(".")[:2] != platform.python_version().split(".")[:2]:
        raise StartError(
            f"the job of {path} runs Python {said.python}, this client Python {platform.python_version()}: "
            "functions and values can travel only between equal minor versions"
        )
    addresses = [address] if address else said.addresses
    near = _reachable(addresses, min(_PROBE_S, timeout_s))
    if not near:
        raise StartError(f"nobody listens at {', '.join(addresses)}: perhaps {_what_to_do(path, said)}")
    link = CurveLink(near, Keys(said.server_key, said.client_public, said.client_secret))
    reasons: dict[str, None] = {}
    give_up_s = time.monotonic() + timeout_s
    while not link.is_connected():
        if link.receive() is None:
            select.select([link], (), (), 0.05)
        if link.error:
            reasons[link.error] = None
        if time.monotonic() > give_up_s or _is_hopeless(reasons, len(near)):
            link.close()
            why = ", ".join(reasons) or f"no answer within {timeout_s:g} s"
            who = f"who listens at {', '.join(near)} is not the job of {path}, or does not let us in"
            raise StartError(f"{who}: {why}. Perhaps {_what_to_do(path, said)}")
    return link


def _is_hopeless(reasons: dict[str, None], addresses: int) -> bool:
    """Whether another attempt would not help: a key is a key."""
    return addresses == 1 and any("key" in reason for reason in reasons)


def _what_to_do(path: str, said: Connection) -> str:
    return (
        f"job {said.job} on {said.host} has ended and left {path} behind, or its network cannot be reached from here "
        "(then tunnel by ssh -L and give address=, or --address)"
    )


def _reachable(addresses: list[str], most_s: float) -> list[str]:
    """Those of the addresses that take a connection, the quickest first."""
    taken: list[str] = []
    until_s = time.monotonic() + most_s
    with selectors.DefaultSelector() as selector:
        for address in addresses:
            sock = _begin_to_connect(address)
            if sock is not None:
                selector.register(sock, selectors.EVENT_WRITE, address)
        while selector.get_map() and time.monotonic() < until_s:
            for key, _ in selector.select(until_s - time.monotonic()):
                found = key.fileobj
                assert isinstance(found, socket.socket)
                if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    taken.append(key.data)
                    until_s = min(until_s, time.monotonic() + _LATER_S)
                selector.unregister(found)
                found.close()
        for key in list(selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
    return taken


def _begin_to_connect(address: str) -> socket.socket | None:
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, ValueError):
        return None
    sock.setblocking(False)
    try:
        sock.connect(target)
    except BlockingIOError:
        pass
    except OSError:
        sock.close()
        return None
    return sock
