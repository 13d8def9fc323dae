"""A job on this machine in the foreground: `exex run` holds its launcher, lends it the terminal, and clears up behind it.

The launcher gets a session of its own and no stdin. What the user types goes to the client by another way, a socket in the
job's directory, over which the client (see `lent`) receives this process's stdin, stdout and stderr as descriptors, and by
which this process knows whom to interrupt: where there is no script, rank 0's guard. The launchers themselves would not do
(all seen with MPICH 5.0.2 and Open MPI 4.1 and 5.0.11): Hydra ends the job if 64 KiB of stdin wait unread, and a second SIGINT
makes it kill all ranks; Open MPI's mpiexec kills them 0.5 s after the first, and may never pass on the end of stdin.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any

from exex.errors import StartError
from exex.launch.leftovers import remove_shared_memory
from exex.launch.lent import CLIENT, GUARD, peer, said
from exex.launch.stage_hold import remove_if_left

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LAUNCHER_STOP_S = 2.5  # Open MPI 4.1 kills its ranks 2 s after a SIGTERM
_LOOK_S = 0.5  # between looks for what sends no signal
_LEFT_BEHIND_S = 2.0
_KILLED_S = 5.0
_SOCKET_PATH_BYTES = 100  # sun_path holds 108
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOTICES = (signal.SIGUSR1, signal.SIGUSR2)  # "the end is near", for the manager
_SIGNALS = (*_ENDING, *_NOTICES)



def run_world(argv: Sequence[str], env: Mapping[str, str], stop_timeout_s: float = 10.0, tether: int | None = None) -> int:
    """Run a launcher's command line to its end; return the exit status of the job, not of the launcher.

    The job finds its directory in EXEX_JOB_DIR and leaves its status there, in the file `status`. The first Ctrl-C
    goes to the client, as it would without exex. SIGTERM, SIGHUP or another Ctrl-C end the job; each further one, and
    each time limit that passes, does so harder. No process of the job is left at the end.

    Args:
        argv: the launcher, its options, and the program of every rank.
        env: for the launcher.
        stop_timeout_s: what an orderly end may take before processes are killed.
        tether: a descriptor at whose end the job is ended as by SIGTERM.

    Raises:
        StartError: the launcher cannot be run.
    """
    _open_stdio()
    directory = tempfile.mkdtemp(prefix="exex-")
    try:
        if len(os.fsencode(directory)) > _SOCKET_PATH_BYTES - len("/job.sock"):
            shutil.rmtree(directory)
            directory = tempfile.mkdtemp(prefix="exex-", dir="/tmp")
        with _terminal_kept(), _Foreground(directory, stop_timeout_s, tether) as job:
            job.start(argv, {**env, "EXEX_JOB_DIR": directory})
            job.watch()
            job.clear()
            return job.status(argv[0])
    finally:
        for note in Path(directory).glob("shared.*"):
            remove_shared_memory(note.read_text().splitlines())
        for note in Path(directory).glob("held.*"):
            for held in note.read_text().splitlines():
                remove_if_left(held)
        shutil.rmtree(directory, ignore_errors=True)


class _Stage(IntEnum):
    """How hard the job is being ended; only ever rises."""

    RUNNING = 0
    INTERRUPTED = 1  # the client, or rank 0's guard, has SIGINT and decides
    ENDING = 2  # client, or launcher if there is none yet, has SIGTERM
    STOPPING = 3  # the launcher has SIGTERM
    KILLING = 4  # every process has SIGKILL


class _Foreground:
    """The job while it runs. A context: signal handlers, orphans and socket are as before afterwards."""

    def __init__(self, directory: str, stop_timeout_s: float, tether: int | None = None) -> None:
        self._directory = directory
        self._tether = tether
        self._stop_s = stop_timeout_s
        self._stage = _Stage.RUNNING
        self._deadline: float | None = None
        self._first_signal = 0
        self._client: tuple[int, socket.socket] | None = None  # its pid; of a job without a script rank 0's guard
        self._guard: int | None = None  # pid of rank 0's guard
        self._client_ended = False
        self._status_path = os.path.join(directory, "status")
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> _Foreground:
        self._before = descendants(os.getpid())
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.path.join(self._directory, "job.sock"))
        self._listener.listen(1)
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ, self._on_wake)
        self._selector.register(self._listener, selectors.EVENT_READ, self._on_client)
        if self._tether is not None:
            self._selector.register(self._tether, selectors.EVENT_READ, self._on_tether)
        self._wake_before = signal.set_wakeup_fd(wake_write)
        self._wake_write = wake_write
        for number in (*_SIGNALS, signal.SIGCHLD):
            if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:  # nohup, or `&` in a script
                self._handlers[number] = signal.signal(number, _wake_up)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._kill_until_gone()
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wake_before)
        self._selector.close()
        self._listener.close()
        if self._client:
            self._client[1].close()
        os.close(self._wake)
        os.close(self._wake_write)

    def start(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the launcher; it ends in order if this process dies."""
        parent = os.getpid()

        def in_child() -> None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

        try:
            self._launcher = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=in_child,  # noqa: PLW1509  `exex run` has no threads
            )
        except OSError as error:
            raise StartError(f"cannot run {argv[0]}: {error.strerror}") from error

    def watch(self) -> None:
        """Serve the client and pass on signals until the launcher has ended."""
        while self._launcher.poll() is None:
            self._wait(self._deadline if self._deadline or not self._client_ended else time.monotonic() + _LOOK_S)
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._end_harder()
            elif self._deadline is None and self._client_ended and os.path.exists(self._status_path):
                self._stage = _Stage.ENDING  # a process that outlives its rank keeps a launcher waiting
                self._deadline = time.monotonic() + self._stop_s

    def clear(self) -> None:
        """Wait for processes that outlive the launcher; kill those that do so for long."""
        until = time.monotonic() + _LEFT_BEHIND_S
        while self._reap() and time.monotonic() < until:
            self._wait(min(until, time.monotonic() + 0.1))  # a grandchild's end sends no signal

    def status(self, launcher: str) -> int:
        """The job's own exit status; without one the launcher's, which is then never 0."""
        try:
            with open(self._status_path) as file:
                status = int(file.read()) & 0xFF
            if status == 128 + signal.SIGTERM and self._first_signal:
                return 128 + self._first_signal  # the SIGTERM was ours: there was no client yet to interrupt
            return status
        except (OSError, ValueError):
            pass
        code = self._launcher.returncode
        how = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
        _say(f"the job ended without a status of its own; {launcher} ended with {how}")
        if self._first_signal:
            return 128 + self._first_signal
        return (code or 1) if code >= 0 else 128 - code

    # ---- what happens ----

    def _wait(self, until: float | None) -> None:
        timeout = None if until is None else max(0.0, until - time.monotonic())
        for key, _ in self._selector.select(timeout):
            key.data()

    def _on_wake(self) -> None:
        for number in os.read(self._wake, 512):
            if number in _SIGNALS:
                self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        if number in _NOTICES:
            if self._client and self._guard:
                _send(self._guard, number)
            return
        self._first_signal = self._first_signal or number
        if number == signal.SIGINT and self._stage is _Stage.RUNNING and self._client:
            self._stage = _Stage.INTERRUPTED
            _send(self._client[0], signal.SIGINT)
        else:
            self._end_harder()

    def _on_client(self) -> None:
        link, _ = self._listener.accept()
        pid, uid = peer(link)
        kind = said(link) if uid == os.getuid() else b""
        if not kind or self._client:
            link.close()
            return
        self._guard = pid if kind == GUARD else _parent(pid)
        if kind == CLIENT:
            with _lent_stdin() as stdin, contextlib.suppress(OSError):
                socket.send_fds(link, [b"\0"], [stdin, 1, 2])
        self._client = (pid, link)
        self._selector.register(link, selectors.EVENT_READ, self._on_client_gone)

    def _on_client_gone(self) -> None:
        assert self._client is not None
        self._selector.unregister(self._client[1])
        self._client[1].close()
        self._client = None
        self._client_ended = True

    def _on_tether(self) -> None:
        """Who wanted the job has ended."""
        assert self._tether is not None
        self._selector.unregister(self._tether)
        if self._stage is _Stage.RUNNING:
            self._on_signal(signal.SIGTERM)

    def _end_harder(self) -> None:
        """Go to the next stage."""
        self._stage = _Stage(min(max(self._stage + 1, _Stage.ENDING), _Stage.KILLING))
        now_s = time.monotonic()
        if self._stage is _Stage.ENDING:
            _say("ending the job; interrupt again to end it at once")
            _send(self._client[0] if self._client else self._launcher.pid, signal.SIGTERM)
            self._deadline = now_s + self._stop_s
        elif self._stage is _Stage.STOPPING:
            late = self._deadline is not None and now_s >= self._deadline
            _say(f"the job did not end within {self._stop_s:g} s: stopping it" if late else "stopping the job")
            _send(self._launcher.pid, signal.SIGTERM)  # Open MPI's removes its session directory then
            self._deadline = now_s + _LAUNCHER_STOP_S
        else:
            self._kill_all()
            self._deadline = now_s + _LAUNCHER_STOP_S

    # ---- processes ----

    def _kill_all(self) -> None:
        for pid in descendants(os.getpid()) - self._before:
            _send(pid, signal.SIGKILL)

    def _reap(self) -> bool:
        """Bury the orphans that have come to us. True while a process of the job is left."""
        for pid in descendants(os.getpid()) - self._before:
            with contextlib.suppress(ChildProcessError):  # a grandchild
                os.waitpid(pid, os.WNOHANG)
        return bool(descendants(os.getpid()) - self._before)

    def _kill_until_gone(self) -> None:
        until = time.monotonic() + _KILLED_S
        while self._reap() and time.monotonic() < until:
            self._kill_all()
            self._wait(min(until, time.monotonic() + 0.1))


def descendants(pid: int) -> set[int]:
    """Pids of all processes below `pid` that /proc knows; zombies too."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in _children(todo.pop()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])
    return None


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):  # it has just ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                children += [int(word) for word in file.read().split()]
    return children


def _open_stdio() -> None:
    """Put /dev/null where stdin, stdout or stderr are closed, so that no descriptor of ours takes their numbers."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is `fd`


@contextlib.contextmanager
def _lent_stdin() -> Iterator[int]:
    """Stdin; /dev/null if it is a terminal in which the shell has another job in the foreground."""
    try:
        ours = not os.isatty(0) or os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # a terminal of another session, where nobody competes for it
        ours = True
    if ours:
        yield 0
        return
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        yield null
    finally:
        os.close(null)


@contextlib.contextmanager
def _terminal_kept() -> Iterator[None]:
    """The terminal's modes afterwards are those of before, whatever a task or a killed client did to them."""
    fd = next((fd for fd in (0, 2) if os.isatty(fd)), None)
    if fd is None:
        yield
        return
    modes = termios.tcgetattr(fd)
    try:
        yield
    finally:
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # the shell may have taken the terminal back
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSANOW, modes)
        signal.signal(signal.SIGTTOU, before)


_prctl: Callable[..., int] = ctypes.CDLL(None).prctl


def _wake_up(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor tells the loop."""


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal has hung up
        print(f"exex run: {text}", file=sys.stderr, flush=True)
