"""Files that a task finds on its own node: copied there once, before the first call that takes them. Runs in task processes.

What is copied is a file that all nodes see: what is farther away was brought there first, by a task of its own. Of the
tasks of a node that want it at the same time one copies it, the others wait for its lock; a lock is gone with its process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exex.files.file import File

directory = ""
"""Where files of the job lie on this node; whoever removes the store of the node removes it. "" if there is no such place."""

pending: list[tuple[File, str]] = []
"""Files in the call that was opened last, and from where they are copied."""


class Arriving:
    """Pickles as a file that is on the node of whoever opens it.

    Args:
        source: path that all nodes see.
    """

    def __init__(self, file: File, source: str) -> None:
        self._file = file
        self._source = source

    def __reduce__(self) -> tuple[object, tuple[str, str | None, str]]:
        return arriving, (self._file.url, self._file.sha256, self._source)


def arriving(url: str, sha256: str | None, source: str) -> File:
    """The file as the task sees it, to be copied before the call."""
    from exex.files.file import NODE, File

    file = File(url, sha256=sha256, to=NODE)
    pending.append((file, source))
    return file


def complete() -> None:
    """Return when all files of the call are here.

    Raises:
        TransferError: one of them cannot be copied, or this process knows no place for it.
    """
    from exex.files import node_copy

    files, pending[:] = pending[:], []
    for file, source in files:
        file.local_path = node_copy.bring(directory, file, source)
