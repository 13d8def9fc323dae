"""What a future is made of: the call it stands for, and how it failed while that is still pickled. In the client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from exex.errors import DependencyError, DeserializationError
from exex.protocol.payload import Payload, Stored

if TYPE_CHECKING:
    from exex.client.lazy import LazyFuture


class Outlet(Protocol):
    """What futures need of the proxy.

    Attributes:
        unfinished: futures of the tasks that were sent and not answered, by number.
    """

    unfinished: Mapping[int, Any]

    def cancelled(self, future: LazyFuture) -> None:
        """The user has cancelled `future`; the manager must hear of it."""

    def seen(self, future: LazyFuture) -> None:
        """Somebody has looked at the error of `future`."""

    def note_failure(self, future: LazyFuture, payload: Payload | str) -> None:
        """`future` is about to fail."""

    def bring(self, stored: Stored) -> Payload:
        """The payload that is stored somewhere."""

    def lead(self, future: LazyFuture, timeout: float | None) -> bool:
        """Wait for `future` by listening to the manager, if nobody else does. False if somebody does."""

    def before_waiting(self, future: LazyFuture) -> None:
        """This thread is about to wait for `future`. Raises if it would wait for ever."""


class Call:
    """What all calls of one app with the same options share in the client.

    Attributes:
        proxy: where they are submitted.
        number: of the AppSpec that the manager was told.
        name: of the function.
        retries: further attempts after a failed one.
        handler: of failed attempts; None for none.
        owner: the executor that submits them; None for an app.
    """

    __slots__ = ("handler", "name", "number", "owner", "proxy", "retries")

    def __init__(  # noqa: PLR0917
        self,
        proxy: Any,
        number: int,
        name: str,
        retries: int = 0,
        handler: Callable[..., Any] | None = None,
        owner: object = None,
    ) -> None:
        self.proxy = proxy
        self.number = number
        self.name = name
        self.retries = retries
        self.handler = handler
        self.owner = owner


class Raised:
    """An opened outcome that is an error."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Failed:
    """A raw outcome: the pickled error."""

    __slots__ = ("payload",)

    def __init__(self, payload: Payload) -> None:
        self.payload = payload

    def error(self, future: LazyFuture) -> BaseException:
        """The error of `future`."""
        found = future._load(self.payload, "error")
        if type(found) is Raised:
            return found.error
        if isinstance(found, BaseException):
            return found
        return DeserializationError(f"{future._title()} failed with {found!r}, which is not an exception")


class FailedHere(Failed):
    """A raw outcome: an error that arose in this process and was never pickled."""

    __slots__ = ("_error",)

    def __init__(self, error: BaseException) -> None:
        super().__init__(b"")
        self._error = error

    def error(self, future: LazyFuture) -> BaseException:
        """The error of `future`."""
        return self._error


class NeedFailed(Failed):
    """A raw outcome: needs failed.

    Attributes:
        payload: error of the root cause, for when no future of a need is left.
        causes: futures of the needs that failed, so that their own errors can be quoted.
        fallback: description of the need, for when no future of it is left.
    """

    __slots__ = ("causes", "fallback")

    def __init__(self, causes: Sequence[LazyFuture], payload: Payload = b"", fallback: str = "") -> None:
        super().__init__(payload)
        self.causes = causes
        self.fallback = fallback

    def error(self, future: LazyFuture) -> BaseException:
        """The DependencyError of `future`. The causes must have been opened before."""
        pairs = [(cause._failure(), cause._title()) for cause in self.causes]
        return DependencyError(pairs or [(super().error(future), self.fallback)], future._tid)
