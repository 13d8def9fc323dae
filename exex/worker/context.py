"""What a task may know about itself. Imported by the client library, so it imports nothing of the worker."""

from __future__ import annotations

from msgspec import Struct


class Place(Struct, frozen=True):
    """Where attempts run. Its text is what messages to people say: "rank 3 at nid00012"."""

    rank: int  # in the MPI world
    node: str  # host name

    def __str__(self) -> str:
        return f"rank {self.rank} at {self.node}"


class TaskContext(Struct, frozen=True, gc=False):
    """The attempt that runs in this process."""

    task: int  # as its client counts
    attempt: int  # the first is 1
    app: str
    rank: int
    node: str


current: TaskContext | None = None
"""Set in a process that runs a task, while it runs it."""

run_dir = ""
"""The job's run directory; "" outside task processes."""
