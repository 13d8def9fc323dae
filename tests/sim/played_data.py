"""Played stores of nodes: files in a dict. The exchange between ranks is the real one, and so is what workers do about it.

`Data.contents` remembers all that was ever stored, so that every value can be checked wherever it lies now. A file may vanish, as when
a disk breaks: that is noted, so that nothing else may be missing where it is needed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from exex.protocol.messages import CLIENT_SHIFT
from exex.protocol.payload import Large, Stored
from exex.store.exchange import Exchange

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

CHUNK = 2
"""Bytes that one message carries: values are some digits long."""


class PlayedStore:
    """As `NodeStore`."""

    def __init__(self, data: Data, node: str) -> None:
        self.data, self.node = data, node
        self.directory = f"/shm/{node}"
        self.spill = ""
        self.files: dict[str, bytes] = {}

    def key(self) -> str:
        return self.node

    def has(self, name: str) -> bool:
        return name in self.files

    def names(self, prefix: str) -> set[str]:
        return {name for name in self.files if name.startswith(prefix)}

    def view(self, name: str) -> memoryview:
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, "not here", name)
        return memoryview(self.files[name])

    def map(self, stored: Stored) -> Large:
        view = self.view(stored.name)
        assert len(view) == len(stored), f"{stored} is not what was announced"
        return Large([view])

    def write(self, name: str, content: bytes) -> Stored:
        assert self.data.contents.get(name, content) == content, f"{name} was stored twice, differently"
        self.files[name] = self.data.contents[name] = content
        return Stored(name, [len(content)])

    def incoming(self, name: str, size: int, writer: int) -> PlayedIncoming:
        return PlayedIncoming(self, name, size)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            if self.files.pop(name, None) is not None:
                self.data.check_unneeded(name, self.node)


class PlayedIncoming:
    """As `Incoming`."""

    def __init__(self, store: PlayedStore, name: str, size: int) -> None:
        self.store, self.name, self.size = store, name, size
        self.bytes = bytearray(size)

    def write(self, at: int, data: bytes) -> None:
        self.bytes[at : at + len(data)] = data

    def view(self) -> memoryview:
        return memoryview(self.bytes)

    def complete(self) -> None:
        self.store.write(self.name, bytes(self.bytes))

    def abandon(self) -> None:
        pass


class PlayedHoldings:
    """As `Holdings`, without limits."""

    def __init__(self, store: PlayedStore) -> None:
        self.store = store
        self.names: set[str] = set()

    def adopt(self, stored: Stored) -> None:
        self.names.add(stored.name)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def use(self, name: str) -> None:
        pass

    def free(self, names: Iterable[str]) -> None:
        self.names.difference_update(names)
        self.store.remove(names)

    def tick(self, now_s: float) -> None:
        pass

    def is_busy(self) -> bool:
        return False

    def work(self) -> bool:
        return False


class Data:
    """All stores of a simulation.

    Attributes:
        contents: of all that was ever stored, by name.
        vanished: (name, node) of files that are gone though nobody has freed them.
    """

    def __init__(self, sim: Simulation, home: str) -> None:
        self.sim, self.home = sim, home
        self.stores: dict[str, PlayedStore] = {}
        self.contents: dict[str, bytes] = {}
        self.vanished: set[tuple[str, str]] = set()

    def store(self, node: str) -> PlayedStore:
        """The store of a node."""
        if node not in self.stores:
            self.stores[node] = PlayedStore(self, node)
        return self.stores[node]

    def exchange(self, rank: int, node: str, send, on_absent=None) -> Exchange:
        """That of a rank."""
        return Exchange(rank, PlayedHoldings(self.store(node)), send, on_absent)  # type: ignore[arg-type]

    def open(self, payload: object) -> bytes:
        """The bytes of a payload, wherever they are."""
        if isinstance(payload, Stored):
            return self.contents[payload.name]
        return b"".join(map(bytes, payload.frames)) if type(payload) is Large else bytes(payload)  # type: ignore[call-overload]

    def open_all(self, values: Sequence[object] | None) -> list[bytes] | None:
        """The same of many."""
        return None if values is None else [self.open(value) for value in values]

    def check_unneeded(self, name: str, node: str) -> None:
        """A file is removed: no task that is wanted may be about to read it there."""
        for one in self.sim.workers.values():
            if one.node != node:
                continue
            calls = [call for process in one.processes for call in process.given[process.started :]]
            for call in [*one.state.queue, *one.state.big, *calls]:
                task = self.sim.manager.tasks.get(call.task)
                is_wanted = task is not None and task.rank == one.rank and task.attempt == call.attempt
                needs = [value.name for value in (call.payload, *(call.values or ())) if isinstance(value, Stored)]
                assert not (is_wanted and name in needs), f"{name} is freed on {node}, where task {call.task} is about to read it"

    def lose_file(self) -> None:
        """A file vanishes."""
        found = [(name, store) for store in self.stores.values() for name in store.files]
        if found:
            name, store = self.sim.rng.choice(found)
            self.sim.tell(f"{name} vanishes from {store.node}")
            del store.files[name]
            self.vanished.add((name, store.node))

    def left(self) -> list[str]:
        """Files that nobody has freed, though nobody needs them: not of ranks that were lost, whose last words nobody heard."""
        lost = set(self.sim.manager_loop.lost) | {one.rank for one in self.sim.workers.values() if not one.is_up()}
        kept = {record().name for record in self.sim.manager.data.records.values() if record() is not None}
        nodes = {one.node for one in self.sim.workers.values()} | {self.home}
        return [
            f"{name} on {store.node}"
            for store in self.stores.values()
            for name in store.files
            if store.node in nodes and name not in kept and not (lost & self.ranks_of(store.node))
        ]

    def ranks_of(self, node: str) -> set[int]:
        """All that were ever there."""
        return {rank for rank, at in self.sim.node_of.items() if at == node}


def owner_of(name: str) -> int:
    """Number of the client to which a stored payload belongs."""
    number = int(name[1:].partition(".")[0])
    return number if name[0] == "c" else number >> CLIENT_SHIFT
