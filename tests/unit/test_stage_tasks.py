"""Files among the arguments and outputs of calls: which stage tasks they make, and what the task and the futures see."""

import concurrent.futures as cf
import hashlib
import os
import shutil
import threading
from collections import Counter

import pytest

import exex
from exex import (
    CacheKeyError,
    ConfigError,
    DependencyError,
    File,
    JoinError,
    TransferError,
    bash_app,
    join_app,
    python_app,
)
from exex.client.joins import Arguments
from exex.files import Staging, arrivals, staging
from exex.protocol.messages import Submit
from tests.fakes import FakeManager, Job

CONTENT = b"some content"
SUM = hashlib.sha256(CONTENT).hexdigest()


class Shelf(Staging):
    """`shelf://HOST/NAME` is a file of that name in a directory."""

    schemes = ("shelf",)
    directory = ""
    fetched = None  # URLs, in order

    def fetch(self, file, path):
        Shelf.fetched.append(file.url)
        shutil.copyfile(os.path.join(Shelf.directory, file.filename), path)

    def send(self, path, file):
        shutil.copyfile(path, os.path.join(Shelf.directory, file.filename))


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Its directory, which has `a.txt`; the job runs beside it."""
    directory = tmp_path / "shelf"
    directory.mkdir()
    (directory / "a.txt").write_bytes(CONTENT)
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    monkeypatch.setattr(Shelf, "directory", str(directory))
    monkeypatch.setattr(Shelf, "fetched", [])
    monkeypatch.setattr(staging, "_used", [Shelf(tries=1)])
    monkeypatch.setattr(arrivals, "directory", str(tmp_path / "node"))
    return directory


def job(tmp_path, **settings):
    return Job(FakeManager(run_dir=str(tmp_path / "run")), **settings)


@pytest.fixture
def manager(shelf, tmp_path):
    with job(tmp_path) as manager:
        yield manager


def names(manager):
    """How many tasks there were of each app."""
    found, apps = Counter(), {}
    for message in manager.told(Submit):
        apps |= {spec.app: spec.name for spec in message.apps}
        calls = message.calls if len(message.calls) > 1 else message.calls * len(message.payloads)
        found.update(apps[call] for call in calls)
    return found


@python_app
def read(file):
    return open(file, "rb").read(), file.filepath


@python_app
def read_all(*files, more=()):
    return [open(file, "rb").read() for file in (*files, *more)]


@python_app
def write(text, outputs=()):
    os.makedirs(os.path.dirname(outputs[0].filepath), exist_ok=True)  # as worker.execute does
    with open(outputs[0], "w") as out:
        out.write(text)
    return len(text)


@bash_app
def say(word, stdout=None, outputs=()):
    return f"echo {word}"


@python_app
def fail(outputs=()):
    raise ValueError("no")


# ---- in -----------------------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once_for_all_calls_that_take_it(manager, tmp_path):
    file = File("shelf://x/a.txt")
    futures = [read(file) for _ in range(5)] + [read(File("shelf://x/a.txt"))]
    assert {future.result()[0] for future in futures} == {CONTENT}
    [path] = {future.result()[1] for future in futures}
    assert path.startswith(str(tmp_path / "run")) and path.endswith("/a.txt")
    assert names(manager) == {"read": 6, "_stage_in:shelf": 1}
    assert Shelf.fetched == ["shelf://x/a.txt"]
    assert file.local_path is None  # the script's own is as it was


def test_files_are_found_at_any_depth_and_by_every_way_to_call(manager, shelf):
    (shelf / "b.txt").write_bytes(b"b")
    a, b = File("shelf://x/a.txt"), File("shelf://x/b.txt")
    assert read_all(a, more=(b,)).result() == [CONTENT, b"b"]
    assert exex.Executor().submit(read.func, a).result()[0] == CONTENT
    assert [content for content, _ in exex.map(read.func, [a, b])] == [CONTENT, b"b"]

    @python_app
    def deep(box, inputs=()):
        return open(box["x"][0], "rb").read() + open(inputs[0], "rb").read()

    assert deep({"x": [a]}, inputs=[b]).result() == CONTENT + b"b"
    assert names(manager)["_stage_in:shelf"] == 2


def test_another_sum_is_another_file(manager):
    assert read(File("shelf://x/a.txt", sha256=SUM.upper())).result()[0] == CONTENT
    error = read(File("shelf://x/a.txt", sha256="0" * 64)).exception()
    assert isinstance(error, DependencyError) and isinstance(error.__cause__, TransferError)
    assert "a.txt has the sha256" in str(error.__cause__)
    assert read(File("shelf://x/a.txt", sha256=SUM)).result()[0] == CONTENT
    assert names(manager)["_stage_in:shelf"] == 2


def test_what_has_failed_is_tried_again_by_the_next_call(manager, shelf):
    file = File("shelf://x/later.txt")
    error = read(file).exception()
    assert "_stage_in:shelf" in str(error)
    assert "later.txt cannot be fetched to" in str(error.__cause__)
    (shelf / "later.txt").write_bytes(b"now")
    assert read(file).result()[0] == b"now"


def test_into_a_directory(manager, tmp_path):
    assert read(File("shelf://x/a.txt", to=tmp_path / "data")).result() == (CONTENT, str(tmp_path / "data" / "a.txt"))
    assert read(File("shelf://y/a.txt", to="here")).result()[1] == os.path.abspath("here/a.txt")
    with pytest.raises(ConfigError, match=r"shelf://y/a\.txt and shelf://z/a\.txt would both be fetched to .*here/a\.txt"):
        read(File("shelf://z/a.txt", to="here"))


def test_to_each_node(manager, tmp_path):
    file = File("shelf://x/a.txt", to="node")
    [(content, path)] = {future.result() for future in [read(file) for _ in range(3)]}
    assert content == CONTENT and path.startswith(str(tmp_path / "node"))
    assert names(manager) == {"read": 3, "_stage_in:shelf": 1}


def test_a_shared_file_to_each_node_takes_no_task(manager, shelf, tmp_path):
    path = shelf / "a.txt"
    assert read(File(path, to="node")).result()[1].startswith(str(tmp_path / "node"))
    assert read(File(f"file://{path}", to="node", sha256=SUM)).result()[0] == CONTENT
    error = read(File(path, to="node", sha256="0" * 64)).exception()
    assert isinstance(error, TransferError)
    assert names(manager) == {"read": 3}


def test_shared_files_stay_where_they_are(manager, shelf, tmp_path):
    path = str(shelf / "a.txt")
    assert read(File(path)).result()[1] == path
    assert names(manager) == {"read": 1}
    assert read(File(path, sha256=SUM)).result()[1] == path
    assert read(File(path, sha256=SUM)).result()[1] == path
    manager.hold("_stage_in:file")
    wrong = read(File(path, sha256="0" * 64))
    manager.until(lambda: names(manager) == {"read": 4, "_stage_in:file": 2})  # before the one ends, and the other with it
    manager.release("_stage_in:file")
    assert isinstance(wrong.exception(), DependencyError)
    assert read(File(path, to=tmp_path / "copy")).result()[1] == str(tmp_path / "copy" / "a.txt")


def test_the_settings_say_where_to_and_by_what(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_used", [])
    with job(tmp_path, fetch_to="node", staging=(f"{__name__}:Shelf",)):
        assert read(File("shelf://x/a.txt")).result()[1].startswith(str(tmp_path / "node"))
        assert read(File("shelf://x/a.txt", to="run")).result()[1].startswith(str(tmp_path / "run"))
    with job(tmp_path, staging=("no_such_module:X",)), pytest.raises(ConfigError, match="--staging no_such_module:X cannot be used"):
        read(File("shelf://x/a.txt"))


def test_what_nobody_serves_fails_the_call(manager):
    with pytest.raises(ConfigError, match="nothing fetches or sends s3: files such as s3://x/a"):
        read(File("s3://x/a"))
    with pytest.raises(ConfigError, match="nothing fetches or sends s3: files"):
        write("x", outputs=[File("s3://x/a")])
    assert names(manager) == {}


def test_one_that_has_a_path_is_left_alone(manager, shelf):
    file = File("shelf://x/a.txt")
    file.local_path = str(shelf / "a.txt")
    assert read(file).result() == (CONTENT, file.local_path)
    assert Shelf.fetched == []


def test_threads_fetch_it_once(manager):
    with cf.ThreadPoolExecutor(8) as threads:
        start = threading.Barrier(8)
        futures = [threads.submit(lambda: (start.wait(60), read(File("shelf://x/a.txt")))[1]) for _ in range(8)]
        assert {future.result().result()[0] for future in futures} == {CONTENT}
    assert names(manager)["_stage_in:shelf"] == 1


def test_a_join_app_passes_files_on(manager):
    @join_app
    def both(files):
        assert files[0].local_path is None
        return [read(file) for file in files]

    assert [content for content, _ in both([File("shelf://x/a.txt")]).result()] == [CONTENT]
    assert Arguments((File("shelf://x/a.txt"),), {}).needs() == []
    assert names(manager)["_stage_in:shelf"] == 1


def test_submitting_is_held_back_and_goes_on(shelf, tmp_path):
    for i in range(20):
        (shelf / f"{i}").write_bytes(b"%d" % i)
    with job(tmp_path, max_waiting=3):
        futures = [read(File(f"shelf://x/{i}")) for i in range(20)]
        assert [int(future.result()[0]) for future in futures] == list(range(20))


# ---- out ----------------------------------------------------------------------------------------------------------------


def test_an_output_is_sent_when_the_task_is_done(manager, shelf):
    manager.hold("_stage_out:shelf")
    future = write("hello", outputs=[File("shelf://x/out.txt")])
    [data] = future.outputs
    assert future.result() == 5
    assert not data.done() and data.running() and not (shelf / "out.txt").exists()
    told = threading.Event()
    data.add_done_callback(lambda data: data.result().size_bytes == 5 and told.set())
    manager.release("_stage_out:shelf")
    file = data.result(60)
    assert (shelf / "out.txt").read_text() == "hello"
    assert (file.sha256, file.size_bytes) == (hashlib.sha256(b"hello").hexdigest(), 5)
    assert data.done() and not data.running() and data.tid == future.tid and data.exception() is None
    assert told.wait(60)
    assert names(manager) == {"write": 1, "_stage_out:shelf": 1}
    assert list(manager.options.values()) == [{"directories": [os.path.dirname(data.filepath)]}]


def test_who_needs_an_output_waits_until_it_is_sent_and_finds_it_here(manager):
    manager.hold("_stage_out:shelf")
    future = write("hello", outputs=[File("shelf://x/out.txt")])
    next_one = read(future.outputs[0])
    future.result()
    assert not next_one.done()
    manager.release("_stage_out:shelf")
    assert next_one.result()[0] == b"hello"
    assert read(future.outputs[0]).result() == next_one.result()
    assert Shelf.fetched == []


def test_sending_fails(manager, monkeypatch):
    def refuse(self, path, file):
        raise TransferError("the shelf is full")

    monkeypatch.setattr(Shelf, "send", refuse)
    future = write("hello", outputs=[File("shelf://x/out.txt")])
    assert future.result() == 5
    error = future.outputs[0].exception()
    assert isinstance(error, TransferError) and "out.txt cannot be sent from" in str(error) and "the shelf is full" in str(error)
    with pytest.raises(TransferError):
        future.outputs[0].result()
    assert isinstance(read(future.outputs[0]).exception(), DependencyError)


def test_the_error_of_the_task_is_that_of_its_outputs(manager, shelf):
    future = fail(outputs=[File("shelf://x/out.txt")])
    with pytest.raises(ValueError, match="no"):
        future.outputs[0].result()
    assert isinstance(future.outputs[0].exception(), ValueError)
    assert not (shelf / "out.txt").exists()


def test_nobody_hears_of_the_sending_of_what_failed(shelf, tmp_path, capsys):
    with job(tmp_path):
        assert isinstance(fail(outputs=[File("shelf://x/out.txt")]).outputs[0].exception(), ValueError)
    assert capsys.readouterr().err == ""


def test_an_output_that_was_not_made(manager):
    @python_app
    def forget(outputs=()):
        pass

    error = forget(outputs=[File("shelf://x/out.txt")]).outputs[0].exception()
    assert isinstance(error, TransferError) and "for shelf://x/out.txt, has not" in str(error)


def test_a_sum_that_an_output_must_have(manager):
    right = write("hello", outputs=[File("shelf://x/1", sha256=hashlib.sha256(b"hello").hexdigest())])
    wrong = write("hello", outputs=[File("shelf://x/2", sha256="0" * 64)])
    assert right.outputs[0].result().size_bytes == 5
    assert "is another file" in str(wrong.outputs[0].exception())


def test_cancelling_an_output(manager, shelf):
    manager.hold("write")
    future = write("hello", outputs=[File("shelf://x/out.txt")])
    assert future.outputs[0].cancel()
    assert future.cancelled() and future.outputs[0].cancelled()
    with pytest.raises(cf.CancelledError):
        future.outputs[0].result()
    manager.release("write")
    manager.hold("_stage_out:shelf")
    future = write("hello", outputs=[File("shelf://x/out.txt")])
    future.result()
    assert future.outputs[0].cancel() and not future.cancelled() and future.outputs[0].cancelled()


def test_streams_are_sent(manager, shelf):
    future = say("x", stdout=File("shelf://x/said.txt"))
    path, mode = manager_options(manager, future)["stdout"]
    assert (os.path.basename(path), mode) == ("said.txt", "w")
    assert future.stdout.filepath == path
    error = future.stdout.exception()  # the fake runs no command
    assert isinstance(error, TransferError) and f"was to make {path}, for shelf://x/said.txt, has not" in str(error)


def manager_options(manager, future):
    future.exception()
    return manager.options[future.tid]


def test_an_output_has_no_place_of_a_node(manager):
    with pytest.raises(ConfigError, match="is an output, and so cannot have to='node'"):
        write("x", outputs=[File("shelf://x/out.txt", to="node")])
    future = write("x", outputs=[File("shelf://x/out.txt", to="results")])
    assert future.outputs[0].result().filepath == os.path.abspath("results/out.txt")


def test_a_join_app_with_an_output(manager, shelf):
    @join_app
    def joined(outputs=()):
        return write("joined", outputs=[File(outputs[0].filepath)])

    future = joined(outputs=[File("shelf://x/out.txt")])
    assert future.outputs[0].result().size_bytes == 6
    assert (shelf / "out.txt").read_text() == "joined"

    @join_app
    def broken(outputs=()):
        return fail()

    assert isinstance(broken(outputs=[File("shelf://x/b")]).outputs[0].exception(), JoinError)


def test_a_join_app_that_returns_an_output(manager, shelf):
    @join_app
    def passed_on(app):
        return app("x", outputs=[File("shelf://x/out.txt")]).outputs[0]

    assert passed_on(write).result().size_bytes == 1
    error = passed_on(python_app(lambda text, outputs=(): fail.func())).exception()
    assert isinstance(error, JoinError) and [type(each) for each, _ in error.dependent_exceptions_tids] == [ValueError]


def test_cached_calls_know_files_by_url_and_content(manager, shelf):
    ran = []

    @python_app(cache=True)
    def size(file):
        ran.append(1)
        return os.path.getsize(file)

    assert size(File("shelf://x/a.txt")).result() == len(CONTENT)
    keys = [key for message in manager.told(Submit) for key in message.keys.values()]
    [key] = keys
    size(File("shelf://x/a.txt", sha256=SUM)).result()
    keys = [key for message in manager.told(Submit) for key in message.keys.values()]
    assert keys[0].partial != keys[1].partial
    with pytest.raises(CacheKeyError):
        size(object())
    needs = [need for message in manager.told(Submit) for need in message.needs.values()]
    assert len(needs) == 2 and keys[0].ignored == []  # the manager takes the sum of what came into the key
