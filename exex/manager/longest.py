"""Longest first: small tasks of equal priority and depth go in the order of their expected lengths, in classes. Pure.

What begins last and takes longest decides when all is over, so long tasks begin before short ones that fill the gaps (Graham,
1969: the list of decreasing lengths ends within 4/3 of the best time, any list within 2). What is expected is what an app has
shown, or its `walltime=` before it has ended once. Short tasks, and those of which nothing is known, are one class, and of one
class the first come goes first: lengths matter from tenths of a second on, and by factors.

It is an order among what waits, below priority and depth: in chains, and wherever something waits for a task, depth comes first.
A sixteenth of the time that longer tasks take goes to shorter ones that wait, so that these do not wait for a stream of longer
ones, and so that what is short, and there is little of, is soon over.

Where there are big tasks, small ones fill what these leave, and a node comes free for a gang when the last of them ends: lengths
of all kinds fill that better than the longest first, so there first come goes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exex.manager.ready import ReadyQueue
    from exex.manager.task import App

LEAST_S = 0.1
"""Shorter tasks are one class: what they add to the end is less than what sorting could gain."""

STEP = 4
"""Each class is so many times longer than the one before."""

MOST = 12
"""The longest class: from some five days on."""

SHARE = 16
"""One part in so many of what longer tasks take goes to shorter ones."""

HOLD = 1.25
"""An app changes its class when it is that much beyond the border: means waver."""

SORTED_AT_MOST = 250_000
"""More are not sorted anew: it would take tenths of a second, and the end is far."""

_PAUSE_S, _PAUSE_TASK_S, _PAUSE_APP_S = 0.02, 1e-5, 2e-5


def nominal_s(size: int) -> float:
    """Length of a task of a class."""
    return LEAST_S / 2 * float(STEP**size)


def size_of(app: App, ready: ReadyQueue) -> int:
    """Class of an app's attempts by what is known now; the one that it has if that is as good. One for all beside big tasks."""
    if ready.line.in_use:
        return 0
    expected_s = app.mean_s if app.mean_s >= 0 else app.spec.walltime_s
    if expected_s is None:
        return 0
    size = app.size
    while size < MOST and expected_s >= LEAST_S * STEP**size * HOLD:
        size += 1
    while size and expected_s < LEAST_S * STEP ** (size - 1) / HOLD:
        size -= 1
    return size


def sort(ready: ReadyQueue, apps: Iterable[App], now_s: float) -> None:
    """Give each app its class; if one has changed, give all tasks that wait their places anew. At most a fiftieth of the time."""
    number = 0
    for app in apps:
        number += 1
        size = size_of(app, ready)
        if size != app.size:
            app.size = size
            ready.is_unsorted = True
    ready.next_sort_s = now_s + _PAUSE_S + number * _PAUSE_APP_S
    if ready.is_unsorted and ready.count <= SORTED_AT_MOST:
        ready.next_sort_s += ready.count * _PAUSE_TASK_S
        ready.sort_anew()
