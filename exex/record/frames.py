"""What rank 0 tells the record's writer over a pipe: frames of a header and columns. Pure.

A frame is cheap to make: columns are copied as they are, and nothing is computed for a single task. Both ends are on one node,
so numbers are as it has them in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct("=IIqqq")
"""Bytes of the body, kind, time in microseconds, and two numbers of the kind."""


class Kind(IntEnum):
    """What a frame says, its two numbers, and the columns of its body (q: int64, I: uint32, f: float32, i: int32, B: uint8).

    A block has many messages, of a: their number, b: tasks in all of them; it begins with `HEAD` of each message.
    """

    BEGIN = 0  # JSON: path, attributes
    END = 1  # a: messages that were dropped
    SUBMIT = 2  # a: first task, b: tasks; q... is absent: I bytes of each, I app of each or of all
    NEEDS = 3  # a: first task of that Submit, b: tasks with needs; I which, I how many needs each, q needs: see Submit.needs
    READY = 4  # a block; q tasks
    ASSIGN = 5  # a block; q tasks
    DONE = 6  # a block; q tasks, B outcomes, f seconds, I bytes of each, i slots, I (which, KiB of memory) of some
    ANSWER = 7  # a block; q tasks, B outcomes
    CANCEL = 8  # b: tasks; q tasks
    FINISH = 9  # a: client, b: whether its tasks are cancelled
    LOST = 10  # a: rank, b: attempts; UTF-8: how
    HELLO = 11  # a: rank, b: slots; JSON: the other columns of `workers`
    APP = 12  # a: client, b: number that the client gave it; JSON: columns of `apps`
    SAMPLE = 13  # q columns of `samples` after the time
    RETURNED = 14  # b: tasks; q tasks
    MADE = 16  # a: first task of the next SUBMIT, b: tasks; q task that makes them
    AGAIN = 15  # b: tasks of the next ASSIGN that are tried again; q tasks, I attempts


HEAD = struct.Struct("=qqq")
"""Of a message in a block: time in microseconds, rank, number of its tasks."""


class Frame(NamedTuple):
    """One frame."""

    kind: int
    time_us: int
    a: int
    b: int
    body: bytes


def take_frames(data: bytearray) -> Iterator[Frame]:
    """Whole frames from the front of `data`, in order; afterwards only what follows them is left there."""
    at, end = 0, len(data)
    with memoryview(data) as view:
        while end - at >= HEADER.size:
            size, kind, time_us, a, b = HEADER.unpack_from(view, at)
            if end - at - HEADER.size < size:
                break
            at += HEADER.size
            yield Frame(kind, time_us, a, b, bytes(view[at : at + size]))
            at += size
    del data[:at]
