"""What the ranks of a call on a communicator have come to, in one value or one error. Pure; opens no payload of theirs."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from exex.errors import DeserializationError, MpiTaskFailed, RankFailure
from exex.protocol import payload as payloads
from exex.protocol.messages import Outcome
from exex.protocol.payload import Large, Payload

PART_OUTCOMES = frozenset((Outcome.DONE, Outcome.FAILED, Outcome.CANCELLED, Outcome.LOST))
"""What a rank can come to."""

_MOST_QUOTED = 8
"""Ranks whose errors the message quotes."""


class RankPart(NamedTuple):
    """What one rank has come to.

    Attributes:
        rank: in the communicator.
        outcome: DONE, FAILED, CANCELLED if it was stopped, LOST if it had no communicator.
        seconds: of the function alone.
    """

    rank: int
    node: str
    outcome: int
    payload: Payload
    seconds: float


def combine(title: str, parts: Sequence[RankPart], every_rank: bool) -> tuple[int, Payload, float]:
    """Outcome, payload and seconds of the whole call.

    Args:
        title: "task 7 (f), attempt 1,".
        parts: of all ranks, by rank; without those that are lost.
        every_rank: the value is the list of all ranks' values, not the first one's.
    """
    seconds = max((part.seconds for part in parts), default=0.0)
    failed = [part for part in parts if part.outcome == Outcome.FAILED]
    stopped = sum(part.outcome in (Outcome.CANCELLED, Outcome.LOST) for part in parts)
    if failed:
        return Outcome.FAILED, payloads.dump(_Failures(title, len(parts), stopped, failed)), seconds
    if stopped or not parts:
        return Outcome.CANCELLED, b"", seconds
    if every_rank:
        return Outcome.DONE, payloads.bundle([part.payload for part in parts]), seconds
    return Outcome.DONE, parts[0].payload, seconds


class _Failures:
    """Pickles as an MpiTaskFailed, made where it is opened."""

    def __init__(self, title: str, count: int, stopped: int, failed: Sequence[RankPart]) -> None:
        self._parts = [(part.rank, part.node, _buffers(part.payload)) for part in failed]
        self._about = (title, count, stopped)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _load_failures, (*self._about, self._parts)


def _buffers(payload: Payload) -> Any:
    return [pickle.PickleBuffer(frame) for frame in payload.frames] if type(payload) is Large else payload


def _load_failures(title: str, count: int, stopped: int, parts: list[tuple[int, str, Any]]) -> MpiTaskFailed:
    failures = [RankFailure(rank, node, _open(error)) for rank, node, error in parts]
    quoted = [
        f"rank {failure.rank} at {failure.node}: {type(failure.error).__name__}: {failure.error}"
        for failure in failures[:_MOST_QUOTED]
    ]
    more = [f"and {len(failures) - _MOST_QUOTED} more"] if len(failures) > _MOST_QUOTED else []
    others = [f"{stopped} others were stopped"] if stopped > 1 else ["another one was stopped"] * stopped
    text = f"{title} failed on {len(failures)} of its {count} ranks: " + "; ".join([*quoted, *more, *others])
    error = MpiTaskFailed(text, failures)
    error.__cause__ = failures[0].error
    return error


def _open(error: Any) -> BaseException:
    try:
        opened = payloads.load(Large(error) if isinstance(error, list) else error)
    except Exception as failure:
        opened = DeserializationError(f"its error cannot be unpickled here ({type(failure).__name__}: {failure})")
    return opened if isinstance(opened, BaseException) else DeserializationError(f"its error is {opened!r}")
