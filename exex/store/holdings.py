"""What one rank answers for in the store of its node: its share of the limit, and what is moved to disk when that is passed.

A rank answers for what its task processes have written, for what it has fetched, and rank 0 for what the client has written. Who
is above its share moves the files that were not used for longest to the node's disk, a piece at each turn, so that its loop stays
responsive. Names stay, and so does what has been mapped.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from exex.protocol.payload import Stored
from exex.store.node_store import NodeStore, free_bytes, offsets
from exex.store.recycling import LEAST_BYTES, SHARE, Spares

PIECE_BYTES = 4 * 1024**2
"""Moved to disk in one turn."""


class Holdings:
    """See the module docstring.

    Args:
        limit_bytes: this rank's share of the node's memory.

    Attributes:
        used_bytes: in memory, of those that this rank answers for.
        spilled: how many it has moved to disk.
    """

    def __init__(self, store: NodeStore, limit_bytes: int) -> None:
        self.store = store
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.spilled = 0
        self._names: set[str] = set()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # of those in memory; the one used last comes last
        self._moving: Iterator[None] | None = None
        self._spares = Spares(store.directory, limit_bytes // SHARE)
        self._now_s = 0.0

    def adopt(self, stored: Stored) -> None:
        """Answer for what has been written here."""
        self._names.add(stored.name)
        if stored.name not in self._sizes and os.path.exists(self.store.paths(stored.name)[0]):
            size = offsets(stored.sizes)[1]
            self._sizes[stored.name] = size
            self.used_bytes += size
            if self.used_bytes + self._spares.used_bytes > self.limit_bytes:
                self._spares.tick(math.inf)

    def __contains__(self, name: str) -> bool:
        """Whether this rank answers for it."""
        return name in self._names

    def use(self, name: str) -> None:
        """It is needed: others go first."""
        if name in self._sizes:
            self._sizes.move_to_end(name)

    def free(self, names: Iterable[str]) -> None:
        """Remove them, whoever has written them."""
        names = list(names)
        for name in names:
            size = self._sizes.pop(name, 0)
            self.used_bytes -= size
            self._names.discard(name)
            if size >= LEAST_BYTES:
                self._spares.retire(self.store.paths(name)[0], size, self._now_s)
        self.store.remove(names)

    def tick(self, now_s: float) -> None:
        """Time passes."""
        self._now_s = now_s
        self._spares.tick(now_s)

    def is_busy(self) -> bool:
        """Whether `work` has something to do."""
        return self._spares.is_busy() or self.is_above()

    def work(self) -> bool:
        """Do a piece of what need not be done at once. True if there is more."""
        if self._spares.is_busy():
            self._spares.work()
        elif self.is_above():
            self.spill()
        return self.is_busy()

    def is_above(self) -> bool:
        """Whether something should be moved to disk."""
        return self._moving is not None or (self.used_bytes > self.limit_bytes and bool(self.store.spill))

    def spill(self) -> bool:
        """Move a piece to disk, if this rank is above its share. True if there is more to move."""
        if self._moving is None:
            if not self.is_above() or not self._sizes:
                return False
            name, size = self._sizes.popitem(last=False)
            self.used_bytes -= size
            self._moving = self._move(name, size)
        try:
            next(self._moving)
        except StopIteration:
            self._moving = None
        return self.is_above()

    def _move(self, name: str, size: int) -> Iterator[None]:
        source, target = self.store.paths(name)
        temporary = f"{target}.moving"
        with contextlib.suppress(FileNotFoundError), open(source, "rb", 0) as file:  # else it was freed meanwhile
            if free_bytes(self.store.spill) < size:
                return  # it stays where it is: memory may hold more than it should, but no value is lost
            with contextlib.suppress(OSError), open(temporary, "wb", 0) as copy:
                done = 0
                while done < size and (sent := os.sendfile(copy.fileno(), file.fileno(), done, min(PIECE_BYTES, size - done))):
                    done += sent
                    yield
                if done == size and os.path.exists(source):
                    os.rename(temporary, target)
                    os.unlink(source)
                    self.spilled += 1
            with contextlib.suppress(OSError):
                os.unlink(temporary)
