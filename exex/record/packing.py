"""Chunks of a run record as HDF5 reads them. Pure numpy; the library's own filters would take several times as long.

Numbers and times of one chunk are close to each other, so their differences to the least need few bytes. That is the form of
HDF5's filter scale-offset (H5Zscaleoffset.c), whose header has the bits of a value, so a whole number of bytes may be chosen.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEAD = struct.Struct("<IBQ8x")
"""Bits of each value, bytes of the number that follows, the least value."""

_DEFLATE_LEVEL = 1

DEFLATED = 0
"""Filter mask of a chunk to which all filters were applied."""


def filters(dtype: np.dtype[Any]) -> dict[str, Any]:
    """How a column's data set is to be made for chunks of `packed`."""
    return {"compression": "gzip", "compression_opts": _DEFLATE_LEVEL, **({"scaleoffset": 0} if dtype.kind in "iu" else {})}


def packed(values: NDArray[Any]) -> tuple[bytes, int]:
    """A chunk, and its filter mask: it is not deflated."""
    return (_offsets(values), 0b10) if values.dtype.kind in "iu" else (values.tobytes(), 0b1)


def deflated(values: NDArray[Any], rows: int) -> tuple[bytes, int]:
    """A chunk of so many rows that has only some yet, at least one. It takes little room, as it will be written again."""
    filled = np.concatenate([values, np.full(rows - len(values), values[-1])])
    return zlib.compress(packed(filled)[0], _DEFLATE_LEVEL), DEFLATED


def _offsets(values: NDArray[Any]) -> bytes:
    """Their differences to the least of them. All bits set would stand for the fill value, so none may be that large."""
    least, full_bits = int(values.min()), 8 * values.itemsize
    span = int(values.max()) - least
    bits = -(-(span + 1).bit_length() // 8) * 8 if span else 1
    head = _HEAD.pack(min(bits, full_bits), 8, least & (2**64 - 1))
    if bits >= full_bits:
        return head + values.tobytes()
    if not span:
        return head + bytes(-(-len(values) // 8))
    differences = values - values.dtype.type(least)
    if bits in (8, 16, 32):
        body: bytes = differences.astype(f">u{bits // 8}").tobytes()
    else:
        body = differences.astype(">u8").view("u1").reshape(-1, 8)[:, 8 - bits // 8 :].tobytes()
    return head + body
