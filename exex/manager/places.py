"""Where tasks ran that have ended. Pure."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from exex.protocol.messages import TaskId

if TYPE_CHECKING:
    from exex.manager.nodes import NodeRecord

REMEMBERED = 50_000
"""Tasks whose node is remembered, so that others can run near them: the last ones that ended."""


class Places:
    """Remembers lists as they arrive; what costs something per task is done only once somebody has asked."""

    def __init__(self) -> None:
        self._ended: deque[tuple[list[TaskId], NodeRecord]] = deque()
        self._count = 0
        self._nodes: dict[TaskId, NodeRecord] | None = None

    def note(self, tasks: list[TaskId], node: NodeRecord) -> None:
        """These tasks have ended on a node. O(1), as long as nobody has asked."""
        self._ended.append((tasks, node))
        self._count += len(tasks)
        if self._nodes is not None:
            self._nodes.update(dict.fromkeys(tasks, node))
        while self._count > REMEMBERED:
            gone, old = self._ended.popleft()
            self._count -= len(gone)
            for task in gone if self._nodes is not None else ():
                if self._nodes is not None and self._nodes.get(task) is old:
                    del self._nodes[task]

    def of(self, task: TaskId) -> NodeRecord | None:
        """The node on which a task ran; None if that is not known any more."""
        if self._nodes is None:
            self._nodes = {}
            for tasks, node in self._ended:
                self._nodes.update(dict.fromkeys(tasks, node))
        return self._nodes.get(task)
