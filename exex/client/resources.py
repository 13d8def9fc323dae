"""What a call asks for of the machine: cores, accelerators, nodes. Runs in the client.

Of what is said twice, the argument of the call goes before Parsl's resource specification, and that before the decorator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from exex.errors import InvalidResourceSpecification
from exex.protocol.checks import MOST_GPUS, MOST_MEMORY_BYTES, MOST_NODES, MOST_RANKS, MOST_SLOTS
from exex.protocol.messages import AppSpec, NodeShape
from exex.protocol.request import impossible, request_of

MEGABYTE = 1024**2
"""What Parsl's resource specifications count memory in."""

_COUNTS = {"cores": (1, MOST_SLOTS), "gpus": (0, MOST_GPUS), "nodes": (0, MOST_NODES)}
"""Least and most."""

_RANKS = ("num_ranks", "ranks_per_node")
_KEYS = {"priority", "memory", "cores", "gpus", "num_nodes", "launcher_options", *_RANKS}


class Resources(NamedTuple):
    """As `AppSpec` has it: cores are 0 where nothing is said."""

    cores: int = 0
    gpus: int = 0
    nodes: int = 0
    exclusive: bool = False
    ranks: int = 0
    every_rank: bool = False
    own_world: bool = False


NOTHING = Resources()


def check_resources(cores: Any = None, gpus: Any = None, nodes: Any = None, exclusive: Any = None) -> Resources:
    """What was asked for, if it can be used; None means nothing was said.

    Raises:
        TypeError: no int; `exclusive` no bool.
        ValueError: out of range.
    """
    given = {"cores": cores, "gpus": gpus, "nodes": nodes}
    for name, (least, most) in _COUNTS.items():
        number = given[name]
        if number is not None and type(number) is not int:
            raise TypeError(f"{name} must be an int, not {number!r}")
        if number is not None and not least <= number <= most:
            raise ValueError(f"{name} must be from {least} to {most}, but it is {number}")
    if exclusive is not None and type(exclusive) is not bool:
        raise TypeError(f"exclusive must be True or False, not {exclusive!r}")
    return Resources(cores or 0, gpus or 0, nodes or int(bool(exclusive)), bool(exclusive))


def check_ranks(name: str, ranks: Any, most: int = MOST_RANKS) -> int:
    """A number of ranks, if it can be used.

    Args:
        name: of the argument.

    Raises:
        TypeError: no int.
        ValueError: out of range.
    """
    if type(ranks) is not int:
        raise TypeError(f"{name} must be an int, not {ranks!r}")
    if not 1 <= ranks <= most:
        raise ValueError(f"{name} must be from 1 to {most}, but it is {ranks}")
    return ranks


def check_memory(memory: Any) -> int | None:
    """`memory` in bytes if it can be used; None means no limit.

    Raises:
        TypeError: no int.
        ValueError: not positive, or more than any machine has.
    """
    if memory is None:
        return None
    if type(memory) is not int:
        raise TypeError(f"memory must be an int, in bytes, not {memory!r}")
    if not 0 < memory <= MOST_MEMORY_BYTES:
        raise ValueError(f"memory must be a positive number of bytes, at most {MOST_MEMORY_BYTES}, but it is {memory}")
    return memory


class Specification:
    """Parsl's `parsl_resource_specification`, as far as it means something here.

    Raises:
        TypeError: no dict.
        InvalidResourceSpecification: unknown keys, or impossible values.
    """

    def __init__(self, given: Any) -> None:
        if not isinstance(given, Mapping):
            raise TypeError(f"parsl_resource_specification must be a dict, not {given!r}")
        unknown = set(given) - _KEYS
        if unknown:
            known = ", ".join(sorted(map(repr, _KEYS)))
            raise InvalidResourceSpecification(unknown, f"exex knows {known}")
        for name in ("memory", "cores", "num_nodes", *_RANKS):
            if name in given and (type(given[name]) is not int or given[name] <= 0):
                what = "a positive int, in MB" if name == "memory" else "a positive int"
                raise InvalidResourceSpecification({name}, f"it must be {what}, not {given[name]!r}")
        if "gpus" in given and (type(given["gpus"]) is not int or given["gpus"] < 0):
            raise InvalidResourceSpecification({"gpus"}, f"it must be an int, not {given['gpus']!r}")
        if type(given.get("priority", 0)) is not int:
            raise InvalidResourceSpecification({"priority"}, f"it must be an int, not {given['priority']!r}")
        self._given = given

    def values(self) -> dict[str, Any]:
        """What it says, under our names."""
        given = self._given
        found = {name: given[name] for name in ("priority", "cores", "gpus") if name in given}
        if "memory" in given:
            found["memory"] = given["memory"] * MEGABYTE
        if "num_nodes" in given or any(name in given for name in _RANKS):
            found["nodes"] = self._nodes()
        return found

    def _nodes(self) -> int:
        given = self._given
        if "num_nodes" in given:
            return int(given["num_nodes"])
        ranks: int = given.get("num_ranks", 1)
        per_node: int = given.get("ranks_per_node", ranks)
        return max(1, ranks // per_node)

    def ranks(self) -> dict[str, Any] | None:
        """Of an MPI program: `ranks`, `ranks_per_node` (either is derived) and `launcher_options`; None if there is none."""
        given = self._given
        if not any(name in given for name in (*_RANKS, "launcher_options")):
            return None
        nodes = self._nodes()
        per_node = given.get("ranks_per_node", given.get("num_ranks", nodes) // nodes)
        ranks = given.get("num_ranks", nodes * per_node)
        if ranks != nodes * per_node:
            raise InvalidResourceSpecification(
                set(_RANKS) | {"num_nodes"}, f"{nodes} nodes with {per_node} ranks each are {nodes * per_node} ranks, not {ranks}"
            )
        found = {"ranks": ranks, "ranks_per_node": per_node}
        return found | ({"launcher_options": str(given["launcher_options"])} if "launcher_options" in given else {})


def check_possible(spec: AppSpec, nodes: Sequence[NodeShape]) -> None:
    """Raises:
    InvalidResourceSpecification: no node, or not enough nodes, can ever meet what these calls ask for.
    """
    request = request_of(spec, nodes)
    if request is not None and nodes:
        error = impossible(spec.name, request, nodes, ranks=spec.ranks)
        if error is not None:
            raise error
