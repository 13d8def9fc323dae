"""What rank 0 does beside a worker's part: it is the manager, starts the script, listens for clients, and ends the job."""

from __future__ import annotations

import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from exex.config import Config, parse_duration
from exex.errors import ConfigError, JournalError, RecordError, StartError
from exex.guard.control import Control
from exex.guard.ending import how_it_ended
from exex.launch import allocation
from exex.launch.deadline import find_end_s, reserve_s
from exex.launch.job_dir import clear_status, is_held_in_foreground, write_status
from exex.launch.world import ExpectedWorld, task_environment
from exex.reach import GuardedRanks
from exex.transport.base import Ranks
from exex.transport.doors import TwoDoors
from exex.transport.joined import OWN
from exex.transport.stream import StreamLink
from exex.transport.wait import Waiter
from exex.version import __version__
from exex.worker.loop import WorkerLoop

if TYPE_CHECKING:
    from exex.listen import Listening
    from exex.manager.loop import ManagerLoop
    from exex.manager.settings import Settings
    from exex.record.recorder import Recorder
    from exex.store.exchange import Exchange
    from exex.store.journal import Journal

_RECORD_S = 60.0
"""What the run record's writer may need at the end."""

_LINGER_S = 0.1
"""What the last messages may need inside the MPI library where no MPI_Finalize sees to them."""


class RankZero:
    """See the module docstring.

    Args:
        expected: what the launcher's variables say of the world.
        began_s: when the guard began, by time.monotonic().
        control: to the guard.
        from_guard: takes what the guard has sent, if its descriptor is among those that are ready; the messages for the manager.
        reassure_guard: tells it from time to time that this process turns.
        heartbeat_limit_s: silence after which a rank is given up; 0 for never.

    Attributes:
        run_dir: of the job; "" before `prepare`.
        broken: some ranks will never come to MPI_Finalize.
    """

    def __init__(
        self,
        config: Config,
        script: str,
        expected: ExpectedWorld,
        *,
        began_s: float,
        control: Control,
        waiter: Waiter,
        from_guard: Callable[[WorkerLoop | None, list[int]], list[dict[str, Any]]],
        reassure_guard: Callable[[], None],
        heartbeat_limit_s: float,
    ) -> None:
        self._config = config
        self._script = script
        self._expected = expected
        self._began_s = began_s
        self._control = control
        self._waiter = waiter
        self._from_guard = from_guard
        self._reassure_guard = reassure_guard
        self._heartbeat_limit_s = heartbeat_limit_s
        self.broken = False
        self._ends_in_s: float | None = None
        self._asked_s = 0.0
        self._ended_by = 0  # a signal that has ended a job without a script
        self._answered = 0
        self.run_dir = self._record_path = ""
        self._recorder: Recorder | None = None

    def prepare(self) -> None:
        """Before MPI_Init."""
        clear_status(os.environ)
        self._ends_in_s, self._asked_s = self._left_s(), time.monotonic()  # before MPI_Init: it may run a command
        self.run_dir = _new_run_dir(self._config.run_dir)
        self._start_recorder()

    def manage(self, workers: Ranks, ranks: frozenset[int], local: WorkerLoop | None, exchange: Exchange | None) -> int:
        """Be the manager of these ranks, with `local` in the same loop. Returns the job's status.

        Args:
            exchange: the store of this node; None if there are none.
        """
        journal = self._open_journal()
        try:
            status = self._manage_with(journal, workers, ranks, local, exchange)
        finally:
            self._close_recorder()
            if journal is not None:
                _close_journal(journal, self._answered)
        write_status(os.environ, status)
        return status

    def _settings(
        self, ranks: frozenset[int], has_own: bool, exchange: Exchange | None, listens: bool, has_journal: bool
    ) -> Settings:
        from exex.manager.settings import Settings

        return Settings(
            version=__version__,
            python=platform.python_version(),
            pid=os.getpid(),
            workers=ranks,
            run_dir=self.run_dir,
            start_timeout_s=self._config.start_timeout_s,
            stop_timeout_s=self._config.stop_timeout_s,
            prefetch_s=self._config.prefetch_s,
            heartbeat_limit_s=self._heartbeat_limit_s,
            own=OWN if has_own else None,
            memory_bytes=self._config.cache_bytes,
            detach=self._config.detach_on_client_exit,
            grace_s=self._config.grace_s,
            store=exchange.store_dir if exchange else "",
            store_key=exchange.key if exchange else "",
            keep_bytes=self._config.keep_bytes if exchange else 0,
            listens=listens,
            has_script=bool(self._script),
            client_bytes=self._config.client_bytes,
            journal=os.path.abspath(self._config.journal) if has_journal else "",
        )

    def _manage_with(
        self,
        journal: Journal | None,
        workers: Ranks,
        ranks: frozenset[int],
        local: WorkerLoop | None,
        exchange: Exchange | None,
    ) -> int:
        from exex.manager.loop import ManagerLoop
        from exex.manager.progress import Progress

        listening = self._listen()
        settings = self._settings(ranks, local is not None, exchange, listening is not None, journal is not None)
        progress = Progress() if self._config.progress else None
        record = self._recorder
        if record is not None:
            from exex.record.start import attributes

            record.begin(self._record_path, attributes(self._config, self._script, self._versions(), self._began_s))

        def ready() -> None:
            self._control.send("ready")
            if listening is not None:
                listening.announce()

        reach = GuardedRanks(self._control)
        loop = ManagerLoop(settings, workers, progress, ready, journal=journal, record=record, reach=reach, exchange=exchange)
        if self._ends_in_s is not None:
            loop.set_end(self._ends_in_s - (time.monotonic() - self._asked_s))
        if journal is not None:
            loop.state.memo.preload(journal.load(self._config.cache_bytes))
            journal.start()
            self._waiter.watch(journal.fileno())
        self._waiter.watch_link(workers)
        clients = self._start_client() if self._script else None
        if listening is not None:
            self._waiter.watch_link(listening.server)
            loop.listen(TwoDoors(clients, listening.server))
        elif clients is not None:
            loop.listen(clients)
        if clients is None:
            self._control.send("serving")
        try:
            status = self._turn(loop, local, clients)
        finally:
            self._answered = loop.state.memo.answered
            if listening is not None:
                self._waiter.forget(listening.server.fileno())
                listening.close()
        self.broken = bool(loop.error or loop.lost)
        linger_s = time.monotonic() + (_LINGER_S if self.broken else self._config.stop_timeout_s)
        while (workers.progress() or self.broken) and time.monotonic() < linger_s:
            self._waiter.wait(False, False, most_s=0.01)  # our last words are still under way
        return status

    def _listen(self) -> Listening | None:
        """Begin to listen for clients from other nodes, if that is wanted."""
        if not self._config.listen:
            return None
        from exex.listen import Listening

        return Listening(self._config, os.environ)

    def _start_recorder(self) -> None:
        """Before MPI_Init: start the process that writes the run record, if there is to be one."""
        from exex.record.start import record_path, start_writer

        try:
            in_allocation = bool(allocation.find_allocation(os.environ).batch_system)
        except ConfigError:  # a node file that cannot be read is for others to judge
            in_allocation = False
        self._record_path = record_path(self._config, self.run_dir, in_allocation)
        if not self._record_path:
            return
        try:
            self._recorder = start_writer(task_environment(os.environ), self._began_s)
        except RecordError as error:
            if self._config.record != "auto":
                raise
            print(f"exex: {error}; the job goes on without a run record", file=sys.stderr, flush=True)
            return
        self._control.send("recorder", pid=self._recorder.writer_pid)

    def _close_recorder(self) -> None:
        """Complete the run record, and say what is not in it."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        status = recorder.close(max(_RECORD_S, self._config.stop_timeout_s))
        if status is None:
            print(f"exex: the run record {self._record_path} is not written in time", file=sys.stderr, flush=True)
        elif recorder.dropped:
            text = f"{recorder.dropped:,} messages are missing in the run record {self._record_path}: its file system is too slow"
            print(f"exex: {text}", file=sys.stderr, flush=True)

    def _versions(self) -> dict[str, str]:
        """For the run record."""
        versions = {"exex": __version__, "Python": platform.python_version()}
        if self._expected.launcher != "none":
            from exex.transport import mpi

            versions["MPI"] = mpi.library()
        return versions

    def _open_journal(self) -> Journal | None:
        config = self._config
        if not config.journal:
            return None
        try:
            from exex.store.journal import open_journal
        except ImportError as error:  # a Python that was built without SQLite can do everything else
            raise JournalError(f"--journal needs Python's module sqlite3, which cannot be imported: {error}") from error
        return open_journal(
            config.journal, resume=config.resume, mode=config.checkpoint_mode, period_s=config.checkpoint_period_s
        )

    def _start_client(self) -> StreamLink:
        """Have the guard start the client at the other end of a new stream."""
        ours, theirs = socket.socketpair()
        self._control.send("client", fd=theirs.fileno())
        theirs.close()
        link = StreamLink(ours)
        self._waiter.watch_link(link)
        return link

    def _turn(self, loop: ManagerLoop, local: WorkerLoop | None, clients: StreamLink | None) -> int:
        """Turn until all is over; returns the job's status."""
        from exex.manager.loop import OUT_OF_TIME

        self._waiter.watch(self._control.fileno())
        client_status: int | None = None if self._script else 0
        give_up_s: float | None = None
        ready: list[int] = []
        watching = clients is not None
        while True:
            traffic = loop.turn()
            watching = watching and not self._is_cut_off(clients)
            pause_s = loop.next_s()
            self._reassure_guard()
            for message in self._from_guard(local, ready):
                if message["op"] == "client-exited":
                    client_status = int(message["status"])
                else:
                    traffic |= self._on_message(loop, message)
            if not self._script:
                self._see_to_the_end(loop)
            elif client_status is not None:
                self._end_after_client(loop)
            if local is not None and not local.stopped:  # last: what it is told is there at once
                traffic |= local.turn(ready)
                pause_s = min(pause_s, local.next_s())
            if loop.finished:
                if client_status is not None:
                    return OUT_OF_TIME if loop.out_of_time else client_status or self._ended_by or (1 if loop.error else 0)
                if give_up_s is None:
                    give_up_s = time.monotonic() + self._config.stop_timeout_s
                    watching = self._hang_up(clients, watching)
                if time.monotonic() > give_up_s:
                    return OUT_OF_TIME if loop.out_of_time else 1
            at_once = local is not None and (traffic or local.at_once)
            self._watch_output(clients, watching and loop.unsent)
            ready = self._waiter.wait(traffic, at_once, loop.eager(), pause_s)

    def _watch_output(self, clients: StreamLink | None, wanted: bool) -> None:
        if clients is not None:
            self._waiter.watch_output(clients.fileno(), wanted)

    def _hang_up(self, clients: StreamLink | None, watching: bool) -> bool:
        """Close the client's stream: its futures fail, if that has not been told yet. Returns whether it is still watched."""
        if clients is not None:
            if watching:
                self._waiter.forget(clients.fileno())
            clients.close()
        return False

    def _on_message(self, loop: ManagerLoop, message: dict[str, Any]) -> bool:
        """What the guard says to the manager. True if that makes work."""
        if message["op"] == "notice":
            self._on_notice(loop, signal.Signals(message["signal"]))
        elif message["op"] == "here":
            for rank in message["ranks"]:
                loop.heard(rank)
        elif message["op"] == "died":
            loop.lose_worker(message["rank"], how_it_ended(message["code"]))
            return True
        return False

    def _end_after_client(self, loop: ManagerLoop) -> None:
        """The script has ended: so does the job, at once, or when its tasks are done if they are to be finished."""
        if loop.idle() or not self._config.detach_on_client_exit:
            loop.end("the job's script has ended")

    def _see_to_the_end(self, loop: ManagerLoop) -> None:
        """A job without a script ends when somebody says so, from the shell or by a signal."""
        ordered = loop.ordered()
        if ordered == "cancel" or (ordered and loop.idle()):
            loop.end("the job was shut down")
        elif loop.state.noticed and loop.idle():
            loop.end("the job was told to end")

    def _is_cut_off(self, clients: StreamLink | None) -> bool:
        """Whether the client's stream has ended; then it is watched no longer."""
        if clients is None or not clients.gone:
            return False
        self._waiter.forget(clients.fileno())
        if clients.error:
            print(f"exex: the client is cut off: it sent {clients.error}", file=sys.stderr, flush=True)
        return True

    def _on_notice(self, loop: ManagerLoop, number: signal.Signals) -> None:
        """A signal that announces the end. Hydra sends SIGUSR1 for reasons of its own."""
        if number == signal.SIGUSR1 and self._expected.launcher == "Hydra mpiexec":
            return
        if not self._script and (number == signal.SIGINT or is_held_in_foreground(os.environ)):
            self._ended_by = 128 + number
            loop.end(f"the job was ended by {number.name}")
            return
        loop.notice(self._config.notice_s, f"got {number.name}", sooner=number == signal.SIGTERM)

    def _left_s(self) -> float | None:
        """Seconds that the job may still run, an orderly end set aside; None for no limit."""
        walltime = self._config.walltime
        if walltime == "none":
            return None
        if walltime != "auto":
            left_s = parse_duration(walltime) - (time.monotonic() - self._began_s)
        else:
            end_s = find_end_s(os.environ, time.time())
            if end_s is None:
                return None
            left_s = end_s - time.time()
        return max(0.0, left_s - reserve_s(left_s))


def _close_journal(journal: Journal, answered: int) -> None:
    """Write what waits, and say what is in the file, above all if something is not."""
    summary = journal.close()
    text = f"journal {journal.path}: {summary.before:,} results were there, {summary.recorded:,} are new"
    text += f"; {answered:,} calls did not run again"
    if summary.lost:
        text += f"; {summary.lost:,} RESULTS ARE NOT IN IT ({summary.error or 'too large, or too many at once'})"
    if summary.damaged:
        text += f"; {summary.damaged:,} results are damaged"
    print(f"exex: {text}", file=sys.stderr, flush=True)


def _new_run_dir(parent: str) -> str:
    """`parent/000`, `parent/001`, ...: the first that does not exist. It is made when something is written there."""
    for number in range(1000000):
        path = os.path.join(os.path.abspath(parent), f"{number:03d}")
        if not os.path.exists(path):
            return path
    raise StartError(f"{parent} is full")
