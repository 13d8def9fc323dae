"""Every invariant of the manager's state, for tests and the simulation. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exex.manager.records import Again, Kept, Origin, records_of
from exex.manager.stock import MOST_RETURNS
from exex.manager.stored import HOME
from exex.manager.task import CachedTask, Status, Task
from exex.protocol.messages import CLIENT_SHIFT
from exex.protocol.request import SINGLE

if TYPE_CHECKING:
    from exex.manager.state import ManagerState
    from exex.protocol.messages import Rank, TaskId


def check(state: ManagerState) -> None:
    """Assert that all holds that must hold between two messages. O(everything)."""
    _check_tasks(state)
    _check_workers(state)
    _check_holdings(state)
    _check_stock(state)
    _check_inner(state)
    if state.nodes.watched:
        _check_nodes(state)
    _check_line(state)
    _check_data(state)
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
        waits_for_data = any(task.id in record.waiters for record in records_of(task))
        is_cached = isinstance(task, CachedTask)
        assert task.status != Status.WAITING or task.open_needs or task.app is None or is_cached or waits_for_data, task
        for dependent, place in task.dependents or ():
            if state.tasks.get(dependent.id) is dependent:
                assert dependent.values is not None and dependent.values[place] is None, (task, dependent)
    assert state.losses.keys() <= state.tasks.keys()
    assert state.ready.affinity.keys() <= state.tasks.keys()
    queued = state.ready.count, state.ready.held_back(), len(state.ready.near), state.ready.line.count
    assert ready == sum(queued), (ready, queued)
    assert all(task.status == Status.READY for task in state.tasks.values() if task.id in state.ready.near)
    assert shelved == state.shelved, (shelved, state.shelved)
    assert len(state.tasks) == sum(client.unfinished for client in state.clients.values())


def _check_data(state: ManagerState) -> None:
    """Records are those that somebody refers to; who is ready has all that it needs; who waits is known to what it waits for."""
    data = state.data
    needed: set[int] = set()
    for task in state.tasks.values():
        for record in records_of(task):
            needed |= _with_origin(record)
            if task.status == Status.READY and not data.has_work():
                assert record.value is not None or record.is_there(), (task, record)
    for client in state.clients.values():
        named = [*client.owned.values(), *client.payloads, *(value for _, value in client.kept.values())]
        named += [found[3] for found in client.labels.unseen.values()] if client.labels is not None else []
        for value in named:
            if type(value) is Kept:
                assert value.client == client.number
                needed |= _with_origin(value)
    if not data.has_work():
        alive = {id(record()) for record in data.records.values()}
        assert alive == needed, f"{len(alive)} records, {len(needed)} are needed"
    for name, found in data.records.items():
        kept = found()
        assert kept is not None and name in (kept.name, *kept.names)
        assert kept.doubted <= kept.holders.keys()
        for store, rank in kept.holders.items():
            assert rank in store.ranks or (rank == HOME and store is data.home), (kept, store, rank)
        for store, (rank, _) in kept.coming.items():
            assert rank in store.ranks, (kept, store, rank)
        if kept.again:
            assert kept.origin is not None and isinstance(state.tasks.get(kept.origin.task), Again), kept
    assert data.starved.keys() <= state.tasks.keys()
    for store in data.stores.values():
        assert all(state.workers[rank].store is store for rank in store.ranks), store


def _with_origin(record: Kept) -> set[int]:
    """A record, and those that are kept because it may have to be made again."""
    found = {id(record)}
    todo = [record.origin]
    while todo:
        origin = todo.pop()
        if origin is not None:
            values = [origin.payload, *(origin.values or ())]
            found |= {id(value) for value in values if type(value) is Kept}
            todo += [value.origin for value in values if type(value) is Kept]
            todo += [value for value in values if type(value) is Origin]
    return found


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


def _check_inner(state: ManagerState) -> None:
    """Whatever a task process has made belongs to the task that it runs, and ends with it."""
    orphaned = set(state.orphaned)
    for parent, client in state.parents.items():
        inner, task = client.inner, state.tasks.get(parent)
        assert inner is not None and inner.parent == parent, (parent, inner)
        is_run = task is not None and task.status == Status.ASSIGNED and task.rank == inner.rank
        assert is_run or parent in orphaned, f"task {parent} has made tasks, and is not run"
    used: dict[int, int] = {}
    for client in state.clients.values():
        inner = client.inner
        if inner is None:
            continue
        mine = [task for task in state.tasks.values() if task.id >> CLIENT_SHIFT == client.number]
        own = {task.id for task in mine if not isinstance(task, Again)}
        assert own == inner.open.keys(), client.number
        assert not own or state.parents.get(inner.parent) is client, f"{own} belong to no task that runs"
        for app in client.apps.values():
            used[app.number] = used.get(app.number, 0) + 1
    assert used == {known.app.number: known.users for known in state.inner_apps.values()}


def _check_stock(state: ManagerState) -> None:
    """Every queue is known, and nobody is waited for who is gone."""
    stock, workers = state.stock, state.workers
    assert all(workers.get(worker.rank) is worker for worker in (*stock.workers, *stock.drains))
    assert stock.asked.keys() <= workers.keys()
    assert {rank for rank, _ in stock.outgoing} <= stock.asked.keys()
    assert stock.returns.keys() <= state.tasks.keys()
    assert all(0 < returns <= MOST_RETURNS for returns in stock.returns.values())
    for worker in workers.values():
        assert worker.held <= worker.room or worker in stock.workers, (worker.rank, worker.held, worker.room)


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
    for task_id, slots in state.waiting.items():
        task = state.tasks.get(task_id)
        rank = task.rank if task is not None and task.status == Status.ASSIGNED else state.dropped[task_id]
        waiting_holding = state.holdings.get(task_id)
        assert slots == (1 if waiting_holding is None else waiting_holding.lent[state.workers[rank]]), task_id
        room[rank] += slots
    for task_id, worker in state.returning.items():
        assert state.workers.get(worker.rank) is worker and task_id not in state.waiting, task_id
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
        assert worker.room == room[rank], (rank, worker.room, room[rank])  # negative while one that has waited has no slots yet
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
