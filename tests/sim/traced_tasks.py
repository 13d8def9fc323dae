"""Tasks that refuse a change of their status that is not in `TRANSITIONS`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from exex.manager import from_clients
from exex.manager.task import TRANSITIONS, CachedTask, Status, Task

ALLOWED = {(old, new) for old, new, _ in TRANSITIONS if old}


class _Traced:
    """For tasks: refuses a change of the status that is not in `TRANSITIONS`."""

    __slots__ = ()

    def __init__(self, *args: object) -> None:
        self._status: Status | None = None
        self.taken_out = False
        super().__init__(*args)

    @property
    def status(self) -> Status:  # type: ignore[override]
        assert self._status is not None
        return self._status

    @status.setter
    def status(self, new: Status) -> None:
        old = self._status
        self._status = new
        if new == Status.READY:
            self.taken_out = False
        if old is None or old == new:
            return
        if old in (Status.READY, Status.SHELVED) and new == Status.WAITING:  # how `cancel` takes it out, or what it needs is lost
            self.taken_out = True
            return
        assert (old.name.lower(), new.name.lower()) in ALLOWED, f"task {self.id}: {old.name} -> {new.name}"


class TracedTask(_Traced, Task):  # type: ignore[misc]
    """A task that is traced."""

    __slots__ = ("_status", "taken_out")


class TracedCachedTask(_Traced, CachedTask):  # type: ignore[misc]
    """A call of a cached app that is traced."""

    __slots__ = ("_status", "taken_out")


@contextmanager
def tracing() -> Iterator[None]:
    """Tasks that are made meanwhile are traced."""
    from_clients.Task, from_clients.CachedTask = TracedTask, TracedCachedTask  # type: ignore[misc]
    try:
        yield
    finally:
        from_clients.Task, from_clients.CachedTask = Task, CachedTask  # type: ignore[misc]
