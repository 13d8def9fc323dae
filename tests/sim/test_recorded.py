"""The run record of simulated jobs: whatever goes wrong, every task's end is in it once, and no time runs backwards."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict

import numpy as np
import pytest

from exex.protocol.messages import CLIENT_SHIFT, Outcome
from exex.record.columns import TABLES, How
from exex.record.frames import take_frames
from exex.record.recorder import Recorder
from exex.record.rows import Assembler
from tests.sim.simulation import Past, Simulation, tracing


class Recorded(Simulation):
    """A simulation whose manager tells a recorder, which writes into a file."""

    def new_recorder(self) -> Recorder:
        self.file = tempfile.TemporaryFile()
        self.recorder = Recorder(os.dup(self.file.fileno()), 0.0, clock=lambda: self.now)
        self.ends: dict[int, int] = {}
        self.answered: set[int] = set()
        tell = self.recorder.answer

        def answer(client, message) -> None:
            self.answered.update((client << CLIENT_SHIFT) + task for task in message.tasks)
            tell(client, message)

        self.recorder.answer = answer
        return self.recorder

    def finish_task(self, task, outcome, *args) -> None:
        if task.app is not None:
            assert task.id not in self.ends
            self.ends[task.id] = outcome
        super().finish_task(task, outcome, *args)

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """The columns of the record."""
        self.recorder.close()
        self.file.seek(0)
        found = {table: {column.name: [] for column in TABLES[table]} for table in TABLES}

        def sink(table, columns) -> None:
            assert columns.keys() == found[table].keys(), table
            assert len({len(values) for values in columns.values()}) == 1
            for name, values in columns.items():
                found[table][name].append(values)

        assembler = Assembler(sink)
        data = bytearray(self.file.read())
        for number, frame in enumerate(take_frames(data)):
            assembler.feed(frame)
            if number % 50 == self.seed_of_windows:
                assembler.close_window()
        assert not data
        assembler.close()
        self.pool = assembler._pool
        return {
            table: {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in columns.items()}
            for table, columns in found.items()
        }

    seed_of_windows = 0


MAY_END = {
    Outcome.DONE: {How.DONE},
    Outcome.FAILED: {How.FAILED, How.WORKER_LOST, How.PROCESS_LOST, How.CANCELLED},
    Outcome.LOST: {How.PROCESS_LOST, How.WORKER_LOST, How.CANCELLED},
    Outcome.NEED_FAILED: {How.NEED_FAILED, How.FAILED},
    Outcome.CANCELLED: {How.CANCELLED, How.WORKER_LOST, How.DONE, How.FAILED, How.PROCESS_LOST, How.UNFINISHED},
}
"""A cancelled task may have ended at its worker, before that heard of it, or was lost with it. A gang that has lost a node is
cancelled at its lead, and fails if that was once too often."""


def run(seed: int) -> Recorded:
    with tracing():
        sim = Recorded.of_seed(seed, Past())
        sim.seed_of_windows = seed % 50
        sim.run()
    return sim


@pytest.mark.parametrize("start", range(0, 60, 10))
def test_every_end_is_recorded_once(start: int) -> None:
    for seed in range(start, start + 10):
        sim = run(seed)
        attempts = sim.tables()["attempts"]
        rows = defaultdict(list)
        for task, attempt, how in zip(attempts["task"].tolist(), attempts["attempt"].tolist(), attempts["how"].tolist()):
            rows[task].append((attempt, how))
        for task, outcome in sim.ends.items():
            hows = [how for _, how in rows[task]]
            allowed = MAY_END[Outcome(outcome)] | ({How.CANCELLED} if task not in sim.answered else set())
            assert any(how in allowed for how in hows), (seed, task, outcome, rows[task])
            assert hows.count(How.DONE) <= 1, (seed, task)
            assert len(sim.pool) <= 10
            numbers = [attempt for attempt, _ in rows[task]]
            assert len(numbers) == len(set(numbers)), (seed, task, rows[task])


@pytest.mark.parametrize("start", range(0, 40, 10))
def test_no_time_runs_backwards(start: int) -> None:
    for seed in range(start, start + 10):
        attempts = run(seed).tables()["attempts"]
        ran = attempts["start_us"] >= 0
        for earlier, later in (("submit_us", "ready_us"), ("ready_us", "assign_us"), ("assign_us", "start_us"), ("start_us", "end_us")):
            late = ran & (attempts[earlier] > attempts[later])
            assert not late.any(), (seed, earlier, attempts["task"][late], attempts["attempt"][late])
        assert (attempts["end_us"][ran] <= attempts["done_us"][ran]).all()
        answered = attempts["answer_us"] >= 0
        assert (attempts["done_us"][answered] <= attempts["answer_us"][answered]).all()


def test_a_task_is_ready_when_its_needs_are_there() -> None:
    checked = 0
    for seed in range(24):
        tables = run(seed).tables()
        attempts, edges = tables["attempts"], tables["edges"]
        is_done = (attempts["how"] == How.DONE) & (attempts["attempt"] > 0)
        done_us = dict(zip(attempts["task"][is_done].tolist(), attempts["done_us"][is_done].tolist()))
        is_first = attempts["attempt"] == 1
        ready_us = dict(zip(attempts["task"][is_first].tolist(), attempts["ready_us"][is_first].tolist()))
        for task, need in zip(edges["task"].tolist(), edges["need"].tolist()):
            if task in ready_us and need in done_us:
                assert ready_us[task] >= done_us[need], (seed, task, need)
                checked += 1
    assert checked > 50
