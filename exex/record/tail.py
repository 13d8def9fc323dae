"""What the end of a run wasted, for what, and how many slots would have been used well. Pure numpy over columns of a record."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from exex.record.analysis import Data, seconds

TARGETS = (0.9, 0.95)
"""Utilisations for which sizes are told."""

STRAGGLING = 0.5
"""While a smaller part of the slots is busy, for good, the others wait for those who straggle."""


@dataclass(frozen=True)
class Tail:
    """The end of a run.

    Attributes:
        dry_s: from when on no task had to wait for a slot, for good, until the last result.
        idle_slot_s: what was idle of all slots then; `share`: the same as a part of all slots' time.
        straggling_s: from when on less than half of the slots was busy, for good.
        stragglers: attempts that ran on then, by app, most first; `straggling_idle_slot_s`: what was idle meanwhile.
        longest_s: the longest running time of these.
    """

    dry_s: float
    idle_slot_s: float
    share: float
    straggling_s: float
    straggling_idle_slot_s: float
    stragglers: tuple[tuple[str, int], ...]
    longest_s: float


def tail_of(data: Data) -> Tail | None:
    """The end of a run in which something ran; None if nothing did."""
    if not len(data.ran):
        return None
    end_s = data.end_of_all_s
    dry_s, straggling_s = min(end_s, _dry_from_s(data)), _straggling_from_s(data)
    all_slot_s = _idle(data, data.begin_s) + data.busy_s()
    late = data.end_s > straggling_s
    names = Counter(data.app_names[app] for app in data.app_index[data.ran[late]].tolist())
    idle_slot_s = _idle(data, dry_s)
    return Tail(
        dry_s=end_s - dry_s,
        idle_slot_s=idle_slot_s,
        share=idle_slot_s / all_slot_s if all_slot_s > 0 else 0.0,
        straggling_s=end_s - straggling_s,
        straggling_idle_slot_s=_idle(data, straggling_s),
        stragglers=tuple(names.most_common()),
        longest_s=float(data.run_s[late].max(initial=0.0)),
    )


def _dry_from_s(data: Data) -> float:
    """When the last task that had to wait for a slot was sent to one; the first submission if none had to wait."""
    ready_s, assign_s = seconds(data.column("ready_us"))[data.ran], seconds(data.column("assign_us"))[data.ran]
    waited = assign_s > ready_s
    return float(assign_s[waited].max(initial=data.begin_s))


def _straggling_from_s(data: Data) -> float:
    """When half of the slots were busy for the last time; the end if they were until then, the beginning if they never were."""
    return min(data.end_of_all_s, max(data.begin_s, data.busy.last_at_least(STRAGGLING * data.slots)))


def _idle(data: Data, from_s: float) -> float:
    """Slot seconds idle from then until the last result."""
    edges_s = np.array([from_s, data.end_of_all_s])
    return max(0.0, float((np.diff(data.capacity.integral(edges_s)) - np.diff(data.busy.integral(edges_s)))[0]))


@dataclass(frozen=True)
class Fit:
    """How many slots the same work would have kept busy for a part of their time, overheads aside.

    Attributes:
        target: that part.
        sure_slots: with so many, any order of the work reaches it; `sure_nodes`: as many nodes as they fill, at least one.
        most_slots: with more, no order does; `most_nodes`.
        sure_s: the time that the work takes at the most with `sure_slots`.
    """

    target: float
    sure_slots: int
    most_slots: int
    sure_nodes: int
    most_nodes: int
    sure_s: float


def fits(work_s: float, longest_way_s: float, widest: int, slots_per_node: float) -> tuple[Fit, ...]:
    """Sizes for each of `TARGETS`, from two bounds of the makespan T on m slots.

    Whatever the order, if no slot idles while a task could begin, T <= W/m + (1 - 1/m) L (Graham, 1966), with the work W and the
    longest way L through it; so W/(m T) >= e while m <= 1 + (1/e - 1) W/L. Always T >= L, so W/(m T) <= e from m = W/(e L) on.

    Args:
        widest: slots that the widest task holds: with fewer nothing goes. For tasks of several slots the bounds are estimates.
    """
    if work_s <= 0 or longest_way_s <= 0:
        return ()
    found = []
    for target in TARGETS:
        sure = max(widest, math.floor(1 + (1 / target - 1) * work_s / longest_way_s + 1e-9))
        most = max(sure, math.floor(work_s / (target * longest_way_s) + 1e-9))
        sure_nodes, most_nodes = (max(1, int(slots / max(1.0, slots_per_node))) for slots in (sure, most))
        found.append(Fit(target, sure, most, sure_nodes, most_nodes, work_s / sure + longest_way_s * (1 - 1 / sure)))
    return tuple(found)
