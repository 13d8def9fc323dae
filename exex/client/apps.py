"""Apps: functions whose calls become tasks. Runs in the client, and in task processes whose tasks are clients.

A function is pickled when its app is first called in a session, and never again: what it uses of the script itself has
the values of that moment.
"""

from __future__ import annotations

import functools
import operator
import os
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from exex.client import digests, lazy, session
from exex.client.futures import AppFuture, DataFuture
from exex.client.joins import Arguments, Join
from exex.client.keys import KeyMaker
from exex.client.options import NO_OPTIONS, SPECIAL, AppOptions, Parameters, Request, Rules, auto_log_path, check_decorator
from exex.client.outcomes import Call
from exex.client.promises import dump_call, promise
from exex.client.resources import Resources, check_possible
from exex.client.retries import RetryHandler
from exex.client.session import Session
from exex.errors import ConfigError
from exex.files.file import File
from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Kind
from exex.protocol.payload import Payload
from exex.protocol.task_numbers import prefix_of


class App:
    """A decorated function: calling it makes a task and returns its AppFuture at once.

    Attributes:
        __wrapped__: the function.
    """

    kind = Kind.PYTHON
    __qualname__: str

    def __init__(self, function: Callable[..., Any], options: AppOptions = NO_OPTIONS) -> None:
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        functools.update_wrapper(self, function)
        self._function = function
        self._options = options
        self._default_rules = options.rules()
        self._call: Call | None = None  # set when calls without special arguments need no second look
        self._cached_call: Call | None = None  # the same, for cache=True
        self._key_maker: KeyMaker | None = None
        self._calls: dict[tuple[Any, ...], Call] = {}
        self._pickled: tuple[bytes, Payload] | None = None
        self._session: Session | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> AppFuture:
        """Make a task.

        Raises:
            NoManagerError: outside an exex job, or inside a task that has no task process.
            SerializationError: an argument or the function cannot be pickled; says which part of it.
            CacheKeyError: with cache=True, no key can be made of an argument or of what the function uses; says of which.
        """
        call = self._call
        if call is not None and call.proxy.open and (not kwargs or SPECIAL.isdisjoint(kwargs)):
            return call.proxy.submit(call, args, kwargs)  # type: ignore[no-any-return]
        return self._call_carefully(args, kwargs)

    @property
    def func(self) -> Callable[..., Any]:
        """The function, under Parsl's name for it."""
        return self._function

    @functools.cached_property
    def _parameters(self) -> Parameters:
        return Parameters(self._function)

    def _call_carefully(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AppFuture:
        """A call that is the first one, is cached, or has special arguments."""
        cached = self._cached_call
        if cached is not None and cached.proxy.open and SPECIAL.isdisjoint(kwargs):
            return cached.proxy.submit_cached(cached, args, kwargs, self._key_maker)  # type: ignore[no-any-return]
        current = session.current(f"app {self.__name__}")
        options, proxy = self._options, current.proxy
        is_plain = self._parameters.plain and not options.surround()
        if is_plain and SPECIAL.isdisjoint(kwargs):
            call = self._bind(current, self._default_rules)
            if options.cache:
                self._cached_call = call
                return proxy.submit_cached(call, args, kwargs, self._get_key_maker())
            self._call = call
            return proxy.submit(call, args, kwargs)
        tid, request = self._read(current, args, kwargs)
        call = self._bind(current, request.rules)
        payload, needs = dump_call(request.args, request.kwargs, request.options)
        if request.hidden:
            needs += dump_call(request.hidden, {}, None)[1]  # they have no place in the payload, but they are needs
        key = None
        if options.cache:
            key = self._get_key_maker().make(args, kwargs, needs, request.options, request.files)
        future = proxy.new_future(call, payload, needs, tid, key)
        if request.near is not None:
            proxy.outbox.affinity[future._tid] = request.near._tid
        if request.tag:
            proxy.outbox.tags[future._tid] = request.tag
        if not request.sends_files:
            _furnish(future, request)
        proxy.send(future)
        if request.sends_files:
            _furnish(future, request)  # makes tasks that need this one, of which the manager must know then
        return future

    def _read(self, current: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | None, Request]:
        """Take the call apart; a task that needs its number for that gets it now."""
        tid: int | None = None

        def log_path(stream: str, label: str) -> str:
            nonlocal tid
            if tid is None:
                tid = current.proxy.reserve()
            welcome = current.proxy.welcome
            return auto_log_path(welcome.run_dir, prefix_of(welcome.client), tid, self.__name__, label, stream)

        is_bash = self.kind == Kind.BASH
        request = self._parameters.read(args, kwargs, self._options, is_bash, log_path, outgoing=_outgoing)
        return tid, request

    def _bind(self, current: Session, rules: Rules) -> Call:
        """What calls with the same rules share; announced to the manager once."""
        if self._session is not current:
            self._calls, self._pickled, self._key_maker = {}, None, None
            self._session = current
        call = self._calls.get(rules)
        if call is None:
            handler = self._options.retry_handler or current.settings.retry_handler
            retries = current.settings.retries if rules[0] is None else rules[0]
            call = Call(current.proxy, self._register(current, (retries, *rules[1:])), self.__name__, retries, handler)
            self._calls[rules] = call
        return call

    def _get_key_maker(self) -> KeyMaker:
        """Made when the function is pickled: both see what it uses of the script as it is then."""
        if self._key_maker is None:
            lazy.keep_originals()
            options = self._options
            self._key_maker = KeyMaker(
                self.__name__, self._function, self.kind, options.version, options.ignore_for_cache, options.team
            )
        return self._key_maker

    def _register(self, current: Session, rules: tuple[int, int, float | None, int | None, Resources]) -> int:
        if self._pickled is None:
            self._pickled = payloads.dump_function(self._function)
        digest, payload = self._pickled
        retries, priority, walltime_s, memory_bytes, resources = rules
        spec = AppSpec(
            app=0,
            name=self.__name__,
            function=digest,
            kind=self.kind,
            priority=priority,
            retries=retries,
            asks=(self._options.retry_handler or current.settings.retry_handler) is not None,
            sends_value=self._options.cache,
            walltime_s=walltime_s,
            memory_bytes=memory_bytes,
            **resources._asdict(),
        )
        check_possible(spec, current.proxy.welcome.nodes)
        return current.proxy.outbox.register(spec, payload)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """As a method: the instance becomes the first argument."""
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__name__}>"

    def __reduce__(self) -> Any:
        if self.__module__ != "__main__":
            found: Any = sys.modules.get(self.__module__)
            for name in self.__qualname__.split("."):
                found = getattr(found, name, None)
            if found is self:
                return self.__qualname__
        # The blank object comes first: functions that call themselves refer to their app through their globals.
        return _blank, (type(self),), {"function": self._function, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        App.__init__(self, state["function"], state["options"])


class PythonApp(App):
    """An app whose task is a call of the function."""


class BashApp(App):
    """An app whose function returns a command line, which the task runs; the task's value is its exit code, 0."""

    kind = Kind.BASH


class JoinApp(App):
    """An app whose function runs in the client and returns futures; its future ends as they do."""

    def _call_carefully(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AppFuture:
        current = session.current(f"join_app {self.__name__}")
        _, request = self._read(current, args, kwargs)
        limits = [name for name, limit in zip(("walltime", "memory"), request.rules[2:4]) if limit is not None]
        limits += [name for name, asked in request.rules[4]._asdict().items() if asked]
        limits += ["affinity"] if request.near is not None else []
        for directory in (request.options or {}).pop("directories", ()):
            os.makedirs(directory, exist_ok=True)
        if request.options or limits:
            names = sorted(set(request.options or {}) - {"threads", "mpi"}) or limits
            raise TypeError(f"join_app {self.__name__} runs in the client, so it cannot have {', '.join(names)}")
        call = self._bind(current, request.rules)
        arguments = Arguments(request.args, request.kwargs)
        hidden = dump_call(request.hidden, {}, None)[1] if request.hidden else []
        future = promise(call)
        _furnish(future, request)
        Join(future, self._function, current.run_join).start(arguments, hidden)
        return future

    def _register(self, current: Session, rules: tuple[int, int, float | None, int | None, Resources]) -> int:
        return -1  # the manager never hears of the function


digests.add_special(App, lambda app: (int(app.kind), app.func))


def _blank(cls: type[App]) -> App:
    return cls.__new__(cls)


def _furnish(future: AppFuture, request: Request) -> None:
    """Give the future what it shows of the call."""
    if request.files or request.streams != (None, None):
        rare = future._get_rare()
        rare.outputs = [_data_future(future, file) for file in request.files]
        stdout, stderr = (_data_future(future, item) if isinstance(item, File) else item for item in request.streams)
        rare.streams = (stdout, stderr)


def _data_future(future: AppFuture, file: File) -> DataFuture:
    """The future of a file that the task makes, and that another one sends to where its URL says."""
    if file.scheme == "file":
        return DataFuture(future, file)
    from exex.client import staging

    return DataFuture(future, file, staging.sent(future, file))


def _outgoing(file: File) -> File:
    """An output as its task sees it."""
    if file.scheme == "file" and file.to is None:
        return file
    from exex.client import staging

    return staging.outgoing(file)


_lifts = {function: PythonApp(function) for function in (operator.getitem, getattr)}


def lift(function: Callable[..., Any], future: AppFuture, key: Any) -> AppFuture:
    """A task that takes an item or an attribute of another's value."""
    return _lifts[function](future, key)


# ---- decorators --------------------------------------------------------------------------------------------------


def decorate(
    cls: type[App],
    function: Callable[..., Any] | None,
    options: AppOptions,
    data_flow_kernel: object,
    ignore_for_cache: Sequence[str] | None,
) -> Any:
    """What a decorator of this kind of app returns, with its arguments or with a function."""
    options = check_decorator(options, data_flow_kernel, ignore_for_cache)
    if function is None:
        return lambda function: cls(function, options)
    if not callable(function):
        raise TypeError(f"an app is made of a function, not of {function!r}")
    return cls(function, options)


def python_app(
    function: Callable[..., Any] | None = None,
    data_flow_kernel: None = None,
    cache: bool = False,
    executors: Sequence[str] | str = "all",
    ignore_for_cache: Sequence[str] | None = None,
    *,
    retries: int | None = None,
    retry_handler: RetryHandler | None = None,
    priority: int = 0,
    walltime: float | None = None,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    memory: int | None = None,
    version: Any = None,
    cores: int | None = None,
    gpus: int | None = None,
    nodes: int | None = None,
    exclusive: bool | None = None,
) -> Any:
    """Decorator, with or without arguments: calls of the function become tasks.

    Args:
        function: what is decorated.
        data_flow_kernel: for Parsl's sake; None.
        cache: equal calls run once, and with --journal their results outlive the job: see docs/resume.md.
        executors: for Parsl's sake; passed over, since there is one.
        ignore_for_cache: names of arguments in which equal calls may differ.
        retries: further attempts of a task that fails; None for what the configuration says.
        retry_handler: called in the client with the error of a failed attempt and the task's record (see
            `exex.client.retries.TaskRecord`); returns its cost. The task is tried again while what its failures have cost
            is at most `retries`; if the handler raises, the task fails with that.
        priority: lower runs first.
        walltime: limit of one attempt in seconds; the attempt is stopped then, with all that it has started.
        cwd: working directory of the task.
        env: environment variables for the task, beside those it has.
        memory: limit of one attempt in bytes, for the task and all that it has started together; its node must have so much.
        version: part of what makes calls equal: change it when something has changed that exex does not see.
        cores: slots of one node that the task holds; with `nodes`, of each of them. None for one, with `nodes` for all.
        gpus: accelerators that the task has for itself, on each of its nodes.
        nodes: how many nodes the task holds, for a program of several processes that it starts; None for a part of one.
        exclusive: nobody else on its nodes.

    Raises:
        ConfigError, TypeError, ValueError: arguments that cannot be used.
    """
    options = AppOptions(
        retries, retry_handler, priority, walltime, cwd, env, memory, cache, version,
        cores=cores, gpus=gpus, nodes=nodes, exclusive=exclusive,
    )  # fmt: skip
    return decorate(PythonApp, function, options, data_flow_kernel, ignore_for_cache)


def bash_app(
    function: Callable[..., Any] | None = None,
    data_flow_kernel: None = None,
    cache: bool = False,
    executors: Sequence[str] | str = "all",
    ignore_for_cache: Sequence[str] | None = None,
    *,
    retries: int | None = None,
    retry_handler: RetryHandler | None = None,
    priority: int = 0,
    walltime: float | None = None,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    memory: int | None = None,
    version: Any = None,
    cores: int | None = None,
    gpus: int | None = None,
    nodes: int | None = None,
    exclusive: bool | None = None,
) -> Any:
    """Decorator as `python_app`, for functions that return a command line, which the task then runs under bash."""
    options = AppOptions(
        retries, retry_handler, priority, walltime, cwd, env, memory, cache, version,
        cores=cores, gpus=gpus, nodes=nodes, exclusive=exclusive,
    )  # fmt: skip
    return decorate(BashApp, function, options, data_flow_kernel, ignore_for_cache)


def join_app(
    function: Callable[..., Any] | None = None,
    data_flow_kernel: None = None,
    cache: bool = False,
    ignore_for_cache: Sequence[str] | None = None,
    *,
    retries: int | None = None,
    retry_handler: RetryHandler | None = None,
) -> Any:
    """Decorator for functions that start tasks when their arguments are there, and return a future or a list of futures.

    The function runs in a thread of the client; `retries` and `retry_handler` are about it, not about what it starts.
    """
    if cache:
        raise ConfigError(
            "a join_app cannot have cache=True: its function runs in the script and only starts tasks; let the apps that it "
            "calls have it"
        )
    options = AppOptions(retries, retry_handler)
    return decorate(JoinApp, function, options, data_flow_kernel, ignore_for_cache)
