"""Calls and values that travel as another library pickles them. Made in the client and in task processes.

What the standard pickler takes, and what does not belong to the script, goes by it, large buffers apart. All else goes as the
library has it: then objects of the script's classes that come back are of these very classes, as its users know it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

_ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes))

Buffers = list[Any]


class Pickling(NamedTuple):
    """How the library does it. Both functions travel by their names.

    Attributes:
        dumps, loads: of any object, functions too.
        always: also for what the standard pickler could take, since users have a hand in it.
    """

    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]
    always: bool = False


class Function:
    """A function in the client; where it arrives, a `_Runner` of it."""

    def __init__(self, function: Callable[..., Any], pickling: Pickling) -> None:
        self._state = (pickling.dumps(function), pickling)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        raise TypeError("it is called by tasks only")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bytes, Pickling]]:
        return _open_function, self._state


def _open_function(data: bytes, pickling: Pickling) -> _Runner:
    return _Runner(pickling.loads(data), pickling)


class Packed:
    """A value on its way. It arrives as the value itself."""

    __slots__ = ("_buffers", "_data", "_loads")

    def __init__(self, value: Any, pickling: Pickling) -> None:
        self._loads: Callable[[bytes], Any] | None = None
        self._buffers: Buffers = []
        if not pickling.always:
            try:
                self._data = pickle.dumps(value, 5, buffer_callback=self._buffers.append)
            except Exception:
                pass  # the library may know more kinds of objects
            else:
                if b"__main__" not in self._data:
                    return
        self._data = pickling.dumps(value)
        self._buffers = []
        self._loads = pickling.loads

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self._loads is None:
            return _open_plain, (self._data, self._buffers)
        return self._loads, (self._data,)


def _open_plain(data: bytes, buffers: Buffers) -> Any:
    return pickle.loads(data, buffers=buffers)


class _Arguments:
    """A call on its way, in one."""

    __slots__ = ("call",)

    def __init__(self, call: Packed) -> None:
        self.call: Any = call

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any]]:
        return _Arguments, (self.call,)


def pack_call(args: tuple[Any, ...], kwargs: dict[str, Any], pickling: Pickling) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for a `Function`, which calls with those that are given here.

    Raises:
        Exception: what the library raises of an argument that it cannot pickle.
    """
    if not pickling.always and _ATOMS.issuperset(map(type, args)) and _ATOMS.issuperset(map(type, kwargs.values())):
        return args, kwargs
    return (_Arguments(Packed((args, kwargs), pickling)),), {}


class _Runner:
    """What a task process calls."""

    def __init__(self, function: Callable[..., Any], pickling: Pickling) -> None:
        self._function = function
        self._pickling = pickling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and type(args[0]) is _Arguments:
            args, kwargs = args[0].call
        value = self._function(*args, **kwargs)
        return value if type(value) in _ATOMS else Packed(value, self._pickling)

