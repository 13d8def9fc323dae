"""The launch helper: starts launchers for tasks on compute nodes, which cannot. Runs on the job script's node, beside its shell.

One process with one loop takes connections, has the other side prove that it knows the key, and reads what it asks for. For each
launch it forks a keeper. It ends with the shell that has started it, and all that it has started ends with it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import select
import shlex
import signal
import socket
import sys
import time
from hmac import compare_digest
from typing import NamedTuple

from exex.errors import StartError
from exex.launch.notices import NOTICES, end_with_parent
from exex.reaper import TAG, Reaper
from exex.remote import connection_file, wire
from exex.remote.keeper import END, Refused, Request, check_program, keep, read_request, send_refusal
from exex.remote.wire import NOT_STARTED, Broken, Wire
from exex.transport.alarm import addresses
from exex.worker import families

MOST_STRANGERS = 256
"""Connections that have not proved anything yet; of more, the oldest is closed."""

PROOF_S = 20.0
"""How long one may take for that, and for its request."""

_PR_SET_CHILD_SUBREAPER = 36
_BACKLOG = 4096
_MOST_FILES = 65536
_SHORT_OF_S = 0.2  # pause when there are too many files or processes
_END_S = 5.0  # beyond the grace of what has to end


class Options(NamedTuple):
    """What `exex launch-helper` was told.

    Attributes:
        file: the connection file.
        programs: names of launchers that may be started.
        most: launches at once.
        grace_s: between SIGTERM and SIGKILL.
        verbose: tell each launch and its end.
    """

    file: str
    programs: frozenset[str]
    most: int
    grace_s: float
    verbose: bool


class _Guest:
    """A connection without a launch yet.

    Attributes:
        peer: its address.
        until: it must have asked by then.
        request: None before that.
    """

    def __init__(self, link: Wire, peer: str, until: float) -> None:
        self.link, self.peer, self.until = link, peer, until
        self.ours = wire.new_number()
        self.theirs: bytes | None = None
        self.request: Request | None = None


class _Launch(NamedTuple):
    """One that a keeper holds."""

    what: str
    began_s: float


class Helper:
    """See the module's docstring. Made, it listens; the connection file is there once `run` has begun.

    Args:
        listen_on: address; all interfaces, if it is "".

    Raises:
        StartError: it cannot listen.
    """

    def __init__(self, options: Options, reaper: Reaper, listen_on: str = "") -> None:
        self._options, self._reaper = options, reaper
        self._key = os.urandom(wire.KEY_BYTES)
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._listener.bind((listen_on, 0))
            self._listener.listen(_BACKLOG)
        except OSError as error:
            raise StartError(f"cannot listen: {error.strerror}") from error
        self._wake, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._told, self._tell_ending = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._strangers: dict[int, _Guest] = {}  # by descriptor, the oldest first
        self._waiting: dict[int, _Guest] = {}  # for their turn, in order
        self._launches: dict[int, _Launch] = {}  # by the keeper's pid
        self._ending: dict[int, float] = {}  # keepers that are ending what nobody waits for, and until when we wait for them
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._accept_from_s = 0.0
        self._refused = 0
        self._ended = False

    def _write_file(self) -> None:
        path, port = self._options.file, self._listener.getsockname()[1]
        try:
            connection_file.write(path, addresses(), port, self._key)
        except OSError as error:
            raise StartError(f"cannot write the connection file {path}: {error.strerror}") from error
        self._log(f"listens on port {port} of {os.uname().nodename}, for {', '.join(sorted(self._options.programs))}; see {path}")

    # ---- the loop ----

    def run(self) -> None:
        """Serve until the parent dies, or END comes.

        Raises:
            StartError: the connection file cannot be written.
        """
        self._hear_signals()
        hard = self._files[1]
        most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))  # each that waits has a descriptor
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._write_file()
        gc.freeze()  # keepers share what is here
        try:
            while not self._ended:
                self._turn()
        finally:
            self._end_all()
            connection_file.remove(self._options.file)

    def _hear_signals(self) -> None:
        """The batch system's notices, and Ctrl-C if the shell keeps it from what it runs in the background, end nothing."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        numbers = {signal.SIGCHLD, END, *NOTICES}
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            numbers.add(signal.SIGINT)
        for number in numbers:
            signal.signal(number, _nothing)

    def _turn(self) -> None:
        now_s = time.monotonic()
        poll = select.poll()
        for fd in (self._wake, self._told):
            poll.register(fd, select.POLLIN)
        if now_s >= self._accept_from_s:
            poll.register(self._listener, select.POLLIN)
        for guest in (*self._strangers.values(), *self._waiting.values()):
            poll.register(guest.link, select.POLLIN | (select.POLLOUT if guest.link.waiting_bytes else 0))
        for fd, _ in poll.poll(self._timeout_ms(now_s)):
            if fd == self._wake:
                self._on_signals(os.read(self._wake, 4096))
            elif fd == self._told:
                data = os.read(self._told, 4096)
                numbers = {int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)}
                until = time.monotonic() + self._options.grace_s + _END_S
                self._ending.update((pid, until) for pid in numbers & self._launches.keys())
            elif fd == self._listener.fileno():
                self._accept()
            elif fd in self._strangers:
                self._hear(fd)
            elif fd in self._waiting:
                self._hear_waiting(fd)
        self._drop_late()
        self._start_waiting()

    def _timeout_ms(self, now_s: float) -> float | None:
        times = [guest.until for guest in self._strangers.values()]
        if now_s < self._accept_from_s:
            times.append(self._accept_from_s)
        if self._waiting:
            times += [until for until in self._ending.values() if until > now_s]
        return max(0.0, min(times) - now_s) * 1e3 if times else None

    def _on_signals(self, numbers: bytes) -> None:
        if signal.SIGCHLD in numbers:
            self._reap()
        if END in numbers or signal.SIGINT in numbers:
            self._ended = True
        elif any(number in numbers for number in NOTICES):
            self._log(f"goes on until the job script ends; signal {signal.Signals(END).name} ends it")

    # ---- who comes ----

    def _accept(self) -> None:
        try:
            sock, (peer, *_) = self._listener.accept()
        except (BlockingIOError, ConnectionError, InterruptedError):
            return
        except OSError as error:  # out of descriptors: the others wait in the kernel
            self._say(f"takes no connection for a moment: {error.strerror}")
            self._accept_from_s = time.monotonic() + _SHORT_OF_S
            return
        if len(self._strangers) >= MOST_STRANGERS:
            self._close(next(iter(self._strangers)), "there were too many that prove nothing")
        guest = _Guest(Wire(sock, (wire.PROOF,)), peer, time.monotonic() + PROOF_S)
        self._strangers[sock.fileno()] = guest
        guest.link.send(wire.HELLO, wire.MAGIC, guest.ours)
        guest.link.flush()

    def _hear(self, fd: int) -> None:
        """Something of one who has not asked yet."""
        guest = self._strangers[fd]
        guest.link.flush()
        guest.link.read()
        try:
            while guest.request is None and (frame := guest.link.frame()) is not None:
                if guest.theirs is None:
                    self._check_proof(guest, frame[1])
                else:
                    self._check_request(guest, frame[1])
        except Broken as error:
            self._close(fd, str(error))
            return
        except Refused as refused:
            self._say(f"refused {guest.peer}: {refused}")
            send_refusal(guest.link, str(refused), refused.status)
            self._strangers.pop(fd).link.close()
            return
        if guest.request is not None:
            self._waiting[fd] = self._strangers.pop(fd)
        elif guest.link.ended:
            self._close(fd, "" if guest.theirs else "it left without a proof")

    def _check_proof(self, guest: _Guest, data: bytes) -> None:
        theirs, given = data[: wire.NUMBER_BYTES], data[wire.NUMBER_BYTES :]
        if theirs == guest.ours or not compare_digest(given, wire.proof(self._key, b"task", guest.ours, theirs)):
            raise Broken("it does not know the key")
        guest.theirs = theirs
        guest.link.send(wire.PROOF, wire.proof(self._key, b"helper", guest.ours, theirs))
        guest.link.flush()
        guest.link.accepts = (wire.REQUEST,)

    def _check_request(self, guest: _Guest, data: bytes) -> None:
        given, text = data[: wire.PROOF_BYTES], data[wire.PROOF_BYTES :]
        if not compare_digest(given, wire.proof(self._key, b"request", guest.ours, guest.theirs or b"", text)):
            raise Broken("its request is not signed with the key")
        request = read_request(text)
        check_program(request.words, self._options.programs)
        guest.link.accepts = ()
        guest.request = request

    def _hear_waiting(self, fd: int) -> None:
        """One that waits has nothing to say, so it has gone, or is none of ours."""
        guest = self._waiting[fd]
        guest.link.flush()
        guest.link.read()
        try:
            guest.link.frame()
            problem = ""
        except Broken as error:
            problem = str(error)
        if guest.link.ended or problem:
            self._log(f"{_about(guest)}: gone before its turn")
            self._waiting.pop(fd).link.close()

    def _close(self, fd: int, why: str) -> None:
        """Send a stranger away; said each time at first, then ever more rarely, since somebody may knock for hours."""
        guest = self._strangers.pop(fd)
        guest.link.close()
        if why:
            self._refused += 1
            if self._refused & (self._refused - 1) == 0:
                self._say(f"refused {guest.peer}: {why}" + (f"; {self._refused} so far" if self._refused > 1 else ""))

    def _drop_late(self) -> None:
        now_s = time.monotonic()
        while self._strangers:
            fd, guest = next(iter(self._strangers.items()))
            if guest.until > now_s:
                return
            self._close(fd, "it did not ask in time")

    # ---- launches ----

    def _start_waiting(self) -> None:
        """Begin what may begin. Not while something is being ended: its nodes are not free yet, and its task has ended."""
        now_s = time.monotonic()
        if any(until > now_s for until in self._ending.values()):
            return
        while self._waiting and len(self._launches) < self._options.most:
            fd = next(iter(self._waiting))
            guest = self._waiting[fd]
            try:
                pid = self._fork(guest)
            except OSError as error:
                if self._launches:
                    return  # it has another try when one of them ends
                self._say(f"refused {guest.peer}: {error.strerror}")
                send_refusal(guest.link, f"the launch helper cannot fork: {error.strerror}", NOT_STARTED)
            else:
                self._launches[pid] = _Launch(_about(guest), time.monotonic())
                self._log(f"{_about(guest)}: begins")
            self._waiting.pop(fd).link.close()

    def _fork(self, guest: _Guest) -> int:
        me = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, (END,))  # until the keeper can hear it
        try:
            pid = os.fork()
            if pid:
                return pid
            try:
                signal.set_wakeup_fd(-1)
                end_with_parent(me, signal.SIGKILL)
                _close_all_but({0, 1, 2, guest.link.fileno(), self._tell_ending})
                resource.setrlimit(resource.RLIMIT_NOFILE, self._files)  # what we start must not inherit ours
                assert guest.request is not None
                keep(guest.link, guest.request, {TAG: self._reaper.tag}, self._options.grace_s, self._tell_ending)
            finally:
                os._exit(os.EX_SOFTWARE)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (END,))

    def _reap(self) -> None:
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                launch = self._launches.pop(pid, None)
                self._ending.pop(pid, None)
                if launch is None:
                    continue
                code = os.waitstatus_to_exitcode(status)
                self._log(f"{launch.what}: over after {time.monotonic() - launch.began_s:.1f} s")
                if code:
                    self._say(f"{launch.what}: its keeper has died ({code}); what it left is killed")
        except ChildProcessError:
            pass
        # a keeper leaves nothing, unless it was killed: then its children are ours
        families.kill_family(families.children(os.getpid()) - self._launches.keys())

    def _end_all(self) -> None:
        """Send those away that wait, let the keepers end theirs, and kill what is left."""
        self._listener.close()
        for guest in self._waiting.values():
            send_refusal(guest.link, "the job script ends, and the launch helper with it", NOT_STARTED)
        for guest in (*self._waiting.values(), *self._strangers.values()):
            guest.link.close()
        families.send(self._launches, END)
        until = time.monotonic() + self._options.grace_s + _END_S
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while self._launches and (left_s := until - time.monotonic()) > 0:
            if poll.poll(left_s * 1e3):
                os.read(self._wake, 4096)
            self._reap()
        families.kill_family(families.children(os.getpid()))

    # ---- what is said ----

    def _log(self, text: str) -> None:
        if self._options.verbose:
            self._say(text)

    def _say(self, text: str) -> None:
        try:
            print(f"exex launch-helper: {text}", file=sys.stderr, flush=True)
        except OSError:
            pass


def _close_all_but(kept: set[int]) -> None:
    """The other connections, above all: these end when the last copy is closed."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                pass  # that of the list itself


def _nothing(number: int, frame: object) -> None:
    pass


def _about(guest: _Guest) -> str:
    assert guest.request is not None
    variables, words = guest.request.variables, shlex.join(guest.request.words)
    task = f"task {variables['EXEX_TASK_ID']}, " if "EXEX_TASK_ID" in variables else ""
    return f"{words if len(words) <= 100 else words[:100] + ' ...'} ({task}{guest.peer})"


def serve(options: Options) -> None:
    """Be the launch helper of this process's parent.

    Raises:
        StartError: it cannot listen, or cannot write its file.
    """
    parent = os.getppid()
    signal.signal(END, signal.SIG_DFL)
    end_with_parent(parent, END)
    reaper = Reaper()
    try:
        Helper(options, reaper).run()
    finally:
        reaper.dismiss()
