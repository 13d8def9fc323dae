"""Clients in task processes: whose tasks theirs are, and what becomes of them. Pure.

A task process is one client for all tasks that it runs, one after the other; at any time its unfinished tasks are those that
the running one has made. They end with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exex.protocol.messages import TaskId
from exex.protocol.task_numbers import INNER, MOST_CLIENTS

if TYPE_CHECKING:
    from exex.manager.state import ClientRecord, ManagerState
    from exex.manager.task import App, Task


class Inner:
    """Of one such client.

    Attributes:
        rank: of its worker.
        parent: the task that its process runs, as far as it has said something; -1 if none.
        root: number of the client that has, in the end, caused what it does: its tasks take turns as that one's.
        depth: of the parent.
        open: its unfinished tasks.
    """

    __slots__ = ("depth", "open", "parent", "rank", "root")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.parent: TaskId = -1
        self.root = -1
        self.depth = 0
        self.open: dict[TaskId, None] = {}


class InnerApp:
    """An app that such clients share, and how many of them."""

    __slots__ = ("app", "users")

    def __init__(self, app: App) -> None:
        self.app = app
        self.users = 1


def next_number(state: ManagerState) -> int:
    """Of a new client in a task process. Those of clients that are gone come again after some millions."""
    while True:
        number = state.next_inner
        state.next_inner = number + 1 if number + 1 < MOST_CLIENTS else INNER + 1
        if number not in state.clients:
            return number


def root_of(state: ManagerState, client: int) -> int:
    """The client that has caused what this one does."""
    record = state.clients.get(client)
    return client if record is None or record.inner is None else record.inner.root


def on_new(client: ClientRecord, new: list[Task]) -> None:
    """New tasks of this client: deeper than the one that makes them, so that what is begun is brought to an end."""
    inner = client.inner
    assert inner is not None
    inner.open.update((task.id, None) for task in new)
    for task in new:
        task.depth = inner.depth + 1
