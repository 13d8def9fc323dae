"""What can be said about a journal before the job starts, without SQLite."""

from __future__ import annotations

import os

from exex.errors import JournalError


def check_before_start(path: str, resume: bool) -> None:
    """Refuse to go on with a journal without being told so.

    Raises:
        JournalError: names both ways out.
    """
    if os.path.exists(path) and not resume:
        raise JournalError(
            f"the journal {path} exists: add --resume to go on with what is recorded in it, or name another file (or move "
            "this one away) to begin anew"
        )
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise JournalError(f"the journal {path} cannot be made: the directory {directory} does not exist")
