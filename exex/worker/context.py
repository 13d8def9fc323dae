"""Where a task runs, and what ends it. The one that runs now is `protocol.context.current_task`."""

from __future__ import annotations

from msgspec import Struct


class Place(Struct, frozen=True):
    """Where attempts run. Its text is what messages to people say: "rank 3 at nid00012"."""

    rank: int  # in the MPI world
    node: str  # host name

    def __str__(self) -> str:
        return f"rank {self.rank} at {self.node}"


class TaskContext(Struct, frozen=True, gc=False):
    """The attempt that runs in this process. Its text is "task 7 (f)"."""

    task: int  # as its client counts
    attempt: int  # the first is 1
    app: str
    rank: int
    node: str

    def __str__(self) -> str:
        return f"task {self.task} ({self.app})"


class TaskStopped(BaseException):
    """Raised in a task's Python code when it is cancelled or has used up its walltime."""


run_dir = ""
"""The job's run directory; "" outside task processes."""
