"""Every invariant of the manager's state, for tests and the simulation. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exex.manager.task import CachedTask, Status, Task
from exex.protocol.request import SINGLE

if TYPE_CHECKING:
    from exex.manager.state import ManagerState
    from exex.protocol.messages import Rank, TaskId


def check(state: ManagerState) -> None:
    """Assert that all holds that must hold between two messages. O(everything)."""
    _check_tasks(state)
    _check_workers(state)
    _check_holdings(state)
    if state.nodes.watched:
        _check_nodes(state)
    _check_line(state)
    state.memo.check(state.tasks)


def _check_tasks(state: ManagerState) -> None:
    ready = shelved = 0
    for task_id, task in state.tasks.items():
        assert task.id == task_id
        ready += task.status == Status.READY
        shelved += task.status == Status.SHELVED
        if task.values is not None:
            assert task.open_needs == sum(value is None for value in task.values), task
        assert task.open_needs == 0 or task.status == Status.WAITING, task
        assert task.status != Status.WAITING or task.open_needs or task.app is None or isinstance(task, CachedTask), task
        for dependent, place in task.dependents or ():
            if state.tasks.get(dependent.id) is dependent:
                assert dependent.values is not None and dependent.values[place] is None, (task, dependent)
    assert state.losses.keys() <= state.tasks.keys()
    assert state.ready.affinity.keys() <= state.tasks.keys()
    counted = (state.ready.count, state.ready.held_back(), state.ready.line.count)
    assert ready == sum(counted), (ready, counted)
    assert shelved == state.shelved, (shelved, state.shelved)
    assert len(state.tasks) == sum(client.unfinished for client in state.clients.values())


def _check_workers(state: ManagerState) -> None:
    held: dict[Rank, int] = dict.fromkeys(state.workers, 0)
    mine: dict[Rank, dict[TaskId, Task]] = {rank: {} for rank in state.workers}
    held_s: dict[Rank, float] = dict.fromkeys(state.workers, 0.0)
    assigned = 0
    for task in state.tasks.values():
        if task.status == Status.ASSIGNED:
            assigned += 1
            held[task.rank] += 1
            mine[task.rank][task.id] = task
            held_s[task.rank] += task.guess_s
    assert assigned == state.assigned, (assigned, state.assigned)
    for rank in state.dropped.values():
        held[rank] += 1
    assert all(state.workers.get(worker.rank) is worker for worker in state.refilled)
    assert all(worker.leaving or state.workers.get(worker.rank) is worker for worker in (*state.free, *state.busy))
    assert state.drops.keys() <= state.workers.keys()
    for worker in state.workers.values():
        assert worker.held == held[worker.rank], (worker.rank, worker.held, held[worker.rank])
        assert (worker.tasks or {}) == mine[worker.rank], worker.rank
        assert abs(worker.held_s - held_s[worker.rank]) < 1e-6, (worker.rank, worker.held_s, held_s[worker.rank])
        assert worker.open == (0 if worker.home.kept is not None else worker.room), worker.rank
        assert state.free.count(worker) == worker.in_free, worker.rank
        assert state.busy.count(worker) == worker.in_busy, worker.rank
        if state.ready.count and not worker.leaving and worker.held < worker.open:
            assert worker.in_free, worker.rank


def _check_holdings(state: ManagerState) -> None:
    """Nothing is granted twice, and all that is not granted is free."""
    room = {rank: worker.slots for rank, worker in state.workers.items()}
    lent = dict.fromkeys(state.workers, 0)
    memory = {node: node.memory_bytes for node in state.nodes.by_name.values()}
    gpus = {node: list(node.gpus) for node in state.nodes.by_name.values()}
    big = dict.fromkeys(state.nodes.by_name.values(), 0)
    for task_id, holding in state.holdings.items():
        lead = holding.lead
        task = state.tasks.get(task_id)
        if task is not None and task.status == Status.ASSIGNED:
            assert task.rank == lead.rank, task
        else:
            assert state.dropped.get(task_id) == lead.rank, f"task {task_id} holds slots, but is not at its lead"
        for worker, slots in holding.lent.items():
            assert state.workers[worker.rank] is worker and slots > 0
            room[worker.rank] -= slots - (worker is lead)
            lent[worker.rank] += 0 if worker is lead else slots
        for node, (_, memory_bytes, names) in holding.shares.items():
            if node.workers:
                big[node] += 1
                memory[node] -= memory_bytes if node.memory_bytes else 0
                for name in names:
                    gpus[node].remove(name)  # ValueError: it was granted twice
    assert state.broken.keys() <= state.holdings.keys()
    in_teams = set()
    for task_id, team in state.teams.items():
        holding = state.holdings[task_id]
        assert team.lead == holding.lead.rank, (team, holding.lead.rank)
        assert team.missing and team.missing <= team.living and not team.missing & team.parts.keys(), team
        assert team.missing | team.parts.keys() == set(team.ranks), team
        assert team.living <= {worker.rank for worker in holding.lent}, team
        in_teams |= {worker.rank for worker in holding.lent}
    assert in_teams == {worker.rank for worker in state.workers.values() if worker.in_team}
    for rank, worker in state.workers.items():
        assert 0 <= worker.room == room[rank], (rank, worker.room, room[rank])
        assert worker.lent == lent[rank], (rank, worker.lent, lent[rank])
    for node in state.nodes.by_name.values():
        assert 0 <= node.free_memory == memory[node], (node, node.free_memory, memory[node])
        assert list(node.free_gpus) == gpus[node], (node, node.free_gpus, gpus[node])
        assert node.big == big[node] and (node.big_slots > 0) == (node.big > 0), (node, node.big, big[node], node.big_slots)


def _check_nodes(state: ManagerState) -> None:
    assert state.nodes.slots == sum(worker.slots for worker in state.workers.values())
    assert {worker for node in state.nodes.by_name.values() for worker in node.workers.values()} == set(state.workers.values())
    for node in state.nodes.by_name.values():
        for worker in node.workers.values():
            assert worker.home is node and worker.free == max(0, worker.room - worker.held), (worker.rank, worker.free)
        assert node.slots == sum(worker.slots for worker in node.workers.values()), node
        assert node.free == sum(worker.free for worker in node.workers.values()), node
        assert node.kept is None or node in node.kept.kept, node
        if node not in state.nodes.touched:
            assert (node in state.packing.idle) == (node.kept is not None and node.free > 0), node
    assert state.packing.idle.keys() <= set(state.nodes.by_name.values())


def _check_line(state: ManagerState) -> None:
    line, known = state.ready.line, set(state.nodes.by_name.values())
    waiting: dict[object, int] = dict.fromkeys(line.shapes, 0)
    for task in state.tasks.values():
        if task.status == Status.READY and task.app is not None and (task.app.request or task.id in state.ready.affinity):
            waiting[task.app.request or SINGLE] += 1
    for request, shape in line.shapes.items():
        assert shape.waiting == waiting[request], (shape, waiting[request])
        assert (shape in state.packing.kept) == bool(shape.kept), shape
        assert shape.ready.keys() <= shape.kept.keys() <= known, shape
        assert shape.spare.keys() <= known and shape.fits.scores().keys() <= known, shape
        assert all(node.kept is shape for node in shape.kept), shape
        for node in known - state.nodes.touched.keys() if shape in line.followed else ():
            fits = node.fits(request)
            assert (node in shape.fits) == (fits and node.kept is None), (shape, node)
            assert (node in shape.spare) == (fits and node.kept not in (None, shape)), (shape, node)
            assert (node in shape.ready) == (fits and node.kept is shape), (shape, node)
    assert all(line.shapes[shape.request] is shape for shape in line.followed)
    assert line.count == sum(shape.waiting for shape in line.shapes.values())
