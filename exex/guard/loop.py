"""The guard: the process that the launcher started, parent of the rank, the template and (on rank 0) the client.

It never touches MPI and has no threads, so it may fork at any time. It does nothing but outlive the others: it reaps
them, passes signals on to the client, replaces a dead template, gives up on a start that takes too long, and ends with
the job's own status. A launcher judges a rank by this process: when a worker rank dies, or hangs for so long that it must
be killed, its guard tells that of rank 0, ends as if nothing had happened, and the job goes on. When rank 0 dies, its guard
tells all others to end.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from exex.guard.belongings import Belongings
from exex.guard.control import Control
from exex.guard.ending import children, how_it_ended, kill_descendants
from exex.guard.roles import ClientRole, GuardRole, RankRole
from exex.guard.terminal import Terminal
from exex.launch.heap import keep_heap
from exex.launch.job_dir import is_held_in_foreground
from exex.launch.notices import end_with_parent
from exex.launch.steps import end_launchers
from exex.reaper import Reaper
from exex.transport.alarm import Alarm, Host, Kind, Meeting, Note
from exex.transport.page import Page

_PR_SET_CHILD_SUBREAPER = 36

RECORDER_S = 5.0
"""What the run record's writer may need after its manager was killed."""

START_HINT = (
    "If other ranks report an error, that is the cause; else see that every node can start this Python and import exex "
    "(an environment on a file system that the node does not mount), or raise --start-timeout-s."
)

_WATCHED = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Guard:
    """See the module docstring.

    Args:
        template_main: what a template runs, on its socket and with what the node was staged, if anything; does not return.
        is_staged: templates wait until the rank has told what was staged.
        staged: what the node has had staged before; {} if nothing.
        where: "rank 3 at nid00012", as far as the launcher has told.
        is_first: of all guards, as far as the launcher has told.
        start_timeout_s: for everything up to the rank's `ready`.
        stop_timeout_s: for the rank's end when all is over.
        notice_s: how long the job may go on after SIGTERM.
        reaper: of this guard.
    """

    def __init__(
        self,
        template_main: Callable[[socket.socket, Mapping[str, str] | None], None],
        where: str,
        *,
        is_first: bool,
        is_staged: bool = False,
        staged: Mapping[str, str] = MappingProxyType({}),
        start_timeout_s: float,
        stop_timeout_s: float,
        notice_s: float,
        reaper: Reaper,
    ) -> None:
        self._notice_s = notice_s
        self._reaper = reaper
        self._template_main = template_main
        self._where = where
        self._is_first = is_first
        self._is_staged = is_staged
        self._staged: Mapping[str, str] | None = staged or None
        self._waiting: socket.socket | None = None  # for its template, until something is staged
        self._belongings = Belongings(reaper)
        self._start_s = start_timeout_s
        self._stop_s = stop_timeout_s
        self._deadline: float | None = None
        self._deadline_says = ""
        self._rank = self._template = self._client = self._recorder = 0
        self._serves = False  # clients from elsewhere, without a script of its own
        self._status: int | None = None
        self._ready = False
        self._others_wait = True
        self._client_may_speak = False  # its manager died without a word
        self._in_mpi_init = False
        self._orderly = False
        self._death: int | None = None  # how the rank ended, to be told to the first guard
        self._limit_s = 0.0
        self._alive_s = self._turned_s = time.monotonic()
        self._terminal = Terminal()

    def split(self) -> RankRole | ClientRole | GuardRole:
        """Fork template and rank, then guard them. Returns in each process that goes on: see the roles."""
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        keep_heap()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._alarm = Alarm()
        self._page = Page()
        if self._staged:
            self._belongings.hold(self._staged["directory"])
        rank_end = self._prepare_template() if self._is_staged else self._start_template()
        guard = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self._rank = os.fork()
        if self._rank == 0:
            end_with_parent(guard, signal.SIGKILL)
            ours.close()
            self._alarm.close()
            if self._waiting is not None:
                self._waiting.close()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what the launcher feeds in is for the client
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)  # Hydra sends SIGUSR1 to the others when a rank dies
            return RankRole(Control(theirs), rank_end, self._alarm.port, self._page)
        theirs.close()
        rank_end.close()
        self._control = Control(ours)
        self._expect_start(f"did not come up within {self._start_s:g} s. {START_HINT}")
        return self._loop()

    def _expect_start(self, says: str) -> None:
        patience_s = self._start_s + (5 if self._is_first else 7)  # the first one tells why, before the others end the job
        self._set_deadline(patience_s, says)

    # ---- children ----

    def _prepare_template(self) -> socket.socket:
        """A socket on which the rank can say what it likes; a template will read it."""
        rank_end, self._waiting = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return rank_end

    def _start_template(self) -> socket.socket:
        rank_end, template_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._fork_template(template_end, rank_end)
        return rank_end

    def _fork_template(self, template_end: socket.socket, rank_end: socket.socket | None) -> None:
        guard = os.getpid()
        self._template = os.fork()
        if self._template == 0:
            try:
                if rank_end is not None:
                    rank_end.close()
                self._alarm.close()
                _default_signals()
                end_with_parent(guard, signal.SIGKILL)
                self._template_main(template_end, self._staged)
            finally:
                os._exit(1)
        template_end.close()

    def _start_client(self, message: dict[str, Any]) -> bool:
        """Fork the client; True in the child."""
        guard = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self._client = os.fork()
        if self._client == 0:
            _default_signals()
            end_with_parent(guard, signal.SIGKILL)
            os.setpgid(0, 0)
            return True
        self._terminal.lend(self._client)
        return False

    # ---- the loop ----

    def _loop(self) -> ClientRole | GuardRole:
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in _WATCHED:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wake_write)
        self._selector = selectors.DefaultSelector()
        for fd in (wake_read, self._control.fileno(), self._alarm.fileno()):
            self._selector.register(fd, selectors.EVENT_READ)
        self._reap()
        while self._rank:
            for key, _ in self._selector.select(self._patience_s()):
                if key.fd == wake_read:
                    self._on_signals(os.read(wake_read, 512))
                elif key.fd == self._alarm.fileno():
                    for note, sender in self._alarm.receive():
                        self._on_note(note, sender)
                elif (client := self._from_rank()) is not None:
                    return client
            self._see_if_rank_hangs()
            self._alarm.tend(time.monotonic())
            if self._deadline is not None and time.monotonic() >= self._deadline:
                says_it = self._is_first or not self._in_mpi_init  # one of those that wait for others says it for all
                if self._deadline_says and says_it:
                    print(f"exex: {self._where} {self._deadline_says}", file=sys.stderr, flush=True)
                self._status = self._status or 1
                break
        status = self._end()
        others_wait = not self._ready and self._others_wait
        if self._is_first and self._client_may_speak:  # workers wait for their manager; Hydra does not always notice by itself
            others_wait = True
        return GuardRole(status, others_wait=bool(status) and others_wait)

    def _from_rank(self) -> ClientRole | None:
        """Take what the rank has said; in the client that it has asked for, its role."""
        while message := self._control.receive():
            if message["op"] == "client":
                if self._start_client(message):
                    signal.set_wakeup_fd(-1)
                    self._selector.close()
                    self._control.close()
                    self._alarm.close()
                    return ClientRole(message, (self._staged or {}).get("files", ""))
                os.close(message["fd"])
            elif message["op"] == "gone":
                self._selector.unregister(self._control.fileno())
                break
            else:
                self._on_message(message)
        return None

    def _patience_s(self) -> float | None:
        """How long to wait for what happens next."""
        now_s = time.monotonic()
        waits = [max(0.0, until - now_s) for until in (self._deadline, self._alarm.next_s()) if until is not None]
        if self._limit_s and self._ready:
            waits.append(self._limit_s / 10)
        return min(waits, default=None)

    def _see_if_rank_hangs(self) -> None:
        """SIGKILL a rank that has not turned for too long: a stopped one would keep the launcher waiting for ever."""
        now_s = time.monotonic()
        if now_s - self._turned_s > self._limit_s / 4:
            self._alive_s = now_s  # it was this process that stood still: the whole job was suspended
        self._turned_s = now_s
        if self._page.running() is not None:
            self._alive_s = now_s  # a function of the user's may take as long as it likes
        if self._limit_s and self._ready and self._rank and now_s - self._alive_s > self._limit_s:
            print(f"exex: {self._where} has not moved for {self._limit_s:g} s: killing it", file=sys.stderr, flush=True)
            self._limit_s = 0.0
            os.kill(self._rank, signal.SIGKILL)

    def _on_message(self, message: dict[str, Any]) -> None:
        if message["op"] == "initialising":
            self._in_mpi_init = True
        elif message["op"] == "staging":
            self._expect_start(f"has got no further with what is staged for {self._start_s:g} s. {START_HINT}")
        elif message["op"] == "staged":
            self._on_staged(message["staged"])
        elif message["op"] == "store":
            for directory in message["directories"]:
                self._belongings.hold(directory)
        elif message["op"] == "watch":
            self._limit_s = float(message["limit_s"])
            self._belongings.note_shared_memory(message["shared"])
            meeting = Meeting(tuple(message["hosts"]), message["port"], bytes.fromhex(message["key"]), message["ranks"])
            self._alarm.join(meeting, int(message["rank"]), time.monotonic())
        elif message["op"] == "serving":
            from exex.launch.lent import take_signals

            self._serves = True
            take_signals(os.environ)
        elif message["op"] == "recorder":
            self._recorder = int(message["pid"])
        elif message["op"] == "alive":
            self._alive_s = time.monotonic()
        elif message["op"] == "ready":
            self._ready = True
            self._alive_s = time.monotonic()
            self._deadline = None
        elif message["op"] in ("stop", "probe"):
            self._tell_ranks(message)
        elif message["op"] == "status":
            self._status = int(message["status"])
            self._others_wait = message.get("others_wait", False)
            self._orderly = message.get("orderly", False)
            self._set_deadline(self._stop_s, "did not end in time after the job had ended")

    def _tell_ranks(self, message: dict[str, Any]) -> None:
        """What the guards of other ranks are to hear."""
        if message["op"] == "stop":
            self._alarm.tell_ranks(message["ranks"], Kind.STOP, int(message["hard"]), message["call"])
        else:
            unknown = self._alarm.tell_ranks(message["ranks"], Kind.PROBE)
            self._control.send("here", ranks=unknown)  # who cannot be asked is not suspected

    def _on_staged(self, staged: dict[str, str]) -> None:
        """Start the template from what this node has, and hold that as long as this process lives."""
        self._staged = staged
        self._belongings.hold(staged["directory"])
        self._expect_start(f"did not come up within {self._start_s:g} s after staging. {START_HINT}")
        if self._waiting is not None:
            self._fork_template(self._waiting, None)
            self._waiting = None

    def _on_note(self, note: Note, sender: Host) -> None:
        if note.kind == Kind.STOP:
            if self._rank:
                self._page.stop(self._rank, note.call, bool(note.code))
            return
        if note.kind == Kind.HEARD:
            self._control.send("here", ranks=[note.rank])
            return
        if note.kind == Kind.DIED and not self._control.send("died", rank=note.rank, code=note.code):
            return  # it will be told again
        self._alarm.confirm(note, sender)
        if note.kind == Kind.END:
            self._status = self._status or note.code
            self._others_wait = False  # they hear it from the first one, too
            self._set_deadline(0, "")

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGCHLD:
                self._reap()
            elif self._client and number == signal.SIGINT:
                os.kill(self._client, number)
            elif self._serves and number in (signal.SIGINT, signal.SIGTERM):
                self._control.send("notice", signal=number)
                if number == signal.SIGINT or is_held_in_foreground(os.environ):
                    self._set_deadline(2 * self._stop_s, "was told to end and did not")
            elif number == signal.SIGTERM and is_held_in_foreground(os.environ):
                self._status = 128 + signal.SIGTERM  # `exex run` ends the job, or has died; it has notices of its own
                self._set_deadline(0, "")
            elif self._client or self._serves:
                self._control.send("notice", signal=number)
            elif number in (signal.SIGUSR1, signal.SIGUSR2):
                pass  # for the manager, and its guard has it, too
            elif number == signal.SIGTERM and not self._ready:
                self._status = 128 + signal.SIGTERM
                self._set_deadline(0, "was told to end (SIGTERM) while it started")
            elif number == signal.SIGTERM:
                self._set_deadline(self._notice_s + self._stop_s, "was told to end (SIGTERM) and did not")

    def _set_deadline(self, seconds: float, says: str) -> None:
        self._deadline = time.monotonic() + seconds
        self._deadline_says = says

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid == self._rank:
                self._on_rank_ended(code)
            elif pid == self._client:
                self._client = 0
                self._terminal.take_back()
                self._control.send("client-exited", status=code if code >= 0 else 128 - code)
            elif pid == self._recorder:
                self._recorder = 0
            elif pid == self._template:
                self._template = 0
                orphans = [pid for pid in children(os.getpid()) if pid not in (self._rank, self._client, self._recorder)]
                end_launchers(orphans)  # started by tasks, and nobody's now
                for pid in orphans:
                    os.kill(pid, signal.SIGKILL)
                if self._rank and self._status is None and (self._ready or not self._staged):  # a broken one would break again
                    rank_end = self._start_template()
                    self._control.send("template", fd=rank_end.fileno())
                    rank_end.close()

    def _on_rank_ended(self, code: int) -> None:
        self._rank = 0
        while (message := self._control.receive()) and message["op"] != "gone":
            self._on_message(message)  # its last words may not have been read yet
        if self._alarm.rank > 0 and self._ready and (self._status or self._status is None):
            self._death = code  # told once its tasks are dead, too
            self._status = 0
        elif self._status is None:
            self._status = code if code > 0 else 1
            if code < 0:
                print(f"exex: {self._where} {how_it_ended(code)}", file=sys.stderr, flush=True)
            self._client_may_speak = True

    def _end(self) -> int:
        """Leave no process behind, then tell the status of the job."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)  # not back to the default while Python ends
        until = time.monotonic() + self._stop_s
        while self._client_may_speak and self._client and time.monotonic() < until:
            self._reap()  # its futures fail now: its script may handle that, and says where the journal is
            time.sleep(0.01)
        self._terminal.take_back()
        for pid in (self._client, self._template, self._rank):
            if pid:
                os.kill(pid, signal.SIGKILL)
        self._await_recorder()
        kill_descendants()
        status = 1 if self._status is None else self._status
        if self._death is not None:
            self._alarm.tell_death(self._death)
        elif self._alarm.rank == 0 and not self._orderly:
            self._alarm.tell_end(status)
        self._belongings.release()
        self._reaper.dismiss()
        return status

    def _await_recorder(self) -> None:
        """The writer of the run record ends by itself when rank 0 is dead. It is ours then, or has ended before."""
        until = time.monotonic() + RECORDER_S
        while self._recorder and time.monotonic() < until:
            self._reap()
            if not self._rank and self._recorder not in children(os.getpid()):
                break
            time.sleep(0.01)


def _default_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in _WATCHED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
