"""The line of ready tasks that ask for more than one slot, and for each kind of request where it fits now. Pure.

Tasks with equal requests share a `Shape`, which knows the nodes on which one share of the request fits. After one look at all
nodes it only follows those that were touched, so that nothing here costs O(nodes) per event.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence

from exex.manager.nodes import NodeRecord, Nodes
from exex.manager.task import Status, Task
from exex.protocol.messages import TaskId
from exex.protocol.request import SINGLE, Request

Key = tuple[int, int]
"""Priority, and number in the line: the smaller comes first."""

WINDOW = 64
"""Kinds of requests that are looked at, those of the tasks that come first. Others wait until one of these is gone."""

NEAR = 32
"""Tasks among which one that prefers the node at hand goes before older ones with the same request."""

_SPARE_GPU = 1 << 20


class Candidates:
    """Nodes on which a share fits, by what would be left over there: the least goes first."""

    __slots__ = ("_buckets", "_scores")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[NodeRecord, None]] = {}
        self._scores: dict[NodeRecord, int] = {}

    def __len__(self) -> int:
        return len(self._scores)

    def __contains__(self, node: NodeRecord) -> bool:
        return node in self._scores

    def put(self, node: NodeRecord, score: int) -> None:
        """Add a node, or move it. O(1)."""
        if self._scores.get(node) != score:
            self.drop(node)
            self._scores[node] = score
            self._buckets.setdefault(score, {})[node] = None

    def drop(self, node: NodeRecord) -> None:
        """Take a node out, if it is there."""
        score = self._scores.pop(node, None)
        if score is not None:
            bucket = self._buckets[score]
            del bucket[node]
            if not bucket:
                del self._buckets[score]

    def best(self, most: int) -> list[NodeRecord]:
        """The best of them, up to `most`. O(kinds of left-overs + nodes returned)."""
        if most == 1 and self._buckets:
            return [next(iter(self._buckets[min(self._buckets)]))]
        found: list[NodeRecord] = []
        for score in sorted(self._buckets):
            for node in self._buckets[score]:
                if len(found) == most:
                    return found
                found.append(node)
        return found

    def scores(self) -> dict[NodeRecord, int]:
        """For tests: each node with its score."""
        return self._scores


class Shape:
    """Tasks with one request: those that wait, where a share fits, and the nodes that are kept for them.

    Attributes:
        request: of each of them.
        waiting: how many wait.
        fits: nodes, kept for nobody, on which a share fits now.
        spare: the same of nodes that are kept for other shapes; there only what is short may run.
        kept: nodes that are kept for these tasks, and when a share is expected to fit there.
        ready: those of them on which it fits now.
        share_slots: slots of a node that is kept.
        planned: the task whose start was made out last; `starts_s`: when it is expected to find all its nodes ready.
        first_of_line: the task that nothing but these nodes holds up, and `first_since_s`; `limit_s`: from then on nothing else
            is begun on nodes that are kept for it.
        changed: something has changed since the first task was last found not to fit.
        passed: how many tasks have gone before the first one because they prefer the node at hand.
        capable: nodes that can meet the request when they are idle, as of `losses`.
    """

    __slots__ = (
        "_queues", "capable", "changed", "first_of_line", "first_since_s", "fits", "kept", "limit_s", "losses", "passed",
        "planned", "ready", "request", "share_slots", "spare", "starts_s", "waiting",
    )  # fmt: skip

    def __init__(self, request: Request) -> None:
        self.request = request
        self.waiting = 0
        self._queues: dict[int, deque[tuple[int, Task]]] = {}  # by priority: number in the line, task
        self.fits = Candidates()
        self.spare: dict[NodeRecord, None] = {}
        self.kept: dict[NodeRecord, float] = {}
        self.ready: dict[NodeRecord, None] = {}
        self.share_slots = 0
        self.starts_s = 0.0
        self.planned: Task | None = None
        self.first_of_line: Task | None = None
        self.first_since_s = 0.0
        self.limit_s = math.inf
        self.changed = True
        self.passed = 0
        self.capable = 0
        self.losses = -1

    def __repr__(self) -> str:
        return f"<Shape {self.request.text()}: {self.waiting} wait, {len(self.fits)} fit, {len(self.kept)} kept>"

    # ---- tasks ----

    def push(self, task: Task, number: int) -> None:
        """Add a task at the end."""
        self.waiting += 1
        self.changed = True
        self._queues.setdefault(task.app.spec.priority, deque()).append((number, task))  # type: ignore[union-attr]

    def head(self) -> tuple[Key, Task]:
        """The first task and its place in the line. There must be one."""
        while True:
            priority = min(self._queues)
            queue = self._queues[priority]
            while queue:
                number, task = queue[0]
                if task.status == Status.READY:
                    return (priority, number), task
                queue.popleft()
            del self._queues[priority]

    def take(self, task: Task) -> None:
        """Remove a task that is among the first."""
        (priority, _), head = self.head()
        queue = self._queues[priority]
        place = 0 if head is task else next(i for i, (_, other) in enumerate(queue) if other is task)
        del queue[place]

    def first(self, most: int) -> list[Task]:
        """Up to `most` tasks that wait, in order, all of the priority of the first."""
        (priority, _), _ = self.head()
        queue = self._queues[priority]
        return [task for _, task in (queue[i] for i in range(min(most, len(queue)))) if task.status == Status.READY]

    def withdraw(self, gone: set[TaskId]) -> None:
        """Take tasks out that do not wait any more. O(all)."""
        for priority, queue in self._queues.items():
            self._queues[priority] = deque((number, task) for number, task in queue if task.id not in gone)

    def clear(self) -> None:
        """Forget all tasks, none of which waits any more."""
        self._queues.clear()
        self.planned = self.first_of_line = None

    # ---- nodes ----

    def follow(self, node: NodeRecord) -> None:
        """A node has changed. O(1)."""
        fits = node.fits(self.request)
        if node.kept is self:
            self.fits.drop(node)
            self.spare.pop(node, None)
            if not fits:
                self.ready.pop(node, None)
            elif node not in self.ready:
                self.ready[node] = None
                self.changed = True
            return
        self.ready.pop(node, None)
        if fits and node.kept is None:
            self.spare.pop(node, None)
            self.fits.put(node, self._left_over(node))
            self.changed = True
        elif fits:
            self.fits.drop(node)
            if node not in self.spare:
                self.spare[node] = None
                self.changed = True
        else:
            self.fits.drop(node)
            self.spare.pop(node, None)

    def _left_over(self, node: NodeRecord) -> int:
        """Slots that stay free, and above all accelerators: those who need none leave them to others."""
        free = node.slots if self.request.whole else node.free
        return (len(node.free_gpus) - self.request.gpus) * _SPARE_GPU + free - self.request.cores

    def forget_node(self, node: NodeRecord) -> None:
        """A node is gone."""
        self.fits.drop(node)
        self.spare.pop(node, None)
        self.ready.pop(node, None)

    def is_possible(self, nodes: Nodes) -> bool:
        """Whether enough nodes can meet the request when they are idle. O(1), but after a loss."""
        if self.losses != nodes.losses:
            self.losses = nodes.losses
            self.capable = sum(node.can_ever_meet(self.request) for node in nodes.by_name.values())
        return self.capable >= self.request.nodes

    def until_s(self, node: NodeRecord) -> float:
        """When a node that is kept for these tasks will be wanted."""
        return min(self.kept[node] if self.request.nodes == 1 else self.starts_s, self.limit_s)


class Line:
    """All big tasks that could run: by priority, then first come first.

    Attributes:
        count: of those that wait.
        number: that the next one gets.
        shapes: of all requests that tasks wait with, or did lately.
        followed: those that must follow touched nodes.
        in_use: there was one.
    """

    def __init__(self) -> None:
        self.count = 0
        self.number = 0
        self.shapes: dict[Request, Shape] = {}
        self.followed: dict[Shape, None] = {}
        self.in_use = False
        self._heads: list[tuple[Key, int, Shape]] = []  # heap; of each shape that waits an entry that is not too late

    def push(self, task: Task) -> None:
        """Add a task, which becomes READY."""
        assert task.app is not None
        task.status = Status.READY
        request = task.app.request or SINGLE
        shape = self.shapes.get(request)
        if shape is None:
            shape = self.shapes[request] = Shape(request)
        shape.push(task, self.number)
        if shape.waiting == 1 or shape.head()[1] is task:
            self._note_head(shape)
        self.number += 1
        self.count += 1
        self.in_use = True

    def forget(self, task: Task) -> None:
        """Count one READY task less: its caller gives it another status, which takes it out of the line."""
        assert task.app is not None
        self._count_one_less(self.shapes[task.app.request or SINGLE])

    def withdraw(self, gone: set[TaskId]) -> None:
        """Take tasks out that do not wait any more. O(all)."""
        for shape in self.shapes.values():
            shape.withdraw(gone)
            if shape.waiting:
                self._note_head(shape)

    def take(self, shape: Shape, task: Task) -> None:
        """Remove one of the first tasks."""
        shape.take(task)
        self._count_one_less(shape)

    def _count_one_less(self, shape: Shape) -> None:
        self.count -= 1
        shape.waiting -= 1
        shape.changed = True
        if not shape.waiting:
            shape.clear()

    def _note_head(self, shape: Shape) -> None:
        key = shape.head()[0]
        heapq.heappush(self._heads, (key, id(shape), shape))

    def in_order(self, but: Sequence[Shape] = ()) -> list[tuple[Key, Shape]]:
        """Shapes with tasks that wait, by the place of the first one: WINDOW with those in `but`, which are left out."""
        found: dict[Shape, Key] = {}
        while self._heads and len(found) < WINDOW:
            key, _, shape = heapq.heappop(self._heads)
            if not shape.waiting or shape in found:
                continue
            if shape.head()[0] == key:
                found[shape] = key
            else:
                self._note_head(shape)  # the first one is gone, and another comes later
        for shape in found:
            self._note_head(shape)
        return [(key, shape) for shape, key in found.items() if shape not in but]

    def look_up(self, shape: Shape, nodes: Nodes) -> None:
        """Look at all nodes once for a shape; from then on it follows. Others, with which nobody waits, do no longer."""
        if len(self.followed) >= WINDOW:
            for other in [other for other in self.followed if not other.waiting and not other.kept]:
                del self.followed[other], self.shapes[other.request]
        self.followed[shape] = None
        for node in nodes.by_name.values():
            shape.follow(node)

    def forget_node(self, node: NodeRecord) -> None:
        """A node is gone, and kept for nobody."""
        for shape in self.followed:
            shape.forget_node(node)
