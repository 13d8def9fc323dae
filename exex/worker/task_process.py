"""A task process: runs the calls that its rank gives it, one after the other. Forked from the template, one per slot.

Its rank may at any time take back the calls that it has not started: see the tokens in `processes`.
"""

from __future__ import annotations

import ctypes
import faulthandler
import math
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import repeat
from time import perf_counter
from typing import Any, NamedTuple, TextIO

from exex.errors import ProtocolError
from exex.launch.notices import NOTICES, pass_over
from exex.protocol import codec
from exex.protocol import context as protocol_context
from exex.protocol.context import NOTHING_SET, OfTasks
from exex.protocol.messages import AppSpec, Assign, Done
from exex.protocol.payload import Large, Payload
from exex.protocol.task_numbers import shown
from exex.transport.base import GONE
from exex.transport.stream import BlockingStream
from exex.worker import condition, context, granted, marks
from exex.worker.context import STOP_SIGNAL, Place, TaskContext
from exex.worker.execute import execute, flush_output, open_function
from exex.worker.inside import Inside
from exex.worker.peak import LEAST_S, peak
from exex.worker.stored import Run, StoredValues
from exex.worker.task_streams import dropped

FAST_S = 1e-3
"""An app whose calls have been shorter than this may run while results of earlier calls are held back."""

HOLD_S = 1e-3
"""How long results are held back while calls are fast."""

SUSPICIOUS_S = 5e-5
"""After a call this long, or one that failed, the condition of the process is looked at before the next call; after a shorter
one only if it is the first of its app here, or one of its app has been found to change something; and after each Assign."""

_PR_SET_PDEATHSIG = 1
_FORGET = 0.9


class Descriptors(NamedTuple):
    """What the rank sends along with Fork."""

    stream: int
    tokens: int
    stdout: int
    stderr: int
    client: int
    seat: int


class App:
    """An app that this process knows.

    Attributes:
        function: None until it is first called: unpickling runs code, so it belongs to a task.
        slowest_s: maximum of the running times so far, slowly forgotten; infinite before the first.
        suspect: its calls change the condition of the process, as far as is known.
    """

    __slots__ = ("function", "slowest_s", "spec", "suspect")

    def __init__(self, spec: AppSpec) -> None:
        self.spec = spec
        self.function: Callable[..., Any] | None = None
        self.slowest_s = math.inf
        self.suspect = True


class TaskLoop:
    """Takes Assigns, runs their calls, sends Dones.

    Results are held back while that is cheap: up to the end of an Assign, but no longer than `HOLD_S`, and never while a
    call runs that may be slow.
    """

    def __init__(  # noqa: PLR0917
        self,
        stream: BlockingStream,
        tokens: int,
        place: Place,
        home: condition.Condition,
        stored: StoredValues | None = None,
        inside: Inside | None = None,
    ) -> None:
        self._inside = inside
        if inside is not None:
            inside.before_waiting = self._send
        self._stream = stream
        self._home = home
        self._tokens = tokens
        self._place = place
        self._stored = stored or StoredValues("", 0, 0)
        self._decoder = codec.to_worker()
        self._encoder = codec.Encoder()
        self._apps: dict[int, App] = {}
        self._pickled: dict[bytes, Payload] = {}
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self._batch: Assign | None = None
        self._sent_s = 0.0  # when results were last sent; or minus infinity: they must be sent before the next call
        self._clear()

    def run(self) -> None:
        """Run what arrives until the stream ends, or until this process is not fit for another task."""
        while (frames := self._stream.receive()) is not GONE:
            message = self._decoder.decode(frames)
            if type(message) is not Assign:
                raise ProtocolError(f"a task process got a {type(message).__name__}")
            self._pickled.update(message.functions)
            for spec in message.apps:
                self._apps[spec.app] = App(spec)
            if not self._run_batch(message):
                return  # the rank takes back what was not started

    def _run_batch(self, batch: Assign) -> bool:
        """Run the calls of an Assign; False if this process must not run another."""
        self._batch = batch
        tasks, payloads, values, attempts = batch.tasks, batch.payloads, batch.values, batch.attempts
        apps, tokens, place = self._apps, self._tokens, self._place
        numbers = batch.calls if len(batch.calls) == len(tasks) else repeat(batch.calls[0], len(tasks))
        run: Run = granted.execute_with(batch.grants[0]) if batch.grants else execute  # it is the only call then
        if self._decoder.stored:
            run = self._stored.opening(run)
        ended_s = perf_counter()
        look_after: App | None = None
        for i, number in enumerate(numbers):
            app = apps[number]
            if look_after is not None and not self._look(look_after):
                self._send()
                return False
            if self._tasks and (app.slowest_s >= FAST_S or ended_s - self._sent_s > HOLD_S):
                self._send()
            try:
                os.eventfd_read(tokens)
            except BlockingIOError:  # the rank has taken back this call, and so all after it
                self._send()
                self._stream.send(dropped(len(tasks) - i))
                return True
            function = app.function or (self._pickled[app.spec.function] if app.spec.ranks else self._open(app))
            outcome, result, seconds = run(
                app.spec, function, payloads[i], values.get(i), tasks[i], attempts.get(i, 1), place
            )
            if protocol_context.at_end is not None:
                seconds = self._end_as_client(protocol_context.at_end, seconds)
            ended_s = perf_counter()
            look_after = app if seconds > SUSPICIOUS_S or app.suspect or outcome else None
            payloads[i] = b""  # large arguments are freed now, not at the end of the batch
            slowest_s = app.slowest_s * _FORGET
            app.slowest_s = seconds if seconds > slowest_s or slowest_s == math.inf else slowest_s
            if type(result) is Large:
                result = self._stored.kept(app.spec, outcome, result, tasks[i], attempts.get(i, 1))
                if type(result) is Large:  # over memory that the next call may write to
                    self._sent_s = -math.inf
            if seconds >= LEAST_S:
                self._peaks[len(self._tasks)] = peak.look()
            self._tasks.append(tasks[i])
            self._outcomes.append(outcome)
            self._payloads.append(result)
            self._seconds.append(seconds)
        if not marks.are_on():
            flush_output()
        self._send()
        return self._look(app)

    def _end_as_client(self, at_end: Callable[[], None], seconds: float) -> float:
        """See to the tasks that the last call has made. Returns its running time less what it has waited for them."""
        at_end()
        if self._inside is not None:
            self._inside.end()
            seconds, self._inside.waited_s = max(0.0, seconds - self._inside.waited_s), 0.0
        return seconds

    def _look(self, app: App) -> bool:
        """See what the last call has changed about this process, and undo it; False if that cannot be done."""
        found = self._home.restore()
        app.suspect = found != condition.FIT
        return found != condition.UNFIT

    def _open(self, app: App) -> Callable[..., Any]:
        """Unpickle an app's function, once for all apps that share it."""
        digest = app.spec.function
        function = self._functions.get(digest)
        if function is None:
            function = self._functions[digest] = open_function(self._pickled.pop(digest))
        app.function = function
        return function

    def _clear(self) -> None:
        self._tasks: list[int] = []
        self._outcomes = bytearray()
        self._payloads: list[Payload] = []
        self._seconds: list[float] = []
        self._peaks: dict[int, int] = {}
        self._sent_s = perf_counter()

    def _send(self) -> None:
        """Send the results that are held back."""
        if not self._tasks:
            return
        if marks.are_on():
            self._flush_marked()
        done = Done(
            tasks=self._tasks,
            outcomes=bytes(self._outcomes),
            payloads=self._payloads,
            seconds=self._seconds,
            started=[],
            peaks=self._peaks,
        )
        self._stream.send(self._encoder.encode(done))
        self._clear()


    def _flush_marked(self) -> None:
        """Write what C code has buffered, as the last task's, before that is over for the rank."""
        if marks.has_c_pending() and self._batch is not None:
            task = self._tasks[-1]
            attempt = self._batch.attempts.get(self._batch.tasks.index(task), 1)
            marks.announce(TaskContext(shown(task), attempt, "", self._place.rank, self._place.node))
        flush_output()


def die_with_parent(parent: int) -> None:
    """Let the kernel SIGKILL this process when its parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def run_task_process(  # noqa: PLR0917
    fds: Descriptors,
    place: Place,
    run_dir: str,
    cores: Sequence[int] = (),
    has_marks: bool = False,
    stored: StoredValues | None = None,
    of_tasks: OfTasks = NOTHING_SET,
) -> None:
    """Be a task process until the rank closes the stream. Does not return.

    Args:
        cores: CPU numbers to which it is bound; empty for wherever it is.
        has_marks: what tasks print is marked as theirs.
        stored: what becomes of large values; None: they travel.
        of_tasks: for tasks that make tasks.
    """
    status = os.EX_SOFTWARE
    try:
        os.setsid()
        _shield()
        _take_over_output(fds, marks.marked if has_marks else _line_buffered)
        _reseed()
        context.run_dir = run_dir
        granted.bind(cores)
        stream = BlockingStream(socket.socket(fileno=condition.out_of_reach(fds.stream)))
        tokens, client, seat = map(condition.out_of_reach, (fds.tokens, fds.client, fds.seat))
        home = condition.Condition()
        protocol_context.way = inside = Inside(client, seat, home, of_tasks)
        TaskLoop(stream, tokens, place, home, stored, inside).run()
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        status = 0  # the rank is gone, and nobody waits for results
    except context.TaskStopped:
        status = 128 + signal.SIGTERM
    except BaseException:
        traceback.print_exc()
    finally:
        flush_output()
        os._exit(status)


def _shield() -> None:
    """Survive the signals by which batch systems and terminals announce the end: the rank decides."""
    pass_over((signal.SIGINT, *NOTICES))
    signal.signal(STOP_SIGNAL, context.stop.on_signal)
    os.register_at_fork(before=_hold_stop, after_in_parent=_let_stop, after_in_child=_unshield)


def _hold_stop() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, (STOP_SIGNAL,))


def _let_stop() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (STOP_SIGNAL,))


def _unshield() -> None:
    """In a child that a task forks."""
    signal.signal(STOP_SIGNAL, signal.SIG_DFL)
    _let_stop()


def _take_over_output(fds: Descriptors, make_stream: Callable[[int], TextIO]) -> None:
    for fd, target in ((fds.stdout, 1), (fds.stderr, 2)):
        os.dup2(fd, target)
        os.close(fd)
    sys.stdout, sys.stderr = make_stream(1), make_stream(2)
    faulthandler.enable(sys.stderr)


def _line_buffered(fd: int) -> TextIO:
    return open(fd, "w", buffering=1, errors="backslashreplace", closefd=False)


def _reseed() -> None:
    """Give numpy's global generator a seed of its own; Python's is reseeded in every fork, numpy's is not."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()
