"""One stream of chunks from rank 0 to a leader of each node, and from there a word to the other ranks of the node.

Used once, at the start, between MPI_Init and the handshake. The chunks go by nonblocking broadcasts of one size, several at a
time, so that a node unpacks while the next ones are under way. Whoever waits sleeps in between: ranks that spin would
take the cores of the leader that unpacks.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

CHUNK_BYTES = 1024**2
"""Most that a chunk can hold."""

DEPTH = 4
"""Broadcasts that are under way at a time."""

WORD_BYTES = 16 * 1024
"""Most that a leader can tell the others of its node at a time."""

REPORT_BYTES = 1024
"""Most that a leader can tell rank 0."""

_HEAD = struct.Struct("<ii")
_LONGEST_PAUSE_S = 5e-3
_END = 0

Chunk = tuple[int, Any]


class Tree:
    """The leaders of all nodes, and the ranks of this one.

    Args:
        leaders: communicator of the leaders, rank 0 of the world first; None on other ranks.
        node: communicator of the ranks of this node, its leader first.
        on_progress: called each time that something has arrived.
    """

    def __init__(self, leaders: Any, node: Any, on_progress: Callable[[], None] = lambda: None) -> None:
        self._leaders = leaders
        self._node = node
        self._on_progress = on_progress
        self.is_leader: bool = leaders is not None
        self.is_first: bool = leaders is not None and leaders.Get_rank() == 0
        self.nodes: int = leaders.Get_size() if leaders is not None else 0

    def chunks(self, source: Iterator[Chunk] | None) -> Iterator[Chunk]:
        """On each leader: the chunks of rank 0's `source`, in order, and rank 0 takes part in it like the others.

        A chunk is valid until the next one is asked for. To be read to its end, else the others wait for ever.
        """
        if self.nodes == 1:
            assert source is not None
            for chunk in source:
                self._on_progress()
                yield chunk
        elif source is not None:
            yield from self._send(source)
        else:
            yield from self._receive()

    def _send(self, source: Iterator[Chunk]) -> Iterator[Chunk]:
        buffers = [bytearray(_HEAD.size + CHUNK_BYTES) for _ in range(DEPTH)]
        requests: list[Any] = [None] * DEPTH
        at = 0

        def post(kind: int, data: Any) -> None:
            nonlocal at
            slot, at = at % DEPTH, at + 1
            if requests[slot] is not None:
                self._wait(requests[slot])
            _HEAD.pack_into(buffers[slot], 0, kind, len(data))
            buffers[slot][_HEAD.size : _HEAD.size + len(data)] = data
            requests[slot] = self._leaders.Ibcast(buffers[slot], 0)

        for kind, data in source:
            post(kind, data)
            self._on_progress()
            yield kind, data
        for _ in range(DEPTH):  # each of the others has posted so many when it sees the first
            post(_END, b"")
        for request in requests:
            self._wait(request)

    def _receive(self) -> Iterator[Chunk]:
        buffers = [bytearray(_HEAD.size + CHUNK_BYTES) for _ in range(DEPTH)]
        requests = [self._leaders.Ibcast(buffer, 0) for buffer in buffers]
        at = 0
        while True:
            slot, at = at % DEPTH, at + 1
            self._wait(requests[slot])
            self._on_progress()
            kind, size = _HEAD.unpack_from(buffers[slot])
            if kind == _END:
                break
            yield kind, memoryview(buffers[slot])[_HEAD.size : _HEAD.size + size]
            requests[slot] = self._leaders.Ibcast(buffers[slot], 0)
        for _ in range(DEPTH - 1):
            slot, at = at % DEPTH, at + 1
            self._wait(requests[slot])

    def gather(self, word: str) -> list[str]:
        """On each leader: tell the others something short; returns what all have said, on rank 0, and [] elsewhere."""
        mine = _pack(word, REPORT_BYTES)
        theirs = bytearray(REPORT_BYTES * self.nodes) if self.is_first else None
        self._wait(self._leaders.Igather(mine, theirs, 0))
        view = memoryview(theirs or b"")
        return [_unpack(view[at : at + REPORT_BYTES]) for at in range(0, len(view), REPORT_BYTES)]

    def tell_leaders(self, word: str) -> str:
        """On each leader: what rank 0 has passed."""
        return self._tell(self._leaders, word, self.is_first)

    def tell_node(self, word: str) -> str:
        """On each rank of a node: what its leader has passed."""
        return self._tell(self._node, word, self.is_leader)

    def _tell(self, comm: Any, word: str, is_root: bool) -> str:
        if comm.Get_size() == 1:
            return word
        data = _pack(word, WORD_BYTES) if is_root else bytearray(WORD_BYTES)
        self._wait(comm.Ibcast(data, 0))
        return _unpack(memoryview(data))

    def close(self) -> None:
        """Free the communicators. Collective."""
        for comm in (self._leaders, self._node):
            if comm is not None:
                comm.Free()

    def _wait(self, request: Any) -> None:
        pause_s = 1e-5
        while not request.Test():
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


class Alone:
    """The same for a world of one rank, without MPI."""

    is_leader = is_first = True
    nodes = 1

    def chunks(self, source: Iterator[Chunk] | None) -> Iterator[Chunk]:
        """See `Tree.chunks`."""
        assert source is not None
        return source

    def gather(self, word: str) -> list[str]:
        """See `Tree.gather`."""
        return [word]

    def tell_leaders(self, word: str) -> str:
        """See `Tree.tell_leaders`."""
        return word

    def tell_node(self, word: str) -> str:
        """See `Tree.tell_node`."""
        return word

    def close(self) -> None:
        """Nothing."""


def _pack(word: str, most_bytes: int) -> bytearray:
    data = json.dumps(word).encode()
    if len(data) > most_bytes:
        data = json.dumps(word[: most_bytes // 8]).encode()
    return bytearray(data.ljust(most_bytes))


def _unpack(data: memoryview) -> str:
    return str(json.loads(bytes(data)))
