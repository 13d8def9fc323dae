"""A run in numbers: what `exex report` prints first, and what a scaling campaign collects."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from exex.record.analysis import Data, Link, Shares, Size, critical_path, overheads, recommended, seconds, sizes
from exex.record.columns import UNKNOWN, How
from exex.record.hdf5 import Record
from exex.record.tail import Fit, Tail, fits, tail_of


@dataclass(frozen=True)
class AppSummary:
    """The attempts of all apps of one name whose function ran; `peak_bytes`: most memory of any, 0 if that is not known."""

    name: str
    attempts: int
    failed: int
    total_s: float
    median_s: float
    p99_s: float
    longest_s: float
    peak_bytes: int = 0


@dataclass(frozen=True)
class Stage:
    """How long tasks took from one point of their way to the next."""

    name: str
    median_s: float
    p99_s: float


@dataclass(frozen=True)
class Summary:
    """One run.

    Attributes:
        closed: the record was closed in order; otherwise all of this is up to its last flush.
        tasks: that ended, and those that had not when the record did; `done`, `failed`, `cancelled`, `unfinished` of them.
        made: tasks that other tasks have made; `parents`: how many have made some.
        attempts: whose function ran.
        lost_workers: of `workers`.
        makespan_s: from the first submission to the last result.
        startup_s: from the start of the job until all workers were up.
        first_start_s: from the start of the job until the first function ran.
        rate_per_s: tasks done per second of the makespan.
        utilisation: part of the slots' time, from the first submission to the last result, in which functions ran.
        busy_slot_s: the same in slot seconds.
        tail_s: how long too few slots were busy at the end; `tail_wasted_slot_s`: what was idle of them then.
        shares: slot seconds by what they went into.
        critical_s: running times on the critical path, and `critical_tasks`, how many there are.
        manager_busy: part of the makespan in which the manager's loop did not wait.
        dropped: messages that the record has missed.
        sizes: what powers of two of slots would have done; `size`: the largest of them that is used well.
        tail: what the end wasted; `fits`: sizes that would have been used well.
    """

    path: str
    closed: bool
    tasks: int
    done: int
    failed: int
    cancelled: int
    unfinished: int
    made: int
    parents: int
    attempts: int
    workers: int
    lost_workers: int
    slots: int
    nodes: int
    makespan_s: float
    startup_s: float
    first_start_s: float
    rate_per_s: float
    utilisation: float
    busy_slot_s: float
    tail_s: float
    tail_wasted_slot_s: float
    critical_s: float
    critical_tasks: int
    manager_busy: float
    dropped: int
    shares: Shares = field(default_factory=Shares)
    apps: tuple[AppSummary, ...] = ()
    stages: tuple[Stage, ...] = ()
    sizes: tuple[Size, ...] = ()
    size: Size | None = None
    tail: Tail | None = None
    fits: tuple[Fit, ...] = ()


def summarize(path: str) -> Summary:
    """Read a record and sum it up.

    Raises:
        RecordError: see `exex.record.hdf5.Record`.
    """
    with Record(path) as record:
        data = Data(record)
        return summarize_data(data, critical_path(data))


def summarize_data(data: Data, path: list[Link]) -> Summary:
    """The same of columns that are read, with their critical path."""
    record = data.record
    ends = _ends(data)
    makespan_s = max(0.0, data.end_of_all_s - data.begin_s)
    whole = np.array([data.begin_s, data.end_of_all_s])
    busy_s, capacity_s = data.busy_s(), float(np.diff(data.capacity.integral(whole))[0])
    shares = overheads(data)
    longest_s = float(data.run_s.max(initial=0.0))
    way_s = max(longest_s, sum(link.run_s for link in path))
    found = sizes(busy_s, way_s, max(1, data.slots))
    return Summary(
        path=record.path,
        closed=record.ended_us != UNKNOWN,
        tasks=sum(ends.values()),
        done=ends["done"],
        failed=ends["failed"],
        cancelled=ends["cancelled"],
        unfinished=ends["unfinished"],
        made=int(record.column("made", "count").sum()),
        parents=len(np.unique(record.column("made", "parent"))),
        attempts=len(data.ran),
        workers=len(data.worker_rank),
        lost_workers=record.rows("losses"),
        slots=data.slots,
        nodes=len(data.nodes),
        makespan_s=makespan_s,
        startup_s=float(data.worker_up_s.max(initial=0.0)),
        first_start_s=float(data.start_s.min(initial=np.inf)) if len(data.ran) else 0.0,
        rate_per_s=ends["done"] / makespan_s if makespan_s else 0.0,
        utilisation=busy_s / capacity_s if capacity_s > 0 else 0.0,
        busy_slot_s=busy_s,
        tail_s=max(0.0, data.end_of_all_s - data.tail_begin_s()) if len(data.ran) else 0.0,
        tail_wasted_slot_s=shares["tail"],
        critical_s=sum(link.run_s for link in path),
        critical_tasks=len(path),
        manager_busy=_manager_busy(data),
        dropped=record.dropped,
        shares=shares,
        apps=_apps(data),
        stages=_stages(data),
        sizes=tuple(found),
        size=recommended(found),
        tail=tail_of(data),
        fits=fits(busy_s, way_s, int(data.weight.max(initial=1)), data.slots / max(1, len(data.nodes))),
    )


def _ends(data: Data) -> dict[str, int]:
    """Tasks by their end: that of their last row."""
    task, done_us = data.column("task"), data.column("done_us")
    ends = {"done": 0, "failed": 0, "cancelled": 0, "unfinished": 0}
    if not len(task):
        return ends
    how = data.how
    is_done = how == How.DONE
    ends["done"] = int(is_done.sum())
    other = np.flatnonzero(~is_done)  # few, so this is quick
    other = other[~np.isin(task[other], task[is_done])]
    order = other[np.lexsort((done_us[other], task[other]))]
    last = order[np.append(task[order][1:] != task[order][:-1], True)] if len(order) else order
    counts = np.bincount(how[last], minlength=len(How))
    ends["cancelled"], ends["unfinished"] = int(counts[How.CANCELLED]), int(counts[How.UNFINISHED])
    ends["failed"] = int(counts.sum()) - ends["cancelled"] - ends["unfinished"]
    return ends


def _apps(data: Data) -> tuple[AppSummary, ...]:
    """By name, most time first."""
    names = sorted(set(data.app_names))
    numbers = {name: number for number, name in enumerate(names)}
    by_name = np.array([numbers[name] for name in data.app_names])[data.app_index[data.ran]]
    lengths = data.run_s
    is_failed = data.how[data.ran] != How.DONE
    peaks = data.column("peak_bytes")[data.ran] if data.record.has_column("attempts", "peak_bytes") else np.zeros(len(lengths))
    order = np.lexsort((lengths, by_name))
    ends = np.searchsorted(by_name[order], np.arange(len(names)), "right")
    begins = np.append(0, ends[:-1])
    found = []
    for name, begin, end in zip(names, begins.tolist(), ends.tolist()):
        if begin == end:
            continue
        these = lengths[order[begin:end]]
        found.append(
            AppSummary(
                name,
                end - begin,
                int(is_failed[order[begin:end]].sum()),
                float(these.sum()),
                float(these[len(these) // 2]),
                float(these[min(len(these) - 1, int(0.99 * len(these)))]),
                float(these[-1]),
                int(peaks[order[begin:end]].max()),
            )
        )
    return tuple(sorted(found, key=lambda app: -app.total_s))


STAGES = (
    ("waits for needs", "submit_us", "ready_us"),
    ("waits for a slot", "ready_us", "assign_us"),
    ("goes to it", "assign_us", "start_us"),
    ("runs", "start_us", "end_us"),
    ("comes back", "end_us", "done_us"),
    ("is answered", "done_us", "answer_us"),
)


def _stages(data: Data) -> tuple[Stage, ...]:
    found = []
    for name, begin, end in STAGES:
        took_s = seconds(data.column(end))[data.ran] - seconds(data.column(begin))[data.ran]
        took_s = took_s[~np.isnan(took_s)]
        if len(took_s):
            at = [len(took_s) // 2, min(len(took_s) - 1, int(0.99 * len(took_s)))]
            median, p99 = np.partition(took_s, at)[at]
            found.append(Stage(name, float(median), float(p99)))
    return tuple(found)


def _manager_busy(data: Data) -> float:
    """From the samples around the makespan."""
    time_s = data.record.column("samples", "time_us") * 1e-6
    busy_s = data.record.column("samples", "busy_us") * 1e-6
    inside = np.flatnonzero((time_s >= data.begin_s) & (time_s <= data.end_of_all_s))
    if len(inside) < 2:
        return 0.0
    first, last = inside[0], inside[-1]
    return float(min(1.0, (busy_s[last] - busy_s[first]) / (time_s[last] - time_s[first])))
