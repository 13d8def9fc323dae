"""What `exex clients`, `cancel`, `submit-call` and `shutdown` do. Runs in a client of a moment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from exex.client.apps import PythonApp
from exex.client.connect import connect, order
from exex.errors import ConfigError, ManagerLost
from exex.protocol.messages import ClientRow, Order
from exex.protocol.named import call_named
from exex.version import __version__

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def clients_table(file: str, address: str = "") -> str:
    """All clients of a job, one a line.

    Raises:
        ConfigError, StartError: see `order`.
    """
    rows = order(file, Order(version=__version__, what="clients"), address=address).clients
    lines: list[tuple[str, ...]] = [("CLIENT", "NAME", "PROGRAM", "HOST", "PID", "STATE", "UNFINISHED", "UNCOLLECTED")]
    lines += [_row(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() for line in lines)


def _row(row: ClientRow) -> tuple[str, ...]:
    state = "attached" if row.attached else "away"
    return (
        str(row.number),
        row.name or "-",
        row.title or "-",
        row.host or "-",
        str(row.pid) if row.pid else "-",
        f"{state}, full" if row.paused else state,
        str(row.unfinished),
        f"{row.uncollected} ({_size(row.uncollected_bytes)})" if row.uncollected else "0",
    )


def _size(size: float) -> str:
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_UNITS[unit]}"


def cancel(file: str, client: str, tasks: Sequence[int], address: str = "") -> int:
    """Cancel tasks, and return how many there were.

    Raises:
        ConfigError: no such client, or which one is not clear.
        StartError: see `order`.
    """
    answer = order(file, Order(version=__version__, what="cancel", client=client, tasks=list(tasks)), address=address)
    if answer.error:
        raise ConfigError(answer.error)
    return answer.cancelled


def shutdown(file: str, now: bool, address: str = "") -> int:
    """End a job without a script, when its tasks are done or at once. Returns how many tasks it has.

    Raises:
        ConfigError: it runs a script.
        StartError: see `order`.
    """
    answer = order(file, Order(version=__version__, what="shutdown", cancel=now), address=address)
    if answer.error:
        raise ConfigError(answer.error)
    return sum(row.unfinished for row in answer.clients)


def submit_call(file: str, function: str, words: Sequence[str], *, name: str, detach: bool, tag: str, address: str = "") -> str:
    """Call `module:function`, which is imported where it runs.

    Args:
        words: arguments: JSON where they are that, else text.
        detach: do not wait.

    Returns:
        What it returned, as text; its task number if nobody waits.

    Raises:
        ConfigError: no such name can be.
        Exception: what it raised.
    """
    module, _, path = function.partition(":")
    if not all(part.isidentifier() for part in f"{module}.{path}".split(".")):
        raise ConfigError(f"{function} names no function: write it as package.module:function")
    app = PythonApp(call_named)
    app.__name__ = function
    with connect(file, name, detach, address=address) as client:
        options = {"tag": tag} if tag else {}
        future = app(function, *map(_argument, words), **options)
        if detach:
            client.close()
            return str(future.tid)
        return _text(future.result())


def results(file: str, name: str, address: str = "") -> list[tuple[int, str, str, str]]:
    """Number, app, tag, and result of each task that a detached client has left; waits for all. They are collected then."""
    found = []
    with connect(file, name, True, address=address) as client:
        for future in client.futures():
            error = future.exception()
            if isinstance(error, ManagerLost):
                raise error
            text = _text(future.result()) if error is None else f"{type(error).__name__}: {error}"
            found.append((future.tid, future.app_name, str(getattr(future, "tag", "")), text))
    return found


def _argument(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
