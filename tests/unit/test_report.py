"""Reports: numbers of a small job that can be told by hand, and a page that needs nothing but itself."""

from __future__ import annotations

import csv
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

from exex.cli import main
from exex.record.analysis import Steps, sizes, steps
from exex.record.columns import TABLES, How
from exex.record.hdf5 import Record, RecordFile
from exex.record.summary import summarize
from exex.report.page import page
from exex.report.words import count, duration, percent, time_ticks

SECOND = 1_000_000


def table(name, rows):
    return {column: np.array([row[column] for row in rows], dtype) for column, dtype, _ in TABLES[name]}


def attempt(task, rank, begin_s, end_s, app=0, how=How.DONE, ready_s=1.0, number=1):
    times = {"submit_us": 1.0, "ready_us": ready_s, "assign_us": begin_s, "start_us": begin_s, "end_us": end_s, "done_us": end_s}
    return {
        "task": task, "app": app, "attempt": number, "rank": rank, "how": how, "run_s": end_s - begin_s,
        "answer_us": int(end_s * SECOND), "bytes_in": 1, "bytes_out": 1, "slot": 0,
        "peak_bytes": (task + 1) << 20,
        **{name: int(value * SECOND) for name, value in times.items()},
    }  # fmt: skip


def app(number, name):
    return {
        "app": number, "client": 0, "name": name.encode(), "kind": 0, "priority": 0, "retries": 0, "cores": 0, "gpus": 0,
        "nodes": 0, "memory_bytes": 0, "walltime_s": 0,
    }  # fmt: skip


def worker(rank, node, slots):
    return {
        "rank": rank, "node": node.encode(), "slots": slots, "pid": rank, "gpus": 0, "memory_bytes": 0,
        "hello_us": SECOND // 2, "forked_s": 0.1, "imported_s": 0.2, "initialised_s": 0.3,
    }  # fmt: skip


def sample(time_s):
    names = [column.name for column in TABLES["samples"]]
    return {**dict.fromkeys(names, 1), "time_us": int(time_s * SECOND), "busy_us": int(time_s * SECOND / 4)}


@pytest.fixture
def record(tmp_path):
    """From 1 s to 11 s: four slots run a second each task 0 to 7, then one of them task 8 for eight seconds, which needs 7."""
    path = str(tmp_path / "run.h5")
    meta = {"script": "dir/<my> script.py", "settings": {"slots": 2}, "versions": {"exex": "1"}}
    file = RecordFile(path, {"began_unix_s": 1.8e9, "meta": json.dumps(meta)})
    rows = [attempt(task, 1 + task % 2, 1.0 + task // 4, 2.0 + task // 4) for task in range(8)]
    rows.append(attempt(8, 1, 3.0, 11.0, app=1, ready_s=3.0))
    rows.append(attempt(9, 2, 3.0, 3.0, app=1, how=How.FAILED, ready_s=3.0))
    rows[-1]["start_us"] = rows[-1]["end_us"] = rows[-1]["run_s"] = -1
    file.add("attempts", table("attempts", rows))
    file.add("apps", table("apps", [app(0, "short"), app(1, "long <b>")]))
    file.add("edges", table("edges", [{"task": 8, "need": need} for need in (3, 7)]))
    file.add("workers", table("workers", [worker(1, "nid1", 2), worker(2, "nid2", 2)]))
    file.add("samples", table("samples", [sample(at) for at in range(12)]))
    losses = [{"time_us": 12 * SECOND, "rank": 2, "attempts": 1, "how": b"died <i>"}]
    file.add("losses", table("losses", losses))
    file.close(12 * SECOND, 0)
    return path


def test_the_summary_of_a_small_job(record):
    found = summarize(record)
    assert (found.tasks, found.done, found.failed, found.attempts) == (10, 9, 1, 9)
    assert (found.workers, found.slots, found.nodes, found.lost_workers) == (2, 4, 2, 1)
    assert found.makespan_s == pytest.approx(10.0) and found.startup_s == pytest.approx(0.5)
    assert found.busy_slot_s == pytest.approx(16.0) and found.utilisation == pytest.approx(0.4)
    assert found.rate_per_s == pytest.approx(0.9)
    assert found.tail_s == pytest.approx(8.0, abs=0.01)
    assert found.tail_wasted_slot_s == pytest.approx(24.0, abs=0.1)
    assert (found.critical_tasks, found.critical_s) == (2, pytest.approx(9.0))
    assert found.manager_busy == pytest.approx(0.25)
    assert found.shares["work"] == pytest.approx(16.0) and sum(found.shares.values()) == pytest.approx(40.0)
    assert sorted((one.name, one.attempts, one.total_s) for one in found.apps) == [("long <b>", 1, 8.0), ("short", 8, 8.0)]
    (mine,) = [size for size in found.sizes if size.slots == 4]
    assert (mine.least_s, mine.most_s) == (9.0, 4.0 + 9.0 * 3 / 4)
    assert found.size is not None and found.size.slots == 1


def test_the_page_needs_nothing_but_itself(record):
    with Record(record) as opened:
        text, _ = page(opened)

    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.texts = [], []

        def handle_starttag(self, tag, attributes):
            for name, value in attributes:
                assert name not in ("src",) and not (name == "href" and not value.startswith("data:")), (tag, value)
                assert not name.startswith("on")
            if tag not in ("meta", "line", "rect", "path", "image", "i"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            if tag in self.open:
                while self.open.pop() != tag:
                    pass

        def handle_data(self, data):
            self.texts.append(data)

    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert "url(" not in text and "@import" not in text and "http" not in re.sub(r"xmlns=\S+", "", text)
    assert "<my> script.py" in "".join(tags.texts) and "long <b>" in "".join(tags.texts), "names are shown as they are"
    for title in ("Concurrency", "Throughput", "Queues", "Task lengths", "Nodes over time", "Critical path", "Tail", "What size", "Losses"):
        assert any(title in said for said in tags.texts), title
    charts = [json.loads(found.replace("&quot;", '"')) for found in re.findall(r"data-chart='([^']*)'", text)]
    assert len(charts) == 7
    assert charts[0]["names"] == ["slots", "busy"] and charts[0]["values"][1][50] == "4" and charts[0]["values"][1][-1] == "1"


def test_the_command_writes_what_it_is_asked_for(record, tmp_path):
    done = CliRunner().invoke(main, ["report", record, "--html", str(tmp_path / "p.html"), "--csv", str(tmp_path / "csv")])
    assert done.exit_code == 0, done.output
    assert "tasks        10: 9 done, 1 failed" in done.output and "<- this job" in done.output
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")
    with open(tmp_path / "csv" / "apps.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["short", "long <b>"]
    with open(tmp_path / "csv" / "attempts.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["task"]) for row in rows] == list(range(10)) and rows[8]["end_us"] == str(11 * SECOND)


def test_parquet_has_the_same_rows(record, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    done = CliRunner().invoke(main, ["report", record, "--parquet", str(tmp_path / "p")])
    assert done.exit_code == 0, done.output
    assert parquet.read_table(tmp_path / "p" / "attempts.parquet").column("task").to_pylist() == list(range(10))
    assert parquet.read_table(tmp_path / "p" / "apps.parquet").column("name").to_pylist() == ["short", "long <b>"]


def test_without_pyarrow_the_message_says_what_to_install(record, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = CliRunner().invoke(main, ["report", record, "--parquet", str(tmp_path / "p")])
    assert done.exit_code == 2 and "pip install 'exex[parquet]'" in done.output


def test_a_record_of_nothing_can_be_reported(tmp_path):
    path = str(tmp_path / "run.h5")
    RecordFile(path, {"began_unix_s": 0.0, "meta": "{}"}).close(0, 0)
    done = CliRunner().invoke(main, ["report", path, "--html", str(tmp_path / "p.html")])
    assert done.exit_code == 0, done.output
    assert "No function has run" in (tmp_path / "p.html").read_text()


def test_no_record_is_an_error(tmp_path):
    done = CliRunner().invoke(main, ["report", str(tmp_path / "no.h5")])
    assert done.exit_code == 1 and done.output.startswith("exex report: there is no run record")


def test_steps_are_exact():
    found = steps(np.array([0.0, 1.0, 5.0]), np.array([2.0, 3.0, 6.0]))
    assert found.integral(np.array([0.0, 1.5, 3.0, 10.0])).tolist() == [0.0, 2.0, 4.0, 5.0]
    assert found.means(np.array([0.0, 2.0, 4.0])).tolist() == [1.5, 0.5]
    assert found.last_at_least(2) == 2.0 and found.last_at_least(1) == 6.0
    assert Steps(np.zeros(0), np.zeros(0)).integral(np.array([0.0, 1.0])).tolist() == [0, 0]


def test_bounds_of_sizes():
    assert [size.slots for size in sizes(100.0, 1.0, 6)] == [1, 2, 4, 6, 8, 16]
    (one,) = [size for size in sizes(100.0, 1.0, 6) if size.slots == 1]
    assert (one.least_s, one.most_s, one.utilisation) == (100.0, 100.0, 1.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 µs"), (2e-7, "0.2 µs"), (0.0123, "12.3 ms"), (1.0, "1 s"), (99.9, "99.9 s"), (245, "4:05 min"), (7390, "2:03:10 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_words():
    assert [count(n) for n in (950, 12_300, 2_000_000)] == ["950", "12.3 k", "2 M"]
    assert [percent(p) for p in (0.0, 0.004, 0.0951, 0.5)] == ["0 %", "0.4 %", "9.5 %", "50 %"]
    assert [label for _, label in time_ticks(0, 3.2)] == ["0 s", "0.5 s", "1 s", "1.5 s", "2 s", "2.5 s", "3 s"]
    assert [label for _, label in time_ticks(0, 250)][:3] == ["0 s", "30 s", "1:00 min"]
