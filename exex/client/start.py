"""`exex.start`: a program that nobody has started in a world, such as a notebook, starts one and is its client."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from exex.client import session
from exex.client.connect import Client, connect
from exex.client.shell import shutdown
from exex.config import Config
from exex.errors import ExexError, ManagerLost, StartError
from exex.launch.holding import Held
from exex.launch.own_command import Shape, own_command
from exex.protocol import context
from exex.transport.stream import StreamLink


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
    connection = ""
    if not command.is_near:
        connection = os.path.join(os.path.dirname(os.path.abspath(log or "")), f"exex-{os.urandom(8).hex()}.json")
        words += ["--listen", "0", "--connection-file", connection]
        command = own_command(wanted, words, config.slots, [], os.environ)
    held = Held(command.argv, command.env, None if log is None else os.fspath(log), config.stop_timeout_s)
    try:
        if connection:
            held.await_file(connection)
            return World(connect(connection, timeout_s=config.start_timeout_s, retries=config.retries)._session, held, connection)
        return World(session.start(StreamLink(held.await_client()), _client_settings(name, config)), held)
    except BaseException as error:
        held.end()
        if isinstance(error, ManagerLost):
            raise StartError(f"the world did not come up: {error}{held.last_words()}") from None
        raise


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


class World(Client):
    """A world that this program has started. A context: at its end the world ends; after an error its tasks are cancelled.

    Args:
        connection: its connection file, if rank 0 is on another node.
    """

    def __init__(self, own: session.Session, held: Held, connection: str = "") -> None:
        super().__init__(own, "", False)
        self._held = held
        self._connection = connection

    def close(self, cancel: bool = False) -> None:
        """End the world: wait for all tasks first, or cancel them. Idempotent."""
        is_told, is_far = False, bool(self._connection) and self.connected
        try:
            super().close(cancel)
            if is_far:
                with contextlib.suppress(ExexError):  # then its launcher ends it
                    shutdown(self._connection, now=True)
                    is_told = True
        finally:
            self._held.end(is_told)

    def __repr__(self) -> str:
        state = f"{self.workers} workers, {self.slots} slots" if self.connected else "ended"
        return f"<exex world: {state}>"

    def _repr_html_(self) -> str:
        from exex.client import display

        rows = display.job_rows(self._session.proxy)
        return display.card("exex world", self.connected, "runs" if self.connected else "has ended", rows)
