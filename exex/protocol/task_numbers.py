"""What people call a task. Pure.

A client counts its tasks from 0, and the manager puts the client's number above `CLIENT_SHIFT`. Most people have one client, and
see its own numbers. Task processes are clients as well, of which there are many: what one of them has made is called 12.7, and no
other task of the job is.
"""

from __future__ import annotations

from exex.protocol.messages import CLIENT_SHIFT, TaskId

INNER = 1 << 20
"""Clients with higher numbers are task processes."""

MOST_CLIENTS = 1 << 23
"""Numbers of clients are below."""

_OWN = (1 << CLIENT_SHIFT) - 1


def shown(task: TaskId) -> int:
    """A task's number as its client counts, with that of its task process, from 1, above `CLIENT_SHIFT` if it has one."""
    return task & _OWN if task >> CLIENT_SHIFT <= INNER else task - (INNER << CLIENT_SHIFT)


def name_of(number: int) -> str:
    """The text of what `shown` returns."""
    process = number >> CLIENT_SHIFT
    return f"{process}.{number & _OWN}" if process > 0 else str(number)


def number_of(name: str) -> int:
    """What `shown` returns, from its text.

    Raises:
        ValueError: that is none.
    """
    process, _, own = name.rpartition(".")
    if not own.isdecimal() or not (process or "0").isdecimal() or ("." in name and not process):
        raise ValueError(f"{name!r} is no task; accepted: a number, as 7, or two, as 12.7")
    return (int(process or 0) << CLIENT_SHIFT) + int(own)


def prefix_of(client: int) -> str:
    """What stands before the numbers of a client's tasks."""
    return f"{client - INNER}." if client > INNER else ""
