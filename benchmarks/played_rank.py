"""One worker rank of a played world: calls are planned on its slots when they arrive, and anew when some are taken back."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from typing import NamedTuple

SHORT_S = 1e-3
"""Results of calls that end within so much time are told in one Done."""


class Call(NamedTuple):
    """A call that arrives: its number, how long it will take, and how many slots it holds."""

    task: int
    length_s: float
    slots: int = 1


class Planned(NamedTuple):
    """A call on its slots."""

    call: Call
    starts_s: float
    ends_s: float


class PlayedRank:
    """Slots and what is planned on them; first come, first served."""

    def __init__(self, slots: int, task_s: float) -> None:
        self._slots = [0.0] * slots  # heap: when each is free
        self._task_s = task_s
        self._plan: dict[int, Planned] = {}

    def put(self, calls: Sequence[Call], now_s: float) -> list[list[Planned]]:
        """Plan calls. Returns those that are reported together, each with its end."""
        slots, planned = self._slots, []
        for call in calls:
            used = call.slots
            starts_s = max(now_s, heapq.nsmallest(used, slots)[-1] if used > 1 else slots[0])
            ends_s = starts_s + call.length_s + self._task_s
            for _ in range(used):
                heapq.heapreplace(slots, ends_s)
            planned.append(Planned(call, starts_s, ends_s))
        self._plan.update((one.call.task, one) for one in planned)
        planned.sort(key=lambda one: one.ends_s)
        reports: list[list[Planned]] = []
        for one in planned:
            if not reports or one.ends_s > reports[-1][0].ends_s + SHORT_S:
                reports.append([])
            reports[-1].append(one)
        return reports

    def ended(self, report: Sequence[Planned]) -> list[Call]:
        """Those of a report that have ended; others were taken back, or planned anew."""
        ended = [one.call for one in report if self._plan.get(one.call.task) is one]
        for call in ended:
            del self._plan[call.task]
        return ended

    def take_back(self, tasks: Collection[int], now_s: float) -> tuple[list[int], list[list[Planned]]]:
        """Take out what has not begun of these; what else has not begun is planned anew: as by `put`."""
        later = [one for one in self._plan.values() if one.starts_s > now_s]
        for one in later:
            del self._plan[one.call.task]
        ends_s = [one.ends_s for one in self._plan.values() for _ in range(one.call.slots) if one.ends_s > now_s]
        self._slots = ends_s + [now_s] * (len(self._slots) - len(ends_s))
        heapq.heapify(self._slots)
        returned = [one.call.task for one in later if one.call.task in tasks]
        gone = set(returned)
        return returned, self.put([one.call for one in later if one.call.task not in gone], now_s)
