"""How often MPICH tries within one call what its network refuses for now (libfabric's FI_EAGAIN).

It would try for ever: a first message to a rank that has just died, or to one that does not look after its connections, would
not return. The limit is a control variable of the library, which the standard's tool interface (MPI-4, chapter 15) reads and
writes; the call then fails, and can be made again. It holds for all the library does, so it is only set around sends: an
answer that MPICH itself owes to a peer must not be given up.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

VARIABLE = b"MPIR_CVAR_CH4_OFI_MAX_EAGAIN_RETRY"

HINT = {"eagain": "true"}
"""What a communicator must say for the limit to hold for its sends; from MPICH 4.3 on it always does."""

FEW = 10
"""Tries in one call: some twenty microseconds each."""

_NO_LIMIT = -1


class Tries:
    """The limit of this process. It has none until `limit` is called."""

    def __init__(self, library: ctypes.PyDLL, handle: ctypes.c_void_p) -> None:
        self._write = library.MPI_T_cvar_write
        self._handle = handle
        self._few, self._no_limit = ctypes.c_int(FEW), ctypes.c_int(_NO_LIMIT)
        self._to_few, self._to_no_limit = ctypes.byref(self._few), ctypes.byref(self._no_limit)

    def limit(self) -> None:
        """From now on calls give up after FEW tries."""
        self._write(self._handle, self._to_few)

    def lift(self) -> None:
        """From now on they do not."""
        self._write(self._handle, self._to_no_limit)


def find() -> Tries | None:
    """The limit of the MPI library in this process, after MPI_Init; None if it has none, as all but MPICH."""
    for path in _loaded():
        try:
            library = ctypes.PyDLL(path)  # twice as fast as CDLL, which lets other threads run in between
            start, index_of, take = library.MPI_T_init_thread, library.MPI_T_cvar_get_index, library.MPI_T_cvar_handle_alloc
        except (OSError, AttributeError):
            continue
        level, index, handle, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int()
        if start(0, ctypes.byref(level)) or index_of(VARIABLE, ctypes.byref(index)):
            continue
        if not take(index, None, ctypes.byref(handle), ctypes.byref(count)) and count.value == 1:
            return Tries(library, handle)
    return None


def _loaded() -> list[str]:
    """Files in this process that may be the MPI library."""
    words = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    files = {line[5] for line in words if len(line) == 6}
    return sorted(path for path in files if Path(path).name.startswith("libmpi"))
