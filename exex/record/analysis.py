"""What a record shows: who was busy when, and what the rest of the time went into. Pure numpy over columns of a record.

Times are float seconds of the record. A slot is busy while a function runs; an attempt that holds several slots counts with all
of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exex.record.columns import UNKNOWN, How
from exex.record.hdf5 import Record

Floats = NDArray[np.float64]
Array = NDArray[Any]

NEARLY_FULL = 0.9
"""Part of the slots, or of the most that there ever was to do: when there is less to do for good, the tail has begun."""

TARGET = 0.9
"""Utilisation that a size should reach, when one is recommended."""


def seconds(column: Array) -> Floats:
    """A column of microseconds; NaN where it is unknown."""
    return np.where(column == UNKNOWN, np.nan, column * 1e-6)


@dataclass
class Steps:
    """How much was busy over time: `level[i]` from `time_s[i]` until `time_s[i + 1]`."""

    time_s: Floats
    level: Floats

    def integral(self, edges_s: Floats) -> Floats:
        """Area from the beginning up to each edge."""
        if not len(self.time_s):
            return np.zeros(len(edges_s))
        areas = np.concatenate([[0.0], np.cumsum(self.level[:-1] * np.diff(self.time_s))])
        at = np.searchsorted(self.time_s, edges_s, side="right") - 1
        inside = np.maximum(at, 0)
        area: Floats = np.where(at < 0, 0.0, areas[inside] + self.level[inside] * (edges_s - self.time_s[inside]))
        return area

    def means(self, edges_s: Floats) -> Floats:
        """Mean level between neighbouring edges."""
        mean: Floats = np.diff(self.integral(edges_s)) / np.maximum(np.diff(edges_s), 1e-12)
        return mean

    def last_at_least(self, level: float) -> float:
        """When it was last so high; the beginning if it never was."""
        high = np.flatnonzero(self.level >= level)
        if not len(high):
            return float(self.time_s[0]) if len(self.time_s) else 0.0
        return float(self.time_s[min(high[-1] + 1, len(self.time_s) - 1)])


def steps(begins_s: Floats, ends_s: Floats, weights: Floats | None = None) -> Steps:
    """The sum of the weights of all intervals that hold at a time; without weights their number."""
    known = ~(np.isnan(begins_s) | np.isnan(ends_s))
    begins_s, ends_s = begins_s[known], ends_s[known]
    if weights is None:
        begins_s, ends_s = np.sort(begins_s), np.sort(ends_s)
        by = np.ones(len(begins_s))
        off = -by
    else:
        by, off = weights[known], -weights[known]
    times = np.concatenate([ends_s, begins_s])
    order = np.argsort(times, kind="stable")  # ends first: who follows takes the slot over
    times, level = times[order], np.cumsum(np.concatenate([off, by])[order])
    is_last = np.append(times[1:] != times[:-1], True) if len(times) else np.zeros(0, bool)
    return Steps(times[is_last], level[is_last].astype("f8"))


class Data:
    """The columns of a record that every look at it needs.

    Attributes:
        attempts: how many rows there are; `ran`: which of them are attempts whose function ran, as indices.
        start_s, end_s, run_s, weight: of those that ran; the weight is the slots held.
        busy: slots in which functions ran; `demand`: slots that all that was ready or ran could use.
        begin_s, end_of_all_s: the first submission and the last result.
        workers: rank, slots, node number, when it was up and until when, a row each; `nodes`: names by number.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self._columns: dict[str, Array] = {}
        self.attempts = record.rows("attempts")
        self.how = self.column("how")
        self.app = self.column("app")
        start_us = self.column("start_us")
        self.ran = np.flatnonzero(start_us != UNKNOWN)
        self.run_s = self.column("run_s")[self.ran].astype("f8")
        self.end_s = self.column("end_us")[self.ran] * 1e-6
        self.start_s = np.maximum(self.end_s - self.run_s, start_us[self.ran] * 1e-6 - 1e-6)  # that is cut to microseconds
        self.rank = self.column("rank")[self.ran]
        self._read_apps()
        self._read_workers()
        weight = self.app_slots[self.app_index]
        is_wide = bool((weight != 1).any())
        self.weight = weight[self.ran]
        self.busy = steps(self.start_s, self.end_s, self.weight if is_wide else None)
        until_s = seconds(self.column("done_us"))
        until_s[self.ran] = self.end_s
        self.demand = steps(np.minimum(seconds(self.column("ready_us")), until_s), until_s, weight if is_wide else None)
        submit_us = self.column("submit_us")
        self.begin_s = float(submit_us.min()) * 1e-6 if len(submit_us) else 0.0
        done_us = self.column("done_us")
        self.end_of_all_s = float(done_us.max()) * 1e-6 if len(done_us) else self.begin_s
        self.capacity = steps(
            np.maximum(self.worker_up_s, self.begin_s),
            np.maximum(np.minimum(self.worker_gone_s, self.end_of_all_s), np.maximum(self.worker_up_s, self.begin_s)),
            self.worker_slots.astype("f8"),
        )

    def column(self, name: str) -> Array:
        """A column of `attempts`; not to be changed."""
        if name not in self._columns:
            self._columns[name] = self.record.column("attempts", name)
        return self._columns[name]

    def _read_apps(self) -> None:
        record = self.record
        numbers = record.column("apps", "app").astype("i8")
        self.app_names = record.texts("apps", "name")
        cores, nodes = record.column("apps", "cores"), record.column("apps", "nodes")
        self._whole_nodes = (nodes > 0) & (cores == 0)
        self.app_slots = np.maximum(cores, 1).astype("f8") * np.maximum(nodes, 1)
        most = int(max(self.app.max(initial=0), numbers.max(initial=0)))
        table = np.full(most + 1, len(numbers))
        table[numbers] = np.arange(len(numbers))
        self.app_index = table[self.app]
        if len(numbers) == 0 or (self.app_index == len(numbers)).any():  # its name is among what is missing
            self.app_names.append("?")
            self.app_slots = np.append(self.app_slots, 1.0)
            self._whole_nodes = np.append(self._whole_nodes, False)

    def _read_workers(self) -> None:
        record = self.record
        self.worker_rank = record.column("workers", "rank")
        self.worker_slots = record.column("workers", "slots").astype("i8")
        names = record.texts("workers", "node")
        self.nodes = sorted(set(names))
        numbers = {name: number for number, name in enumerate(self.nodes)}
        self.worker_node = np.array([numbers[name] for name in names], "i8")
        self.worker_up_s = record.column("workers", "hello_us") * 1e-6
        self.worker_gone_s = np.full(len(names), np.inf)
        lost = dict(zip(record.column("losses", "rank").tolist(), record.column("losses", "time_us").tolist()))
        for at, rank in enumerate(self.worker_rank.tolist()):
            if rank in lost:
                self.worker_gone_s[at] = lost[rank] * 1e-6
        if self.nodes:
            self.app_slots[self._whole_nodes] *= max(1.0, self.worker_slots.sum() / len(self.nodes))

    @property
    def slots(self) -> int:
        """Of all workers that ever were up."""
        return int(self.worker_slots.sum())

    def busy_s(self) -> float:
        """Slot seconds in which functions ran."""
        return float((self.run_s * self.weight).sum())

    def tail_begin_s(self) -> float:
        """From when on there was too little to do for all slots, for good."""
        most = float(self.demand.level.max(initial=0.0))
        return max(self.begin_s, self.demand.last_at_least(NEARLY_FULL * min(most, float(self.slots))))


class Shares(dict[str, float]):
    """Slot seconds by what they went into; see `overheads`."""


def overheads(data: Data, bins: int = 4000) -> Shares:
    """Where the slots' time went, from the first submission to the last result.

    `work`: functions ran. `start`: before the first of them. `tail`: idle once there was too little to do, for good. `dispatch`:
    idle while something was ready. `starved`: idle while nothing was.
    """
    end_s = data.end_of_all_s
    edges_s = np.linspace(data.begin_s, max(end_s, data.begin_s + 1e-9), bins + 1)
    capacity = np.diff(data.capacity.integral(edges_s))
    busy = np.minimum(np.diff(data.busy.integral(edges_s)), capacity)
    waiting = np.maximum(np.diff(data.demand.integral(edges_s)) - busy, 0)
    idle = capacity - busy
    first_s = float(data.start_s.min(initial=np.inf))
    middle = (edges_s[1:] + edges_s[:-1]) / 2
    is_start = middle < first_s
    is_tail = (middle >= data.tail_begin_s()) & ~is_start
    between = ~(is_start | is_tail)
    dispatch = np.minimum(idle, waiting)[between].sum()
    return Shares(
        work=float(busy.sum()),
        start=float(idle[is_start].sum()),
        dispatch=float(dispatch),
        starved=float(idle[between].sum() - dispatch),
        tail=float(idle[is_tail].sum()),
    )


@dataclass(frozen=True)
class Size:
    """What a number of slots would have done, by bounds: Graham's for any order of work, from the work and the longest way."""

    slots: int
    least_s: float
    most_s: float
    utilisation: float
    """With the time halfway between the bounds."""

    @property
    def slot_hours(self) -> float:
        """Cost, halfway between the bounds."""
        return self.slots * (self.least_s + self.most_s) / 2 / 3600


def sizes(work_s: float, longest_way_s: float, slots: int) -> list[Size]:
    """Estimates for powers of two around the number of slots that the job had, and for that one."""
    wanted = {slots}
    power = 1
    while power <= 4 * slots:
        wanted.add(power)
        power *= 2
    found = []
    for size in sorted(wanted):
        least_s = max(work_s / size, longest_way_s)
        most_s = work_s / size + longest_way_s * (1 - 1 / size)
        middle_s = (least_s + most_s) / 2
        found.append(Size(size, least_s, most_s, work_s / (size * middle_s) if middle_s else 0.0))
    near = [size for size in found if size.slots >= slots / 64]
    return near or found


def recommended(found: list[Size]) -> Size:
    """The largest that keeps its slots busy; the smallest if none does."""
    good = [size for size in found if size.utilisation >= TARGET]
    return good[-1] if good else found[0]


@dataclass(frozen=True)
class Link:
    """One task of the critical path; times as in the record."""

    task: int
    app: str
    ready_s: float
    start_s: float
    end_s: float
    done_s: float
    run_s: float


def critical_path(data: Data, most: int = 100_000) -> list[Link]:
    """The tasks that the end waited for: from the last result back, each time to the need that was done last; first one first."""
    task, done_us = data.column("task").astype("i8"), data.column("done_us")
    if not len(task):
        return []
    order = np.lexsort((done_us, task))
    by_task = task[order]
    is_last = np.append(by_task[1:] != by_task[:-1], True)
    rows, tasks = order[is_last], by_task[is_last]  # the last row of each task
    edges = data.record.column("edges", "task").astype("i8")
    needs = data.record.column("edges", "need").astype("i8")
    by_edge = np.argsort(edges, kind="stable")
    edges, needs = edges[by_edge], needs[by_edge]
    columns = {name: data.column(name) for name in ("ready_us", "start_us", "end_us", "run_s")}
    is_done = (data.how[rows] == How.DONE) & (columns["start_us"][rows] != UNKNOWN)
    if not is_done.any():
        return []
    at = int(np.flatnonzero(is_done)[np.argmax(done_us[rows][is_done])])
    path: list[Link] = []
    while len(path) < most:
        row = int(rows[at])
        start_us, end_us = int(columns["start_us"][row]), int(columns["end_us"][row])
        done = int(done_us[row])
        started, ended = (start_us, end_us) if start_us != UNKNOWN else (done, done)
        ready = int(columns["ready_us"][row])
        name = data.app_names[int(data.app_index[row])]
        run_s = max(0.0, float(columns["run_s"][row]))
        path.append(Link(int(tasks[at]), name, ready * 1e-6, started * 1e-6, ended * 1e-6, done * 1e-6, run_s))
        first, end = np.searchsorted(edges, tasks[at], "left"), np.searchsorted(edges, tasks[at], "right")
        found = np.searchsorted(tasks, needs[first:end])
        found = found[(found < len(tasks)) & (tasks[np.minimum(found, len(tasks) - 1)] == needs[first:end])]
        if not len(found):
            break
        at = int(found[np.argmax(done_us[rows[found]])])
    return path[::-1]
