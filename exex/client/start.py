"""`exex.start`: a program that nobody has started in a world, such as a notebook, starts one and is its client."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import IO, Any

from exex.client import session
from exex.client.executor import Executor
from exex.config import Config
from exex.errors import ManagerLost, StartError
from exex.launch.hand_over import CLIENT_SOCKET, Deputy, Reception
from exex.launch.own_command import Shape, own_command
from exex.protocol import context
from exex.transport.stream import StreamLink

_LAST_WORDS = 4000
"""Characters of what a world has printed, in the message that it did not come up."""

_MARGIN_S = 5.0
"""What the processes that hold a world may need beyond what it may need itself."""


def start(
    workers: int | None = None,
    *,
    launcher: str = "auto",
    nodes: int | None = None,
    ranks_per_node: int = 1,
    cores_per_node: int | None = None,
    log: str | os.PathLike[str] | None = None,
    title: str = "",
    **settings: Any,
) -> World:
    """Start a world and become its client; from then on apps, `Executor` and `map` work as in a script of `exex run`.

    The world ends with this program, however that ends.

    Args:
        workers: beside the manager, on this machine; None: as many as use its cores.
        launcher: `local` for this machine alone; a name that `exex launchers` lists; `auto`: that of the allocation which this
            program runs in, if it has several nodes.
        nodes: of the allocation; None: all.
        ranks_per_node: with one, rank 0 is the manager and a worker, and each rank has a slot for each core.
        cores_per_node: None: as the batch system says.
        log: file for what the world and its tasks print; None: where this program prints.
        title: of the program, for people; None: its name.
        settings: those of `exex run`, such as `slots=2`.

    Raises:
        ConfigError: what cannot be used, or not here.
        StartError: the world did not come up; or this process is a client already.
    """
    config = Config.load(None, os.environ, settings)
    if context.current_task is not None:
        where = f"{context.current_task}, which is a client of its own job: apps work there without it"
        raise StartError(f"exex.start was called inside {where}")
    if session.is_client():
        raise StartError("this process is the client of a job already; one process is the client of one job at a time")
    name = title or _own_name()
    words = ["--no-progress", *_words(settings)]
    wanted = Shape(workers, launcher, nodes, ranks_per_node, cores_per_node)
    script = os.path.join(sys.path[0] or os.getcwd(), name)  # tasks import from there
    command = own_command(wanted, words, config.slots, [script], os.environ)
    if not command.is_near:
        raise StartError(f"{command.argv[0]} starts rank 0 on another node than this one ({socket.gethostname()})")
    held = _Held(command.argv, command.env, log, config)
    try:
        link = StreamLink(held.await_client())
        own = session.start(link, _client_settings(name, config))
    except BaseException as error:
        held.end()
        if isinstance(error, ManagerLost):
            raise StartError(f"the world did not come up: {error}{held.last_words()}") from None
        raise
    return World(own, held)


def _own_name() -> str:
    """What this program is called."""
    return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c", "-m") else "python"


def _words(settings: dict[str, Any]) -> list[str]:
    """Settings as options of `python -m exex.run`."""
    words: list[str] = []
    for field in Config.fields_help():
        value = settings.get(field.name)
        if value is None:
            continue
        if field.kind == "bool":
            words.append(field.option if value else f"--no-{field.option.removeprefix('--')}")
        else:
            words += [field.option, ",".join(value) if isinstance(value, (list, tuple)) else str(value)]
    return words


def _client_settings(title: str, config: Config) -> session.Settings:
    return session.Settings(
        title=title,
        retries=config.retries,
        max_waiting=config.max_waiting,
        max_waiting_bytes=config.max_waiting_bytes,
        start_timeout_s=config.start_timeout_s * 2,
        journal=os.path.abspath(config.journal) if config.journal else "",
    )


class World:
    """A world that this program has started. A context: at its end the world ends; after an error its tasks are cancelled."""

    def __init__(self, own: session.Session, held: _Held) -> None:
        self._session = own
        self._held = held
        atexit.register(self.close)

    def close(self, cancel: bool = False) -> None:
        """End the world: wait for all tasks first, or cancel them. Idempotent."""
        atexit.unregister(self.close)
        try:
            if session.is_current(self._session):
                session.finish(cancel)
        finally:
            self._held.end()

    def executor(self) -> Executor:
        """An `Executor`."""
        return Executor()

    @property
    def workers(self) -> int:
        """Workers of the world."""
        return self._session.proxy.welcome.workers

    @property
    def slots(self) -> int:
        """Their slots."""
        return self._session.proxy.welcome.slots

    @property
    def connected(self) -> bool:
        """Whether it has not ended."""
        return session.is_current(self._session) and self._session.proxy.open

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(cancel=kind is not None)

    def __repr__(self) -> str:
        state = f"{self.workers} workers, {self.slots} slots" if self.connected else "ended"
        return f"<exex world: {state}>"


class _Held:
    """The processes of a world, and what holds them: they end when this process does."""

    def __init__(self, argv: list[str], env: dict[str, str], log: str | os.PathLike[str] | None, config: Config) -> None:
        self._log = None if log is None else os.fspath(log)
        self._stop_s = config.stop_timeout_s
        self._deputy: Deputy | None = None
        self._directory = tempfile.mkdtemp(prefix="exex-", dir=_short_directory())
        self._reception = Reception(self._directory)
        self._tether, theirs = socket.socketpair()
        held = [sys.executable, "-m", "exex.launch.held", str(theirs.fileno()), str(config.stop_timeout_s), *argv]
        env = {**env, CLIENT_SOCKET: self._reception.path}
        try:
            with self._output() as out:
                self._process = subprocess.Popen(
                    held,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,  # Ctrl-C is for this program
                    pass_fds=[theirs.fileno()],
                )
        except OSError as error:
            self._tether.close()
            self._clear()
            raise StartError(f"cannot start a world: {error}") from error
        finally:
            theirs.close()
        _running.add(self)

    def _output(self) -> contextlib.AbstractContextManager[IO[bytes] | None]:
        if self._log is None:
            return contextlib.nullcontext()
        os.makedirs(os.path.dirname(os.path.abspath(self._log)), exist_ok=True)
        return open(self._log, "ab")

    def await_client(self) -> socket.socket:
        """The stream to the manager, when the world is up.

        Raises:
            StartError: it did not come up. How long that may take is known to its guards.
        """
        while True:
            ready, _, _ = select.select([self._reception.fileno(), self._tether.fileno()], (), ())
            if self._reception.fileno() in ready:
                taken = self._reception.take()
                if taken is not None:
                    stream, self._deputy = taken
                    return stream
            else:
                self._process.wait()
                raise StartError(f"the world did not come up (exit status {self._process.returncode}){self.last_words()}")

    def last_words(self) -> str:
        """What it has printed at last, to be added to a message."""
        if self._log is None:
            return "; see what it has printed"
        try:
            with open(self._log, errors="replace") as file:
                text = file.read()[-_LAST_WORDS:].strip()
        except OSError:
            text = ""
        return f"; {self._log} ends:\n{text}" if text else ""

    def end(self) -> None:
        """End all processes, in order if they can be ended so. Idempotent."""
        if self not in _running:
            return
        if self._deputy is not None:
            self._deputy.dismiss()
            self._wait(self._stop_s + _MARGIN_S)
        self._tether.close()
        self._wait(2 * self._stop_s + _MARGIN_S)
        if self._process.poll() is None:
            self._process.kill()  # its launcher gets SIGTERM
            self._process.wait()
        self._clear()
        _running.discard(self)

    def _wait(self, most_s: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(most_s)

    def _clear(self) -> None:
        self._reception.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def forget(self) -> None:
        """In a forked child: the world is the parent's, and ends with it."""
        self._tether.close()
        self._reception.close()
        if self._deputy is not None:
            self._deputy.forget()


_running: set[_Held] = set()


def _short_directory() -> str | None:
    """Where temporary directories are; /tmp if the paths of sockets there would be too long for the kernel."""
    return None if len(os.fsencode(tempfile.gettempdir())) < 70 else "/tmp"


def _after_fork_in_child() -> None:
    while _running:
        _running.pop().forget()


os.register_at_fork(after_in_child=_after_fork_in_child)
