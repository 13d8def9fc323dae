"""What a worker's loop does about stored payloads: it gets those that its calls need, and tells the manager what it has got."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from exex.errors import ProtocolError
from exex.protocol.messages import Absent, Assign, Chunk, Copy, Fetch, Free, Here, Holds, Rank
from exex.protocol.payload import Payload, Stored
from exex.store.exchange import Exchange
from exex.worker.assigned import on_arrived
from exex.worker.slot import Call
from exex.worker.state import WorkerState
from exex.worker.stored import value_name

_BETWEEN_RANKS = (Fetch, Chunk, Here, Absent)


class Needs:
    """Of one worker.

    Args:
        exchange: of this rank.
        asker: by which this worker's fetches are told from those of others that use this exchange.
        is_own: nobody else turns it.
        send: of a message to the manager.
    """

    def __init__(self, exchange: Exchange, asker: int, is_own: bool, send: Callable[[object], None]) -> None:
        self.exchange = exchange
        self._asker = asker
        self._is_own = is_own
        self._send = send
        self._copies: set[str] = set()  # that the manager waits for

    def lacking(self, msg: Assign) -> dict[int, set[str]]:
        """Which calls need what is not here; it is on its way from now on."""
        missing: set[str] = set()
        for name in msg.sources:
            if self.exchange.has(name):
                self.exchange.holdings.use(name)
            else:
                missing.add(name)
        if not missing:
            return {}
        lacking: dict[int, set[str]] = {}
        for i, payload in enumerate(msg.payloads):
            for each in (payload, *msg.values.get(i, ())):
                if type(each) is Stored and each.name in missing:
                    lacking.setdefault(i, set()).add(each.name)
                    self.exchange.fetch(each, msg.sources[each.name], self._asker)
        return lacking

    def on_message(self, sender: Rank, msg: object) -> None:
        """What the manager, or another rank, says of stored payloads.

        Raises:
            ProtocolError: another rank says what only the manager may say.
        """
        if isinstance(msg, _BETWEEN_RANKS):
            self.exchange.on_message(sender, msg)
            if sender == 0 and isinstance(msg, Absent):
                self.exchange.on_lost(msg.names)
        elif sender:
            raise ProtocolError(f"rank {sender} sends a {type(msg).__name__}")
        elif isinstance(msg, Free):
            self.exchange.free(msg.names)
        elif isinstance(msg, Copy):
            self._copy(msg)

    def _copy(self, msg: Copy) -> None:
        for stored in msg.payloads:
            if self.exchange.has(stored.name):
                self.exchange.adopt(stored)
            self._copies.add(stored.name)
            self.exchange.fetch(stored, msg.source, self._asker)

    def turn(self, worker: WorkerState) -> bool:
        """See what has arrived, and do what can be done at any time. True if there was anything."""
        exchange = self.exchange
        held, absent = [], []
        for name, is_here in exchange.events(self._asker):
            on_arrived(worker, name, is_here, exchange.why(name))
            if is_here and (name in self._copies or name in exchange.holdings):
                held.append(name)
            elif not is_here and name in self._copies:
                absent.append(name)
            self._copies.discard(name)
        if held:
            self._send(Holds(names=held))
        if absent:
            self._send(Absent(names=absent))
        return bool(held or absent) | (self._is_own and exchange.is_busy() and (exchange.work() or True))

    def tick(self, now_s: float) -> None:
        """See what takes too long."""
        if self._is_own:
            self.exchange.tick(now_s)

    def adopt(self, written: Iterable[Stored]) -> None:
        """Task processes of this rank have put these into the store."""
        for stored in written:
            self.exchange.adopt(stored)

    def on_died(self, calls: Sequence[Call]) -> None:
        """The task process that held these is dead: what it may have written, nobody will hear of."""
        self.exchange.holdings.free([value_name(call.task, call.attempt) for call in calls])


def mapped(
    needs: Needs | None, call: Call, other: Callable[[Payload], Payload] = lambda payload: payload
) -> tuple[Payload, list[Payload] | None]:
    """A call and its values, with what is stored mapped, and the `other` of what is not.

    Raises:
        FileNotFoundError: something is not in the store of this node.
    """

    def one(payload: Payload) -> Payload:
        if type(payload) is not Stored:
            return other(payload)
        if needs is None:
            raise FileNotFoundError(payload.name)
        return needs.exchange.payload(payload)

    return one(call.payload), None if call.values is None else [one(value) for value in call.values]
