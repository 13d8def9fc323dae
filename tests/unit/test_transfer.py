"""What stage tasks do: tries, sums, names that appear when all is there, the copy that tasks of a node share."""

import hashlib
import multiprocessing
import os
import pickle
import threading

import pytest

from exex.errors import ConfigError, TransferError
from exex.files import Staging, arrivals, node_copy, staging, transfer
from exex.files.copying import Copy
from exex.files.file import File, shown

CONTENT = b"0123456789" * 1000
SUM = hashlib.sha256(CONTENT).hexdigest()


class Flaky(Staging):
    """Fails as it is told to, then writes."""

    schemes = ("flaky",)

    def __init__(self, *errors, tries=3):
        super().__init__(tries=tries, pause_s=0.0)
        self.errors = list(errors)
        self.seen = []

    def fetch(self, file, path):
        self.seen.append(os.path.exists(path))
        with open(path, "ab" if os.path.exists(path) else "wb") as out:
            if self.errors:
                out.write(CONTENT[:10])
                raise self.errors.pop(0)
            out.write(CONTENT[out.tell() :])

    def send(self, path, file):
        if self.errors:
            raise self.errors.pop(0)
        self.sent = open(path, "rb").read()


def at(tmp_path, url="flaky://host/data.bin", **options):
    return File(url, **options).at(str(tmp_path / "there" / "data.bin"))


def left(directory):
    return sorted(name for _, _, names in os.walk(directory) for name in names)


def test_a_file_comes_with_its_sum(tmp_path):
    file = at(tmp_path, sha256=SUM)
    assert transfer.fetch(Flaky(), file) == (SUM, len(CONTENT))
    assert open(file, "rb").read() == CONTENT
    assert left(tmp_path) == ["data.bin"]


def test_what_may_pass_is_tried_again_with_what_has_come(tmp_path):
    staging = Flaky(ConnectionResetError("reset"), TimeoutError("slow"))
    assert transfer.fetch(staging, at(tmp_path)) == (SUM, len(CONTENT))
    assert staging.seen == [False, True, True]


def test_it_is_given_up_after_some_tries(tmp_path):
    file = at(tmp_path, "flaky://me:secret@host/data.bin?key=1")
    with pytest.raises(TransferError) as caught:
        transfer.fetch(Flaky(*[ConnectionResetError("reset by peer")] * 3), file)
    text = str(caught.value)
    assert f"flaky://me@host/data.bin?... cannot be fetched to {file.filepath} by Flaky, 3 times: reset by peer" in text
    assert "secret" not in text
    assert left(tmp_path) == []
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.url, copy.node) == (text, file.url, caught.value.node)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TransferError("the server says 404"), "data.bin: the server says 404"),
        (ValueError("a bug"), "by Flaky: ValueError: a bug"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(tmp_path, error, said):
    staging = Flaky(error)
    with pytest.raises(TransferError) as caught:
        transfer.fetch(staging, at(tmp_path))
    assert said in str(caught.value)
    assert staging.seen == [False]
    assert left(tmp_path) == []


def test_another_sum_is_an_error_and_nothing_is_there(tmp_path):
    with pytest.raises(TransferError, match=f"data.bin has the sha256 {SUM} .10,000 bytes., where {'0' * 64} was expected"):
        transfer.fetch(Flaky(), at(tmp_path, sha256="0" * 64))
    assert left(tmp_path) == []


def test_what_is_there_with_the_right_sum_is_not_fetched_again(tmp_path):
    staging = Flaky()
    for _ in range(2):
        assert transfer.fetch(staging, at(tmp_path, sha256=SUM)).sha256 == SUM
    assert len(staging.seen) == 1
    transfer.fetch(staging, at(tmp_path))  # without a sum nobody knows whether it is right
    assert len(staging.seen) == 2
    (tmp_path / "there" / "data.bin").write_bytes(b"damaged")
    assert transfer.fetch(staging, at(tmp_path, sha256=SUM)).sha256 == SUM


def test_a_staging_that_writes_nothing_is_found_out(tmp_path):
    class Nothing(Staging):
        def fetch(self, file, path):
            pass

    with pytest.raises(TransferError, match="Nothing has written nothing"):
        transfer.fetch(Nothing(), at(tmp_path))


def test_verify_leaves_a_file_where_it_is(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(CONTENT)
    assert transfer.verify(Copy(), File(path, sha256=SUM).at(str(path))) == (SUM, len(CONTENT))
    with pytest.raises(TransferError, match="it is another file"):
        transfer.verify(Copy(), File(path, sha256="1" * 64).at(str(path)))
    with pytest.raises(TransferError, match=r"cannot be read.*No such file"):
        transfer.verify(Copy(), File("none", sha256=SUM).at(str(tmp_path / "none")))


def test_send(tmp_path):
    path = tmp_path / "out.bin"
    file = File("flaky://host/out.bin").at(str(path))
    with pytest.raises(TransferError, match=r"the task that was to make .*out\.bin, for flaky://host/out\.bin, has not"):
        transfer.send(Flaky(), file)
    path.write_bytes(CONTENT)
    staging = Flaky(ConnectionResetError())
    assert transfer.send(staging, file) == (SUM, len(CONTENT))
    assert staging.sent == CONTENT
    with pytest.raises(TransferError, match="is another file"):
        transfer.send(staging, File("flaky://host/out.bin", sha256="0" * 64).at(str(path)))
    with pytest.raises(TransferError, match=r"cannot be sent from .*Staging cannot send files"):
        transfer.send(Staging(), file)


# ---- a copy for each node ------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "shared" / "data.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def test_a_node_has_one_copy(tmp_path, source):
    file = File("http://host/data.bin", sha256=SUM)
    path = node_copy.bring(str(tmp_path / "node"), file, str(source))
    inode = os.stat(path).st_ino
    assert open(path, "rb").read() == CONTENT
    assert node_copy.bring(str(tmp_path / "node"), file, str(source)) == path
    assert os.stat(path).st_ino == inode


def test_a_source_that_was_written_anew_is_copied_anew(tmp_path, source):
    file = File(source, to="node")
    first = node_copy.bring(str(tmp_path / "node"), file, str(source))
    source.write_bytes(b"new")
    second = node_copy.bring(str(tmp_path / "node"), file, str(source))
    assert (open(first, "rb").read(), open(second, "rb").read()) == (CONTENT, b"new")


def test_the_copy_of_a_program_is_a_program(tmp_path, source):
    source.chmod(0o755)
    assert os.access(node_copy.bring(str(tmp_path / "node"), File(source, to="node"), str(source)), os.X_OK)


def test_a_file_is_sent_to_a_path_in_one_step(tmp_path, source):
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with open(target, "rb") as before:
        transfer.send(Copy(), File(target).at(str(source)))
        assert (before.read(), target.read_bytes()) == (b"old", CONTENT)
    assert left(tmp_path) == ["data.bin", "out.bin"]


def test_many_at_once_make_one_copy(tmp_path, source, monkeypatch):
    fetched = []
    real = Copy.fetch

    def counted(self, file, path):
        fetched.append(path)
        everybody.wait(60)  # the others are at the lock, or on their way
        real(self, file, path)

    everybody = threading.Barrier(2)
    monkeypatch.setattr(Copy, "fetch", counted)
    file, paths = File(source, to="node"), []
    threads = [
        threading.Thread(target=lambda: paths.append(node_copy.bring(str(tmp_path / "node"), file, str(source)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    everybody.wait(60)
    for thread in threads:
        thread.join(60)
    assert len(fetched) == 1
    assert len(paths) == 8 and len(set(paths)) == 1


def test_who_waits_for_a_copy_that_fails_is_told_so(tmp_path, source, monkeypatch):
    tried = []

    def fail(self, file, path):
        tried.append(path)
        while waiting_at_lock(tmp_path / "node") < 1:
            pass
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Copy, "fetch", fail)
    file, errors = File(source, to="node"), []

    def ask():
        try:
            node_copy.bring(str(tmp_path / "node"), file, str(source))
        except TransferError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(errors) == 2 and "No space left on device" in errors[0]
    assert len(tried) == 1 and errors[0] == errors[1]
    monkeypatch.undo()
    assert os.path.exists(node_copy.bring(str(tmp_path / "node"), file, str(source)))  # who comes later tries again


def waiting_at_lock(directory):
    """How many wait for a lock on a file below: lines of /proc/locks with an arrow."""
    inodes = {os.stat(os.path.join(at, name)).st_ino for at, _, names in os.walk(directory) for name in names if name == ".lock"}
    with open("/proc/locks") as file:
        waiting = [line.split() for line in file if "->" in line]
    return sum(int(words[6].rpartition(":")[2]) in inodes for words in waiting)


def _die_at_copy(node, source, ready):
    def stop(self, file, path):
        open(path, "w").close()
        ready.set()
        threading.Event().wait()

    Copy.fetch = stop
    node_copy.bring(node, File(source, to="node"), source)


def test_one_that_was_killed_while_it_copied_holds_up_nobody(tmp_path, source):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_die_at_copy, args=(str(tmp_path / "node"), str(source), ready))
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join(60)
    path = node_copy.bring(str(tmp_path / "node"), File(source, to="node"), str(source))
    assert open(path, "rb").read() == CONTENT


def test_files_of_a_call_are_there_before_it(tmp_path, source, monkeypatch):
    monkeypatch.setattr(arrivals, "directory", str(tmp_path / "node"))
    file = pickle.loads(pickle.dumps(arrivals.Arriving(File("http://host/data.bin", sha256=SUM), str(source))))
    assert file.local_path is None and len(arrivals.pending) == 1
    arrivals.complete()
    assert file.filepath.startswith(str(tmp_path / "node")) and open(file, "rb").read() == CONTENT
    assert (file.url, file.sha256, arrivals.pending) == ("http://host/data.bin", SUM, [])


def test_a_process_without_such_a_place_says_so(source):
    pickle.loads(pickle.dumps(arrivals.Arriving(File(source), str(source))))
    with pytest.raises(TransferError, match=r"this process has no directory there.*take to='run'"):
        arrivals.complete()


# ---- finding what serves a file ------------------------------------------------------------------------------------------


@pytest.fixture
def used(monkeypatch):
    monkeypatch.setattr(staging, "_used", [])


class Mine(Staging):
    schemes = ("mine", "http")


def test_the_last_one_used_is_asked_first(used):
    assert type(staging.find(File("http://host/a"))).__name__ == "Http"
    configured = Flaky()
    configured.schemes = ("http",)
    assert staging.find(File("http://host/a"), [configured]) is configured
    one, other = Mine(), Mine()
    staging.use(one)
    staging.use(other)
    assert staging.find(File("http://host/a"), [configured]) is other
    assert staging.find(File("ftp://host/a")).schemes == ("ftp", "ftps")


def test_nobody_serves_it(used):
    with pytest.raises(ConfigError, match=r"nothing fetches or sends s3: files such as s3://bucket/a; there is something for file, ftp"):
        staging.find(File("s3://bucket/a"))
    with pytest.raises(ConfigError, match=r"exex\.files\.Globus"):
        staging.find(File("globus://id/a"))


def test_staging_by_name(monkeypatch):
    assert isinstance(staging.load(f"{__name__}:Mine"), Mine)
    for name in ("no_such_module:X", f"{__name__}:nothing", f"{__name__}:CONTENT", "words"):
        with pytest.raises(ConfigError, match=f"--staging {name} cannot be used"):
            staging.load(name)
    with pytest.raises(TypeError, match=r"extends exex\.files\.Staging"):
        staging.use(Mine)


@pytest.mark.parametrize("wrong", [{"tries": 0}, {"pause_s": -1}, {"timeout_s": 0}])
def test_numbers_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="tries must be at least 1"):
        Staging(**wrong)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://me:secret@host:80/a?sig=1#x", "http://me@host:80/a?..."),
        ("ftp://host/a", "ftp://host/a"),
        ("/plain/a:b@c?d", "/plain/a:b@c?d"),
    ],
)
def test_messages_have_no_secrets(url, text):
    assert shown(url) == text
