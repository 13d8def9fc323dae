"""The worker rank's side of its template and task processes, and what the two sides say to each other.

Rank and template talk over a socket of packets, one struct of this module each. A task process gets its calls over a
stream, and may start one only if it can take a *token* for it, from a semaphore that it shares with the rank:

1. `TaskProcess.give` adds k tokens, then sends the Assign with its k calls. So a call that has arrived has its token.
2. The task process takes one token right before each task.
3. `TaskProcess.take_back` takes all tokens that are left: so many calls, the last ones given, will not be started.
4. A task process that finds no token knows that the rank has taken it, and that of all later calls of that Assign: it
   reports what it holds, forgets these calls, and says how many they were (a `dropped` frame).
5. Until all that was taken back has been dropped, no token may be added: a call that was taken back, but not dropped
   yet, would take it and run twice. What is given meanwhile waits here, and can be taken back from here.
6. When a task process has died, the tokens that are left count the calls that it never started. The last one that it
   did start is the one that it died of, unless it has reported that one.

A message of a task process is a Done, or a frame of a zero byte (which begins no MessagePack array) and a count.

What a task says as a client of the manager has a stream of its own: each message begins with the number of the task. By a third
one, of packets, it says that it waits (`Waits`), and later that it would go on (`GO_ON`), and is told when (`GoOn`).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias, Union

import msgspec
from msgspec import Struct

from exex.protocol.context import NOTHING_SET, OfTasks
from exex.transport.stream import StreamLink
from exex.worker.task_streams import TaskProcess

MESSAGE_BYTES = 65536
"""No packet between rank and template is larger."""


# ---- rank -> template -----------------------------------------------------------------------------------------


class Prepare(Struct, frozen=True, tag=True):
    """Rank -> template: first message; what task processes need to know."""

    script_dir: str
    cwd: str
    run_dir: str
    preload: list[str]  # modules to import before any fork
    rank: int
    node: str
    script: str  # as the user named it: what tasks find as sys.argv[0]
    gpu_variable: str = ""  # that masks accelerators
    marks: bool = False  # what tasks print is to be marked as theirs
    store: str = ""  # directory of the store of this node; "": none
    keep_bytes: int = 0  # values of at least so many bytes go there; 0: none
    store_bytes: int = 0  # the largest that goes into memory
    of_tasks: OfTasks = NOTHING_SET  # for tasks that make tasks


class Fork(Struct, frozen=True, tag=True):
    """Rank -> template: start a task process. Comes with the descriptors of `Descriptors`, in this order."""

    slot: int  # its number, as in all messages: that of its slot, or a higher one where the slot has another process as well
    cores: list[int] = []  # CPU numbers to which it is bound; empty: as the template is


class Kill(Struct, frozen=True, tag=True):
    """Rank -> template: send a signal to a slot's task process and all that it has started."""

    slot: int
    pid: int  # 0: whichever it is
    signal: int


class Nest(Struct, frozen=True, tag=True):
    """Rank -> template: tasks make tasks. Import what that takes, so that not every task process does it."""


class Measure(Struct, frozen=True, tag=True):
    """Rank -> template: how much memory do a slot's task process and all that it has started use? `Measured` answers."""

    slot: int
    pid: int  # 0: whichever it is
    limit_bytes: int  # what matters is whether it is more than this


class End(Struct, frozen=True, tag=True):
    """Rank -> template: SIGKILL everything and end."""


# ---- template -> rank -----------------------------------------------------------------------------------------


class Ready(Struct, frozen=True, tag=True):
    """Template -> rank: answer to Prepare; task processes can be forked."""

    pid: int


class Failed(Struct, frozen=True, tag=True):
    """Template -> rank: answer to Prepare; they cannot."""

    error: str


class Forked(Struct, frozen=True, tag=True):
    """Template -> rank: a task process has been started."""

    slot: int
    pid: int  # of its keeper, here and in the other messages


class Died(Struct, frozen=True, tag=True):
    """Template -> rank: a task process has ended, and all that it had started with it; or it could not be forked."""

    slot: int
    pid: int  # 0 if it could not be forked
    status: int  # exit code, or minus the signal's number
    error: str = ""  # why it could not be forked
    blameless: bool = False  # no task of this slot did it: the template has ended


class Measured(Struct, frozen=True, tag=True):
    """Template -> rank: answer to Measure; none comes if the task process has ended."""

    slot: int
    pid: int
    used_bytes: int  # exact if it is more than the limit, else an upper bound
    seconds: float  # that it took to measure


ToTemplate: TypeAlias = Union[Prepare, Fork, Kill, Measure, Nest, End]
Event: TypeAlias = Union[Ready, Failed, Forked, Died, Measured]

encode = msgspec.msgpack.Encoder().encode
decode_for_template = msgspec.msgpack.Decoder(ToTemplate).decode
_decode_event = msgspec.msgpack.Decoder(Event).decode


class Template:
    """The template, as the rank has it. Never blocks for long: a template answers at once, but while it imports.

    Attributes:
        gone: it has ended; so have all of its task processes, and `events` has told so.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.gone = False
        self._socket = sock
        self._arrived: deque[Event] = deque()
        self._processes: dict[int, TaskProcess] = {}
        self._nests = False

    def fileno(self) -> int:
        """Readable when `events` has something to return; -1 once closed."""
        return self._socket.fileno()

    def begin(  # noqa: PLR0917
        self,
        script_dir: str,
        cwd: str,
        run_dir: str,
        preload: Sequence[str],
        rank: int,
        node: str,
        script: str = "",
        gpu_variable: str = "",
        marks: bool = False,
        store: tuple[str, int, int] = ("", 0, 0),
        of_tasks: OfTasks = NOTHING_SET,
    ) -> None:
        """Prepare the template; `Ready` or `Failed` answers. To be called once, before anything else.

        Args:
            store: the three fields of `Prepare` about it, as are the others.
        """
        about = (script_dir, cwd, run_dir, list(preload), rank, node, script, gpu_variable, marks)
        self._send(Prepare(*about, *store, of_tasks))

    def fork(self, slot: int, cores: Sequence[int] = ()) -> TaskProcess:
        """Start a task process, which can be given calls at once. `Forked` follows, and `Died` in the end.

        Raises:
            ValueError: the slot's last task process has not been reported dead.
            OSError: no descriptors left.
        """
        if slot in self._processes:
            raise ValueError(f"slot {slot} has a task process")
        pairs = [socket.socketpair(), socket.socketpair(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
        (ours, theirs), (client, client_theirs), (seat, seat_theirs) = pairs
        opened: list[int] = []
        try:
            opened.append(os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            opened.extend(os.pipe2(os.O_CLOEXEC))
            opened.extend(os.pipe2(os.O_CLOEXEC))
            tokens, out, out_theirs, err, err_theirs = opened
            fds = [theirs.fileno(), tokens, out_theirs, err_theirs, client_theirs.fileno(), seat_theirs.fileno()]
            self._send(Fork(slot, list(cores)), fds)
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            for fd in opened:
                os.close(fd)
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        os.close(out_theirs)
        os.close(err_theirs)
        os.set_blocking(out, False)
        os.set_blocking(err, False)
        seat.setblocking(False)
        process = TaskProcess(slot, StreamLink(ours), StreamLink(client), seat, tokens, out, err)
        self._processes[slot] = process
        if self.gone:
            self._forget_all()
        return process

    def kill(self, process: TaskProcess, number: int) -> None:
        """Send signal `number` to a task process and to all that it has started; nothing if it has died."""
        if self._processes.get(process.slot) is process:
            self._send(Kill(process.slot, process.pid or 0, number))

    def measure(self, process: TaskProcess, limit_bytes: int) -> None:
        """Ask for the memory of a task process and all that it has started; `Measured` follows unless it has died."""
        if self._processes.get(process.slot) is process:
            self._send(Measure(process.slot, process.pid or 0, limit_bytes))

    def nest(self) -> None:
        """Tasks make tasks: later task processes are to have what that takes. Nothing after the first time."""
        if not self._nests:
            self._nests = True
            self._send(Nest())

    def events(self) -> list[Event]:
        """What has happened since the last call. Never blocks."""
        self._receive()
        events = list(self._arrived)
        self._arrived.clear()
        for event in events:
            if isinstance(event, Forked) and event.slot in self._processes:
                self._processes[event.slot].pid = event.pid
            elif isinstance(event, Died):
                self._processes.pop(event.slot, None)
        return events

    def end(self, most_s: float = 6.0) -> bool:
        """SIGKILL every task process and all that they have started, and wait until they are gone.

        Returns:
            False if the template has not confirmed it in time.
        """
        self._send(End())
        until_s = time.monotonic() + most_s
        while not self.gone and (left_s := until_s - time.monotonic()) > 0:
            self._await(left_s)
        return self.gone

    def close(self) -> None:
        """Release the socket; a template that has not ended does so."""
        self._socket.close()

    def _send(self, message: ToTemplate, fds: Sequence[int] = ()) -> None:
        """Send a packet. If the template has too many waiting, take what it says meanwhile, so that it goes on."""
        data = encode(message)
        while not self.gone:
            try:
                socket.send_fds(self._socket, [data], fds)
                return
            except ConnectionError:
                self._receive()
                self._forget_all()
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ETOOMANYREFS):
                    raise
                self._await(0.01)

    def _await(self, most_s: float) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if poll.poll(most_s * 1e3):
            self._receive()

    def _receive(self) -> None:
        while not self.gone:
            try:
                data = self._socket.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return
            except ConnectionError:  # said once, if it has left something unread; its last words come after that, then the end
                continue
            if not data:
                self._forget_all()
                return
            self._arrived.append(_decode_event(data))

    def _forget_all(self) -> None:
        """The template has ended, and the kernel kills its task processes: report those that it has not reported."""
        self.gone = True
        told = {event.slot for event in self._arrived if isinstance(event, Died)}
        for slot, process in self._processes.items():
            if slot not in told:
                self._arrived.append(Died(slot, process.pid or 0, -9, "its template has ended", blameless=True))
