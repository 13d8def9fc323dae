"""Keys of cached calls, as far as the client can make them. Runs in the client.

A key says: this function, with these arguments, in this version. Of futures among the arguments it has the place only;
the manager adds the digests of their values when they are there.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from exex.client import digests
from exex.client.futures import DataFuture
from exex.client.options import Team
from exex.client.outbox import Given
from exex.client.promises import dump_call, promised_for
from exex.client.undigestible import Undigestible, explain
from exex.errors import CacheKeyError, ConfigError
from exex.files.file import File
from exex.protocol.messages import CacheKey

_FORMAT = 1
"""Of keys. A new number makes every recorded result a stranger."""

_NOT_PART = frozenset(
    ("retries", "priority", "walltime", "parsl_resource_specification", "outputs", *("memory", "cores", "gpus", "nodes"))
) | {"exclusive", "affinity"}
"""Special arguments that do not change what a call returns; outputs count by their absolute paths."""


class KeyMaker:
    """Makes the keys of the calls of one app.

    Args:
        kind: of the app.
        version: set by the user.
        ignored: names of arguments that do not count.
        team: of a function on a communicator, which is its first argument, and no part of the key but for its size.

    Raises:
        CacheKeyError: the function uses something that can neither be digested nor pickled.
        ConfigError: the function has no argument of a name in `ignored`.
    """

    def __init__(  # noqa: PLR0917
        self,
        name: str,
        function: Callable[..., Any],
        kind: int,
        version: Any,
        ignored: Sequence[str],
        team: Team | None = None,
    ) -> None:
        self._name = name
        self._ignored = frozenset(ignored)
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # a builtin that tells nothing
            parameters = []
        if team is not None:
            del parameters[:1]
        kinds = inspect.Parameter
        takes_any = not parameters or any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters)
        unknown = self._ignored - {parameter.name for parameter in parameters}
        if unknown and not takes_any:
            names = ", ".join(sorted(unknown))
            raise ConfigError(f"app {name}: ignore_for_cache names {names}, which the function does not have")
        self._positions = [
            parameter.name for parameter in parameters if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        ]
        self._marks = [name.encode() for name in self._positions]
        rest = next((parameter.name for parameter in parameters if parameter.kind is kinds.VAR_POSITIONAL), "")
        self._ignores_rest = rest in self._ignored
        try:
            versioned = digests.canonical(version)
        except Undigestible as error:
            raise CacheKeyError(explain(f"app {name}: version", error)) from None
        of_team = [] if team is None else [b"%d ranks, %d values" % (team.ranks, team.ranks if team.every_rank else 1)]
        self._prefix = digests.hash_of(
            b"exex key %d" % _FORMAT, b"%d" % kind, digests.canonical_function(function), versioned, *of_team
        )

    def simple(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes | None:
        """The key of a call whose arguments are numbers and strings, the usual case; None for others."""
        if kwargs or self._ignored or len(args) > len(self._marks) or not digests.ATOMS.issuperset(map(type, args)):
            return None
        parts = [self._prefix]
        for mark, value in zip(self._marks, args):
            parts.append(mark)
            parts.append(digests.atom(value))
        return digests.hash_of(*parts)

    def make(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        needs: Sequence[Any],
        options: Mapping[str, Any] | None = None,
        outputs: Sequence[File] = (),
    ) -> CacheKey:
        """The key of a call.

        Args:
            args, kwargs: as the user gave them.
            needs: futures of the call, in the order of their places.
            options: what the task process does around the call.
            outputs: files that the call declares.

        Raises:
            CacheKeyError: names the argument that cannot be digested.
        """
        named = self._named(args, kwargs)
        places = {id(need): place for place, need in reversed(list(enumerate(needs)))}
        parts = [self._prefix]
        for name, value in named:
            if name in self._ignored or name in _NOT_PART:
                continue
            parts.append(name.encode())
            try:
                parts.append(digests.canonical(value, lambda future: _stand_for(future, places)))
            except Undigestible as error:
                raise CacheKeyError(f"app {self._name} has cache=True, and " + explain(_argument(name), error)) from None
        files: list[str] = []
        if options or outputs:
            surroundings = {name: value for name, value in (options or {}).items() if name in ("cwd", "env")}
            base = surroundings.get("cwd") or os.getcwd()
            files = [os.path.join(base, file.filepath) for file in outputs]
            parts += [b"around it", digests.canonical([surroundings, files])]
        ignored = self._ignored_places(named, needs) if needs and self._ignored else []
        ignored += [place for place, need in enumerate(needs) if type(need) is Given]  # what was broadcast is in the key already
        return CacheKey(digests.hash_of(*parts), ignored, files)

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Arguments by name, in the order of the signature: `f(1, b=2)` and `f(1, 2)` are one call."""
        named = dict(zip(self._positions, args))
        rest = args[len(self._positions) :]
        given = {name: kwargs[name] for name in self._positions if name in kwargs and name not in named}
        others = {name: kwargs[name] for name in sorted(kwargs) if name not in given}
        found = [*named.items(), *given.items()]
        if rest and not self._ignores_rest:
            found.append(("*", rest))
        return found + [(name if name not in named else f"**{name}", value) for name, value in others.items()]

    def _ignored_places(self, named: Sequence[tuple[str, Any]], needs: Sequence[Any]) -> list[int]:
        """Places of the needs that are found in ignored arguments only."""
        counted = tuple(value for name, value in named if name not in self._ignored)
        found = set(map(id, dump_call(counted, {}, None)[1]))
        return [place for place, need in enumerate(needs) if id(need) not in found]


def _argument(name: str) -> str:
    return "an argument in *args" if name == "*" else f"argument {name!r}"


def _stand_for(future: Future[Any], places: Mapping[int, int]) -> bytes:
    """A future by the first place that it has among the needs, and the file that its place is filled with."""
    place = places.get(id(future))
    if place is None:
        promised = promised_for(future)
        place = None if promised is None else places.get(id(promised))
    if place is None:
        raise Undigestible(future, "it is not among the needs of the call")
    file = future.file_obj.url if isinstance(future, DataFuture) else ""
    return b"%d:" % place + file.encode()
