"""What the manager keeps of a remote client beyond its tasks: who it is, their names, and how much waits for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from exex.protocol.messages import Attach, TaskId
from exex.protocol.payload import Payload, Stored

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
        unfetched: of a client that may be found again, (task, name of its app, tag) of each stored value of which it has the name
            and which it has not released, by that name.
        is_full: they are more than may wait.
    """

    def __init__(self, who: Attach, most_bytes: int = MOST_BYTES) -> None:
        self.who = who
        self.attached = True
        self.tags: dict[TaskId, str] = {}
        self.apps: dict[TaskId, str] = {}
        self.uncollected_bytes = 0
        self.unfetched: dict[str, tuple[TaskId, str, str]] = {}
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
                payload = kept[task][1]
                self.uncollected_bytes -= len(payload) + _OVERHEAD_BYTES
                if self.who.detach and isinstance(payload, Stored):
                    self.unfetched[payload.name] = (task, app, tag)

    def left(self, owned: Mapping[str, Stored]) -> tuple[dict[TaskId, Stored], bool]:
        """The client is away: stored values that it has not released wait for it again.

        Args:
            owned: all that it may name.

        Returns:
            Those values; and whether from now on too much waits.
        """
        waiting: dict[TaskId, Stored] = {}
        is_full = False
        for name, (task, app, tag) in self.unfetched.items():
            if name in owned:
                waiting[task] = owned[name]
                is_full |= self._waits(task, app, owned[name])
                if tag:
                    self.tags[task] = tag
        self.unfetched.clear()
        return waiting, is_full

    def has_room(self) -> bool:
        """Whether it was full, and half of that is gone: once."""
        if self.is_full and self.uncollected_bytes <= self._most_bytes // 2:
            self.is_full = False
            return True
        return False
