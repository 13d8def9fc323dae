"""Readers of values in machine files: each returns the value as we hold it, or raises ValueError with what it accepts. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from exex.config import parse_duration
from exex.errors import ConfigError

Reader = Callable[[object], Any]


def integer(least: int) -> Reader:
    """An integer, `least` or more."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"an integer, at least {least}")
        return value

    return read


def number(value: object) -> float:
    """A number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError("a number above 0")
    return value


def text(value: object) -> str:
    """Text of one line."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("text of one line")
    return value


def texts(value: object) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, list) or not all(isinstance(each, str) and each and each.isprintable() for each in value):
        raise ValueError("a list of texts of one line each")
    return tuple(value)


def named_texts(value: object) -> dict[str, str]:
    """A table whose keys are names of variables, and whose values are texts."""
    if not isinstance(value, dict) or not all(re.fullmatch(r"[A-Za-z_]\w*", name) for name in value):
        raise ValueError("a table of names with texts")
    for each in value.values():
        text(each)
    return dict(value)


def variable(value: object) -> str:
    """The name of a variable of the environment."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_]\w*", value):
        raise ValueError("the name of a variable")
    return value


def pattern(value: object) -> str:
    """A regular expression."""
    try:
        re.compile(text(value))
    except (ValueError, re.error):
        raise ValueError("a regular expression") from None
    return str(value)


def duration(value: object) -> float:
    """Seconds, from text such as "24:00:00"."""
    try:
        return parse_duration(text(value))
    except (ValueError, ConfigError):
        raise ValueError('a duration as text, such as "24:00:00"') from None


def steps(value: object) -> tuple[tuple[int, float], ...]:
    """Pairs of a number of nodes and a duration, by rising numbers."""
    try:
        pairs = [(integer(1)(nodes), duration(limit)) for nodes, limit in value]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or sorted({nodes for nodes, _ in pairs}) != [nodes for nodes, _ in pairs]:
        raise ValueError('a list of [nodes, "HH:MM:SS"], by rising numbers of nodes')
    return tuple(pairs)
