"""Functions that find their process set up: initialised, with variables, paths, a directory and an environment.

Made in the client, called in task processes.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field, fields
from typing import Any

from exex.protocol import payload as payloads
from exex.protocol.payload import Large

_begun: dict[bytes, dict[str, Any]] = {}
"""In a task process: the settings whose initializer has run, and the variables of the script that it has set."""


@dataclass(frozen=True)
class Setting:
    """What a function is to find.

    Attributes:
        path: directories behind those of `sys.path`.
        wdir: working directory; "" for that of the task.
        env: environment variables.
        globals: variables of the script.
        initializer, initargs: called once in each process.
        token: names the setting.
    """

    path: list[str]
    wdir: str
    env: dict[str, str]
    globals: dict[str, Any]
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    token: bytes = field(default_factory=lambda: os.urandom(16))

    def is_empty(self) -> bool:
        """Whether there is nothing to set up."""
        return not any(getattr(self, each.name) for each in fields(self) if each.name != "token")


class Prepared:
    """A function and its setting, in the client. It arrives as a `_Call`."""

    def __init__(self, setting: Setting, function: Callable[..., Any]) -> None:
        self.setting = setting
        self.function = function
        self.__name__ = name_of(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        raise TypeError(f"{self.__name__} is called by tasks only")

    def __reduce__(self) -> tuple[type[_Call], tuple[Any, ...]]:
        setting = self.setting
        inner = (setting.initializer, setting.initargs, setting.globals, self.function)  # one pickle: they share their variables
        payload = payloads.dump_apart(inner)
        frames = [bytes(frame) for frame in payload.frames] if type(payload) is Large else [payload]
        return _Call, (setting.token, setting.path, setting.wdir, setting.env, frames)


class _Call:
    """What a task process gets. The function is unpickled when it is first called, since its module may lie in `path`."""

    def __init__(self, token: bytes, path: list[str], wdir: str, env: dict[str, str], frames: list[bytes]) -> None:
        self._token = token
        self._path = path
        self._wdir = wdir
        self._env = env
        self._frames = frames
        self._function: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._wdir:
            os.chdir(self._wdir)
        os.environ.update(self._env)
        if self._function is None:
            self._function = self._load()
        return self._function(*args, **kwargs)

    def _load(self) -> Callable[..., Any]:
        sys.path.extend(directory for directory in self._path if directory not in sys.path)
        payload = Large(self._frames) if len(self._frames) > 1 else self._frames[0]
        initializer, initargs, variables, function = payloads.load(payload)
        _set_variables(function, variables)
        if initializer is not None:
            if self._token not in _begun:
                _begun[self._token] = _begin(initializer, initargs, variables)
            _set_variables(function, _begun[self._token])
        return function  # type: ignore[no-any-return]


def _begin(initializer: Callable[..., object], initargs: tuple[Any, ...], variables: dict[str, Any]) -> dict[str, Any]:
    """Run the initializer. Returns the variables of the script that it has set.

    Raises:
        BrokenExecutor: it has failed.
    """
    _set_variables(initializer, variables)
    before = dict(_variables(initializer))
    try:
        initializer(*initargs)
    except Exception as error:
        raise BrokenExecutor(f"the initializer {name_of(initializer)} failed: {type(error).__name__}: {error}") from error
    nothing = object()
    return {name: value for name, value in _variables(initializer).items() if before.get(name, nothing) is not value}


def _set_variables(function: Callable[..., Any], variables: dict[str, Any]) -> None:
    _variables(function).update(variables)


def _variables(function: Callable[..., Any]) -> dict[str, Any]:
    """The variables of the script, as a function that came by value sees them; of others a dict that nobody sees."""
    if not isinstance(function, types.FunctionType):
        return {}
    module = sys.modules.get(function.__module__)
    found = function.__globals__
    return {} if module is not None and found is vars(module) else found


def name_of(function: Callable[..., Any]) -> str:
    """Name of a function, or of the type of another callable."""
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__
