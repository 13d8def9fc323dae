"""Command lines of stand-ins, parsed as the manuals of the real programs say, and refused where these know nothing of it."""

from __future__ import annotations

import re
from typing import NamedTuple


class Refused(Exception):
    """The real program would print this and end."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Option(NamedTuple):
    """One option.

    Attributes:
        names: all spellings, the first of which is the key.
        takes: words of its value: 0, 1, or "attached" for one that may be missing, and then only stands in the same word.
        is_list: it may be repeated.
        number: what it takes is an integer, at least this.
    """

    names: tuple[str, ...]
    takes: int | str = 1
    is_list: bool = False
    number: int | None = None


def parse(argv: list[str], options: list[Option]) -> tuple[dict[str, str | list[str]], list[str]]:
    """Options by their first name (without dashes), and the words of the program.

    `-x 1`, `-x1`, `--long 1` and `--long=1` are the same.

    Raises:
        Refused: an unknown option, a missing or superfluous value, no program.
    """
    by_name = {name: option for option in options for name in option.names}
    found: dict[str, str | list[str]] = {}
    rest = list(argv)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        option, value = _match(word, by_name)
        if value is None and option.takes == 1:
            if not rest:
                raise Refused(f"option {word} requires an argument")
            value = rest.pop(0)
        value = value or ""
        if option.number is not None and not (re.fullmatch(r"\d+", value) and int(value) >= option.number):
            raise Refused(f"invalid value for {word}: {value!r}")
        key = option.names[0].lstrip("-")
        if option.is_list:
            found.setdefault(key, []).append(value)  # type: ignore[union-attr]
        elif key in found:
            raise Refused(f"option {word} is given twice")
        else:
            found[key] = value
    if not rest:
        raise Refused("no program is named")
    return found, rest


def _match(word: str, by_name: dict[str, Option]) -> tuple[Option, str | None]:
    """The option, and its value if that is part of the word."""
    if word in by_name:
        option = by_name[word]
        return option, None
    name, sign, value = word.partition("=")
    if sign and name in by_name and name.startswith("--") and by_name[name].takes != 0:
        return by_name[name], value
    short = word[:2]
    if not word.startswith("--") and short in by_name and by_name[short].takes != 0:
        return by_name[short], word[2:]
    raise Refused(f"unrecognized option '{word}'")
