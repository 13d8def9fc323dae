"""The run record: rows from frames, the file during and after a run and after a crash, the pipe that makes nothing wait."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from array import array
from collections import defaultdict
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest

from exex.config import Config
from exex.errors import RecordError
from exex.protocol.messages import AppSpec, Assign, Cancel, Done, Hello, Submit
from exex.record import recorder as recorder_module
from exex.record import writer as writer_module
from exex.record.columns import TABLES, How
from exex.record.frames import HEAD, HEADER, Frame, Kind, take_frames
from exex.record.hdf5 import CHUNK_ROWS, Record, RecordFile, set_aside
from exex.record.packing import deflated, filters, packed
from exex.record.recorder import Recorder
from exex.record.rows import Assembler, cut
from exex.record.start import attributes, record_path, start_writer
from exex.record.writer import NICE

META = {"began_unix_s": 1.8e9, "meta": json.dumps({"script": "s.py", "settings": {}, "versions": {}})}


class App:
    number = 7


APPS = defaultdict(App)


def submit(first, count, needs=None, apps=()):
    return Submit(
        first=first, apps=list(apps), functions={}, calls=[0], payloads=[b"12345"] * count, needs=needs or {}, given={}, answered=0
    )


def assign(*tasks, attempts=None):
    return Assign(apps=[], functions={}, tasks=list(tasks), calls=[0], payloads=[b""] * len(tasks), values={}, attempts=attempts or {})


def done(*tasks, outcomes=None, seconds=0.5):
    return Done(
        tasks=list(tasks), outcomes=outcomes or bytes(len(tasks)), payloads=[b"123"] * len(tasks), seconds=[seconds] * len(tasks), started=[]
    )


HELLO = Hello(version="1", python="3", node="nid1", pid=5, slots=1, error="", times_s=[0.1, 0.2, 0.3])
SPEC = AppSpec(app=0, name="simulate", function=b"")


class Told:
    """A recorder over a pipe, with a clock of its own, and the rows that come of what it was told."""

    def __init__(self):
        self.read, write = os.pipe2(os.O_NONBLOCK)
        os.set_blocking(write, False)
        self.now_s = 0.0
        self.recorder = Recorder(write, 0.0, lambda: (0,) * 8, clock=lambda: self.now_s)
        self.turn(0.0)

    def turn(self, now_s):
        self.recorder.turn_ends()
        self.now_s = now_s
        self.recorder.turn_begins(now_s)
        return self.recorder

    def rows(self, table="attempts"):
        self.recorder.close()
        data = bytearray(os.read(self.read, 1 << 20))
        found = {name: [] for name in TABLES}
        assembler = Assembler(lambda name, columns: found[name].append(columns))
        for frame in take_frames(data):
            assembler.feed(frame)
        assembler.close()
        return [
            {name: values[i] for name, values in part.items()} for part in found[table] for i in range(len(next(iter(part.values()))))
        ]


def test_a_task_becomes_a_row():
    told = Told()
    told.turn(1.0).hello(1, HELLO)
    told.turn(2.0).client_said(0, submit(0, 1, apps=[SPEC]), APPS)
    told.turn(3.0).assign(1, assign(0))
    told.turn(4.0).done(1, done(0, seconds=0.25))
    told.recorder.answer(0, type("A", (), {"tasks": [0], "outcomes": b"\0"}))
    (row,) = told.rows()
    expected = {"task": 0, "app": 7, "attempt": 1, "rank": 1, "how": How.DONE, "bytes_in": 5, "bytes_out": 3}
    times = {"submit_us": 2, "ready_us": 2, "assign_us": 3, "end_us": 4, "done_us": 4, "answer_us": 4}
    assert {name: row[name] for name in expected} == expected
    assert {name: row[name] for name in times} == {name: value * 1_000_000 for name, value in times.items()}
    assert row["start_us"] == 3_750_000 and row["run_s"] == 0.25


def test_slot_and_memory_of_an_attempt_are_in_its_row():
    told = Told()
    told.turn(1.0).hello(1, HELLO)
    told.turn(2.0).client_said(0, submit(0, 4, apps=[SPEC]), APPS)
    told.turn(3.0).assign(1, assign(0, 1, 2, 3))
    ended = msgspec.structs.replace(done(0, 1, 2, outcomes=b"\0\0\2"), slots=[1, 0, -1], peaks={1: 5 << 20}, seconds=[0.5, 0.5, 0.0])
    told.turn(4.0).done(1, ended)
    told.turn(5.0).done(1, done(3))  # of a worker with one slot
    rows = {row["task"]: (row["slot"], row["peak_bytes"]) for row in told.rows()}
    assert rows == {0: (1, 0), 1: (0, 5 << 20), 2: (-1, 0), 3: (0, 0)}


def test_an_attempt_that_was_taken_back_has_one_row():
    told = Told()
    told.turn(1.0).client_said(0, submit(0, 2), APPS)
    told.turn(2.0).assign(1, assign(0, 1))
    told.turn(3.0).returned([0, 1])
    told.turn(4.0).assign(2, assign(0))
    record = told.turn(5.0)
    record.lost(1, 0, "died")
    record.done(2, done(0))
    record.answer(0, type("A", (), {"tasks": [0], "outcomes": b"\0"}))
    record.client_said(0, Cancel(tasks=[1]), APPS)
    first, second = told.rows()
    assert (first["task"], first["attempt"], first["rank"], first["how"], first["assign_us"]) == (0, 1, 2, How.DONE, 4_000_000)
    assert (second["task"], second["attempt"], second["rank"], second["how"]) == (1, 0, -1, How.CANCELLED)


def test_a_block_has_many_messages():
    told = Told()
    told.turn(1.0).hello(1, msgspec.structs.replace(HELLO, slots=2))
    told.recorder.client_said(0, submit(0, 7), APPS)
    for number in range(3):  # the messages of all turns are in one block
        told.turn(2.0 + number).assign(1, assign(2 * number, 2 * number + 1))
    told.turn(5.0).done(2, done(2, 3))  # a worker with one slot does not say which
    told.recorder.done(1, msgspec.structs.replace(done(1, 0), slots=[1, 0], peaks={1: 1 << 20}))
    told.turn(6.0).answer(0, type("A", (), {"tasks": [2, 3, 1, 0], "outcomes": bytes(4)}))
    told.recorder.done(1, msgspec.structs.replace(done(4, 5), slots=[0, 1], payloads=[b"", b"1" * 100]))
    rows = {row["task"]: tuple(int(row[name]) for name in ("slot", "peak_bytes", "bytes_out", "done_us", "answer_us")) for row in told.rows()}
    s = 1_000_000
    assert rows == {
        0: (0, 1 << 20, 3, 5 * s, 6 * s),
        1: (1, 0, 3, 5 * s, 6 * s),
        2: (0, 0, 3, 5 * s, 6 * s),
        3: (0, 0, 3, 5 * s, 6 * s),
        4: (0, 0, 0, 6 * s, -1),
        5: (1, 0, 100, 6 * s, -1),
        6: (-1, 0, 0, 6 * s, -1),
    }


def test_what_is_cancelled_ends_with_the_turn_though_a_block_ended_in_it():
    told = Told()
    told.turn(1.0).client_said(0, submit(0, 3), APPS)
    told.turn(2.0).assign(1, assign(0))
    record = told.turn(3.0)
    record.client_said(0, Cancel(tasks=[1, 2]), APPS)
    record.lost(7, 0, "died")  # ends a block
    record.answer(0, type("A", (), {"tasks": [1], "outcomes": b"\0"}))  # it was known
    told.turn(4.0).done(1, done(0))
    rows = {int(row["task"]): (How(int(row["how"])), int(row["answer_us"])) for row in told.rows()}
    assert rows == {0: (How.DONE, -1), 1: (How.DONE, 3_000_000), 2: (How.CANCELLED, -1)}


def test_short_results_of_one_message_ran_one_after_the_other():
    told = Told()
    told.turn(1.0).hello(1, HELLO)
    told.recorder.client_said(0, submit(0, 4), APPS)
    told.turn(2.0).assign(1, assign(0, 1, 2, 3))
    told.turn(3.0).done(1, done(0, 1, 2, 3, seconds=0.0005))
    ends = [row["end_us"] for row in told.rows()]
    assert np.allclose(np.diff(ends), 500, atol=1) and abs(ends[-1] - 3_000_000) <= 1


def test_each_attempt_has_a_row_of_its_own():
    told = Told()
    told.turn(1.0).client_said(0, submit(0, 1), APPS)
    told.turn(2.0).assign(1, assign(0))
    record = told.turn(3.0)
    record.done(1, done(0, outcomes=b"\1"))
    record.ready.append(0)
    record.placed()
    told.turn(5.0).assign(2, assign(0, attempts={0: 2}))
    record = told.turn(6.0)
    record.done(2, done(0))
    record.answer(0, type("A", (), {"tasks": [0], "outcomes": b"\0"}))
    first, second = told.rows()
    assert (first["attempt"], first["rank"], first["how"], first["ready_us"], first["answer_us"]) == (1, 1, How.FAILED, 1_000_000, -1)
    assert (second["attempt"], second["rank"], second["how"], second["ready_us"]) == (2, 2, How.DONE, 3_000_000)
    assert second["answer_us"] == 6_000_000


def test_tasks_that_never_ran_and_those_without_an_end_have_rows_too():
    told = Told()
    told.turn(1.0).client_said(0, submit(0, 5, needs={1: [0]}), APPS)
    told.turn(2.0).assign(1, assign(0, 3))
    record = told.turn(3.0)
    record.done(1, done(0, outcomes=b"\1"))
    record.answer(0, type("A", (), {"tasks": [0, 1], "outcomes": b"\1\3"}))
    record.client_said(0, Cancel(tasks=[2]), APPS)
    told.turn(4.0).lost(1, 1, "died")
    rows = {(int(row["task"]), int(row["attempt"])): How(int(row["how"])) for row in told.rows()}
    assert rows == {
        (0, 1): How.FAILED,
        (1, 0): How.NEED_FAILED,
        (2, 0): How.CANCELLED,
        (3, 1): How.WORKER_LOST,
        (4, 0): How.UNFINISHED,
    }


def test_needs_are_edges_also_where_the_client_had_the_value():
    told = Told()
    told.turn(1.0).client_said(3, submit(7, 3, needs={0: [5, -2 - 6, -1], 2: [-2 - 0]}), APPS)
    base = 3 << 40
    assert [(row["task"], row["need"]) for row in told.rows("edges")] == [(base + 7, base + 5), (base + 7, base + 6), (base + 9, base + 0)]


def test_what_tasks_have_made_is_told_of():
    told = Told()
    inner = (1 << 20) + 3
    told.turn(1.0).made(inner << 40, 2, 17)
    told.recorder.client_said(inner, submit(0, 2, apps=[SPEC]), APPS)
    told.turn(2.0).client_said(inner + 1, submit(0, 1, apps=[SPEC]), APPS)
    assert told.rows("made") == [{"parent": 17, "first": inner << 40, "count": 2}]


def test_apps_that_task_processes_share_have_one_row():
    told = Told()
    for client in range(3):
        told.turn(1.0).client_said((1 << 20) + client, submit(0, 1, apps=[SPEC]), APPS)
    assert [row["app"] for row in told.rows("apps")] == [7]


def test_a_record_of_an_earlier_version_has_no_such_table(tmp_path):
    path = str(tmp_path / "run.h5")
    RecordFile(path, META).close(0, 0)
    with h5py.File(path, "r+", locking=False) as file:
        del file["made"]
    with Record(path) as record:
        assert record.rows("made") == 0 and len(record.column("made", "count")) == 0


def test_memory_does_not_grow_with_clients_that_are_gone():
    assembler = Assembler(lambda table, columns: None)
    for client in range(1000):
        base = client << 40
        assembler.feed(Frame(Kind.SUBMIT, client, base, 1, struct.pack("=II", 5, 0)))
        assembler.feed(Frame(Kind.CANCEL, client, client, 1, struct.pack("=q", base)))
        assembler.feed(Frame(Kind.FINISH, client, client, 1, b""))
    assembler.feed(Frame(Kind.SUBMIT, 1000, 5000 << 40, 1, struct.pack("=II", 5, 0)))
    assembler.close_window()
    assert len(assembler._pool) < 10


def test_what_was_dropped_makes_no_trouble():
    told = Told()
    told.turn(1.0).assign(1, assign(5, 1 << 41))
    told.turn(2.0).done(1, done(5, 1 << 41))
    assert told.rows() == []


def test_memory_does_not_grow_with_the_tasks():
    rows = 0

    def sink(table, columns):
        nonlocal rows
        rows += len(columns["task"]) if table == "attempts" else 0

    assembler = Assembler(sink)
    for first in range(0, 400_000, 1000):
        block = HEAD.pack(first, 1, 1000) + np.arange(first, first + 1000, dtype="i8").tobytes()
        for kind, a, body in (
            (Kind.SUBMIT, first, np.zeros(1000, "u4").tobytes() + array("I", [0]).tobytes()),
            (Kind.ASSIGN, 1, block),
            (Kind.DONE, 1, block + bytes(13_000)),
            (Kind.ANSWER, 1, block + bytes(1000)),
        ):
            (frame,) = take_frames(bytearray(HEADER.pack(len(body), kind, first, a, 1000) + body))
            assembler.feed(frame)
    assert len(assembler._pool) < 12
    assembler.close()
    assert rows == 400_000


def test_a_pipe_that_nobody_reads_makes_nobody_wait(monkeypatch):
    monkeypatch.setattr(recorder_module, "MOST_WAITING_BYTES", 1 << 20)
    told = Told()
    for number in range(200):
        told.turn(number * 0.2).client_said(0, submit(1000 * number, 1000), APPS)
        told.recorder.done(1, done(*range(1000 * number, 1000 * (number + 1))))
    assert told.recorder.dropped > 0
    assert told.recorder._waiting_bytes < 2 << 20
    os.close(told.read)
    told.turn(100.0)
    told.turn(101.0)
    assert told.recorder.close(0.1) == 0


# ---- the file ----


def attempts(first, count):
    columns = {name: np.zeros(count, dtype) for name, dtype, _ in TABLES["attempts"]}
    return {**columns, "task": np.arange(first, first + count, dtype="u8")}


def test_it_can_be_read_while_it_is_written(tmp_path):
    path = str(tmp_path / "sub" / "run.h5")
    file = RecordFile(path, META)
    file.add("attempts", attempts(0, 100))
    file.flush(1_000_000)
    with Record(path) as record:
        assert record.ended_us == -1
        assert record.column("attempts", "task").tolist() == list(range(100))
    file.add("attempts", attempts(100, 70_000))
    file.flush(2_000_000)
    with Record(path) as record:
        assert record.rows("attempts") == 70_100
    file.close(3_000_000, 2)
    with Record(path) as record:
        assert (record.ended_us, record.dropped, record.meta["script"]) == (3_000_000, 2, "s.py")
        assert (record.column("attempts", "task") == np.arange(70_100)).all()


def test_many_flushes_leave_no_waste(tmp_path):
    path = str(tmp_path / "run.h5")
    file = RecordFile(path, META)
    for number in range(100):
        file.add("attempts", attempts(10 * number, 10))
        file.flush(number)
    file.close(100, 0)
    assert os.path.getsize(path) < 300_000
    with Record(path) as record:
        assert (record.column("attempts", "task") == np.arange(1000)).all()


def test_rows_are_read_as_they_were_written_whatever_the_flushes(tmp_path):
    path = str(tmp_path / "run.h5")
    random = np.random.default_rng(1)
    sizes = [1, CHUNK_ROWS["attempts"] - 1, 3, 40_000, CHUNK_ROWS["attempts"], 7]
    written = [
        {name: random.integers(0, 100, count).astype(dtype) for name, dtype, _ in TABLES["attempts"]} for count in (*sizes, *sizes)
    ]
    file = RecordFile(path, META)
    for number, rows in enumerate(written):
        file.add("attempts", rows)
        if number >= len(sizes):
            file.flush(number)
            with Record(path) as record:
                assert record.rows("attempts") == sum(len(part["task"]) for part in written[: number + 1])
    file.close(100, 0)
    with Record(path) as record:
        for name in written[0]:
            assert (record.column("attempts", name) == np.concatenate([rows[name] for rows in written])).all(), name


def values_of(dtype):
    """Chunks that are easy, and those at the limits of what a number of bytes holds."""
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    yield from ([0, 0, 0], [least, most, 0], [most, most], [least, least, least], [least, least + 1], [most - 1, most])
    for bits in range(8, 8 * np.dtype(dtype).itemsize, 8):
        for span in (2**bits - 3, 2**bits - 2, 2**bits - 1, 2**bits):
            for first in (least, 0, most - span):
                if first + span <= most:
                    yield [first, first + span, first + span // 2, first]


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i4", "u8", "i8", "f4", "S64"])
def test_hdf5_reads_our_chunks(tmp_path, dtype):
    chunks = [[0.0, -1.5], [1e-9, 3e8]] if dtype == "f4" else [[b"a", b"bcd"]] if dtype == "S64" else list(values_of(dtype))
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for number, chunk in enumerate(chunks):
            values = np.array(chunk, dtype)
            made = file.create_dataset(str(number), (4 + len(values),), dtype, chunks=(4,), maxshape=(None,), **filters(values.dtype))
            made.id.write_direct_chunk((0,), *packed(np.resize(values, 4)))
            made.id.write_direct_chunk((4,), *deflated(values, 4))
    with h5py.File(path) as file:
        for number, chunk in enumerate(chunks):
            values = np.array(chunk, dtype)
            assert file[str(number)][:].tolist() == [*np.resize(values, 4).tolist(), *values.tolist()]


def test_a_file_in_the_way_is_kept(tmp_path):
    path = tmp_path / "run.h5"
    for text in ("a", "b"):
        path.write_text(text)
        set_aside(str(path))
    assert (tmp_path / "run.1.h5").read_text() + (tmp_path / "run.2.h5").read_text() == "ab"


def test_files_that_are_no_records_are_named(tmp_path):
    path = tmp_path / "x.h5"
    with pytest.raises(RecordError, match="there is no run record"):
        Record(str(path))
    path.write_text("text")
    with pytest.raises(RecordError, match="no run record, or is damaged"):
        Record(str(path))
    with h5py.File(path, "w"):
        pass
    with pytest.raises(RecordError, match="not a run record of exex"):
        Record(str(path))
    RecordFile(str(path), META).close(0, 0)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = 99
    with pytest.raises(RecordError, match="of a later exex"):
        Record(str(path))


# ---- the writer ----


def told_to_a_writer(path, tasks=20_000):
    recorder = start_writer(os.environ, 0.0)
    recorder.sample = lambda: (0,) * 8
    recorder.begin(path, attributes(Config(), "s.py", {"exex": "1"}, 0.0))
    recorder.turn_begins(1.0)
    recorder.client_said(0, submit(0, tasks), APPS)
    recorder.assign(1, assign(*range(tasks)))
    recorder.done(1, done(*range(tasks)))
    recorder.turn_ends()
    recorder.turn_begins(3.0)  # it is time to flush
    recorder.turn_ends()
    return recorder


def test_the_writer_completes_the_file(tmp_path):
    path = str(tmp_path / "run.h5")
    assert told_to_a_writer(path).close() == 0
    with Record(path) as record:
        assert record.ended_us > 0 and record.rows("attempts") == 20_000
        assert set(record.meta["versions"]) == {"exex", "numpy", "h5py", "HDF5"}


def test_it_completes_the_file_when_the_manager_is_gone(tmp_path):
    path = str(tmp_path / "run.h5")
    recorder = told_to_a_writer(path)
    recorder._give_up()
    recorder._writer.wait(30)
    with Record(path) as record:
        assert record.ended_us > 0 and record.rows("attempts") == 20_000


def test_a_writer_that_is_killed_leaves_what_it_has_flushed(tmp_path):
    path = str(tmp_path / "run.h5")
    recorder = told_to_a_writer(path)
    rows = 0
    while not rows:
        assert recorder._writer.poll() is None
        recorder.turn_begins(recorder._now_us * 1e-6 + 1.0)
        recorder.turn_ends()
        try:
            with Record(path) as record:
                rows = record.rows("attempts")
        except RecordError:
            pass  # it has not begun
    recorder._writer.kill()
    recorder._writer.wait()
    with Record(path) as record:
        assert record.ended_us == -1
        assert record.column("attempts", "task").tolist()[:rows] == list(range(rows))
    recorder.turn_begins(1e6)
    recorder.hello(1, HELLO)
    recorder.turn_ends()  # the pipe is broken, and nobody minds


def test_signals_do_not_end_the_writer(tmp_path):
    path = str(tmp_path / "run.h5")
    recorder = told_to_a_writer(path)
    while not os.path.exists(path):
        assert recorder._writer.poll() is None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        recorder._writer.send_signal(number)
    assert recorder.close() == 0


def test_the_writer_makes_way_for_the_job(tmp_path):
    recorder = told_to_a_writer(str(tmp_path / "run.h5"), tasks=10)
    pid = recorder.writer_pid
    while os.sched_getscheduler(pid) != os.SCHED_BATCH:
        assert recorder._writer.poll() is None
        time.sleep(0.01)
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists() and group.read_text() and os.geteuid() == 0:  # others may set it ten times per second, all together
        while group.read_text().split()[-1] != str(NICE):
            assert recorder._writer.poll() is None
            time.sleep(0.01)
    assert recorder.close() == 0


def test_the_writer_hurries_when_it_is_waited_for(monkeypatch, tmp_path):
    path = str(tmp_path / "told")
    body = json.dumps({"path": path + ".h5", "attributes": {"began_unix_s": 0, "meta": {}}}).encode()
    begin = HEADER.pack(len(body), Kind.BEGIN, 0, 0, 0) + body
    much = HEADER.pack(1 << 20, Kind.CANCEL, 0, 0, 0) + bytes(1 << 20)
    read, write = os.pipe()
    seen = []

    class Seen:
        def hurry(self, now):
            seen.append(now)
            if len(seen) == 1:
                Path(path).write_bytes(much)
                os.dup2(os.open(path, os.O_RDONLY), read)  # more than a pipe holds, at once

    os.write(write, begin)
    writer_module.write(read, Seen())
    os.close(write)
    os.close(read)
    assert seen == [False, True, False, True]


def test_a_place_where_no_file_can_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    body = json.dumps({"path": str(tmp_path / "file" / "run.h5"), "attributes": {"began_unix_s": 0, "meta": {}}}).encode()
    begin = HEADER.pack(len(body), Kind.BEGIN, 0, 0, 0) + body
    done = subprocess.run([sys.executable, "-m", "exex.record.writer"], input=begin, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"exex: the run record {tmp_path}/file/run.h5 cannot be made: ")
    assert done.stderr.decode().endswith("; the job goes on without a run record\n")


@pytest.mark.parametrize(
    ("record", "in_allocation", "path"),
    [
        ("auto", True, "/runs/000/run.h5"),
        ("auto", False, ""),
        ("none", True, ""),
        ("run", False, "/runs/000/run.h5"),
        ("/data/x.h5", False, "/data/x.h5"),
    ],
)
def test_where_the_record_is(record, in_allocation, path):
    assert record_path(Config(record=record), "/runs/000", in_allocation) == path


def test_texts_are_cut_between_characters():
    assert cut("aé", 2) == b"a" and cut("aé", 3) == "aé".encode()
