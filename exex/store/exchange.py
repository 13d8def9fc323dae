"""How stored payloads get from the store of one node to that of another: from rank to rank, in chunks. Pure but for the store.

A rank asks another one for what it needs (Fetch) and gets it in Chunks, a window at a time; what it has got of it, it passes on
at once to those who have asked it, so that a chain or a tree of ranks is a pipeline. A rank that has the same store is told when
the file is there (Here). Time is an argument, and messages leave through a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from exex.errors import StoreFull
from exex.protocol.messages import Absent, Chunk, Fetch, Here, Rank
from exex.protocol.payload import Buffer, Large, Stored
from exex.store.holdings import Holdings
from exex.store.node_store import Incoming, offsets

CHUNK_BYTES = 2 * 1024**2
"""Of one Chunk. A loop is busy for about a millisecond with one."""

WINDOW_BYTES = 4 * CHUNK_BYTES
"""What may be under way to one rank, of one payload."""

SILENT_S = 30.0
"""Patience with a source, or with one that has asked and takes nothing. A rank in a function on a communicator says nothing."""

EARLY_S = 1.0
"""Who is asked for what it has not got may be about to hear that it is to get it: it says no only after this time."""

_FIRST = 0


class _Arrival:
    """A payload that this rank is getting."""

    __slots__ = ("askers", "at", "file", "followers", "heard_s", "same_store", "size", "source", "stored", "told")

    def __init__(self, stored: Stored, source: Rank, now_s: float) -> None:
        self.stored = stored
        self.source = source
        self.size = offsets(stored.sizes)[1]
        self.heard_s = now_s
        self.at = 0  # so many bytes have arrived
        self.told = 0  # so many it has told the source of
        self.file: Incoming | None = None
        self.askers: set[int] = set()
        self.followers: list[_Serving] = []  # ranks that want it from this one
        self.same_store: set[Rank] = set()  # ranks that will find it in the store


class _Serving:
    """A payload that another rank is getting from this one.

    Attributes:
        view: its bytes; None before the first have arrived here.
        there: so many of these are here.
        sent: so many have left.
        most: so many may leave for now.
    """

    __slots__ = ("heard_s", "most", "name", "peer", "sent", "size", "there", "view")

    def __init__(self, peer: Rank, name: str, size: int, at: int, now_s: float) -> None:
        self.peer = peer
        self.name = name
        self.size = size
        self.view: memoryview | None = None
        self.there = 0
        self.sent = at
        self.most = at + WINDOW_BYTES
        self.heard_s = now_s


class Exchange:
    """This rank's part in it.

    Args:
        rank: this one.
        holdings: what it answers for in the store of its node.
        send: of a message to a rank; raises ConnectionError if that is gone.
        on_absent: told of names that another rank has asked for in vain, so that the manager hears of it.
        on_silent: told of ranks that may be dead: what is under way to them, or from them, is to be waited for no longer.

    Attributes:
        key: of this node's store.
        fetched_bytes: that have come from other ranks.
        sent_bytes: that have left to other ranks.
    """

    def __init__(
        self,
        rank: Rank,
        holdings: Holdings,
        send: Callable[[Rank, object], None],
        on_absent: Callable[[list[str]], None] | None = None,
        on_silent: Callable[[Rank], None] | None = None,
    ) -> None:
        self.holdings = holdings
        self.store = holdings.store
        self.key = self.store.key()
        self.fetched_bytes = self.sent_bytes = 0
        self._rank = rank
        self._send = send
        self._on_absent = on_absent
        self._on_silent = on_silent
        self._now_s = 0.0
        self._arrivals: dict[str, _Arrival] = {}
        self._servings: dict[tuple[Rank, str], _Serving] = {}
        self._early: dict[tuple[Rank, str], tuple[Fetch, float]] = {}  # not answered yet, and since when
        self._events: dict[int, list[tuple[str, bool]]] = {}
        self._why: dict[str, str] = {}

    # ---- for the owner's loop ----

    @property
    def store_dir(self) -> str:
        """By which processes of this node find the store."""
        return self.store.directory

    def has(self, name: str) -> bool:
        """Whether it is in the store of this node."""
        return self.store.has(name)

    def adopt(self, stored: Stored) -> None:
        """Something was written into the store for which this rank answers from now on."""
        self.holdings.adopt(stored)
        if self._early:
            self._answer_early(stored.name)

    def sweep(self, prefix: str, is_known: Callable[[str], bool]) -> None:
        """Remove what lies in the store under names that begin so, complete or not, unless it is known. O(files)."""
        self.store.remove(name for name in self.store.names(prefix) if not is_known(name))

    def payload(self, stored: Stored) -> Large:
        """The payload, mapped.

        Raises:
            FileNotFoundError: it is not here.
        """
        self.holdings.use(stored.name)
        return self.store.map(stored)

    def fetch(self, stored: Stored, source: Rank, asker: int = _FIRST) -> None:
        """Get it from `source` into this store; `events(asker)` tells the end."""
        name = stored.name
        arrival = self._arrivals.get(name)
        if arrival is not None:
            arrival.askers.add(asker)
        elif self.has(name):
            self.holdings.use(name)
            self._tell(asker, name, True)
        elif source == self._rank:
            self._tell(asker, name, False)
        else:
            arrival = self._arrivals[name] = _Arrival(stored, source, self._now_s)
            arrival.askers.add(asker)
            self._why.pop(name, None)
            if not self._say(source, Fetch(names=[name], store=self.key)):
                self._fail(arrival)
            elif self._early:
                self._answer_early(name)

    def events(self, asker: int = _FIRST) -> list[tuple[str, bool]]:
        """What has ended since the last call: names, and whether they are here now."""
        return self._events.pop(asker, [])

    def why(self, name: str) -> str:
        """Why there was no room for it here; "" if that was not the reason."""
        return self._why.get(name, "")

    def free(self, names: Sequence[str]) -> None:
        """Nobody needs these any more."""
        for name in names:
            arrival = self._arrivals.get(name)
            if arrival is not None:
                self._fail(arrival)
        freed = set(names)
        for key in [key for key in self._servings if key[1] in freed]:
            del self._servings[key]  # who still takes it has no use for it either
        self.holdings.free(names)

    def is_busy(self) -> bool:
        """Whether `work` has something to do."""
        return self.holdings.is_busy()

    def work(self) -> bool:
        """Do a piece of what can be done at any time: moving to disk, giving memory back. True if there is more."""
        return self.holdings.work()

    def tick(self, now_s: float) -> None:
        """Give up what takes too long. Call it now and then: what is silent is found out that much later."""
        if now_s - self._now_s > SILENT_S / 4:  # it was this process that stood still
            for arrival in self._arrivals.values():
                arrival.heard_s = now_s
            for serving in self._servings.values():
                serving.heard_s = now_s
            self._early = {key: (msg, now_s) for key, (msg, _) in self._early.items()}
        self._now_s = now_s
        self.holdings.tick(now_s)
        if self._arrivals or self._servings or self._early:
            self._see_who_is_silent(now_s)

    def _see_who_is_silent(self, now_s: float) -> None:
        silent = set()
        for arrival in list(self._arrivals.values()):
            if not arrival.at and self.has(arrival.stored.name):
                self._succeed(arrival)  # another rank of this node was faster
            elif now_s - arrival.heard_s > SILENT_S:
                silent.add(arrival.source)
                self._fail(arrival)
        for key, serving in list(self._servings.items()):
            if now_s - serving.heard_s > SILENT_S:
                silent.add(serving.peer)
                self._forget(key)
        for rank in silent:
            self._give_up(rank)
        for (peer, name), (msg, since_s) in list(self._early.items()):
            if now_s - since_s > EARLY_S:
                del self._early[peer, name]
                if not self._serve(peer, name, msg):
                    self._say(peer, Absent(names=[name]))
                    if self._on_absent is not None:
                        self._on_absent([name])

    # ---- from other ranks ----

    def on_message(self, rank: Rank, msg: object) -> None:
        """Fetch, Chunk, Here or Absent of another rank."""
        if type(msg) is Chunk:
            self._on_chunk(rank, msg)
        elif type(msg) is Fetch:
            for name in msg.names:
                if not self._serve(rank, name, msg):
                    self._early[rank, name] = msg, self._now_s
        elif type(msg) is Here:
            for arrival in self._from(rank, msg.names):
                (self._succeed if self.has(arrival.stored.name) else self._fail)(arrival)
        elif type(msg) is Absent:
            for arrival in self._from(rank, msg.names):
                self._fail(arrival)

    def on_lost(self, names: Iterable[str]) -> None:
        """The manager says that these will not come: who was to send them is lost."""
        for name in names:
            arrival = self._arrivals.get(name)
            if arrival is not None:
                self._fail(arrival)
                self._give_up(arrival.source)

    def on_gone(self, rank: Rank) -> None:
        """A rank is lost."""
        for arrival in [arrival for arrival in self._arrivals.values() if arrival.source == rank]:
            self._fail(arrival)
        for key in [key for key in self._servings if key[0] == rank]:
            self._forget(key)
        for key in [key for key in self._early if key[0] == rank]:
            del self._early[key]

    def _give_up(self, rank: Rank) -> None:
        if self._on_silent is not None and rank:
            self._on_silent(rank)

    def _from(self, rank: Rank, names: Iterable[str]) -> list[_Arrival]:
        found = [self._arrivals.get(name) for name in names]
        return [arrival for arrival in found if arrival is not None and arrival.source == rank]

    # ---- getting ----

    def _on_chunk(self, rank: Rank, msg: Chunk) -> None:
        data: Buffer = msg.data.frames[0] if type(msg.data) is Large else msg.data
        length = memoryview(data).nbytes
        for arrival in self._from(rank, [msg.name]):
            if msg.at != arrival.at or not 0 < length <= arrival.size - msg.at:
                return  # of an earlier try
            arrival.heard_s = self._now_s
            if not self._write(arrival, data):
                return
            arrival.at += length
            self.fetched_bytes += length
            for serving in list(arrival.followers):
                self._pass_on(arrival, serving)
            if arrival.at == arrival.size:
                assert arrival.file is not None
                arrival.file.complete()
                self._succeed(arrival)
            elif arrival.at - arrival.told >= CHUNK_BYTES and arrival.told + WINDOW_BYTES < arrival.size:
                arrival.told = arrival.at
                if not self._say(rank, Fetch(names=[msg.name], at=arrival.at, store=self.key)):
                    self._fail(arrival)

    def _write(self, arrival: _Arrival, data: Buffer) -> bool:
        name = arrival.stored.name
        try:
            if arrival.file is None:
                arrival.file = self.store.incoming(name, arrival.size, self._rank)
            arrival.file.write(arrival.at, data)
        except StoreFull as error:
            self._why[name] = str(error)
        except OSError:
            self._why[name] = str(self.store.full(name, arrival.size))
        else:
            return True
        self._fail(arrival)
        return False

    def _succeed(self, arrival: _Arrival) -> None:
        """It is in the store."""
        name = arrival.stored.name
        del self._arrivals[name]
        if arrival.at == arrival.size:  # else another rank of this node answers for it
            self.holdings.adopt(arrival.stored)
        for asker in arrival.askers:
            self._tell(asker, name, True)
        for rank in arrival.same_store:
            self._say(rank, Here(names=[name]))
        if arrival.at < arrival.size:  # it came by another way
            if arrival.file is not None:
                arrival.file.abandon()
            for serving in arrival.followers:
                del self._servings[serving.peer, name]
                self.on_message(serving.peer, Fetch(names=[name], at=serving.sent))

    def _fail(self, arrival: _Arrival) -> None:
        """It does not come."""
        name = arrival.stored.name
        del self._arrivals[name]
        if arrival.file is not None:
            arrival.file.abandon()
        for asker in arrival.askers:
            self._tell(asker, name, False)
        for rank in (*arrival.same_store, *(serving.peer for serving in arrival.followers)):
            self._servings.pop((rank, name), None)
            self._say(rank, Absent(names=[name]))

    def _tell(self, asker: int, name: str, is_here: bool) -> None:
        self._events.setdefault(asker, []).append((name, is_here))

    # ---- giving ----

    def _serve(self, peer: Rank, name: str, msg: Fetch) -> bool:
        """Answer one who wants it. False if there is nothing to give."""
        serving = self._servings.get((peer, name))
        if serving is not None and msg.at:
            serving.heard_s = self._now_s
            serving.most = max(serving.most, msg.at + WINDOW_BYTES)
            self._pump(serving)
            return True
        if serving is not None:
            self._forget((peer, name))  # it begins again
        arrival = self._arrivals.get(name)
        if arrival is not None:
            if msg.store == self.key:
                arrival.same_store.add(peer)
                return True
            serving = self._servings[peer, name] = _Serving(peer, name, arrival.size, msg.at, self._now_s)
            arrival.followers.append(serving)
            self._pass_on(arrival, serving)
            return True
        try:
            view = self.store.view(name)
        except FileNotFoundError:
            return False
        self.holdings.use(name)
        if msg.store == self.key:
            self._say(peer, Here(names=[name]))
            return True
        serving = self._servings[peer, name] = _Serving(peer, name, len(view), msg.at, self._now_s)
        serving.view, serving.there = view, len(view)
        self._pump(serving)
        return True

    def _answer_early(self, name: str) -> None:
        """It is here now, or on its way."""
        for key in [key for key in self._early if key[1] == name]:
            self._serve(*key, self._early.pop(key)[0])

    def _pass_on(self, arrival: _Arrival, serving: _Serving) -> None:
        """Give on what has arrived."""
        if arrival.file is not None:
            serving.view, serving.there = arrival.file.view(), arrival.at
            serving.heard_s = self._now_s
            self._pump(serving)

    def _pump(self, serving: _Serving) -> None:
        """Send what is there and may leave."""
        while serving.sent < min(serving.there, serving.most):
            assert serving.view is not None
            piece = serving.view[serving.sent : min(serving.sent + CHUNK_BYTES, serving.there, serving.most)]
            if not self._say(serving.peer, Chunk(name=serving.name, at=serving.sent, data=Large([piece]))):
                break
            self.sent_bytes += len(piece)
            serving.sent += len(piece)
        else:
            if serving.sent < serving.size:
                return
        self._forget((serving.peer, serving.name))

    def _forget(self, key: tuple[Rank, str]) -> None:
        serving = self._servings.pop(key, None)
        arrival = self._arrivals.get(key[1])
        if serving is not None and arrival is not None and serving in arrival.followers:
            arrival.followers.remove(serving)

    def _say(self, rank: Rank, message: object) -> bool:
        try:
            self._send(rank, message)
        except ConnectionError:
            return False
        return True
