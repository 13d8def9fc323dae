"""The journal's file: what is committed stays, what is damaged is found, and nobody shares it."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exex.errors import JournalError
from exex.protocol.payload import Large
from exex.store import inspection, journal_file, lock
from exex.store import journal as journal_module
from exex.store.journal import Journal, open_journal
from tests.launch import ROOT


def key(number: int) -> bytes:
    return b"%016d" % number


def value(number: int) -> bytes:
    return b"value %d " % number * (1 + number % 7)


class Said(list):
    def __call__(self, text: str) -> None:
        self.append(text)


def opened(path: Path, resume: bool = False, memory: int = 1 << 30, **more: object) -> tuple[Journal, dict[bytes, object]]:
    """A journal that writes, and what it had in it."""
    journal = open_journal(str(path), resume=resume, **more)
    found = dict(journal.load(memory))
    journal.start()
    return journal, found


def fill(path: Path, *numbers: int, resume: bool = False) -> None:
    journal, _ = opened(path, resume)
    for number in numbers:
        journal.record(key(number), "app", value(number), 0.5)
    assert journal.close().lost == 0


def ask(journal: Journal, wanted: bytes, *outputs: str) -> object:
    journal.fetch(wanted, outputs)
    return until(lambda: journal.take()[0])[0][1]


def until(condition):
    give_up_s = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < give_up_s, "it never became true"
        time.sleep(0.001)
    return found


def content(path: Path) -> dict[bytes, object]:
    journal, found = opened(path, resume=True)
    journal.close()
    return found


# ---- rows -----------------------------------------------------------------------------------------------------


def test_what_was_recorded_is_there_in_the_next_run(tmp_path):
    path = tmp_path / "j"
    fill(path, *range(5000))
    assert sorted(os.listdir(tmp_path)) == ["j"]
    assert content(path) == {key(n): value(n) for n in range(5000)}
    fill(path, 5000, 1, resume=True)
    assert len(content(path)) == 5001


def test_payloads_of_several_frames_come_back_as_they_were(tmp_path):
    journal, _ = opened(tmp_path / "j")
    large = Large([b"pickle", bytearray(b"a" * 70_000), memoryview(b"")])
    journal.record(key(1), "app", large, 0.1)
    journal.record(key(2), "app", b"x" * 40_000, 0.1)
    journal.record(key(3), "app", Large([b"y" * 40_000]), 0.1)
    journal.close()
    found = content(tmp_path / "j")
    assert found[key(1)].frames == (b"pickle", b"a" * 70_000, b"")
    assert found[key(2)].frames == (b"x" * 40_000,) and found[key(3)].frames == (b"y" * 40_000,)


def test_results_that_do_not_fit_into_memory_are_fetched(tmp_path):
    fill(tmp_path / "j", *range(1000))
    journal, found = opened(tmp_path / "j", resume=True, memory=10_000)
    assert 10 < len(found) < 100
    assert journal.has(key(999)) and ask(journal, key(999)) == value(999)
    journal.record(key(2000), "app", b"new", 0.1)
    assert journal.has(key(2000)) and ask(journal, key(2000)) == b"new"
    assert not journal.has(key(3000)) and ask(journal, key(3000)) is None
    summary = journal.close()
    assert (summary.before, summary.recorded, summary.lost) == (1000, 1, 0)


def test_outputs_must_exist(tmp_path):
    fill(tmp_path / "j", 1)
    journal, _ = opened(tmp_path / "j", resume=True)
    (tmp_path / "out").touch()
    assert ask(journal, key(1), str(tmp_path / "out")) == value(1)
    assert ask(journal, key(1), str(tmp_path / "out"), str(tmp_path / "gone")) is None
    journal.close()


# ---- modes ----------------------------------------------------------------------------------------------------


def committed(path: Path) -> int:
    """Rows that a copy of the files as they are on disk now has."""
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    if os.path.exists(f"{path}-journal"):
        shutil.copy(f"{path}-journal", f"{copy}-journal")
    db = sqlite3.connect(copy)
    try:
        return db.execute("SELECT coalesce(sum(count), 0) FROM results").fetchone()[0]
    finally:
        db.close()
        copy.unlink()


def test_task_exit_writes_by_itself(tmp_path):
    journal, _ = opened(tmp_path / "j")
    for number in range(3):
        journal.record(key(number), "app", b"v", 0.1)
        until(lambda: journal._recorded == number + 1)
        assert committed(tmp_path / "j") == number + 1
    journal.close()


@pytest.mark.parametrize("mode", ["manual", "dfk_exit", "periodic"])
def test_other_modes_write_when_they_are_told(tmp_path, mode):
    journal, _ = opened(tmp_path / "j", mode=mode, period_s=1e6)
    journal.record(key(1), "app", b"v", 0.1)
    assert ask(journal, key(1)) == b"v", "the writer has been awake in between"
    assert committed(tmp_path / "j") == 0
    journal.checkpoint((7, 1))
    assert until(lambda: journal.take()[1]) == [((7, 1), "")]
    assert committed(tmp_path / "j") == 1
    journal.record(key(2), "app", b"v", 0.1)
    journal.close()
    assert committed(tmp_path / "j") == 2, "the end is a checkpoint in every mode"


def test_periodic(tmp_path):
    journal, _ = opened(tmp_path / "j", mode="periodic", period_s=0.05)
    journal.record(key(1), "app", b"v", 0.1)
    until(lambda: journal._recorded == 1)
    journal.close()


def test_no_mode_lets_memory_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "MOST_WAITING_ROWS", 10)
    journal, _ = opened(tmp_path / "j", mode="dfk_exit")
    for number in range(20):
        journal.record(key(number), "app", b"v", 0.1)
    until(lambda: journal._recorded and not journal.is_behind())
    journal.close()


# ---- damage ---------------------------------------------------------------------------------------------------


def test_an_existing_journal_needs_resume(tmp_path):
    fill(tmp_path / "j", 1)
    with pytest.raises(JournalError, match=r"exists: add --resume to go on .*, or name another file"):
        open_journal(str(tmp_path / "j"), resume=False)
    with pytest.raises(JournalError, match=r"directory .*no does not exist"):
        open_journal(str(tmp_path / "no" / "j"), resume=False)
    said = Said()
    open_journal(str(tmp_path / "new"), resume=True, say=said).close()
    assert "there is no journal" in said[0] and (tmp_path / "new").exists()
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.parametrize("name", ["format", "exex", "python"])
def test_another_version_is_refused(tmp_path, name):
    path = tmp_path / "j"
    fill(path, 1)
    db = sqlite3.connect(path)
    db.execute("UPDATE meta SET value = '9.9' WHERE name = ?", (name,))
    db.commit()
    db.close()
    with pytest.raises(JournalError, match=r"9.9, and this is .*Run with that version, or begin a new journal"):
        open_journal(str(path), resume=True)
    text, is_sound = inspection.verify(str(path))
    assert is_sound and "9.9" in text
    assert "9.9" in inspection.info(str(path))


def test_other_files_are_refused(tmp_path):
    for name, data in [("empty", b""), ("text", b"hello" * 100), ("short", b"SQLite format 3\0"), ("binary", os.urandom(9000))]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(JournalError, match=r"damaged|journal of exex"):
            open_journal(str(tmp_path / name), resume=True)
        assert not inspection.verify(str(tmp_path / name))[1]
        assert (tmp_path / name).read_bytes() == data, "it is not ours to change"
    db = sqlite3.connect(tmp_path / "database")
    db.execute("CREATE TABLE meta (name, value)")
    db.commit()
    db.close()
    with pytest.raises(JournalError, match="is an SQLite database, but no journal of exex"):
        open_journal(str(tmp_path / "database"), resume=True)


def truncations() -> list[float]:
    return [0, 1, 15, 16, 99, 100, 101, 511, 512, 4095, 4096, 4097, 0.25, 0.5, 0.75, -4097, -4096, -1024, -100, -1]


@pytest.mark.parametrize("length", truncations())
def test_a_truncated_journal_is_found(tmp_path, length):
    path = tmp_path / "j"
    fill(path, *range(2000))
    data = path.read_bytes()
    size = int(len(data) * length) if 0 < length < 1 else int(length) % len(data)
    path.write_bytes(data[:size])
    with pytest.raises(JournalError, match="damaged"):
        open_journal(str(path), resume=True)
    assert not inspection.verify(str(path))[1]
    assert not list(tmp_path.glob("*.lock*"))


@pytest.mark.parametrize("seed", range(30))
def test_flipped_bytes_never_change_a_result(tmp_path, seed):
    """Either the file is refused, or every row that it still gives is right; and `verify` sees what a run would see."""
    rng = random.Random(seed)
    path = tmp_path / "j"
    fill(path, *range(1500))
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 3, 20])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    sound = inspection.verify(str(path))[1]
    said = Said()
    try:
        journal, found = opened(path, resume=True, say=said)
    except JournalError as error:
        assert "damaged" in str(error) or "written with" in str(error) or "no journal" in str(error)
        return
    summary = journal.close()
    right = {key(n): value(n) for n in range(1500)}
    assert all(right.get(k) == v for k, v in found.items())
    if len(found) < 1500 and not sound:
        assert summary.damaged == len(said) or summary.damaged >= 3
    assert sound or summary.damaged or len(found) == 1500


def test_a_damaged_batch_is_reported_and_its_calls_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_file, "ROWS_A_BATCH", 2)
    path = tmp_path / "j"
    fill(path, *range(100))
    data = path.read_bytes()
    at = data.index(value(50))
    path.write_bytes(data[:at] + b"VALUE" + data[at + 5 :])
    for memory in (1 << 30, 0):
        said = Said()
        journal, found = opened(path, resume=True, memory=memory, say=said)
        assert not (journal.has(key(50)) and ask(journal, key(50)))
        assert not journal.has(key(50)) and journal.has(key(52)) and journal.has(key(49))
        assert journal.close().damaged >= 1
        assert said[0] == f"result 51 of the journal {path} is damaged (wrong checksum): its call runs again"
    text, is_sound = inspection.verify(str(path))
    assert not is_sound and "result 51: wrong checksum" in text and "2 of 100 results" in text
    with open(tmp_path / "out", "w") as out:
        assert inspection.export(str(path), "jsonl", out) == 2
    lines = (tmp_path / "out").read_text().splitlines()
    assert len(lines) == 98 and json.loads(lines[0])["app"] == "app"


# ---- crashes --------------------------------------------------------------------------------------------------

WRITER = """
import sys, os
from tests.unit.test_journal import *
journal, found = opened(Path(sys.argv[1]), resume=True)
print(len(found), flush=True)
number = len(found)
while True:
    journal.record(key(number), "app", value(number), 0.5)
    number += 1
    if number % 100 == 0:
        journal.checkpoint((0, number))
        until(lambda: journal.take()[1])
        print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_what_it_has_acknowledged(tmp_path):
    """And the next one takes over at once: no lock, no half commit is in its way."""
    path, rng = tmp_path / "j", random.Random(1)
    acknowledged = 0
    for _ in range(6):
        began = time.monotonic()
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            found = int(process.stdout.readline())
            assert found >= acknowledged and time.monotonic() - began < 15
            if not acknowledged:
                acknowledged = int(process.stdout.readline())
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
            acknowledged = max([acknowledged, found, *map(int, process.stdout.read().split("\n")[:-1])])
    found = content(path)
    assert len(found) >= acknowledged > 0 and found == {key(n): value(n) for n in range(len(found))}
    assert inspection.verify(str(path))[1]


def test_a_crash_while_the_journal_is_made(tmp_path):
    (tmp_path / "j.new").write_bytes(b"half")
    (tmp_path / "j.new-journal").write_bytes(b"half")
    fill(tmp_path / "j", 1)
    assert os.listdir(tmp_path) == ["j"]


def run_with_small_files(path: Path) -> None:
    """In a child: the disk is full after 200 KB, and later is not."""
    said = Said()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal, _ = opened(path, say=said, retry_s=0.02)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    for number in range(100):
        journal.record(key(number), "app", bytes(10_000), 0.1)
        if number == 4:  # these few are committed, however slow the thread is
            journal.checkpoint((0, 1))
            assert until(lambda: journal.take()[1]) == [((0, 1), "")]
        elif number % 10 == 0:
            time.sleep(0.01)
    until(lambda: journal._is_failing)
    journal.checkpoint((0, 0))
    ((_, error),) = until(lambda: journal.take()[1])
    assert error
    assert not journal.is_behind() and len([text for text in said if "cannot be written" in text]) == 1, said
    assert all(journal.has(key(number)) for number in range(100)) and ask(journal, key(99)) == bytes(10_000)
    if path.name == "for ever":
        summary = journal.close()
        assert summary.lost == 100 - summary.recorded > 0 and summary.error, summary
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    until(lambda: not journal._is_failing)
    summary = journal.close()
    assert (summary.recorded, summary.lost) == (100, 0), summary
    assert "is written again" in said[-1]


@pytest.mark.parametrize("name", ["for ever", "for a while"])
def test_a_full_disk_costs_no_job(tmp_path, name):
    """It is said once; what was committed before is sound; what waits is written when there is room again."""
    path = tmp_path / name
    script = f"from tests.unit.test_journal import *\nrun_with_small_files(Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert inspection.verify(str(path))[1]
    assert 5 <= len(content(path)) <= 100


def test_waiting_results_are_dropped_and_counted_when_memory_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "MOST_WAITING_ROWS", 10)
    said = Said()
    journal, _ = opened(tmp_path / "j", say=said)
    monkeypatch.setattr(journal, "_commit", lambda rows: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    journal.record(key(0), "app", b"v", 0.1)
    until(lambda: journal._is_failing)
    for number in range(1, 100):
        journal.record(key(number), "app", b"v", 0.1)
    summary = journal.close()
    assert summary.lost == 100 and "Input/output error" in summary.error and len(said) == 1


def test_a_writer_that_fails_in_an_unforeseen_way_answers_everybody(tmp_path, monkeypatch):
    said = Said()
    journal, _ = opened(tmp_path / "j", say=said, mode="manual")
    monkeypatch.setattr(journal, "_commit", lambda rows: 1 // 0)
    journal.record(key(0), "app", b"v", 0.1)
    journal.checkpoint((0, 0))
    until(lambda: journal._is_dead)
    journal.checkpoint((0, 1))
    journal.record(key(1), "app", b"v", 0.1)
    assert ask(journal, key(0)) == b"v" and journal.close().lost == 2
    assert "ZeroDivisionError" in said[0] and not (tmp_path / "j.lock").exists()


# ---- the lock -------------------------------------------------------------------------------------------------


def holder(**changes: object) -> str:
    mine = lock._this_process()
    return json.dumps({**mine.__dict__, "token": "other", **changes})


def test_a_journal_in_use_names_its_user(tmp_path):
    journal, _ = opened(tmp_path / "j")
    with pytest.raises(JournalError, match=rf"j is in use by process {os.getpid()} on \S+, since 20"):
        open_journal(str(tmp_path / "j"), resume=True)
    with pytest.raises(JournalError, match="in use by"):
        inspection.info(str(tmp_path / "j"))
    journal.close()
    assert content(tmp_path / "j") == {}


@pytest.mark.parametrize("pid", ["dead", "reused"])
def test_a_dead_holder_on_this_machine_is_replaced_at_once(tmp_path, pid):
    child = subprocess.Popen(["true"])
    child.wait()
    changes = {"pid": child.pid} if pid == "dead" else {"started": "1"}
    (tmp_path / "j.lock").write_text(holder(**changes))
    began = time.monotonic()
    lock.acquire(str(tmp_path / "j")).release()
    assert time.monotonic() - began < 2 and os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["", "half a li", '{"host": "nid7"}'])
def test_a_lock_that_does_not_say_whose_it_is_has_a_lease(tmp_path, text):
    (tmp_path / "j.lock").write_text(text)
    lock.acquire(str(tmp_path / "j"), lease_s=0.3).release()
    assert os.listdir(tmp_path) == []


def test_a_holder_on_another_machine_has_a_lease(tmp_path):
    path = tmp_path / "j.lock"
    path.write_text(holder(host="nid00007", boot="other"))
    began = time.monotonic()
    lock.acquire(str(tmp_path / "j"), lease_s=0.5).release()
    assert 0.4 < time.monotonic() - began < 5
    path.write_text(holder(host="nid00007", boot="other"))
    os.utime(path, (1, 1))
    began = time.monotonic()
    lock.acquire(str(tmp_path / "j"), lease_s=30).release()
    assert time.monotonic() - began < 2, "its lease was over long ago"


def test_a_holder_on_another_machine_that_lives_is_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "j.lock"
    path.write_text(holder(host="nid00007", boot="other"))
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        os.utime(path, (time.time() + 5, time.time() + 5))  # it renews its lock meanwhile

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with pytest.raises(JournalError, match=r"in use by process .* on nid00007, since .*, who shows that it lives"):
        lock.acquire(str(tmp_path / "j"))
    assert len(pauses) == 1 and path.exists()


def test_only_one_of_many_takes_a_dead_holders_lock(tmp_path):
    """Each that gets it must find it its own as long as it holds it."""
    (tmp_path / "j.lock").write_text(holder(started="1"))
    script = """
import sys, time
from exex.store import lock
from exex.errors import JournalError
try:
    mine = lock.acquire(sys.argv[1])
except JournalError:
    sys.exit(3)
sys.stdin.read()
sys.exit(0 if mine.is_ours() else 4)
"""
    many = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "j")], cwd=ROOT, stdin=subprocess.PIPE) for _ in range(8)
    ]
    until(lambda: sum(process.poll() == 3 for process in many) == 7 or any(process.poll() not in (None, 3) for process in many))
    for process in many:
        process.communicate(b"")
    assert sorted(process.returncode for process in many) == [0] + [3] * 7


def test_a_lost_lock_ends_the_writing(tmp_path):
    said = Said()
    journal, _ = opened(tmp_path / "j", say=said)
    (tmp_path / "j.lock").write_text(holder(host="nid00007"))
    journal.record(key(1), "app", b"v", 0.1)
    until(lambda: said)
    assert "another job has taken it over" in said[0]
    assert journal.close().lost == 1
    assert "nid00007" in (tmp_path / "j.lock").read_text(), "the other's lock stays"


def test_an_archive_that_cannot_be_written_can_be_read(tmp_path, monkeypatch):
    fill(tmp_path / "j", 1, 2)
    monkeypatch.setattr(inspection.os, "access", lambda path, mode: False)
    assert "total     2 results" in inspection.info(str(tmp_path / "j"))
    (tmp_path / "j-journal").write_bytes(b"half a commit")
    with pytest.raises(JournalError, match="in the middle of a write"):
        inspection.info(str(tmp_path / "j"))


def test_how_sqlite_is_used(tmp_path):
    """What the module's docstring promises about parallel file systems."""
    journal_file.create(str(tmp_path / "j"))
    db = journal_file.open_checked(str(tmp_path / "j"))
    settings = {name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "locking_mode")}
    assert settings == {"journal_mode": "truncate", "synchronous": 2, "locking_mode": "exclusive"}
    db.execute("BEGIN IMMEDIATE")
    inode = os.stat(tmp_path / "j").st_ino
    with open("/proc/locks") as file:
        assert not [line for line in file if f":{inode} " in line]
    db.close()
    assert not list(tmp_path.glob("*-shm")) and not list(tmp_path.glob("*-wal"))
