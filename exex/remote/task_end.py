"""The task's end: a program that stands before a launcher's words, and behaves like that launcher, which runs elsewhere.

Runs on compute nodes, once for each launch. It starts nothing, and ends as the launcher did: with its exit code or by its signal.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import sys
import time
from hmac import compare_digest

from exex.remote import wire
from exex.remote.connection_file import Meeting, Unreachable
from exex.remote.flows import Inflow, Outflow
from exex.remote.wire import NOT_STARTED, STDERR, STDIN, STDOUT, Broken, Wire

VARIABLE = "EXEX_LAUNCH_HELPER"
"""Names the connection file."""

PATIENCE_S = 30.0
"""How long a helper may take to come up, or to answer. It may be busy with a thousand others."""

_NEXT_ADDRESS_S = 0.25  # an address that cannot be reached from here often does not answer at all
_PAUSE_S = 0.2
_HANDED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_ANSWERS = (wire.STARTED, wire.DATA, wire.CLOSED, wire.CREDIT, wire.ENDED, wire.REFUSED)


# ---- before the launch ----------------------------------------------------------------------------------------


def connect(path: str, request: bytes, patience_s: float) -> tuple[Wire, Meeting]:
    """A connection to the helper, which has proved that it is one, and has our request.

    Raises:
        Unreachable: not within this time.
    """
    until = time.monotonic() + patience_s
    pause_s = _PAUSE_S
    while True:
        try:
            meeting = Meeting(path)
            return _introduce(_reach(meeting, until), meeting, request, until), meeting
        except (Unreachable, Broken) as error:
            if time.monotonic() + pause_s > until:
                raise Unreachable(str(error)) from None
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 2.0)


def _reach(meeting: Meeting, until: float) -> socket.socket:
    """A connection to the first of the helper's addresses that answers; after a moment the next is tried as well."""
    poll = select.poll()
    tried: dict[int, socket.socket] = {}
    left = list(meeting.hosts)
    problem = "no address answers"
    try:
        while (left or tried) and time.monotonic() < until:
            if left:
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                tried[sock.fileno()] = sock
                sock.connect_ex((left.pop(0), meeting.port))
                poll.register(sock, select.POLLOUT)
            for fd, _ in poll.poll((_NEXT_ADDRESS_S if left else until - time.monotonic()) * 1e3):
                code = tried[fd].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    return tried.pop(fd)
                problem = os.strerror(code)
                poll.unregister(fd)
                tried.pop(fd).close()
    finally:
        for sock in tried.values():
            sock.close()
    where = f"{meeting.node} ({', '.join(meeting.hosts)}), port {meeting.port}"
    raise Unreachable(f"it cannot be reached at {where}: {problem}; has the job script ended?")


def _introduce(sock: socket.socket, meeting: Meeting, request: bytes, until: float) -> Wire:
    """Prove that we know the key, see that the helper does, and hand over the request."""
    link = Wire(sock, (wire.HELLO,))
    try:
        hello = _next(link, until)
        helpers, ours = hello[len(wire.MAGIC) :], wire.new_number()
        if not hello.startswith(wire.MAGIC) or len(helpers) != wire.NUMBER_BYTES:
            raise Broken("what listens there is no launch helper of this version")
        link.accepts = (wire.PROOF,)
        link.send(wire.PROOF, ours, wire.proof(meeting.key, b"task", helpers, ours))
        if not compare_digest(_next(link, until), wire.proof(meeting.key, b"helper", helpers, ours)):
            raise Broken(f"what listens at {meeting.node} has not proved that it is the launch helper")
        link.accepts = _ANSWERS
        link.send(wire.REQUEST, wire.proof(meeting.key, b"request", helpers, ours, request), request)
        return link
    except BaseException:
        link.close()
        raise


def _next(link: Wire, until: float) -> bytes:
    """Contents of the next frame."""
    poll = select.poll()
    poll.register(link, select.POLLIN)
    while (frame := link.frame()) is None:
        link.flush()
        if link.ended:
            raise Broken("it has closed the connection: the key may be that of an earlier job script")
        if not poll.poll(max(0.0, until - time.monotonic()) * 1e3):
            raise Unreachable("it does not answer")
        link.read()
    return frame[1]


# ---- the launch -----------------------------------------------------------------------------------------------


class TaskEnd:
    """One launch, from its request to its end.

    Attributes:
        code: how the launcher ended; None before that.
        refusal: what the helper said instead of starting it.
    """

    def __init__(self, link: Wire) -> None:
        self._wire = link
        self._stdin = Outflow(0, STDIN, link)
        self._into = {STDOUT: Inflow(1, STDOUT, link), STDERR: Inflow(os.dup(2), STDERR, link)}  # we may have something to say
        self._wake = -1
        self._started = False
        self.code: int | None = None
        self.refusal: tuple[int, str] | None = None

    def run(self) -> None:
        """Until the launcher has ended and all it has printed is written, or the helper is gone or has refused."""
        while not self._wire.ended and self.code is None and self.refusal is None:
            self._wire.flush()
            if self._wire.ended:  # just found: nothing would wake us
                break
            for fd in self._wait():
                if fd == self._wire.fileno():
                    self._hear()
                elif fd == self._wake:
                    for number in os.read(self._wake, 512):
                        self._wire.send(wire.SIGNAL, bytes([number]))
                else:
                    self._move(fd)
        self._wire.close()  # which tells the keeper that we have its last words
        for number in _HANDED_ON:
            if self._started and signal.getsignal(number) is _nothing:
                signal.signal(number, signal.SIG_DFL)
        while any(stream.wants() for stream in self._into.values()):
            for fd in self._wait():
                self._move(fd)

    def _wait(self) -> list[int]:
        """Descriptors that something can be done with."""
        poll = select.poll()
        if not self._wire.ended:
            poll.register(self._wire, select.POLLIN | (select.POLLOUT if self._wire.waiting_bytes else 0))
        if self._wake >= 0:
            poll.register(self._wake, select.POLLIN)
        if self._started and self.code is None and self._stdin.wants():
            poll.register(self._stdin.fd, select.POLLIN)
        for stream in self._into.values():
            if stream.wants():
                poll.register(stream.fd, select.POLLOUT)
        return [fd for fd, _ in poll.poll()]

    def _move(self, fd: int) -> None:
        if self._stdin.is_open and fd == self._stdin.fd:
            self._stdin.move()
        for stream in self._into.values():
            if stream.is_open and fd == stream.fd:
                stream.move()

    def _hear(self) -> None:
        self._wire.read()
        while (frame := self._wire.frame()) is not None:
            kind, data = frame
            if kind == wire.DATA and data and data[0] in self._into:
                self._into[data[0]].take(data[1:])
            elif kind == wire.CREDIT:
                self._stdin.add_credit(wire.unpack_credit(data)[1])
            elif kind == wire.CLOSED:
                self._stdin.close()
            elif kind == wire.STARTED:
                self._start()
            elif kind == wire.ENDED:
                self.code = wire.unpack_status(data)
            elif kind == wire.REFUSED and data:
                self.refusal = data[0], data[1:].decode(errors="replace")
            else:
                raise Broken(f"a frame of kind {kind} that says nothing")

    def _start(self) -> None:
        """Signals are the launcher's from now on."""
        self._started = True
        self._wake, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end)
        for number in _HANDED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _nothing)


def _open_closed() -> None:
    """Whoever has started us may have closed one of the first three, and a socket must not take its place."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(fd, True)
    os.close(fd)


def _nothing(number: int, frame: object) -> None:
    pass


def _say(text: str) -> None:
    try:
        os.write(2, f"exex: {text}\n".encode(errors="replace"))
    except OSError:
        pass


def _end_as(code: int) -> None:
    """End with an exit code, or by a signal, as the launcher has."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # there is one where it happened, if it was wanted
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (-code,))
        os.kill(os.getpid(), -code)
        code = 128 - code
    os._exit(code)


def main(argv: list[str]) -> int:
    """Have `argv` started by the launch helper; the exit status."""
    _open_closed()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not argv:
        _say("usage: python -m exex.remote LAUNCHER WORDS...")
        return NOT_STARTED
    try:
        directory = os.fsencode(os.getcwd())
    except OSError as error:
        _say(f"{argv[0]} was not started: the current directory is gone: {error.strerror}")
        return NOT_STARTED
    try:
        path = os.environ.get(VARIABLE)
        if not path:
            raise Unreachable(f"{VARIABLE} is not set; the job script must start it, as those of `exex jobscript` do")
        request = wire.pack_request(directory, [os.fsencode(word) for word in argv], dict(os.environb))
        link, meeting = connect(path, request, PATIENCE_S)
    except Unreachable as error:
        _say(f"{argv[0]} was not started, for want of the launch helper: {error}")
        return NOT_STARTED
    return _be(argv[0], TaskEnd(link), meeting)


def _be(name: str, end: TaskEnd, meeting: Meeting) -> int:
    """Behave as the launcher; the exit status, if it has not ended by a signal."""
    try:
        end.run()
        lost = "it has closed the connection"
    except Broken as error:
        lost = f"it has sent {error}"
    if end.refusal is not None:
        _say(f"{name} was not started: {end.refusal[1]}")
        return end.refusal[0]
    if end.code is None:
        _say(f"{name} is lost with the launch helper at {meeting.node} (pid {meeting.pid}), which ends it: {lost}")
        return NOT_STARTED
    _end_as(end.code)
    return NOT_STARTED  # not reached


def run() -> None:
    """Be this program."""
    os._exit(main(sys.argv[1:]))
