"""Puts the rows of a run record together from frames. Pure: numpy, no file, no clock. Runs in the record's writer.

Frames are gathered in windows, and of a window all submissions are taken first, then what became ready, assignments, results,
answers. So each step is one operation over many tasks. A window ends early before anything that this order would get wrong: a
later attempt of a task, a loss, the end of a client.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from exex.record.columns import TABLES, UNKNOWN, How
from exex.record.frames import HEAD, Frame, Kind
from exex.record.pool import CLIENT_BITS, Array, Columns, Gathered, Pool, where_known

Sink = Callable[[str, Columns], object]
"""Takes rows of a table."""

WINDOW_TASKS = 50_000
"""New tasks and results in a window at the most, about."""

HELD_BACK_S = 1e-3
"""Results of attempts that are shorter may be reported later, together with others."""

ANSWERED_US = 1_000_000
"""How long a row waits for the answer to its client."""

_ASK = 5
_NEW, _ASSIGNED, _ENDED, _FAILED, _DROPPED = 1, 2, 3, 4, 5


class Assembler:
    """Takes frames, gives rows to the sink.

    Attributes:
        now_us: of the last frame.
        dropped: messages that the manager has dropped.
    """

    def __init__(self, sink: Sink) -> None:
        self.now_us = 0
        self.dropped = 0
        self._sink = sink
        self._pool = Pool()
        self._apps: dict[tuple[int, int], int] = {}
        self._named: set[int] = set()  # apps that have a row
        self._slots: dict[int, int] = {}
        self._cancelled: list[tuple[int, Array]] = []
        self._rows: list[Columns] = []  # that wait for their answer, and new ones
        self._readied, self._assigned, self._answered = Gathered("i8"), Gathered("i8"), Gathered("i8", "u1")
        self._results = Gathered("i8", "u1", "f4", "u4", "i4")
        self._submitted: list[Frame] = []
        self._peaks: list[Array] = []  # (result of the window, KiB)
        self._later: list[tuple[Array, Array]] = []  # tasks that are tried again, and their attempts
        self._clear()
        self._do: dict[int, Callable[[Frame], None]] = {
            Kind.END: self._end, Kind.SUBMIT: self._submit, Kind.NEEDS: self._needs, Kind.READY: self._ready,
            Kind.ASSIGN: self._assign, Kind.DONE: self._done, Kind.ANSWER: self._answer, Kind.CANCEL: self._cancel,
            Kind.FINISH: self._finish, Kind.LOST: self._lost, Kind.HELLO: self._hello, Kind.APP: self._app,
            Kind.SAMPLE: self._sample, Kind.RETURNED: self._returned, Kind.AGAIN: self._again,
            Kind.MADE: self._made,
        }  # fmt: skip

    def feed(self, frame: Frame) -> None:
        """Take one frame; its columns are looked at when the window is closed."""
        if self._cancelled and frame.time_us > self.now_us:
            self._apply_cancelled()  # a turn later: what had ended before was answered in that turn
        self.now_us = frame.time_us
        self._do[frame.kind](frame)
        if len(self._results) + self._new > WINDOW_TASKS:
            self.close_window()

    # ---- frames ----

    def _clear(self) -> None:
        self._has_failed = False
        for gathered in (self._readied, self._assigned, self._results, self._answered):
            gathered.clear()
        self._peaks.clear()
        self._submitted.clear()
        self._new = 0

    def _end(self, frame: Frame) -> None:
        self.dropped = frame.a

    def _submit(self, frame: Frame) -> None:
        if frame.b:
            self._submitted.append(frame)
            self._new += frame.b

    def _needs(self, frame: Frame) -> None:
        which = np.frombuffer(frame.body, "u4", frame.b).astype("i8")
        counts = np.frombuffer(frame.body, "u4", frame.b, offset=4 * frame.b)
        needs = np.frombuffer(frame.body, "i8", offset=8 * frame.b)
        needs = np.where(needs < -1, -2 - needs, needs)  # its value was given
        is_known = needs >= 0
        base = frame.a >> CLIENT_BITS << CLIENT_BITS
        tasks = np.repeat(frame.a + which, counts)[is_known]
        if len(tasks):
            self._sink("edges", {"task": tasks, "need": base + needs[is_known]})

    def _ready(self, frame: Frame) -> None:
        if self._has_failed:
            self.close_window()  # what is tried again is ready later than its first attempt was
        self._readied.add(frame)

    def _assign(self, frame: Frame) -> None:
        self._assigned.add(frame)

    def _again(self, frame: Frame) -> None:
        self.close_window()
        tasks = np.frombuffer(frame.body, "i8", frame.b)
        self._close_rows(tasks)
        self._later.append((tasks, np.frombuffer(frame.body, "u4", offset=8 * frame.b)))

    def _done(self, frame: Frame) -> None:
        first = len(self._results)
        peaks = np.frombuffer(self._results.add(frame), "u4").reshape(-1, 2)
        if len(peaks):
            self._peaks.append(peaks + np.array([first, 0]))
        begin = HEAD.size * frame.a + 8 * frame.b
        self._has_failed = self._has_failed or frame.body.count(0, begin, begin + frame.b) != frame.b

    def _returned(self, frame: Frame) -> None:
        self.close_window()
        at = self._pool.index(np.frombuffer(frame.body, "i8", frame.b))
        at = at[at >= 0]
        state = self._pool.fields["state"]
        state[at[state[at] == _ASSIGNED]] = _NEW

    def _answer(self, frame: Frame) -> None:
        self._answered.add(frame)

    def _cancel(self, frame: Frame) -> None:
        self._cancelled.append((frame.time_us, np.frombuffer(frame.body, "i8")))

    def _apply_cancelled(self) -> None:
        self.close_window()
        for time_us, tasks in self._cancelled:
            self._end_waiting(tasks, How.CANCELLED, time_us)
            at = self._pool.index(tasks)
            at = at[at >= 0]
            state = self._pool.fields["state"]
            state[at[state[at] == _ASSIGNED]] = _DROPPED
        self._cancelled.clear()

    def _finish(self, frame: Frame) -> None:
        if frame.b:
            self.close_window()
            state = self._pool.fields["state"]
            tasks = self._pool.tasks(lambda at: (state[at] == _NEW) | (state[at] == _FAILED) | (state[at] == _ASSIGNED))
            self._cancelled.append((frame.time_us, tasks[tasks >> CLIENT_BITS == frame.a]))
        self._pool.gone(frame.a)

    def _lost(self, frame: Frame) -> None:
        self.close_window()
        self._end_assigned(frame.a, How.WORKER_LOST, frame.time_us)
        how = frame.body.decode()
        self._one("losses", time_us=frame.time_us, rank=frame.a, attempts=frame.b, how=how)

    def _hello(self, frame: Frame) -> None:
        self._slots[frame.a] = frame.b
        self._one("workers", rank=frame.a, slots=frame.b, hello_us=frame.time_us, **json.loads(frame.body))

    def _app(self, frame: Frame) -> None:
        values = json.loads(frame.body)
        self._apps[frame.a, frame.b] = number = values["app"]
        if number not in self._named:  # task processes share apps
            self._named.add(number)
            self._one("apps", client=frame.a, **values)

    def _made(self, frame: Frame) -> None:
        (parent,) = np.frombuffer(frame.body, "i8").tolist()
        self._one("made", parent=parent, first=frame.a, count=frame.b)

    def _sample(self, frame: Frame) -> None:
        names = [column.name for column in TABLES["samples"][1:]]
        self._one("samples", time_us=frame.time_us, **dict(zip(names, np.frombuffer(frame.body, "i8").tolist(), strict=True)))

    def _one(self, table: str, **values: Any) -> None:
        """One row of a table, in the table's types."""
        row = {}
        for name, dtype, _ in TABLES[table]:
            value = values[name]
            row[name] = np.array([cut(value, int(dtype[1:])) if dtype[0] == "S" else value], dtype)
        self._sink(table, row)

    # ---- windows ----

    def close_window(self) -> None:
        """Make rows of all that has gathered. Afterwards no body of a frame is needed any more."""
        if self._submitted:
            self._take_submitted(self._submitted)
        if len(self._readied):
            self._take_readied()
        if len(self._assigned):
            self._take_assigned()
        if len(self._results):
            self._take_results()
        if len(self._answered):
            self._take_answers()
        self._clear()
        self._write_rows(is_last=False)

    def _take_submitted(self, frames: list[Frame]) -> None:
        firsts, counts, times_us = np.array([(frame.a, frame.b, frame.time_us) for frame in frames]).T
        sizes = np.frombuffer(b"".join([frame.body[: 4 * frame.b] for frame in frames]), "u4")
        calls = np.frombuffer(b"".join([frame.body[4 * frame.b :] for frame in frames]), "u4")
        told = np.array([len(frame.body) // 4 - frame.b for frame in frames])  # one for all of a message, or for each
        calls = np.repeat(calls, np.repeat(np.where(told == 1, counts, 1), told))
        begins = np.cumsum(counts) - counts
        tasks = np.repeat(firsts - begins, counts) + np.arange(len(sizes))
        at = self._pool.add(tasks)
        fields = self._pool.fields
        fields["state"][at] = _NEW
        fields["submit_us"][at] = fields["ready_us"][at] = np.repeat(times_us, counts)
        fields["assign_us"][at] = fields["answer_us"][at] = UNKNOWN
        fields["bytes_in"][at] = sizes
        fields["app"][at] = self._numbers(tasks >> CLIENT_BITS, calls)

    def _numbers(self, clients: Array, calls: Array) -> Array:
        """The manager's numbers of apps."""
        keys = (clients << 32) + calls
        named, which = (keys[:1], np.zeros(1, "i8")) if (keys == keys[0]).all() else np.unique(keys, return_inverse=True)
        return np.array([self._apps.get((key >> 32, key & (2**32 - 1)), 0) for key in named.tolist()], "u4")[which]

    def _take_readied(self) -> None:
        times_us, _, counts, tasks = self._readied.columns()
        at, times_us = where_known(self._pool.index(tasks), np.repeat(times_us, counts))
        fields = self._pool.fields
        fields["ready_us"][at] = times_us
        fields["state"][at[fields["state"][at] == _FAILED]] = _NEW  # tried again

    def _take_assigned(self) -> None:
        times_us, ranks, counts, tasks = self._assigned.columns()
        at, ranks, times_us = where_known(self._pool.index(tasks), np.repeat(ranks, counts), np.repeat(times_us, counts))
        fields = self._pool.fields
        fields["attempt"][at] = 1
        fields["rank"][at] = ranks
        fields["assign_us"][at] = times_us
        fields["state"][at] = _ASSIGNED
        for tasks, numbers in self._later:
            at, attempts = where_known(self._pool.index(tasks), numbers)
            fields["attempt"][at] = attempts
        self._later.clear()

    def _take_results(self) -> None:
        times_us, ranks, counts, tasks, how, seconds, sizes, slot = self._results.columns()
        done_us = np.repeat(times_us, counts)
        slots = np.repeat(np.array([self._slots.get(rank, 1) for rank in ranks.tolist()]), counts)
        end_us = done_us - (_later_s(seconds, counts) * 1e6 / slots).astype("i8")
        at, tasks, how, seconds, sizes, slot, done_us, end_us, peak_bytes = where_known(
            self._pool.index(tasks), tasks, how, seconds, sizes, slot, done_us, end_us, self._peak_bytes()
        )
        fields = self._pool.fields
        state, assign_us = fields["state"][at], fields["assign_us"][at]
        is_final = (how == How.DONE) | (state == _DROPPED)
        fields["state"][at] = np.where(is_final, _ENDED, _FAILED)
        self._pool.ended(tasks[is_final & (state != _ENDED)])
        end_us = np.maximum(end_us, assign_us)
        start_us = np.maximum(end_us - (seconds * 1e6).astype("i8"), assign_us)
        slot = np.where((how == How.CANCELLED) & (seconds == 0), UNKNOWN, slot)  # it was only queued
        rest = {"how": how, "done_us": done_us, "bytes_out": sizes, "slot": slot, "peak_bytes": peak_bytes}
        self._add_rows(tasks, at, start_us=start_us, end_us=end_us, run_s=seconds, **rest)

    def _peak_bytes(self) -> Array:
        peaks = np.zeros(len(self._results), "u8")
        for some in self._peaks:
            peaks[some[:, 0]] = some[:, 1] * 1024
        return peaks

    def _take_answers(self) -> None:
        times_us, _, counts, tasks, outcomes = self._answered.columns()
        times_us = np.repeat(times_us, counts)
        at = self._pool.index(tasks)
        known = (at >= 0) & (outcomes != _ASK)
        tasks, at, outcomes, times_us = tasks[known], at[known], outcomes[known], times_us[known]
        fields = self._pool.fields
        fields["answer_us"][at] = times_us
        state = fields["state"][at]
        never_ran = (state == _NEW) | ((state == _FAILED) & (outcomes == How.DONE))
        if never_ran.any():
            self._end_without_attempt(tasks[never_ran], outcomes[never_ran], times_us[never_ran])
        failed = state == _FAILED
        fields["state"][at[failed]] = _ENDED
        self._pool.ended(tasks[failed & ~never_ran])

    def _end_waiting(self, tasks: Array, how: int, time_us: int) -> None:
        """Tasks that were not at a worker have ended; what is there will be reported."""
        at, tasks = where_known(self._pool.index(tasks), tasks)
        state = self._pool.fields["state"][at]
        tasks = tasks[(state == _NEW) | (state == _FAILED)]
        self._end_without_attempt(tasks, np.full(len(tasks), how, "u1"), np.full(len(tasks), time_us))

    def _end_without_attempt(self, tasks: Array, how: Array, times_us: Array) -> None:
        at = self._pool.index(tasks)
        fields = self._pool.fields
        fields["attempt"][at], fields["rank"][at], fields["assign_us"][at] = 0, UNKNOWN, UNKNOWN
        fields["state"][at] = _ENDED
        self._add_rows(tasks, at, how=how, done_us=times_us, **_never_ran(len(tasks)))
        self._pool.ended(tasks)

    def _end_assigned(self, rank: int | None, how: int, time_us: int) -> None:
        """Attempts at a worker, or at all, have ended with it. They may be tried again."""
        fields = self._pool.fields
        state = fields["state"]
        tasks = self._pool.tasks(
            lambda at: ((state[at] == _ASSIGNED) | (state[at] == _DROPPED)) & (rank is None or fields["rank"][at] == rank)
        )
        at = self._pool.index(tasks)
        self._pool.ended(tasks[state[at] == _DROPPED])
        state[at] = np.where(state[at] == _DROPPED, _ENDED, _FAILED)
        ends = {"how": np.full(len(tasks), how, "u1"), "done_us": np.full(len(tasks), time_us)}
        self._add_rows(tasks, at, **ends, **_never_ran(len(tasks)))

    # ---- rows ----

    def _add_rows(self, tasks: Array, at: Array, **rest: Array) -> None:
        if not len(tasks):
            return
        fields = self._pool.fields
        named = ("app", "attempt", "rank", "submit_us", "ready_us", "assign_us", "bytes_in")
        self._rows.append({"task": tasks, **{name: fields[name][at] for name in named}, **rest})

    def _close_rows(self, tasks: Array) -> None:
        """These are tried again: no answer belongs to what they have done so far."""
        for rows in self._take_rows():
            is_over = np.isin(rows["task"], tasks)
            self._sink("attempts", {**_part(rows, is_over), "answer_us": np.full(int(is_over.sum()), UNKNOWN)})
            self._rows.append(_part(rows, ~is_over))

    def _take_rows(self) -> list[Columns]:
        """All rows in one piece, if there are any."""
        rows, self._rows = self._rows, []
        if len(rows) > 1:
            rows = [{name: np.concatenate([part[name] for part in rows]) for name in rows[0]}]
        return rows

    def _write_rows(self, is_last: bool) -> None:
        wanted = np.zeros(0, "i8")
        for rows in self._take_rows():
            at = self._pool.index(rows["task"])
            answer_us = np.where(at >= 0, self._pool.fields["answer_us"][at], UNKNOWN)
            is_over = (answer_us >= 0) | (rows["how"] == How.CANCELLED) | (rows["done_us"] < self.now_us - ANSWERED_US)
            if is_last:
                is_over[:] = True
            if is_over.all():
                self._sink("attempts", {**rows, "answer_us": answer_us})
                continue
            self._sink("attempts", {**_part(rows, is_over), "answer_us": answer_us[is_over]})
            left = _part(rows, ~is_over)
            wanted = left["task"]
            self._rows.append(left)
        self._pool.forget(wanted)

    def close(self) -> None:
        """Write all that is known, also of tasks without an end."""
        self._apply_cancelled()
        self._end_assigned(None, How.UNFINISHED, self.now_us)
        state = self._pool.fields["state"]
        self._end_waiting(self._pool.tasks(lambda at: state[at] == _NEW), How.UNFINISHED, self.now_us)
        self._write_rows(is_last=True)


def _later_s(seconds: Array, counts: Array) -> Array:
    """For each result of each message: how long those took that stand after it and may have been held back for others."""
    short = np.where(seconds < HELD_BACK_S, seconds, 0).astype("f8")
    sums = np.cumsum(np.concatenate([[0.0], short]))
    later: Array = np.repeat(sums[np.cumsum(counts)], counts) - sums[1:]
    return later


def _never_ran(count: int) -> Columns:
    """Columns of rows of which nobody knows that their function ran."""
    unknown = np.full(count, UNKNOWN)
    return {
        "start_us": unknown,
        "end_us": unknown,
        "run_s": np.full(count, UNKNOWN, "f4"),
        "bytes_out": np.zeros(count, "u8"),
        "slot": np.full(count, UNKNOWN, "i4"),
        "peak_bytes": np.zeros(count, "u8"),
    }


def _part(rows: Columns, mask: Array) -> Columns:
    return {name: column[mask] for name, column in rows.items()}


def cut(text: str, length: int) -> bytes:
    """UTF-8 of at most `length` bytes that ends with a whole character."""
    return text.encode()[:length].decode(errors="ignore").encode()
