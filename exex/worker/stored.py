"""Stored payloads where tasks run: large values go into the store of this node, and what a call needs is mapped from there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from exex.errors import StoreFull
from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Outcome, TaskId
from exex.protocol.payload import LARGE_BYTES, Large, Payload, Stored
from exex.store.node_store import NodeStore

FILES = "files"
"""Name of a directory in the one of the store."""

Run = Callable[..., tuple[int, Payload, float]]
"""`execute`, or what stands for it."""


def value_name(task: TaskId, attempt: int) -> str:
    """The name of the value that an attempt leaves in a store."""
    return f"t{task}.{attempt}"


class StoredValues:
    """Of one process that runs tasks.

    Args:
        directory: names the store; "" if there is none.
        keep_bytes: values of at least so many bytes are kept there; 0: none.
        limit_bytes: a value larger than that does not go into memory.
    """

    def __init__(self, directory: str, keep_bytes: int, limit_bytes: int) -> None:
        self._store = NodeStore(directory, limit_bytes) if directory else None
        self._least = max(keep_bytes, LARGE_BYTES) if keep_bytes and directory else 0

    def files_directory(self) -> str:
        """Where files that tasks take are copied to on this node: on its disk, if it has one for us; "" if there is no store."""
        return os.path.join(self._store.spill or self._store.directory, FILES) if self._store is not None else ""

    def kept(self, spec: AppSpec, outcome: int, value: Large, task: TaskId, attempt: int) -> Payload:
        """A value as it is to be sent: as it is, or `Stored`. Where there is no room for it, it travels."""
        if not self._least or outcome != Outcome.DONE or spec.sends_value or spec.ranks or len(value) < self._least:
            return value
        assert self._store is not None
        try:
            return self._store.write(value_name(task, attempt), value.frames)
        except (StoreFull, OSError):
            return value

    def opening(self, run: Run) -> Run:
        """`run` for calls that need stored payloads: these are mapped first. What is not here starves the call."""

        def opened(
            spec: AppSpec,
            function: Any,
            payload: Payload,
            values: Sequence[Payload] | None,
            *more: Any,
        ) -> tuple[int, Payload, float]:
            try:
                payload, values = self.open(payload, values)
            except FileNotFoundError:
                return int(Outcome.STARVED), b"", 0.0
            return run(spec, function, payload, values, *more)

        return opened

    def open(self, payload: Payload, values: Sequence[Payload] | None) -> tuple[Payload, list[Payload] | None]:
        """A call and its values, mapped where they are stored.

        Raises:
            FileNotFoundError: one of them is not in the store of this node.
        """
        if self._store is not None:
            payloads.forget_shared(self._store.has)
        return self._open(payload), None if values is None else [self._open(value) for value in values]

    def _open(self, payload: Payload) -> Payload:
        if type(payload) is not Stored:
            return payload
        if self._store is None:
            raise FileNotFoundError(payload.name)
        return self._store.map(payload)


def discard(directory: str, names: Sequence[str]) -> None:
    """Remove what attempts that have died may have left in a store."""
    if os.path.isdir(directory):
        NodeStore(directory).remove(names)
