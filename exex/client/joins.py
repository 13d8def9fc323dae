"""Join apps: their bodies run in threads of the client and return futures, for which they stand. Runs in the client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from exex.client.futures import AppFuture, DataFuture
from exex.client.outbox import Given
from exex.client.promises import PromisedFuture, break_promise, dump_call, keep
from exex.client.retries import TaskRecord
from exex.errors import DependencyError, JoinError, SerializationError
from exex.files.file import files_left_alone
from exex.protocol import payload as payloads
from exex.protocol.payload import Payload, Stored

_CONTAINERS = (list, tuple, set, frozenset)


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


class Arguments:
    """The arguments of a join app, which waits for the futures in them and puts values in their places.

    They stay the script's own objects, even such as cannot be pickled; futures are looked for in lists, tuples, dicts and
    sets. Only where pickling finds more of them, inside other objects, the function gets a copy with the values in place.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._both: Any = (args, kwargs)
        self._payload: Payload = None
        self._needs: list[Any] = []
        self._places: list[Any] = []
        try:
            with files_left_alone():  # the function passes them on
                payload, needs = dump_call(args, kwargs, None)
        except SerializationError:
            payload, needs = None, []
        _find(self._both, self._needs)
        futures = [need for need in needs if type(need) is not Given]
        if len(set(map(id, futures))) > len(set(map(id, self._needs))):
            self._payload, self._places, self._needs = payloads.writable(payload), needs, futures

    def needs(self) -> list[Any]:
        """All futures in the arguments."""
        return self._needs

    def values(self) -> Any:
        """`(args, kwargs)`. All needs must have succeeded."""
        if self._payload is not None:
            try:
                return payloads.load_call(self._payload, [_bytes_of(place) for place in self._places])
            finally:
                payloads.forget_shared(lambda name: False)
        return _fill(self._both) if self._needs else self._both


def _find(value: Any, found: list[Any]) -> None:
    if isinstance(value, Future):
        found.append(value)
    elif type(value) is dict:
        for item in value.items():
            _find(item, found)
    elif type(value) in _CONTAINERS:
        for part in value:
            _find(part, found)


def _fill(value: Any) -> Any:
    if isinstance(value, Future):
        return value.result(0)
    if type(value) is dict:
        return {_fill(key): _fill(part) for key, part in value.items()}
    if type(value) in _CONTAINERS:
        return type(value)(_fill(part) for part in value)
    return value


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

    def start(self, arguments: Arguments, hidden: Sequence[Future[Any]]) -> None:
        """Run the body as soon as its needs are there.

        Args:
            hidden: further needs, which the function does not get.
        """
        needs = [*arguments.needs(), *hidden]
        when_all(needs, lambda: self._run_in_thread(lambda: self._surely(lambda: self._prepare(arguments, needs))))

    def _surely(self, step: Callable[[], object]) -> None:
        """Do a step; if it fails in a way that nobody thought of, or by sys.exit(), so does the task."""
        try:
            step()
        except BaseException as error:
            break_promise(self._future, error)

    def _prepare(self, arguments: Arguments, needs: list[Future[Any]]) -> None:
        """The needs are done."""
        failures = [(error, _title(need)) for need in needs if (error := _error_of(need)) is not None]
        if failures:
            break_promise(self._future, DependencyError(failures, self._future.tid))
        elif not self._future.done():
            self._body(*arguments.values())

    def _body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        future = self._future
        while not future.done():
            future._phase = "running"
            try:
                inner = self._function(*args, **kwargs)
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
        is_list = isinstance(inner, list)
        futures = inner if is_list else [inner]
        strange = [item for item in futures if not isinstance(item, Future)]
        if strange:
            what = f"a list with a {type(strange[0]).__name__} in it" if is_list else f"a {type(inner).__name__}"
            text = f"join_app {self._future.app_name} must return a Future or a list of Futures, but it returned {what}"
            break_promise(self._future, TypeError(text))
            return
        self._future._phase = "joining"

        def collect() -> None:
            self._surely(lambda: self._collect(futures, is_list))

        when_all(futures, lambda: self._run_in_thread(collect) if _must_wait(futures, is_list) else collect())

    def _collect(self, futures: list[Future[Any]], is_list: bool) -> None:
        """All that the body has returned is done."""
        future = self._future
        failures = [(error, _title(inner)) for inner in futures if (error := _error_of(inner)) is not None]
        if failures:
            break_promise(future, JoinError(failures, future.tid))
            return
        try:
            keep(future, payloads.bundle([_bytes_of(inner) for inner in futures]) if is_list else _payload_of(futures[0]))
        except SerializationError as error:
            break_promise(future, SerializationError(f"what {future._title()} joined cannot be pickled ({error})"))


def _error_of(future: Future[Any]) -> BaseException | None:
    if future.cancelled():
        return CancelledError(f"{_title(future)} was cancelled")
    owner = future._decisive() if isinstance(future, DataFuture) else future
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


def _bytes_of(future: Future[Any] | Given) -> Payload:
    """As `_payload_of`, fetched if it is stored somewhere."""
    if isinstance(future, Given):
        return future.proxy.bring(future.payload) if isinstance(future.payload, Stored) else future.payload
    found = _payload_of(future)
    if isinstance(found, Stored) and isinstance(future, AppFuture):
        return future._call.proxy.bring(found)
    return found


def _must_wait(futures: Sequence[Future[Any]], is_list: bool) -> bool:
    """Whether values must be fetched, which no thread that receives answers should wait for."""
    return is_list and any(isinstance(future, AppFuture) and isinstance(future._raw, Stored) for future in futures)
