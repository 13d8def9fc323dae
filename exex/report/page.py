"""One self-contained HTML page about a run: opens from a file, offline, and is small whatever the number of tasks."""

from __future__ import annotations

import html
import json
import math
import os
import time
from collections.abc import Sequence

import numpy as np

from exex.protocol.task_numbers import name_of, shown
from exex.record.analysis import Data, Link, critical_path
from exex.record.hdf5 import Record
from exex.record.summary import Summary, summarize_data
from exex.report import curves
from exex.report.drawing import Chart, Series, heat_map, histogram, legend, stacked_bar
from exex.report.style import SCRIPT, STYLE
from exex.report.text import SHARES, fit, straggling
from exex.report.words import count, duration, percent, plural, size, three

_SHARE_COLOURS = {"work": 1, "start": 6, "dispatch": 4, "starved": 2, "tail": 5}
_MOST_APPS = 9
_NOT_CLOSED = "The record is not closed: the job runs, or was killed. All is up to its last flush."


def page(record: Record) -> tuple[str, Summary]:
    """The page, and the summary that it begins with."""
    data = Data(record)
    path = critical_path(data)
    summary = summarize_data(data, path)
    sections = [_header(record, summary), _cards(summary), _findings(summary)]
    if summary.attempts:
        sections += [*_over_time(data, summary), *_where(summary), _tasks(data, summary), *_nodes(data)]
        sections += [_critical(path), _tail(data, summary), _sizes(summary)]
    sections += [*_manager(data), _losses(record), _about(record)]
    title = html.escape(os.path.basename(str(record.meta.get("script", "run"))))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title} · exex</title>'
    body = "".join(sections)
    text = f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body><main>{body}</main><div id=tip></div>"
    return f"{text}<script>{SCRIPT}</script></body></html>\n", summary


# ---- parts ----


def _section(title: str, explanation: str, body: str) -> str:
    return f"<section><h2>{title}</h2><p class=why>{explanation}</p>{body}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1, marked: int = -1) -> str:
    """Cells are HTML; columns from `numbers_from` on are set to the right."""
    cells = "".join(f"<th{' class=n' if at >= numbers_from else ''}>{name}</th>" for at, name in enumerate(head))
    lines = []
    for number, row in enumerate(rows):
        tds = "".join(f"<td{' class=n' if at >= numbers_from else ''}>{cell}</td>" for at, cell in enumerate(row))
        lines.append(f"<tr{' class=marked' if number == marked else ''}>{tds}</tr>")
    return f"<div class=wide><table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _header(record: Record, summary: Summary) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.began_unix_s))
    said = [
        f"{summary.slots:,} slots of {summary.workers:,} workers on {plural(summary.nodes, 'node')}",
        f"began {began}",
        f"exex {html.escape(str(record.meta.get('versions', {}).get('exex', '?')))}",
    ]
    state = "" if summary.closed else f"<p class=warn>{_NOT_CLOSED}</p>"
    if summary.dropped:
        state += f"<p class=warn>{summary.dropped:,} messages are missing: the file system of the record was too slow.</p>"
    script = html.escape(os.path.basename(str(record.meta.get("script", "?"))))
    return f"<header><h1>{script}</h1><p>{' · '.join(said)}</p>{state}</header>"


def _cards(summary: Summary) -> str:
    ends = ((summary.failed, "failed"), (summary.cancelled, "cancelled"), (summary.unfinished, "open"))
    bad = [f"{count(number)} {what}" for number, what in ends if number]
    idle = f"{count(summary.tail_wasted_slot_s)} slot seconds idle in it"
    cards = [
        ("tasks done", count(summary.done), ", ".join(bad) or "none failed"),
        ("makespan", duration(summary.makespan_s), f"all workers up after {duration(summary.startup_s)}"),
        ("utilisation", percent(summary.utilisation), f"{duration(summary.busy_slot_s)} of work"),
        ("rate", f"{count(round(summary.rate_per_s, 1))}/s", "tasks done, over the makespan"),
        ("tail", duration(summary.tail_s), idle),
        ("workers lost", str(summary.lost_workers), f"of {summary.workers:,}"),
    ]
    return "<div class=cards>" + "".join(f"<div><h3>{a}</h3><b>{b}</b><p>{c}</p></div>" for a, b, c in cards) + "</div>"


def _findings(summary: Summary) -> str:
    """What stands out, in words."""
    whole = sum(summary.shares.values()) or 1.0
    part = {name: value / whole for name, value in summary.shares.items()}
    said = []
    if not summary.attempts:
        said.append("No function has run.")
    if part.get("tail", 0) > 0.1:
        fix = "start the longest tasks first, cut them smaller, or take fewer slots"
        said.append(f"The tail left {percent(part['tail'])} of the slots' time idle: {fix}.")
    if part.get("starved", 0) > 0.1:
        why = "the graph is too narrow, or the script too slow"
        said.append(f"For {percent(part['starved'])} of the slots' time no task was ready: {why}.")
    if part.get("dispatch", 0) > 0.1:
        fix = "make tasks longer, or use map"
        said.append(f"For {percent(part['dispatch'])} of the slots' time tasks were ready but on their way: {fix}.")
    if summary.manager_busy > 0.7:
        said.append(f"The manager was busy {percent(summary.manager_busy)} of the time: more workers would not be served faster.")
    if summary.makespan_s and summary.critical_s > 0.8 * summary.makespan_s:
        said.append(f"The critical path ran {duration(summary.critical_s)}, most of the makespan: more slots would not help.")
    if summary.failed:
        said.append(f"{summary.failed:,} tasks failed.")
    if not said:
        said.append("The slots were used well.")
    return "<ul class=findings>" + "".join(f"<li>{html.escape(line)}</li>" for line in said) + "</ul>"


def _over_time(data: Data, summary: Summary) -> list[str]:
    edges = curves.edges_of(data)
    busy, capacity = data.busy.means(edges), data.capacity.means(edges)
    tail = [(data.tail_begin_s(), data.end_of_all_s, "tail")] if summary.tail_s > summary.makespan_s / 200 else []
    slots = Chart(
        "Slots over time", edges, [Series("slots", capacity, 6), Series("busy", busy, 1, "area")], 250, three, bands=tail
    )
    steps, good, bad = curves.throughput(data, edges)
    ended = [Series("done", good, 3, "area")] + ([Series("ended otherwise", bad, 5)] if bad.any() else [])
    rate = Chart("Attempts per second", steps, ended, 190, lambda value: count(round(value, 2)))
    queue_names = (("waiting", "wait for needs", 2), ("ready", "ready, no slot free", 4), ("assigned", "at workers", 1))
    queues = [Series(said, curves.sampled(data, name, edges), colour) for name, said, colour in queue_names]
    queue = Chart("Tasks by state", edges, queues, 190)
    text = "Slots in which a function ran, and slots that were there. Times count from the start of the job."
    queue_text = "What the manager held, as it was sampled."
    return [
        _section("Concurrency and utilisation", text, slots.legend() + slots.svg()),
        _section("Throughput", "Attempts that ended, per second.", rate.legend() + rate.svg()),
        _section("Queues", queue_text, queue.legend() + queue.svg()),
    ]


def _where(summary: Summary) -> list[str]:
    whole = sum(summary.shares.values()) or 1.0
    parts = [(SHARES[name], summary.shares.get(name, 0.0) / whole, _SHARE_COLOURS[name]) for name in SHARES]
    bar = stacked_bar([(name, part, colour, percent(part)) for name, part, colour in parts])
    key = legend([(f"{name} {percent(part)}", colour) for name, part, colour in parts])
    top = max((stage.p99_s for stage in summary.stages), default=0.0)
    rows = []
    for stage in summary.stages:
        lengths = ((1, _logarithmic(stage.median_s, top)), (2, _logarithmic(stage.p99_s, top)))
        bars = "".join(f'<i class="c{colour}" style="width:{length:.1f}%"></i>' for colour, length in lengths)
        rows.append([html.escape(stage.name), f"<div class=bars>{bars}</div>", duration(stage.median_s), duration(stage.p99_s)])
    table = _table(["a task …", "", "median", "99 %"], rows, 2)
    text = "From the first task to the last result, all slots together."
    stages = "Between two points of a task's way, over all attempts that ran. Bars are logarithmic and begin at 1 µs."
    return [_section("Where the slots' time went", text, bar + key), _section("The way of a task", stages, table)]


def _logarithmic(value_s: float, top_s: float) -> float:
    """Percent of a bar that begins at 1 µs."""
    return 100 * math.log(max(value_s, 1e-6) * 1e6) / math.log(max(top_s, 2e-6) * 1e6)


def _tasks(data: Data, summary: Summary) -> str:
    apps = summary.apps[:_MOST_APPS]
    found = curves.lengths(data, [app.name for app in apps])
    low = min(float(app.run_s.min()) for app in found)
    high = max(float(app.run_s.max()) for app in found)
    first, last = np.floor(np.log10(low)), np.ceil(np.log10(max(high, low * 1.01)))
    edges = np.logspace(first, last, int(min(60, max(20, 12 * (last - first)))) + 1)
    cells = []
    for number, app in enumerate(found):
        picture = histogram(app.run_s, edges, number % 5 + 1, f"running times of {app.name}")
        caption = f"{html.escape(app.name)} <span>{count(len(app.run_s))}</span>"
        cells.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
    rows = [
        [
            html.escape(app.name),
            f"{app.attempts:,}",
            f"{app.failed:,}",
            duration(app.total_s),
            duration(app.median_s),
            duration(app.p99_s),
            duration(app.longest_s),
            size(app.peak_bytes) if app.peak_bytes else "?",
        ]
        for app in summary.apps[:40]
    ]
    table = _table(["app", "attempts", "failed", "in all", "median", "99 %", "longest", "memory"], rows)
    more = f"<p class=why>and {len(summary.apps) - 40} more apps</p>" if len(summary.apps) > 40 else ""
    text = "Running times of the apps that took the most time; each bar is a range of lengths, and all axes are the same."
    return _section("Task lengths", text, f"<div class=many>{''.join(cells)}</div>{table}{more}")


def _nodes(data: Data) -> list[str]:
    rows = curves.timeline(data)
    if rows is None:
        return []
    height = 26.0 if len(rows.names) < 8 else 14.0 if len(rows.names) < 33 else 5.0
    picture = heat_map(rows.levels, rows.edges, rows.names, height)
    text = f"A row per {rows.what}: the stronger the colour, the more of its slots were busy."
    return [_section("Nodes over time", text, picture)]


def _critical(path: list[Link]) -> str:
    parts = curves.path_parts(path)
    whole = parts.waits_s + parts.runs_s + parts.returns_s or 1.0
    waits = ("waits for a slot and its process", parts.waits_s, 4)
    named = (("runs", parts.runs_s, 1), waits, ("result comes back", parts.returns_s, 2))
    bar = stacked_bar([(name, value / whole, colour, percent(value / whole)) for name, value, colour in named])
    key = legend([(f"{name} {duration(value)}", colour) for name, value, colour in named])
    by_time = sorted(parts.by_app.items(), key=lambda item: -item[1][1] - item[1][2])[:10]
    rows = [[html.escape(app), f"{number:,}", duration(ran_s), duration(rest_s)] for app, (number, ran_s, rest_s) in by_time]
    table = _table(["app", "tasks", "ran", "between"], rows)
    text = (
        f"The end waited for {plural(len(path), 'task')}: from the last result back, each time to the need that was done last. "
        "No number of slots makes the job shorter than their running times."
    )
    return _section("Critical path", text, bar + key + table)


def _tail(data: Data, summary: Summary) -> str:
    edges = curves.edges_of(data, data.tail_begin_s(), 300)
    busy = Series("busy", data.busy.means(edges), 5, "area")
    tail = Chart("Slots in the tail", edges, [busy], 170, three, top=float(max(1, summary.slots)))
    last = [
        [f"{name_of(shown(task))}", html.escape(app), f"{rank}", f"{duration(began_s)}", duration(run_s)]
        for task, app, rank, began_s, run_s in curves.last_tasks(data)
    ]
    listing = _table(["last tasks", "app", "rank", "began at", "ran"], last, 2)
    idle = f"{percent(summary.tail_wasted_slot_s / (sum(summary.shares.values()) or 1.0))} of the slots' time"
    text = f"From {duration(data.tail_begin_s())} on there was less to do than slots, for good; what was idle then is {idle}."
    if summary.tail is not None:
        share = percent(summary.tail.share)
        text += f" No task waited for a slot in the last {duration(summary.tail.dry_s)}, and {share} of all was idle then."
        if summary.tail.stragglers and summary.tail.straggling_s > 0:
            text += f" In the end {html.escape(straggling(summary))}."
    return _section("Tail", text, tail.svg() + listing)


def _sizes(summary: Summary) -> str:
    rows, marked = [], -1
    for number, one in enumerate(summary.sizes):
        note = " <em>this job</em>" if one.slots == summary.slots else ""
        if one is summary.size:
            marked = number
            note += " <em>the largest that is used well</em>"
        between = f"{duration(one.least_s)} to {duration(one.most_s)}"
        rows.append([f"{one.slots:,}{note}", between, percent(one.utilisation), three(one.slot_hours)])
    text = (
        "Bounds for any order of the work: its sum over the slots, and the longest way through it. Without overheads; "
        "used well means that 90 % of the slots' time is work."
    )
    table = _table(["slots", "makespan", "utilisation", "slot hours"], rows, marked=marked)
    fitting = "".join(f"<li>{fit(one)}</li>" for one in summary.fits)
    return _section("What size would have done", text, f"<ul>{fitting}</ul>{table}")


def _manager(data: Data) -> list[str]:
    if data.record.rows("samples") < 2:
        return []
    edges = curves.edges_of(data)
    busy, longest = curves.manager_busy(data, edges)
    chart = Chart("Manager", edges, [Series("busy", busy, 4, "area")], 150, percent, top=1.0)
    turns = Chart("Longest turn", edges, [Series("longest turn", longest, 2, "area")], 130, duration)
    resident = Series("memory", curves.sampled(data, "memory_bytes", edges), 6, "area")
    memory = Chart("Memory of rank 0", edges, [resident], 130, size)
    body = f"{chart.svg()}<h3>Longest turn</h3>{turns.svg()}<h3>Memory of rank 0</h3>{memory.svg()}"
    return [_section("The manager", "Part of the time in which its loop did not wait.", body)]


def _losses(record: Record) -> str:
    if not record.rows("losses"):
        return ""
    columns = [record.column("losses", name).tolist() for name in ("time_us", "rank", "attempts")]
    losses = zip(*columns, record.texts("losses", "how"))
    rows = [[duration(at * 1e-6), str(rank), str(held), html.escape(how)] for at, rank, held, how in losses]
    return _section("Losses", "Workers that died or were given up.", _table(["at", "rank", "attempts", "it"], rows[:200], 9))


def _about(record: Record) -> str:
    versions = [[html.escape(str(name)), html.escape(str(value))] for name, value in record.meta.get("versions", {}).items()]
    settings = html.escape(json.dumps(record.meta.get("settings", {}), indent=1))
    table = _table(["part", "version"], versions, 9)
    file = html.escape(os.path.abspath(record.path))
    folded = f"<details><summary>Versions and settings</summary>{table}<pre>{settings}</pre><p>{file}</p></details>"
    return f"<section class=about>{folded}</section>"
