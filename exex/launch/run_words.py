"""The command line of `python -m exex.run`, without click: every rank reads it, and click is a third of what a guard imports.

Only what is written as it should be is understood here. Everything else is for `exex.cli`, which knows how to complain.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from exex.config import Config
from exex.errors import ConfigError
from exex.launch.hand_over import CLIENT_SOCKET

Command = tuple[Config, str, list[str]]


def read_command(words: Sequence[str], env: Mapping[str, str]) -> Command | None:
    """Settings, the script, and its arguments; None if that is not plain to see."""
    read = _read(words)
    if read is None:
        return None
    flags, rest = read
    file = flags.pop("config", None)
    try:
        config = Config.load(file if isinstance(file, str) else None, env, flags)
    except ConfigError:
        return None
    is_there = CLIENT_SOCKET in env or os.path.isfile(rest[0])  # a program's own name, or a script
    return (config, rest[0], list(rest[1:])) if is_there else None


def _read(words: Sequence[str]) -> tuple[dict[str, object], Sequence[str]] | None:
    """Values of options by field, and the words from the script on."""
    kinds = {"--config": ("config", "text")}
    for field in Config.fields_help():
        kinds[field.option] = (field.name, field.kind)
        if field.kind == "bool":
            kinds[f"--no-{field.option.removeprefix('--')}"] = (field.name, "no")
    flags: dict[str, object] = {}
    at = 0
    while at < len(words):
        word, at = words[at], at + 1
        if word == "--" or not word.startswith("-"):
            rest = words[at if word == "--" else at - 1 :]
            return (flags, rest) if rest else None
        option, equals, value = word.partition("=")
        if option not in kinds:
            return None
        name, kind = kinds[option]
        if kind in ("bool", "no"):
            if equals:
                return None
            flags[name] = kind == "bool"
            continue
        if not equals:
            if at == len(words):
                return None
            value, at = words[at], at + 1
        flags[name] = f"{flags[name]},{value}" if kind == "words" and name in flags else value
    return None
