"""What a launcher is to start where, and its parts as a launcher spells them. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from exex.errors import ConfigError

HostStyle = Literal["names", "names:ranks", "nids", "offset"]
"""How hosts are spelled: `a,b`; `a:2,b:2`; `3834,3837-3840`; the number of the first rank's place in the job."""

TimeUnit = Literal["seconds", "minutes", "hh:mm:ss"]

Uneven = Literal["no", "packed", "spread"]
"""Ranks that do not fill all nodes: refused; nodes are filled one after the other; every node gets at least one."""

HOST_STYLES: tuple[str, ...] = get_args(HostStyle)
TIME_UNITS: tuple[str, ...] = get_args(TimeUnit)
UNEVEN: tuple[str, ...] = get_args(Uneven)

_NOTHING: Mapping[str, str] = MappingProxyType({})
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_NID = re.compile(r"(?:nid)?(\d+)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Layout(NamedTuple):
    """What is to be started where."""

    nodes: int
    ranks_per_node: int
    cores_per_rank: int = 1
    gpus_per_rank: int = 0
    hosts: tuple[str, ...] = ()
    """Exactly these, lead first; () for all of the allocation."""
    ranks: int | None = None
    """None: nodes * ranks_per_node."""
    threads_per_core: int = 1
    bind: bool = True
    """Each rank to cores of its own. Two sub-tasks on one node that are both bound may get the same cores."""
    env: Mapping[str, str] = _NOTHING
    """Set for the program, besides what the launcher hands on."""
    walltime_s: float | None = None
    """None: no limit."""
    allocation: tuple[str, ...] = ()
    """All nodes of the job in the batch system's order, for a launcher that counts them (ibrun)."""

    @property
    def all_ranks(self) -> int:
        """Ranks on all nodes together."""
        return self.nodes * self.ranks_per_node if self.ranks is None else self.ranks


def check_layout(launcher: str, layout: Layout) -> None:
    """Refuse what no launcher can start.

    Args:
        launcher: begins the message.

    Raises:
        ConfigError: a number or name that is none, or hosts that are not as many as the nodes.
    """

    def refuse(problem: str) -> None:
        raise ConfigError(f"{launcher}: {problem}")

    for name in ("nodes", "ranks_per_node", "cores_per_rank", "threads_per_core"):
        if getattr(layout, name) < 1:
            refuse(f"{name} is {getattr(layout, name)}; accepted: an integer, at least 1")
    if layout.gpus_per_rank < 0:
        refuse(f"gpus_per_rank is {layout.gpus_per_rank}; accepted: an integer, at least 0")
    if layout.walltime_s is not None and not 0 < layout.walltime_s < math.inf:
        refuse(f"walltime_s is {layout.walltime_s}; accepted: seconds, more than 0, or None")
    for host in (*layout.hosts, *layout.allocation):
        if not _HOST.fullmatch(host):
            refuse(f"{host!r} is no host name")
    if layout.hosts and len(layout.hosts) != layout.nodes:
        refuse(f"{len(layout.hosts)} hosts for {layout.nodes} nodes: {', '.join(layout.hosts)}")
    if len(set(layout.hosts)) != len(layout.hosts):
        refuse(f"a host twice among {', '.join(layout.hosts)}")
    for name, value in layout.env.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            refuse(f"the variable {name!r} cannot be set to {value!r}")


def check_ranks(launcher: str, layout: Layout, uneven: Uneven) -> None:
    """Refuse ranks that would leave a node empty, or that do not fit.

    Raises:
        ConfigError: as said.
    """
    ranks, places = layout.all_ranks, layout.nodes * layout.ranks_per_node
    least = {"no": places, "packed": places - layout.ranks_per_node + 1, "spread": layout.nodes}[uneven]
    if not least <= ranks <= places:
        room = f"exactly {places}" if least == places else f"{least} to {places}"
        raise ConfigError(
            f"{launcher}: {ranks} ranks cannot be placed on {layout.nodes} nodes with {layout.ranks_per_node} on each; "
            f"accepted: {room}"
        )


def spell_hosts(launcher: str, layout: Layout, style: HostStyle) -> str:
    """The layout's hosts in one word.

    Raises:
        ConfigError: hosts that this style cannot name.
    """
    if style == "nids":
        return _nid_ranges([_nid(launcher, host) for host in layout.hosts])
    if style == "offset":
        return str(_first_node(launcher, layout) * layout.ranks_per_node)
    slots = f":{layout.ranks_per_node}" if style == "names:ranks" else ""
    return ",".join(host + slots for host in layout.hosts)


def spell_walltime(walltime_s: float, unit: TimeUnit) -> str:
    """A time limit, rounded up to the unit."""
    seconds = math.ceil(walltime_s)
    if unit == "hh:mm:ss":
        return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return str(seconds if unit == "seconds" else math.ceil(seconds / 60))


def _nid(launcher: str, host: str) -> int:
    match = _NID.fullmatch(host)
    if match is None:
        raise ConfigError(f"{launcher}: the host {host} is no node number of ALPS, such as nid00012 or 12")
    return int(match[1])


def _nid_ranges(nids: Sequence[int]) -> str:
    """Neighbours that follow one another as a range: 3834,3837-3840."""
    runs: list[list[int]] = []
    for nid in nids:
        if runs and nid == runs[-1][-1] + 1:
            runs[-1].append(nid)
        else:
            runs.append([nid])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _first_node(launcher: str, layout: Layout) -> int:
    """Where in the allocation the hosts begin."""
    if not layout.allocation:
        raise ConfigError(f"{launcher} counts nodes, so it must know all nodes of the job (Layout.allocation) to find hosts")
    lost = [host for host in layout.hosts if host not in layout.allocation]
    if lost:
        raise ConfigError(f"{launcher}: {', '.join(lost)} is no node of the job, which has {', '.join(layout.allocation)}")
    first = layout.allocation.index(layout.hosts[0])
    if layout.allocation[first : first + layout.nodes] != layout.hosts:
        raise ConfigError(
            f"{launcher} counts nodes, so hosts must be neighbours in the job's order; {', '.join(layout.hosts)} are not "
            f"among {', '.join(layout.allocation)}"
        )
    return first
