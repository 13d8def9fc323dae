"""Ready tasks that wait for a slot on the node which has most of what they need. Pure.

None waits longer than it would take to bring that elsewhere: then it stands in the queue like all others. So nothing starves, and
a task that could have started elsewhere at once has its data at the latest when it would have had it there, and as much again.
"""

from __future__ import annotations

import heapq
from itertools import islice
from typing import TYPE_CHECKING

from exex.manager.records import Kept, StoreRecord, records_of
from exex.protocol.messages import CLIENT_SHIFT, TaskId

if TYPE_CHECKING:
    from exex.manager.task import Task

BYTES_PER_S = 1e9
"""What one rank is assumed to get from another: what a fast network carries when others use it as well, and what two ranks of one
machine reach with chunks of the exchange."""

LEAST_BYTES = 1 << 20
"""Less is fetched while a slot would be looked for."""

LONGEST_S = 1.0
"""However much it is, a task waits no longer."""

HOLDERS = 8
"""What more stores have is near enough everywhere."""


class Near:
    """Small ready tasks that prefer a store.

    Attributes:
        touched: stores with such tasks where a slot may have come free.
    """

    __slots__ = ("_by_store", "_ends", "_stores", "touched")

    def __init__(self) -> None:
        self.touched: dict[StoreRecord, None] = {}
        self._stores: dict[TaskId, StoreRecord] = {}
        self._by_store: dict[StoreRecord, dict[TaskId, Task]] = {}
        self._ends: list[tuple[float, TaskId]] = []  # heap

    def __len__(self) -> int:
        return len(self._stores)

    def __contains__(self, number: TaskId) -> bool:
        return number in self._stores

    def push(self, task: Task, store: StoreRecord, until_s: float) -> None:
        """Let a task wait for a slot at a store."""
        self._stores[task.id] = store
        self._by_store.setdefault(store, {})[task.id] = task
        self.touched[store] = None
        heapq.heappush(self._ends, (until_s, task.id))

    def take(self, number: TaskId) -> Task:
        """Remove a task."""
        store = self._stores.pop(number)
        tasks = self._by_store[store]
        task = tasks.pop(number)
        if not tasks:
            del self._by_store[store]
            self.touched.pop(store, None)
        return task

    def touch(self, store: StoreRecord | None) -> None:
        """A slot has come free."""
        if store is not None and store in self._by_store:
            self.touched[store] = None

    def first(self, store: StoreRecord) -> Task | None:
        """The task that has waited for longest for a slot there."""
        return next(iter(self._by_store.get(store, {}).values()), None)

    def end_s(self) -> float | None:
        """When the first of them has waited long enough; None if there is none."""
        while self._ends and self._ends[0][1] not in self._stores:
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else None

    def take_impatient(self, now_s: float) -> list[Task]:
        """Remove and return those that have waited long enough."""
        taken = []
        while (end_s := self.end_s()) is not None and end_s <= now_s:
            taken.append(self.take(heapq.heappop(self._ends)[1]))
        return taken

    def take_all_of(self, client: int) -> list[Task]:
        """Remove and return those of a client. O(all)."""
        return [self.take(number) for number in list(self._stores) if number >> CLIENT_SHIFT == client]


def preferred(task: Task) -> tuple[StoreRecord, float] | None:
    """The store that has most of what a task needs, and how long that would take to come elsewhere; None for none. O(needs)."""
    sizes: dict[StoreRecord, int] = {}
    counted: set[str] = set()
    for record in records_of(task):
        if record.name not in counted and len(record.holders) <= HOLDERS:
            counted.add(record.name)
            for store in _holders(record):
                sizes[store] = sizes.get(store, 0) + len(record)
    if not sizes:
        return None
    best = max(sizes, key=sizes.__getitem__)
    if sizes[best] < LEAST_BYTES:
        return None
    return best, min(LONGEST_S, sizes[best] / BYTES_PER_S)


def _holders(record: Kept) -> list[StoreRecord]:
    return [store for store in islice(record.holders, HOLDERS) if store not in record.doubted and store.ranks]
