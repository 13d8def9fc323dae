"""What the manager keeps of a remote client beyond its tasks: who it is, their names, and how much waits for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from exex.protocol.messages import Attach, TaskId
from exex.protocol.payload import Payload

if TYPE_CHECKING:
    from exex.manager.task import Task

MOST_BYTES = 256 * 1024**2
"""Results that may wait for a client; from here on no further task of it is begun."""

_OVERHEAD_BYTES = 256  # of one result, in the count


class Labels:
    """Of one remote client.

    Attributes:
        who: as it has introduced itself.
        attached: it is there; else it is detached, and its results wait.
        tags: of its tasks that have one.
        apps: names of apps of its tasks that have ended and are not collected.
        uncollected_bytes: of their results, stored or not.
        unseen: of a client that may be found again, what has arrived there and its program has not looked at, oldest first: name
            of the app, tag, outcome and payload. As much of that as may wait; what is older counts as collected.
        is_full: they are more than may wait.
    """

    def __init__(self, who: Attach, most_bytes: int = MOST_BYTES) -> None:
        self.who = who
        self.attached = True
        self.tags: dict[TaskId, str] = {}
        self.apps: dict[TaskId, str] = {}
        self.uncollected_bytes = 0
        self.unseen: dict[TaskId, tuple[str, str, int, Payload]] = {}
        self._unseen_bytes = 0
        self.is_full = False
        self._most_bytes = most_bytes

    def ended(self, task: Task, payload: Payload) -> bool:
        """A task has a result. True if from now on too much waits."""
        return self._waits(task.id, task.app.spec.name if task.app is not None else "", payload)

    def _waits(self, task: TaskId, app: str, payload: Payload) -> bool:
        self.apps[task] = app
        self.uncollected_bytes += len(payload) + _OVERHEAD_BYTES
        if self.is_full or self.uncollected_bytes <= self._most_bytes:
            return False
        self.is_full = True
        return True

    def applied(self, tasks: Iterable[TaskId], kept: Mapping[TaskId, tuple[int, Payload]]) -> None:
        """The client has these results, which are still in `kept`."""
        for task in tasks:
            tag, app = self.tags.pop(task, ""), self.apps.pop(task, None)
            if app is not None:
                outcome, payload = kept[task]
                self.uncollected_bytes -= len(payload) + _OVERHEAD_BYTES
                if self.who.detach:
                    self.unseen[task] = (app, tag, outcome, payload)
                    self._unseen_bytes += len(payload) + _OVERHEAD_BYTES
        while self._unseen_bytes > self._most_bytes:
            self.collected([next(iter(self.unseen))])

    def collected(self, tasks: Iterable[TaskId]) -> None:
        """The client's program has looked at these."""
        for task in tasks:
            found = self.unseen.pop(task, None)
            if found is not None:
                self._unseen_bytes -= len(found[3]) + _OVERHEAD_BYTES

    def left(self) -> tuple[dict[TaskId, tuple[int, Payload]], bool]:
        """The client is away: what it has not looked at waits for it again.

        Returns:
            Outcomes and payloads of that; and whether from now on too much waits.
        """
        is_full = False
        for task, (app, tag, _, payload) in self.unseen.items():
            is_full |= self._waits(task, app, payload)
            if tag:
                self.tags[task] = tag
        waiting = {task: (outcome, payload) for task, (_, _, outcome, payload) in self.unseen.items()}
        self.forget()
        return waiting, is_full

    def forget(self) -> None:
        """Nobody will look at anything any more."""
        self.unseen.clear()
        self._unseen_bytes = 0

    def has_room(self) -> bool:
        """Whether it was full, and half of that is gone: once."""
        if self.is_full and self.uncollected_bytes <= self._most_bytes // 2:
            self.is_full = False
            return True
        return False
