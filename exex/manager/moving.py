"""The manager's part in moving stored payloads: what its own store gets and gives, what workers and clients are told of them.

Owned by the loop. Where bytes are, and who needs them, is for `stored` and `data`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from exex.errors import WorkerLost
from exex.manager import data
from exex.manager.records import Kept
from exex.manager.stored import HOME
from exex.protocol import payload as payloads
from exex.protocol.messages import Absent, Brought, Chunk, Copy, Fetch, Free, Here, Holds, Outcome, Rank
from exex.protocol.payload import Payload, Stored

if TYPE_CHECKING:
    from exex.manager.state import ManagerState

EXCHANGED = frozenset((Fetch, Chunk, Here, Absent))
"""Messages between any two ranks."""


class Exchange(Protocol):
    """The store of rank 0's node, and its talk with other ranks about what lies there."""

    def on_message(self, rank: Rank, message: Any) -> None:
        """One of `EXCHANGED` has come."""

    def fetch(self, stored: Stored, source: Rank) -> None:
        """Get a payload from a rank. `events` tells how that ended."""

    def events(self) -> Iterable[tuple[str, bool]]:
        """Payloads that were to be fetched, and whether they are here now."""

    def has(self, name: str) -> bool:
        """Whether a payload lies in the store of this node."""

    def payload(self, stored: Stored) -> Payload:
        """The payload, mapped. Raises OSError if it is not here."""

    def adopt(self, stored: Stored) -> None:
        """Rank 0 answers for a file that a client has put here."""

    def sweep(self, prefix: str, is_known: Callable[[str], bool]) -> None:
        """Remove what clients have put here under names that begin so, unless it is known."""

    def free(self, names: list[str]) -> None:
        """Nobody needs these any more."""

    def on_gone(self, rank: Rank) -> None:
        """A rank is lost."""

    def tick(self, now_s: float) -> None:
        """Time passes."""

    def is_busy(self) -> bool:
        """Whether `work` has something to do."""

    def work(self) -> bool:
        """Do a piece of what can be done at any time."""


class Mover:
    """See the module docstring.

    Args:
        exchange: None if rank 0 has no store: then no rank has one.
        to_worker: sends a message to a rank; `to_client`: to a client, by its number here.
    """

    def __init__(
        self,
        state: ManagerState,
        exchange: Exchange | None,
        to_worker: Callable[[Rank, object], None],
        to_client: Callable[[int, object], None],
    ) -> None:
        self._state = state
        self._exchange = exchange
        self._to_worker = to_worker
        self._to_client = to_client
        if exchange is not None:
            state.data.is_at_home = exchange.has
            state.data.adopt = exchange.adopt
            state.data.sweep = lambda prefix: exchange.sweep(prefix, state.data.records.__contains__)
            state.memo.open = exchange.payload

    def on_message(self, rank: Rank, message: object) -> None:
        """What a worker says about stored payloads."""
        worker = self._state.workers.get(rank)
        store = None if worker is None else worker.store
        if type(message) is Holds:
            self._state.data.on_holds(store, rank, message.names)
        elif self._exchange is not None:
            self._exchange.on_message(rank, message)
            if type(message) is Absent:
                self._state.data.on_absent(store, rank, message.names)

    def lost(self, rank: Rank) -> None:
        """A rank is gone."""
        if self._exchange is not None:
            self._exchange.on_gone(rank)

    def settle(self, now_s: float) -> bool:
        """Before placement: let what has arrived, or is lost, have its effects. True if there was anything."""
        state, exchange = self._state, self._exchange
        if exchange is None:
            return False
        exchange.tick(now_s)
        found = exchange.is_busy() and exchange.work()
        for name, is_here in exchange.events():
            data.on_event(state, name, is_here)
            found = True
        if not found and not (state.data.in_use and state.data.has_work()):
            return False
        data.settle(state)
        while state.data.fetches or any(copy[0] == HOME for copy in state.data.copies):
            self._act_at_home(exchange)
            data.settle(state)
        return True

    def _act_at_home(self, exchange: Exchange) -> None:
        """Fetches for rank 0; what rank 0 is asked about its own store is answered at once."""
        found = self._state.data
        fetches, found.fetches = found.fetches, []
        for record, source in fetches:
            exchange.fetch(Stored(record.name, record.sizes), source)  # a record would live as long as it is under way
        asked = [stored.name for rank, stored, _ in found.copies if rank == HOME]
        found.copies = [copy for copy in found.copies if copy[0] != HOME]
        here = [name for name in asked if exchange.has(name)]
        found.on_holds(found.home, HOME, here)
        found.on_absent(found.home, HOME, [name for name in asked if name not in here])

    def flush(self) -> bool:
        """Tell workers and clients. True if there was anything."""
        found = self._state.data
        if not found.in_use or not (found.brought or found.copies or found.frees or found.absents):
            return False
        for client, name, record, maps in found.brought:
            self._bring(client, name, record, maps)
        found.brought.clear()
        copies: dict[tuple[Rank, Rank], list[Stored]] = {}
        for rank, stored, source in found.copies:
            copies.setdefault((rank, source), []).append(stored)
        found.copies.clear()
        for (rank, source), several in copies.items():
            self._to_worker(rank, Copy(payloads=several, source=source))
        copies.clear()
        for rank, names in found.absents.items():
            self._to_worker(rank, Absent(names=names))
        found.absents.clear()
        frees, found.frees = found.frees, {}
        for rank, names in frees.items():
            if rank != HOME:
                self._to_worker(rank, Free(names=names))
            elif self._exchange is not None:
                self._exchange.free(names)
        return True

    def _bring(self, client: int, name: str, record: Kept | None, maps: bool) -> None:
        """Answer a Want."""
        if record is None:
            error = payloads.dump_error(LookupError(f"the manager has no value {name} any more"), "")
            self._to_client(client, Brought(name, Outcome.FAILED, error))
        elif record.error is not None:
            self._to_client(client, Brought(name, Outcome.FAILED, record.error))
        elif record.value is not None or maps:
            self._to_client(client, Brought(name, Outcome.DONE, record if record.value is None else record.value))
        else:
            assert self._exchange is not None
            try:
                self._to_client(client, Brought(name, Outcome.DONE, self._exchange.payload(record)))
            except OSError as error:
                lost = WorkerLost(f"the value {name} cannot be read from the store of rank 0's node: {error}")
                self._to_client(client, Brought(name, Outcome.FAILED, payloads.dump_error(lost, "")))
