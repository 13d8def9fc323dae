"""Placement of big tasks: those that ask for several slots, memory, accelerators or nodes. Runs first in each turn. Pure.

They stand in one line: by priority, then first come first. One that does not fit is passed over by those behind it, but for the
first of these nodes are *kept*: no new work is placed there but what is expected to end before it can start. So it is for those
after it as long as all that is kept is a small part of the machine. Nodes are chosen that are expected to come free soonest,
and replaced by others that come free sooner: see `keeping`.

The small tasks stand in the line as if they were one. When they are the oldest, or the big ones have got as much as the whole
machine since, they get free slots first, until they had a part of the machine, and then go to the end. No task that is the first
of the line is delayed twice by that. So neither kind waits for ever for what came later.
"""

from __future__ import annotations

import heapq
from itertools import chain

from exex.manager import ends, grants, keeping, teams
from exex.manager.assigning import assign, fits_in_time, give, is_first_below, shelve
from exex.manager.line import NEAR, Key, Shape
from exex.manager.nodes import NodeRecord
from exex.manager.state import ManagerState
from exex.manager.task import Status, Task
from exex.protocol import payload as payloads
from exex.protocol.messages import Outcome
from exex.protocol.request import impossible, request_of

TURN_PART = 16
"""When it is their turn, small tasks go before the big ones until they had this part of all slots."""


def place_big(state: ManagerState) -> None:
    """Start all big tasks that fit, in the order of the line, and keep nodes for the first that does not."""
    line, nodes = state.ready.line, state.nodes
    if not nodes.watched:
        _begin_to_watch(state)
    packing = state.packing
    if not line.count and not packing.kept and not packing.idle:
        return
    keeping.release_what_nobody_wants(state)
    follow(state)
    if _is_as_it_was(state):
        return
    ahead: list[Shape] = []  # shapes whose first task does not fit, in their order
    turn = _Turn(state)
    while heads := line.in_order(but=ahead):  # again, if there are more kinds than are looked at together
        heapq.heapify(heads)
        while heads:
            key, shape = heads[0]
            if not turn.start_first(key, shape, ahead):
                ahead.append(shape)
            if shape.waiting and shape not in ahead:
                heapq.heapreplace(heads, (shape.head()[0], shape))
            else:
                heapq.heappop(heads)
    packing.blocked, packing.blocked_at = ahead, (line.number, line.count)


def _is_as_it_was(state: ManagerState) -> bool:
    """Whether nothing has changed for the tasks that did not fit at the last placement. O(kinds that wait)."""
    packing, line = state.packing, state.ready.line
    if packing.blocked_at != (line.number, line.count) or state.now_s >= packing.next_look_s or state.ends_s is not None:
        return False
    if packing.kept and keeping.is_stuck(state):
        return False
    if not packing.blocked or any(shape.changed for shape in packing.blocked):
        return False
    first = state.ready.first()
    if first is None:
        return True
    assert first.app is not None
    keys = [shape.head()[0] for shape in packing.blocked]
    if packing.big_placed >= state.nodes.slots or packing.small_number <= min(key[1] for key in keys):
        return False  # it may be the turn of small tasks
    return first.app.spec.priority >= max(key[0] for key in keys)


class _Turn:
    """What is remembered during one placement."""

    def __init__(self, state: ManagerState) -> None:
        self._state = state
        self._small = _SmallTurns(state)
        self._is_first = True  # nodes are kept for nobody further ahead
        self._may_look: bool | None = None
        state.packing.first = None

    def start_first(self, key: Key, shape: Shape, ahead: list[Shape]) -> bool:
        """Start the first task of a shape, fail or shelve it if it can never be; else keep nodes for it, and return False."""
        state, task = self._state, shape.head()[1]
        assert task.app is not None
        self._small.go_first(key, task, ahead)
        if not shape.is_possible(state.nodes):
            _fail_all(state, shape)
        elif not fits_in_time(state, task.app):
            state.ready.line.take(shape, task)
            shelve(state, task)
        elif not _start_one(state, shape, ahead):
            if self._may_look is None:
                self._may_look = keeping.is_time_to_look(state)
            self._is_first = not keeping.keep(state, shape, key, self._is_first, self._may_look) and self._is_first
            follow(state)
            return False
        return True


def _begin_to_watch(state: ManagerState) -> None:
    """The first big task is here: see what is free, and what runs. O(workers + tasks), once."""
    state.nodes.watch()
    for task in state.tasks.values():
        if task.status == Status.ASSIGNED and task.app is not None:
            state.workers[task.rank].home.expect(task.app, state.now_s)


def follow(state: ManagerState) -> None:
    """Let all shapes see what has changed. O(nodes touched x shapes)."""
    touched = state.nodes.touched
    if not touched:
        return
    shapes = state.ready.line.followed
    idle = state.packing.idle
    for node in touched:
        for shape in shapes:
            shape.follow(node)
        if node.kept is not None and node.free:
            idle[node] = None
        else:
            idle.pop(node, None)
    touched.clear()


# ---- starting -------------------------------------------------------------------------------------------------


def _start_one(state: ManagerState, shape: Shape, ahead: list[Shape]) -> bool:
    """Start the first task of a shape, or one close behind that prefers the node at hand. False if it does not fit."""
    if shape not in state.ready.line.followed:
        state.ready.line.look_up(shape, state.nodes)
    if not shape.changed:
        return False
    task = shape.head()[1]
    found = _find_nodes(state, shape, task, ahead)
    if not found:
        shape.changed = False
        return False
    if state.ready.affinity:
        task = _see_affinity(state, shape, task, found)
    _start(state, shape, task, found, ahead)
    return True


def _find_nodes(state: ManagerState, shape: Shape, task: Task, ahead: list[Shape]) -> list[NodeRecord]:
    """Nodes for a task, or an empty list: those that are free, those that are kept for it, those that others can spare.

    A node that is kept for a task further ahead can be spared for what is expected to end before that can start.
    """
    wanted = shape.request.nodes
    found = shape.fits.best(1) if wanted == 1 else list(shape.ready)[:wanted]
    found += (list(shape.ready) if wanted == 1 else shape.fits.best(wanted))[: wanted - len(found)]
    if len(found) < wanted <= len(found) + len(shape.spare):
        assert task.app is not None
        length_s = task.app.expected_s()
        for node in shape.spare:
            keeper = node.kept
            assert keeper is not None
            if keeper not in ahead or (length_s is not None and state.now_s + length_s < keeper.until_s(node)):
                found.append(node)
                if len(found) == wanted:
                    break
    return found if len(found) == wanted else []


def _see_affinity(state: ManagerState, shape: Shape, head: Task, found: list[NodeRecord]) -> Task:
    """Put the node that the first task prefers first in `found`; or else choose a task that prefers the one that was found."""
    preferred = state.preferred_node(head)
    if preferred in found:
        found.remove(preferred)
        found.insert(0, preferred)
    elif preferred is not None and preferred in shape.fits:
        found.pop()
        found.insert(0, preferred)
    elif shape.passed < NEAR and shape.request.nodes == 1 and found[0] not in shape.spare:
        for task in shape.first(NEAR):
            assert task.app is not None
            if state.preferred_node(task) is found[0] and fits_in_time(state, task.app):
                shape.passed += 1
                return task
    shape.passed = 0
    return head


def _start(state: ManagerState, shape: Shape, task: Task, found: list[NodeRecord], ahead: list[Shape]) -> None:
    assert task.app is not None
    if shape.request.whole and task.app.spec.ranks > sum(node.slots for node in found):
        _spread_anew(state, shape)
        return
    state.ready.line.take(shape, task)
    for node in found:
        if node.kept is not None and (node.kept is shape or node.kept not in ahead):
            keeping.release(state, node)
    if task.app.request is None:
        worker = max(found[0].workers.values(), key=lambda worker: worker.free)
    else:
        grant = grants.take(state, task, shape.request, found)
        teams.form(state, task, grant)
        worker = state.holdings[task.id].lead
        if worker.grants is None:
            worker.grants = {}
        worker.grants[len(worker.outgoing or ())] = grant
    assign(state, worker, [task])
    state.packing.big_placed += sum(node.slots for node in found) if shape.request.whole else shape.request.cores * len(found)
    for node in found[1:]:
        node.expect(task.app, state.now_s)
    follow(state)


def _spread_anew(state: ManagerState, shape: Shape) -> None:
    """Whole nodes have lost ranks, and those that are left have not enough for all calls that wait: look for others."""
    tasks: list[Task] = []
    while shape.waiting:
        task = shape.head()[1]
        state.ready.line.take(shape, task)
        tasks.append(task)
    nodes = state.nodes.shapes(exactly=True)
    for app in {task.app for task in tasks if task.app is not None and task.app.spec.ranks}:
        app.request = request_of(app.spec, nodes)
    for task in tasks:
        state.ready.push(task)


# ---- what can never run ---------------------------------------------------------------------------------------


def _fail_all(state: ManagerState, shape: Shape) -> None:
    """Fail tasks that no nodes can ever meet: enough of them were lost, or the client did not look."""
    nodes, left = state.nodes.shapes(exactly=True), " that are left" if state.nodes.losses else ""
    while shape.waiting:
        task = shape.head()[1]
        assert task.app is not None
        state.ready.line.take(shape, task)
        request = request_of(task.app.spec, nodes)
        if request is not None and impossible("", request, nodes) is None:
            task.app.request = request  # ranks may be spread over other nodes than at first
            state.ready.push(task)
            continue
        error = impossible(task.app.spec.name, shape.request, nodes, left, task.app.spec.ranks)
        assert error is not None
        ends.fail(state, task, Outcome.FAILED, payloads.dump_error(error, ""))


# ---- the turns of small tasks ---------------------------------------------------------------------------------


def note_arrivals(state: ManagerState) -> None:
    """Small tasks that came to an empty queue stand at the end of the line."""
    if not state.ready.count:
        state.packing.small_wait = False
    elif not state.packing.small_wait:
        state.packing.small_wait = True
        _to_the_end(state)


def note_small(state: ManagerState, placed: int) -> None:
    """So many small tasks were placed: when they had their part, the others go to the end of the line."""
    state.packing.small_placed += placed
    if state.packing.small_placed >= _part(state):
        _to_the_end(state)


def _to_the_end(state: ManagerState) -> None:
    packing = state.packing
    packing.small_number = state.ready.line.number
    packing.small_placed = packing.big_placed = 0


def _part(state: ManagerState) -> int:
    return max(1, state.nodes.slots // TURN_PART)


class _SmallTurns:
    """Lets small tasks go before big ones where it is their turn. Of one placement."""

    def __init__(self, state: ManagerState) -> None:
        self._state = state
        self._below: int | None = None
        self._had_turn = False

    def go_first(self, key: Key, task: Task, ahead: list[Shape]) -> None:
        """Before a big task with this place in the line: small ones with a better priority, or a part of them all."""
        state, packing = self._state, self._state.packing
        first = state.ready.first()
        if first is None:
            return
        assert first.app is not None
        priority = first.app.spec.priority
        if priority < key[0]:
            if self._below != key[0]:
                self._below = key[0]
                self._place(state.ready.count, key[0], ahead)
            return
        is_turn = packing.small_number <= key[1] or packing.big_placed >= state.nodes.slots
        if priority == key[0] and is_turn and not self._had_turn:
            self._had_turn = True
            if self._place(_part(state) - packing.small_placed, key[0] + 1, ahead, packing.delayed is not task):
                packing.delayed = task

    def _place(self, most: int, below: int, ahead: list[Shape], on_kept: bool = True) -> bool:
        """Up to `most` tasks to free slots, also of nodes that are kept for tasks further back in the line.

        Returns:
            Whether some went to those.
        """
        state = self._state
        waiting = state.ready.count
        kept = [worker for node in state.packing.idle if node.kept not in ahead for worker in node.workers.values()]
        has_kept = False
        for worker in chain(reversed(state.free), kept if on_kept else ()):
            left = most - (waiting - state.ready.count)
            if left <= 0 or not is_first_below(state, below):
                break
            if worker.leaving:
                continue
            if worker.open or (worker.home.kept is not None and on_kept):
                held = worker.held
                give(state, worker, min(left, worker.room - worker.held), below)
                has_kept |= worker.held > held and worker.home.kept is not None
        note_small(state, waiting - state.ready.count)
        follow(state)
        return has_kept
