"""What each message does to the manager's state. Handlers place nothing and send nothing: `turn` does, once per turn.

What a client says is checked before anything is changed, so a ProtocolError leaves the state as it was. The shape of a
message (columns, bounds) was checked when it was decoded: see protocol/checks.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

from exex.errors import ProtocolError, WorkerLost
from exex.manager import grants, keeping, teams
from exex.manager.inner import Inner, next_number, on_new
from exex.manager.labels import Labels
from exex.manager.near_data import wait_near
from exex.manager.nodes import WorkerRecord
from exex.manager.records import Again
from exex.manager.state import ClientRecord, ManagerState
from exex.manager.task import SHORT_S, App, CachedTask, Loss, Status, Task
from exex.protocol import payload as payloads
from exex.protocol.messages import (
    CLIENT_SHIFT,
    Applied,
    Attach,
    Cancel,
    Collected,
    Done,
    Finish,
    Fulfil,
    Hello,
    Outcome,
    Part,
    Promise,
    Rank,
    Release,
    Spread,
    Submit,
    TaskId,
    Verdict,
    Want,
)
from exex.protocol.payload import Payload, Stored

# ---- clients --------------------------------------------------------------------------------------------------


def on_attach(state: ManagerState, msg: Attach, labels: Labels | None = None, inner: Inner | None = None) -> ClientRecord:
    """A new client. Its number is the next free one.

    Args:
        inner: it is a task process.
    """
    client = ClientRecord(state.next_client if inner is None else next_number(state), labels)
    client.inner = inner
    if inner is None:
        state.next_client += 1
    state.clients[client.number] = client
    return client


def on_submit(state: ManagerState, client: ClientRecord, msg: Submit) -> None:
    """Take new tasks into the graph. Cost: O(tasks + needs).

    Raises:
        ProtocolError: an app, a function or a need that the client never named; a number that was used before.
    """
    first, count = client.base + msg.first, len(msg.payloads)
    check_submit(state, client, msg)
    _check_needs(state, client, msg)
    note_apps(state, client, msg)
    client.used.add(first, count)
    apps = [client.apps[number] for number in msg.calls]
    app_of_each = apps * count if len(apps) == 1 else apps
    new = [Task(first + i, app, call) for i, (app, call) in enumerate(zip(app_of_each, msg.payloads))]
    for i, key in msg.keys.items():
        new[i] = CachedTask(first + i, app_of_each[i], msg.payloads[i], key)
    state.tasks.update((task.id, task) for task in new)
    if client.inner is not None:
        on_new(client, new)
    state.counts.submitted += count
    client.unfinished += count
    if msg.tags and client.labels is not None:
        client.labels.tags.update((first + i, tag) for i, tag in msg.tags.items())
    if msg.affinity:
        state.ready.affinity.update((first + i, client.base + other) for i, other in msg.affinity.items())
    if len(apps) == 1 and not msg.needs and not msg.keys and not msg.affinity and not state.data.changed:
        state.ready.push_all(new)
        return
    for i, task in enumerate(new):
        needs = msg.needs.get(i)
        if needs is None:
            requeue(state, task)
        else:
            _link(state, client, task, needs, msg.given.get(i, {}))
    end_found(state)


def check_submit(state: ManagerState, client: ClientRecord, msg: Submit) -> None:
    """Raises:
    ProtocolError: an app or a function that the client never named; a number that was used before.
    """
    first, count = client.base + msg.first, len(msg.payloads)
    client.check_answered(msg.answered)
    if client.used.meets(first, count):
        raise ProtocolError(f"client {client.number}: task {msg.first}, or one of the {count} from there, exists already")
    state.check_apps(client, msg.apps, msg.functions)
    named = {spec.app for spec in msg.apps}
    for number in set(msg.calls):
        if number not in client.apps and number not in named:
            raise ProtocolError(f"client {client.number}: calls an app {number} that it never named")


def note_apps(state: ManagerState, client: ClientRecord, msg: Submit) -> None:
    """What a Submit says beside its calls. It must have been checked."""
    _applied(state, client, msg.answered)
    state.functions.update(msg.functions)
    client.functions.update(msg.functions)
    for spec in msg.apps:
        state.new_app(client, spec)


def _check_needs(state: ManagerState, client: ClientRecord, msg: Submit) -> None:
    """Raises:
    ProtocolError: a need that is neither unfinished nor kept nor given nor new itself.
    """
    tasks, kept, base, first, end = state.tasks, client.kept, client.base, msg.first, msg.first + len(msg.payloads)
    for i, needs in msg.needs.items():
        for local in needs:
            if local < 0 or base + local in tasks or base + local in kept or first <= local < end:
                continue
            raise ProtocolError(f"client {client.number}: task {first + i} needs task {local}, which is unknown")


def _link(state: ManagerState, client: ClientRecord, task: Task, needs: list[TaskId], given: dict[int, Payload]) -> None:
    """Tie a new task to its needs; ready it if all are there, fail it if one has failed."""
    values: list[Payload] = [None] * len(needs)
    task.values = values
    failed: tuple[TaskId, Payload] | None = None
    for place, local in enumerate(needs):
        if place in given:
            values[place] = given[place]
            task.depth = max(task.depth, 1)
            continue
        need = state.tasks.get(client.base + local)
        if need is not None:
            if need.dependents is None:
                need.dependents = []
            need.dependents.append((task, place))
            task.open_needs += 1
            task.depth = max(task.depth, need.depth + 1)
            continue
        outcome, value = client.kept[client.base + local]
        if outcome == Outcome.DONE:
            values[place] = value
            task.depth = max(task.depth, 1)
        else:
            failed = (client.base + local, value)
    if failed is not None:
        task.status = Status.WAITING
        fail(state, task, Outcome.NEED_FAILED, failed[1], [failed[0]])
    elif not task.open_needs:
        requeue(state, task)


def requeue(state: ManagerState, task: Task) -> None:
    """Ready a task, unless stored payloads must come first, or it is a cached call whose result is known or on the way.

    `end_found` must follow.
    """
    if state.data.in_use and not state.data.admit(task):
        return
    if not isinstance(task, CachedTask) or task.key or _enter(state, task):
        if state.data.in_use and wait_near(state, task):
            return
        state.ready.push(task)


def _enter(state: ManagerState, task: CachedTask) -> bool:
    """Whether a cached call has to run. A file that its key needs may have vanished since it was looked for."""
    try:
        return state.memo.enter(task)
    except OSError:
        return state.data.admit(task) and state.memo.enter(task)


def adopt(state: ManagerState, client: ClientRecord, msg: Submit | Fulfil) -> None:
    """Put records in the places of the stored payloads that a client names, before anything else is done with the message.

    Raises:
        ProtocolError: one is unknown, or not this client's.
    """
    columns: list[Any] = [dict(enumerate(msg.payloads))]
    if type(msg) is Submit:
        columns += msg.given.values()
    for i, column in enumerate(columns):
        for place, value in column.items():
            if type(value) is Stored:
                record = state.data.of_client(client.number, value)
                (column if i else msg.payloads)[place] = record


def on_promise(state: ManagerState, client: ClientRecord, msg: Promise) -> None:
    """Tasks that the client itself will fulfil.

    Raises:
        ProtocolError: a number that was used before.
    """
    first = client.base + msg.first
    if client.used.meets(first, msg.count):
        raise ProtocolError(f"client {client.number}: task {msg.first}, or one of the {msg.count} from there, exists already")
    client.used.add(first, msg.count)
    new = [Task(number, None, b"") for number in range(first, first + msg.count)]
    state.tasks.update((task.id, task) for task in new)
    if client.inner is not None:
        on_new(client, new)
    state.counts.submitted += msg.count
    client.unfinished += msg.count


def on_fulfil(state: ManagerState, client: ClientRecord, msg: Fulfil) -> None:
    """Outcomes of promises.

    Raises:
        ProtocolError: not an open promise of this client.
    """
    promises = [state.tasks.get(client.base + local) for local in msg.tasks]
    for local, task in zip(msg.tasks, promises):
        if task is None or task.app is not None:
            raise ProtocolError(f"client {client.number}: task {local} is not an open promise")
    for task, outcome, value in zip(promises, msg.outcomes, msg.payloads):
        assert task is not None
        if outcome == Outcome.DONE:
            succeed(state, task, value)
        else:
            fail(state, task, Outcome.FAILED, value)
    end_found(state)


def on_cancel(state: ManagerState, client: ClientRecord, msg: Cancel) -> None:
    """End tasks that nobody wants. Unknown ones have ended meanwhile."""
    for local in msg.tasks:
        task = state.tasks.get(client.base + local)
        if task is not None and not isinstance(task, Again):
            cancel(state, task)


def on_verdict(state: ManagerState, client: ClientRecord, msg: Verdict) -> None:
    """The retry handler's decision. For a task that is not asking (it was cancelled) nothing happens."""
    task = state.tasks.get(client.base + msg.task)
    if task is None or task.status != Status.ASKING:
        return
    if msg.retry:
        task.attempt += 1
        requeue(state, task)
    else:
        fail(state, task, Outcome.FAILED, msg.payload)


def on_applied(state: ManagerState, client: ClientRecord, msg: Applied) -> None:
    """Values that the client has need not be kept.

    Raises:
        ProtocolError: an Answer that it was never sent.
    """
    client.check_answered(msg.answered)
    _applied(state, client, msg.answered)


def _applied(state: ManagerState, client: ClientRecord, answered: int) -> None:
    client.applied(answered)
    if client.labels is not None and client.labels.has_room():
        state.ready.pause(client.number, False)


def on_finish(state: ManagerState, client: ClientRecord, msg: Finish) -> None:
    """The script has ended: answers are no longer wanted; with `cancel`, neither are its tasks.

    What waits for the client itself (promises, retry handlers) would wait for ever, so it is cancelled in any case.
    """
    client.finished = True
    client.clear_answer()
    client.kept.clear()
    client.unapplied.clear()
    client.owned.clear()
    if client.labels is not None:
        client.labels.forget()
    if not client.unfinished:
        state.forget_client(client)
        return
    state.ready.pause(client.number, False)
    if client.inner is not None and client.unfinished == len(client.inner.open):
        mine = [state.tasks[number] for number in client.inner.open]
    else:
        mine = [task for task in state.tasks.values() if task.id >> CLIENT_SHIFT == client.number]
    for task in mine:
        waits_for_client = task.app is None or task.status == Status.ASKING
        if (msg.cancel or waits_for_client) and state.tasks.get(task.id) is task:
            cancel(state, task)


def on_want(state: ManagerState, client: ClientRecord, msg: Want) -> None:
    """A client wants to have stored values; one that it has released, or never had, is answered with an error."""
    data = state.data
    for name in msg.names:
        record = client.owned.get(name) or data.get(name)
        if record is None or record.client != client.number:
            data.brought.append((client.number, name, None, msg.here))
        else:
            record.wants.append((client.number, name, msg.here))
            data.note(record)


def on_release(state: ManagerState, client: ClientRecord, msg: Release) -> None:
    """Stored payloads that the client will not name any more; others may still need them."""
    for name in msg.names:
        client.owned.pop(name, None)


def on_collected(state: ManagerState, client: ClientRecord, msg: Collected) -> None:
    """The program has looked at these results."""
    if client.labels is not None:
        client.labels.collected(client.base + local for local in msg.tasks)


def on_spread(state: ManagerState, client: ClientRecord, msg: Spread) -> None:
    """Every node gets a copy of what the client has put into the store of rank 0's node.

    Raises:
        ProtocolError: there is no such payload.
    """
    record = state.data.of_client(client.number, msg.payload)
    client.owned[record.name] = record
    state.data.spread(record)


# ---- workers --------------------------------------------------------------------------------------------------


def on_hello(state: ManagerState, rank: Rank, msg: Hello) -> None:
    """A worker is up and may get work.

    Raises:
        ProtocolError: it has said so before.
    """
    if rank in state.workers:
        raise ProtocolError(f"rank {rank} said Hello twice")
    worker = WorkerRecord(rank, state.nodes.get(msg.node), msg.slots, msg.cores, msg.gpus)
    state.nodes.add(worker, msg.memory_bytes)
    if msg.store:
        worker.store = state.data.store(msg.store)
        worker.store.ranks[rank] = None
    state.workers[rank] = worker
    state.list_worker(worker)


def on_done(state: ManagerState, rank: Rank, msg: Done) -> None:
    """Retire ended attempts, answer their clients, and ready what they alone held back. Cost: O(results + dependents).

    Raises:
        ProtocolError: `rank` reports a task that it does not hold.
    """
    worker = state.workers.get(rank)
    if worker is None:
        raise ProtocolError("it reports before its Hello")
    if state.teams:
        for task_id, outcome in zip(msg.tasks, msg.outcomes):
            if outcome == Outcome.STARVED and task_id in state.teams and worker.tasks and task_id in worker.tasks:
                state.data.on_starved(worker, worker.tasks[task_id])
        msg, parts = teams.split_off(state, msg)
        for part in parts:
            on_part(state, rank, part)
    _retire(state, worker, msg)
    state.tell(rank, msg)


def take_stored(state: ManagerState, rank: Rank, msg: Done) -> None:
    """Put records in the places of stored values, before `on_done`. What nobody wants is freed with its record.

    Raises:
        ProtocolError: it may not be stored, or not under this name.
    """
    worker = state.workers.get(rank)
    if worker is None:
        return  # `on_done` says so
    for i, (task_id, value) in enumerate(zip(msg.tasks, msg.payloads)):
        if type(value) is Stored:
            task = (worker.tasks or {}).get(task_id)
            is_in_band = task is not None and task.app is not None and task.app.spec.sends_value
            if is_in_band or task_id in state.teams or msg.outcomes[i] != Outcome.DONE:
                raise ProtocolError(f"rank {rank} has stored what belongs into its message about task {task_id}")
            msg.payloads[i] = state.data.of_task(value, worker, task_id, task)


def _retire(state: ManagerState, worker: WorkerRecord, msg: Done) -> None:
    """Ends of attempts, as a worker has told them or a team has come to."""
    held, holdings = worker.tasks or {}, state.holdings
    for task_id, outcome, value, seconds in zip(msg.tasks, msg.outcomes, msg.payloads, msg.seconds):
        task = held.pop(task_id, None)
        if task is None:
            _dropped(state, worker, task_id)
            continue
        worker.held -= 1
        if state.parents or state.waiting or state.returning:
            _end_as_client(state, worker, task_id)
        if holdings and task_id in holdings:
            grants.give_back(state, task_id)
        state.assigned -= 1
        app = task.app
        assert app is not None
        worker.held_s -= task.guess_s
        if outcome == Outcome.DONE:
            if state.broken:
                state.broken.pop(task_id, None)
            mean = app.mean_s
            if seconds > SHORT_S:
                app.recent_s.append(seconds)
                app.longest_s = max(app.longest_s, seconds)
            app.mean_s = seconds if mean < 0 else mean + (min(seconds, 10 * mean + OUTLIER_S) - mean) * 0.05
            if isinstance(task, CachedTask):
                state.memo.done(task, value, seconds)
            succeed(state, task, value)
        else:
            _attempt_failed(state, task, app, outcome, value)
    _note_started(state, worker.rank, msg.started)
    if worker.held_s < 0 or not worker.held:
        worker.held_s = 0.0
    worker.tasks = held or None
    state.places.note(msg.tasks, worker.home)
    if state.data.in_use:
        state.ready.near.touch(worker.store)
    if state.nodes.watched:
        state.nodes.touch(worker)
    state.list_worker(worker)
    end_found(state)


def _end_as_client(state: ManagerState, worker: WorkerRecord, task_id: TaskId) -> None:
    """An attempt has ended, which may have made tasks and waited for them."""
    grants.come_back(state, worker, task_id)
    if task_id in state.parents:
        state.orphaned.append(task_id)


def on_part(state: ManagerState, rank: Rank, msg: Part) -> None:
    """A rank's part in a call on a communicator has ended.

    Raises:
        ProtocolError: it takes part in no such call.
    """
    if rank not in state.workers:
        raise ProtocolError("it reports before its Hello")
    end = teams.on_part(state, rank, msg)
    if end is not None:
        lead, done = end
        _retire(state, state.workers[lead], done)


def _dropped(state: ManagerState, worker: WorkerRecord, task_id: TaskId) -> None:
    """A worker reports what nobody wants any more.

    Raises:
        ProtocolError: it was not told so.
    """
    if state.dropped.get(task_id) != worker.rank:
        raise ProtocolError(f"rank {worker.rank} reports task {task_id}, which it does not hold")
    del state.dropped[task_id]
    worker.held -= 1
    grants.come_back(state, worker, task_id)
    if task_id in state.holdings:
        grants.give_back(state, task_id)


def _note_started(state: ManagerState, rank: Rank, started: list[TaskId]) -> None:
    """Tell clients of tasks that have run for a while."""
    for task_id in started:
        task = state.tasks.get(task_id)
        if task is not None and task.rank == rank:
            client = state.clients[task_id >> CLIENT_SHIFT]
            client.started.append(task_id)
            if client.inner is not None:
                state.inner[client] = None


def _attempt_failed(state: ManagerState, task: Task, app: App, outcome: int, error: Payload) -> None:
    """Try again, ask the client's retry handler, or fail the task."""
    if task.id in state.broken:
        _attempt_lost(state, task, state.broken.pop(task.id))
    elif outcome == Outcome.STARVED:
        _attempt_starved(state, task)
    elif app.spec.asks and not isinstance(task, Again) and state.clients[task.id >> CLIENT_SHIFT].can_be_asked():
        task.status = Status.ASKING
        client = state.clients[task.id >> CLIENT_SHIFT]
        client.tasks.append(task.id)
        client.outcomes.append(Outcome.ASK)
        client.hurry = True
        client.payloads.append(error)
        if client.inner is not None:
            state.inner[client] = None
    elif task.attempt - state.losses.get(task.id, 0) - state.data.starved.get(task.id, 0) <= app.spec.retries:
        task.attempt += 1
        requeue(state, task)
    else:
        fail(state, task, outcome, error)


def _attempt_starved(state: ManagerState, task: Task) -> None:
    """Try again where what the task needs is said to be once that is known, unless it was never to be had."""
    if state.data.on_starved(state.workers[task.rank], task) > STARVED_TOLERATED:
        assert task.app is not None
        error = WorkerLost(
            f"task {_local([task.id])[0]} ({task.app.spec.name}) was sent to workers {STARVED_TOLERATED + 1} times that could "
            f"not get what it needs from other nodes; the last was rank {task.rank} on {state.workers[task.rank].node}: "
            "see what the ranks say about their stores, or set --keep-bytes 0",
            task.rank,
            state.workers[task.rank].node,
        )
        fail(state, task, Outcome.FAILED, payloads.dump_error(error, ""))
    else:
        task.attempt += 1
        requeue(state, task)


def on_worker_lost(state: ManagerState, rank: Rank, how: str) -> int:
    """A worker is gone: its attempts are tried again on others, without counting as failures. Cost: O(its tasks + holdings).

    So are the attempts of other workers to which it had lent slots, as soon as those have dropped them.

    Returns:
        How many attempts it held.
    """
    worker = state.workers.pop(rank)
    worker.leaving = True
    worker.outgoing = worker.grants = None
    state.refilled = [other for other in state.refilled if other is not worker]
    state.drops.pop(rank, None)
    state.stock.forget(worker)
    for task_id in [task for task, holder in state.dropped.items() if holder == rank]:
        del state.dropped[task_id]
        state.waiting.pop(task_id, None)
        state.returning.pop(task_id, None)
    loss = Loss(rank, worker.node, how)
    without = teams.on_worker_lost(state, worker, how) if state.teams else []
    state.nodes.remove(worker)
    state.data.on_rank_lost(worker.store, rank)
    for task_id in grants.forget_worker(state, worker):
        _break(state, task_id, loss)
    keeping.note_loss(state, worker.home)
    held = list(worker.tasks.values()) if worker.tasks else []
    worker.tasks = None
    for task in held:
        state.assigned -= 1
        state.waiting.pop(task.id, None)
        state.returning.pop(task.id, None)
        if task.id in state.parents:
            state.orphaned.append(task.id)
        end = teams.end_without(state, task.id)[1] if task.id in state.teams else None
        broken = state.broken.pop(task.id, None)
        if end is None or broken is not None:
            _attempt_lost(state, task, loss)
        else:
            assert task.app is not None
            _attempt_failed(state, task, task.app, end.outcomes[0], end.payloads[0])  # all its ranks had to be killed
    for task_id in without:
        if task_id in state.teams:
            lead, done = teams.end_without(state, task_id)
            if lead in state.workers:
                _retire(state, state.workers[lead], done)
    return len(held)


def _break(state: ManagerState, task_id: TaskId, loss: Loss) -> None:
    """An attempt has lost slots that it holds elsewhere: its lead must drop it, and is heard before it is tried again."""
    task = state.tasks.get(task_id)
    if task_id in state.teams or task is None or task.status != Status.ASSIGNED or task_id in state.broken:
        return  # teams have seen to it, or it is dropped already
    state.broken[task_id] = loss
    state.drops.setdefault(task.rank, []).append(task_id)


def _attempt_lost(state: ManagerState, task: Task, loss: Loss) -> None:
    """Try again, unless the task has lost so many workers that it must be the cause."""
    task.attempt += 1
    losses = state.losses[task.id] = state.losses.get(task.id, 0) + 1
    assert task.app is not None
    if losses > LOSSES_TOLERATED:
        error = WorkerLost(
            f"task {_local([task.id])[0]} ({task.app.spec.name}) lost its worker {losses} times; "
            f"the last, rank {loss.rank} on {loss.node}, {loss.how}",
            loss.rank,
            loss.node,
        )
        fail(state, task, Outcome.LOST, payloads.dump_error(error, ""))
    else:
        requeue(state, task)


OUTLIER_S = 1e-4
"""Added to ten times the average, the most that one running time counts for in it."""

LOSSES_TOLERATED = 3
"""A task that was on more lost workers than this is taken for the cause and fails. A value that was lost more often is not made
again."""

STARVED_TOLERATED = 20
"""A task that was sent so often to workers that could not get what it needs fails with the next one."""


# ---- cached calls ----------------------------------------------------------------------------------------------


def on_fetched(state: ManagerState, key: bytes, value: Payload | None) -> None:
    """The store's answer to `Store.fetch`; None if there is no such result, or if it does not count."""
    task = state.memo.fetched(key, value)
    if task is not None:
        requeue(state, task)
    end_found(state)


def end_found(state: ManagerState) -> None:
    """End the tasks whose value the memo knows; those that this readies may be among them. No recursion: chains are long."""
    found = state.memo.found
    while found:
        task, value = found.popleft()
        if state.tasks.get(task.id) is task:
            succeed(state, task, value)


# ---- ends of tasks --------------------------------------------------------------------------------------------


def succeed(state: ManagerState, task: Task, value: Payload) -> None:
    """Finish a task with a value, which fills its places in the dependents. `end_found` must follow."""
    state.finish_task(task, Outcome.DONE, value)
    if task.dependents is None:
        return
    for dependent, place in task.dependents:
        if state.tasks.get(dependent.id) is not dependent:
            continue  # failed or cancelled meanwhile
        assert dependent.values is not None
        dependent.values[place] = value
        dependent.open_needs -= 1
        if not dependent.open_needs:
            requeue(state, dependent)


def fail(state: ManagerState, task: Task, outcome: int, error: Payload, causes: list[TaskId] | None = None) -> None:
    """Finish a task with an error; its dependents, theirs, and so on fail for it and never run."""
    failed = [task]
    if isinstance(task, CachedTask):
        failed += state.memo.failed(task)
    for one in failed:
        state.finish_task(one, outcome, error, causes and _local(causes))
    while failed:
        need = failed.pop()
        for dependent, _ in need.dependents or ():
            if state.tasks.get(dependent.id) is dependent:
                state.finish_task(dependent, Outcome.NEED_FAILED, error, _local([need.id]))
                failed.append(dependent)


def _local(tasks: list[TaskId]) -> list[TaskId]:
    return [task & ((1 << CLIENT_SHIFT) - 1) for task in tasks]


def cancel(state: ManagerState, task: Task) -> None:
    """End a task in whatever state it is; its dependents fail with CancelledError."""
    if task.status == Status.READY:
        state.ready.forget(task)
        task.status = Status.WAITING
    elif task.status == Status.SHELVED:
        state.shelved -= 1
        task.status = Status.WAITING
    elif task.status == Status.ASSIGNED:
        state.assigned -= 1
        worker = state.workers[task.rank]
        worker.held_s -= task.guess_s
        assert worker.tasks is not None
        del worker.tasks[task.id]
        state.broken.pop(task.id, None)
        state.dropped[task.id] = task.rank
        if task.id in state.parents:
            state.orphaned.append(task.id)
        if task.id in state.teams:
            teams.condemn(state, task.id, teams.Reason.UNWANTED)
        else:
            state.drops.setdefault(task.rank, []).append(task.id)
    state.finish_task(task, Outcome.CANCELLED, b"")
    if isinstance(task, CachedTask):
        following = state.memo.cancelled(task)
        if following is not None:
            requeue(state, following)
    if task.dependents:
        error = payloads.dump_error(CancelledError(f"task {_local([task.id])[0]} was cancelled"), "")
        for dependent, _ in task.dependents:
            if state.tasks.get(dependent.id) is dependent:
                fail(state, dependent, Outcome.NEED_FAILED, error, [task.id])

