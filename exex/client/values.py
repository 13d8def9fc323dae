"""Stored payloads as the client knows them: arguments that it has put into the store of rank 0's node, values in any.

The manager keeps a stored value for as long as the client may name it. The client has one object for each, and when the last
reference to that is gone, the next turn says Release. If the client is not on rank 0's node, nothing is put there or mapped.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

from exex.errors import ManagerLost, StoreFull, WorkerLost
from exex.protocol import payload as payloads
from exex.protocol.messages import Brought, Outcome, Welcome
from exex.protocol.payload import Large, Payload, Stored
from exex.store.node_store import NodeStore


class Named(Stored):
    """A stored payload that the manager keeps for this client. It is released with the last reference."""

    __slots__ = ("__weakref__", "_released")

    def __init__(self, stored: Stored, released: list[str]) -> None:
        super().__init__(stored.name, stored.sizes)
        self._released = released

    def __del__(self) -> None:
        self._released.append(self.name)  # in any thread, in the middle of anything: appending is atomic


class Wanted:
    """A value that somebody waits for.

    Attributes:
        done: set when the manager has answered.
    """

    def __init__(self) -> None:
        self.done = threading.Event()
        self.payload: Payload = None
        self.error: BaseException | None = None

    def get(self) -> Payload:
        """What has come.

        Raises:
            Exception: it is lost, or the job has ended.
        """
        if self.error is not None:
            raise self.error
        return self.payload


class Values:
    """All stored payloads of one client.

    Attributes:
        released: names that the manager need not keep for us any more.
        wanted: by name, values that are asked for and have not come.
        maps: this process sees the store of rank 0's node.
    """

    def __init__(self) -> None:
        self.released: list[str] = []
        self.wanted: dict[str, Wanted] = {}
        self._lock = threading.Lock()
        self._named: WeakValueDictionary[str, Named] = WeakValueDictionary()
        self._numbers = itertools.count()
        self._store: NodeStore | None = None
        self._keep_bytes = 0
        self._client = 0

    def attach(self, welcome: Welcome) -> None:
        """Look for the store of rank 0's node."""
        self._client = welcome.client
        self._keep_bytes = welcome.keep_bytes
        self._store = NodeStore.at(welcome.store) if welcome.store else None
        if welcome.first or welcome.first_app:  # an earlier client of this name has put things there
            self._numbers = itertools.count(secrets.randbits(60))

    @property
    def maps(self) -> bool:
        """Whether this process is on rank 0's node."""
        return self._store is not None

    # ---- putting ----

    def put(self, payload: Payload) -> Payload:
        """The payload, stored on this node if it is large and there is room; what is written there the script cannot change."""
        if type(payload) is not Large or self._store is None or not 0 < self._keep_bytes <= len(payload):
            return payload
        try:
            return self._store.write(f"c{self._client}.{next(self._numbers)}", payload.frames)
        except (StoreFull, OSError):
            return payload

    def remove(self, payload: Payload) -> None:
        """What was put will not be sent."""
        if type(payload) is Stored and self._store is not None:  # not `Named`: the manager knows those
            self._store.remove([payload.name])

    # ---- names ----

    def named(self, payload: Payload) -> Payload:
        """The one object that stands for a stored payload here."""
        if type(payload) is not Stored:
            return payload
        with self._lock:
            found = self._named.get(payload.name)
            if found is None:
                found = self._named[payload.name] = Named(payload, self.released)
            return found

    def name_all(self, column: list[Payload]) -> None:
        """Put those objects in the places of stored payloads."""
        for i, payload in enumerate(column):
            if type(payload) is Stored:
                column[i] = self.named(payload)

    # ---- getting ----

    def map(self, stored: Stored) -> Large | None:
        """The payload, over memory of which nothing is copied until it is written to; None if it is not on this node."""
        if self._store is None:
            return None
        try:
            return self._store.map(stored)
        except OSError:
            return None

    def want(self, name: str) -> tuple[Wanted, bool]:
        """What somebody can wait for, and whether the manager must be asked."""
        with self._lock:
            wanted = self.wanted.get(name)
            if wanted is not None:
                return wanted, False
            wanted = self.wanted[name] = Wanted()
            return wanted, True

    def brought(self, message: Brought) -> None:
        """The manager has answered."""
        with self._lock:
            wanted = self.wanted.pop(message.name, None)
        if wanted is None:
            return
        if message.outcome == Outcome.DONE:
            wanted.payload = message.payload
        else:
            wanted.error = _error(message)
        wanted.done.set()

    def lose(self, reason: str) -> None:
        """Nothing will come any more."""
        with self._lock:
            left, self.wanted = self.wanted, {}
        for name, wanted in left.items():
            wanted.error = ManagerLost(f"the value {name}, which is stored on a node of the job, was not fetched: {reason}")
            wanted.done.set()


def _error(message: Brought) -> BaseException:
    """Why a value is lost for good."""
    try:
        found: Any = payloads.load(message.payload)
    except Exception as error:
        found = error
    if isinstance(found, WorkerLost):
        return found
    lost = WorkerLost(f"the value {message.name} was lost, and could not be made again ({type(found).__name__}: {found})")
    lost.__cause__ = found if isinstance(found, BaseException) else None
    return lost


def opened(values: Sequence[Payload], bring: Any) -> list[Payload]:
    """Payloads, with what is stored fetched."""
    return [bring(value) if isinstance(value, Stored) else value for value in values]
