"""The short forms in which batch systems write many hosts and many counts. Pure."""

from __future__ import annotations

import itertools
import re

MOST = 1_000_000
"""Names or counts that a text may stand for: a slip such as `n[0-99999999]` must not fill the memory."""

_MOST_SHOWN = 60  # characters of the text, in messages
_ENTRY = re.compile(r"(?:[A-Za-z0-9._-]|\[[0-9,-]+\])+")  # no + within: it would try each way to cut a long name
_SEPARATOR = re.compile(r",(?![^\[]*\])")  # a comma outside of brackets
_BRACKETS = re.compile(r"\[([^\]]*)\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand_hosts(text: str) -> list[str]:
    """Names in a host list of Slurm, Flux or pdsh, in its order: `nid[00012-00015,00020],login1`, `rack[1-2]node[1-3]`.

    A number is written as wide as the first of its range.

    Raises:
        ValueError: what is wrong with it, in words that follow the text.
    """
    names: list[str] = []
    for entry in _SEPARATOR.split(text):
        if not _ENTRY.fullmatch(entry):
            raise ValueError(f"{_shown(entry)} is no host name, with or without ranges such as [1-3,7]")
        parts = _BRACKETS.split(entry)  # literal, ranges, literal, ...
        choices = [_numbers(part) if odd % 2 else [part] for odd, part in enumerate(parts)]
        names += map("".join, itertools.islice(itertools.product(*choices), MOST + 1))
        if len(names) > MOST:
            raise ValueError(f"it names more than {MOST:,} hosts")
    return names


def _numbers(ranges: str) -> list[str]:
    numbers: list[str] = []
    for text in ranges.split(","):
        found = _RANGE.fullmatch(text)
        if found is None:
            raise ValueError(f"{_shown(ranges)} is no list of numbers and ranges")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"the range {_shown(text)} goes backwards")
        if last - first >= MOST:
            raise ValueError(f"it names more than {MOST:,} hosts")
        numbers += [f"{number:0{len(found[1])}d}" for number in range(first, last + 1)]
    return numbers


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "...")


def expand_nids(text: str) -> list[str]:
    """Host names of a Cray's numbered nodes: `3834-3836,12` is nid03834, nid03835, nid03836, nid00012.

    Raises:
        ValueError: as `expand_hosts`.
    """
    return [nid_name(int(number)) for number in _numbers(text)]


def nid_name(number: int) -> str:
    """What a Cray calls the node of this number."""
    return f"nid{number:05d}"


def expand_counts(text: str) -> list[int]:
    """Slurm's counts per node: `4(x2),3` is 4, 4, 3.

    Raises:
        ValueError: it is no such list.
    """
    counts: list[int] = []
    for entry in text.split(","):
        found = _COUNT.fullmatch(entry)
        if found is None:
            raise ValueError(f"{_shown(entry)} is no count such as 4 or 4(x2)")
        repeats = int(found[2] or 1)
        if len(counts) + repeats > MOST:
            raise ValueError(f"it counts more than {MOST:,} nodes")
        counts += [int(found[1])] * repeats
    return counts
