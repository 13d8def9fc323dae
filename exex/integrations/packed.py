"""Functions and arguments that travel as another library pickles them, where that is not as exex does. Made in the client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from exex.errors import SerializationError
from exex.protocol import payload as payloads


class Pickling(NamedTuple):
    """How the library does it.

    Attributes:
        dumps: of any object, functions too.
        loads: travels by its name.
        always: also for what exex could pickle, since users have a hand in it.
    """

    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]
    always: bool = False


class Packed:
    """A pickle of the library's. It arrives as what is in it."""

    __slots__ = ("_data", "_loads")

    def __init__(self, data: bytes, pickling: Pickling) -> None:
        self._data = data
        self._loads = pickling.loads

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return self._loads, (self._data,)


class Function:
    """A function in the client; where it arrives, a `_Runner` of it.

    A function of the script travels as exex does it: it sees what it uses of the script, and classes of the script stay the same.
    All others travel as the library does it: it knows how its own wrappers find their way back to a module.

    Raises:
        Exception: what the library raises of a function that neither can pickle.
    """

    def __init__(self, function: Callable[..., Any], pickling: Pickling) -> None:
        self._inner: Any = None
        try:
            data = pickling.dumps(function)
        except Exception:
            if not _can_travel(function):
                raise
            self._inner = function
            return
        belongs_to_script = b"__main__" in data and not pickling.always
        self._inner = function if belongs_to_script and _can_travel(function) else Packed(data, pickling)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        raise TypeError("it is called by tasks only")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any]]:
        return _Runner, (self._inner,)


def _can_travel(function: Callable[..., Any]) -> bool:
    """Whether exex can pickle it."""
    try:
        payloads.dump_apart(function)
    except SerializationError:
        return False
    return True


def dump_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any] | None, pickling: Pickling
) -> tuple[payloads.Payload, list[Any]]:
    """As `payload.dump_call`, for a call of a `Function`; arguments that exex cannot pickle travel as the library does it.

    Raises:
        Exception: what the library raises of an argument that neither can pickle.
    """
    if not pickling.always:
        try:
            return payloads.dump_call(args, kwargs, options)
        except SerializationError:
            pass
    functions = [arg for arg in args[:1] if type(arg) is Function]
    call = Packed(pickling.dumps((args[len(functions) :], kwargs)), pickling)
    return payloads.dump_call((*functions, _Arguments(call)), {}, options)


class _Arguments:
    """All arguments of a call, in one."""

    __slots__ = ("call",)

    def __init__(self, call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any]]:
        return _Arguments, (self.call,)


class _Runner:
    """What a task process calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and type(args[0]) is _Arguments:
            args, kwargs = args[0].call
        return self._function(*args, **kwargs)
