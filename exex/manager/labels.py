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
        uncollected_bytes: of their results.
        is_full: they are more than may wait.
    """

    def __init__(self, who: Attach, most_bytes: int = MOST_BYTES) -> None:
        self.who = who
        self.attached = True
        self.tags: dict[TaskId, str] = {}
        self.apps: dict[TaskId, str] = {}
        self.uncollected_bytes = 0
        self.is_full = False
        self._most_bytes = most_bytes

    def ended(self, task: Task, payload: Payload) -> bool:
        """A task has a result. True if from now on too much waits."""
        self.apps[task.id] = task.app.spec.name if task.app is not None else ""
        self.uncollected_bytes += len(payload) + _OVERHEAD_BYTES
        if self.is_full or self.uncollected_bytes <= self._most_bytes:
            return False
        self.is_full = True
        return True

    def applied(self, tasks: Iterable[TaskId], kept: Mapping[TaskId, tuple[int, Payload]]) -> None:
        """The client has these results, which are still in `kept`."""
        for task in tasks:
            self.tags.pop(task, None)
            if self.apps.pop(task, None) is not None:
                self.uncollected_bytes -= len(kept[task][1]) + _OVERHEAD_BYTES

    def has_room(self) -> bool:
        """Whether it was full, and half of that is gone: once."""
        if self.is_full and self.uncollected_bytes <= self._most_bytes // 2:
            self.is_full = False
            return True
        return False
