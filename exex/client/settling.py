"""Outcomes for many futures at once. Runs in the client, in whatever thread has the turn to talk with the manager.

Callbacks are not called here, since they may do anything: futures that have some are put on a list, for the proxy thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures._base import FINISHED, PENDING, RUNNING
from typing import Any

from exex.client import lazy
from exex.client.lazy import OPEN, LazyFuture


def finish_all(futures: Iterable[LazyFuture | None], raws: Iterable[Any], ended: list[LazyFuture]) -> int:
    """Give futures their outcomes; those that are None or settled already stay as they are.

    Args:
        raws: payloads of values, or `Failed`.
        ended: takes the futures that have callbacks.

    Returns:
        Bytes of their calls.
    """
    released = 0
    attended = []
    now_s = time.monotonic()
    with lazy._lock:
        for future, raw in zip(futures, raws):
            if future is None:
                continue
            if type(future._raw) is int:
                released += future._raw
            if future._rare is None and future._state in OPEN:
                future._raw = raw
                future._ended_s = now_s
                future._state = FINISHED
            else:
                attended.append((future, raw))
    for future, raw in attended:
        settle(future, FINISHED, raw, ended)
    return released


def settle(future: LazyFuture, state: str, raw: Any, ended: list[LazyFuture]) -> bool:
    """Give one future its final state, and wake who waits for it. False if it has one already."""
    if not future._move(state, raw):
        return False
    rare = future._rare
    if rare is not None:
        future._wake()
        if rare.callbacks:
            ended.append(future)
    return True


def mark_running(future: LazyFuture) -> None:
    """The manager has seen the task run."""
    with lazy._lock:
        if future._state == PENDING:
            future._state = RUNNING
            if future._rare is not None:
                for numbers in future._rare.running_in:
                    numbers.add(future._tid)
