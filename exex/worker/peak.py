"""The most memory that an attempt has used. Runs in task processes.

The kernel keeps the largest resident size of a process (`ru_maxrss`); 5 in /proc/self/clear_refs sets it back to what is resident
now. So after an attempt there is the most since the last look. Attempts between were too short to be worth one, and to use much.
Of programs that bash apps start, the kernel tells the largest when they have ended.
"""

from __future__ import annotations

import resource

LEAST_S = 0.002
"""Shorter attempts are not looked at: a look takes some 5 µs."""

_RESET = "/proc/self/clear_refs"


class Peak:
    """Most memory of this process, and of programs that it has waited for, since the last look."""

    def __init__(self) -> None:
        self._program_bytes = 0
        self._known_bytes = 0  # where the kernel does not set it back, only more than this is news

    def note_program(self, usage: resource.struct_rusage) -> None:
        """A program that the running task has waited for has ended."""
        self._program_bytes = max(self._program_bytes, usage.ru_maxrss * 1024)

    def look(self) -> int:
        """Most resident bytes since the last look, of this process or of one program; 0: not known."""
        program_bytes, self._program_bytes = self._program_bytes, 0
        own_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        is_new = own_bytes > self._known_bytes
        try:
            with open(_RESET, "wb", buffering=0) as file:
                file.write(b"5")
            self._known_bytes = 0
        except OSError:
            self._known_bytes = max(self._known_bytes, own_bytes)
        return max(program_bytes, own_bytes if is_new else 0)


peak = Peak()
"""Of this process."""
