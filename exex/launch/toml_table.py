"""Reading a TOML file key by key: whatever is not understood is an error that names file and key. Pure."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from exex.errors import ConfigError

_REQUIRED: Any = object()


def read_table(path: str, text: str) -> Table:
    """The top of a file.

    Args:
        path: for messages.
        text: what the file holds.

    Raises:
        ConfigError: it is no TOML.
    """
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # the same, before 3.11
    try:
        return Table(path, "", toml.loads(text))
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


class Table:
    """One table of a file. Getters take a key and a default; without a default the key must be there.

    Raises:
        ConfigError: from every getter: a key that is missing, or has a value of another kind.
    """

    def __init__(self, path: str, name: str, values: Mapping[str, Any]) -> None:
        self.path = path
        self._name = name
        self._values = values
        self._known: list[str] = []

    def __iter__(self) -> Iterator[str]:
        """All keys, where they may be any."""
        return iter(self._values)

    def wrong(self, key: str, problem: str) -> ConfigError:
        """An error about a key."""
        return ConfigError(f"{self.path}: {self._full(key)} {problem}")

    def refuse_unknown(self) -> None:
        """An error if the table has a key that no getter has asked for."""
        for key in self._values:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1, cutoff=0.0)
                hint = f"; the nearest is '{self._full(near[0])}'" if near else ""
                raise ConfigError(f"{self.path}: unknown key '{self._full(key)}'{hint}")

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """Text that is not empty."""
        return str(self._get(key, default, "text", lambda value: isinstance(value, str) and bool(value)))

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        return bool(self._get(key, default, "true or false", lambda value: isinstance(value, bool)))

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """An integer, at least 0."""

        def fits(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0

        return self._get(key, default, "an integer, at least 0", fits)

    def choice(self, key: str, choices: Sequence[str], default: Any = _REQUIRED) -> Any:
        """One of the choices."""
        return self._get(key, default, _either(choices), lambda value: value in choices)

    def texts(
        self, key: str, default: Any = _REQUIRED, *, choices: Sequence[str] = (), is_text_enough: bool = False
    ) -> tuple[str, ...]:
        """A list of texts that are not empty.

        Args:
            choices: what they can be, if that is limited.
            is_text_enough: one text stands for a list of one.
        """
        if is_text_enough and isinstance(self._values.get(key), str):
            return (self.text(key),)

        def fits(value: Any) -> bool:
            words = value if isinstance(value, list) else [None]
            return all(isinstance(word, str) and word and (not choices or word in choices) for word in words)

        accepted = f"a list of {_either(choices)}" if choices else "a list of texts"
        return tuple(self._get(key, default, accepted, fits))

    def variables(self, key: str) -> dict[str, str]:
        """A table of texts; empty without the key."""

        def fits(value: Any) -> bool:
            return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())

        return dict(self._get(key, {}, "a table of names and texts", fits))

    def read(self, key: str, reader: Callable[[object], Any], default: Any = _REQUIRED) -> Any:
        """What `reader` makes of the value; it raises ValueError with what it accepts instead. A default is taken as it is."""
        self._known.append(key)
        if key not in self._values:
            if default is _REQUIRED:
                raise ConfigError(f"{self.path}: the key '{self._full(key)}' is missing")
            return default
        try:
            return reader(self._values[key])
        except ValueError as error:
            raise self.wrong(key, f"is {self._values[key]!r}; accepted: {error}") from None

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return key in self._values

    def names(self) -> list[str]:
        """All keys, in the order of the file; for tables whose keys anybody may choose."""
        self._known += self._values
        return list(self._values)

    def entries(self, key: str, *, is_required: bool) -> list[Any]:
        """A list of anything."""
        value = self._get(key, _REQUIRED if is_required else [], "a list", lambda value: isinstance(value, list))
        return list(value)

    def table(self, key: str) -> Table:
        """A table; an empty one without the key."""
        return self.inner(key, self._get(key, {}, "a table", lambda value: isinstance(value, dict)))

    def inner(self, key: str, value: object) -> Table:
        """A table that is found elsewhere than under a key: in a list."""
        if not isinstance(value, dict):
            raise self.wrong(key, f"is {value!r}; accepted: text, or a table")
        return Table(self.path, self._full(key), value)

    def _full(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def _get(self, key: str, default: Any, accepted: str, fits: Callable[[Any], bool]) -> Any:
        self._known.append(key)
        if key not in self._values:
            if default is _REQUIRED:
                raise ConfigError(f"{self.path}: the key '{self._full(key)}' is missing; it wants {accepted}")
            return default
        value = self._values[key]
        if not fits(value):
            raise self.wrong(key, f"is {value!r}; accepted: {accepted}")
        return value


def _either(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
