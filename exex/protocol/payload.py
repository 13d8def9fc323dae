"""Payloads: the opaque bytes of a call, a value or an error, and the only place that knows pickle.

A payload is `bytes`, or `Large` when it is big or has out-of-band buffers. The manager moves payloads and never
opens one. Opening happens in task processes and in the client that owns the future.

A future inside the arguments of a call, at any depth, pickles itself as a numbered *place*; where the call is
opened, the place is filled with the need's value.
"""

from __future__ import annotations

import copyreg
import hashlib
import importlib
import io
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, Union

from exex.errors import DeserializationError, SerializationError

LARGE_BYTES = 32 * 1024
"""From this size on a payload travels as a frame of its own instead of inside the message."""

Buffer: TypeAlias = Union[bytes, bytearray, memoryview]


class Large:
    """A payload of several frames: the pickle, then its out-of-band buffers, none of them copied."""

    __slots__ = ("frames",)

    def __init__(self, frames: Sequence[Buffer]) -> None:
        self.frames = tuple(frames)

    def __len__(self) -> int:
        return sum(memoryview(frame).nbytes for frame in self.frames)

    def __repr__(self) -> str:
        return f"<Large {len(self)} bytes in {len(self.frames)} frames>"


class Stored:
    """A payload whose frames lie in the store of a node, as a file: what travels is its name and the sizes of its frames.

    Attributes:
        name: unique in the job. "t12.1": the value of task 12 from its attempt 1; "c0.7": the 8th that client 0 has put there.
        sizes: of its frames in bytes, as of a `Large`.
    """

    __slots__ = ("name", "sizes")

    def __init__(self, name: str, sizes: Sequence[int]) -> None:
        self.name = name
        self.sizes = tuple(sizes)

    def __len__(self) -> int:
        return sum(self.sizes)

    def __repr__(self) -> str:
        return f"<Stored {self.name}, {len(self)} bytes in {len(self.sizes)} frames>"


Payload: TypeAlias = Any
"""`bytes | Large | Stored`. Typed Any because msgspec decodes the latter two through extension types."""


def same(one: Payload, other: Payload) -> bool:
    """Whether two payloads are the same bytes. Nothing is opened."""
    if isinstance(one, Stored) and isinstance(other, Stored):
        return one.name == other.name
    if type(one) is not Large or type(other) is not Large:
        return type(one) is type(other) and bool(one == other)
    return len(one.frames) == len(other.frames) and all(memoryview(a) == memoryview(b) for a, b in zip(one.frames, other.frames))


_ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes))
_thread = threading.local()


# ---- pickling -------------------------------------------------------------------------------------------------


def _pack(data: bytes, buffers: list[pickle.PickleBuffer]) -> Payload:
    if buffers:
        return Large([data, *(buffer.raw() for buffer in buffers)])
    if len(data) >= LARGE_BYTES:
        return Large([data])
    return data


def dump(value: object) -> Payload:
    """Pickle `value`: by the standard pickler where it can, by cloudpickle where it must.

    cloudpickle takes over for what lives in `__main__`, lambdas, closures and local classes.

    Raises:
        SerializationError: neither can; the message is the pickler's own.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    except Exception:
        pass
    else:
        if b"__main__" not in data:
            return _pack(data, buffers)
    if collecting():
        del _thread.needs[:]
    return _cloud_dump(value)


def _cloud_dump(value: object) -> Payload:
    import cloudpickle

    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    try:
        cloudpickle.Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    except Exception as error:
        raise SerializationError(_said(error)) from error
    return _pack(file.getvalue(), buffers)


def can_pickle(value: object) -> bool:
    """Whether a value can be pickled at all."""
    try:
        _cloud_dump(value)
    except SerializationError:
        return False
    return True


def dump_call(args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any] | None) -> tuple[Payload, list[Any]]:
    """Pickle the arguments of a call.

    Args:
        options: what the task process must do around the call (streams, cwd, ...); None for nothing.

    Returns:
        The payload, and the futures found in it in the order of their places.

    Raises:
        SerializationError: names the argument, and the part of it, that cannot be pickled.
    """
    if options is None and _ATOMS.issuperset(map(type, args)) and (not kwargs or _ATOMS.issuperset(map(type, kwargs.values()))):
        data = pickle.dumps((args, kwargs), 5)  # no futures, no buffers, nothing that could be missing elsewhere
        return (data if len(data) < LARGE_BYTES else Large([data])), []
    needs: list[Any] = []
    outer = getattr(_thread, "needs", None)  # an argument's own __reduce__ may call an app
    _thread.needs = needs
    try:
        if options is None:
            return dump((args, kwargs)), needs
        return dump((args, kwargs, options)), needs
    except SerializationError as error:
        from exex.protocol.unpicklable import explain_call

        raise SerializationError(f"{explain_call(args, kwargs)} cannot be pickled ({error})") from error
    finally:
        _thread.needs = outer


def dump_apart(value: object) -> Payload:
    """`dump`, but even in the middle of a `dump_call` the futures in `value` do not become places of that call.

    Raises:
        SerializationError: as `dump`.
    """
    outer = getattr(_thread, "needs", None)
    _thread.needs = None
    try:
        return dump(value)
    finally:
        _thread.needs = outer


def collecting() -> bool:
    """Whether this thread is in a `dump_call`, where futures become places."""
    return getattr(_thread, "needs", None) is not None


def place_for(future: object) -> tuple[Callable[..., Any], tuple[int]]:
    """What a future's `__reduce__` returns: inside `dump_call` it becomes a place.

    Raises:
        TypeError: outside `dump_call`; a future means nothing in another process.
    """
    if not collecting():
        raise TypeError(f"{type(future).__name__} can be pickled only as an argument of an app: it becomes a dependency there")
    _thread.needs.append(future)
    return _fill_place, (len(_thread.needs) - 1,)


def register_foreign_future(cls: type, reducer: Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]) -> None:
    """Let instances of exactly `cls` (a future that is not ours) pickle through `reducer`."""
    copyreg.pickle(cls, reducer)


def place_after(future: object, stand_in: object) -> tuple[Callable[..., Any], tuple[int, object]]:
    """As `place_for`, but the place is filled with `stand_in`; the need's value only has to exist."""
    _, (place,) = place_for(future)
    return _fill_after, (place, stand_in)


def place_for_shared(given: object, name: str) -> tuple[Callable[..., Any], tuple[int, str]]:
    """As `place_for`, for a value that many calls get: where they run, it is opened once and then remembered by its name.

    Args:
        given: stands in the list of needs for it.
        name: of the stored payload; "" to open it each time.
    """
    _, (place,) = place_for(given)
    return _fill_shared, (place, name)


_shared: dict[str, Any] = {}


def forget_shared(is_there: Callable[[str], bool]) -> None:
    """Let go of the values that were opened by `place_for_shared` and whose payloads are not there any more."""
    for name in [name for name in _shared if not is_there(name)]:
        del _shared[name]


def _fill_shared(place: int, name: str) -> Any:
    if name in _shared:
        return _shared[name]
    payload = _thread.values[place]
    if type(payload) is Large:
        payload = Large([payload.frames[0], *(memoryview(frame).toreadonly() for frame in payload.frames[1:])])
    value = load(payload)
    if name:
        _shared[name] = value
    return value


def _fill_place(place: int) -> Any:
    return load(_thread.values[place])


def _fill_after(place: int, stand_in: object) -> object:
    return stand_in


class _Bundle:
    """Pickles as the list of the values of some payloads."""

    def __init__(self, payloads: Sequence[Payload]) -> None:
        self.payloads = payloads

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[list[Any]]]:
        parts = [
            [pickle.PickleBuffer(frame) for frame in payload.frames] if type(payload) is Large else payload
            for payload in self.payloads
        ]
        return _load_bundle, (parts,)


def bundle(payloads: Sequence[Payload]) -> Payload:
    """The payload of the list of the values of `payloads`, none of which is opened."""
    return dump(_Bundle(payloads))


def _load_bundle(parts: list[Any]) -> list[Any]:
    return [load(Large(part) if isinstance(part, list) else part) for part in parts]


# ---- unpickling -----------------------------------------------------------------------------------------------


def load(payload: Payload) -> Any:
    """Unpickle a value.

    Raises:
        Whatever the pickle raises; see `load_call`.
    """
    if type(payload) is Large:
        return pickle.loads(payload.frames[0], buffers=payload.frames[1:])
    return pickle.loads(payload)


def load_call(payload: Payload, values: Sequence[Payload] | None) -> Any:
    """Unpickle a call, filling its places with `values`.

    Returns:
        `(args, kwargs)` or `(args, kwargs, options)`.

    Raises:
        DeserializationError: with the cause chained.
    """
    try:
        if values:
            _thread.values = values
            try:
                return load(payload)
            finally:
                _thread.values = None
        return load(payload)
    except Exception as error:
        raise DeserializationError(f"the arguments cannot be unpickled here: {_said(error)}") from error


def writable(payload: Payload) -> Payload:
    """The same payload over memory of its own, so that arrays in it can be written to without others seeing it."""
    if type(payload) is Large and len(payload.frames) > 1:
        return Large([payload.frames[0], *(bytearray(frame) for frame in payload.frames[1:])])
    return payload


# ---- functions ------------------------------------------------------------------------------------------------


def _import_wrapped(module: str, qualname: str) -> Any:
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return getattr(found, "__wrapped__", found)


class _Wrapped:
    """Stands for a function that is the `__wrapped__` of a name in a module that can be imported."""

    def __init__(self, module: str, qualname: str) -> None:
        self.path = (module, qualname)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return _import_wrapped, self.path


def dump_function(function: Callable[..., Any]) -> tuple[bytes, Payload]:
    """Pickle a function.

    Functions of importable modules go by name, all others (of `__main__`, closures, lambdas) by value.

    Returns:
        The digest that names it everywhere, 16 bytes, and the payload.

    Raises:
        SerializationError: names the function.
    """
    subject: Any = function
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module and module != "__main__" and "<" not in qualname:
        try:
            if _import_wrapped(module, qualname) is function and getattr(sys.modules[module], qualname, None) is not function:
                subject = _Wrapped(module, qualname)
        except (ImportError, AttributeError):
            pass
    try:
        payload = dump(subject)
    except SerializationError as error:
        raise SerializationError(f"function {qualname or function!r} cannot be pickled ({error})") from error
    frames = payload.frames if type(payload) is Large else (payload,)
    digest = hashlib.blake2b(digest_size=16)
    for frame in frames:
        digest.update(frame)
    return digest.digest(), payload


def call_argument(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call `function`: the function of tasks whose callable travels with the arguments instead of once for all."""
    return function(*args, **kwargs)


# ---- errors ---------------------------------------------------------------------------------------------------


class RemoteTraceback(Exception):
    """The traceback of the process where an error was raised, as text; the `__cause__` of the error at the client."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"


def _load_error(error: BaseException, text: str) -> BaseException:
    if text and error.__cause__ is None:
        error.__cause__ = RemoteTraceback(text)
    return error


def _said(error: BaseException) -> str:
    """The type and text of an error, even of one whose `__str__` raises."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def dump_error(error: BaseException, where: str, frames_to_skip: int = 0) -> Payload:
    """Pickle an error together with its traceback, as text that begins with `where`. Never raises.

    An error that does not survive pickling becomes a `SerializationError` that quotes it.

    Args:
        where: "task 7 (f) on rank 3 at nid00012, attempt 1".
        frames_to_skip: our own frames at the outer end of the traceback.
    """
    trace = error.__traceback__
    for _ in range(frames_to_skip):
        if trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
    try:
        lines = traceback.format_exception(type(error), error, trace) if trace is not None else []
    except Exception as failure:  # an error whose own __str__ raises
        lines = [f"{type(error).__name__}: its text cannot be made ({_said(failure)})\n"]
    text = f"{where}:\n{''.join(lines)}" if lines else ""
    try:
        payload = dump(_Error(error, text))
        load(payload)
        return payload
    except BaseException as failure:
        quoted = SerializationError(
            f"{where} raised {type(error).__name__}, which cannot be pickled ({_said(failure)}); it said:\n"
            f"{''.join(lines) or type(error).__name__}"
        )
        return dump(_Error(quoted, ""))


class _Error:
    def __init__(self, error: BaseException, text: str) -> None:
        self.parts = (error, text)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[BaseException, str]]:
        return _load_error, self.parts
