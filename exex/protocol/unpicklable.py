"""Says what cannot be pickled: which argument of a call, and which part of it. Costs several picklings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exex.protocol.payload import can_pickle


def explain_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Name the argument, and the innermost part of it that can be found, that cannot be pickled."""
    for name, value in [
        *((f"argument {i}", arg) for i, arg in enumerate(args)),
        *((f"argument {k!r}", v) for k, v in kwargs.items()),
    ]:
        if not can_pickle(value):
            return explain_value(name, value)
    return "an argument"


def explain_value(name: str, value: object) -> str:
    """`name` followed by the way to the innermost part of `value` that cannot be pickled."""
    for _ in range(20):
        parts = list(_parts(value))
        at = first_unpicklable([part for _, part in parts])
        if at is None:
            break
        name, value = name + parts[at][0], parts[at][1]
    return f"{name} of type {type(value).__name__}"


def first_unpicklable(values: list[Any]) -> int | None:
    """Index of the first value that cannot be pickled. Cost: that of pickling all of them about twice."""
    if can_pickle(values):
        return None
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        if can_pickle(values[low:middle]):
            low = middle
        else:
            high = middle
    return None if can_pickle(values[low]) else low


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"[{key!r}]", part
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield f"[{i}]", part
    elif isinstance(value, (set, frozenset)):
        for part in value:
            yield "{}", part
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for key, part in vars(value).items():
            yield f".{key}", part
