"""What a task asks for beyond one slot: the form in which placement counts, and what can never be met. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from exex.errors import InvalidResourceSpecification
from exex.protocol.messages import AppSpec, NodeShape


class Request(NamedTuple):
    """What a big task needs. Tasks with equal requests fit in the same places.

    Attributes:
        cores: slots of each node, at least so many if `whole`.
        memory_bytes: of each node; 0 for any.
        gpus: accelerators of each node.
        nodes: how many.
        whole: all slots and accelerators of each node, and nobody else there.
    """

    cores: int
    memory_bytes: int
    gpus: int
    nodes: int
    whole: bool

    def text(self) -> str:
        """For messages to people: "4 nodes with 2 cores and 1 GiB of memory each"."""
        parts = ["all cores" if self.whole and self.cores == 1 else _count(self.cores, "core")]
        if self.memory_bytes:
            parts.append(f"{gibibytes(self.memory_bytes)} of memory")
        if self.gpus:
            parts.append(_count(self.gpus, "accelerator"))
        each = ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]
        where = _count(self.nodes, "whole node" if self.whole else "node")
        return f"{where} with {each}" + (" each" if self.nodes > 1 else "")


SINGLE = Request(1, 0, 0, 1, False)
"""One slot: what a task asks for that only prefers a node."""


def request_of(spec: AppSpec, nodes: Sequence[NodeShape]) -> Request | None:
    """What each call of an app needs; None if that is one slot and nothing else.

    Args:
        nodes: that there are: a call on a communicator needs a slot for each of its ranks, on as few of them as can be.
    """
    if spec.ranks:
        return _request_of_ranks(spec, nodes)
    if spec.nodes == 0 and spec.cores <= 1 and not spec.gpus and spec.memory_bytes is None:
        return None
    whole = spec.exclusive or (spec.nodes > 0 and spec.cores == 0)
    return Request(max(1, spec.cores), spec.memory_bytes or 0, spec.gpus, max(1, spec.nodes), whole)


def _request_of_ranks(spec: AppSpec, nodes: Sequence[NodeShape]) -> Request:
    """Equal shares of as few nodes as can ever hold them; slots that make the shares equal are held for nothing.

    Where there are no such nodes, as for a call on all ranks, whole nodes, of which any have enough slots together. If not even
    those can hold them, what the largest nodes would have to be.
    """
    alone = Request(1, spec.memory_bytes or 0, spec.gpus, 1, False)
    capable = [node for node in nodes if _could_meet(node, alone)]
    largest = max((node.slots for node in capable), default=spec.ranks)
    fewest = -(-spec.ranks // largest)
    for count in range(fewest, min(spec.ranks, sum(node.count for node in capable)) + 1):
        request = alone._replace(cores=-(-spec.ranks // count), nodes=count)
        if sum(node.count for node in capable if node.slots >= request.cores) >= count:
            return request
    return _whole_nodes(spec.ranks, alone, capable) or alone._replace(cores=-(-spec.ranks // fewest), nodes=fewest)


def _whole_nodes(ranks: int, alone: Request, capable: Sequence[NodeShape]) -> Request | None:
    """The fewest whole nodes, of at least so many slots, of which any have enough slots for these ranks together."""
    for least in sorted({node.slots for node in capable}, reverse=True):
        slots = count = 0
        for node in sorted((node for node in capable if node.slots >= least), key=lambda node: node.slots):
            needed = min(node.count, -(-(ranks - slots) // node.slots))
            slots, count = slots + needed * node.slots, count + needed
            if slots >= ranks:
                return alone._replace(cores=least, nodes=count, whole=True)
    return None


def impossible(
    name: str, request: Request, nodes: Sequence[NodeShape], left: str = "", ranks: int = 0
) -> InvalidResourceSpecification | None:
    """The error of a request that can never be met by these nodes; None if it can.

    Args:
        name: of the app.
        left: " that are left", where some were lost.
        ranks: of a communicator, if it is for one.
    """
    capable = sum(node.count for node in nodes if _could_meet(node, request))
    if capable >= request.nodes:
        return None
    parts = {
        "cores": SINGLE._replace(cores=request.cores),
        "memory": SINGLE._replace(memory_bytes=request.memory_bytes),
        "gpus": SINGLE._replace(gpus=request.gpus),
    }
    missing = {key for key, part in parts.items() if not any(_could_meet(node, part) for node in nodes)} or {"nodes"}
    total = sum(node.count for node in nodes)
    are = "is 1 node" if total == 1 else f"are {total} nodes"
    there_is = f"there {are}{left}, and {capable} of them can meet that" if total else "no node is left"
    if total:
        largest = max(nodes, key=lambda node: (node.slots, node.memory_bytes, node.gpus))
        memory = f", {gibibytes(largest.memory_bytes)} of memory" if largest.memory_bytes else ""
        there_is += f"; the largest has {_count(largest.slots, 'slot')}{memory} and {_count(largest.gpus, 'accelerator')}"
    wanted = f"{_count(ranks, 'rank')}, that is {request.text()}" if ranks else request.text()
    return InvalidResourceSpecification({"ranks"} if ranks else missing, f"app {name} asks for {wanted}, but {there_is}")


def _could_meet(node: NodeShape, request: Request) -> bool:
    has_memory = not node.memory_bytes or node.memory_bytes >= request.memory_bytes
    return node.slots >= request.cores and has_memory and node.gpus >= request.gpus


def gibibytes(size_bytes: int) -> str:
    """A size for people."""
    return f"{size_bytes / 1024**3:.4g} GiB" if size_bytes >= 1024**3 else f"{size_bytes / 1024**2:.4g} MiB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
