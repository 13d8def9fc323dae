"""Calls, values, functions and errors survive the way through a payload; what cannot is named."""

import asyncio
import copyreg
import dataclasses
import functools
import pickle
import subprocess
import sys
import threading

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exex import errors
from exex.protocol import payload, unpicklable
from exex.protocol.payload import Large, dump, dump_call, dump_error, dump_function, load, load_call

WHERE = "task 7 (f) on rank 3 at nid00012, attempt 1"


@pytest.fixture(autouse=True)
def plain_errors(monkeypatch):
    """Errors as Python pickles them: where Dask finds tblib, importing it lets all errors of the process bring causes and tracebacks."""
    for cls, reduce in list(copyreg.dispatch_table.items()):
        if getattr(reduce, "__module__", "").startswith("tblib"):
            monkeypatch.delitem(copyreg.dispatch_table, cls)


class Future:
    """Stands for the client's futures."""

    def __init__(self, number=0):
        self.number = number

    def __reduce__(self):
        return payload.place_for(self)


class After(Future):
    def __reduce__(self):
        return payload.place_after(self, f"path {self.number}")


@dataclasses.dataclass
class Point:
    x: object
    y: object


class Box:
    def __init__(self, content):
        self.content = content

    def __eq__(self, other):
        return type(other) is Box and other.content == self.content


def answer(number):
    """What the task of a future returned."""
    return {"answer": number}


def through(args, kwargs=None, options=None):
    """Dump a call, answer its needs, load it."""
    data, needs = dump_call(args, kwargs or {}, options)
    return load_call(data, [dump(answer(need.number)) for need in needs]), needs


# ---- places ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda x: x, lambda x: x),
        (lambda x: [1, x], lambda x: x[1]),
        (lambda x: (x, 2), lambda x: x[0]),
        (lambda x: {"key": x}, lambda x: x["key"]),
        (lambda x: Point(x, 0), lambda x: x.x),
        (Box, lambda x: x.content),
        (lambda x: [({"k": Box(Point(0, [x]))},)], lambda x: x[0][0]["k"].content.y[0]),
        (lambda x: Box([lambda: 1, x]), lambda x: x.content[1]),  # the lambda takes it to cloudpickle
        (lambda x: functools.partial(print, x), lambda x: x.args[0]),
    ],
)
def test_a_future_is_filled_in_at_any_depth(wrap, unwrap):
    (args, kwargs), needs = through((wrap(Future(5)),), {"named": wrap(Future(6))})
    assert unwrap(args[0]) == answer(5)
    assert unwrap(kwargs["named"]) == answer(6)
    assert [need.number for need in needs] == [5, 6]


def test_futures_in_sets():
    data, needs = dump_call(({Future(1), Future(2)},), {}, None)
    (args, _) = load_call(data, [dump(need.number * 10) for need in needs])
    assert args[0] == {10, 20}


leaves = st.one_of(st.integers(), st.text(max_size=5), st.none(), st.builds(Future, st.integers(0, 99)))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Box, inner),
    ),
    max_leaves=20,
)


def filled(tree):
    if isinstance(tree, Future):
        return answer(tree.number)
    if isinstance(tree, list):
        return [filled(part) for part in tree]
    if isinstance(tree, tuple):
        return tuple(filled(part) for part in tree)
    if isinstance(tree, dict):
        return {key: filled(part) for key, part in tree.items()}
    if isinstance(tree, Point):
        return Point(filled(tree.x), filled(tree.y))
    if isinstance(tree, Box):
        return Box(filled(tree.content))
    return tree


@given(st.lists(trees, max_size=3), st.dictionaries(st.sampled_from(["a", "b"]), trees))
def test_any_call_arrives_as_it_was_with_its_places_filled(args, kwargs):
    (got_args, got_kwargs), _ = through(tuple(args), kwargs)
    assert got_args == tuple(filled(arg) for arg in args)
    assert got_kwargs == {name: filled(arg) for name, arg in kwargs.items()}


def test_a_future_that_comes_twice_is_one_need():
    future = Future(3)
    (args, kwargs), needs = through((future, [future]), {"again": future})
    assert needs == [future]
    assert args == (answer(3), [answer(3)])
    assert kwargs == {"again": answer(3)}


def test_the_attempt_that_the_standard_pickler_gives_up_leaves_no_needs():
    first, last = Future(1), Future(2)
    (args, _), needs = through((first, lambda: 4, last))
    assert needs == [first, last]
    assert (args[0], args[1](), args[2]) == (answer(1), 4, answer(2))


def test_place_after_keeps_a_stand_in():
    (args, _), needs = through((After(4),))
    assert args == ("path 4",)
    assert [need.number for need in needs] == [4]


def test_options_come_third():
    assert through((1,), {"a": 2}, {"cwd": "/"})[0] == ((1,), {"a": 2}, {"cwd": "/"})


def test_a_future_means_nothing_outside_a_call():
    with pytest.raises(errors.SerializationError, match="Future can be pickled only as an argument of an app"):
        dump([Future(1)])
    with pytest.raises(TypeError):
        pickle.dumps(Future(1))
    dump_call((Future(1),), {}, None)
    with pytest.raises(errors.SerializationError):
        dump(Future(1))  # also when a call has been pickled before


def test_calls_are_pickled_in_several_threads_at_once():
    start = threading.Barrier(8)
    wrong = []

    def work(number):
        start.wait()
        for i in range(200):
            (args, _), needs = through((Future(number), i))
            if args != (answer(number), i) or len(needs) != 1:
                wrong.append(args)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_foreign_future_is_registered():
    class Foreign(asyncio.Future):
        pass

    loop = asyncio.new_event_loop()
    foreign = Foreign(loop=loop)
    foreign.number = 8
    payload.register_foreign_future(Foreign, payload.place_for)
    try:
        (args, _), needs = through(([foreign],))
    finally:
        del copyreg.dispatch_table[Foreign]
        loop.close()
    assert args == ([answer(8)],)
    assert needs == [foreign]


def test_a_value_that_cannot_be_unpickled_fails_the_call():
    data, _ = dump_call((Future(1),), {}, None)
    with pytest.raises(errors.DeserializationError, match="the arguments cannot be unpickled here") as caught:
        load_call(data, [b"no pickle"])
    assert caught.value.__cause__ is not None


# ---- values ---------------------------------------------------------------------------------------------------


def test_small_payloads_are_bytes_and_large_ones_frames():
    assert type(dump(b"x" * 100)) is bytes
    large = dump(b"x" * payload.LARGE_BYTES)
    assert type(large) is Large
    assert len(large.frames) == 1
    assert load(large) == b"x" * payload.LARGE_BYTES
    assert len(large) > payload.LARGE_BYTES
    assert repr(large).startswith("<Large ")


@pytest.mark.parametrize("kind", ["standard", "cloud"])
def test_arrays_travel_out_of_band_and_uncopied(kind):
    array = np.arange(100_000, dtype="f8")
    data = dump(array if kind == "standard" else (array, lambda: 0))
    assert len(data.frames) == 2
    assert np.shares_memory(np.frombuffer(data.frames[1], "f8"), array)
    loaded = load(data) if kind == "standard" else load(data)[0]
    assert np.array_equal(loaded, array)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 4), (300, 400)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_can_be_written_to_and_nobody_else_sees_it(shape, order):
    array = np.ones(shape, order=order)
    data = dump(array)
    loaded = load(payload.writable(data))
    loaded += 1
    assert np.array_equal(loaded, array + 1)
    assert np.array_equal(array, np.ones(shape))
    assert np.array_equal(load(data), array)


def test_writable_leaves_everything_else_alone():
    small, large = dump(1), dump(b"x" * 100_000)
    assert payload.writable(small) is small
    assert payload.writable(large) is large


def test_what_lives_in_main_goes_by_value(tmp_path):
    """Function, class, instance and closure of one program's `__main__`, loaded in another's."""
    path = tmp_path / "payloads"
    writer = f"""
import pickle
from exex.protocol.payload import dump, dump_function
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
    def sum(self): return self.a + self.b + offset
offset = 100
def outer(n):
    def inner(x): return x + n + offset
    return inner
def pair(x): return Pair(x, 1)
with open({str(path)!r}, "wb") as file:
    pickle.dump([dump(Pair(1, 2)), dump_function(pair)[1], dump_function(outer(5))[1], dump([lambda x: x * 2])], file)
"""
    reader = f"""
import pickle
from exex.protocol.payload import load
with open({str(path)!r}, "rb") as file:
    value, pair, inner, double = [load(data) for data in pickle.load(file)]
print(value.sum(), pair(4).sum(), inner(1), double[0](21))
"""
    subprocess.run([sys.executable, "-c", writer], check=True)
    out = subprocess.run([sys.executable, "-c", reader], check=True, capture_output=True, text=True)
    assert out.stdout == "103 105 106 42\n"


def test_the_word_main_in_the_data_does_no_harm():
    assert load(dump(["__main__", {"__main__": 1}])) == ["__main__", {"__main__": 1}]


# ---- functions ------------------------------------------------------------------------------------------------


class App:
    """What a decorator leaves under the function's name."""

    def __init__(self, function):
        functools.update_wrapper(self, function)


@App
def decorated(x):
    return x + 1


def plain(x):
    return x + 2


def test_functions_of_modules_go_by_name():
    for function in (plain, decorated.__wrapped__, np.sum, len):
        digest, data = dump_function(function)
        assert load(data) is function
        assert len(data) < 200
        assert len(digest) == 16
        assert dump_function(function)[0] == digest
    assert dump_function(plain)[0] != dump_function(decorated.__wrapped__)[0]


def test_other_callables():
    offset = 3
    assert load(dump_function(lambda x: x + offset)[1])(1) == 4
    assert load(dump_function(functools.partial(plain, 5))[1])() == 7
    assert load(dump_function(Box)[1]) is Box
    assert load(dump_function("a-b".split)[1])("-") == ["a", "b"]


def test_a_large_function_has_a_digest_of_all_of_it():
    def make(last):
        table = [*range(20_000), last]
        return lambda: table[-1]

    one, two = dump_function(make(1)), dump_function(make(2))
    assert type(one[1]) is Large
    assert one[0] != two[0]
    assert load(two[1])() == 2


def test_a_function_that_cannot_be_pickled_is_named():
    lock = threading.Lock()

    def guarded():
        return lock

    with pytest.raises(errors.SerializationError, match=r"function .*guarded' cannot be pickled .*lock"):
        dump_function(guarded)


# ---- what cannot be pickled -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((1, threading.Lock()), {}, "argument 1 of type lock"),
        ((), {"x": threading.Lock()}, "argument 'x' of type lock"),
        (([1, {"a": (2, threading.Lock())}],), {}, "argument 0[1]['a'][1] of type lock"),
        ((Box(Point([1, threading.Lock()], 2)),), {}, "argument 0.content.x[1] of type lock"),
        (({threading.Lock()},), {}, "argument 0{} of type lock"),
        ((Future(1), iter([1]), (x for x in ())), {}, "argument 2 of type generator"),
    ],
)
def test_the_part_that_cannot_be_pickled_is_named(args, kwargs, said):
    with pytest.raises(errors.SerializationError) as caught:
        dump_call(args, kwargs, None)
    assert str(caught.value).startswith(f"{said} cannot be pickled (")
    with pytest.raises(errors.SerializationError):
        dump(Future(1))  # nothing is collected any more


def test_only_an_option_that_cannot_be_pickled():
    with pytest.raises(errors.SerializationError, match="an argument cannot be pickled"):
        dump_call((1,), {}, {"env": threading.Lock()})


@given(st.integers(1, 300), st.sets(st.integers(0, 299), max_size=3))
def test_the_first_of_many_that_cannot_be_pickled_is_found(count, bad):
    values = [print if i not in bad else threading.Lock() for i in range(count)]
    assert unpicklable.first_unpicklable(values) == min((i for i in bad if i < count), default=None)


def test_a_value_that_holds_itself_is_explained():
    circle = Box(None)
    circle.content = [circle, threading.Lock()]
    assert unpicklable.explain_value("the value", circle).startswith("the value.content")


# ---- errors ---------------------------------------------------------------------------------------------------


class TwoArguments(Exception):
    """Does not survive pickling: `args` holds one, `__init__` wants two."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class BrokenReduce(Exception):
    def __reduce__(self):
        raise ValueError("no way to reduce")


class BrokenText(Exception):
    def __str__(self):
        raise ValueError("no text")


class Detailed(Exception):
    def __init__(self, text, detail):
        super().__init__(text, detail)
        self.detail = detail


def caught(error, cause=None):
    """The error as it is once raised, two frames deep."""

    def inner():
        raise error from cause

    try:
        inner()
    except BaseException as raised:
        return raised


def test_an_error_comes_with_its_traceback_after_where():
    error = load(dump_error(caught(Detailed("went wrong", {"a": 1})), WHERE))
    assert type(error) is Detailed
    assert error.detail == {"a": 1}
    assert error.args == ("went wrong", {"a": 1})
    assert isinstance(error.__cause__, payload.RemoteTraceback)
    assert error.__cause__.text.startswith(f"{WHERE}:\nTraceback (most recent call last):\n")
    assert "in inner" in error.__cause__.text
    assert "went wrong" in error.__cause__.text
    assert str(error.__cause__) == f"\n\n{error.__cause__.text}"


def test_our_own_frames_are_left_out():
    error = caught(ValueError("x"))
    assert "in caught" in load(dump_error(error, WHERE)).__cause__.text
    assert "in caught" not in load(dump_error(error, WHERE, frames_to_skip=1)).__cause__.text
    assert "in inner" in load(dump_error(error, WHERE, frames_to_skip=99)).__cause__.text


def test_the_cause_is_told_in_the_text():
    text = load(dump_error(caught(ValueError("late"), cause=KeyError("early")), WHERE)).__cause__.text
    assert "early" in text
    assert "direct cause" in text
    assert "late" in text


def test_an_error_that_was_never_raised_has_no_traceback():
    error = load(dump_error(ValueError("made by us"), WHERE))
    assert error.args == ("made by us",)
    assert error.__cause__ is None


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (TwoArguments(1, 2), "TypeError"),
        (BrokenReduce("lost"), "no way to reduce"),
        (Detailed("holds a lock", threading.Lock()), "lock"),
    ],
)
def test_an_error_that_does_not_survive_pickling_is_quoted(error, why):
    quoted = load(dump_error(caught(error), WHERE))
    assert type(quoted) is errors.SerializationError
    assert str(quoted).startswith(f"{WHERE} raised {type(error).__name__}, which cannot be pickled (")
    assert why in str(quoted)
    assert str(error.args[0]) in str(quoted)
    assert "in inner" in str(quoted)


def test_an_error_whose_text_cannot_be_made():
    error = load(dump_error(caught(BrokenText()), WHERE))
    assert type(error) is BrokenText
    assert error.__cause__.text.startswith(WHERE)


def test_an_error_that_nothing_can_be_said_of():
    class Evil(Exception):
        def __str__(self):
            raise BrokenText

        def __reduce__(self):
            raise BrokenText

    quoted = load(dump_error(caught(Evil()), WHERE))
    assert type(quoted) is errors.SerializationError
    assert str(quoted).startswith(f"{WHERE} raised Evil")


def test_an_error_that_breaks_on_arrival_with_an_unspeakable_error():
    class Evil(Exception):
        def __reduce__(self):
            return _raise_broken_text, ()

    quoted = load(dump_error(caught(Evil("said")), WHERE))
    assert type(quoted) is errors.SerializationError
    assert str(quoted).startswith(f"{WHERE} raised Evil, which cannot be pickled (BrokenText)")


def _raise_broken_text():
    raise BrokenText


def test_errors_of_local_classes_arrive():
    class Local(Exception):
        pass

    error = load(dump_error(caught(Local(1, "two")), WHERE))
    assert type(error).__name__ == "Local"
    assert error.args == (1, "two")


def test_base_exceptions_arrive():
    assert isinstance(load(dump_error(caught(KeyboardInterrupt()), WHERE)), KeyboardInterrupt)


def test_a_huge_error_is_large():
    data = dump_error(caught(ValueError("x" * 100_000)), WHERE)
    assert type(data) is Large
    assert load(data).args == ("x" * 100_000,)


def test_every_error_of_ours_survives():
    cause = errors.TaskProcessDied("died", 3, "nid1", -11, "tail")
    made = [
        errors.ExexError("a", 1),
        errors.InvalidResourceSpecification({"gpus"}, "no such key"),
        errors.DependencyError([(cause, "task 1 (f)"), (ValueError("x"), "task 2 (g)")], 9),
        errors.JoinError([(cause, "task 1 (f)")], 9),
        errors.WorkerLost("lost", 4, "nid2"),
        cause,
        errors.BashExitFailure("app", 3, WHERE, "tail"),
        errors.BashAppNoReturn("none"),
        errors.MissingOutputs("missing", ["a", "b"]),
        errors.BadStdStreamFile("bad"),
    ]
    for error in made:
        for copy in (load(dump(error)), load(dump_error(error, WHERE)), cloudpickle.loads(cloudpickle.dumps(error))):
            assert type(copy) is type(error)
            assert str(copy) == str(error)
            assert {k: repr(v) for k, v in vars(copy).items()} == {k: repr(v) for k, v in vars(error).items()}
