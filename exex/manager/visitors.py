"""Clients that come and go: detached ones that come back, and orders from the shell. Pure."""

from __future__ import annotations

from concurrent.futures import CancelledError

from exex.manager import ends, from_clients
from exex.manager.labels import Labels
from exex.manager.records import Again, Kept
from exex.manager.state import ClientRecord, ManagerState
from exex.manager.task import Status, Task
from exex.protocol import payload as payloads
from exex.protocol.messages import CLIENT_SHIFT, Attach, ClientRow, Found, Outcome, TaskId


def why_not(state: ManagerState, msg: Attach, python: str) -> str:
    """Why a remote client cannot be let in; "" if it can.

    Args:
        python: version of the manager's.
    """
    if msg.python.split(".")[:2] != python.split(".")[:2]:
        return f"the job runs Python {python}, the client {msg.python or 'an unknown one'}: pickles need the same minor version"
    other = _find(state, msg.name) if msg.name else None
    if other is not None and other.labels is not None and other.labels.attached:
        who = other.labels.who
        return f"a client named {msg.name} is attached already (process {who.pid} on {who.host})"
    return ""


def on_attach(state: ManagerState, msg: Attach, most_bytes: int) -> ClientRecord:
    """A remote client: a new one, or that of a detached client with this name."""
    client = _find(state, msg.name) if msg.name else None
    if client is None or client.labels is None:
        return from_clients.on_attach(state, msg, Labels(msg, most_bytes))
    client.labels.attached = True
    client.labels.who = msg
    client.clear_answer()
    client.unapplied.clear()
    for task, (outcome, payload) in client.kept.items():
        client.tasks.append(task)
        client.outcomes.append(outcome)
        client.payloads.append(payload)
    client.hurry = True
    return client


def found(state: ManagerState, client: ClientRecord) -> list[Found]:
    """Its tasks, unfinished or not collected."""
    labels = client.labels
    if labels is None or not (client.unfinished or client.kept):
        return []
    names = {task.id: task.app.spec.name for task in _tasks(state, client) if task.app is not None} | labels.apps
    return [Found(task - client.base, names[task], labels.tags.get(task, "")) for task in sorted(names) if names[task]]


def on_left(state: ManagerState, client: ClientRecord) -> None:
    """A detached client is gone: its tasks go on, but for what waits for the client itself.

    Nobody can name stored payloads any more, but for values that wait.
    """
    assert client.labels is not None
    client.labels.attached = False
    waiting, is_full = client.labels.left()
    client.kept.update(waiting)
    client.owned = {value.name: value for _, value in client.kept.values() if type(value) is Kept}
    if is_full:
        state.ready.pause(client.number, True)
    for task in _tasks(state, client):
        if (task.app is None or task.status == Status.ASKING) and state.tasks.get(task.id) is task:
            _cancel(state, client, task)


def rows(state: ManagerState) -> list[ClientRow]:
    """All clients, for people."""
    shown = []
    for client in _outer(state):
        labels = client.labels
        who = labels.who if labels is not None else Attach(version="", pid=0, title="the job's script")
        shown.append(
            ClientRow(
                number=client.number,
                name=who.name,
                title=who.title,
                host=who.host,
                pid=who.pid,
                attached=not client.finished and (labels is None or labels.attached),
                unfinished=client.unfinished,
                uncollected=len(client.kept),
                uncollected_bytes=labels.uncollected_bytes if labels is not None else 0,
                paused=labels is not None and labels.is_full,
            )
        )
    return shown


def _outer(state: ManagerState) -> list[ClientRecord]:
    """Clients that are no task processes."""
    return [client for client in state.clients.values() if client.inner is None]


def cancel(state: ManagerState, name: str, numbers: list[TaskId]) -> tuple[int, str]:
    """Cancel tasks of one client or of all; of a client, also by number.

    Returns:
        How many; and why it cannot be done, or "".
    """
    clients = _outer(state)
    if name:
        one = _find(state, name) or (state.clients.get(int(name)) if name.isdecimal() else None)
        if one is None:
            return 0, f"there is no client {name}; `exex clients` lists them"
        clients = [one]
    elif numbers and len(clients) > 1:
        return 0, "there are several clients, each with tasks of these numbers: say which one, by --client"
    count = 0
    for client in clients:
        wanted = {client.base + number for number in numbers}
        for task in _tasks(state, client):
            if state.tasks.get(task.id) is task and (not numbers or task.id in wanted):
                _cancel(state, client, task)
                count += 1
    return count, ""


def _cancel(state: ManagerState, client: ClientRecord, task: Task) -> None:
    """Cancel a task for others than its client, which is told."""
    is_known = not client.finished
    ends.cancel(state, task)
    if is_known:
        error = payloads.dump_error(CancelledError(f"task {task.id - client.base} was cancelled by order"), "")
        client.kept[task.id] = (Outcome.FAILED, error)  # for calls that need it and are under way
        if client.labels is not None:
            client.labels.ended(task, error)
        client.tasks.append(task.id)
        client.outcomes.append(Outcome.CANCELLED)
        client.payloads.append(b"")
        client.hurry = True


def _find(state: ManagerState, name: str) -> ClientRecord | None:
    for client in state.clients.values():
        if client.labels is not None and client.labels.who.name == name and not client.finished:
            return client
    return None


def _tasks(state: ManagerState, client: ClientRecord) -> list[Task]:
    """Its tasks, but for those that only make again what was lost: of these it hears nothing."""
    found = (task for task in state.tasks.values() if task.id >> CLIENT_SHIFT == client.number)
    return [task for task in found if not isinstance(task, Again)]
