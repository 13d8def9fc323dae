"""What the page draws, as few numbers as it takes: curves over time in some hundred steps, whatever the number of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exex.record.analysis import Data, Link, steps
from exex.record.columns import How

Array = NDArray[Any]

STEPS = 520
_ROWS = 96
_ROW_STEPS = 480


def edges_of(data: Data, begin_s: float | None = None, count: int = STEPS) -> Array:
    """Equal steps from the first submission, or another time, to the last result."""
    begin_s = data.begin_s if begin_s is None else begin_s
    return np.linspace(begin_s, max(data.end_of_all_s, begin_s + 1e-6), count + 1)


def throughput(data: Data, edges: Array) -> tuple[Array, Array, Array]:
    """Attempts that ended per second: edges of the steps, those with a value, and the others."""
    done_s = data.column("done_us") * 1e-6
    every = max(1, len(edges) // max(40, min(len(edges), data.attempts // 8)))  # few tasks: longer steps
    edges = edges[::every]
    good, _ = np.histogram(done_s[data.how == How.DONE], edges)
    bad, _ = np.histogram(done_s[(data.how != How.DONE) & (data.column("attempt") > 0)], edges)
    wide = np.diff(edges)
    return edges, good / wide, bad / wide


def sampled(data: Data, name: str, edges: Array) -> Array:
    """A column of the samples at the end of each step: the last that was taken."""
    time_s = data.record.column("samples", "time_us") * 1e-6
    values = data.record.column("samples", name).astype("f8")
    if not len(values):
        return np.zeros(len(edges) - 1)
    at = np.searchsorted(time_s, edges[1:], side="right") - 1
    return np.where(at < 0, 0.0, values[np.maximum(at, 0)])


def manager_busy(data: Data, edges: Array) -> tuple[Array, Array]:
    """Part of each step in which the manager's loop did not wait; and its longest turn there, in seconds."""
    time_s = data.record.column("samples", "time_us") * 1e-6
    busy_s = data.record.column("samples", "busy_us") * 1e-6
    longest_s = data.record.column("samples", "longest_us") * 1e-6
    if len(time_s) < 2:
        return np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    spent = np.diff(np.interp(edges, time_s, busy_s)) / np.diff(edges)
    longest = np.zeros(len(edges) - 1)
    at = np.searchsorted(edges, time_s, side="left") - 1
    inside = (at >= 0) & (at < len(longest))
    np.maximum.at(longest, at[inside], longest_s[inside])
    return np.clip(spent, 0, 1), longest


@dataclass
class Rows:
    """Busy parts of nodes, or of groups of neighbouring nodes, or of the workers of a single node."""

    what: str
    names: list[str]
    levels: Array
    edges: Array


def timeline(data: Data) -> Rows | None:
    """Who was busy when; None without workers."""
    if not len(data.worker_rank):
        return None
    edges = edges_of(data, count=_ROW_STEPS)
    by_node = len(data.nodes) > 1
    order = np.argsort(data.worker_rank)
    group_of_worker = data.worker_node if by_node else np.argsort(order)
    names = data.nodes if by_node else [f"rank {rank}" for rank in data.worker_rank[order].tolist()]
    groups = min(_ROWS, len(names))
    row_of_group = np.arange(len(names)) * groups // len(names)
    row_of_worker = row_of_group[group_of_worker]
    most = int(max(data.rank.max(initial=0), data.worker_rank.max()))
    row_of_rank = np.full(most + 1, -1)
    row_of_rank[data.worker_rank] = row_of_worker
    row = row_of_rank[data.rank]
    slots = np.bincount(row_of_worker, data.worker_slots, groups)
    spread = np.argsort(row, kind="stable")
    cuts = np.searchsorted(row[spread], np.arange(groups + 1))
    levels = np.zeros((groups, _ROW_STEPS))
    for at in range(groups):
        some = spread[cuts[at] : cuts[at + 1]]
        if len(some):
            busy = steps(data.start_s[some], data.end_s[some], data.weight[some])
            levels[at] = busy.means(edges) / max(1.0, slots[at])
    firsts = [names[int(np.flatnonzero(row_of_group == at)[0])] for at in range(groups)]
    each = -(-len(names) // groups)
    what = ("node" if by_node else "worker") if each == 1 else f"{each} neighbouring {'nodes' if by_node else 'workers'}"
    return Rows(what, firsts, np.minimum(levels, 1.0), edges)


@dataclass
class Lengths:
    """Running times of one app."""

    name: str
    run_s: Array
    failed: int


def lengths(data: Data, names: list[str]) -> list[Lengths]:
    """Of these apps."""
    numbers = {name: number for number, name in enumerate(names)}
    table = np.array([numbers.get(name, -1) for name in data.app_names])
    by_name = table[data.app_index[data.ran]]
    is_bad = data.how[data.ran] != How.DONE
    found = []
    for number, name in enumerate(names):
        mine = by_name == number
        found.append(Lengths(name, np.maximum(data.run_s[mine], 1e-7), int(is_bad[mine].sum())))
    return found


@dataclass
class PathPart:
    """Seconds of the critical path by what they went into, and by app."""

    waits_s: float
    runs_s: float
    returns_s: float
    by_app: dict[str, tuple[int, float, float]]
    """app -> (tasks, seconds that they ran, seconds between)."""


def path_parts(path: list[Link]) -> PathPart:
    """The path summed up: waiting for a slot, running, and the way back of results."""
    parts = PathPart(0.0, 0.0, 0.0, {})
    for link in path:
        waits_s, returns_s = max(0.0, link.start_s - link.ready_s), max(0.0, link.done_s - link.end_s)
        runs_s = link.end_s - link.start_s
        parts.waits_s += waits_s
        parts.runs_s += runs_s
        parts.returns_s += returns_s
        number, ran_s, between_s = parts.by_app.get(link.app, (0, 0.0, 0.0))
        parts.by_app[link.app] = (number + 1, ran_s + runs_s, between_s + waits_s + returns_s)
    return parts


def last_tasks(data: Data, most: int = 12) -> list[tuple[int, str, int, float, float]]:
    """The attempts that ended last: task, app, rank, when it began, how long it ran."""
    if not len(data.ran):
        return []
    order = np.argpartition(data.end_s, max(0, len(data.end_s) - most))[-most:]
    order = order[np.argsort(-data.end_s[order])]
    tasks = data.column("task")[data.ran[order]]
    apps = data.app_index[data.ran[order]]
    found = []
    for task, app, at in zip(tasks.tolist(), apps.tolist(), order.tolist()):
        found.append((task, data.app_names[app], int(data.rank[at]), float(data.start_s[at]), float(data.run_s[at])))
    return found
