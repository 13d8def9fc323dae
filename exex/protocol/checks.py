"""What the types of a message cannot say: bounds, lengths of columns, kinds of payloads. Pure; `codec` applies them.

A message that passes here can be handled without a look at its shape. Whether what it says is true (a task that exists,
a promise that is open) only the receiver's state can tell. Cost: some 20 ns per task, in loops of the interpreter's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from exex.errors import ProtocolError
from exex.protocol.messages import (
    CLIENT_SHIFT,
    KEY_BYTES,
    Absent,
    AppSpec,
    Assign,
    Attach,
    Brought,
    Cancel,
    Chunk,
    Collected,
    Copy,
    Done,
    Fetch,
    Free,
    FromTasks,
    Fulfil,
    Hello,
    Here,
    Holds,
    Join,
    Kind,
    Order,
    Outcome,
    Part,
    Promise,
    Release,
    Spread,
    Submit,
    ToTasks,
    Verdict,
    Want,
)
from exex.protocol.parts import PART_OUTCOMES
from exex.protocol.payload import Large, Stored

MOST_PROMISED = 1 << 20
"""Tasks of one Promise: the only number in a message that costs memory without bytes to show for it."""

MOST_SLOTS = 1 << 16
"""Slots of one worker."""

MOST_NAME = 1 << 12
"""Characters in the name of an app, of a node or of an accelerator."""

MOST_CPU = 1 << 16
"""CPU numbers are below."""

MOST_GPUS = 1 << 10
"""Accelerators of one node."""

MOST_NODES = 1 << 20
"""Nodes of one gang."""

MOST_RANKS = 1 << 22
"""Ranks of one communicator."""

MOST_FRAMES = 1 << 16
"""Frames of a stored payload."""

MOST_STORED_BYTES = 1 << 44
"""Bytes of a frame of a stored payload."""

MOST_STORE_NAME = 64
"""Characters of its name, which is that of a file."""

MOST_PROCESSES = 1 << 24
"""Task processes of one worker have numbers below."""

MOST_MEMORY_BYTES = 1 << 60

MOST_DIGEST_BYTES = 64

_END = 1 << CLIENT_SHIFT  # a client's own task numbers are below
_PAYLOADS = frozenset((bytes, Large, Stored))
_IN_BAND = frozenset((bytes, Large))
_ONLY_STORED = frozenset((Stored,))
_STORE_NAME = re.compile(r"[tc][0-9]+\.[0-9]+", re.ASCII)
_OUTCOMES = bytes(Outcome)
_KEPT_OR_BROKEN = bytes((Outcome.DONE, Outcome.FAILED))
_KINDS = frozenset(Kind)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ProtocolError(message)


def is_store_name(name: str) -> bool:
    """Whether a stored payload may have this name: it becomes a file's."""
    return len(name) <= MOST_STORE_NAME and _STORE_NAME.fullmatch(name) is not None


def _names(names: Iterable[str]) -> None:
    for name in names:
        _require(is_store_name(name), f"a stored payload named {name[:MOST_STORE_NAME]!r}")


def _payloads(payloads: Iterable[object], allowed: frozenset[type] = _PAYLOADS) -> None:
    if not allowed.issuperset(map(type, payloads)):
        kinds = sorted(kind.__name__ for kind in set(map(type, payloads)) - allowed)
        raise ProtocolError(f"a payload that is no bytes: {', '.join(kinds)}")


def _tasks(tasks: list[int]) -> None:
    if tasks and not (min(tasks) >= 0 and max(tasks) < _END):
        raise ProtocolError(f"task numbers from {min(tasks)} to {max(tasks)}")


def _new_tasks(first: int, count: int) -> None:
    if not (count > 0 and 0 <= first <= _END - count):
        raise ProtocolError(f"{count} new tasks from number {first}")


def _app(spec: AppSpec) -> None:
    _require(spec.app >= 0, f"an app with the number {spec.app}")
    _require(len(spec.name) <= MOST_NAME, f"app {spec.app} has a name of {len(spec.name)} characters")
    _require(0 < len(spec.function) <= MOST_DIGEST_BYTES, f"app {spec.app} has a digest of {len(spec.function)} bytes")
    _require(spec.kind in _KINDS, f"app {spec.app} is of the unknown kind {spec.kind}")
    _require(spec.retries >= 0, f"app {spec.app} wants {spec.retries} retries")
    limit = spec.walltime_s
    _require(limit is None or limit >= 0, f"app {spec.app} has a walltime of {limit} s")
    memory = spec.memory_bytes
    _require(memory is None or 0 < memory <= MOST_MEMORY_BYTES, f"app {spec.app} asks for {memory} bytes of memory")
    _require(0 <= spec.cores <= MOST_SLOTS, f"app {spec.app} asks for {spec.cores} cores")
    _require(0 <= spec.gpus <= MOST_GPUS, f"app {spec.app} asks for {spec.gpus} accelerators")
    _require(0 <= spec.nodes <= MOST_NODES, f"app {spec.app} asks for {spec.nodes} nodes")
    _require(spec.nodes > 0 or not spec.exclusive, f"app {spec.app} wants to be alone on no node")
    _require(0 <= spec.ranks <= MOST_RANKS, f"app {spec.app} asks for {spec.ranks} ranks")
    is_together = spec.kind == Kind.TOGETHER
    _require(is_together == (spec.ranks > 0), f"app {spec.app} of kind {spec.kind} asks for {spec.ranks} ranks")
    _require(not (is_together and (spec.nodes or spec.cores)), f"app {spec.app} asks for ranks, and for nodes or cores")


def _functions(functions: dict[bytes, Any]) -> None:
    _payloads(functions.values(), _IN_BAND)
    if functions:
        _require(min(map(len, functions)) > 0 and max(map(len, functions)) <= MOST_DIGEST_BYTES, "a digest of wrong length")


def submit(msg: Submit) -> None:
    """Columns of equal length, needs on earlier tasks only (so the graph has no cycles), values where they are promised."""
    count = len(msg.payloads)
    _new_tasks(msg.first, count)
    _require(len(msg.calls) in (1, count), f"{len(msg.calls)} apps for {count} calls")
    _payloads(msg.payloads)
    for spec in msg.apps:
        _app(spec)
    _functions(msg.functions)
    if msg.needs or msg.given:
        _needs(msg)
    if msg.keys:
        _keys(msg)
    if msg.affinity:
        _require(min(msg.affinity) >= 0 and max(msg.affinity) < count, "an affinity of a call that is not there")
        _tasks(list(msg.affinity.values()))
    if msg.tags:
        _require(min(msg.tags) >= 0 and max(msg.tags) < count, "a tag of a call that is not there")
        _require(max(map(len, msg.tags.values())) <= MOST_NAME, "a tag that long")


def attach(msg: Attach) -> None:
    """Names that can be shown."""
    _require(max(map(len, (msg.title, msg.python, msg.host, msg.name))) <= MOST_NAME, "a name that long")


def order(msg: Order) -> None:
    """Something that there is."""
    _require(msg.what in ("clients", "cancel", "shutdown"), f"an order of the unknown kind {msg.what[:100]!r}")
    _tasks(msg.tasks)


def _keys(msg: Submit) -> None:
    count = len(msg.payloads)
    for i, key in msg.keys.items():
        _require(0 <= i < count, f"a key of call {i}, which is not there")
        _require(len(key.partial) == KEY_BYTES, f"a key of {len(key.partial)} bytes")
        needs = len(msg.needs.get(i, ()))
        _require(all(0 <= place < needs for place in key.ignored), "a key that leaves out needs which are not there")


def _needs(msg: Submit) -> None:
    first, end = msg.first, msg.first + len(msg.payloads)
    numbers = list(chain.from_iterable(msg.needs.values()))
    lowest, highest = min(numbers, default=0), max(numbers, default=0)
    _require(lowest >= -1 - _END and highest < _END, "needs with impossible numbers")
    _require(min(msg.needs, default=0) >= 0 and max(msg.needs, default=0) < end - first, "needs of calls that are not there")
    _require(msg.given.keys() <= msg.needs.keys(), "values for calls that need none")
    for values in msg.given.values():
        _payloads(values.values())
    if highest >= first:
        for i, needs in msg.needs.items():
            for need in needs:
                if first + i <= need < end:
                    raise ProtocolError(f"task {first + i} needs task {need}, which does not come before it")
    if lowest < 0 or msg.given:
        for i, needs in msg.needs.items():
            if {place for place, need in enumerate(needs) if need < 0} != msg.given.get(i, {}).keys():
                raise ProtocolError(f"the values that are given to task {first + i} are not those that it lacks")


def promise(msg: Promise) -> None:
    """No more tasks than a client may have meant."""
    _new_tasks(msg.first, msg.count)
    _require(msg.count <= MOST_PROMISED, f"{msg.count} promises in one message")


def fulfil(msg: Fulfil) -> None:
    """Columns of equal length; each task once."""
    _tasks(msg.tasks)
    _require(len(msg.tasks) == len(msg.outcomes) == len(msg.payloads), "columns of unequal length")
    _require(len(set(msg.tasks)) == len(msg.tasks), "a task twice in one message")
    _require(not msg.outcomes.translate(None, _KEPT_OR_BROKEN), "a promise with an unknown outcome")
    _payloads(msg.payloads)


def cancel(msg: Cancel | Collected) -> None:
    """Task numbers of a client."""
    _tasks(msg.tasks)


def verdict(msg: Verdict) -> None:
    """A task number of a client, and a payload."""
    _tasks([msg.task])
    _payloads([msg.payload], _IN_BAND)


def hello(msg: Hello) -> None:
    """A number of slots that can be; CPUs, memory and accelerators likewise."""
    _require(0 < msg.slots <= MOST_SLOTS or bool(msg.error), f"{msg.slots} slots")
    _require(len(msg.node) <= MOST_NAME, f"a node with a name of {len(msg.node)} characters")
    _require(len(msg.store) <= MOST_NAME, f"a store with a name of {len(msg.store)} characters")
    cores = msg.cores
    _require(not cores or (min(cores) >= 0 and max(cores) < MOST_CPU), "CPU numbers that are none")
    _require(len(cores) <= MOST_CPU and not len(cores) % max(1, msg.slots), f"{len(cores)} CPUs for {msg.slots} slots")
    _require(0 <= msg.memory_bytes <= MOST_MEMORY_BYTES, f"{msg.memory_bytes} bytes of memory")
    _require(len(msg.gpus) <= MOST_GPUS and len(set(msg.gpus)) == len(msg.gpus), f"{len(msg.gpus)} accelerators")
    _require(not msg.gpus or max(map(len, msg.gpus)) <= MOST_NAME, "an accelerator with a name that long")


def done(msg: Done) -> None:
    """Columns of equal length; times that can be averaged."""
    count = len(msg.tasks)
    _require(count == len(msg.outcomes) == len(msg.payloads) == len(msg.seconds), "columns of unequal length")
    _require(not msg.outcomes.translate(None, _OUTCOMES), "an unknown outcome")
    _payloads(msg.payloads)
    seconds = msg.seconds
    _require(not seconds or (min(seconds) >= 0 and math.isfinite(sum(seconds))), "running times that are none")
    slots, peaks = msg.slots, msg.peaks
    _require(not slots or (len(slots) == count and min(slots) >= -1 and max(slots) < MOST_SLOTS), "slots that are none")
    if peaks:
        _require(min(peaks) >= 0 and max(peaks) < count, "the memory of attempts that are not there")
        _require(min(peaks.values()) >= 0 and max(peaks.values()) <= MOST_MEMORY_BYTES, "so many bytes of memory")


def part(msg: Part) -> None:
    """An outcome that a rank can come to, and a time that can be compared."""
    _require(msg.outcome in PART_OUTCOMES, f"a part with the outcome {msg.outcome}")
    _payloads([msg.payload], _IN_BAND)
    _require(msg.seconds >= 0 and math.isfinite(msg.seconds), "a running time that is none")


def from_tasks(msg: FromTasks) -> None:
    """Columns of equal length, of task processes that there may be."""
    _require(len(msg.tasks) == len(msg.processes), "columns of unequal length")
    _to_processes(msg.processes, msg.messages)
    _require(not msg.gone or (min(msg.gone) >= 0 and max(msg.gone) < MOST_PROCESSES), "task processes that are none")


def to_tasks(msg: ToTasks) -> None:
    """Columns of equal length, of task processes that there may be."""
    _to_processes(msg.processes, msg.messages)


def _to_processes(processes: list[int], messages: list[Any]) -> None:
    _require(len(processes) == len(messages), "columns of unequal length")
    _payloads(messages, _IN_BAND)
    _require(not processes or (min(processes) >= 0 and max(processes) < MOST_PROCESSES), "task processes that are none")


def assign(msg: Assign) -> None:
    """Columns of equal length."""
    count = len(msg.tasks)
    _require(count == len(msg.payloads) and len(msg.calls) in (1, count), "columns of unequal length")
    for i, grant in msg.grants.items():
        _require(0 <= i < count and grant.slots > 0 and bool(grant.shares), "a grant of nothing, or for no task")
    if msg.sources:
        _names(msg.sources)
        _require(min(msg.sources.values()) >= 0, "a stored payload at no rank")


def join(msg: Join) -> None:
    """A number that fits into a datagram; runs of ranks."""
    _require(0 < msg.call < 1 << 63, f"a call with the number {msg.call}")
    _require(len(msg.runs) >= 2 and not len(msg.runs) % 2 and min(msg.runs) >= 0, "runs of ranks that are none")


def names(msg: Want | Release | Here | Absent | Free | Holds) -> None:
    """Names that files may have."""
    _names(msg.names)


def fetch(msg: Fetch) -> None:
    """Names that files may have, and where to begin."""
    _names(msg.names)
    _require(0 <= msg.at <= MOST_STORED_BYTES and len(msg.store) <= MOST_NAME, "a fetch from no place")


def spread(msg: Spread) -> None:
    """A stored payload."""
    _payloads([msg.payload], _ONLY_STORED)


def copy(msg: Copy) -> None:
    """Stored payloads, and a rank."""
    _payloads(msg.payloads, _ONLY_STORED)
    _require(msg.source >= 0, f"a copy from rank {msg.source}")


def chunk(msg: Chunk) -> None:
    """Bytes, and where they belong."""
    _names([msg.name])
    _payloads([msg.data], _IN_BAND)
    _require(msg.at >= 0 and (type(msg.data) is not Large or len(msg.data.frames) == 1), "a chunk of no place, or in pieces")


def brought(msg: Brought) -> None:
    """A payload, or an error."""
    _names([msg.name])
    _payloads([msg.payload])
    _require(msg.outcome in _KEPT_OR_BROKEN, f"a value with the outcome {msg.outcome}")


CHECKS: dict[type, Callable[[Any], None]] = {
    Attach: attach,
    Order: order,
    Submit: submit,
    Promise: promise,
    Fulfil: fulfil,
    Cancel: cancel,
    Collected: cancel,
    Verdict: verdict,
    Hello: hello,
    Done: done,
    Part: part,
    FromTasks: from_tasks,
    ToTasks: to_tasks,
    Assign: assign,
    Join: join,
    Want: names,
    Release: names,
    Fetch: fetch,
    Here: names,
    Absent: names,
    Free: names,
    Holds: names,
    Spread: spread,
    Copy: copy,
    Chunk: chunk,
    Brought: brought,
}
"""By the type of the message; a type that is not here needs none."""
