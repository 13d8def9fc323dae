"""Who holds a directory that a job has on a node, and how it goes: what is staged there, or the store of the node.

Every guard of a node holds a shared lock on the directory's file `lock`, which the kernel releases however the guard ends.
Who can lock it alone is the last one, and removes the directory: a guard at its end, the reaper of one that was killed,
`exex run`, or the next job that makes one on this node.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

LOCK = "lock"

UNTIL = "until"
"""The file of a directory that waits for the ranks of its job: until when, by the clock, nobody takes it for a left-over."""

STAGE, STORE = "stage", "store"
"""What such a directory is for."""


def parent_name(kind: str = STAGE, uid: int | None = None) -> str:
    """Of the directory, below any base, in which a user's directories of a kind stand; by default this user's."""
    return f"exex-{kind}-{os.getuid() if uid is None else uid}"


def hold(path: str) -> int:
    """Hold a directory; returns the descriptor that does so, or -1 if it is gone."""
    try:
        held = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return held


def release(held: int, path: str) -> None:
    """Hold it no longer, and remove it if nobody else does."""
    if held < 0:
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        import shutil

        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        pass  # others run from it
    finally:
        os.close(held)


def remove_if_left(path: str) -> None:
    """Remove a directory that nobody holds."""
    if os.path.basename(os.path.dirname(path)) in (parent_name(STAGE), parent_name(STORE)):
        with contextlib.suppress(OSError):
            release(hold(path), path)
