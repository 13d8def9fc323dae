"""What a record says of the end of a run: numbers of jobs that can be told by hand."""

from __future__ import annotations

import json
import math
import random

import pytest
from click.testing import CliRunner

from exex.cli import main
from exex.record.hdf5 import Record, RecordFile
from exex.record.summary import summarize
from exex.record.tail import Tail, fits
from exex.report.page import page
from tests.unit.test_report import app, attempt, table, worker


def record(path: str, rows: list[dict], nodes: int = 2, slots: int = 2) -> str:
    """A record of two apps, "short" and "long", on workers of one node each."""
    file = RecordFile(path, {"began_unix_s": 1.8e9, "meta": json.dumps({})})
    file.add("attempts", table("attempts", rows))
    file.add("apps", table("apps", [app(0, "short"), app(1, "long <b>")]))
    file.add("workers", table("workers", [worker(rank, f"nid{rank}", slots) for rank in range(1, nodes + 1)]))
    file.close(10**8, 0)
    return path


def straggler(tmp_path) -> str:
    """Four slots: from 1 s on four tasks of a second, until 4 s; then one goes on until 11 s, and one that nobody waited for."""
    rows = [attempt(number, 1 + number % 2, 1.0 + number // 4, 2.0 + number // 4) for number in range(12)]
    rows[-1] = attempt(11, 1, 3.0, 11.0, app=1)
    rows.append(attempt(12, 2, 4.0, 5.0, ready_s=4.0))
    return record(str(tmp_path / "run.h5"), rows)


def test_the_tail_of_a_job_with_a_straggler(tmp_path) -> None:
    found = summarize(straggler(tmp_path)).tail
    assert found == Tail(
        dry_s=pytest.approx(8.0),  # at 3 s the last that had waited was sent
        idle_slot_s=pytest.approx(32.0 - 8.0 - 3.0 - 1.0),
        share=pytest.approx(20.0 / 40.0),
        straggling_s=pytest.approx(6.0),  # until 5 s two were busy
        straggling_idle_slot_s=pytest.approx(18.0),
        stragglers=(("long <b>", 1),),
        longest_s=pytest.approx(8.0),
    )


def test_a_job_without_a_tail_wastes_nothing(tmp_path) -> None:
    rows = [attempt(number, 1 + number % 2, 1.0 + number // 4, 2.0 + number // 4) for number in range(12)]
    found = summarize(record(str(tmp_path / "run.h5"), rows)).tail
    assert found is not None
    assert (found.dry_s, found.idle_slot_s, found.stragglers) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-5), ())


def test_of_a_job_that_never_filled_half_of_its_slots_all_is_tail(tmp_path) -> None:
    found = summarize(record(str(tmp_path / "run.h5"), [attempt(0, 1, 1.0, 3.0)])).tail
    assert found is not None
    assert found.straggling_s == pytest.approx(2.0) and found.straggling_idle_slot_s == pytest.approx(6.0)
    assert found.stragglers == (("short", 1),)


def test_sizes_that_would_have_been_used_well() -> None:
    ninety, ninety_five = fits(work_s=900.0, longest_way_s=1.0, widest=1, slots_per_node=32.0)
    assert (ninety.target, ninety.sure_slots, ninety.most_slots) == (0.9, 101, 1000)
    assert (ninety.sure_nodes, ninety.most_nodes) == (3, 31)
    assert ninety.sure_s == pytest.approx(900 / 101 + 100 / 101)
    assert (ninety_five.sure_slots, ninety_five.most_slots) == (48, 947)


def test_a_size_is_never_smaller_than_the_widest_task() -> None:
    assert fits(900.0, 900.0, 16, 8.0)[0].sure_slots == 16
    assert fits(0.0, 0.0, 1, 1.0) == ()


@pytest.mark.parametrize("seed", range(20))
def test_any_order_reaches_what_is_sure_and_none_what_is_beyond(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.lognormvariate(0.0, 1.5) for _ in range(rng.randint(5, 400))]
    work_s, longest_s = sum(lengths), max(lengths)
    for fit in fits(work_s, longest_s, 1, 1.0):
        assert work_s / (fit.sure_slots * makespan(lengths, fit.sure_slots)) >= fit.target - 1e-9
        best = work_s / ((fit.most_slots + 1) * makespan(sorted(lengths, reverse=True), fit.most_slots + 1))
        assert best < fit.target or fit.most_slots == fit.sure_slots


def makespan(lengths: list[float], slots: int) -> float:
    """Each task in order to the slot that is free first."""
    free = [0.0] * slots
    for length in lengths:
        place = free.index(min(free))
        free[place] += length
    assert math.isclose(sum(free), sum(lengths))
    return max(free)


def test_the_report_says_it(tmp_path) -> None:
    path = straggler(tmp_path)
    said = CliRunner().invoke(main, ["report", path]).output
    assert "no task waited for a slot in the last 8 s: 20 slot seconds idle, 50 % of all" in said, said
    assert "1 attempt at the end (1 long <b>; the longest ran 8 s) left more than half" in said, said
    assert "90 % used: up to 1 slot (1 node) in any order" in said and "95 % used: up to" in said
    with Record(path) as opened:
        text, _ = page(opened)
    assert "1 long &lt;b&gt;; the longest ran" in text and "90 % used: up to" in text
