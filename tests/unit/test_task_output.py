"""Output of tasks in files: whose every byte is, limits, several ranks in one file, and what a reader finds."""

from __future__ import annotations

import os
import random
import types

import pytest
from click.testing import CliRunner

from exex.cli import main
from exex.errors import OutputError
from exex.protocol import context
from exex.store import task_output
from exex.store.task_output import NOTE, TaskOutput, find_run_dir, output_of, parts, read, stem
from exex.worker import marks
from exex.worker.marks import MarkedWriter, mark, split
from exex.worker.printed import Printed
from exex.worker.slot import Call, Slot


def task(number, attempt=1):
    return types.SimpleNamespace(task=number, attempt=attempt)


# ---- marks ----


def joined(pieces):
    """Bytes by owner, of a stream that arrives in these pieces."""
    owner, rest, found = None, b"", {}
    for piece in pieces:
        taken, rest = split(rest + piece)
        for named, text in taken:
            owner = named or owner
            found[owner] = found.get(owner, b"") + text
    if rest:
        found[owner] = found.get(owner, b"") + rest
    return {owner: text for owner, text in found.items() if text}


def test_marks_are_found_wherever_the_stream_is_cut():
    stream = b"before" + mark((1, 1)) + b"one\x00\x1eexe" + mark((2, 3)) + b"two" + mark((1, 1)) + b"again\x00"
    expected = {None: b"before", (1, 1): b"one\x00\x1eexeagain\x00", (2, 3): b"two"}
    assert joined([stream]) == expected
    assert joined(bytes([byte]) for byte in stream) == expected
    chance = random.Random(1)
    for _ in range(200):
        cuts = sorted(chance.sample(range(len(stream)), 4))
        assert joined([stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)])]) == expected


@pytest.fixture
def pipe():
    read_fd, write_fd = os.pipe()
    yield read_fd, write_fd
    os.close(read_fd)
    os.close(write_fd)


def test_lines_and_pieces_of_lines_belong_to_who_wrote_them(pipe, monkeypatch):
    read_fd, write_fd = pipe
    writer = MarkedWriter(write_fd)
    first, second = task(1), task(2, 4)
    for current, text in ((first, b"a"), (second, b"b\n"), (second, b"c"), (None, b"d"), (first, b"e")):
        monkeypatch.setattr(context, "current_task", current)
        writer.write(text)
    writer.flush()
    assert joined([os.read(read_fd, 65536)]) == {(1, 1): b"ae", (2, 4): b"b\nc", (-1, 0): b"d"}


def test_who_prints_nothing_writes_nothing(pipe, monkeypatch):
    read_fd, write_fd = pipe
    writer = MarkedWriter(write_fd)
    monkeypatch.setattr(context, "current_task", task(1))
    writer.flush()
    os.set_blocking(read_fd, False)
    with pytest.raises(BlockingIOError):
        os.read(read_fd, 1)


def test_no_mark_goes_into_a_file_that_a_task_has_put_in_its_place(pipe, monkeypatch, tmp_path):
    read_fd, write_fd = pipe
    writer = MarkedWriter(write_fd)
    kept = os.dup(write_fd)
    monkeypatch.setattr(context, "current_task", task(1))
    with open(tmp_path / "own", "wb") as file:
        os.dup2(file.fileno(), write_fd)
        writer.write(b"into the file")
        writer.announce(task(1))
    os.dup2(kept, write_fd)
    os.close(kept)
    assert (tmp_path / "own").read_bytes() == b"into the file"
    writer.write(b"into the pipe")
    writer.flush()
    assert joined([os.read(read_fd, 65536)]) == {(1, 1): b"into the pipe"}


# ---- the rank ----


def slot_with(*numbers):
    slot = Slot(0, None)
    spec = types.SimpleNamespace(name="f")
    slot.held.extend(Call(number, 1, spec, b"", None) for number in numbers)
    return slot


def found(run_dir):
    texts = {}
    for part in parts(run_dir):
        texts[part.task, part.stream] = texts.get((part.task, part.stream), b"") + read(part)
    return texts


def test_bytes_without_a_mark_belong_to_what_runs(tmp_path):
    printed = Printed(TaskOutput(str(tmp_path), "nid1", 1000))
    slot = slot_with(1, 2)
    assert printed.take(slot, "stdout", b"from C" + mark((1, 1)) + b"marked" + mark((1, 1))[:5], 0.0) == b"from Cmarked"
    assert printed.take(slot, "stdout", mark((1, 1))[5:] + b"!", 0.0) == b"!"
    printed.ended(slot, 1, 0.0)
    slot.held.popleft()
    printed.take(slot, "stdout", b"of two", 0.0)
    printed.take(slot, "stderr", b"error of two", 0.0)
    printed.died(slot, 0.0)
    printed.take(slot_with(), "stderr", b"nobody's", 0.0)
    printed.close()
    assert found(tmp_path) == {(1, 0): b"from Cmarked!", (2, 0): b"of two", (2, 1): b"error of two", (-1, 1): b"nobody's"}


def test_what_is_too_much_is_cut_and_said(tmp_path):
    output = TaskOutput(str(tmp_path), "nid1", 10)
    for text in (b"12345678", b"9abcdef", b"more"):
        output.write((3, 1), 0, text, 0.0)
    output.write((3, 1), 1, b"short", 0.0)
    output.ended(3, "f", 0.0)
    output.write((3, 2), 0, b"again", 0.0)
    output.ended(3, "f", 0.0)
    output.close()
    texts = found(tmp_path)
    assert texts[3, 0] == b"123456789aagain" and texts[3, 1] == b"short"
    assert texts[3, NOTE] == b"exex: stdout of task 3 (f) is cut off: 9 B more were printed; output_limit_bytes is 10\n"
    assert not output.has_printed()


def test_ranks_of_a_node_share_its_files(tmp_path):
    ranks = [TaskOutput(str(tmp_path), "nid1", 1 << 20) for _ in range(3)]
    for number in range(300):
        ranks[number % 3].write((number, 1), 0, b"%d\n" % number * 50, 0.0)
        if number % 7 == 0:
            ranks[number % 3].flush()
    for rank in ranks:
        rank.close()
    assert found(tmp_path) == {(number, 0): b"%d\n" % number * 50 for number in range(300)}
    assert sorted(os.listdir(os.path.dirname(stem(str(tmp_path), "nid1")))) == ["nid1.index", "nid1.out"]


def test_nothing_is_made_before_something_is_printed(tmp_path):
    output = TaskOutput(str(tmp_path), "nid1", 10)
    output.flush_if_due(100.0)
    output.close()
    assert os.listdir(tmp_path) == []


def test_writes_are_few(tmp_path, monkeypatch):
    output = TaskOutput(str(tmp_path), "nid1", 1 << 20)
    monkeypatch.setattr(output, "_write", lambda waiting: times.append(len(waiting)))
    times = []
    for number in range(1000):
        output.write((number, 1), 0, b"line\n", number * 1e-3)
        output.flush_if_due(number * 1e-3)
    output.flush_if_due(1.5)
    assert times == [1000]


def test_a_full_disk_is_said_once_and_costs_nothing_else(tmp_path, capfd):
    (tmp_path / task_output.FOLDER).write_text("in the way")
    output = TaskOutput(str(tmp_path), "nid1", 10)
    for _ in range(3):
        output.write((1, 1), 0, b"x", 0.0)
        output.flush()
    output.close()
    assert capfd.readouterr().err.count("cannot be kept") == 1


# ---- exex logs ----


@pytest.fixture
def runs(tmp_path):
    """Two runs, the newer of which has kept output."""
    (tmp_path / "000").mkdir()
    output = TaskOutput(str(tmp_path / "001"), "nid1", 5)
    output.write((3, 1), 0, b"first ", 0.0)
    output.write((3, 2), 0, b"2nd\n", 0.0)
    output.write((3, 2), 1, b"e\n", 0.0)
    output.ended(3, "f", 0.0)
    output.close()
    (tmp_path / "002").mkdir()
    return tmp_path


def logs(*words):
    done = CliRunner().invoke(main, ["logs", *words])
    return done.exit_code, done.output


def test_logs_prints_one_task(runs):
    said = "exex: stdout of task 3 (f) is cut off: 1 B more were printed; output_limit_bytes is 5\n"
    assert logs("3", "--run-dir", str(runs)) == (0, f"first{said}2nd\ne\n")
    assert logs("3", "--run-dir", str(runs / "001"), "--attempt", "2", "--stream", "stderr") == (0, "e\n")
    assert logs("4", "--run-dir", str(runs)) == (1, f"exex logs: task 4 has printed nothing in {runs}/001, or was not run\n")


def test_logs_lists_who_has_printed(runs):
    status, text = logs("--run-dir", str(runs))
    assert status == 0
    assert text.splitlines() == [
        f"{runs}/001: tasks that have printed: 1; files: 1; kept: 11 B",
        "streams that were cut off: 1",
        "  task          3              11 B",
    ]


def test_a_run_without_output_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="run the job with --output files"):
        find_run_dir(str(tmp_path))
    with pytest.raises(OutputError):
        list(output_of(str(tmp_path), 1, frozenset({0, 1})))


def test_marks_cost_nothing_where_they_are_not_wanted():
    assert not marks.are_on()
