"""What the manager knows of stored payloads: where they lie, who waits for them, what is to be told about them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, islice
from typing import TYPE_CHECKING
from weakref import ref

from exex.errors import ProtocolError
from exex.manager.records import Again, Kept, Origin, StoreRecord, records_of, replace
from exex.manager.task import CachedTask, Status, Task
from exex.protocol.messages import CLIENT_SHIFT, Assign, Rank, TaskId
from exex.protocol.payload import Stored

if TYPE_CHECKING:
    from exex.manager.nodes import WorkerRecord

HOME = 0
"""The rank of the manager, which has the store of its node as well."""

FANOUT = 2
"""Copies that one store passes on while a payload is spread: with pieces passed on as they come, more would share its link."""

_LOOKED_AT = 16
"""Holders among which the source of a copy is chosen."""


class Data:
    """All stored payloads, and what is to be told about them in this turn.

    Attributes:
        in_use: there was one.
        records: by name. Those that are gone take themselves out.
        stores: by key; `home`: that of rank 0's node, None if there is none.
        is_at_home: whether a file is in it. Asked of what clients say that they have put there; `adopt`: rank 0 answers for it.
        sweep: a client is gone, and what lies there under names that begin so, and is not known, is nobody's.
        workers: the manager's.
        frees: per rank, names for its next Free; `absents`: names of what will not come.
        copies: (rank, payload, source) of Copy messages; `fetches`: for rank 0.
        brought: (client, name as asked, the record, whether it maps the file) of values to be sent to clients; without
            a record it is not known.
        changed: records about which `data.settle` has to do something.
        is_lost: some were lost, or are doubted: tasks that are ready may need them.
        unwanted: tasks that make again what nobody needs any more.
        repeated: all tasks that ever ran once more because their values were lost.
        starved: of unfinished tasks, how often they were.
    """

    def __init__(self) -> None:
        self.in_use = False
        self.records: dict[str, ref[Kept]] = {}
        self.stores: dict[str, StoreRecord] = {}
        self.home: StoreRecord | None = None
        self.is_at_home: Callable[[str], bool] = lambda name: True
        self.adopt: Callable[[Stored], object] = lambda stored: None
        self.sweep: Callable[[str], object] = lambda prefix: None
        self.workers: dict[Rank, WorkerRecord] = {}
        self.frees: dict[Rank, list[str]] = {}
        self.absents: dict[Rank, list[str]] = {}
        self.copies: list[tuple[Rank, Stored, Rank]] = []
        self.fetches: list[tuple[Kept, Rank]] = []
        self.brought: list[tuple[int, str, Kept | None, bool]] = []
        self.changed: dict[str, Kept] = {}
        self.is_lost = False
        self.unwanted: list[TaskId] = []
        self.repeated: set[TaskId] = set()
        self.starved: dict[TaskId, int] = {}

    def store(self, key: str) -> StoreRecord:
        """The store with this key."""
        found = self.stores.get(key)
        if found is None:
            found = self.stores[key] = StoreRecord(key)
        return found

    def set_home(self, key: str) -> None:
        """Rank 0 uses this store."""
        self.home = self.store(key)

    def get(self, name: str) -> Kept | None:
        """The record with a name that it has, or had."""
        found = self.records.get(name)
        return None if found is None else found()

    def free(self, rank: Rank, name: str) -> None:
        """A rank need not keep a payload."""
        self.frees.setdefault(rank, []).append(name)

    def note(self, record: Kept) -> None:
        """`settle` is to look at a record."""
        self.changed[record.name] = record

    def _note_loss(self, record: Kept) -> None:
        """A store may not have a payload any more."""
        self.is_lost = self.is_lost or not record.is_there()
        self.note(record)

    def has_work(self) -> bool:
        """Whether a turn must follow."""
        is_changed = self.changed or self.is_lost or self.unwanted
        return bool(is_changed or self.frees or self.absents or self.copies or self.fetches or self.brought)

    # ---- from clients and workers ----

    def of_client(self, client: int, stored: Stored) -> Kept:
        """The record of what a client names: a new one, if that is what the client puts into the store of rank 0's node.

        Raises:
            ProtocolError: there is no such payload, or it is not this client's.
        """
        record = self.get(stored.name)
        if record is not None and record.client == client:
            return record
        if record is not None or self.home is None or not stored.name.startswith(f"c{client}."):
            raise ProtocolError(f"client {client}: names a stored payload {stored.name}, which is unknown")
        record = Kept(self, stored, client, None)
        if self.is_at_home(stored.name):
            record.hold(self.home, HOME)
            self.adopt(stored)
        else:
            self.note(record)  # it has vanished, and who needs it fails
        return record

    def of_task(self, stored: Stored, worker: WorkerRecord, task_id: TaskId, task: Task | None) -> Kept:
        """The record of a value that a worker has stored.

        Args:
            task: None if nobody wants it any more.

        Raises:
            ProtocolError: it may not have this name, or the worker has no store.
        """
        if worker.store is None or stored.name in self.records or not stored.name.startswith(f"t{task_id}."):
            raise ProtocolError(f"rank {worker.rank} reports task {task_id} with a stored value {stored.name}")
        if isinstance(task, Again):
            record = task.origin.get()
            origin: Origin | None = None
            if record is None:
                origin = task.origin
            elif not record.is_there():  # else it has turned up meanwhile
                record.was_made_again(stored, worker.store, worker.rank)
                return record
        else:
            origin = None if task is None else Origin(task)
        record = Kept(self, stored, task_id >> CLIENT_SHIFT, origin)
        record.hold(worker.store, worker.rank)
        return record

    def on_holds(self, store: StoreRecord | None, rank: Rank, names: list[str]) -> None:
        """A rank has got payloads, or has looked after them."""
        for name in names:
            record = self.get(name)
            if record is None or record.name != name or store is None:
                self.free(rank, name)
                continue
            record.hold(store, rank)
            self.note(record)

    def on_absent(self, store: StoreRecord | None, rank: Rank, names: list[str]) -> None:
        """A rank does not have payloads that it should have, or get."""
        for name in names:
            record = self.get(name)
            if record is None or record.name != name or store is None:
                continue
            if record.coming.get(store, (None,))[0] == rank:
                del record.coming[store]
            if record.holders.get(store) == rank:
                record.drop(store)
            self._note_loss(record)

    def on_rank_lost(self, store: StoreRecord | None, rank: Rank) -> None:
        """A rank is gone. Others that use its store take over what it had; else that is lost with it. O(records)."""
        self.frees.pop(rank, None)
        self.absents.pop(rank, None)
        self.copies = [copy for copy in self.copies if rank not in (copy[0], copy[2])]
        if store is None:
            return
        store.ranks.pop(rank, None)
        heir = self._listener(store)
        for found in list(self.records.values()):
            record = found()
            if record is None:
                continue
            if rank in record.others:
                record.others.remove(rank)
            self._stop_waiting(record, store, rank)
            if record.holders.get(store) == rank:
                if heir is None:
                    record.drop(store)
                else:
                    record.holders[store] = heir
                    record.doubted.discard(store)
                    self.check(record, store)
                self._note_loss(record)

    def _stop_waiting(self, record: Kept, store: StoreRecord, lost: Rank) -> None:
        """Tell ranks that a payload will not come from one that is lost; MPI may not."""
        if record.coming.get(store, (None,))[0] == lost:
            del record.coming[store]
            for rank in store.ranks:
                self.absents.setdefault(rank, []).append(record.name)
        for other, (rank, source) in list(record.coming.items()):
            if source == lost:
                del record.coming[other]
                self.absents.setdefault(rank, []).append(record.name)

    def _listener(self, store: StoreRecord) -> Rank | None:
        """A rank that uses a store, rather one that is not in a function on a communicator; None if there is none."""
        free = (rank for rank in store.ranks if rank in self.workers and not self.workers[rank].in_team)
        return next(free, next(iter(store.ranks), HOME if store is self.home else None))

    def check(self, record: Kept, store: StoreRecord) -> None:
        """Ask whether a store still has a payload."""
        if store in record.holders and store not in record.doubted:
            rank = record.holders[store]
            if rank in self.workers and self.workers[rank].in_team:
                listener = self._listener(store)
                rank = rank if listener is None else listener
            record.doubted.add(store)
            self.copies.append((rank, record, rank))
            self._note_loss(record)

    # ---- tasks ----

    def admit(self, task: Task) -> bool:
        """Whether all stored payloads that a task needs are there. If not, it waits until `settle` sees that they are."""
        missing = [record for record in records_of(task) if record.value is None and not self._can_be_had(record, task)]
        for record in missing:
            task.status = Status.WAITING
            if task.id not in record.waiters:
                record.waiters[task.id] = None
                self.note(record)
        if missing:
            return False
        for record in list(records_of(task)):
            record.waiters.pop(task.id, None)
            if record.value is not None:
                replace(task, record)
        return True

    def has_at_home(self, record: Kept) -> bool:
        """Whether rank 0 can open a payload now. If it has vanished from where it should be, that is known from now on."""
        if not record.is_at_home():
            return False
        if self.is_at_home(record.name):
            return True
        assert self.home is not None
        record.drop(self.home)
        self._note_loss(record)
        return False

    def _can_be_had(self, record: Kept, task: Task) -> bool:
        """Whether a task need not wait for a payload."""
        if not record.is_there():
            return False
        if not _is_read_at_home(record, task) or self.has_at_home(record):
            return True
        if not record.at_home:
            record.at_home = True
            self.note(record)
        return False

    def sources(self, worker: WorkerRecord, assign: Assign) -> dict[str, Rank]:
        """For each stored payload in an Assign a rank from which its worker can have it."""
        found = chain(assign.payloads, *assign.values.values())
        return {record.name: self.source(record, worker) for record in found if type(record) is Kept}

    def source(self, record: Kept, worker: WorkerRecord) -> Rank:
        """Where a worker gets a payload: at a rank that uses the same store, or else at any that has it."""
        store = worker.store
        if store is None:
            return self.any_holder(record, worker.rank)
        if store in record.holders and store not in record.doubted:
            return record.holders[store]
        coming = record.coming.get(store)
        if coming is not None and coming[0] != worker.rank:
            return coming[0]
        source = self.any_holder(record, worker.rank)
        record.coming[store] = (worker.rank, source)
        return source

    def any_holder(self, record: Kept, rank: Rank) -> Rank:
        """A rank that has a payload, not the same for all who ask; the manager only if there is no other."""
        holders = [r for store, r in islice(record.holders.items(), _LOOKED_AT) if store not in record.doubted]
        holders = holders or [r for store, r in record.holders.items() if store not in record.doubted]
        others = [holder for holder in holders if holder in self.workers and not self.workers[holder].in_team] or holders
        others = [holder for holder in others if holder != HOME] or others
        return others[rank % len(others)]

    def on_starved(self, worker: WorkerRecord, task: Task) -> int:
        """A task could not have what it needs. What was said about that is doubted. Returns how often that has happened to it."""
        store = worker.store
        for record in records_of(task):
            if store is None or store in record.holders:
                asked = store
            else:
                rank, source = record.coming.pop(store, (worker.rank, -1))
                if rank != worker.rank:
                    continue  # it was asked, and should have got it for all there
                asked = next((other for other, holder in record.holders.items() if holder == source), None)
            if asked is not None:
                self.check(record, asked)
        self.in_use = True  # so that this is forgotten with the task
        count = self.starved[task.id] = self.starved.get(task.id, 0) + 1
        return count

    def spread(self, record: Kept) -> None:
        """Let every store have a payload that is in that of rank 0's node, passed on along a tree."""
        stores = [store for store in self.stores.values() if store is not self.home and store.ranks]
        leaders = [self._listener(store) or HOME for store in stores]
        for i, (store, leader) in enumerate(zip(stores, leaders)):
            if store in record.holders or store in record.coming:
                continue
            source = HOME if i < FANOUT else leaders[i // FANOUT - 1]
            record.coming[store] = (leader, source)
            self.copies.append((leader, record, source))


def _is_read_at_home(record: Kept, task: Task) -> bool:
    """Whether rank 0 must have a payload before a task can run.

    The key of a cached call is made of the values of its needs. A call on a communicator gets them with its Assign: its ranks may
    be in MPI already, where they give nobody what they have, while its lead would ask them for it.
    """
    assert task.app is not None
    if task.app.spec.ranks and not task.app.spec.own_world:
        return True
    if not isinstance(task, CachedTask) or task.key:
        return False
    return any(value is record and place not in task.cache.ignored for place, value in enumerate(task.values or ()))
