"""`concurrent.futures.Executor` over the tasks of the job. Runs in the client."""

from __future__ import annotations

import concurrent.futures
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from exex.client import interactive, session
from exex.client.apps import App, BashApp, JoinApp
from exex.client.futures import AppFuture
from exex.client.mapping import Mapping
from exex.client.options import check_retries, check_walltime
from exex.client.outcomes import Call
from exex.client.resources import check_memory, check_possible, check_resources
from exex.client.session import Session
from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Kind
from exex.protocol.payload import Payload

_REMEMBERED = 1024
"""Functions whose calls are remembered by their identity."""

_NEVER_CHANGE = (types.FunctionType, types.BuiltinFunctionType, type)


class Executor(concurrent.futures.Executor):
    """Runs calls as tasks of the job. Several executors may be in use at once.

    Plain functions and classes are pickled once and travel to each worker once. Other callables (bound methods,
    partials, objects) and functions made on the fly are pickled with each call, since they may differ from call to call;
    a function made on the fly travels once from its second call on.

    Args:
        retries: further attempts of a task that fails; None for what the configuration says.
        priority: lower runs first.
        walltime: limit of one attempt in seconds.
        memory: limit of one attempt in bytes.
        cores, gpus, nodes, exclusive: what each task holds of the machine, as at `python_app`.

    Raises:
        NoManagerError: outside an exex job.
    """

    def __init__(
        self,
        *,
        retries: int | None = None,
        priority: int = 0,
        walltime: float | None = None,
        memory: int | None = None,
        cores: int | None = None,
        gpus: int | None = None,
        nodes: int | None = None,
        exclusive: bool | None = None,
    ) -> None:
        self._session = session.current("Executor")
        self._retries = check_retries(retries)
        self._priority = priority
        self._walltime_s = check_walltime(walltime)
        self._memory_bytes = check_memory(memory)
        self._resources = check_resources(cores, gpus, nodes, exclusive)
        self._calls: dict[Any, Call | None] = {}  # None: seen once
        self._shut = False

    @property
    def slots(self) -> int:
        """Slots of all workers of the job: so many tasks of one core can run at a time."""
        return self._session.proxy.welcome.slots

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AppFuture:
        """Run `fn(*args, **kwargs)` as a task. An app is taken for its function; a join app is called.

        Raises:
            RuntimeError: after `shutdown`.
            SerializationError: the function or an argument cannot be pickled.
        """
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        try:
            call = self._calls.get(fn)
        except TypeError:  # unhashable
            call = None
        if call is None or not call.proxy.open:
            return self._submit_new(fn, args, kwargs)
        return call.proxy.submit(call, args, kwargs)  # type: ignore[no-any-return]

    def _submit_new(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> AppFuture:
        self._session.proxy.check_open("Executor.submit")
        if not callable(fn):
            raise TypeError(f"an executor runs functions, not {fn!r}")
        if isinstance(fn, JoinApp):
            return fn(*args, **kwargs)
        function = fn.func if isinstance(fn, App) else fn
        kind = Kind.BASH if isinstance(fn, BashApp) else Kind.PYTHON
        proxy = self._session.proxy
        if self._is_worth_keeping(function):
            call = self._new_call(function, _name_of(function), kind)
            self._remember(fn, call)
            return proxy.submit(call, args, kwargs)
        if isinstance(function, types.FunctionType):
            self._remember(fn, None)
        call = self._new_call(payloads.call_argument, _name_of(function), kind)
        return proxy.submit(call, (function, *args), kwargs)

    def _is_worth_keeping(self, function: Callable[..., Any]) -> bool:
        if not isinstance(function, _NEVER_CHANGE):
            return False
        return "<" not in getattr(function, "__qualname__", "<") or function in self._calls

    def _remember(self, fn: Callable[..., Any], call: Call | None) -> None:
        self._calls[fn] = call
        while len(self._calls) > _REMEMBERED:
            self._calls.pop(next(iter(self._calls)), None)

    def _new_call(
        self, function: Callable[..., Any], name: str, kind: Kind, pickled: tuple[bytes, Payload] | None = None
    ) -> Call:
        digest, payload = pickled or payloads.dump_function(function)
        settings = self._session.settings
        retries = settings.retries if self._retries is None else self._retries
        handler = settings.retry_handler
        spec = AppSpec(
            app=0,
            name=name,
            function=digest,
            kind=kind,
            priority=self._priority,
            retries=retries,
            asks=handler is not None and kind != Kind.MAP,  # of rows, the mapping asks by itself
            walltime_s=self._walltime_s,
            memory_bytes=self._memory_bytes,
            **self._resources._asdict(),
        )
        check_possible(spec, self._session.proxy.welcome.nodes)
        number = self._session.proxy.outbox.register(spec, payload)
        return Call(self._session.proxy, number, name, retries, handler, self)

    # ---- map -----------------------------------------------------------------------------------------------------

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """As the builtin `map`, in tasks; results come in order.

        Iterables with a length are worked through whether or not somebody takes the results. Others are read only so
        far ahead that all slots stay busy.

        Args:
            timeout: seconds from now within which a result must be there when it is asked for.
            chunksize: calls per task; None to begin with one and to find out how many last some 5 ms.
            buffersize: calls beyond the results that were taken, at most.

        Raises:
            TimeoutError: while iterating, as do the errors of the calls.
            RuntimeError: after `shutdown`.
        """
        return self._new_mapping(fn, iterables, chunksize, buffersize).results(timeout)

    def _new_mapping(
        self,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        chunksize: int | None,
        buffersize: int | None,
        pickled: tuple[bytes, Payload] | None = None,
    ) -> Mapping:
        """A map that has not begun.

        Args:
            pickled: what `dump_function` says of `fn`, if that is known.
        """
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        for name, number in (("chunksize", chunksize), ("buffersize", buffersize)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be >= 1.")
        self._session.proxy.check_open("Executor.map")
        if isinstance(fn, (BashApp, JoinApp)):
            return Mapping(self._session, iterables, None, lambda args: self._submit_new(fn, args, {}), 1, buffersize, self)
        function = fn.func if isinstance(fn, App) else fn
        call = self._new_call(function, _name_of(function), Kind.MAP, pickled)
        send = self._session.proxy.submit
        return Mapping(self._session, iterables, call, lambda columns: send(call, columns, {}), chunksize, buffersize, self)

    # ---- shutdown ------------------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. May be called again.

        Args:
            wait: return when all calls have ended, those of maps that nobody iterates over included.
            cancel_futures: cancel what is not known to run.
        """
        self._shut = True
        if cancel_futures:
            for mapping in self._mappings():
                mapping.cancel()
            for future in self._open_futures():
                if not future.running():
                    future.cancel()
        if wait:
            self._run_out()
            for future in self._open_futures():
                future._wait()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None) -> None:
        if kind is KeyboardInterrupt and interactive.shell() is not None:  # it is for the whole cell
            for mapping in self._mappings():
                mapping.cancel()
            for future in self._open_futures():
                future.cancel()
        self.shutdown()

    def __repr__(self) -> str:
        state = "shut down" if self._shut else "closed" if not self._session.proxy.open else f"{self.slots} slots"
        return f"<exex executor: {state}>"

    def _repr_html_(self) -> str:
        from exex.client import display

        open_ = not self._shut and self._session.proxy.open
        asked = {
            "retries": self._retries,
            "priority": self._priority or None,
            "walltime": None if self._walltime_s is None else display.duration(self._walltime_s),
            "memory": None if self._memory_bytes is None else f"{self._memory_bytes:,} bytes",
            **{name: value or None for name, value in self._resources._asdict().items()},
        }
        rows: list[tuple[str, object]] = [("slots", f"{self.slots:,}")]
        rows += [(name, value) for name, value in asked.items() if value is not None]
        rows.append(("tasks", f"{len(self._open_futures()):,} not done"))
        return display.card("exex executor", open_, "open" if open_ else "shut down" if self._shut else "closed", rows)

    def _run_out(self) -> None:
        """Return when all calls of maps are submitted."""
        for mapping in self._mappings():
            mapping.run_out()

    def _mappings(self) -> list[Mapping]:
        return [mapping for mapping in list(self._session.mappings) if mapping.owner is self]

    def _open_futures(self) -> list[AppFuture]:
        return [future for future in self._session.proxy.outbox.open_futures() if future._call.owner is self]


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


_default: tuple[Session, Executor] | None = None


def default() -> Executor:
    """The executor of this session with the settings of the configuration."""
    global _default  # noqa: PLW0603
    current = session.current("exex.map")
    if _default is None or _default[0] is not current:
        _default = (current, Executor())
    return _default[1]


def map(
    fn: Callable[..., Any],
    *iterables: Iterable[Any],
    timeout: float | None = None,
    chunksize: int | None = None,
    buffersize: int | None = None,
) -> Iterator[Any]:
    """`Executor.map` of an executor with the settings of the configuration."""
    return default().map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)
