"""What was published of Parsl's extreme-scale executor (EXEX) on Blue Waters, 32 workers on a node.

Babuji et al., "Parsl: Pervasive Parallel Programming in Python", HPDC 2019 (arXiv 1905.02158), and Parsl's documentation,
historical/performance. Its text gives three numbers; the curves are in figures without a table, so their points are read off, to
about a tenth.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_WORKERS, MOST_NODES = 262_144, 8192
"""Text: connected at once."""

BEST_RATE = 1176.0
"""Text: no-ops per second, 50,000 of them, on Midway; "upward of 1200" in the abstract."""


class Curve(NamedTuple):
    """Seconds by number of workers."""

    title: str
    points: tuple[tuple[int, float], ...]


STRONG = Curve(
    "EXEX, 5,000 tasks of 1 s (read off the figure)",
    tuple((2**power, 14.5) for power in range(9, 19)),
)
"""Flat between 13 and 16 s from 512 to 262,144 workers; here the middle."""

WEAK = Curve(
    "EXEX, 10 tasks for each worker, length not stated (read off the figure)",
    ((4096, 100.0), (8192, 250.0), (16_384, 430.0), (32_768, 860.0)),
)

STRONG_TASKS, STRONG_LENGTH_S, WEAK_EACH = 5000, 1.0, 10
"""The designs."""
