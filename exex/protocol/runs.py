"""Lists of ranks as runs of neighbours, which are short where lists are long. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from exex.protocol.messages import Rank


def as_runs(ranks: Sequence[Rank]) -> list[int]:
    """First and length of each run, in turn: [4, 5, 6, 2] becomes [4, 3, 2, 1]."""
    runs: list[int] = []
    for rank in ranks:
        if runs and rank == runs[-2] + runs[-1]:
            runs[-1] += 1
        else:
            runs += (rank, 1)
    return runs


def from_runs(runs: Sequence[int]) -> list[Rank]:
    """The ranks, in their order."""
    return [rank for first, length in zip(runs[::2], runs[1::2]) for rank in range(first, first + length)]
