"""The manager's records of a task and of an app."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from enum import IntEnum
from typing import NamedTuple

from exex.protocol.messages import AppSpec, CacheKey, Rank, TaskId
from exex.protocol.payload import Payload
from exex.protocol.request import Request


class Status(IntEnum):
    """Where a task stands. A task that is done, failed or cancelled has no record any more."""

    WAITING = 0  # for needs, or (a promise) for its client
    READY = 1  # to be placed
    ASSIGNED = 2  # at a worker, queued or running
    ASKING = 3  # its client's retry handler is deciding
    SHELVED = 4  # it does not fit into what is left of the allocation


TRANSITIONS: tuple[tuple[str, str, str], ...] = (
    ("", "waiting", "submitted with open needs, or promised"),
    ("", "ready", "submitted without open needs"),
    ("waiting", "ready", "last need done"),
    ("waiting", "ready", "cached: its result is not known, or an equal call was cancelled"),
    ("waiting", "done", "promise fulfilled"),
    ("waiting", "done", "cached: its result is known"),
    ("waiting", "failed", "a need failed, promise broken, or an equal cached call failed"),
    ("waiting", "failed", "the task that made it keeps what it asks for"),
    ("waiting", "cancelled", "client cancels"),
    ("ready", "assigned", "placed"),
    ("ready", "cancelled", "client cancels"),
    ("ready", "shelved", "longer than the allocation lasts"),
    ("ready", "waiting", "a stored value that it needs is lost"),
    ("ready", "failed", "the nodes that are left can never meet its request"),
    ("shelved", "cancelled", "client cancels"),
    ("assigned", "done", "attempt succeeded"),
    ("assigned", "failed", "attempt failed, no retries left"),
    ("assigned", "ready", "attempt failed or lost, tried again"),
    ("assigned", "ready", "not begun, and taken back from its worker"),
    ("assigned", "asking", "attempt failed, client has a retry handler"),
    ("assigned", "waiting", "a stored value that it needs is lost, and it was starved, failed, lost or taken back"),
    ("assigned", "cancelled", "client cancels"),
    ("asking", "ready", "handler: try again"),
    ("asking", "waiting", "handler: try again, but a stored value that it needs is lost"),
    ("asking", "failed", "handler: give up"),
    ("asking", "cancelled", "client cancels"),
)
"""(from, to, when); the state diagram in docs/architecture.md is printed from this."""


RECENT = 100
"""Attempts of which an app remembers the running time."""

SHORT_S = 0.001
"""Attempts no longer than this are not worth remembering: they fit anywhere."""


LEAST_TASK_S = 20e-6
"""What the shortest task costs a slot, overhead included. Measured; the size of the prefetch depends on it."""


class App:
    """One app with one set of options, and what its tasks have taught about their length.

    Attributes:
        spec: as the workers get it, with the manager's own number.
        function: the pickled function that `spec.function` names.
        request: what each call needs beyond one slot; None if that is nothing.
        mean_s: moving average of an attempt's running time in seconds; negative until one has ended.
        recent_s: running times of the last attempts, but for short ones.
        longest_s: longest of all running times.
        waits: its tasks wait for tasks of their own, so nothing may be queued behind them, nor they behind others.
        size: how long its attempts are, in classes, for the queue of what is ready: see `longest`. 0: short, or not known.
    """

    __slots__ = (
        "_lengths", "_sorted_for", "function", "longest_s", "mean_s", "number", "recent_s", "request", "size", "spec", "waits",
    )  # fmt: skip

    def __init__(self, spec: AppSpec, function: Payload, request: Request | None = None) -> None:
        self.spec = spec
        self.request = request
        self.number = spec.app
        self.function = function
        self.mean_s = -1.0
        self.recent_s: deque[float] = deque(maxlen=RECENT)
        self.longest_s = 0.0
        self.size = 0
        self.waits = False
        self._lengths: list[float] = []  # `recent_s` in order
        self._sorted_for = -1.0  # `mean_s` then: it changes with each attempt

    def needs_s(self) -> float | None:
        """How long an attempt will take at the most: its walltime, or the 95th percentile of the last ones. None: unknown."""
        if self.spec.walltime_s is not None:
            return self.spec.walltime_s
        return self._usual_s()

    def _usual_s(self) -> float | None:
        """95th percentile of the last attempts. None: none has ended."""
        lengths = self._sorted()
        if not lengths:
            return SHORT_S if self.mean_s >= 0 else None
        return lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))]

    def expected_s(self) -> float | None:
        """How long an attempt is likely to take at the most: as `needs_s`, but the least of experience and walltime."""
        limit_s = self.spec.walltime_s
        if self.mean_s < 0:
            return limit_s
        usual_s = self._usual_s() or SHORT_S
        return usual_s if limit_s is None else min(usual_s, limit_s)

    def rest_s(self, age_s: float, quantile: float, unknown_s: float) -> float:
        """How long an attempt that has run for `age_s` goes on: the quantile of what attempts that got so old have shown.

        Args:
            unknown_s: for the length of an app of which nothing is known.
        """
        limit_s = self.spec.walltime_s
        if self.mean_s < 0:
            return max(0.0, (unknown_s if limit_s is None else limit_s) - age_s)
        lengths = self._sorted()
        older = bisect_right(lengths, age_s)
        if older < len(lengths):
            return lengths[older + int(quantile * (len(lengths) - older))] - age_s
        rest_s = age_s * -math.log1p(-quantile)  # older than any: who knows
        return rest_s if limit_s is None else min(rest_s, max(0.0, limit_s - age_s))

    def _sorted(self) -> list[float]:
        if self._sorted_for != self.mean_s:
            self._sorted_for, self._lengths = self.mean_s, sorted(self.recent_s)
        return self._lengths


class Task:
    """One unfinished task.

    Attributes:
        app: None for a promise.
        values: of its needs, by place; None in a place that is still open. None if it has no needs.
        open_needs: how many places are open.
        dependents: (task, place) pairs that wait for this one; None if there are none.
        depth: longest way from a task without needs; deeper runs first among equals.
        attempt: number of the current attempt, from 1.
        rank: of the worker that holds it while ASSIGNED.
        guess_s: how long the current attempt was expected to take when it was placed.
    """

    __slots__ = ("app", "attempt", "dependents", "depth", "guess_s", "id", "open_needs", "payload", "rank", "status", "values")

    def __init__(self, id: TaskId, app: App | None, payload: Payload) -> None:
        self.id = id
        self.app = app
        self.payload = payload
        self.values: list[Payload] | None = None
        self.open_needs = 0
        self.dependents: list[tuple[Task, int]] | None = None
        self.depth = 0
        self.attempt = 1
        self.rank: Rank = -1
        self.guess_s = 0.0
        self.status = Status.WAITING

    def __repr__(self) -> str:
        name = self.app.spec.name if self.app else "promise"
        return f"<Task {self.id} {name} {self.status.name.lower()} attempt {self.attempt} rank {self.rank}>"


class Loss(NamedTuple):
    """A worker that was lost, for messages."""

    rank: Rank
    node: str
    how: str


class CachedTask(Task):
    """A call of a cached app.

    Attributes:
        cache: the client's part of its key.
        key: the whole key, once all needs are there; b"" before, and after it was cancelled.
    """

    __slots__ = ("cache", "key")

    def __init__(self, id: TaskId, app: App, payload: Payload, cache: CacheKey) -> None:
        super().__init__(id, app, payload)
        self.cache = cache
        self.key = b""
