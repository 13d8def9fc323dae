"""What `exex machines` prints. Pure but for reading the machine files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from exex.launch.batch import clock
from exex.launch.machines import Machine, Node, Queue, load_machine, machine_names

_HEAD = ("machine", "batch system", "launcher", "nodes", "cores", "accelerators", "what it is")


def machines_table(env: Mapping[str, str]) -> str:
    """One line for each machine.

    Raises:
        ConfigError: a file that cannot be used.
    """
    return _aligned(machine_rows(env), "  ")


def machine_rows(env: Mapping[str, str]) -> list[tuple[str, ...]]:
    """The table, row by row; the first one is the head.

    Raises:
        ConfigError: a file that cannot be used.
    """
    return [_HEAD, *(_row(load_machine(name, env)) for name in machine_names(env))]


def _row(machine: Machine) -> tuple[str, ...]:
    devices = machine.node.accelerators
    retired = f" (until {machine.retired})" if machine.retired else ""
    return (
        machine.name,
        machine.batch_system,
        machine.launcher,
        "" if machine.nodes is None else f"{machine.nodes}",
        _cores(machine.node),
        f"{len(devices.names)}" if devices else "",
        machine.description + retired,
    )


def _cores(node: Node) -> str:
    if node.cores is None:
        return ""
    return f"{node.cores}" if node.usable_cores == node.cores else f"{node.usable_cores} of {node.cores}"


def _aligned(rows: Sequence[Sequence[str]], gap: str, indent: str = "") -> str:
    """Rows in columns; the last column is as long as it likes."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [gap.join(f"{text:<{width}}" for text, width in zip(row, widths)) for row in rows]
    return "\n".join((indent + line).rstrip() for line in lines)


def machine_text(machine: Machine) -> str:
    """All that is known of one machine."""
    facts = [(name, text) for name, text in _facts(machine) if text]
    parts = [f"{machine.name}: {machine.description}", _aligned(facts, "  ")]
    if machine.queues:
        parts.append("queues\n" + _aligned([_queue_row(machine, queue) for queue in machine.queues.values()], "  ", indent="  "))
    parts += [f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in _lists(machine) if lines]
    return "\n\n".join(parts)


def _facts(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "file", machine.path
    yield "batch system", machine.batch_system
    yield "launcher", machine.launcher
    yield "retired", f"{machine.retired}" if machine.retired else ""
    yield "nodes", "" if machine.nodes is None else f"{machine.nodes:,}"
    yield from _node_facts(machine.node)
    if machine.account.required or machine.account.example:
        need = "needed" if machine.account.required else "may be given"
        yield "account", f"{need}, such as {machine.account.example}" if machine.account.example else need


def _node_facts(node: Node) -> Iterator[tuple[str, str]]:
    if node.cores is not None:
        spare = "" if node.usable_cores == node.cores else f", {node.usable_cores} of them for jobs"
        threads = f", with {node.threads_per_core} hardware threads each" if node.threads_per_core > 1 else ""
        yield "cores", f"{node.cores}{threads}{spare}"
    if node.memory_bytes is not None:
        yield "memory", f"{node.memory_bytes / 1024**3:g} GiB"
    if node.accelerators:
        devices = node.accelerators
        yield "accelerators", f"{len(devices.names)} x {devices.kind}: {devices.variable}={','.join(devices.names)}"
    yield "own disk", node.scratch


def _queue_row(machine: Machine, queue: Queue) -> tuple[str, ...]:
    notes = [] if queue.chain else ["no chains"]
    if queue.node != machine.node:
        usual = list(_node_facts(machine.node))
        notes += [f"{name} {text}" for name, text in _node_facts(queue.node) if text and (name, text) not in usual]
    name = f"{queue.name}, the default" if queue.default else queue.name
    return name, _nodes(queue), "; ".join(_walltimes(queue) + notes)


def _nodes(queue: Queue) -> str:
    least, most = queue.nodes_least, queue.nodes_most
    if most is None:
        return "" if least == 1 else f"{least} nodes or more"
    if least in (1, most):
        return f"{'at most ' if least < most else ''}{most} node{'' if most == 1 else 's'}"
    return f"{least} to {most} nodes"


def _walltimes(queue: Queue) -> list[str]:
    """The limits; the first one holds from the least number of nodes on."""
    return [
        f"{clock(limit_s)}" if number == 0 else f"{clock(limit_s)} from {nodes} nodes on"
        for number, (nodes, limit_s) in enumerate(queue.walltimes_s)
    ]


def _lists(machine: Machine) -> Iterator[tuple[str, list[str]]]:
    yield "directives", [*machine.request, *machine.directives]
    yield "site options (--site KEY=VALUE)", [f"{name}={value}" for name, value in machine.site.items()]
    yield "modules", list(machine.modules)
    yield "environment", [f"{name}={value}" for name, value in machine.environment.items()]
    yield "notes", list(machine.notes)
