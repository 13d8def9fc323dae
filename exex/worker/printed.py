"""Whose bytes a rank reads from the pipes of its task processes, with `--output files`. In worker ranks."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from exex.protocol.task_numbers import shown
from exex.worker import marks
from exex.worker.marks import Owner
from exex.worker.slot import Slot

if TYPE_CHECKING:
    from exex.store.task_output import TaskOutput

_STREAMS = {"stdout": 0, "stderr": 1}


class _Pipe:
    """What is known of a slot's stdout or stderr: whom the last mark has named, and what may begin another."""

    __slots__ = ("owner", "rest")

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.rest = b""


class Printed:
    """Takes what task processes print apart, and keeps it as the tasks'."""

    def __init__(self, output: TaskOutput) -> None:
        self._output = output
        self._pipes: dict[tuple[Slot, int], _Pipe] = {}

    def take(self, slot: Slot, what: str, data: bytes, now_s: float) -> bytes:
        """Keep what was read from a slot's pipe; returns it without marks."""
        stream = _STREAMS[what]
        pipe = self._pipes.get((slot, stream))
        if pipe is None:
            pipe = self._pipes[slot, stream] = _Pipe()
        parts, pipe.rest = marks.split(pipe.rest + data)
        for owner, text in parts:
            if owner is not None:
                pipe.owner = owner
            if text:
                self._output.write(pipe.owner or _running(slot), stream, text, now_s)
        return b"".join(text for _, text in parts)

    def ended(self, slot: Slot, count: int, now_s: float) -> None:
        """The first calls that a slot holds have ended, and what they printed was taken."""
        if not self._output.has_printed():
            return
        ended = list(islice(slot.held, count))
        numbers = {shown(call.task) for call in ended}
        for stream in _STREAMS.values():
            pipe = self._pipes.get((slot, stream))
            if pipe is not None and pipe.owner is not None and pipe.owner[0] in numbers:
                pipe.owner = None
        for call in ended:
            self._output.ended(shown(call.task), call.spec.name, now_s)

    def died(self, slot: Slot, now_s: float) -> None:
        """A slot's task process is gone: nothing of its pipes is left."""
        for stream in _STREAMS.values():
            pipe = self._pipes.pop((slot, stream), None)
            if pipe is not None and pipe.rest:
                self._output.write(pipe.owner or _running(slot), stream, pipe.rest, now_s)
        self.ended(slot, len(slot.held), now_s)

    def flush_if_due(self, now_s: float) -> None:
        """Write what has waited for long enough."""
        self._output.flush_if_due(now_s)

    def close(self) -> None:
        """Write all that waits."""
        self._output.close()


def _running(slot: Slot) -> Owner:
    """The oldest call that a slot has not reported."""
    if not slot.held:
        return marks.NOBODY, 0
    return shown(slot.held[0].task), slot.held[0].attempt
