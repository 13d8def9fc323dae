"""The mechanics of a future that costs little until somebody needs it. Runs in the client; knows no manager.

Futures are made by the hundred thousand a second, and few of them are ever waited for: so there is no condition, no
list and no lock in a new one, and the outcome stays pickled until somebody asks for it.

Why this is linearisable: every change of `_state` happens under the module's one lock, and if the future has a
condition (made under the same lock, when `concurrent.futures.wait` or `as_completed` first touches it), also under
that condition, which is taken first. So whoever holds the condition, as the standard library does, sees a state that
does not move; and whoever leaves a callback, a waiter or a sleeping thread either sees the final state or is seen by
the thread that sets it. While the module's lock is held no other lock is taken and no foreign code runs. Reading takes
no lock: `_raw` is stored before `_state`, and `_value` before `_raw` is cleared, and readers go the other way round;
loads and stores of attributes are atomic and ordered under the interpreter lock and in free-threaded builds alike.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError, TimeoutError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import TYPE_CHECKING, Any, NoReturn

from exex.client.away import PATIENCE_S, away, waiters
from exex.client.outcomes import Call, Failed, NeedFailed, Raised
from exex.errors import DeserializationError, ManagerLost, WorkerLost
from exex.protocol import context
from exex.protocol import payload as payloads
from exex.protocol.payload import Buffer, Large, Payload, Stored
from exex.store.mapping import is_private

if TYPE_CHECKING:
    from exex.client.futures import DataFuture

OPEN = frozenset((PENDING, RUNNING))
"""States of a future without an outcome."""

_ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes))
_LOGGER = logging.getLogger("exex")
_lock = threading.Lock()
_keeps_originals = False


def keep_originals() -> None:
    """From now on an opened value keeps its payload, if that is small.

    A call of a cached app has the values of its needs in its key, as pickled where they were made. What is opened and
    pickled again may give other bytes for an equal value, and a recorded result would not be found.
    """
    global _keeps_originals  # noqa: PLW0603
    _keeps_originals = True


def renew_lock_after_fork() -> None:
    """In a forked child: another thread of the parent may have held the lock."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


class _Rare:
    """What few futures have."""

    __slots__ = ("callbacks", "condition", "original", "outputs", "running_in", "sleepers", "streams", "waiters")

    def __init__(self) -> None:
        self.condition: threading.Condition | None = None
        self.waiters = waiters()
        self.sleepers: list[Any] = []
        self.callbacks: list[Callable[[Any], Any]] = []
        self.outputs: list[DataFuture] = []
        self.streams: tuple[Any, Any] = (None, None)
        self.original: bytes | None = None
        self.running_in: tuple[set[int], ...] = ()  # who wants to know when the task runs


class LazyFuture(Future[Any]):
    """A `concurrent.futures.Future` whose value is unpickled when it is first asked for.

    `_raw` is the payload of the call until it is sent, then its size in bytes; with an outcome, the payload of the
    value, which may be stored somewhere, or a `Failed` until somebody asks; then None, and `_value` has what was in it.
    `_needs` holds the futures that the call needs until it is sent, then their task numbers. `_sent_s` and `_ended_s`, by
    the monotonic clock, are there from when the manager was told, and from the end; many futures share one float.
    """

    __slots__ = ("_call", "_ended_s", "_needs", "_rare", "_raw", "_sent_s", "_state", "_tid", "_value")

    _sent_s: float
    _ended_s: float

    _promised = False  # True for futures that the client itself fulfils
    _outcome_sent = True  # False while the manager has yet to be told what a promised one has become

    def __init__(self, call: Call, tid: int, raw: Payload, needs: Sequence[Any] | None = None) -> None:
        self._call = call
        self._tid = tid
        self._raw: Any = raw
        self._state: str = PENDING
        self._needs = needs
        self._rare: _Rare | None = None

    # ---- asking --------------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> Any:
        """The value of the task, waiting for it for `timeout` seconds at most.

        Raises:
            CancelledError: it was cancelled.
            TimeoutError: it is not done yet.
            Exception: what the task raised.
        """
        if self._state != FINISHED:
            self._await_outcome(timeout)
        if self._raw is not None:
            self._open()
        value = self._value
        if type(value) is not Raised:
            return value
        self._call.proxy.seen(self)
        try:
            raise value.error
        finally:
            del self, value  # or the error's traceback would refer to the error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error of the task, None if it has none; otherwise as `result`."""
        if self._state != FINISHED:
            self._await_outcome(timeout)
        error = self._exception
        if error is not None:
            self._call.proxy.seen(self)
        return error

    def done(self) -> bool:
        """Whether the task has ended, in whatever way."""
        return self._state not in OPEN

    def running(self) -> bool:
        """Whether the manager has seen the task run. It reports only tasks that run for a while."""
        return self._state == RUNNING

    def cancelled(self) -> bool:
        """Whether the task was cancelled."""
        return self._state == CANCELLED_AND_NOTIFIED

    def cancel(self) -> bool:
        """Cancel the task, even if it is running. False if it has ended before."""
        if self._settle(CANCELLED_AND_NOTIFIED, None):
            self._call.proxy.cancelled(self)
            return True
        return self.cancelled()

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn(self)` when the task has ended, as a rule in the proxy's thread; at once if it has."""
        if self._state in OPEN:
            rare = self._get_rare()
            with _lock:
                if self._state in OPEN:
                    rare.callbacks.append(fn)
                    return
        try:
            fn(self)
        except Exception:
            _LOGGER.exception("exception calling callback for %r", self)

    def _report_running_in(self, numbers: set[int]) -> None:
        """Add the task's number when the manager has seen the task run. Nobody takes it away at the end."""
        rare = self._get_rare()
        with _lock:
            rare.running_in += (numbers,)
            if self._state == RUNNING:
                numbers.add(self._tid)

    def _title(self) -> str:
        return f"task {self._call.proxy.prefix}{self._tid} ({self._call.name})"

    # ---- waiting -------------------------------------------------------------------------------------------

    def _wait(self, timeout: float | None = None) -> bool:
        """Wait for the end for `timeout` seconds at most. Returns whether it has come."""
        if self._state not in OPEN:
            return True
        proxy = self._call.proxy
        proxy.before_waiting(self)
        if context.way is None:
            return self._sleep(proxy, timeout)
        end_s = None if timeout is None else time.monotonic() + timeout
        if self._sleep(proxy, PATIENCE_S if timeout is None else min(timeout, PATIENCE_S)):
            return True
        if end_s is not None and end_s <= time.monotonic():
            return False
        with away():
            return self._sleep(proxy, None if end_s is None else max(0.0, end_s - time.monotonic()))

    def _sleep(self, proxy: Any, timeout: float | None) -> bool:
        if proxy.lead(self, timeout):
            return self._state not in OPEN
        sleeper = threading.Lock()
        sleeper.acquire()
        if self._add_sleeper(sleeper):
            if timeout is None:
                sleeper.acquire()
            elif not sleeper.acquire(timeout=min(max(timeout, 0), threading.TIMEOUT_MAX)):
                self._remove_sleeper(sleeper)
        return self._state not in OPEN

    def _add_sleeper(self, sleeper: Any) -> bool:
        """Have `sleeper.release()` called at the end. False if that has come already."""
        rare = self._get_rare()
        with _lock:
            if self._state not in OPEN:
                return False
            rare.sleepers.append(sleeper)
            return True

    def _remove_sleeper(self, sleeper: Any) -> None:
        rare = self._get_rare()
        with _lock:
            if self._state in OPEN:  # otherwise somebody goes through the list
                rare.sleepers.remove(sleeper)

    def _await_outcome(self, timeout: float | None) -> None:
        if not self._wait(timeout):
            raise TimeoutError()
        if self._state != FINISHED:
            raise CancelledError()

    # ---- outcomes ------------------------------------------------------------------------------------------

    def _settle(self, state: str, raw: Any) -> bool:
        """Give the future its final state, wake who waits, run the callbacks. False if it has one already."""
        if not self._move(state, raw):
            return False
        if self._rare is not None:
            self._wake()
            self._call_back()
        return True

    def _move(self, state: str, raw: Any) -> bool:
        with _lock:
            rare = self._rare
            condition = None if rare is None else rare.condition
            if condition is None:
                return self._move_locked(state, raw)
        with condition:
            with _lock:
                if not self._move_locked(state, raw):
                    return False
            for waiter in self._waiters:
                if state != FINISHED:
                    waiter.add_cancelled(self)
                elif isinstance(raw, Failed):
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            condition.notify_all()
        return True

    def _move_locked(self, state: str, raw: Any) -> bool:
        if self._state not in OPEN:
            return False
        if state == FINISHED:  # what is cancelled may still have to be sent
            self._raw = raw
        self._ended_s = time.monotonic()
        self._state = state
        return True

    def _wake(self) -> None:
        rare = self._rare
        if rare is not None:
            for sleeper in rare.sleepers:
                sleeper.release()

    def _call_back(self) -> None:
        rare = self._rare
        if rare is None:
            return
        for fn in rare.callbacks:
            try:
                fn(self)
            except Exception:
                _LOGGER.exception("exception calling callback for %r", self)
            except BaseException:  # sys.exit() in a callback must not end the proxy's thread
                if threading.current_thread() is threading.main_thread():
                    raise
                _LOGGER.exception("exception calling callback for %r", self)

    def _open(self) -> None:
        """Unpickle the outcome. Needs that failed are opened first, without recursion: chains of them are long."""
        todo = [self]
        while todo:
            raw = todo[-1]._raw
            if type(raw) is NeedFailed:
                closed = [cause for cause in raw.causes if cause._state == FINISHED and cause._raw is not None]
                if closed:
                    todo += closed
                    continue
            future = todo.pop()
            if raw is not None:
                future._open_one(raw)
                future._call.proxy.outbox.note_collected(future._tid)

    def _open_one(self, raw: Any) -> None:
        if isinstance(raw, Failed):
            value: Any = Raised(raw.error(self))
        else:
            value = self._load(raw, "result")
            if type(value) in _ATOMS:  # another thread may be doing the same: it makes no difference
                self._value = value
                self._raw = None
                return
            if _keeps_originals and type(raw) is bytes and type(value) is not Raised:
                self._get_rare().original = raw
        with _lock:
            if self._raw is raw:
                self._value = value
                self._raw = None

    def _load(self, payload: Payload, what: str) -> Any:
        """What is in the payload, or `Raised` if it cannot be unpickled here, or cannot be had any more."""
        if isinstance(payload, Stored):
            try:
                payload = self._call.proxy.bring(payload)
            except (ManagerLost, WorkerLost) as error:
                return Raised(error)
        try:
            return payloads.load(_own(payload))
        except Exception as error:
            text = f"the {what} of {self._title()} cannot be unpickled in the client: {type(error).__name__}: {error}"
            failure = DeserializationError(text)
            failure.__cause__ = error
            return Raised(failure)

    def _has_failed(self) -> bool:
        """Whether the task has ended with an error, as far as that can be told without unpickling its value."""
        if self._state != FINISHED:
            return False
        raw = self._raw
        return isinstance(raw, Failed) if raw is not None else type(self._value) is Raised

    def _failure(self) -> BaseException:
        """What dependents are told of a task that failed or was cancelled."""
        error = self._exception
        return CancelledError(f"{self._title()} was cancelled") if error is None else error

    def _payload(self) -> Payload:
        """The pickled value of a task that succeeded.

        Raises:
            SerializationError: the value was unpickled here and cannot be pickled again.
        """
        raw = self._raw
        if raw is None:
            payload = payloads.dump(self._value)
            original = None if self._rare is None else self._rare.original
            if original is not None and payload != original and payload == payloads.dump(payloads.load(original)):
                return original  # nobody has changed the value
            return payload
        if isinstance(raw, Stored):
            return raw
        return payloads.writable(raw)  # the user's arrays may soon lie in the original

    # ---- what the standard library touches -----------------------------------------------------------------

    def _get_rare(self) -> _Rare:
        rare = self._rare
        if rare is None:
            with _lock:
                rare = self._rare
                if rare is None:
                    rare = self._rare = _Rare()
        return rare

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        rare = self._get_rare()
        condition = rare.condition
        if condition is None:
            made = threading.Condition()
            with _lock:
                condition = rare.condition
                if condition is None:
                    condition = rare.condition = made
        return condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        return self._get_rare().waiters

    @property
    def _done_callbacks(self) -> list[Callable[[Any], Any]]:
        return self._get_rare().callbacks

    @property
    def _result(self) -> Any:  # type: ignore[override]
        if self._state != FINISHED:
            return None
        if self._raw is not None:
            self._open()
        return None if type(self._value) is Raised else self._value

    @property
    def _exception(self) -> BaseException | None:  # type: ignore[override]
        raw = self._raw
        if self._state != FINISHED or isinstance(raw, Stored):  # a value, which nobody has asked for
            return None
        if raw is not None:
            self._open()
        return self._value.error if type(self._value) is Raised else None

    def set_result(self, result: Any) -> NoReturn:
        """Not for users: the manager decides."""
        raise InvalidStateError(f"the outcome of {self._title()} comes from the manager")

    def set_exception(self, exception: BaseException | None) -> NoReturn:
        """Not for users: the manager decides."""
        self.set_result(exception)

    def set_running_or_notify_cancel(self) -> bool:
        """Not for users: the manager decides."""
        self.set_result(None)


def _own(payload: Payload) -> Payload:
    """The payload over out-of-band buffers that can be written to, and that nobody else has."""
    if type(payload) is not Large or all(_is_own(frame) for frame in payload.frames[1:]):
        return payload
    return payloads.writable(payload)


def _is_own(frame: Buffer) -> bool:
    """Whether it can be written to: what arrives is in memory of its own, what is mapped is copied on write."""
    return type(frame) is bytearray or (type(frame) is memoryview and is_private(frame))
