"""The decorators: what they accept, what the task gets, and what is refused at the call."""

import concurrent.futures as cf
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

import exex
from exex import (
    AUTO_LOGNAME,
    ConfigError,
    DependencyError,
    File,
    InvalidResourceSpecification,
    JoinError,
    NoManagerError,
    SerializationError,
    bash_app,
    join_app,
    python_app,
    wait_for_current_tasks,
)
from exex.protocol import context
from exex.protocol.messages import Cancel, Fulfil, NodeShape, Promise, Submit, Verdict
from tests.fakes import FakeManager, Job, shaken
from tests.unit.plain_apps import echo, fail


def specs(manager):
    return [spec for message in manager.told(Submit) for spec in message.apps]


@python_app
def everything(*args, **kwargs):
    return args, kwargs


@bash_app
def say(word, stdout=None, stderr=None, inputs=(), outputs=()):
    return f"echo {word}"


# ---- decorating --------------------------------------------------------------------------------------------------


@python_app
def documented(x: int) -> int:
    """Adds nothing."""
    return x


@python_app(executors=["htex"], cache=False, ignore_for_cache=["x"], retries=2, priority=3, walltime=4)
def with_options(x):
    return x


def test_it_looks_like_its_function(manager):
    assert documented.__name__ == "documented"
    assert documented.__doc__ == "Adds nothing."
    assert documented.__wrapped__(3) == documented.func(3) == 3
    assert repr(documented) == "<PythonApp documented>"


def test_options_of_the_decorator_reach_the_manager(manager):
    assert with_options(1).result() == 1
    [spec] = specs(manager)
    assert (spec.name, spec.retries, spec.priority, spec.walltime_s, spec.asks) == ("with_options", 2, 3, 4.0, False)


def test_an_app_is_told_once(manager):
    for _ in range(3):
        for i in range(10):
            echo(i, priority=i % 2).result()
    assert [(spec.name, spec.priority) for spec in specs(manager)] == [("echo", 0), ("echo", 1)]
    assert sum(len(message.functions) for message in manager.told(Submit)) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"version": 3}, ConfigError, "needs cache=True"),
        ({"cache": True, "ignore_for_cache": "x"}, TypeError, "list of argument names"),
        ({"data_flow_kernel": object()}, ConfigError, "one manager"),
        ({"retries": -1}, ValueError, "negative"),
        ({"retries": 1.5}, TypeError, "int"),
        ({"priority": "high"}, TypeError, "int"),
        ({"walltime": 0}, ValueError, "positive"),
        ({"walltime": "1:00"}, TypeError, "seconds"),
        ({"memory": 0}, ValueError, "positive"),
        ({"memory": -5}, ValueError, "positive"),
        ({"memory": True}, TypeError, "int, in bytes, not True"),
        ({"memory": 1e9}, TypeError, "int, in bytes"),
        ({"memory": "1G"}, TypeError, "int, in bytes, not '1G'"),
        ({"cwd": 3}, TypeError, "cwd must be a path, not 3"),
        ({"env": {"A": 1}}, TypeError, "str"),
        ({"function": 3}, TypeError, "function"),
        ({"speed": 9}, TypeError, "speed"),
    ],
)
def test_wrong_arguments_of_decorators(arguments, error, text):
    with pytest.raises(error, match=text):
        python_app(**arguments)


@python_app(memory=5000)
def frugal(x):
    return x


@python_app
def remembers(memory):
    return memory


def test_memory(manager):
    """At the call, in the resource specification (in MB, as Parsl has it), at the decorator: the first that is there."""
    assert frugal(1).result() == echo(1).result() == 1
    assert frugal(2, memory=7000, parsl_resource_specification={"memory": 3}).result() == 2
    assert frugal(3, parsl_resource_specification={"memory": 3, "priority": 1}).result() == 3
    assert remembers(memory="own").result() == "own"
    limits = {(spec.name, spec.memory_bytes) for spec in specs(manager)}
    assert limits == {("frugal", 5000), ("echo", None), ("frugal", 7000), ("frugal", 3 * 1024**2), ("remembers", None)}


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "2G"])
def test_wrong_memory(manager, wrong):
    with pytest.raises((TypeError, ValueError), match="memory must be"):
        echo(1, memory=wrong)
    with pytest.raises(InvalidResourceSpecification, match="must be a positive int, in MB") as caught:
        echo(1, parsl_resource_specification={"memory": wrong})
    assert caught.value.invalid_keys == {"memory"}


def test_other_callables_can_be_apps(manager):
    class Doubler:
        def __call__(self, x):
            return 2 * x

    assert python_app(len)([1, 2]).result() == 2
    assert python_app(Doubler())(4).result() == 8
    assert python_app(dict)(a=1).result() == {"a": 1}
    assert python_app(lambda x: x + 1)(1).result() == 2


class Account:
    def __init__(self, balance):
        self.balance = balance

    @python_app
    def plus(self, amount):
        return self.balance + amount


def test_methods(manager):
    assert Account(5).plus(3).result() == 8


# ---- pickling apps -----------------------------------------------------------------------------------------------


def test_apps_of_modules_travel_by_name():
    assert pickle.loads(pickle.dumps(echo)) is echo
    assert pickle.loads(pickle.dumps(Account.plus)) is Account.plus


SCRIPT = """
import sys
from exex import python_app, join_app
from tests.fakes import Job

@python_app
def down(n):
    return n if n == 0 else helper(n)

def helper(n):
    return (n, down.__name__, even.__name__, other.__wrapped__(n))

@python_app
def other(n):
    return -n

@join_app
def even(n):
    return down(n) if n % 2 == 0 else even(n - 1)

with Job():
    assert down(3).result() == (3, "down", "even", -3), down(3).result()
    assert even(5).result() == (4, "down", "even", -4)
    @python_app
    def take(app):
        try:
            app(1)
        except Exception as error:
            return type(error).__name__
    print(take(down).result())
"""


def test_apps_of_the_script_travel_by_value_even_in_circles(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr


def test_a_closure_survives_cloudpickle():
    base = 10

    @python_app
    def plus(x):
        return base + x

    assert cloudpickle.loads(cloudpickle.dumps(plus)).__wrapped__(1) == 11


# ---- where apps can be called ----------------------------------------------------------------------------------------


def test_outside_a_job_the_message_says_how_to_run_the_script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/me/flow.py"])
    for action in (lambda: echo(1), lambda: exex.Executor(), lambda: exex.map(len, []), wait_for_current_tasks):
        with pytest.raises(NoManagerError) as caught:
            action()
        text = str(caught.value)
        assert "exex run flow.py" in text
        assert "mpiexec -n 5 python -m exex.run flow.py" in text
        assert "\n" not in text
    with pytest.raises(NoManagerError, match="app echo was called outside an exex job"):
        echo(1)


def test_inside_a_task_the_message_names_it(monkeypatch):
    monkeypatch.setattr(context, "current_task", "task 7 (f)")
    with pytest.raises(NoManagerError, match=r"app echo was called inside task 7 \(f\).*join_app"):
        echo(1)


def test_after_the_end(manager):
    echo(1).result()
    exex.client.session.finish(cancel=False)
    with pytest.raises(NoManagerError):
        echo(1)


def test_apps_can_be_used_in_the_next_job():
    for _ in range(3):
        with Job() as manager:
            assert echo(1).result() == 1
            assert say("x").result() == 0
            assert len(specs(manager)) == 2


# ---- arguments -------------------------------------------------------------------------------------------------------


class Box:
    def __init__(self, content):
        self.content = content


def test_futures_at_any_depth_are_needs(manager):
    one = echo(1)
    args, kwargs = everything([one, (one, {"x": {one}})], Box(one), key=one).result()
    assert args[0] == [1, (1, {"x": {1}})]
    assert args[1].content == 1
    assert kwargs == {"key": 1}


def test_what_cannot_be_pickled_fails_at_the_call(manager):
    with pytest.raises(SerializationError, match="argument 1"):
        echo(1, {"a": threading.Lock()})
    with pytest.raises(SerializationError, match="cannot be pickled"):
        python_app(lambda lock=threading.Lock(): lock)()
    assert echo(1).result() == 1


def test_what_is_changed_after_the_call_has_no_effect(manager):
    array, futures = np.zeros(50_000), []
    for i in range(20):
        array[:] = i
        futures.append(echo(array))
    array[:] = -1
    assert [future.result()[0] for future in futures] == list(range(20))
    done = echo([0])
    value = done.result()
    passed_on = echo(done)
    value.append(1)
    assert passed_on.result() == [0]


def test_an_argument_that_calls_an_app_when_it_is_pickled(manager):
    class Sly:
        def __reduce__(self):
            return list, ([echo(5), 6],)

    one = echo(1)
    assert everything(one, Sly(), [one]).result()[0] == (1, [5, 6], [1])


def test_foreign_futures_are_needs(manager):
    class Own(cf.Future):
        pass

    for cls in (cf.Future, Own):
        foreign, done = cls(), cls()
        done.set_result("done")
        future = everything([foreign], foreign, done)
        assert not future.done()
        foreign.set_result("later")
        assert future.result()[0] == (["later"], "later", "done")
        assert echo(foreign).result() == "later"
    assert sum(message.count for message in manager.told(Promise)) == 4
    manager.until(lambda: sum(len(message.tasks) for message in manager.told(Fulfil)) == 4)


def test_foreign_futures_may_fail(manager):
    foreign = [cf.Future() for _ in range(3)]
    futures = [echo(future) for future in foreign]
    foreign[0].set_exception(OSError("disk"))
    foreign[1].cancel()
    foreign[2].set_result(threading.Lock())
    errors = [future.exception() for future in futures]
    assert all(type(error) is DependencyError for error in errors)
    assert [type(error.__cause__) for error in errors] == [OSError, cf.CancelledError, SerializationError]
    assert isinstance(echo(foreign[0]).exception(), DependencyError)


def test_a_thread_pool_and_apps_mix(manager):
    with cf.ThreadPoolExecutor(2) as pool, shaken():
        for _ in range(30):
            futures = [echo(pool.submit(lambda i=i: i * i)) for i in range(50)]
            assert [future.result() for future in futures] == [i * i for i in range(50)]


# ---- special arguments -----------------------------------------------------------------------------------------------


@python_app
def logged(x, stdout=AUTO_LOGNAME, stderr=("err.txt", "w")):
    return stdout, stderr


@python_app
def positional(x, inputs=(), stdout=None):
    return inputs, stdout


@python_app
def own_env(x, env, priority=7):
    return env, priority


@python_app(cwd="sub", env={"A": "1"})
def elsewhere(x):
    return x


@python_app
def limited(x, walltime=5):
    return walltime


@python_app
def required(x, inputs):
    return inputs


def test_streams_become_options(manager, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    futures = [
        echo(1, stdout="out.txt"),
        echo(1, stdout=Path("out.txt"), stderr=("/abs/err.txt", "w")),
        echo(1, stdout=(Path("out.txt"), "a"), stderr=None),
        echo(1, stdout=File("file.txt")),
    ]
    wait_for_current_tasks()
    here = str(tmp_path)
    assert [manager.options[future.tid] for future in futures] == [
        {"stdout": (f"{here}/out.txt", "a+")},
        {"stdout": (f"{here}/out.txt", "a+"), "stderr": ("/abs/err.txt", "w")},
        {"stdout": (f"{here}/out.txt", "a")},
        {"stdout": (f"{here}/file.txt", "w")},
    ]
    assert futures[0].stdout == "out.txt"
    assert futures[1].stderr == ("/abs/err.txt", "w")
    assert futures[3].stdout.result().filepath == "file.txt"


@pytest.mark.parametrize("stream", [["a"], ("a",), ("a", "w", "x"), 3, -1.0, True, b"a", ("a", 3), (3, "w"), {"a"}])
@pytest.mark.parametrize("app", [echo, say])
def test_malformed_streams_are_refused_at_the_call(manager, stream, app):
    with pytest.raises(TypeError, match="stderr must be a path"):
        app("x", stderr=stream)


def test_auto_lognames(manager):
    first, second = logged(1), say("x", stdout=AUTO_LOGNAME, stderr=AUTO_LOGNAME)
    assert first.stdout == "/runs/000/task_logs/0000/task_0000_logged.stdout"
    assert first.result() == (first.stdout, ("err.txt", "w"))
    assert second.stdout == "/runs/000/task_logs/0000/task_0001_say.stdout"
    assert second.stderr == "/runs/000/task_logs/0000/task_0001_say.stderr"
    assert everything(stdout=AUTO_LOGNAME, label="big").stdout.endswith("/task_0002_everything_big.stdout")
    assert exex.client.options.auto_log_path("r", "", 123456, "f", "", "stdout") == "r/task_logs/0123/task_123456_f.stdout"
    wait_for_current_tasks()
    assert manager.options[0]["stdout"] == (first.stdout, "a+")


def test_a_number_that_was_reserved_in_vain_does_no_harm(manager):
    with pytest.raises(SerializationError):
        everything(threading.Lock(), stdout=AUTO_LOGNAME)
    assert echo(1).result() == 1


def test_functions_get_what_they_accept(manager):
    assert everything(1, stdout="o", inputs=[2], cwd="/x", retries=1).result() == (
        (1,),
        {"stdout": "o", "inputs": [2], "cwd": "/x", "retries": 1},
    )
    assert echo(1, stdout="o", walltime=3, cwd="/x", env={}, priority=2, retries=1, inputs=[5]).result() == 1
    assert positional(1, [echo(2)], "o").result() == ([2], "o")
    assert limited(1).result() == 5
    assert limited(1, walltime=6).result() == 6
    assert {spec.walltime_s for spec in specs(manager) if spec.name == "limited"} == {5.0, 6.0}


def test_positional_streams_count(manager):
    future = positional(1, (), AUTO_LOGNAME)
    assert future.result() == ((), future.stdout)
    assert manager.options[0]["stdout"][0] == future.stdout


def test_a_function_keeps_its_own_parameters(manager):
    assert own_env(1, env=object).result() == (object, 7)
    assert own_env(1, "gym", priority="high").result() == ("gym", "high")
    assert [spec.priority for spec in specs(manager)] == [0]


def test_inputs_are_needs_even_if_the_function_does_not_get_them(manager):
    manager.hold("say")
    first = say("x", outputs=[File("a.txt")])
    second = echo(1, inputs=[first.outputs[0], {"x": echo(2)}])
    third = required(1, inputs=[first.outputs[0]])
    assert not cf.wait([second, third], timeout=0.05).done
    manager.release("say")
    assert second.result() == 1
    assert third.result()[0].filepath == "a.txt"
    with pytest.raises(DependencyError):
        echo(1, inputs=[fail("x")]).result()


def test_directories_and_variables(manager, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere(1).result()
    elsewhere(1, cwd=Path("/other"), env={"B": "2"}).result()
    assert manager.options == {
        0: {"cwd": str(tmp_path / "sub"), "env": {"A": "1"}},
        1: {"cwd": "/other", "env": {"B": "2"}},
    }
    with pytest.raises(TypeError, match="env"):
        echo(1, env=["A=1"])
    with pytest.raises(TypeError):
        echo(1, cwd=3)


def test_outputs(manager, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bash = say("x", outputs=[File("a.txt"), File("/b.txt")])
    python = everything(outputs=[File("c.txt")])
    moved = say("x", outputs=[File("a.txt")], cwd="/other")
    assert [data.filename for data in bash.outputs] == ["a.txt", "b.txt"]
    wait_for_current_tasks()
    assert manager.options == {
        0: {"outputs": [str(tmp_path / "a.txt"), "/b.txt"]},
        2: {"cwd": "/other", "outputs": ["/other/a.txt"]},
    }
    assert python.result()[1]["outputs"][0].filepath == "c.txt"
    assert moved.done()
    with pytest.raises(TypeError, match=r"File\('a.txt'\)"):
        say("x", outputs=["a.txt"])


def test_resource_specifications(manager):
    assert echo(1, parsl_resource_specification={"priority": 5}).result() == 1
    assert echo(1, parsl_resource_specification={}).result() == 1
    assert echo(1, parsl_resource_specification={"priority": 5}, priority=6).result() == 1
    assert {spec.priority for spec in specs(manager)} == {0, 5, 6}
    with pytest.raises(InvalidResourceSpecification) as caught:
        echo(1, parsl_resource_specification={"corse": 2, "disk": 1, "priority": 1})
    assert caught.value.invalid_keys == {"corse", "disk"}
    assert "exex knows 'cores', 'gpus', 'launcher_options', 'memory'" in str(caught.value)
    with pytest.raises(InvalidResourceSpecification):
        echo(1, parsl_resource_specification={"priority": "high"})


# ---- cores, accelerators, nodes --------------------------------------------------------------------------------------


def asked(manager):
    """What each app asks for: cores, gpus, nodes, exclusive."""
    return [(spec.cores, spec.gpus, spec.nodes, spec.exclusive) for spec in specs(manager)]


def test_what_a_call_asks_for_is_sent_with_its_app(manager):
    @python_app(cores=4, gpus=1)
    def heavy(x):
        return x

    assert heavy(1).result() == 1
    assert heavy(2, cores=2).result() == 2
    assert heavy(3, gpus=0, nodes=2, cores=1).result() == 3
    assert heavy(4, nodes=1, cores=None, exclusive=True).result() == 4
    assert heavy(5, exclusive=True).result() == 5
    assert asked(manager) == [(4, 1, 0, False), (2, 1, 0, False), (1, 0, 2, False), (0, 1, 1, True), (4, 1, 1, True)]


def test_a_call_that_asks_for_nothing_is_as_before(manager):
    assert echo(1).result() == 1
    assert asked(manager) == [(0, 0, 0, False)] and not manager.options


def test_one_core_means_one_thread(manager):
    future = echo(1, cores=1)
    assert future.result() == 1
    assert manager.options[future.tid] == {"threads": 1}
    single = python_app(cores=1)(echo.func)
    future = single(2)
    assert future.result() == 2 and manager.options[future.tid] == {"threads": 1}


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"cores": 0}, ValueError, "cores must be from 1 to 65536, but it is 0"),
        ({"cores": 1.5}, TypeError, "cores must be an int, not 1.5"),
        ({"gpus": -1}, ValueError, "gpus must be from 0"),
        ({"nodes": True}, TypeError, "nodes must be an int, not True"),
        ({"nodes": 1 << 40}, ValueError, "nodes must be from 0 to"),
        ({"exclusive": 1}, TypeError, "exclusive must be True or False, not 1"),
        ({"affinity": 7}, TypeError, "affinity must be the future of a task"),
    ],
)
def test_wrong_requests(manager, kwargs, error, text):
    with pytest.raises(error, match=text):
        echo(1, **kwargs)
    if "affinity" not in kwargs:
        with pytest.raises(error, match=text):
            python_app(**kwargs)(echo.func)


def test_a_parameter_of_the_function_keeps_its_name(manager):
    @python_app
    def mesh(nodes, cores=3):
        return nodes * cores

    assert mesh(nodes=7).result() == 21
    assert asked(manager) == [(0, 0, 0, False)]


NODES = [NodeShape(3, 4, 8 * 1024**3, 1), NodeShape(1, 16, 64 * 1024**3, 0)]


@pytest.mark.parametrize(
    ("kwargs", "keys", "text"),
    [
        ({"cores": 17}, {"cores"}, "1 node with 17 cores, but there are 4 nodes, and 0 of them can meet that"),
        ({"memory": 65 * 1024**3}, {"memory"}, "1 node with 1 core and 65 GiB of memory, but"),
        ({"gpus": 2}, {"gpus"}, "1 node with 1 core and 2 accelerators, but"),
        ({"nodes": 5}, {"nodes"}, "5 whole nodes with all cores each, but there are 4 nodes, and 4 of them can meet that"),
        ({"nodes": 2, "cores": 16}, {"nodes"}, "2 nodes with 16 cores each, but there are 4 nodes, and 1 of them can meet that"),
        ({"cores": 5, "gpus": 1}, {"nodes"}, "1 node with 5 cores and 1 accelerator, but there are 4 nodes, and 0 of them"),
    ],
)
def test_what_can_never_be_met_fails_at_the_call(kwargs, keys, text):
    with Job(FakeManager(nodes=NODES)) as manager:
        with pytest.raises(InvalidResourceSpecification) as caught:
            echo(1, **kwargs)
        assert caught.value.invalid_keys == keys
        assert f"app echo asks for {text}" in str(caught.value)
        assert "the largest has 16 slots, 64 GiB of memory and 0 accelerators" in str(caught.value)
        executor = exex.Executor(**kwargs)
        with pytest.raises(InvalidResourceSpecification):
            executor.submit(len, "abc")
        assert not manager.told(Submit)
        assert echo(1, cores=16).result() == 1


def test_affinity_is_a_column_and_no_argument(manager):
    first = echo(1)
    first.result()
    near = everything(2, affinity=first)
    assert near.result() == ((2,), {})
    made = python_app(lambda outputs=(): None)(outputs=[File("x")])
    data = everything(3, affinity=made.outputs[0])
    assert data.result() == ((3,), {})
    found = {message.first + i: other for message in manager.told(Submit) for i, other in message.affinity.items()}
    assert found == {near.tid: first.tid, data.tid: made.tid}
    assert not any(message.needs for message in manager.told(Submit))


def test_the_affinity_of_a_call_whose_need_failed_is_forgotten(manager):
    first, bad = echo(1), fail("no")
    assert bad.exception()
    near = echo(bad, affinity=first)
    assert isinstance(near.exception(), DependencyError)
    assert not near._call.proxy.outbox.affinity


@pytest.mark.parametrize(
    ("specification", "expected", "ranks"),
    [
        ({"cores": 2, "memory": 3, "gpus": 1}, (2, 1, 0, False), None),
        ({"num_nodes": 2}, (0, 0, 2, False), None),
        ({"num_nodes": 2, "ranks_per_node": 4}, (0, 0, 2, False), (8, 4)),
        ({"num_nodes": 2, "num_ranks": 8, "launcher_options": "-v"}, (0, 0, 2, False), (8, 4, "-v")),
        ({"num_ranks": 8, "ranks_per_node": 4}, (0, 0, 2, False), (8, 4)),
        ({"num_ranks": 3}, (0, 0, 1, False), (3, 3)),
    ],
)
def test_parsl_resource_specifications(manager, specification, expected, ranks):
    future = echo(1, parsl_resource_specification=specification)
    assert future.result() == 1
    assert asked(manager) == [expected]
    said = manager.options.get(future.tid, {}).get("mpi")
    assert said == (None if ranks is None else dict(zip(("ranks", "ranks_per_node", "launcher_options"), ranks)))


@pytest.mark.parametrize(
    ("specification", "keys"),
    [
        ({"num_nodes": 2, "ranks_per_node": 4, "num_ranks": 9}, {"num_nodes", "ranks_per_node", "num_ranks"}),
        ({"num_nodes": 0}, {"num_nodes"}),
        ({"cores": "4"}, {"cores"}),
        ({"gpus": -1}, {"gpus"}),
    ],
)
def test_wrong_parsl_resource_specifications(manager, specification, keys):
    with pytest.raises(InvalidResourceSpecification) as caught:
        echo(1, parsl_resource_specification=specification)
    assert caught.value.invalid_keys == keys


def test_an_argument_goes_before_the_specification_and_that_before_the_decorator(manager):
    app = python_app(cores=2, memory=1000)(echo.func)
    assert app(1, parsl_resource_specification={"cores": 3}).result() == 1
    assert app(1, parsl_resource_specification={"cores": 3}, cores=4, memory=500).result() == 1
    assert [(spec.cores, spec.memory_bytes) for spec in specs(manager)] == [(3, 1000), (4, 500)]


def test_where_a_call_runs_is_no_part_of_its_key(manager):
    cached = python_app(cache=True)(echo.func)
    first = cached(1)
    first.result()
    cached(1, cores=2, gpus=1, nodes=1, exclusive=True, memory=1000, affinity=first, priority=3).result()
    keys = {key.partial for message in manager.told(Submit) for key in message.keys.values()}
    assert len(keys) == 1


# ---- retries ---------------------------------------------------------------------------------------------------------

attempts: dict[str, int] = {}


@python_app
def flaky(name, succeed_at):
    attempts[name] = attempts.get(name, 0) + 1
    if attempts[name] < succeed_at:
        raise ValueError(f"attempt {attempts[name]}")
    return attempts[name]


def test_retries(manager):
    assert flaky("a", 3, retries=2).result() == 3
    with pytest.raises(ValueError, match="attempt 2"):
        flaky("b", 3, retries=1).result()


def test_retries_of_the_configuration():
    with Job(retries=2):
        assert flaky("c", 3).result() == 3
        with pytest.raises(ValueError, match="attempt 1"):
            flaky("d", 2, retries=0).result()


def test_a_retry_handler_decides(manager):
    records = []

    def handler(error, record):
        records.append((str(error), dict(record)))
        return 0 if "attempt 1" in str(error) else 2

    app = python_app(flaky.__wrapped__, retries=2, retry_handler=handler)
    assert app("e", 3).result() == 3
    with pytest.raises(ValueError, match="attempt 3"):
        app("f", 9).result()
    assert [text for text, _ in records] == ["attempt 1", "attempt 2"] + [f"attempt {i}" for i in (1, 2, 3)]
    last = records[-1][1]
    assert (last["id"], last["func_name"], last["try_id"]) == (1, "flaky", 2)
    assert (last["fail_count"], last["fail_cost"], len(last["fail_history"])) == (3, 2, 3)
    assert last["app_fu"].tid == 1
    manager.until(lambda: [message.retry for message in manager.told(Verdict)] == [True, True, True, True, False])


def test_a_retry_handler_that_raises_replaces_the_error(manager):
    def handler(error, record):
        raise RuntimeError("give up") from None

    future = python_app(fail.__wrapped__, retries=5, retry_handler=handler)("x")
    with pytest.raises(RuntimeError, match="give up"):
        future.result()
    assert len(manager.ran) == 1
    assert isinstance(echo(future).exception(), DependencyError)


def test_a_task_may_be_cancelled_while_its_handler_decides(manager):
    asked, go = threading.Event(), threading.Event()

    def handler(error, record):
        asked.set()
        go.wait(20)
        return 0

    future = python_app(fail.__wrapped__, retry_handler=handler)("x")
    assert asked.wait(20)
    assert future.cancel()
    manager.until(lambda: not manager.tasks)
    go.set()
    assert echo(1).result() == 1


# ---- joins -----------------------------------------------------------------------------------------------------------


@join_app
def fibonacci(n):
    return echo(n) if n < 2 else add(fibonacci(n - 1), fibonacci(n - 2))


@python_app
def add(a, b):
    return a + b


@join_app
def joined(what, *more):
    return what(*more) if callable(what) else what


def test_a_join_stands_for_what_it_returns(manager):
    assert fibonacci(10).result() == 55
    assert joined(echo, 5).result() == 5
    assert joined(lambda: [echo(1), echo(2), echo([3])]).result() == [1, 2, [3]]
    assert joined(lambda: []).result() == []
    assert isinstance(joined(echo, 1), exex.AppFuture)


def test_a_join_can_be_needed(manager):
    manager.hold("add")
    future = joined(lambda: add(1, 2))
    dependent = echo([future])
    manager.until(lambda: dependent.tid in manager.tasks)
    assert future.task_status() in ("pending", "running", "joining")
    manager.until(lambda: future.task_status() == "joining")
    manager.release("add")
    assert dependent.result() == [3]
    assert future.task_status() == "exec_done"


def test_a_join_waits_for_its_arguments(manager):
    assert joined(echo, add(1, 2), {"x": [add(3, 4)]}).result() == 3
    assert joined(echo, Box([add(1, 2)])).result().content == [3]
    assert joined(lambda x: x, echo(echo)).exception().__class__ is TypeError
    with pytest.raises(DependencyError, match="Dependency failure for task"):
        joined(echo, [fail("x")]).result()


def test_a_join_gets_the_very_arguments(manager):
    box, lock = Box([]), threading.Lock()

    def body(given_box, given_lock, value):
        given_box.content.append(value)
        return echo([given_box is box, given_lock is lock, value])

    assert joined(body, box, lock, 1).result() == [True, True, 1]
    assert joined(body, box, lock, echo(2)).result() == [True, True, 2]
    assert joined(lambda a, b: body(a[0], a[1]["lock"], b), [box, {"lock": lock}], echo(3)).result() == [True, True, 3]
    assert joined(lambda a, b: echo((a, b)), (echo(1), {echo(2)}), frozenset({echo(3)})).result() == ((1, {2}), {3})
    assert box.content == [1, 2, 3]


@pytest.mark.parametrize("value", [5, None, "x", [5], (1,)])
def test_a_join_must_return_futures(manager, value):
    future = joined(lambda: value)
    with pytest.raises(TypeError, match="join_app joined must return a Future or a list of Futures"):
        future.result()


def test_errors_of_joins(manager):
    with pytest.raises(ZeroDivisionError):
        joined(lambda: 1 / 0).result()
    with pytest.raises(JoinError) as caught:
        joined(fail, "inner").result()
    assert str(caught.value.__cause__) == "inner"
    assert "(fail)" in caught.value.dependent_exceptions_tids[0][1]
    with pytest.raises(JoinError, match="others"):
        joined(lambda: [fail("a"), echo(1), fail("b")]).result()
    with pytest.raises(SystemExit):
        joined(sys.exit).result()
    dependent = echo(joined(fail, "inner"))
    with pytest.raises(DependencyError) as caught:
        dependent.result()
    assert str(caught.value.__cause__) == "inner"


def test_a_join_may_return_any_future(manager):
    with cf.ThreadPoolExecutor(1) as pool:
        assert joined(lambda: pool.submit(pow, 2, 5)).result() == 32
        assert joined(lambda: [pool.submit(pow, 2, 5), echo(1)]).result() == [32, 1]
        assert type(joined(lambda: pool.submit(threading.Lock)).exception()) is SerializationError
    data = joined(lambda: say("x", outputs=[File("a.txt")]).outputs[0]).result()
    assert data.filepath == "a.txt"


def test_a_join_of_large_values(manager):
    arrays = joined(lambda: [echo(np.full(20_000, i)) for i in range(3)]).result()
    arrays[1] += 1
    assert [array[0] for array in arrays] == [0, 2, 2]
    assert joined(echo, np.full(20_000, 7)).result()[-1] == 7


def test_cancel_a_join_before_its_body_runs(manager):
    ran = []
    manager.hold("add")
    future = join_app(lambda x: ran.append(x) or echo(x))(add(1, 2))
    dependent = echo(future)
    manager.until(lambda: dependent.tid in manager.tasks)
    assert future.cancel()
    manager.release("add")
    assert isinstance(dependent.exception().__cause__, Exception)
    wait_for_current_tasks()
    assert ran == []
    assert [future.tid] in [message.tasks for message in manager.told(Cancel)]


def test_cancel_a_join_that_joins(manager):
    manager.hold("add")
    inner = []
    future = join_app(lambda: inner.append(add(1, 2)) or inner[0])()
    manager.until(lambda: inner and future.task_status() == "joining")
    assert future.cancel()
    manager.release("add")
    assert inner[0].result() == 3
    assert future.cancelled()


def test_bodies_of_joins_are_tried_again(manager):
    runs = []

    def body():
        runs.append(1)
        if len(runs) < 3:
            raise ValueError(len(runs))
        return echo(len(runs))

    assert join_app(body, retries=2)().result() == 3
    del runs[:]
    with pytest.raises(ValueError, match="2"):
        join_app(body, retries=1)().result()


def test_joins_take_no_options_of_task_processes(manager):
    with pytest.raises(TypeError, match="cannot have cwd"):
        joined(echo, 1, cwd="/x")
    with pytest.raises(TypeError, match="cannot have walltime"):
        joined(echo, 1, walltime=3)
    with pytest.raises(TypeError, match="cannot have memory"):
        joined(echo, 1, memory=3)
    with pytest.raises(TypeError, match="cannot have cores, nodes"):
        joined(echo, 1, cores=1, nodes=2)
    with pytest.raises(TypeError, match="cannot have affinity"):
        joined(echo, 1, affinity=echo(1))


def test_more_blocked_joins_than_threads_make_no_deadlock_when_they_return_futures():
    with Job(internal_tasks_max_threads=2):
        assert fibonacci(12).result() == 144


# ---- the package -----------------------------------------------------------------------------------------------------


def test_import_is_cheap():
    code = "import sys, exex; print(sorted({'mpi4py', 'numpy', 'cloudpickle', 'zmq', 'h5py', 'click'} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for more in ("", "; exex.python_app, exex.Executor, exex.Config; print(sorted({'mpi4py', 'numpy'} & set(sys.modules)))"):
        done = subprocess.run([sys.executable, "-c", code + more], env=env, capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == ["[]"] * (2 if more else 1), done


def test_public_names():
    for name in exex.__all__:
        assert getattr(exex, name) is not None
        assert name in dir(exex)
    assert exex.AUTO_LOGNAME == -1
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        exex.nothing


def test_the_manager_can_be_named():
    with Job(FakeManager()):
        assert exex.manager_pid() == 4711
