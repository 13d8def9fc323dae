"""What a guard holds of its node for the job, and removes at the end: directories, and shared memory of the MPI library."""

from __future__ import annotations

import os
from collections.abc import Sequence

from exex.launch.leftovers import note_directory, note_shared_memory, remove_shared_memory
from exex.reaper import Reaper


class Belongings:
    """See above. The reaper and `exex run` hear of each thing, for guards that are killed.

    Args:
        reaper: of this guard.
    """

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._directories: list[tuple[int, str]] = []
        self._shared: Sequence[str] = ()

    def hold(self, directory: str) -> None:
        """Keep a directory of this node as long as this process lives; the last one that does removes it."""
        from exex.launch.stage_hold import hold

        self._directories.append((hold(directory), directory))
        note_directory(os.environ, directory)
        self._reaper.note_directory(directory)

    def note_shared_memory(self, paths: Sequence[str]) -> None:
        """Files in /dev/shm that are the rank's."""
        self._shared = paths
        note_shared_memory(os.environ, paths)
        self._reaper.note_shared_memory(paths)

    def release(self) -> None:
        """Remove the shared memory, and the directories that nobody else holds."""
        remove_shared_memory(self._shared)
        if self._directories:
            from exex.launch.stage_hold import release

            for held, directory in self._directories:
                release(held, directory)
