"""Machines: what the files in `configs/` say of them, checked. Pure but for reading the file.

Every key of a file is declared in `_MACHINE` and the tables below it, with what it accepts. Whatever is not understood is an
error that names file and key: a misspelt limit must not send a job of a thousand nodes to a queue that refuses it.
"""

from __future__ import annotations

import difflib
import importlib
import re
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from exex.errors import ConfigError
from exex.launch import data, keys
from exex.launch.batch import NO_SYSTEM, SYSTEMS, BatchSystem
from exex.launch.keys import Reader, read_table

_QUEUE_NAME = re.compile(r"[A-Za-z0-9][\w.@-]*")

FIELDS = ("nodes", "ranks_per_node", "ranks", "cores", "gpus", "walltime")
"""What directives may name in braces, besides the keys of `[site]`."""


class Accelerators(NamedTuple):
    """Those of one node."""

    kind: str
    names: tuple[str, ...]  # as `variable` has them
    variable: str  # masks all but those that it names
    by_launcher: bool = False  # a rank sees those that the launcher was asked for, and otherwise none


class Node(NamedTuple):
    """A node's shape; None and "" where the file does not tell."""

    cores: int | None = None
    usable_cores: int | None = None  # those that the system leaves to jobs
    threads_per_core: int = 1
    memory_bytes: int | None = None
    scratch: str = ""  # directory on its own disk; shell variables in it are expanded there
    accelerators: Accelerators | None = None


class Account(NamedTuple):
    """What a site's accounts look like."""

    required: bool = False
    pattern: str = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
    example: str = ""


class Queue(NamedTuple):
    """A queue and its limits; None for no limit that we know of."""

    name: str
    options: tuple[str, ...]  # directives that choose it
    node: Node
    default: bool = False
    nodes_least: int = 1
    nodes_most: int | None = None
    walltimes_s: tuple[tuple[int, float], ...] = ()  # (nodes from which on, most seconds), fewest nodes first; () for no limit
    directives: tuple[str, ...] = ()  # further ones that it needs
    chain: bool = True  # whether a job may submit the next one
    site: Mapping[str, str] = MappingProxyType({})  # over those of the machine

    def walltime_most_s(self, nodes: int) -> float | None:
        """The limit for a job of so many nodes."""
        limits = [limit_s for least, limit_s in self.walltimes_s if least <= nodes]
        return limits[-1] if limits else None


@dataclass(frozen=True, slots=True)
class Machine:
    """What a job script must know of a machine. Durations in seconds, sizes in bytes."""

    name: str
    path: str  # of its file
    description: str
    batch_system: str  # a key of `batch.SYSTEMS`, or "none"
    launcher: str  # name of a launcher file
    nodes: int | None
    retired: int | None  # the year
    request: tuple[str, ...]  # directives that ask for the nodes
    directives: tuple[str, ...]
    queue_option: str  # directive that chooses {queue}
    modules: tuple[str, ...]
    notes: tuple[str, ...]
    site: Mapping[str, str]  # values of fields of directives
    environment: Mapping[str, str]  # for the job script; shell variables in it are expanded there
    node: Node
    account: Account
    queues: Mapping[str, Queue]

    @property
    def system(self) -> BatchSystem:
        """Its batch system.

        Raises:
            ConfigError: it has none.
        """
        if self.batch_system == NO_SYSTEM:
            raise ConfigError(f"{self.name} has no batch system: start the job with `exex run`")
        return SYSTEMS[self.batch_system]

    def queue(self, name: str | None) -> Queue | None:
        """A queue by name; without a name the default, None if there is none. Where the file lists no queues, any will do.

        Raises:
            ConfigError: the file lists queues, and not this one; or it is no name at all.
        """
        if name is None:
            return next((queue for queue in self.queues.values() if queue.default), None)
        if name in self.queues:
            return self.queues[name]
        if self.queues:
            near = difflib.get_close_matches(name, self.queues, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{self.name} has no queue {name!r}; the nearest is {near!r}; all: {', '.join(self.queues)}")
        if not _QUEUE_NAME.fullmatch(name):
            raise ConfigError(f"--queue is {name!r}, which is no name of a queue")
        return Queue(name, options=(self.queue_option.format(queue=name),), node=self.node)


def machine_names(env: Mapping[str, str]) -> list[str]:
    """All machines that there are files of."""
    return data.names("configs", env)


def load_machine(name: str, env: Mapping[str, str]) -> Machine:
    """A machine by its name, or by the path of its file.

    Raises:
        ConfigError: there is no such file, or it says something that is not understood; it names file and key.
    """
    path, text = data.read("configs", name, env)
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        table = toml.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return _machine(name if "/" not in name else name.rpartition("/")[2].removesuffix(".toml"), path, table)


# ---- what a file may say ----

_NODE: dict[str, Reader] = {
    "cores": keys.integer(1),
    "usable_cores": keys.integer(1),
    "threads_per_core": keys.integer(1),
    "memory_gib": keys.number,
    "scratch": keys.text,
}
_ACCELERATORS: dict[str, Reader] = {"kind": keys.text, "names": keys.texts, "variable": keys.text, "by_launcher": keys.boolean}
_ACCOUNT: dict[str, Reader] = {"required": keys.boolean, "pattern": keys.pattern, "example": keys.text}
_QUEUE: dict[str, Reader] = {
    "default": keys.boolean,
    "nodes_least": keys.integer(1),
    "nodes_most": keys.integer(1),
    "walltime_most": keys.duration,
    "walltime_steps": keys.steps,
    "options": keys.texts,
    "directives": keys.texts,
    "chain": keys.boolean,
    "site": keys.named_texts,
    "node": keys.table,
    "accelerators": keys.table,
}
_MACHINE: dict[str, Reader] = {
    "description": keys.text,
    "batch_system": keys.choice(*SYSTEMS, NO_SYSTEM),
    "launcher": keys.text,
    "nodes": keys.integer(1),
    "retired": keys.integer(1950),
    "request": keys.texts,
    "queue_option": keys.text,
    "directives": keys.texts,
    "modules": keys.texts,
    "notes": keys.texts,
    "site": keys.named_texts,
    "environment": keys.named_texts,
    "node": keys.table,
    "accelerators": keys.table,
    "account": keys.table,
    "queues": keys.table,
}


# ---- from keys to a machine ----


def _machine(name: str, path: str, table: Mapping[str, object]) -> Machine:
    own = read_table(f"{path}: ", table, _MACHINE, ("description", "batch_system", "launcher"))
    top = own.values
    site = top.get("site", {})
    for field in site:
        if field in FIELDS:
            raise ConfigError(f"{own.key('site')}.{field}: {field} has a meaning of its own; choose another name")
    system = SYSTEMS.get(top["batch_system"])
    top.setdefault("queue_option", system.queue if system else "{queue}")
    _check_fields(f"{path}: queue_option", (top["queue_option"],), ("queue",))
    node = _node(f"{path}: ", top.get("node", {}), top.get("accelerators"))
    queues = {}
    for queue_name, queue_table in top.get("queues", {}).items():
        if not isinstance(queue_table, dict) or not _QUEUE_NAME.fullmatch(queue_name):
            raise ConfigError(f"{path}: queues.{queue_name} is {queue_table!r}; accepted: a table with a name without spaces")
        queues[queue_name] = _queue(f"{path}: queues.{queue_name}.", queue_name, queue_table, top)
    if sum(queue.default for queue in queues.values()) > 1:
        raise ConfigError(f"{path}: queues: more than one is the default")
    machine = Machine(
        name=name,
        path=path,
        description=top["description"],
        batch_system=top["batch_system"],
        launcher=top["launcher"],
        nodes=top.get("nodes"),
        retired=top.get("retired"),
        request=top.get("request", system.request if system else ()),
        directives=top.get("directives", ()),
        queue_option=top["queue_option"],
        modules=top.get("modules", ()),
        notes=top.get("notes", ()),
        site=site,
        environment=top.get("environment", {}),
        node=node,
        account=Account(**read_table(f"{path}: account.", top.get("account", {}), _ACCOUNT).values),
        queues=queues,
    )
    for key in ("request", "directives"):
        _check_fields(f"{path}: {key}", getattr(machine, key), (*FIELDS, *site))
    return machine


def _queue(where: str, name: str, table: Mapping[str, object], machine: Mapping[str, Any]) -> Queue:
    """One queue; what it says of nodes goes over what `machine`, the file's own keys, says."""
    read = read_table(where, table, _QUEUE)
    own = read.values
    least, most = own.get("nodes_least", 1), own.get("nodes_most")
    if most is not None and most < least:
        raise ConfigError(f"{read.key('nodes_most')} is {most}; accepted: at least nodes_least, {least}")
    if "walltime_most" in own and "walltime_steps" in own:
        raise ConfigError(f"{read.key('walltime_steps')}: accepted: this or walltime_most")
    site = machine.get("site", {})
    for field in own.get("site", {}):
        if field not in site:
            raise ConfigError(f"{read.key('site')}.{field} is no key of the machine's own site table")
    _check_fields(read.key("directives"), own.get("directives", ()), (*FIELDS, *site))
    merged = {**machine.get("node", {}), **own.get("node", {})}
    if "cores" in own.get("node", {}) and "usable_cores" not in own["node"]:
        merged.pop("usable_cores", None)
    return Queue(
        name=name,
        default=own.get("default", False),
        nodes_least=least,
        nodes_most=most,
        walltimes_s=own.get("walltime_steps", ((1, own["walltime_most"]),) if "walltime_most" in own else ()),
        options=own.get("options", (machine["queue_option"].format(queue=name),)),
        directives=own.get("directives", ()),
        chain=own.get("chain", True),
        site=own.get("site", {}),
        node=_node(where, merged, own.get("accelerators", machine.get("accelerators"))),
    )


def _node(where: str, table: Mapping[str, object], accelerators: Mapping[str, object] | None) -> Node:
    read = read_table(f"{where}node.", table, _NODE)
    own = read.values
    cores, usable = own.get("cores"), own.get("usable_cores", own.get("cores"))
    if usable is not None and (cores is None or usable > cores):
        raise ConfigError(f"{read.key('usable_cores')} is {usable}; accepted: at most cores, {cores}")
    devices = None
    if accelerators is not None:
        where_devices = f"{where}accelerators."
        devices = Accelerators(**read_table(where_devices, accelerators, _ACCELERATORS, ("kind", "names", "variable")).values)
        if not devices.names or len(set(devices.names)) < len(devices.names):
            raise ConfigError(f"{where_devices}names is {list(devices.names)}; accepted: one name for each device")
        if not re.fullmatch(r"[A-Za-z_]\w*", devices.variable):
            raise ConfigError(f"{where_devices}variable is {devices.variable!r}; accepted: the name of a variable")
    memory = own.get("memory_gib")
    return Node(
        cores=cores,
        usable_cores=usable,
        threads_per_core=own.get("threads_per_core", 1),
        memory_bytes=None if memory is None else int(memory * 1024**3),
        scratch=own.get("scratch", ""),
        accelerators=devices,
    )


def _check_fields(where: str, texts: tuple[str, ...], known: tuple[str, ...]) -> None:
    """That every name in braces is one that we can fill in."""
    for text in texts:
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        except ValueError as error:
            raise ConfigError(f"{where} is {text!r}: {error}; a brace of its own is written twice") from None
        for name in names:
            if name not in known:
                raise ConfigError(f"{where} is {text!r}; accepted in braces: {', '.join(known)}")
