"""What each message of a client does to the manager's state. Handlers place nothing and send nothing: `turn` does, once per turn.

What a client says is checked before anything is changed, so a ProtocolError leaves the state as it was. The shape of a
message (columns, bounds) was checked when it was decoded: see protocol/checks.
"""

from __future__ import annotations

from typing import Any

from exex.errors import ProtocolError
from exex.manager.ends import cancel, end_found, fail, requeue, succeed
from exex.manager.inner import Inner, next_number, on_new
from exex.manager.labels import Labels
from exex.manager.records import Again
from exex.manager.state import ClientRecord, ManagerState
from exex.manager.task import CachedTask, Status, Task
from exex.protocol.messages import (
    CLIENT_SHIFT,
    Applied,
    Attach,
    Cancel,
    Collected,
    Finish,
    Fulfil,
    Outcome,
    Promise,
    Release,
    Spread,
    Submit,
    TaskId,
    Verdict,
    Want,
)
from exex.protocol.payload import Payload, Stored


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
