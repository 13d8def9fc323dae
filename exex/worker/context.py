"""Where a task runs, and what ends it. The one that runs now is `protocol.context.current_task`."""

from __future__ import annotations

import signal

from msgspec import Struct

from exex.protocol.task_numbers import name_of

STOP_SIGNAL = signal.SIGRTMIN
"""What ends the running task, and its task process with it, as an exception in the task's Python code; none that a batch system
sends to all processes."""


class Place(Struct, frozen=True):
    """Where attempts run. Its text is what messages to people say: "rank 3 at nid00012"."""

    rank: int  # in the MPI world
    node: str  # host name

    def __str__(self) -> str:
        return f"rank {self.rank} at {self.node}"


class TaskContext(Struct, frozen=True, gc=False):
    """The attempt that runs in this process. Its text is "task 7 (f)"."""

    task: int  # as its client counts; see `task_numbers.shown`
    attempt: int  # the first is 1
    app: str
    rank: int
    node: str

    def __str__(self) -> str:
        return f"task {name_of(self.task)} ({self.app})"


class TaskStopped(BaseException):
    """Raised in a task's Python code when it is cancelled or has used up its walltime."""


class Stop:
    """Turns the stop signal into `TaskStopped`, but not in the middle of what must be completed first.

    Attributes:
        wanted: the running task is to end.
    """

    def __init__(self) -> None:
        self.wanted = self._delayed = False

    def on_signal(self, number: int, frame: object) -> None:
        """The rank wants the running task to end: let its `finally` and `with` blocks run. SIGKILL follows in time."""
        self.wanted = True
        if not self._delayed:
            raise TaskStopped

    def delay(self) -> None:
        """From here on the signal raises nothing."""
        self._delayed = True

    def allow(self) -> None:
        """From here on it does. If it has come meanwhile, it does so here. Without a `delay` before, nothing happens."""
        delayed, self._delayed = self._delayed, False
        if delayed and self.wanted:
            raise TaskStopped


stop = Stop()
"""Of this process."""


run_dir = ""
"""The job's run directory; "" outside task processes."""
