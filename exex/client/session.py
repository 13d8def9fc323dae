"""The one session of this process with a manager: its proxy, its threads, its settings. Runs in the client."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from exex.client import interactive, lazy
from exex.client.futures import AppFuture
from exex.client.outcomes import Call
from exex.client.promises import accept_foreign_futures
from exex.client.proxy import Proxy
from exex.client.retries import RetryHandler, TaskRecord
from exex.client.threads import Threads
from exex.errors import ConfigError, NoManagerError, StartError
from exex.files import file
from exex.protocol import context
from exex.protocol import payload as payloads
from exex.protocol.messages import Attach, Verdict
from exex.protocol.payload import Payload
from exex.transport.base import Link
from exex.version import __version__

if TYPE_CHECKING:
    from exex.client.cells import Cells
    from exex.client.mapping import Mapping


_PAUSE_S = 0.001

_MOST_OF_A_TASK = 10_000
"""Tasks without an answer from which on a task that makes tasks is held back. There may be more such tasks than slots."""

_MOST_BYTES_OF_A_TASK = 256 * 1024**2
"""Bytes of their arguments."""



@dataclass(frozen=True, slots=True)
class Settings:
    """What the client wants to know of the job's configuration.

    Attributes:
        title: of the workflow, for people.
        retries: of apps that do not say how many they want.
        retry_handler: of apps that have none of their own.
        max_waiting: unfinished tasks from which on submitting blocks; "auto": as many as suit the slots of the world.
        max_waiting_bytes: bytes of their arguments from which on it does.
        internal_tasks_max_threads: threads for the bodies of join apps.
        start_timeout_s: within which the manager must answer.
        journal: absolute path of the job's journal; "" if there is none.
        attach: how a client that the job did not start introduces itself; None: this is the job's script.
        staging: names of what fetches and sends files, MODULE:NAME, to be asked before what exex has.
        fetch_to: where files are fetched to that do not say: see `File`.
        is_task: the client is a task.
    """

    title: str = ""
    retries: int = 0
    retry_handler: RetryHandler | None = None
    max_waiting: int | Literal["auto"] = "auto"
    max_waiting_bytes: int = 2 * 1024**3
    internal_tasks_max_threads: int = 10
    start_timeout_s: float = 60.0
    journal: str = ""
    attach: Attach | None = None
    staging: tuple[str, ...] = ()
    fetch_to: str = "run"
    is_task: bool = False


class Session:
    """What is there between `start` and `finish`."""

    def __init__(self, link: Link, settings: Settings) -> None:
        self.settings = settings
        self.title = settings.title
        self.proxy = Proxy(link, settings.max_waiting, settings.max_waiting_bytes, self._ask, not settings.is_task)
        self.proxy.journal = settings.journal
        self.mappings: set[Mapping] = set()  # whose calls are not all submitted
        self.cells: Cells | None = None  # where this is a notebook
        self.item_s: dict[int, float] = {}  # what an item has taken in earlier maps of an app
        self._foreign_call = Call(self.proxy, -1, "concurrent Future")
        self._records: dict[int, TaskRecord] = {}
        exempt = self.proxy.pressure.exempt  # what these threads submit is what others wait for
        self.run_join = Threads("exex-join", settings.internal_tasks_max_threads, exempt).run
        self.run_feeder = Threads("exex-map", 1, lambda: None).run
        self._run_handler = Threads("exex-retry", 2, exempt).run

    def foreign_call(self) -> Call:
        """The Call of promises for futures that are not ours."""
        return self._foreign_call

    # ---- retry handlers ----------------------------------------------------------------------------------

    def _ask(self, future: AppFuture, payload: Payload) -> None:
        """An attempt has failed, and a handler must say whether it is tried again. In the proxy thread."""
        self._run_handler(lambda: self._judge(future, payload))

    def _judge(self, future: AppFuture, payload: Payload) -> None:
        record = self._records.setdefault(future.tid, TaskRecord(future))
        try:
            error = payloads.load(payload)
        except Exception as failure:
            error = failure
        final = record.judge(error, future._call)
        if future.done():
            self._records.pop(future.tid, None)
            return
        if final is None:
            self.proxy.decide(future, Verdict(task=future.tid, retry=True, payload=b""))
            return
        self._records.pop(future.tid, None)
        if final is not error:
            payload = payloads.dump_error(final, f"the retry handler, for {future._title()}")
        self.proxy.decide(future, Verdict(task=future.tid, retry=False, payload=payload))

    # ---- in a task process -------------------------------------------------------------------------------

    def end_task(self) -> None:
        """The task that is the client has ended: so do the tasks that it has made, and that are not done."""
        for mapping in list(self.mappings):
            mapping.cancel()
        for future in self.proxy.outbox.open_futures():
            future.cancel()
        self.proxy.end_task(self.title)

    # ---- the end -----------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Wait for all tasks that exist now."""
        for future in self.proxy.outbox.open_futures():
            future._wait()

    def finish(self, cancel: bool, stay: bool = False) -> str:
        """End the session. See the function of the same name."""
        for mapping in list(self.mappings) if stay else ():
            mapping.run_out()
        while not (cancel or stay) and self.proxy.open:
            for mapping in list(self.mappings):
                mapping.run_out()
            self.wait()
            if self.proxy.is_quiet() and not self.mappings:
                break
            time.sleep(_PAUSE_S)  # a callback is running
        lost = self.proxy.lost_because() if self.settings.journal else ""
        self.proxy.stop(cancel, stay)
        words = self.proxy.inbox.last_words()
        return "; ".join(filter(None, (words, lost)))


_current: Session | None = None


def _file_as_argument(argument: file.File) -> tuple[Any, ...] | None:
    """How a File among the arguments of a call is pickled."""
    from exex.client import staging  # not before there is one

    return staging.as_argument(argument)


def start(link: Link, settings: Settings) -> Session:
    """Begin the session of this process.

    Raises:
        StartError: there is one already, or the manager does not answer as it should.
    """
    global _current  # noqa: PLW0603
    if _current is not None and _current.proxy.open:
        raise StartError("this process is the client of a job already; one process is the client of one job at a time")
    session = Session(link, settings)
    attach = settings.attach or Attach(version=__version__, pid=os.getpid(), title=settings.title)
    session.proxy.attach(attach, settings.start_timeout_s)
    if settings.attach is not None and session.proxy.welcome.journal:
        session.settings = replace(settings, journal=session.proxy.welcome.journal)
    accept_foreign_futures(session.foreign_call)
    file.as_argument = _file_as_argument
    _current = session
    shell = interactive.shell()
    if shell is not None:
        from exex.client.cells import Cells

        session.cells = Cells(shell, session)
    return session


def is_client() -> bool:
    """Whether this process is the client of a job that has not ended."""
    return _current is not None and _current.proxy.open


def is_current(session: Session) -> bool:
    """Whether it has not ended."""
    return _current is session


def finish(cancel: bool, stay: bool = False) -> None:
    """End the session: wait for all tasks, or cancel them; then leave the manager. Idempotent.

    Args:
        stay: leave at once; the tasks of a detached client go on.

    Prints a line to stderr if tasks have failed and nobody has asked for their results.
    """
    global _current  # noqa: PLW0603
    session = _current
    if session is None:
        return
    words = session.finish(cancel, stay)
    _current = None
    if session.cells is not None:
        session.cells.leave()
    if words:
        print(f"exex: {words}", file=sys.stderr, flush=True)


def current(what: str) -> Session:
    """The session.

    Args:
        what: is called, for the message.

    Raises:
        NoManagerError: there is none; the text says how to get one.
        ManagerLost: its manager is gone.
    """
    if context.current_task is not None:
        return _inside(what)
    session = _current
    if session is None:
        name = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0].endswith(".py") else "script.py"
        raise NoManagerError(
            f"{what} was called outside an exex job: start the script by `exex run {name}` "
            f"or `mpiexec -n 5 python -m exex.run {name}`, or connect to a job that listens by exex.connect(FILE)"
        )
    session.proxy.check_open(what)
    return session


def _inside(what: str) -> Session:
    """The session of the task that runs. It is that of its process, for one task after the other."""
    if context.way is None:
        raise NoManagerError(
            f"{what} was called inside {context.current_task}, which has no task process (--isolation none, or a function on a "
            "communicator): such a task cannot start tasks. Make the caller a join_app, which runs in the client"
        )
    session = _current
    if session is None:
        title, of_tasks = f"{context.current_task}", context.way.settings
        attach = Attach(version=__version__, pid=os.getpid(), title=title)
        settings = Settings(
            title=title,
            retries=of_tasks.retries,
            staging=of_tasks.staging,
            fetch_to=of_tasks.fetch_to,
            max_waiting=_MOST_OF_A_TASK,
            max_waiting_bytes=_MOST_BYTES_OF_A_TASK,
            attach=attach,
            is_task=True,
        )
        session = start(context.way.open(), settings)
        context.at_end = session.end_task
    if not session.proxy.open:
        session.title = f"{context.current_task}"
        session.proxy.begin_task()
    session.proxy.check_open(what)
    return session


def wait_for_current_tasks() -> None:
    """Wait until all tasks that exist now have ended, in whatever way."""
    current("wait_for_current_tasks").wait()


def checkpoint() -> None:
    """Return when the results of all cached calls that are done by now are in the journal, on disk.

    Raises:
        ConfigError: the job has no journal.
        JournalError: it cannot be written.
        ManagerLost: the job has ended.
    """
    session = current("checkpoint")
    if not session.settings.journal:
        raise ConfigError("exex.checkpoint() needs a journal: start the job with --journal FILE")
    session.proxy.checkpoint()


def manager_pid() -> int:
    """Process id of rank 0, the manager of this job."""
    return current("manager_pid").proxy.welcome.manager_pid


def _after_fork_in_child() -> None:
    lazy.renew_lock_after_fork()
    if _current is not None:
        _current.proxy.forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
