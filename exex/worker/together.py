"""A Python function on a communicator of several worker ranks: its part in one of them.

It runs in the rank itself, in its main thread, since task processes have no MPI. So what it does to its process is done to the
rank: a crash costs the rank, and the others of its communicator, which wait for it, too.

All ranks of the task form the communicator; the first, the lead, has the call and hands it round. What each of them comes to is
its own to report: no message between them is needed for that, and none waits for another that has failed.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from exex.protocol.messages import AppSpec, Join, Outcome, TaskId
from exex.protocol.payload import Large, Payload
from exex.protocol.runs import from_runs
from exex.transport.page import STOP_RANK, Page
from exex.worker.condition import Condition
from exex.worker.context import Place, TaskStopped
from exex.worker.execute import execute, flush_output, open_function

Form = Callable[[Sequence[int], int, bool], Any]
"""Make a communicator of these ranks of the world, in this order, with a tag that is theirs alone; True: after ranks were lost.
Collective over them."""

Part = tuple[int, Payload, float]
"""Outcome, payload and seconds; see `protocol.parts`."""

_TAGS = 32767
"""MPI promises tags up to here. Two calls with one tag have no rank in common, or do not run at one time."""


class Head(NamedTuple):
    """What the lead hands round. Payloads are bytes, or lists of frames."""

    spec: AppSpec
    function: bytes | list[bytes]
    payload: bytes | list[bytes]
    values: list[bytes | list[bytes]] | None
    attempt: int


def make_head(
    spec: AppSpec, function: Payload, payload: Payload, values: Sequence[Payload] | None, attempt: int
) -> Head:
    """The head of a call."""
    return Head(
        spec, handed(function), handed(payload), None if values is None else [handed(value) for value in values], attempt
    )


class Together:
    """Of one worker rank.

    Args:
        form: see `Form`.
        page: shared with the guard.
        script: as the user named it: what the function finds as sys.argv[0].
        script_dir: where its modules are.
    """

    def __init__(self, form: Form, place: Place, page: Page, script: str, script_dir: str) -> None:
        self._form = form
        self._place = place
        self._page = page
        self._script = script
        self._script_dir = script_dir
        self._home: Condition | None = None
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self._inside = False
        self._failed: tuple[TaskId, Any] | None = None  # the communicator of the last call, if that has failed here

    def run(self, join: Join, head: Head | None) -> Part:
        """Take part in a call. Returns when this rank's part is over.

        Args:
            head: at the lead; None at the others.

        Returns:
            See `Part`; LOST if no communicator was formed.
        """
        home = self._home or self._prepare()
        self._free_failed()
        part: Part = (Outcome.CANCELLED, b"", 0.0)
        task, comm = join.task, None
        try:
            with self._heeded(join.call):
                comm = self._form(from_runs(join.runs), join.call % _TAGS, join.after_loss)
                head = comm.bcast(head)
                part = (Outcome.LOST, b"", 0.0) if head is None else run_part(comm, task, head, self._place, self._functions)
        except TaskStopped:
            part = (Outcome.CANCELLED, b"", 0.0)
        except Exception as error:  # of MPI: a rank has died
            print(f"exex: {self._place}: no communicator for task {task}: {error}", file=sys.stderr, flush=True)
            part = (Outcome.LOST, b"", 0.0)
        if comm is not None:
            self._failed = (task, comm)
            if part[0] == Outcome.DONE:
                self._free_failed()
        flush_output()
        home.restore()
        return part

    def revoke(self, tasks: Sequence[TaskId]) -> None:
        """Of calls that have failed here, let those who wait for this rank go on with an error, where the library can (ULFM)."""
        if self._failed is not None and self._failed[0] in tasks:
            try:
                self._failed[1].Revoke()
            except Exception:
                pass  # it cannot: their guards stop them

    def _free_failed(self) -> None:
        """Give the communicator of the last call back, unless the function, or a revocation, has made it unusable."""
        if self._failed is not None:
            (_, comm), self._failed = self._failed, None
            try:
                comm.Free()
            except Exception:
                pass

    def _prepare(self) -> Condition:
        """Before the first function: be as a task process is."""
        signal.signal(STOP_RANK, self._on_signal)
        sys.argv = [self._script]
        if self._script_dir not in sys.path[:1]:
            sys.path.insert(0, self._script_dir)
        self._home = Condition()
        return self._home

    @contextmanager
    def _heeded(self, call: int) -> Iterator[None]:
        """While this lasts, the guard can raise TaskStopped in here, once."""
        self._page.run(call)
        try:
            try:
                self._inside = True
                yield
            finally:
                self._inside = False  # where it may still be raised
        finally:
            self._page.run(None)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._inside and self._page.wanted() == self._page.running():
            self._inside = False  # once
            raise TaskStopped


def run_part(comm: Any, task: TaskId, head: Head, place: Place, functions: dict[bytes, Callable[..., Any]]) -> Part:
    """Run the function on `comm`.

    Args:
        functions: that were opened before, by digest.
    """
    function = functions.get(head.spec.function)
    if function is None:
        function = functions[head.spec.function] = open_function(unhanded(head.function))
    is_lead = comm.rank == 0
    told = function if is_lead or head.spec.every_rank else _silently(function)

    def adapt(call: tuple[Any, ...]) -> tuple[Any, ...]:
        """The communicator first; files for the lead's output only."""
        options = dict(call[2]) if len(call) > 2 else {}
        if not is_lead:
            options = {name: value for name, value in options.items() if name not in ("stdout", "stderr")}
        return (comm, *call[0]), call[1], options

    values = None if head.values is None else [unhanded(value) for value in head.values]
    return execute(head.spec, told, unhanded(head.payload), values, task, head.attempt, place, adapt)


def _silently(function: Callable[..., Any]) -> Callable[..., None]:
    def without_value(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)

    return without_value


def handed(payload: Payload) -> bytes | list[bytes]:
    """A payload as it travels inside a pickle."""
    return [bytes(frame) for frame in payload.frames] if type(payload) is Large else bytes(payload)


def unhanded(payload: bytes | list[bytes]) -> Payload:
    """The payload that has travelled so, over memory that its user may write to."""
    return Large([payload[0], *(bytearray(frame) for frame in payload[1:])]) if isinstance(payload, list) else payload
