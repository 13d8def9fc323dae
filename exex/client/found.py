"""Futures of tasks that an earlier client of the same name has left. Runs in the client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exex.client.futures import AppFuture
from exex.client.outbox import Outbox
from exex.client.outcomes import Call
from exex.protocol.messages import Found


class FoundFuture(AppFuture):
    """As the AppFuture that the earlier client had.

    Attributes:
        tag: what that client has called the task by `tag=`; "" if nothing.
    """

    __slots__ = ("tag",)

    tag: str


def find_again(proxy: Any, found: Sequence[Found], outbox: Outbox) -> list[AppFuture]:
    """A future for each, which the manager answers as if it had been submitted here."""
    calls: dict[str, Call] = {}
    futures: list[AppFuture] = []
    for task in found:
        call = calls.get(task.app)
        if call is None:
            call = calls[task.app] = Call(proxy, -1, task.app)
        future = FoundFuture(call, task.task, b"")
        future.tag = task.tag
        future._raw = 0  # its call is not here any more
        futures.append(future)
        outbox.unfinished[task.task] = future
    outbox.taken += len(futures)
    return futures
