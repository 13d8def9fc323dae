"""Machines: what the files in `configs/` say of them, checked. Pure but for reading the file.

Whatever is not understood is an error that names file and key: a misspelt limit must not send a job of a thousand nodes to a
queue that refuses it. docs/machines.md describes the keys.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from exex.errors import ConfigError
from exex.launch import data, keys
from exex.launch.batch import NO_SYSTEM, SYSTEMS, BatchSystem
from exex.launch.toml_table import Table, read_table

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
    file = data.read("configs", name, env)
    return _machine(name.rpartition("/")[2].removesuffix(".toml"), read_table(file.path, file.text))


# ---- reading a file ----


def _machine(name: str, top: Table) -> Machine:
    batch_system = top.choice("batch_system", (*SYSTEMS, NO_SYSTEM))
    system = SYSTEMS.get(batch_system)
    site = _site(top, FIELDS)
    fields = (*FIELDS, *site)
    queue_option = _directives(top, "queue_option", ("queue",), (system.queue if system else "",), is_one=True)[0]
    accelerators = _accelerators(top, None)
    base = _Base(site, queue_option, top.table("node"), accelerators)
    machine = Machine(
        name=name,
        path=top.path,
        description=top.read("description", keys.text),
        batch_system=batch_system,
        launcher=top.read("launcher", keys.text),
        nodes=top.read("nodes", keys.integer(1), None),
        retired=top.read("retired", keys.integer(1950), None),
        request=_directives(top, "request", fields, system.request if system else ()),
        directives=_directives(top, "directives", fields, ()),
        queue_option=queue_option,
        modules=top.read("modules", keys.texts, ()),
        notes=top.read("notes", keys.texts, ()),
        site=site,
        environment=top.read("environment", keys.named_texts, {}),
        node=_node(top.table("node"), None, accelerators),
        account=_account(top.table("account")),
        queues=_queues(top.table("queues"), base),
    )
    top.refuse_unknown()
    return machine


class _Base(NamedTuple):
    """What the machine says, for its queues to go over."""

    site: Mapping[str, str]
    queue_option: str
    node: Table
    accelerators: Accelerators | None


def _queues(table: Table, base: _Base) -> dict[str, Queue]:
    queues = {}
    for name in table.names():
        if not _QUEUE_NAME.fullmatch(name):
            raise table.wrong(name, "is no name of a queue")
        queues[name] = _queue(name, table.table(name), base)
    defaults = [queue.name for queue in queues.values() if queue.default]
    if len(defaults) > 1:
        raise table.wrong(defaults[1], f"is the default, and so is {defaults[0]}")
    return queues


def _queue(name: str, table: Table, base: _Base) -> Queue:
    least = table.read("nodes_least", keys.integer(1), 1)
    most = table.read("nodes_most", keys.integer(1), None)
    if most is not None and most < least:
        raise table.wrong("nodes_most", f"is {most}; accepted: at least nodes_least, {least}")
    limit_s, steps = table.read("walltime_most", keys.duration, None), table.read("walltime_steps", keys.steps, ())
    if limit_s is not None and steps:
        raise table.wrong("walltime_steps", "is set, and walltime_most, too")
    site = _site(table, ())
    for field in site:
        if field not in base.site:
            raise table.wrong(f"site.{field}", "is no key of the machine's own site table")
    fields = (*FIELDS, *base.site)
    queue = Queue(
        name=name,
        options=_directives(table, "options", fields, (base.queue_option.format(queue=name),)),
        node=_node(table.table("node"), base.node, _accelerators(table, base.accelerators)),
        default=table.flag("default", False),
        nodes_least=least,
        nodes_most=most,
        walltimes_s=steps or (() if limit_s is None else ((1, limit_s),)),
        directives=_directives(table, "directives", fields, ()),
        chain=table.flag("chain", True),
        site=site,
    )
    table.refuse_unknown()
    return queue


def _node(table: Table, base: Table | None, accelerators: Accelerators | None) -> Node:
    """A node's shape; what `table` does not say is as `base` says."""

    def read(key: str, reader: keys.Reader, default: Any) -> Any:
        return table.read(key, reader, default if base is None else base.read(key, reader, default))

    own = table.read("cores", keys.integer(1), None)
    cores = read("cores", keys.integer(1), None)
    usable = table.read("usable_cores", keys.integer(1), own or read("usable_cores", keys.integer(1), cores))
    if usable is not None and (cores is None or usable > cores):
        raise table.wrong("usable_cores", f"is {usable}; accepted: at most cores, {cores}")
    memory = read("memory_gib", keys.number, None)
    node = Node(
        cores=cores,
        usable_cores=usable,
        threads_per_core=read("threads_per_core", keys.integer(1), 1),
        memory_bytes=None if memory is None else int(memory * 1024**3),
        scratch=read("scratch", keys.text, ""),
        accelerators=accelerators,
    )
    table.refuse_unknown()
    return node


def _accelerators(parent: Table, base: Accelerators | None) -> Accelerators | None:
    table = parent.table("accelerators")
    if not parent.has("accelerators"):
        return base
    names = table.read("names", keys.texts)
    if not names or len(set(names)) < len(names):
        raise table.wrong("names", f"is {list(names)}; accepted: one name for each device")
    devices = Accelerators(
        kind=table.read("kind", keys.text),
        names=names,
        variable=table.read("variable", keys.variable),
        by_launcher=table.flag("by_launcher", False),
    )
    table.refuse_unknown()
    return devices


def _account(table: Table) -> Account:
    account = Account(
        required=table.flag("required", False),
        pattern=table.read("pattern", keys.pattern, Account().pattern),
        example=table.read("example", keys.text, ""),
    )
    table.refuse_unknown()
    return account


def _site(parent: Table, taken: Sequence[str]) -> dict[str, str]:
    """Values of fields that the file itself names."""
    site: dict[str, str] = parent.read("site", keys.named_texts, {})
    for field in site:
        if field in taken:
            raise parent.wrong(f"site.{field}", "has a meaning of its own; choose another name")
    return site


def _directives(
    table: Table, key: str, fields: Sequence[str], default: tuple[str, ...], *, is_one: bool = False
) -> tuple[str, ...]:
    """Directives, in whose braces only `fields` may stand."""
    texts = (table.read(key, keys.text, default[0]),) if is_one else table.read(key, keys.texts, default)
    for text in texts:
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        except ValueError as error:
            raise table.wrong(key, f"is {text!r}: {error}; a brace of its own is written twice") from None
        for name in names:
            if name not in fields:
                raise table.wrong(key, f"is {text!r}; accepted in braces: {', '.join(fields)}")
    return tuple(texts)
