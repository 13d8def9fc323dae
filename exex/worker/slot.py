"""A task process of a worker, and the calls that it holds. Pure: the process itself is reached through `SlotPort`."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from exex.protocol.messages import AppSpec, Grant, TaskId
from exex.protocol.payload import Payload
from exex.protocol.task_numbers import name_of, shown

NO_APP, SEVERAL_APPS = -1, -2


class Call:
    """One attempt at this worker.

    Attributes:
        grant: what it may use, of a big one; None for one slot.
        cores: CPU numbers that it was given, once it has its slots; empty where they are not bound.
    """

    __slots__ = ("announced", "attempt", "cores", "grant", "losses", "payload", "spec", "task", "values")

    def __init__(  # noqa: PLR0917
        self,
        task: TaskId,
        attempt: int,
        spec: AppSpec,
        payload: Payload,
        values: list[Payload] | None,
        grant: Grant | None = None,
    ) -> None:
        self.task = task
        self.attempt = attempt
        self.spec = spec
        self.payload = payload
        self.values = values
        self.grant = grant
        self.cores: list[int] = []
        self.announced = False
        self.losses = 0

    def title(self) -> str:
        """For messages to people: number, app, attempt."""
        return f"task {name_of(shown(self.task))} ({self.spec.name}), attempt {self.attempt},"


class SlotPort(Protocol):
    """What a slot can be told; the task process behind it is started when it is first needed."""

    def give(self, calls: list[Call]) -> None:
        """Queue calls in the slot's task process."""

    def take_back(self) -> int:
        """Stop the task process from starting more of what it was given; how many it has not started."""

    def kill(self, gently: bool) -> None:
        """SIGTERM (gently) or SIGKILL to the task process and all that it has started. `on_slot_died` follows."""

    def measure(self, limit_bytes: int) -> None:
        """Ask for the memory of the task process and all that it has started. `on_measured` follows, or `on_slot_died`."""

    def go_on(self, home: list[int], cores: list[int]) -> None:
        """The task that waited may go on, on these CPUs, and later ones of this process on those of its slot, `home`; none: on
        those that they have.
        """


class Slot:
    """A task process and its place: what it holds, in order; the first unreported ones have run or run now.

    There are as many with a slot of the worker as that has slots. One whose task waits has none: see `waiting`.

    Attributes:
        number: of the worker's slot.
        moved_s: when a call was last given to an empty slot, or reported.
        condemned: the task that must be killed as soon as no other can be hit; the outcome that it then gets; since when.
        ending_s: since when the task process has been told to end; negative if it has not.
        killed: it has also got SIGKILL.
        given: calls that the task process has been given since it was started, without those taken back.
        app: of all calls that it was given; `NO_APP` before the first, `SEVERAL_APPS` where there were several.
        helps: the big call that holds it, of another slot.
        measured: the call whose memory is being looked at.
        measure_s: no look at its memory before.
        waits_s: since when its task has waited without a slot; negative if it does not.
        used_bytes: memory of the condemned task, if that is why.
        crowd: how many tasks waited when the condemned task would have waited, too, if that is why.
    """

    __slots__ = (
        "app",
        "condemned",
        "condemned_s",
        "crowd",
        "ending_s",
        "given",
        "held",
        "helps",
        "killed",
        "measure_s",
        "measured",
        "moved_s",
        "number",
        "port",
        "sentence",
        "used_bytes",
        "waits_s",
    )

    def __init__(self, number: int, port: SlotPort) -> None:
        self.number = number
        self.port = port
        self.held: deque[Call] = deque()
        self.moved_s = 0.0
        self.sentence = -1
        self.condemned_s = 0.0
        self.measure_s = 0.0
        self.waits_s = -1.0
        self.helps: Call | None = None
        self.reset()

    def is_idle(self) -> bool:
        """Whether it can be given a call now."""
        return not self.held and self.ending_s < 0 and self.helps is None

    def reset(self) -> None:
        """For a new task process."""
        self.condemned: TaskId | None = None
        self.ending_s = -1.0
        self.killed = False
        self.given = 0
        self.app = NO_APP
        self.measured: Call | None = None
        self.used_bytes = 0
        self.crowd = 0
