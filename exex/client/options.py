"""Keyword arguments that mean something to exex: what a call of an app asks for beside its result. Runs in the client.

`inputs`, `outputs`, `stdout`, `stderr`, `walltime` and `parsl_resource_specification` mean what they mean in Parsl: a
default in the function's signature counts as if it were passed, and the function gets the argument if it accepts it.
The others (`cwd`, `env`, `retries`, `priority`, `memory`, `cores`, `gpus`, `nodes`, `exclusive`, `affinity` and `tag`) are ours;
a function that has a parameter of such a name keeps it for itself.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from exex.client.futures import AppFuture, DataFuture
from exex.client.resources import Resources, Specification, check_memory, check_resources
from exex.errors import ConfigError
from exex.files.file import File

AUTO_LOGNAME = -1
"""As `stdout` or `stderr`: a file of the task's own in the run directory."""

_OF_PARSL = frozenset(("inputs", "outputs", "stdout", "stderr", "walltime", "parsl_resource_specification"))
_OF_MACHINE = ("cores", "gpus", "nodes", "exclusive")
_OURS = frozenset(("cwd", "env", "retries", "priority", "memory", "affinity", "tag", *_OF_MACHINE))
SPECIAL = _OF_PARSL | _OURS

_MOST_TAG = 1000
_STREAM_MODE = "a+"
_STAGED_MODE = "w"

Rules = tuple[int | None, int, float | None, int | None, Resources]
"""Retries (None: as the app), priority, walltime in seconds, memory in bytes, and what else of the machine."""


class Program(NamedTuple):
    """How an MPI program is started on each of its nodes; None for as many ranks as there are slots."""

    ranks_per_node: int | None
    cores_per_rank: int = 1
    launcher_options: str = ""


class Team(NamedTuple):
    """On what a function on a communicator runs; fields as in `AppSpec`."""

    ranks: int
    every_rank: bool = False
    own_world: bool = False


class AppOptions(NamedTuple):
    """What an app's decorator sets for all its calls; None where it leaves it open."""

    retries: int | None = None
    retry_handler: Callable[..., Any] | None = None
    priority: int = 0
    walltime: float | None = None
    cwd: str | None = None
    env: dict[str, str] | None = None
    memory: int | None = None
    cache: bool = False
    version: Any = None
    ignore_for_cache: tuple[str, ...] = ()
    cores: int | None = None
    gpus: int | None = None
    nodes: int | None = None
    exclusive: bool | None = None
    program: Program | None = None
    team: Team | None = None

    def rules(self) -> Rules:
        """Of calls that say nothing else."""
        resources = check_resources(self.cores, self.gpus, self.nodes, self.exclusive)
        return self.retries, self.priority, self.walltime, self.memory, self.on_communicator(resources)

    def on_communicator(self, resources: Resources) -> Resources:
        """With the ranks of a function on a communicator, if it is one.

        Raises:
            TypeError: it asks for other things that it cannot have.
        """
        if self.team is None:
            return resources
        for name in ("cores", "nodes"):
            if getattr(resources, name):
                raise TypeError(f"a function on a communicator asks for ranks=, and so cannot have {name}=")
        return resources._replace(**self.team._asdict())

    def surround(self) -> bool:
        """Whether the task process has something to do around each call."""
        return self.cwd is not None or self.env is not None or self.cores is not None or self.program is not None


NO_OPTIONS = AppOptions()


class Request(NamedTuple):
    """One call, taken apart.

    Attributes:
        args, kwargs: what the function gets.
        options: what the task process does around it, as `payload.dump_call` takes it.
        hidden: arguments that the function does not get, but whose futures the call waits for.
        files: outputs.
        streams: stdout and stderr as the future shows them; a File for those that become a DataFuture.
        rules: see `Rules`.
        near: task whose node the call prefers.
        tag: by which the user finds the task again; "" if it has none.
        sends_files: some of its outputs are to be sent somewhere.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any] | None
    hidden: tuple[Any, ...]
    files: list[File]
    streams: tuple[Any, Any]
    rules: Rules
    near: AppFuture | None = None
    tag: str = ""
    sends_files: bool = False


class Parameters:
    """What the signature of an app's function says about special keyword arguments.

    Args:
        first: parameters that are not the caller's: 1 if it is given a communicator.

    Attributes:
        plain: it says nothing of them.
    """

    def __init__(self, function: Callable[..., Any], first: int = 0) -> None:
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):  # a builtin that tells nothing
            parameters = {}  # type: ignore[assignment]
        kinds = inspect.Parameter
        self._accepts_all = any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters.values())
        self._own = _OURS & parameters.keys()
        self._accepted = _OF_PARSL & parameters.keys()
        self._positions = {
            name: position
            for position, (name, parameter) in enumerate(parameters.items(), start=-first)
            if name in self._accepted and parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.POSITIONAL_ONLY)
        }
        self._defaults = {
            name: parameters[name].default for name in self._accepted if parameters[name].default is not kinds.empty
        }
        self.plain = not self._accepted

    def read(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        app: AppOptions,
        is_bash: bool,
        log_path: Callable[[str, str], str],
        *,
        outgoing: Callable[[File], File] = lambda file: file,
    ) -> Request:
        """Take a call apart.

        Args:
            log_path: path of an AUTO_LOGNAME file, given "stdout" or "stderr" and the call's label.
            outgoing: gives outputs that are to be sent somewhere a path.

        Raises:
            TypeError: an argument of the wrong type.
            InvalidResourceSpecification: unknown keys or impossible values in `parsl_resource_specification`.
        """
        given = {name: value for name, value in kwargs.items() if name in SPECIAL and name not in self._own}
        rest = {name: value for name, value in kwargs.items() if name not in given}
        near, tag = _future(given.pop("affinity", None)), _tag(given.pop("tag", ""))
        passed = set(given)
        for name, position in self._positions.items():
            if len(args) > position:
                given.setdefault(name, args[position])
        for name, default in self._defaults.items():
            given.setdefault(name, default)
        label = kwargs.get("label") or ""
        rules, ranks = _rules(given, app)
        shown = given | _outgoing(given, outgoing)
        options, streams = self._options(shown, app, is_bash, lambda stream: log_path(stream, label))
        shown |= {name: stream for name, stream in zip(("stdout", "stderr"), streams) if name in given}
        for name, value in shown.items():
            position = self._positions.get(name, len(args))
            if position < len(args) and name not in passed:
                args = (*args[:position], value, *args[position + 1 :])
            elif self._gets(name, name in passed, value is not given[name] or (name == "inputs" and bool(value))):
                rest[name] = value
        hidden = () if "inputs" in rest or "inputs" in self._positions or "inputs" not in passed else (given["inputs"],)
        if rules[-1].cores == 1:
            options["threads"] = 1
        if ranks is not None or app.program is not None:
            program = {} if app.program is None else {**app.program._asdict(), "is_program": True}
            options["mpi"] = {**program, **(ranks or {})}
        files = _files(shown.get("outputs"))
        elsewhere = [file for file in files if file.scheme != "file"]
        if elsewhere:
            options["directories"] = sorted({os.path.dirname(file.filepath) for file in elsewhere})
        sends_files = any(isinstance(file, File) and file.scheme != "file" for file in (*elsewhere, *streams))
        return Request(args, rest, options or None, hidden, files, streams, rules, near, tag, sends_files)

    def _gets(self, name: str, was_passed: bool, has_changed: bool) -> bool:
        """Whether the function gets a special argument as a keyword; of defaults only those that have become others."""
        if name in self._accepted:
            return was_passed or has_changed
        return self._accepts_all and was_passed

    def _options(
        self, given: Mapping[str, Any], app: AppOptions, is_bash: bool, log_path: Callable[[str], str]
    ) -> tuple[dict[str, Any], tuple[Any, Any]]:
        """What the task process does, and the streams as they are shown."""
        options: dict[str, Any] = {}
        streams: list[Any] = []
        for name in ("stdout", "stderr"):
            path, shown = _stream(name, given.get(name), log_path)
            streams.append(shown)
            if path is not None:
                options[name] = path
        cwd = _directory(given.get("cwd", app.cwd))
        if cwd is not None:
            options["cwd"] = cwd
        env = _environment(given.get("env", app.env))
        if env is not None:
            options["env"] = env
        if is_bash and given.get("outputs"):
            base = cwd or os.getcwd()  # as the command sees relative paths
            options["outputs"] = [os.path.join(base, file.filepath) for file in _files(given["outputs"])]
        return options, (streams[0], streams[1])


def _stream(name: str, value: Any, log_path: Callable[[str], str]) -> tuple[tuple[str, str] | None, Any]:
    """Where a stream goes, as (absolute path, mode), and what the function and the future show of it."""
    if value is None:
        return None, None
    if type(value) is int and value == AUTO_LOGNAME:
        path = log_path(name)
        return (path, _STREAM_MODE), path
    if isinstance(value, File):
        return (os.path.abspath(value.filepath), _STAGED_MODE), value
    target, mode = value if isinstance(value, tuple) and len(value) == 2 else (value, _STREAM_MODE)
    if isinstance(target, os.PathLike):
        target = os.fspath(target)
    if not isinstance(target, str) or not isinstance(mode, str):
        raise TypeError(f"{name} must be a path, (path, mode), a File or AUTO_LOGNAME, not {value!r}")
    return (os.path.abspath(target), mode), value


def _outgoing(given: Mapping[str, Any], outgoing: Callable[[File], File]) -> dict[str, Any]:
    """Those special arguments that name files which the task is to make elsewhere than their URLs say."""
    found: dict[str, Any] = {}
    for name in ("stdout", "stderr"):
        if isinstance(given.get(name), File):
            found[name] = outgoing(given[name])
    files = _files(given.get("outputs"))
    made = [outgoing(file) for file in files]
    if any(one is not other for one, other in zip(files, made)):
        found["outputs"] = made
    return found


def _files(outputs: Any) -> list[File]:
    files = list(outputs or ())
    for file in files:
        if not isinstance(file, File):
            raise TypeError(f"outputs must hold Files, not {file!r}; write File({file!r})")
    return files


def _directory(cwd: Any) -> str | None:
    if cwd is None:
        return None
    path = os.fspath(cwd) if isinstance(cwd, os.PathLike) else cwd
    if not isinstance(path, str):
        raise TypeError(f"cwd must be a path, not {cwd!r}")
    return os.path.abspath(path)


def _environment(env: Any) -> dict[str, str] | None:
    if env is None:
        return None
    if not isinstance(env, Mapping) or not all(isinstance(text, str) for item in env.items() for text in item):
        raise TypeError(f"env must map names to values, all of them str, not {env!r}")
    return dict(env)


def _future(value: Any) -> AppFuture | None:
    if isinstance(value, DataFuture):
        value = value.app_future
    if value is not None and not isinstance(value, AppFuture):
        raise TypeError(f"affinity must be the future of a task, near which this one is to run, not {value!r}")
    return value


def _tag(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MOST_TAG:
        raise TypeError(f"tag must be a str of at most {_MOST_TAG} characters, not {repr(value)[:100]}")
    return value


def _rules(given: Mapping[str, Any], app: AppOptions) -> tuple[Rules, dict[str, Any] | None]:
    """The rules of a call; and the ranks of an MPI program, if Parsl's resource specification names any."""
    specification = Specification(given.get("parsl_resource_specification") or {})
    said = {**app._asdict(), **specification.values(), **given}
    priority = said["priority"]
    if type(priority) is not int:
        raise TypeError(f"priority must be an int, not {priority!r}")
    return (
        check_retries(said["retries"]),
        priority,
        check_walltime(said["walltime"]),
        check_memory(said["memory"]),
        app.on_communicator(check_resources(*(said[name] for name in _OF_MACHINE))),
    ), specification.ranks()


def check_retries(retries: Any) -> int | None:
    """`retries` if it can be used; None means as the configuration says.

    Raises:
        TypeError: no int.
        ValueError: negative.
    """
    if retries is not None and type(retries) is not int:
        raise TypeError(f"retries must be an int, not {retries!r}")
    if retries is not None and retries < 0:
        raise ValueError(f"retries must not be negative, but it is {retries}")
    return retries


def check_walltime(walltime: Any) -> float | None:
    """`walltime` in seconds if it can be used; None means no limit.

    Raises:
        TypeError: no number.
        ValueError: not positive.
    """
    if walltime is None:
        return None
    if isinstance(walltime, bool) or not isinstance(walltime, (int, float)):
        raise TypeError(f"walltime must be a number of seconds, not {walltime!r}")
    if not walltime > 0:
        raise ValueError(f"walltime must be a positive number of seconds, but it is {walltime}")
    return float(walltime)


def check_decorator(options: AppOptions, data_flow_kernel: object, ignore_for_cache: Sequence[str] | None) -> AppOptions:
    """The decorator's arguments, if they can be used.

    Raises:
        ConfigError: those of Parsl that mean nothing here.
        TypeError, ValueError: wrong types or values.
    """
    if data_flow_kernel is not None:
        raise ConfigError("data_flow_kernel must be None: an exex job has one manager, and apps find it by themselves")
    if isinstance(ignore_for_cache, str) or not all(isinstance(name, str) for name in ignore_for_cache or ()):
        raise TypeError(f"ignore_for_cache must be a list of argument names, not {ignore_for_cache!r}")
    if not options.cache and options.version is not None:
        raise ConfigError("version is part of the key of cached calls: it needs cache=True")
    if type(options.priority) is not int:
        raise TypeError(f"priority must be an int, not {options.priority!r}")
    check_retries(options.retries)
    check_walltime(options.walltime)
    check_memory(options.memory)
    options.rules()
    _directory(options.cwd)
    return options._replace(
        env=_environment(options.env),
        cwd=None if options.cwd is None else os.fspath(options.cwd),
        ignore_for_cache=tuple(ignore_for_cache or ()),
    )


def auto_log_path(run_dir: str, prefix: str, tid: int, name: str, label: str, stream: str) -> str:  # noqa: PLR0917
    """Path of an AUTO_LOGNAME file, in Parsl's form; `prefix`: of the client's tasks."""
    suffix = f"_{label}" if label else ""
    return os.path.join(run_dir, "task_logs", f"{tid // 1000:04d}", f"task_{prefix}{tid:04d}_{name}{suffix}.{stream}")
