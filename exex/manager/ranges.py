"""Which task numbers a client has used. Pure."""

from __future__ import annotations

from bisect import bisect_right


class Ranges:
    """A set of numbers that is made of few ranges. A client counts its tasks up, so there is mostly one."""

    __slots__ = ("_ends", "_firsts")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []

    def meets(self, first: int, count: int) -> bool:
        """Whether any of `count` numbers from `first` is in the set. O(log ranges)."""
        before = bisect_right(self._firsts, first + count - 1)
        return before > 0 and self._ends[before - 1] > first

    def add(self, first: int, count: int) -> None:
        """Add numbers of which none is in the set. O(log ranges), O(ranges) if they leave a gap before older ones."""
        firsts, ends, end = self._firsts, self._ends, first + count
        at = bisect_right(firsts, first)
        joins_left = at > 0 and ends[at - 1] == first
        joins_right = at < len(firsts) and firsts[at] == end
        if joins_left and joins_right:
            ends[at - 1] = ends.pop(at)
            del firsts[at]
        elif joins_left:
            ends[at - 1] = end
        elif joins_right:
            firsts[at] = first
        else:
            firsts.insert(at, first)
            ends.insert(at, end)

    def end(self) -> int:
        """One more than the largest number in it; 0 if it is empty."""
        return self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._firsts)
