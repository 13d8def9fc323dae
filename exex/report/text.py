"""A summary for the terminal. Pure."""

from __future__ import annotations

from exex.record.summary import Summary
from exex.record.tail import Fit
from exex.report.words import count, duration, percent, plural, size, three

SHARES = {
    "work": "functions ran",
    "start": "before the first one ran",
    "dispatch": "idle, though tasks were ready",
    "starved": "idle, no task was ready",
    "tail": "idle in the tail",
}
"""What slots' time goes into; see `exex.record.analysis.overheads`."""

_WIDTH = 32


def text(summary: Summary) -> str:
    """Some thirty lines, with a newline at the end."""
    lines = [*_head(summary), "", *_shares(summary), "", *_apps(summary), *_stages(summary), "", *_sizes(summary)]
    return "\n".join(lines).rstrip() + "\n"


def _head(summary: Summary) -> list[str]:
    others = [
        f"{count(number)} {what}"
        for number, what in ((summary.failed, "failed"), (summary.cancelled, "cancelled"), (summary.unfinished, "without an end"))
        if number
    ]
    lost = f", {summary.lost_workers} lost" if summary.lost_workers else ""
    lines = [
        f"run record   {summary.path}" + ("" if summary.closed else " (not closed: the job runs, or was killed)"),
        f"tasks        {summary.tasks:,}: {', '.join([f'{summary.done:,} done', *others])}",
        *([f"             {summary.made:,} of them were made by {summary.parents:,} others"] if summary.made else []),
        f"workers      {summary.workers:,} with {summary.slots:,} slots on {plural(summary.nodes, 'node')}{lost}",
        f"time         {duration(summary.makespan_s)} from the first task to the last result; "
        f"before that {duration(summary.startup_s)} until all workers were up",
        f"rate         {three(summary.rate_per_s)} tasks/s",
        f"utilisation  {percent(summary.utilisation)} of the slots' time",
        f"tail         {duration(summary.tail_s)}, {three(summary.tail_wasted_slot_s)} slot seconds idle",
        *_tail(summary),
        f"critical     {plural(summary.critical_tasks, 'task')} that the end waited for ran {duration(summary.critical_s)}",
        f"manager      busy {percent(summary.manager_busy)} of the time",
    ]
    if summary.dropped:
        lines.append(f"MISSING      {summary.dropped:,} messages are not in the record: its file system was too slow")
    return lines


def _tail(summary: Summary) -> list[str]:
    tail = summary.tail
    if tail is None:
        return []
    lines = [
        f"             no task waited for a slot in the last {duration(tail.dry_s)}: "
        f"{three(tail.idle_slot_s)} slot seconds idle, {percent(tail.share)} of all"
    ]
    if tail.stragglers and tail.straggling_s > 0:
        lines.append(f"             {straggling(summary)}")
    return lines


def straggling(summary: Summary) -> str:
    """What the longest tasks cost: one sentence without a full stop."""
    tail = summary.tail
    assert tail is not None
    late = sum(number for _, number in tail.stragglers)
    named = ", ".join(f"{number:,} {name}" for name, number in tail.stragglers[:3])
    more = ", ..." if len(tail.stragglers) > 3 else ""
    return (
        f"{plural(late, 'attempt')} at the end ({named}{more}; the longest ran {duration(tail.longest_s)}) left more than half "
        f"of the slots idle for {duration(tail.straggling_s)}: {three(tail.straggling_idle_slot_s)} slot seconds"
    )


def fit(one: Fit) -> str:
    """One size that would have been used well."""
    sure = f"{plural(one.sure_slots, 'slot')} ({plural(one.sure_nodes, 'node')})"
    most = f"{one.most_slots:,} ({plural(one.most_nodes, 'node')})"
    return f"{percent(one.target)} used: up to {sure} in any order, {duration(one.sure_s)} at the most; beyond {most} in none"


def _shares(summary: Summary) -> list[str]:
    whole = sum(summary.shares.values()) or 1.0
    lines = ["where the slots' time went"]
    for name, what in SHARES.items():
        part = summary.shares.get(name, 0.0) / whole
        lines.append(f"  {percent(part):>6}  {'█' * round(part * _WIDTH):<{_WIDTH}}  {what}")
    return lines


def _apps(summary: Summary, most: int = 8) -> list[str]:
    if not summary.apps:
        return []
    wide = max(20, *(len(app.name) for app in summary.apps[:most]))
    heads = ("in all", "median", "99 %", "longest", "memory")
    lines = [f"{'apps, most time first':<{wide + 2}} {'attempts':>10} {'failed':>8}" + "".join(f"{head:>12}" for head in heads)]
    for app in summary.apps[:most]:
        times = (app.total_s, app.median_s, app.p99_s, app.longest_s)
        rest = [*map(duration, times), size(app.peak_bytes) if app.peak_bytes else "?"]
        lines.append(f"  {app.name:<{wide}} {app.attempts:>10,} {app.failed:>8,}" + "".join(f"{text:>12}" for text in rest))
    if len(summary.apps) > most:
        lines.append(f"  and {len(summary.apps) - most} more")
    return [*lines, ""]


def _stages(summary: Summary) -> list[str]:
    if not summary.stages:
        return []
    lines = [f"{'the way of a task':<24} {'median':>10} {'99 %':>10}"]
    for stage in summary.stages:
        lines.append(f"  {stage.name:<22} {duration(stage.median_s):>10} {duration(stage.p99_s):>10}")
    return lines


def _sizes(summary: Summary) -> list[str]:
    if not summary.busy_slot_s or summary.size is None:
        return []
    lines = ["what size would have done: estimates from lengths and needs, overheads aside"]
    lines += [f"  {fit(one)}" for one in summary.fits]
    for one in summary.sizes:
        mark = "  <- this job" if one.slots == summary.slots else ""
        if one is summary.size:
            mark += "  <- the largest that is used well"
        between = f"{duration(one.least_s)} to {duration(one.most_s)}"
        lines.append(f"  {one.slots:>9,} slots  {between:>24}  {percent(one.utilisation):>6} used{mark}")
    return lines
