"""What rank 0 gathers for the record's writer until it sends: columns of all messages of one kind, packed at once. Pure.

Adding to a list costs a third of packing it, and what is not per task is paid once for all messages of a block: where each
tells of one or two tasks, that is most of it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from exex.protocol.messages import Done, Outcome, Rank, TaskId
from exex.protocol.payload import Payload
from exex.record.columns import How

LARGEST = 2**32 - 1
_STARVED = bytes([Outcome.STARVED])


class Block:
    """Messages of one kind: time, rank (or 0) and number of tasks of each, and the tasks of all."""

    def __init__(self) -> None:
        self.heads: list[int] = []
        self.tasks: list[TaskId] = []

    def add(self, time_us: int, rank: Rank, tasks: Sequence[TaskId]) -> None:
        """Add a message."""
        self.heads += (time_us, rank, len(tasks))
        self.tasks += tasks

    def take(self) -> tuple[int, int, bytes]:
        """How many messages and tasks there are, and the body of their frame; nothing is left."""
        messages, count, body = len(self.heads) // 3, len(self.tasks), self._body()
        self._clear()
        return messages, count, body

    def _body(self) -> bytes:
        return pack("q", self.heads) + pack("q", self.tasks)

    def _clear(self) -> None:
        self.heads, self.tasks = [], []


class Answers(Block):
    """With the outcomes of the tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes = bytearray()

    def _body(self) -> bytes:
        return super()._body() + self.outcomes

    def _clear(self) -> None:
        super()._clear()
        self.outcomes.clear()


class Results(Answers):
    """With all that `Done` says of an attempt.

    Attributes:
        has_failed: there is an attempt that did not end with a value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_failed = False
        self._seconds: list[float] = []
        self._sizes: list[int] = []
        self._slots: list[int] = []
        self._peaks: list[int] = []

    def add_done(self, time_us: int, rank: Rank, msg: Done) -> None:
        """Add a message."""
        first, count = len(self.tasks), len(msg.tasks)
        self.add(time_us, rank, msg.tasks)
        self._seconds += msg.seconds
        self._sizes += map(len, msg.payloads)
        outcomes = msg.outcomes
        if outcomes.count(0) != count:
            self.has_failed = True
            outcomes = outcomes.replace(_STARVED, bytes([How.STARVED]))
        self.outcomes += outcomes
        if msg.slots or self._slots:
            self._slots += [0] * (first - len(self._slots))  # of those who did not say, as they have only one
            self._slots += msg.slots or [0] * count
        for i, peak_bytes in msg.peaks.items():
            self._peaks += (first + i, min(-(-peak_bytes // 1024), LARGEST))  # in KiB, rounded up: 0 is 'not known'

    def _body(self) -> bytes:
        count = len(self.tasks)
        slots = pack("i", self._slots) if self._slots else bytes(4 * count)
        parts = (super()._body(), pack("f", self._seconds), pack_sizes(self._sizes), slots, pack("I", self._peaks))
        return b"".join(parts)

    def _clear(self) -> None:
        super()._clear()
        self.has_failed = False
        self._seconds, self._sizes, self._slots, self._peaks = [], [], [], []


def pack(code: str, values: Sequence[float]) -> bytes:
    """A column, as this machine has it in memory. Two thirds of what an `array` takes."""
    return struct.pack(f"={len(values)}{code}", *values)


def pack_sizes(sizes: Sequence[int]) -> bytes:
    """A column of bytes; what is larger than 4 GiB counts as that."""
    try:
        return pack("I", sizes)
    except struct.error:
        return pack("I", [min(size, LARGEST) for size in sizes])


def sizes_of(payloads: Sequence[Payload]) -> list[int]:
    """Bytes of each."""
    return list(map(len, payloads))
