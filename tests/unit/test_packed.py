"""How functions and arguments travel for a library that pickles in a way of its own: here with marks that say which of both it was."""

from __future__ import annotations

import io
import math
import pickle
import threading

import pytest

from exex.integrations.packed import Function, Packed, Pickling, dump_call
from exex.protocol import payload as payloads

LOCK = threading.Lock()


class _WithLocks(pickle.Pickler):
    """As the library's: knows one kind of objects that nobody else does."""

    def reducer_override(self, value: object) -> object:
        return (threading.Lock, ()) if type(value) is type(LOCK) else NotImplemented


def dumps(value: object) -> bytes:
    file = io.BytesIO()
    _WithLocks(file).dump(value)
    return b"library" + file.getvalue()


def loads(data: bytes) -> object:
    assert data.startswith(b"library")
    return pickle.loads(data[len(b"library") :])


THEIRS = Pickling(dumps, loads)
ALWAYS = Pickling(dumps, loads, always=True)


def travel(function: object, pickling: Pickling) -> tuple[object, bool]:
    """The function as it arrives, and whether it came as the library pickles."""
    packed = Function(function, pickling)
    return payloads.load(payloads.dump(packed)), type(packed._inner) is Packed


def scripts_own() -> object:
    """A function as of a script."""
    names: dict[str, object] = {"__name__": "__main__"}
    exec("class Point: pass\ndef make(): return Point()", names)
    return names["make"]


def test_functions_of_modules_go_as_the_library_does_it() -> None:
    found, was_theirs = travel(math.gcd, THEIRS)
    assert found(12, 18) == 6
    assert was_theirs


def test_what_the_library_cannot_pickle_goes_as_exex_does_it() -> None:
    found, was_theirs = travel(lambda x: x + 1, THEIRS)
    assert found(1) == 2
    assert not was_theirs
    with pytest.raises(pickle.PicklingError, match="never"):
        Function(_Never(), THEIRS)


class _Never:
    def __call__(self) -> None: ...

    def __reduce__(self) -> str:
        raise pickle.PicklingError("never")


def test_functions_of_the_script_see_what_they_use_of_it() -> None:
    function = scripts_own()
    by_library = Pickling(lambda value: dumps("of __main__"), loads)
    found, was_theirs = travel(function, by_library)
    assert type(found()).__name__ == "Point"
    assert not was_theirs
    _, was_theirs = travel(function, by_library._replace(always=True))
    assert was_theirs


@pytest.mark.parametrize("pickling", [THEIRS, ALWAYS])
@pytest.mark.parametrize("args, kwargs", [((2, 5), {}), ((2,), {"exp": 5}), ((), {"base": 2, "exp": 5})])
def test_arguments_arrive_as_they_were_given(pickling: Pickling, args: tuple, kwargs: dict) -> None:
    payload, needs = dump_call(args, kwargs, {"mpi": {}}, pickling)
    assert needs == []
    args, kwargs, options = payloads.load_call(payload, None)
    assert options == {"mpi": {}}
    assert travel(pow, pickling)[0](*args, **kwargs) == 32


def test_arguments_that_only_the_library_can_pickle() -> None:
    lock = threading.Lock()
    payload, _ = dump_call((lock,), {"x": [lock]}, None, THEIRS)
    args, kwargs = payloads.load_call(payload, None)
    found = travel(_kinds, THEIRS)[0](*args, **kwargs)
    assert found == (type(lock), type(lock))
    with pytest.raises(TypeError):
        dump_call((lock,), {"x": (number for number in ())}, None, THEIRS)


def _kinds(lock: object, x: list[object]) -> tuple[type, type]:
    return type(lock), type(x[0])


def test_a_function_that_comes_along_with_its_arguments() -> None:
    function = Function(_kinds, THEIRS)
    lock = threading.Lock()
    payload, _ = dump_call((function, lock), {"x": [lock]}, None, THEIRS)
    args, kwargs = payloads.load_call(payload, None)
    assert payloads.call_argument(*args, **kwargs) == (type(lock), type(lock))
