"""Big tasks that tasks have made, and that cannot run because tasks above them keep what they ask for. Pure.

A big task that waits gives the slots of its own worker away, and keeps accelerators, memory and slots of other workers: its
process still uses them. What it has made, and what that has made, must do without. A task that never can fails at once. Trees
may also wait for each other: if all that runs has waited for a while, and a task that tasks have made finds no room, it fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from exex.errors import InvalidResourceSpecification
from exex.manager import ends, keeping
from exex.manager.grants import Holding
from exex.manager.nodes import NodeRecord
from exex.manager.state import ClientRecord, ManagerState
from exex.manager.task import CachedTask, Status, Task
from exex.protocol import payload as payloads
from exex.protocol.messages import CLIENT_SHIFT, Outcome, TaskId
from exex.protocol.request import Request
from exex.protocol.task_numbers import name_of, shown

STANDSTILL_S = 10.0
"""A thread of a task that waits may still do what ends a wait, so nothing is failed for a standstill that is shorter."""

_AGAIN_S = 1.0


def end_impossible(state: ManagerState, client: ClientRecord, new: Iterable[TaskId]) -> None:
    """Of new tasks of a task: fail those that what is above them will never leave room for. O(tasks above) if any holds much."""
    above = _holdings_above(state, client)
    if not above:
        return
    answers: dict[Request, bool] = {}
    for number in new:
        task = state.tasks.get(number)
        request = task.app.request if task is not None and task.app is not None else None
        if task is None or request is None or isinstance(task, CachedTask):
            continue
        if request not in answers:
            answers[request] = _has_room(state, request, list(above.values()))
        if not answers[request]:
            held = " and ".join(_title(state, holder) for holder in above)
            _fail(state, task, request, f"{held}, which made it, will keep what is missing until it ends, also while it waits")


def _holdings_above(state: ManagerState, client: ClientRecord) -> dict[TaskId, Holding]:
    found = {}
    while client.inner is not None and client.inner.parent in state.tasks:
        parent = client.inner.parent
        if parent in state.holdings:
            found[parent] = state.holdings[parent]
        client = state.clients[parent >> CLIENT_SHIFT]
    return found


def _has_room(state: ManagerState, request: Request, above: list[Holding]) -> bool:
    """Whether enough nodes could meet a request if nothing but these ran."""
    slots: Counter[NodeRecord] = Counter()
    memory: Counter[NodeRecord] = Counter()
    gpus: Counter[NodeRecord] = Counter()
    used = set()
    for holding in above:
        for worker, count in holding.lent.items():
            slots[worker.home] += count if worker is not holding.lead else 0
        for node, (_, memory_bytes, names) in holding.shares.items():
            used.add(node)
            memory[node] += memory_bytes
            gpus[node] += len(names)
    room = 0
    for node in state.nodes.by_name.values():
        if not node.can_ever_meet(request):
            continue
        if node in used:
            usable = max((len(worker.gpus) for worker in node.workers.values()), default=0) - gpus[node]
            has_memory = not node.memory_bytes or node.memory_bytes - memory[node] >= request.memory_bytes
            if request.whole or node.slots - slots[node] < request.cores or not has_memory or usable < request.gpus:
                continue
        room += 1
    return room >= request.nodes


def look(state: ManagerState) -> None:
    """Once all that runs has waited for `STANDSTILL_S`: fail one task that tasks have made and that finds no room."""
    if not state.ready.line.count or not keeping.is_stuck(state):
        state.stands_since_s = -1.0
        return
    if state.stands_since_s < 0:
        state.stands_since_s = state.now_s
    if state.now_s - state.stands_since_s < STANDSTILL_S:
        return
    state.stands_since_s = state.now_s - STANDSTILL_S + _AGAIN_S
    for task in state.tasks.values():
        if task.status != Status.READY or task.app is None or task.app.request is None:
            continue
        client = state.clients[task.id >> CLIENT_SHIFT]
        if client.inner is not None:
            _fail(state, task, task.app.request, "all that runs has waited for a while, and tasks that wait keep what is missing")
            return


def _fail(state: ManagerState, task: Task, request: Request, why: str) -> None:
    if task.status == Status.READY:
        state.ready.forget(task)
        task.status = Status.WAITING
    if task.status != Status.WAITING:
        return
    keys = {"gpus": request.gpus, "memory": request.memory_bytes, "nodes": request.nodes > 1 or request.whole}
    text = f"{_title(state, task.id)} asks for {request.text()}, but {why}"
    error = InvalidResourceSpecification({key for key, wanted in keys.items() if wanted} or {"cores"}, text)
    ends.fail(state, task, Outcome.FAILED, payloads.dump_error(error, ""))


def _title(state: ManagerState, number: TaskId) -> str:
    app = state.tasks[number].app
    return f"task {name_of(shown(number))} ({app.spec.name if app is not None else 'promised'})"
