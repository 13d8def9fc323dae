"""Tasks that the client fulfils itself, and futures of others as arguments. Runs in the client.

A future that is not ours (`concurrent.futures.Future`, also of a subclass) becomes a promised task the first time it is
an argument of an app, so that the call can wait for it at the manager.
"""

from __future__ import annotations

import io
import pickle
import types
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from exex.client.futures import AppFuture, DataFuture
from exex.client.outcomes import Call, FailedHere
from exex.errors import ConfigError, SerializationError
from exex.protocol import payload as payloads
from exex.protocol.messages import Outcome
from exex.protocol.payload import Payload


class PromisedFuture(AppFuture):
    """The future of a task that no worker runs."""

    __slots__ = ("_outcome_sent", "_phase")

    _promised = True

    def __init__(self, call: Call, tid: int) -> None:
        super().__init__(call, tid, None, ())
        self._needs = ()
        self._phase = "pending"  # while it has no outcome
        self._outcome_sent = False  # from then on the manager may have forgotten it

    def task_status(self) -> str:
        """As of any task; joining while a join app waits for what it has returned."""
        return super().task_status() if self.done() else self._phase


def promise(call: Call) -> PromisedFuture:
    """Announce a task that the client will fulfil."""
    future = PromisedFuture(call, call.proxy.reserve())
    call.proxy.send(future)
    return future


def keep(future: AppFuture, payload: Payload) -> None:
    """Give a promised task its pickled value."""
    future._call.proxy.fulfil(future, Outcome.DONE, payload, payload)


def break_promise(future: AppFuture, error: BaseException) -> None:
    """Fail a promised task."""
    proxy = future._call.proxy
    payload = payloads.dump_error(error, future._title())
    proxy.note_failure(future, payload)
    if not proxy.fulfil(future, Outcome.FAILED, FailedHere(error), payload):
        proxy.seen(future)  # it was cancelled


# ---- futures that are not ours ---------------------------------------------------------------------------------

_promises: weakref.WeakKeyDictionary[Future[Any], PromisedFuture] = weakref.WeakKeyDictionary()
_get_call: Callable[[], Call] | None = None


def accept_foreign_futures(get_call: Callable[[], Call]) -> None:
    """From now on futures that are not ours may be arguments of apps.

    Args:
        get_call: gives the Call that their promises belong to.
    """
    global _get_call  # noqa: PLW0603
    _get_call = get_call
    payloads.register_foreign_future(Future, _reduce)


def _reduce(foreign: Future[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    if not payloads.collecting() or _get_call is None:
        return payloads.place_for(foreign)  # says what is wrong
    call = _get_call()
    future = _promises.get(foreign)
    if future is None or future._call.proxy is not call.proxy:
        future = _promises[foreign] = promise(call)
        follow(future, foreign)
    return payloads.place_for(future)


def promised_for(foreign: Future[Any]) -> PromisedFuture | None:
    """The promised task that stands for a future of somebody else; None if it was no argument yet."""
    return _promises.get(foreign)


def follow(future: PromisedFuture, foreign: Future[Any]) -> None:
    """Let a promised task end as a future of somebody else does."""

    def ended(foreign: Future[Any]) -> None:
        if foreign.cancelled():
            future.cancel()
            return
        error = foreign.exception()
        try:
            if error is None:
                keep(future, payloads.dump_apart(foreign.result()))
        except SerializationError as failure:
            error = SerializationError(f"the value of {foreign!r}, an argument of an app, cannot be pickled ({failure})")
        if error is not None:
            break_promise(future, error)

    foreign.add_done_callback(ended)


def dump_call(args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any] | None) -> tuple[Payload, list[Any]]:
    """As `payload.dump_call`, but futures of any subclass of `concurrent.futures.Future` are needs as well."""
    try:
        return payloads.dump_call(args, kwargs, options)
    except SerializationError as error:
        refused = _refused(error)
        if refused is not None:
            raise refused from None
        if not _register_unknown_futures((args, kwargs)):
            raise
    return payloads.dump_call(args, kwargs, options)


def _refused(error: BaseException) -> ConfigError | None:
    """What a file among the arguments said when it was pickled, if that is why they cannot be."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__
    return cause


def _register_unknown_futures(value: object) -> bool:
    """Look for futures of types that were not seen before. Returns whether there are any."""
    finder = _Finder(io.BytesIO(), 5)
    try:
        finder.dump(value)
    except Exception:
        pass  # what cannot be pickled has been named already
    for cls in finder.found:
        payloads.register_foreign_future(cls, _reduce)
    return bool(finder.found)


class _Finder(pickle.Pickler):
    """Pickles for the sake of finding futures."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.found: set[type] = set()

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Future) and not isinstance(value, (AppFuture, DataFuture)):
            self.found.add(type(value))
            return int, ()
        if isinstance(value, (AppFuture, DataFuture, types.FunctionType, type)):
            return int, ()
        return NotImplemented
