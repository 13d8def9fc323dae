"""Keys of cached calls: equal for equal calls in every process, different for everything else."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import subprocess
import sys
import textwrap
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, namedtuple
from concurrent.futures import Future

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exex
from exex.client.digests import canonical, canonical_function
from exex.client.keys import KeyMaker
from exex.errors import CacheKeyError, ConfigError
from exex.files.file import File
from tests.launch import ROOT

atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
hashables = st.recursive(atoms, lambda part: st.tuples(part, part) | st.frozensets(part, max_size=4), max_leaves=6)
values = st.recursive(
    hashables, lambda part: st.lists(part, max_size=4) | st.dictionaries(hashables, part, max_size=4) | st.sets(hashables, max_size=4)
)


def told_apart(value: object) -> object:
    """A form in which == means: same type and content all the way down."""
    if isinstance(value, float):
        return "float", value.hex() if value == value else "nan"
    if isinstance(value, complex):
        return "complex", told_apart(value.real), told_apart(value.imag)
    if isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(map(told_apart, value))
    if isinstance(value, (set, frozenset)):
        return type(value).__name__, frozenset(map(told_apart, value))
    if isinstance(value, dict):
        return "dict", frozenset((told_apart(k), told_apart(v)) for k, v in value.items())
    return type(value).__name__, value


@given(values, values)
def test_bytes_are_equal_exactly_where_values_are(one, other):
    assert (canonical(one) == canonical(other)) == (told_apart(one) == told_apart(other))


@given(st.lists(st.tuples(hashables, atoms), max_size=6), st.randoms())
def test_the_order_of_dicts_and_sets_does_not_count(pairs, rng):
    mapping = dict(pairs)
    shuffled = list(mapping.items())
    rng.shuffle(shuffled)
    assert canonical(dict(shuffled)) == canonical(mapping)
    assert canonical({key for key, _ in shuffled}) == canonical(set(mapping))


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Point:
    x: float
    y: float


Pair = namedtuple("Pair", "x y")
DIFFERENT = [
    *(1, True, 1.0, "1", b"1", (1,), [1], {1}, frozenset([1]), {1: None}, 0.0, -0.0),
    *(Point(1, 2), Point(2, 1), Pair(1, 2), (1, 2), [1, 2], Colour.RED, Colour.BLUE, Point, Pair, Colour),
    *(pathlib.Path("a"), File("a"), "a", pathlib.PurePosixPath("a"), File("file:///a")),
    *(datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)),
    *(datetime.time(1), datetime.timedelta(1), decimal.Decimal("1.0"), decimal.Decimal("1.00"), fractions.Fraction(1, 2)),
    *(uuid.UUID(int=1), range(3), range(0, 3, 2), bytearray(b"1"), ..., slice(1), OrderedDict(a=1), Counter("a"), defaultdict(int)),
    *(len, print, functools.partial(len, [1]), functools.partial(len, [2]), "a".upper, "b".upper, math := types.ModuleType("m")),
    *(numpy.zeros(3), numpy.zeros(3, "f4"), numpy.zeros((1, 3)), numpy.ones(3), numpy.float64(0), numpy.float32(0), numpy.array(0.0)),
    *(numpy.zeros(0), numpy.zeros((0, 2)), numpy.array(["a"]), numpy.array(["a"], object), numpy.dtype("f8"), numpy.datetime64("2020")),
]


def test_things_that_differ_have_different_bytes():
    made = [canonical(value) for value in DIFFERENT]
    same = [(DIFFERENT[i], DIFFERENT[j]) for i in range(len(made)) for j in range(i) if made[i] == made[j]]
    assert same == [(pathlib.PurePosixPath("a"), pathlib.Path("a"))] or all(isinstance(a, pathlib.PurePath) for a, _ in same)


def test_arrays_count_by_their_content():
    array = numpy.arange(12.0).reshape(3, 4)
    assert canonical(array.T) == canonical(numpy.ascontiguousarray(array.T)) == canonical(numpy.asfortranarray(array.T))
    assert canonical(array[:, ::2]) == canonical(array[:, ::2].copy())


@pytest.mark.parametrize("seed", ["0", "1"])
def test_bytes_do_not_depend_on_the_process(seed):
    script = """
    import datetime, pathlib, sys
    from exex.client.digests import canonical, hash_of
    from tests.unit.test_digests import Point, Colour, uses_much
    value = [{"b", "a", "c"}, {"x": 1, "y": {2, "z"}}, Point(1, 2), Colour.RED, pathlib.Path("p"), uses_much, Point, Colour]
    print(hash_of(canonical(value)).hex())
    """
    done = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, env={"PYTHONHASHSEED": s}, capture_output=True, text=True
        )
        for s in (seed, "7")
    ]
    assert done[0].stdout == done[1].stdout != "", done[0].stderr


def test_what_has_no_bytes_is_named():
    class Opaque:
        pass

    loop: list = []
    loop.append(loop)
    for value, says in [
        (Opaque(), "the value of type tests.*Opaque cannot be part of a cache key: register a function.*register.*Opaque"),
        ({"a": [1, Opaque()]}, r"the value\['a'\]\[1\] of type"),
        (Point(1, Opaque()), r"the value\.y of type"),
        (loop, "it contains itself"),
        (functools.reduce(lambda inner, _: [inner], range(500), 1), "nested too deeply"),
        (numpy.ma.array([1], mask=[True]), "MaskedArray"),
        (type("Text", (str,), {})("a"), "Text"),
        (Future(), "Future"),
        (object(), "object"),
    ]:
        with pytest.raises(CacheKeyError, match=says) as caught:
            exex.id_for_memo(value)
        assert isinstance(caught.value, TypeError)


def test_types_of_users_can_be_registered():
    class Molecule:
        def __init__(self, name):
            self.name = name

    class Bad(Molecule):
        pass

    @exex.id_for_memo.register(Molecule)
    def _(molecule, output_ref=False):
        return molecule.name.encode()

    @exex.id_for_memo.register(Bad)
    def _(molecule, output_ref=False):
        return molecule.name

    assert canonical([Molecule("a")]) == canonical([Molecule("a")]) != canonical([Molecule("b")])
    assert canonical(type("Sub", (Molecule,), {})("a")) != canonical(Molecule("a"))
    with pytest.raises(CacheKeyError, match="returned str instead of bytes"):
        exex.id_for_memo([Bad("a")])


# ---- functions ------------------------------------------------------------------------------------------------

FACTOR = 3


def helper(x):
    return x * FACTOR


def uses_much(x, y=1, *, z=2):
    """Text."""
    return [helper(i) + y for i in range(x)], numpy.sum([z]), {"a", "b"}


def function(source: str, name: str = "f", **more: object) -> types.FunctionType:
    """A function of a script, made anew: as in another run."""
    module = {"__name__": "__main__", **more}
    exec(compile(textwrap.dedent(source), f"/somewhere/{id(source)}.py", "exec"), module)
    return module[name]


BASE = """
LIMIT = 3
def helper(x):
    return x + LIMIT
class Model:
    rate = 2
    def run(self): return self.rate
def f(x, y=1):
    return [helper(i) for i in range(x)], y, Model().run()
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("LIMIT = 3", "\n\n# a remark\nLIMIT = 3", True),
        ("def helper", "def unused(): pass\ndef helper", True),
        ("    return x + LIMIT", "    # why\n    return (x +\n        LIMIT)", True),
        ("LIMIT = 3", "LIMIT = 4", False),
        ("x + LIMIT", "x - LIMIT", False),
        ("y=1", "y=2", False),
        ("rate = 2", "rate = 3", False),
        ("return self.rate", "return -self.rate", False),
        ("range(x)]", "range(x + 1)]", False),
        ("def f(x, y=1)", "def f(x, *, y=1)", False),
        ("[helper(i) for i", "[-helper(i) for i", False),
    ],
)
def test_a_function_counts_by_what_it_does(old, new, same):
    assert old in BASE
    assert (canonical_function(function(BASE)) == canonical_function(function(BASE.replace(old, new)))) == same


def test_functions_that_call_each_other_and_themselves():
    source = "def f(x): return x and g(x - 1)\ndef g(x): return x and f(x - 1)"
    assert canonical_function(function(source)) == canonical_function(function(source))
    assert canonical_function(function(source)) != canonical_function(function(source.replace("f(x - 1)", "f(x - 2)")))


def test_closures_count():
    def make(n):
        return lambda x: x + n

    assert canonical_function(make(1)) == canonical_function(make(1)) != canonical_function(make(2))


def test_an_enum_and_a_class_that_holds_itself():
    source = "import enum\nclass C(enum.Enum):\n    A = 1\nclass D: pass\nD.me = D\nD.it = D()\ndef f(): return C.A, D"
    assert canonical_function(function(source)) == canonical_function(function(source))
    assert canonical_function(function(source)) != canonical_function(function(source.replace("A = 1", "A = 2")))


# ---- keys -----------------------------------------------------------------------------------------------------


def simulate(x, y=0, *rest, log=None):
    return x


def key(*args, version=None, ignored=(), needs=(), kind=0, **kwargs):
    return KeyMaker("simulate", simulate, kind, version, ignored).make(args, kwargs, needs).partial


def test_keys_say_function_arguments_and_version():
    assert key(1, 2) == key(1, y=2) == key(x=1, y=2) == key(y=2, x=1)
    others = [key(1, 3), key(2, 1), key(1), key(1, 2, 3), key(1, 2, log=3), key(1, 2, version=1), key(1, 2, kind=1), key("1", 2)]
    assert len({key(1, 2), *others}) == len(others) + 1
    assert key(1, 2, retries=3, priority=1, walltime=5.0) == key(1, 2)


@given(st.lists(atoms, max_size=2))
def test_the_fast_way_makes_the_same_key(args):
    maker = KeyMaker("simulate", simulate, 0, None, ())
    assert maker.simple(tuple(args), {}) == maker.make(tuple(args), {}, []).partial


def test_ignored_arguments_do_not_count():
    assert key(1, log="a", ignored=["log"]) == key(1, log=object(), ignored=["log"]) == key(1, ignored=["log"])
    assert key(1, 2, ignored=["y"]) == key(1, 3, ignored=["y"]) != key(2, 3, ignored=["y"])
    with pytest.raises(ConfigError, match="ignore_for_cache names colour, which the function does not have"):
        key(1, ignored=["colour"])


def test_arguments_that_cannot_be_digested_are_named():
    with pytest.raises(CacheKeyError, match=r"app simulate has cache=True, and argument 'y'\['k'\] of type object cannot"):
        key(1, {"k": object()})
    with pytest.raises(CacheKeyError, match=r"argument in \*args\[1\] of type object"):
        key(1, 2, 3, object())
