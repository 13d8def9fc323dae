"""The records of stored payloads, and how what is in them was made. Pure.

A record lives as long as somebody refers to it: an unfinished task (arguments, values of needs), an answer that is not applied, a
client that has not released it, the origin of another one. Nobody counts: the interpreter does, and when the last reference is
gone the record tells `Data`, which has the payload freed. So nothing in here may refer to a task, and no cycle may arise: who
waits for a record is known by number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import ref

from exex.manager.task import Task
from exex.protocol.messages import Rank, TaskId
from exex.protocol.payload import Payload, Stored

if TYPE_CHECKING:
    from exex.manager.stored import Data


class StoreRecord:
    """The store of one node, and the ranks that use it."""

    __slots__ = ("key", "ranks")

    def __init__(self, key: str) -> None:
        self.key = key
        self.ranks: dict[Rank, None] = {}

    def __repr__(self) -> str:
        return f"<Store {self.key}>"


class Origin:
    """How a stored value was made, and could be made again.

    Attributes:
        task: number of the task that made it.
        values: of its needs; an `Origin` stands for a stored value, whose data is not kept for this.
        attempt: number of the last one.
        losses: how often the value was lost.
        record: of the value, if somebody still needs it.
    """

    __slots__ = ("app", "attempt", "depth", "losses", "payload", "record", "task", "values")

    def __init__(self, task: Task) -> None:
        assert task.app is not None
        self.task = task.id
        self.app = task.app
        self.payload = task.payload
        self.values = None if task.values is None else [_origin_or_value(value) for value in task.values]
        self.depth = task.depth
        self.attempt = task.attempt
        self.losses = 0
        self.record: ref[Kept] | None = None

    def get(self) -> Kept | None:
        """The record, if there is one."""
        return None if self.record is None else self.record()


def _origin_or_value(value: Payload) -> Payload:
    if type(value) is Kept and value.origin is not None:
        return value.origin
    return value


class Again(Task):
    """An ended task that runs once more, because its value is lost. Its client hears nothing of it."""

    __slots__ = ("origin",)

    def __init__(self, origin: Origin) -> None:
        super().__init__(origin.task, origin.app, origin.payload)
        self.origin = origin
        self.depth = origin.depth
        self.attempt = origin.attempt = origin.attempt + 1


class Kept(Stored):
    """The record of a stored payload.

    Attributes:
        client: number of the client to whose tasks it belongs.
        holders: stores that have it, and the rank that answers for it there; `others`: ranks that have it as well.
        doubted: those of the holders that were asked whether they really have it.
        coming: stores that will have it, the rank that gets it for all there, and from which one.
        origin: None if a client has made it.
        names: under which it was known before it was lost and made again.
        again: the task that makes it again is under way.
        value: the payload itself, if it came in band when it was made again; `error`: why it is lost for good.
        waiters: tasks that wait for it; `wants`: (client, name as asked, whether it maps the file) that want it.
        at_home: rank 0 must have it; `fetching`: it is on its way there; `failures`: how often that failed.
    """

    __slots__ = (
        "__weakref__", "again", "at_home", "client", "coming", "data", "doubted", "error", "failures", "fetching", "holders",
        "names", "origin", "others", "value", "waiters", "wants",
    )  # fmt: skip

    def __init__(self, data: Data, stored: Stored, client: int, origin: Origin | None) -> None:
        super().__init__(stored.name, stored.sizes)
        self.data = data
        self.client = client
        self.origin = origin
        self.holders: dict[StoreRecord, Rank] = {}
        self.others: list[Rank] = []
        self.doubted: set[StoreRecord] = set()
        self.coming: dict[StoreRecord, tuple[Rank, Rank]] = {}
        self.names: list[str] = []
        self.again = False
        self.value: Payload = None
        self.error: Payload = None
        self.waiters: dict[TaskId, None] = {}
        self.wants: list[tuple[int, str, bool]] = []
        self.at_home = self.fetching = False
        self.failures = 0
        data.in_use = True
        data.records[self.name] = ref(self)
        if origin is not None:
            origin.record = ref(self)

    def is_there(self) -> bool:
        """Whether a store has it for sure."""
        return len(self.holders) > len(self.doubted)

    def is_at_home(self) -> bool:
        """Whether the store of rank 0's node has it for sure."""
        home = self.data.home
        return home in self.holders and home not in self.doubted

    def hold(self, store: StoreRecord, rank: Rank) -> None:
        """It is in a store, where this rank answers for it."""
        self.coming.pop(store, None)
        before = self.holders.get(store)
        if before is None or store in self.doubted:
            self.holders[store] = rank
            self.doubted.discard(store)
        elif before != rank and rank not in self.others:
            self.others.append(rank)

    def drop(self, store: StoreRecord) -> None:
        """It is not in a store any more."""
        self.holders.pop(store, None)
        self.doubted.discard(store)

    def was_made_again(self, stored: Stored, store: StoreRecord, rank: Rank) -> None:
        """It has another name from now on; nobody needs what may be left under the old one."""
        for other in (*self.holders.values(), *self.others, *(getter for getter, _ in self.coming.values())):
            self.data.free(other, self.name)
        self.holders.clear()
        self.doubted.clear()
        self.names.append(self.name)
        self.name, self.sizes = stored.name, stored.sizes
        self.data.records[self.name] = ref(self)
        self.coming.clear()
        self.others.clear()
        self.hold(store, rank)

    def __del__(self) -> None:
        data = self.data
        for name in (*self.names, self.name):
            data.records.pop(name, None)
        for rank in (*self.holders.values(), *self.others):
            data.free(rank, self.name)
        if self.again and self.origin is not None:
            data.unwanted.append(self.origin.task)


def records_of(task: Task) -> Iterator[Kept]:
    """Records of the stored payloads that a task needs."""
    if type(task.payload) is Kept:
        yield task.payload
    for value in task.values or ():
        if type(value) is Kept:
            yield value


def replace(task: Task, record: Kept) -> None:
    """Give a task the payload itself."""
    if task.payload is record:
        task.payload = record.value
    if task.values is not None:
        task.values = [record.value if value is record else value for value in task.values]
