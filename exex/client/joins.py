"""Join apps: their bodies run in threads of the client and return futures, for which they stand. Runs in the client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures._base import FINISHED
from typing import Any

from exex.client.futures import AppFuture, DataFuture
from exex.client.lazy import LazyFuture
from exex.client.outcomes import NeedFailed
from exex.client.promises import PromisedFuture, break_promise, keep
from exex.client.retries import TaskRecord
from exex.errors import JoinError, SerializationError
from exex.protocol import payload as payloads
from exex.protocol.messages import Outcome
from exex.protocol.payload import Payload


def when_all(futures: Sequence[Future[Any]], then: Callable[[], object]) -> None:
    """Call `then` once, when all futures are done: in the thread that ends the last one, or here."""
    left = len(futures) + 1
    lock = threading.Lock()

    def one_done(_: object = None) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = not left
        if last:
            then()

    for future in futures:
        future.add_done_callback(one_done)
    one_done()


class Join:
    """One call of a join app.

    Args:
        future: promised; it ends as what the body returns.
        run: starts a function in a thread of the client that may block.
    """

    def __init__(self, future: PromisedFuture, function: Callable[..., Any], run: Callable[..., object]) -> None:
        self._future = future
        self._function = function
        self._run_in_thread = run
        self._record = TaskRecord(future)
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        self._payload: Payload = b""
        self._needs: list[Any] = []

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any], payload: Payload, needs: list[Any]) -> None:
        """Run the body as soon as its needs are there.

        Args:
            payload: `args` and `kwargs` as `dump_call` has pickled them, which found `needs`.
        """
        self._args, self._kwargs, self._payload, self._needs = args, kwargs, payload, needs
        when_all(needs, lambda: self._run_in_thread(lambda: self._surely(self._prepare)))

    def _surely(self, step: Callable[[], object]) -> None:
        """Do a step; if it fails in a way that nobody thought of, or by sys.exit(), so does the task."""
        try:
            step()
        except BaseException as error:
            break_promise(self._future, error)

    def _prepare(self) -> None:
        """The needs are done."""
        owners = [need.app_future if isinstance(need, DataFuture) else need for need in self._needs]
        failed = [owner for owner in owners if owner.cancelled() or owner._has_failed()]
        if failed:
            self._fail_for(failed)
            return
        if owners:
            values = [owner._payload() for owner in owners]
            self._args, self._kwargs = payloads.load_call(payloads.writable(self._payload), values)
        self._payload, self._needs = b"", []
        self._body()

    def _fail_for(self, failed: list[LazyFuture]) -> None:
        proxy = self._future._call.proxy
        for owner in failed:
            proxy.seen(owner)
        raw = NeedFailed(failed)
        proxy.note_failure(self._future, "a need of it failed")
        if self._future._settle(FINISHED, raw):
            proxy.fulfil(self._future, Outcome.FAILED, payloads.dump_error(self._future._failure(), self._future._title()))
        else:
            proxy.seen(self._future)

    def _body(self) -> None:
        future = self._future
        while not future.done():
            future._phase = "running"
            try:
                inner = self._function(*self._args, **self._kwargs)
            except Exception as error:
                final = self._record.judge(error, future._call)
                if final is None:
                    continue
                break_promise(future, final)
            else:
                self._join(inner)
            return

    def _join(self, inner: Any) -> None:
        """Wait for what the body has returned."""
        self._args, self._kwargs = (), {}
        is_list = isinstance(inner, list)
        futures = inner if is_list else [inner]
        strange = [item for item in futures if not isinstance(item, Future)]
        if strange:
            what = f"a list with a {type(strange[0]).__name__} in it" if is_list else f"a {type(inner).__name__}"
            text = f"join_app {self._future.app_name} must return a Future or a list of Futures, but it returned {what}"
            break_promise(self._future, TypeError(text))
            return
        self._future._phase = "joining"
        when_all(futures, lambda: self._surely(lambda: self._collect(futures, is_list)))

    def _collect(self, futures: list[Future[Any]], is_list: bool) -> None:
        """All that the body has returned is done."""
        future = self._future
        failures = [(error, _title(inner)) for inner in futures if (error := _error_of(inner)) is not None]
        if failures:
            break_promise(future, JoinError(failures, future.tid))
            return
        try:
            values = [_payload_of(inner) for inner in futures]
            keep(future, payloads.bundle(values) if is_list else values[0])
        except SerializationError as error:
            break_promise(future, SerializationError(f"what {future._title()} joined cannot be pickled ({error})"))


def _error_of(future: Future[Any]) -> BaseException | None:
    if future.cancelled():
        return CancelledError(f"{_title(future)} was cancelled")
    owner = future.app_future if isinstance(future, DataFuture) else future
    if isinstance(owner, AppFuture) and not owner._has_failed():
        return None  # without unpickling the value
    return owner.exception()


def _payload_of(future: Future[Any]) -> Payload:
    if isinstance(future, AppFuture):
        return future._payload()
    return payloads.dump_apart(future.result())


def _title(future: Future[Any]) -> str:
    owner = future.app_future if isinstance(future, DataFuture) else future
    return owner._title() if isinstance(owner, AppFuture) else repr(future)
