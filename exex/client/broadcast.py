"""Values that every node gets once, however many calls need them. Runs in the client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exex.client import digests, session
from exex.client.outbox import Given
from exex.client.proxy import Proxy
from exex.protocol import payload as payloads
from exex.protocol.payload import Large, Payload, Stored


class Broadcast:
    """What `broadcast` returns: as an argument of apps, at any depth, it stands for the value.

    When nobody refers to it any more, or after `release`, the nodes forget the value as soon as no call needs it.

    Attributes:
        size_bytes: of the pickled value.
    """

    __slots__ = ("_digest", "_payload", "_proxy", "size_bytes")

    def __init__(self, proxy: Proxy, payload: Payload) -> None:
        self._proxy = proxy
        self._payload: Payload = payload
        self._digest = b""
        self.size_bytes = len(payload)

    def value(self) -> Any:
        """The value, unpickled anew: arrays in it can be written to, which nobody else sees.

        Raises:
            ValueError: after `release`.
        """
        payload = self._held()
        return payloads.load(self._proxy.bring(payload) if isinstance(payload, Stored) else payloads.writable(payload))

    def release(self) -> None:
        """It will be no argument any more. Calls that were made with it are not affected. Idempotent."""
        self._payload = None

    def digest(self) -> bytes:
        """Of the value, for the keys of cached calls.

        Raises:
            CacheKeyError: no key can be made of it.
        """
        if not self._digest:
            self._digest = digests.hash_of(digests.id_for_memo(self.value()))
        return self._digest

    def _held(self) -> Payload:
        if self._payload is None:
            raise ValueError(f"{self!r} is used after its release()")
        return self._payload

    def __repr__(self) -> str:
        return f"<Broadcast of {self.size_bytes:,} bytes{', released' if self._payload is None else ''}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        payload = self._held()
        return payloads.place_for_shared(Given(payload, self._proxy), payload.name if isinstance(payload, Stored) else "")


digests.add_special(Broadcast, Broadcast.digest)


def broadcast(value: Any) -> Broadcast:
    """Give every node of the job one copy of a value, along a tree of nodes.

    Tasks get it read-only: arrays in it cannot be written to. A task process unpickles it once. A value of less than
    --keep-bytes travels with each call instead, and so does any if this process is not on rank 0's node.

    Raises:
        NoManagerError: outside an exex job, or inside a task that has no task process.
        SerializationError: the value cannot be pickled.
    """
    proxy = session.current("exex.broadcast").proxy
    payload = payloads.dump(value)
    stored = proxy.values.named(proxy.values.put(payload))
    if isinstance(stored, Stored):
        proxy.outbox.spread(stored)
        proxy.wake()
        return Broadcast(proxy, stored)
    if type(payload) is Large:  # the script may change what it lies over
        payload = Large([bytes(frame) for frame in payload.frames])
    return Broadcast(proxy, payload)
