"""Which workers have been silent for too long. Pure: time is an argument.

Workers with nothing to say beat (see `Beat`), so a silent one hangs, is cut off or is dead. The limit is patient: a file
system that stands still for a minute must not cost a healthy node. Silence while this process itself stood still (a job
that was suspended and resumed, a laptop's lid) counts for nobody.
"""

from __future__ import annotations

from collections.abc import Iterable

from exex.protocol.messages import Rank

LOOKS = 10
"""Sweeps over all workers per limit; silence is found at most a tenth of the limit late."""

PAUSE = 0.25
"""Share of the limit after which a gap between two calls is a pause of our own."""


class Liveness:
    """When each worker was last heard of.

    Args:
        limit_s: silence after which a worker is given up; 0 for never.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._heard_s: dict[Rank, float] = {}
        self._swept_s = 0.0
        self._asked_s = 0.0

    def heard(self, rank: Rank, now_s: float) -> None:
        """A message of `rank` has come. O(1)."""
        self._heard_s[rank] = now_s

    def forget(self, rank: Rank) -> None:
        """`rank` is gone, or has left in order."""
        self._heard_s.pop(rank, None)

    def quiet(self, ranks: Iterable[Rank], now_s: float) -> list[Rank]:
        """Those that were not heard of for a quarter of the limit."""
        heard_s = self._heard_s
        return [rank for rank in ranks if self.limit_s and now_s - heard_s.get(rank, now_s) > self.limit_s * PAUSE]

    def silent(self, now_s: float) -> list[Rank]:
        """Workers to give up now; to be asked at least `LOOKS` times per limit. O(workers), but rarely."""
        if not self.limit_s:
            return []
        gap_s, self._asked_s = now_s - self._asked_s, now_s
        if gap_s > self.limit_s * PAUSE:
            self._heard_s = dict.fromkeys(self._heard_s, now_s)
            self._swept_s = now_s
            return []
        if now_s - self._swept_s < self.limit_s / LOOKS:
            return []
        self._swept_s = now_s
        return [rank for rank, heard_s in self._heard_s.items() if now_s - heard_s > self.limit_s]
