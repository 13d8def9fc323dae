"""Canonical bytes of arguments and functions, from which the keys of cached calls are made. Runs in the client.

Equal values have equal bytes in every process and every run: nothing depends on hash seeds, on addresses, on the order
of dicts and sets, or on which equal objects are one. Values that differ in type or content have different bytes. What
has no such form is refused by name: a guess would answer one call with the result of another.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import marshal
import os
import sys
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import PurePath
from typing import Any

from exex.client.own_code import is_main, is_own, names_in
from exex.client.undigestible import Undigestible, explain
from exex.errors import CacheKeyError, SerializationError
from exex.files.file import File
from exex.protocol import payload as payloads
from exex.protocol.messages import KEY_BYTES
from exex.protocol.payload import Large

ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes))
_MARSHAL = 2
"""A version of marshal's format that neither counts references nor looks at interning: equal atoms, equal bytes."""

_OF_EVERY_CLASS = frozenset(
    (
        *("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__firstlineno__", "__static_attributes__"),
        *("__slots__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__dataclass_params__"),
        *("__match_args__", "__abstractmethods__", "_abc_impl", "__hash__"),
    )
)
"""Attributes of classes that say nothing of what their methods do."""


def hash_of(*parts: bytes) -> bytes:
    """Digest of a sequence of byte strings, with their borders."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def atom(value: Any) -> bytes:
    """Canonical bytes of a value whose type is one of `ATOMS`."""
    return b"a" + marshal.dumps(value, _MARSHAL)


# ---- the registry ---------------------------------------------------------------------------------------------


@functools.singledispatch
def id_for_memo(value: object, output_ref: bool = False) -> bytes:
    """Canonical bytes of a value, as they go into the key of a cached call.

    Register a function for types of your own, whose instances it turns into bytes; equal bytes mean that a task
    would return the same for both. It holds for subclasses, too, unless they have their own:

        @exex.id_for_memo.register(Molecule)
        def _(molecule, output_ref=False):
            return molecule.to_xyz().encode()

    Args:
        value: any value.
        output_ref: for the sake of functions written for Parsl; always False.

    Raises:
        CacheKeyError: neither exex nor a registered function can tell what the value is.
    """
    try:
        return canonical(value)
    except Undigestible as error:
        raise CacheKeyError(explain("the value", error)) from None


_default = id_for_memo.dispatch(object)


# ---- values ---------------------------------------------------------------------------------------------------


class _Encoder:
    """Turns one value into bytes.

    Attributes:
        places: what a future stands for among the needs of the call; None where futures mean nothing.
        lenient: what has no canonical bytes is pickled: for what a function refers to, which is pickled anyway.
    """

    def __init__(self, places: Callable[[Future[Any]], bytes] | None = None, lenient: bool = False) -> None:
        self.places = places
        self.lenient = lenient
        self._open: dict[int, int] = {}  # id of a container or function that is being encoded -> how deep it lies

    def encode(self, value: Any) -> bytes:
        kind = type(value)
        if kind in ATOMS:
            return atom(value)
        handler = id_for_memo.dispatch(kind)
        if handler is not _default:
            return self._custom(kind, handler, value)
        if id(value) in self._open:
            if isinstance(value, (types.FunctionType, type)):  # recursive code is usual, recursive data is not
                return b"^" + str(len(self._open) - self._open[id(value)]).encode()
            raise Undigestible(value, "it contains itself")
        self._open[id(value)] = len(self._open)
        try:
            return self._encode(kind, value)
        finally:
            del self._open[id(value)]

    def _custom(self, kind: type, handler: Callable[..., Any], value: Any) -> bytes:
        try:
            made = handler(value)
        except Exception as error:
            raise Undigestible(value, f"its registered function raised {type(error).__name__}: {error}") from error
        if not isinstance(made, bytes):
            raise Undigestible(value, f"its registered function returned {type(made).__name__} instead of bytes")
        return _join(b"u", _name(kind), made)

    def _encode(self, kind: type, value: Any) -> bytes:  # noqa: PLR0911, PLR0912
        known = _BUILTINS.get(kind)
        if known is not None:
            return known(self, value)
        if isinstance(value, Future):
            if self.places is None:
                raise Undigestible(value)
            return _join(b"f", self.places(value))
        if isinstance(value, enum.Enum):
            return _join(b"e", self.encode(kind), value.name.encode() if value.name else b"", self.part(value.value, ".value"))
        if isinstance(value, PurePath):
            return _join(b"p", kind.__name__.encode(), os.fspath(value).encode("utf-8", "surrogateescape"))
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return _join(b"n", self.encode(kind), *self.parts(value))
        if dataclasses.is_dataclass(kind):
            return self._dataclass(kind, value)
        if isinstance(value, type):
            return self._class(value)
        if kind.__module__ in ("datetime", "zoneinfo") and isinstance(value, datetime.tzinfo):
            return _join(b"z", _name(kind), repr(value).encode())
        if kind.__module__.partition(".")[0] == "numpy" and "numpy" in sys.modules:
            made = self._numpy(kind, value)
            if made is not None:
                return made
        special = _special(kind)
        if special is not None:
            return special(self, value)
        if self.lenient:
            return _join(b"P", _name(kind), _pickled(value))
        raise Undigestible(value)

    def part(self, value: Any, step: str) -> bytes:
        """Bytes of a part of a value."""
        try:
            return self.encode(value)
        except Undigestible as error:
            raise error.within(step) from None

    def parts(self, values: Iterable[Any]) -> Iterator[bytes]:
        """Bytes of the items of a sequence."""
        for i, value in enumerate(values):
            yield atom(value) if type(value) in ATOMS else self.part(value, f"[{i}]")

    def items(self, pairs: Iterable[tuple[Any, Any]]) -> Iterator[bytes]:
        """Bytes of the items of a mapping."""
        for key, value in pairs:
            yield _join(b"", self.part(key, f" key {key!r}"), self.part(value, f"[{key!r}]"))

    def _dataclass(self, kind: type, value: Any) -> bytes:
        names = dict.fromkeys(field.name for field in dataclasses.fields(value))
        names.update(dict.fromkeys(getattr(value, "__dict__", ())))
        found = [(name, getattr(value, name)) for name in sorted(names) if hasattr(value, name)]
        return _join(b"d", self.encode(kind), *(_join(b"", name.encode(), self.part(v, f".{name}")) for name, v in found))

    def _numpy(self, kind: type, value: Any) -> bytes | None:
        numpy = sys.modules["numpy"]
        if isinstance(value, numpy.dtype):
            return _join(b"Nd", repr(value).encode())
        if isinstance(value, numpy.generic):
            value = numpy.asarray(value)
            mark = b"Ns"
        elif kind is numpy.ndarray:
            mark = b"Na"
        else:
            return None  # masked arrays and the like have more than their data
        head = (repr(value.dtype).encode(), repr(value.shape).encode())
        if value.dtype.hasobject:
            return _join(mark, *head, self.part(value.ravel().tolist(), ".flat"))
        data = numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8).data if value.nbytes else b""
        return _join(mark, *head, hashlib.blake2b(data).digest())

    # ---- code ----

    def function(self, function: types.FunctionType) -> bytes:
        """A function by what it does: its code, its defaults, what it closes over, and what it uses of its script."""
        name = _join(b"", (function.__module__ or "").encode() if not is_main(function.__module__) else b"__main__",
                     function.__qualname__.encode())  # fmt: skip
        lenient = self.lenient
        self.lenient = True
        try:
            parts = [name, _code(function.__code__)]
            parts.append(self.part(function.__defaults__, " defaults"))
            parts.append(self.part(function.__kwdefaults__, " defaults"))
            parts.append(_join(b"c", *(self._cell(cell) for cell in function.__closure__ or ())))
            if is_own(function.__module__):
                parts.extend(self._used_globals(function))
        finally:
            self.lenient = lenient
        return _join(b"F", *parts)

    def _cell(self, cell: types.CellType) -> bytes:
        try:
            content = cell.cell_contents
        except ValueError:
            return b"empty"
        return self.encode(content)

    def _used_globals(self, function: types.FunctionType) -> Iterator[bytes]:
        values = function.__globals__
        names, attributes = names_in(function.__code__)
        for name in sorted(names):
            if name not in values:
                continue
            value = values[name]
            yield name.encode()
            yield self.part(value, f" global {name}")
            if isinstance(value, types.ModuleType) and is_own(value.__name__):
                for attribute in sorted(attributes & vars(value).keys()):
                    used = vars(value)[attribute]
                    if type(used) in ATOMS or isinstance(used, (types.FunctionType, type)):
                        yield attribute.encode()
                        yield self.part(used, f" global {name}.{attribute}")

    def _class(self, cls: type) -> bytes:
        name = _name(cls)
        if not is_own(cls.__module__):
            return _join(b"C", name)
        lenient = self.lenient
        self.lenient = True
        try:
            bases = [self.encode(base) for base in cls.__bases__ if base is not object]
            members = [_join(b"", key.encode(), self._member(key, value)) for key, value in sorted(vars(cls).items())
                       if key not in _OF_EVERY_CLASS]  # fmt: skip
        finally:
            self.lenient = lenient
        return _join(b"C", name, *bases, b"|", *members)

    def _member(self, name: str, value: Any) -> bytes:  # noqa: PLR0911
        if isinstance(value, (staticmethod, classmethod)):
            return _join(b"m", type(value).__name__.encode(), self.encode(value.__func__))
        if isinstance(value, property):
            return _join(b"r", *(self.encode(part) for part in (value.fget, value.fset, value.fdel)))
        if isinstance(value, (types.FunctionType, type)) or type(value) in ATOMS:
            return self.encode(value)
        if isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            return b"slot"
        if dataclasses.is_dataclass(value) or name.startswith(("__dataclass", "_member", "_value2member", "_sunder")):
            return b"made by Python"
        if isinstance(value, enum.Enum):
            return _join(b"e", name.encode(), self.encode(value.value))
        lenient, self.lenient = self.lenient, False
        try:
            return self.encode(value)
        except Undigestible:
            return b"some " + _name(type(value))  # a descriptor, a cache, a lock: state of the class, not of its code
        finally:
            self.lenient = lenient


def _sequence(mark: bytes) -> Callable[[_Encoder, Any], bytes]:
    return lambda encoder, value: _join(mark, *encoder.parts(value))


def _sorted(mark: bytes) -> Callable[[_Encoder, Any], bytes]:
    return lambda encoder, value: _join(mark, *sorted(encoder.parts(value)))


def _of(mark: bytes, take: Callable[[Any], Any]) -> Callable[[_Encoder, Any], bytes]:
    return lambda encoder, value: _join(mark, encoder.encode(take(value)))


_BUILTINS: dict[type, Callable[[_Encoder, Any], bytes]] = {
    list: _sequence(b"l"),
    tuple: _sequence(b"t"),
    deque: lambda encoder, value: _join(b"q", encoder.encode(value.maxlen), *encoder.parts(value)),
    set: _sorted(b"s"),
    frozenset: _sorted(b"S"),
    dict: lambda encoder, value: _join(b"D", *sorted(encoder.items(value.items()))),
    OrderedDict: lambda encoder, value: _join(b"O", *encoder.items(value.items())),
    Counter: lambda encoder, value: _join(b"K", *sorted(encoder.items(value.items()))),
    defaultdict: lambda encoder, value: _join(
        b"V", encoder.encode(value.default_factory), *sorted(encoder.items(value.items()))
    ),
    bytearray: _of(b"b", bytes),
    range: _of(b"R", lambda value: (value.start, value.stop, value.step)),
    slice: _of(b"L", lambda value: (value.start, value.stop, value.step)),
    type(...): lambda encoder, value: b"...",
    type(NotImplemented): lambda encoder, value: b"!",
    datetime.datetime: lambda encoder, value: _join(b"T", value.isoformat().encode(), str(value.fold).encode(),
                                                    encoder.encode(value.tzinfo)),
    datetime.time: lambda encoder, value: _join(b"h", value.isoformat().encode(), str(value.fold).encode(),
                                                encoder.encode(value.tzinfo)),
    datetime.date: _of(b"y", datetime.date.isoformat),
    datetime.timedelta: _of(b"i", lambda value: (value.days, value.seconds, value.microseconds)),
    decimal.Decimal: _of(b"x", str),
    fractions.Fraction: _of(b"/", lambda value: (value.numerator, value.denominator)),
    uuid.UUID: _of(b"U", lambda value: value.bytes),
    File: _of(b"@", lambda value: (value.url, value.local_path, *([] if value.sha256 is None else [value.sha256]))),
    types.FunctionType: lambda encoder, value: encoder.function(value),
    types.MethodType: lambda encoder, value: _join(b"M", encoder.encode(value.__func__), encoder.encode(value.__self__)),
    functools.partial: lambda encoder, value: _join(
        b"A", encoder.encode(value.func), encoder.encode(value.args), encoder.encode(value.keywords)
    ),
    types.ModuleType: lambda encoder, value: _join(b"o", value.__name__.encode()),
    types.CodeType: lambda encoder, value: _code(value),
}  # fmt: skip

_SPECIAL: dict[type, Callable[[_Encoder, Any], bytes]] = {}


def add_special(cls: type, encode: Callable[[Any], Any]) -> None:
    """Instances of `cls` have the bytes of `encode(instance)`: for classes of ours that this module must not import."""
    _SPECIAL[cls] = lambda encoder, value: _join(b"X", cls.__name__.encode(), encoder.encode(encode(value)))


def _special(kind: type) -> Callable[[_Encoder, Any], bytes] | None:
    return next((_SPECIAL[base] for base in kind.__mro__ if base in _SPECIAL), None)


def _builtin(encoder: _Encoder, value: Any) -> bytes:
    owner = value.__self__
    if owner is None or isinstance(owner, types.ModuleType):
        return _join(b"B", (value.__module__ or "").encode(), value.__qualname__.encode())
    return _join(b"B", encoder.encode(owner), value.__name__.encode())  # a bound method of a builtin object


_BUILTINS[types.BuiltinFunctionType] = _builtin


def _join(mark: bytes, *parts: bytes) -> bytes:
    """Parts with their lengths: no two sequences of parts give the same bytes."""
    pieces = [mark, len(parts).to_bytes(4, "little")]
    for part in parts:
        pieces.append(len(part).to_bytes(8, "little"))
        pieces.append(part)
    return b"".join(pieces)


def _name(cls: type) -> bytes:
    module = "__main__" if is_main(cls.__module__) else cls.__module__
    return f"{module}:{cls.__qualname__}".encode()


def _pickled(value: object) -> bytes:
    try:
        payload = payloads.dump_apart(value)
    except SerializationError as error:
        raise Undigestible(value, str(error)) from None
    return b"".join(payload.frames) if type(payload) is Large else payload


# ---- code -----------------------------------------------------------------------------------------------------


def _code(code: types.CodeType) -> bytes:
    """What a code object does: no file name, no line numbers."""
    shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    table: bytes = getattr(code, "co_exceptiontable", b"")  # from Python 3.11 on
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return _join(b"k", code.co_code, table, marshal.dumps((shape, names), _MARSHAL), *map(_constant, code.co_consts))


def _constant(value: Any) -> bytes:
    if isinstance(value, types.CodeType):
        return _code(value)
    return _Encoder().encode(value)  # atoms, tuples, frozensets, slices, Ellipsis


# ---- what others use ------------------------------------------------------------------------------------------


def canonical(value: Any, places: Callable[[Future[Any]], bytes] | None = None) -> bytes:
    """Canonical bytes of a value.

    Args:
        places: what a future stands for among the needs of the call; None where futures are not allowed.

    Raises:
        Undigestible: it has none.
    """
    try:
        return _Encoder(places).encode(value)
    except RecursionError:
        raise Undigestible(value, "it is nested too deeply") from None


def canonical_function(function: Callable[..., Any]) -> bytes:
    """Canonical bytes of an app's function: what it does, not where it stands.

    Raises:
        CacheKeyError: it uses something that can neither be digested nor pickled.
    """
    try:
        return _Encoder(lenient=True).encode(function)
    except Undigestible as error:
        name = getattr(function, "__qualname__", repr(function))
        raise CacheKeyError(explain(f"function {name}:", error)) from None
