"""How the manager reaches ranks that run a function of the user's and hear nothing by MPI."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from exex.guard.control import Control

_RANKS_A_MESSAGE = 2000


class GuardedRanks:
    """The manager's way to ranks that run a function themselves: by the guard of rank 0 to theirs. See `teams.Reach`."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def stop(self, call: int, ranks: Sequence[int], hard: bool) -> None:
        """See `Reach.stop`."""
        for some in _chunks(ranks):
            self._control.send("stop", call=call, ranks=some, hard=hard)

    def probe(self, ranks: Sequence[int]) -> None:
        """See `Reach.probe`."""
        for some in _chunks(ranks):
            self._control.send("probe", ranks=some)


def _chunks(ranks: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(ranks), _RANKS_A_MESSAGE):
        yield ranks[first : first + _RANKS_A_MESSAGE]
