"""A keeper: holds one launch for a task's end, and leaves nothing of it. Forked by the launch helper, on the job script's node.

It adopts the orphans of what it has started. When the connection ends, because the task was stopped, or is lost with its node, it
ends the launcher: SIGTERM to its process group, SIGKILL to all that is left after `grace_s`.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import time
import traceback
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from exex.launch.notices import NOTICES, end_with_parent
from exex.remote import wire
from exex.remote.flows import Inflow, Outflow
from exex.remote.wire import NOT_EXECUTABLE, NOT_FOUND, NOT_STARTED, STDERR, STDIN, STDOUT, Broken, Wire
from exex.worker import families

END = signal.SIGHUP
"""Tells a keeper to end its launch, and a launch helper to end all."""

ACCEPTS = (wire.DATA, wire.CLOSED, wire.CREDIT, wire.SIGNAL)
"""What a task's end may say once it has asked."""

_PR_SET_CHILD_SUBREAPER = 36
_LAST_WORDS_S = 10.0
_DEFAULTS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, *NOTICES)
_HANDED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Refused(Exception):
    """It is not started; the text says why.

    Attributes:
        status: of the task's end.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Request(NamedTuple):
    """What a task wants to be started."""

    directory: str
    words: list[str]
    variables: dict[str, str]


def read_request(data: bytes) -> Request:
    """A request as it has arrived.

    Raises:
        Broken: it cannot be read.
    """
    directory, words, variables = wire.unpack_request(data)
    decode = os.fsdecode
    return Request(decode(directory), [decode(word) for word in words], {decode(n): decode(v) for n, v in variables.items()})


def check_program(words: list[str], programs: frozenset[str]) -> None:
    """Refuse all but launchers: this node is no place for other programs. `env NAME=VALUE` may stand before.

    Raises:
        Refused: it is none.
    """
    rest = deque(words)
    if os.path.basename(rest[0]) == "env":
        rest.popleft()
        while rest and "=" in rest[0] and not rest[0].startswith("-"):
            rest.popleft()
    name = os.path.basename(rest[0]) if rest else "env"
    if name not in programs:
        raise Refused(
            f"{name} is none of the launchers that a launch helper starts: {', '.join(sorted(programs))}; other programs run "
            "on compute nodes, without its help",
            NOT_EXECUTABLE,
        )


def send_refusal(link: Wire, text: str, status: int) -> None:
    """The task's end says it, and ends with this status."""
    link.send(wire.REFUSED, bytes([status]), text.encode(errors="replace")[:4000])
    link.flush()


# ---- in the helper's child ------------------------------------------------------------------------------------


def keep(link: Wire, request: Request, own: Mapping[str, str], grace_s: float, tell_ending: int) -> NoReturn:
    """Start what was asked for, see it to its end, and end. END must be blocked.

    Args:
        own: variables that count before those of the task.
        tell_ending: a pipe that takes our number as soon as the launch is being ended although its program has not.
    """
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    code = os.EX_OK
    try:
        wake = _hear_signals()
        link.accepts = ACCEPTS
        try:
            process = start(request, own)
        except Refused as refused:
            send_refusal(link, str(refused), refused.status)
            _flush(link)
        else:
            _Keeper(link, process, wake, grace_s, tell_ending).run()
    except BaseException:  # nobody above us may see it
        traceback.print_exc()
        code = os.EX_SOFTWARE
    finally:
        families.kill_family(families.children(os.getpid()))
        os._exit(code)


def start(request: Request, own: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The launcher, in a session of its own.

    Raises:
        Refused: the program or the directory is not here.
    """
    here, me = os.uname().nodename, os.getpid()
    name = request.words[0]
    program = shutil.which(os.path.join(request.directory, name) if "/" in name else name)  # on the helper's PATH
    if program is None:
        raise Refused(f"{name} is not on the PATH of the launch helper at {here}: {os.environ.get('PATH', '')}", NOT_FOUND)
    if not os.path.isdir(request.directory):
        raise Refused(
            f"the task's directory {request.directory} is none at {here}, where {name} would run: it must be on a file system "
            "that this node sees, too",
            NOT_STARTED,
        )

    def in_child() -> None:
        for number in _DEFAULTS:
            signal.signal(number, signal.SIG_DFL)
        end_with_parent(me, signal.SIGKILL)

    try:
        return subprocess.Popen(
            request.words, executable=program, cwd=request.directory, env={**request.variables, **own}, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, preexec_fn=in_child,  # noqa: PLW1509 - there are no threads here
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise Refused(f"{program} cannot be started at {here}: {error}", NOT_EXECUTABLE) from None


def _hear_signals() -> int:
    """Turns readable at a signal. Those by which batch systems announce an end do nothing here."""
    wake, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGINT, END, *NOTICES):
        signal.signal(number, _nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (END,))
    return wake


def _nothing(number: int, frame: object) -> None:
    pass


def _flush(link: Wire) -> None:
    """Let all that was sent be on its way."""
    poll = select.poll()
    until = time.monotonic() + _LAST_WORDS_S
    while link.waiting_bytes and not link.ended and time.monotonic() < until:
        poll.register(link, select.POLLOUT)
        poll.poll(200)
        link.flush()


def _await_close(link: Wire) -> None:
    """Wait until the other side has taken our last words. Closing with something of its own unread would drop them."""
    poll = select.poll()
    poll.register(link, select.POLLIN)
    until = time.monotonic() + _LAST_WORDS_S
    while not link.ended and (left_s := until - time.monotonic()) > 0:
        if poll.poll(left_s * 1e3):
            link.pass_over()


class _Keeper:
    def __init__(self, link: Wire, process: subprocess.Popen[bytes], wake: int, grace_s: float, tell_ending: int) -> None:
        assert process.stdin and process.stdout and process.stderr
        self._wire, self._pid, self._wake, self._grace_s, self._tell_ending = link, process.pid, wake, grace_s, tell_ending
        fds = []
        for pipe in (process.stdin, process.stdout, process.stderr):
            fds.append(os.dup(pipe.fileno()))
            os.set_blocking(fds[-1], False)
            pipe.close()
        self._into = Inflow(fds[STDIN], STDIN, link)
        self._out = {STDOUT: Outflow(fds[STDOUT], STDOUT, link), STDERR: Outflow(fds[STDERR], STDERR, link)}
        self._code: int | None = None
        self._told_s: float | None = None  # when the program has first got SIGTERM
        self._ending = self._killed = False

    def run(self) -> None:
        """Until the program has ended, and the task's end has all that it has said, or is gone."""
        self._wire.send(wire.STARTED)
        while self._code is None or (not self._ending and any(stream.is_open for stream in self._out.values())):
            self._wire.flush()
            self._turn()
            if self._code is None:
                self._reap()
        if self._ending:
            return
        self._wire.send(wire.ENDED, wire.pack_status(self._code))
        while self._wire.waiting_bytes and not self._ending:
            self._wire.flush()
            self._turn()
        if not self._wire.ended:
            _await_close(self._wire)

    def _turn(self) -> None:
        if self._wire.ended:  # found when something was sent: nothing would wake us
            self._end()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if not self._wire.ended:
            poll.register(self._wire, select.POLLIN | (select.POLLOUT if self._wire.waiting_bytes else 0))
        if self._into.wants():
            poll.register(self._into.fd, select.POLLOUT)
        for stream in self._out.values():
            if stream.wants():
                poll.register(stream.fd, select.POLLIN)
        for fd, _ in poll.poll(self._left_ms()):
            self._tend(fd)
        if self._wire.ended:
            self._end()
        if self._ending and self._code is None and self._left_ms() == 0:
            self._killed = True
            families.kill_family(families.children(os.getpid()))

    def _tend(self, fd: int) -> None:
        """Do what can be done with a descriptor; one that was closed meanwhile is passed over."""
        if fd == self._wake:
            if END in os.read(self._wake, 512):
                self._end()
        elif not self._wire.ended and fd == self._wire.fileno():
            self._hear()
        elif self._into.is_open and fd == self._into.fd:
            self._into.move()
        for stream in self._out.values():
            if stream.is_open and fd == stream.fd:
                stream.move()

    def _left_ms(self) -> float | None:
        """Until SIGKILL."""
        if not self._ending or self._told_s is None or self._killed:
            return None
        return max(0.0, self._told_s + self._grace_s - time.monotonic()) * 1e3

    def _hear(self) -> None:
        try:
            self._wire.read()
            while (frame := self._wire.frame()) is not None:
                kind, data = frame
                if kind == wire.DATA and data[:1] == bytes([STDIN]):
                    self._into.take(data[1:])
                elif kind == wire.CREDIT and (credit := wire.unpack_credit(data))[0] in self._out:
                    self._out[credit[0]].add_credit(credit[1])
                elif kind == wire.CLOSED and data and data[0] in self._out:
                    self._out[data[0]].close()
                elif kind == wire.SIGNAL and data and data[0] in _HANDED_ON:
                    self._signal(data[0])
                else:
                    raise Broken(f"a frame of kind {kind} that says nothing")
        except Broken:
            self._wire.close()

    def _signal(self, number: int) -> None:
        if self._code is not None:
            return
        if number == signal.SIGTERM and self._told_s is None:
            self._told_s = time.monotonic()
        try:
            os.killpg(self._pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def _end(self) -> None:
        """Nobody is there any more, or the job script ends. SIGTERM once, also if the task's end has sent one."""
        if self._ending:
            return
        self._ending = True
        for stream in self._out.values():
            stream.passes_over = True  # it may have to print something before it ends
        self._into.close()
        self._wire.close()
        if self._code is None:
            try:
                os.write(self._tell_ending, os.getpid().to_bytes(4, "little"))
            except OSError:
                pass  # the helper is gone
            if self._told_s is None:
                self._signal(signal.SIGTERM)

    def _reap(self) -> None:
        """Take note of those that have ended. When the program has, all that it has left behind is killed."""
        try:
            while self._code is None:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid == self._pid:
                    self._code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            pass
        families.kill_family(families.children(os.getpid()))
