"""Keeping nodes for big tasks that do not fit yet: which nodes, until when, and what may run there meanwhile. Pure."""

from __future__ import annotations

import heapq
import math

from exex.manager.assigning import assign, fits_in_time, give, is_first_below
from exex.manager.line import Key, Shape
from exex.manager.nodes import NodeRecord
from exex.manager.state import ManagerState
from exex.manager.task import Task

KEPT_PART = 16
"""Nodes are kept for others than the first of the line while all that is kept is no more than this part of all slots."""

LOOKED_AT = 256
"""Small tasks among which those are looked for that are short enough for kept nodes."""

LOOK_SHARE = 1e-4
"""Pause, in seconds per node and app, after a look at all of them: some fifty times what it takes."""

FILL_SHARE = 2e-5
"""The same for each kept node with free slots, after small tasks were looked for that are short enough."""

HALF = 0.5
"""Nodes are chosen by when they are as likely free as not."""

GOLDEN = 0.6180339887498949
"""Multiples of it, less their integer parts, are spread evenly over 0 to 1: luck without a random generator."""

ENOUGH = 16
"""Gangs of more nodes are large: of so many nodes, out of a like part of all, it is estimated when they come free."""


def is_time_to_look(state: ManagerState) -> bool:
    """Whether all nodes may be looked at again. If so, makes out how long the longest tasks are."""
    packing = state.packing
    if state.now_s < packing.next_look_s:
        return False
    packing.next_look_s = state.now_s + _pause_s(state)
    known = [app for app in state.apps.values() if app.mean_s >= 0]
    packing.unknown_s = max((app.expected_s() or 0.0 for app in known), default=0.0)
    packing.longest_s = max(max(app.longest_s, app.expected_s() or 0.0) for app in state.apps.values())
    return True


def _pause_s(state: ManagerState) -> float:
    return (len(state.nodes.by_name) + len(state.apps)) * LOOK_SHARE


def keep(state: ManagerState, shape: Shape, key: Key, is_first: bool, may_look: bool) -> bool:
    """Keep nodes for the tasks of a shape, of which the first does not fit. True if there are enough for that one.

    Args:
        key: place of that task in the line.
        is_first: of all for which nodes may be kept.
    """
    request = shape.request
    if is_first_below(state, key[0]) or is_stuck(state):
        release_all(state, shape)  # small tasks with a better priority wait, or what others wait for
        return False
    if is_first:
        state.packing.first = shape
    wanted = _wanted_nodes(state, shape, is_first)
    _shrink(state, shape, wanted)
    if request.nodes > 1 and len(shape.ready) < wanted and shape.fits:
        _keep_what_is_free(state, shape, wanted)
    if may_look:
        _look(state, shape, wanted, is_first)
    if len(shape.kept) >= request.nodes and may_look:
        return _plan(state, shape, is_first)
    if len(shape.kept) < request.nodes or shape.planned is not shape.head()[1]:
        shape.starts_s = state.now_s  # nobody knows better
    return len(shape.kept) >= request.nodes


def is_stuck(state: ManagerState) -> bool:
    """Whether all that was begun waits, for tasks of its own or for slots that are lent to what does.

    Then nodes that are kept may be what keeps those tasks from running.
    """
    return 0 < state.assigned <= len(state.waiting) + len(state.returning)


def _wanted_nodes(state: ManagerState, shape: Shape, is_first: bool) -> int:
    """How many nodes may be kept for a shape: for the first of the line as many as it needs, else up to a part of the machine."""
    nodes, request = state.nodes, shape.request
    mean_slots = nodes.slots // len(nodes.by_name)
    shape.share_slots = max(request.cores, mean_slots) if request.whole else request.cores
    others = [other for other in state.packing.kept if other is not shape and other is not state.packing.first]
    kept_slots = sum(len(other.kept) * other.share_slots for other in others)
    tasks = (nodes.slots // KEPT_PART - kept_slots) // (shape.share_slots * request.nodes)
    return min(shape.waiting, max(tasks, int(is_first))) * request.nodes


def _keep_what_is_free(state: ManagerState, shape: Shape, wanted: int) -> None:
    """Nodes that are free now replace those that are still busy."""
    busy = sorted((node for node in shape.kept if node not in shape.ready), key=lambda node: shape.kept[node])
    for node in shape.fits.best(len(shape.fits)):
        if len(shape.kept) >= wanted:
            if not busy:
                break
            release(state, busy.pop())
        hold(state, shape, node, state.now_s)


def _look(state: ManagerState, shape: Shape, wanted: int, is_first: bool) -> None:
    """Look at all nodes: renew what is expected of the kept ones, and keep more, up to `wanted`."""
    packing, now_s, request = state.packing, state.now_s, shape.request
    shape.changed = True
    for node in shape.kept:
        shape.kept[node] = now_s + node.share_in_s(request, HALF, packing.unknown_s, now_s)
    if wanted <= len(shape.kept):
        return
    packing.next_look_s += _pause_s(state)
    candidates = _candidates(state, shape)
    if is_first and len(candidates) < request.nodes - len(shape.kept):
        for other in list(packing.kept):
            if other is not shape:
                release_all(state, other)
        candidates = _candidates(state, shape)
    tasks = min(wanted, len(shape.kept) + len(candidates)) // request.nodes
    soon = [(node.share_in_s(request, HALF, packing.unknown_s, now_s), place) for place, node in enumerate(candidates)]
    for in_s, place in heapq.nsmallest(tasks * request.nodes - len(shape.kept), soon):
        hold(state, shape, candidates[place], now_s + in_s)


def _candidates(state: ManagerState, shape: Shape) -> list[NodeRecord]:
    return [node for node in state.nodes.by_name.values() if node.kept is None and node.can_ever_meet(shape.request)]


def _plan(state: ManagerState, shape: Shape, is_first: bool) -> bool:
    """Make out when the first task of a shape can start. False, and nothing is kept, if it could not end in time then.

    Once it is the first of the line, nothing else is begun on its nodes when the longest of all tasks could have ended: whatever
    runs there then ends within twice that time.
    """
    now_s, task = state.now_s, shape.head()[1]
    shape.planned = task
    at_s = now_s + _enough_nodes_in_s(state, shape)
    if not is_first:
        shape.first_of_line, shape.limit_s = None, math.inf
    else:
        if shape.first_of_line is not task:
            shape.first_of_line, shape.first_since_s = task, now_s
        shape.limit_s = shape.first_since_s + state.packing.longest_s
    shape.starts_s = at_s
    assert task.app is not None
    needs_s = task.app.needs_s()
    if state.ends_s is not None and needs_s is not None and at_s + needs_s > state.ends_s:
        release_all(state, shape)
        return False
    return True


def _enough_nodes_in_s(state: ManagerState, shape: Shape) -> float:
    """How long until as many nodes as a task needs are likely to be ready: those that are kept, and those that come free.

    A large gang gets the nodes that come free first out of many that may, so each of them is given another luck. For a small
    one it is when the kept ones are as likely free as not.
    """
    request, unknown_s, now_s = shape.request, state.packing.unknown_s, state.now_s
    if request.nodes < ENOUGH:
        return max(0.0, heapq.nsmallest(request.nodes, shape.kept.values())[-1] - now_s)
    come = [node for node in state.nodes.by_name.values() if node.kept is shape or (node.big and node.kept is None)]
    step = request.nodes // ENOUGH
    rests_s = [
        node.share_in_s(request, (place * GOLDEN + HALF) % 1.0, unknown_s, now_s) for place, node in enumerate(come[::step], 1)
    ]
    return heapq.nsmallest(-(-request.nodes // step), rests_s)[-1]


def _shrink(state: ManagerState, shape: Shape, wanted: int) -> None:
    """Keep no more nodes than `wanted`: those that are ready, or expected to be first."""
    surplus = len(shape.kept) - wanted
    if surplus > 0:
        for node in heapq.nlargest(surplus, shape.kept, key=lambda node: (node not in shape.ready, shape.kept[node])):
            release(state, node)


# ---- one node -------------------------------------------------------------------------------------------------


def hold(state: ManagerState, shape: Shape, node: NodeRecord, at_s: float) -> None:
    """Keep a node that is kept for nobody; a share is expected to fit there at `at_s`. The line must `follow` afterwards."""
    shape.kept[node] = at_s
    state.packing.kept[shape] = None
    node.kept = shape
    for worker in node.workers.values():
        worker.open = 0
        if worker.held > worker.room:
            state.stock.drains[worker] = None
    state.nodes.touched[node] = None
    shape.follow(node)


def release(state: ManagerState, node: NodeRecord) -> None:
    """Keep a node for nobody any more. The line must `follow` afterwards."""
    shape = node.kept
    assert shape is not None
    node.kept = None
    del shape.kept[node]
    shape.ready.pop(node, None)
    if not shape.kept:
        del state.packing.kept[shape]
    for worker in node.workers.values():
        worker.open = worker.room
        state.list_worker(worker)
    state.nodes.touched[node] = None


def release_all(state: ManagerState, shape: Shape) -> None:
    """Give all nodes that are kept for a shape back."""
    for node in list(shape.kept):
        release(state, node)


def release_what_nobody_wants(state: ManagerState) -> None:
    """Of tasks that have started elsewhere, were cancelled, or cannot run any more."""
    for shape in list(state.packing.kept):
        _shrink(state, shape, shape.waiting * shape.request.nodes)


def note_loss(state: ManagerState, node: NodeRecord) -> None:
    """A node has lost a worker, perhaps its last one."""
    if node.kept is not None and not (node.workers and node.can_ever_meet(node.kept.request)):
        release(state, node)
    if not node.workers:
        state.nodes.touched.pop(node, None)
        state.packing.idle.pop(node, None)
        state.ready.line.forget_node(node)


# ---- small tasks ----------------------------------------------------------------------------------------------


def fill_kept(state: ManagerState) -> None:
    """Give small tasks the slots of kept nodes that are not wanted, or not wanted before they will have ended."""
    ready, packing, now_s = state.ready, state.packing, state.now_s
    if not packing.idle or not ready.count or now_s < packing.next_fill_s:
        return
    packing.next_fill_s = now_s + len(packing.idle) * FILL_SHARE
    is_in_vain = False  # for what was left last, and so for less, nothing is short enough
    for node in sorted(packing.idle, key=_wanted_at_s, reverse=True):
        assert node.kept is not None
        request, left_s = node.kept.request, _wanted_at_s(node) - now_s
        beyond = 0 if request.whole else max(0, node.free - request.cores)
        for worker in node.workers.values():
            taken = min(worker.room - worker.held, beyond)
            if taken > 0:
                give(state, worker, taken)
                beyond -= taken
            free = worker.room - worker.held
            if free > 0 and not is_in_vain:
                tasks = ready.take_fitting(free, lambda task: _is_shorter(state, task, left_s), LOOKED_AT)  # noqa: B023
                assign(state, worker, tasks)
                is_in_vain = not tasks


def _wanted_at_s(node: NodeRecord) -> float:
    assert node.kept is not None
    return node.kept.until_s(node)


def _is_shorter(state: ManagerState, task: Task, left_s: float) -> bool:
    """Whether a task is expected to end within a time, and before the allocation does."""
    assert task.app is not None
    expected_s = task.app.expected_s()
    return expected_s is not None and expected_s < left_s and fits_in_time(state, task.app)
