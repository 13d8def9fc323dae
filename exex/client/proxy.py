"""The client's only talk with the manager: a thread that owns the link, and what the script's threads leave for it.

THE ORDER RULE. The manager keeps the value of a finished task until the client has applied the Answer that carries it
(`Submit.answered`, `Applied`). The proxy thread both applies answers and sends calls. So when it sends a call, each need
is either unfinished as far as the client knows, and then the manager still knows it, or it is finished, and then its
value goes with the call or its failure fails the call here.
"""

from __future__ import annotations

import itertools
import os
import select
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED
from typing import Any

from exex.client.futures import AppFuture
from exex.client.inbox import Inbox, Lost
from exex.client.lazy import finish_all
from exex.client.outbox import Outbox, take_values
from exex.client.outcomes import Call, Failed
from exex.client.pressure import Pressure
from exex.client.promises import dump_call
from exex.errors import ManagerLost, NoManagerError, ProtocolError, StartError
from exex.protocol import codec
from exex.protocol.messages import Answer, Applied, Attach, Finish, JobEnds, Outcome, Submit, TaskId, Verdict, Welcome
from exex.protocol.payload import Large, Payload
from exex.transport.base import GONE, Link
from exex.version import __version__

_IDLE_MS = 1000
_APPLIED_AFTER_MS = 2
_APPLIED_AFTER_TASKS = 256
_PAUSE_S = 0.0001  # while the link cannot send
_STOP_TIMEOUT_S = 30.0
_BELL = (1).to_bytes(8, sys.byteorder)


class Proxy:
    """One client of one manager.

    Attributes:
        open: calls are accepted.
        asleep: the thread must be woken when there is something to send.
        welcome: what the manager said to our Attach.
        unfinished: futures that the manager was told of and has not answered, by task number.
    """

    def __init__(self, link: Link, most_tasks: int, most_bytes: int, ask: Callable[[AppFuture, Payload], None]) -> None:
        self.open = False
        self.asleep = False
        self.welcome: Welcome
        self.outbox = Outbox()
        self.inbox = Inbox(self.outbox, ask)
        self.pressure = Pressure(most_tasks, most_bytes, self._count_unfinished)
        self.unfinished = self.outbox.unfinished
        self.seen = self.inbox.seen
        self.note_failure = self.inbox.note_failure
        self._calls = self.outbox.calls
        self._tids = _numbers()
        self._link = link
        self._encoder = codec.Encoder()
        self._decoder = codec.to_client()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._bell)  # not before: a late `wake` must not write into another file
        self._thread = threading.Thread(target=self._run, name="exex-proxy", daemon=True)
        self._thread_id = 0
        self._closed_because = "the job has not begun"
        self._finish: Finish | None = None
        self._told = 0
        self._owed_tasks = 0

    # ---- any thread --------------------------------------------------------------------------------------

    def submit(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AppFuture:
        """Make a task without options of its own. This is the fast path: everything else is done by `_run`'s thread.

        Raises:
            SerializationError: an argument cannot be pickled.
        """
        payload, needs = dump_call(args, kwargs, None)
        if type(payload) is Large:
            payload = self._admit(payload)
        tid = next(self._tids)
        future = AppFuture(call, tid, payload, take_values(needs) if needs else None)
        self._calls.append(future)
        if self.asleep:
            self.wake()
        if tid >= self.pressure.limit:
            self._hold_back(future)
        return future

    def new_future(self, call: Call, payload: Payload, needs: Sequence[Any], tid: TaskId | None = None) -> AppFuture:
        """A future that is not submitted yet: `send` it.

        Args:
            tid: a number from `reserve`.
        """
        if type(payload) is Large:
            payload = self._admit(payload)
        return AppFuture(call, next(self._tids) if tid is None else tid, payload, take_values(needs) if needs else None)

    def reserve(self) -> TaskId:
        """A number for a task that needs it before its payload is made. Numbers may stay unused."""
        return next(self._tids)

    def send(self, future: AppFuture) -> None:
        """Submit the task, or announce the promise."""
        self._calls.append(future)
        if self.asleep:
            self.wake()
        if future._tid >= self.pressure.limit:
            self._hold_back(future)

    def cancelled(self, future: Any) -> None:
        """The user has cancelled `future`."""
        self.outbox.cancel(future)
        self.wake()

    def fulfil(self, future: AppFuture, outcome: Outcome, payload: Payload) -> None:
        """The promised `future` has been settled."""
        self.outbox.fulfil(future, outcome, payload)
        self.wake()

    def decide(self, future: AppFuture, verdict: Verdict) -> None:
        """The retry handler has decided; if it gives up, the future fails at once."""
        size_bytes = future._raw
        if not verdict.retry:
            self.note_failure(future, verdict.payload)
            if not future._settle(FINISHED, Failed(verdict.payload)):
                self.seen(future)  # it was cancelled
        self.outbox.decide(verdict, size_bytes)
        self.wake()

    def before_waiting(self, future: Any) -> None:
        """See `Outlet.before_waiting`.

        Raises:
            RuntimeError: in the proxy's own thread, which would have to end the wait.
            NoManagerError: in a process forked from the client.
        """
        if threading.get_ident() == self._thread_id:
            raise RuntimeError(
                f"a done-callback waits for {future._title()}: callbacks run in the thread that receives results, "
                "so it would wait for ever; start a task that needs it, or wait in a thread of your own"
            )
        if self._thread_id < 0:
            raise NoManagerError(f"{future._title()} belongs to the process from which this one was forked; wait for it there")

    def wake(self) -> None:
        """Let the thread look at what there is to send."""
        self.asleep = False
        os.eventfd_write(self._bell, 1)

    def check_open(self, what: str) -> None:
        """Raise unless calls are accepted.

        Raises:
            NoManagerError: the script has ended, or this is a forked process.
            ManagerLost: the manager has.
        """
        if not self.open:
            error = ManagerLost if self._finish is None and self._thread_id >= 0 else NoManagerError
            raise error(f"{what} was called, but {self._closed_because}")

    def _admit(self, payload: Large) -> Large:
        """Count a large payload, and copy what the script could change before it is sent."""
        first, *rest = payload.frames
        kept = Large([first, *(frame if memoryview(frame).readonly else bytes(frame) for frame in rest)])
        self.outbox.count_large(len(kept))
        self.pressure.look_at_bytes()
        return kept

    def _count_unfinished(self) -> tuple[int, int]:
        """Tasks without an answer, and the bytes of their payloads."""
        outbox = self.outbox
        return len(outbox), outbox.unfinished_bytes + outbox.unsent_large_bytes

    def _hold_back(self, future: AppFuture) -> None:
        if not self.open:
            future._settle(FINISHED, Lost(self._closed_because))
            return
        self.pressure.hold_back(lambda: any(future._promised for future in list(self.unfinished.values())))

    # ---- beginning and end -------------------------------------------------------------------------------

    def attach(self, title: str, timeout_s: float) -> Welcome:
        """Shake hands with the manager, then start the thread.

        Raises:
            StartError: no answer within `timeout_s`, or a manager that cannot be used.
        """
        give_up_s = time.monotonic() + timeout_s
        try:
            self._link.send(0, self._encoder.encode(Attach(version=__version__, pid=os.getpid(), title=title)))
        except ConnectionError as error:
            raise StartError(f"there is no manager at the other end ({error}); see what rank 0 printed") from error
        while (received := self._link.receive()) is None:
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                raise StartError(f"the manager did not answer within {timeout_s:g} s; see what rank 0 printed")
            unsent = self._link.progress() or self._link.fileno() < 0
            select.select([] if self._link.fileno() < 0 else [self._link], [], [], 0.001 if unsent else min(left_s, 1.0))
        if received[1] is GONE:
            raise StartError("the manager ended before it had answered; see what rank 0 printed")
        message = self._decoder.decode(received[1])
        if isinstance(message, JobEnds):
            raise StartError(f"the manager takes no client: {message.reason}")
        if not isinstance(message, Welcome):
            raise StartError(f"the manager answered with {type(message).__name__} instead of Welcome")
        if message.version != __version__:
            raise StartError(f"the manager runs exex {message.version}, this client runs {__version__}: install the same one")
        self.welcome = message
        self.open = True
        self._thread.start()
        return message

    def stop(self, cancel: bool) -> None:
        """Send everything, say Finish, and end the thread. Nothing is accepted any more.

        Args:
            cancel: also cancel all tasks that are not done.
        """
        self._closed_because = "the script has ended"
        self.open = False
        self.pressure.close()
        if cancel:
            for future in self.outbox.open_futures():
                future._settle(CANCELLED_AND_NOTIFIED, None)
        self._finish = Finish(cancel=cancel)
        self.wake()
        self._thread.join(_STOP_TIMEOUT_S)

    def forked(self) -> None:
        """This is a forked child: there is no thread here, and the link is the parent's."""
        self.open = False
        self._thread_id = -1
        self._closed_because = "this process was forked from the client, and only the client itself can start tasks"
        self.pressure.limit = 0

    # ---- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._thread_id = threading.get_ident()
        self.pressure.exempt()
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if self._link.fileno() >= 0:
            poll.register(self._link.fileno(), select.POLLIN)
        try:
            while self._finish is None or not self.outbox.is_empty():
                if not self._say() | self._hear():
                    self._sleep(poll)
            self._leave()
        except ConnectionError as error:
            self._lose(f"the link to the manager broke ({error})")
        except _LinkError as error:
            self._lose(str(error))
        except ProtocolError as error:
            self._lose(f"the manager and this client do not understand each other: {error}")
        except BaseException as error:
            self._lose(f"the client's proxy thread failed ({type(error).__name__}: {error})")
            raise
        finally:
            self._link.close()

    def _hear(self) -> bool:
        """Apply what has arrived. Returns whether something had."""
        heard = False
        for _ in range(100):
            received = self._link.receive()
            if received is None:
                break
            heard = True
            if received[1] is GONE:
                raise _LinkError("the manager has ended")
            message = self._decoder.decode(received[1])
            if isinstance(message, Answer):
                self.inbox.apply(message)
                self._owed_tasks += len(message.tasks) if len(received[1]) == 1 else _APPLIED_AFTER_TASKS
            elif isinstance(message, JobEnds):
                raise _LinkError(message.reason or "the job ends")
        return heard

    def _say(self) -> bool:
        """Send what there is to send. Returns whether there was something."""
        outbox, inbox = self.outbox, self.inbox
        messages = [] if outbox.is_empty() else outbox.take(inbox.answered)
        for message in messages:
            self._link.send(0, self._encoder.encode(message))
            if type(message) is Submit:
                self._told = inbox.answered
                self._owed_tasks = 0
        if self._owed_tasks >= _APPLIED_AFTER_TASKS:
            self._acknowledge()
        self.pressure.update(outbox.taken - len(outbox.unfinished))
        return bool(messages)

    def _acknowledge(self) -> None:
        self._link.send(0, self._encoder.encode(Applied(answered=self.inbox.answered)))
        self._told = self.inbox.answered
        self._owed_tasks = 0

    def _sleep(self, poll: select.poll) -> None:
        """Wait for something to hear or to say."""
        if self._link.progress():
            if not poll.poll(0):
                time.sleep(_PAUSE_S)
            return
        owed = self._told < self.inbox.answered
        timeout_ms = _APPLIED_AFTER_MS if owed else _IDLE_MS
        if self._link.fileno() < 0:
            timeout_ms = 1
        self.asleep = True
        if self.outbox.is_empty() and self._finish is None:  # whoever adds to it from here on rings the bell
            events = poll.poll(timeout_ms)
            if not events and owed:
                self._acknowledge()
            if any(fd == self._bell for fd, _ in events):
                os.eventfd_read(self._bell)
        self.asleep = False

    def _leave(self) -> None:
        """Say Finish, and stay until it has left."""
        assert self._finish is not None
        self._link.send(0, self._encoder.encode(self._finish))
        give_up_s = time.monotonic() + _STOP_TIMEOUT_S
        while self._link.progress() and time.monotonic() < give_up_s:
            time.sleep(_PAUSE_S)

    def _lose(self, reason: str) -> None:
        """Nothing will be answered any more: fail every future."""
        self._closed_because = reason
        self.open = False
        self.pressure.close()
        futures = self.outbox.open_futures()
        finish_all(futures, itertools.repeat(Lost(reason)))


class _LinkError(Exception):
    """The manager is gone; the text says how that is known."""


def _numbers() -> Iterator[TaskId]:
    """0, 1, 2, ... to any number of threads, each number once."""
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        return itertools.count()
    return _LockedCount()


class _LockedCount:
    """`itertools.count` for free-threaded builds, where that is not safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = itertools.count()

    def __iter__(self) -> Iterator[TaskId]:
        return self

    def __next__(self) -> TaskId:
        with self._lock:
            return next(self._count)
