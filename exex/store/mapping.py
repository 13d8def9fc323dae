"""Files in memory. Python's own `mmap` keeps a descriptor open for each, and a client may have very many results.

Memory goes back when nothing refers to it any more, as with any buffer; not at the end of the process, which may still look at
it. The kernel maps no more than 65,530 files in one process (`vm.max_map_count`); what is beyond is read.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


def map_privately(fd: int, size: int) -> memoryview:
    """The first `size` bytes of a file. What is written there nobody else sees, and only the pages written to are copied.

    Raises:
        OSError: the kernel says no.
    """
    if not size:
        return memoryview(bytearray())
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, fd, 0)
    if address in (None, _FAILED):
        number = ctypes.get_errno()
        if number == errno.ENOMEM:
            return _read(fd, size)
        raise OSError(number, f"{size} bytes cannot be mapped: {os.strerror(number)}")
    memory = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(memory, _libc.munmap, address, size).atexit = False
    return memoryview(memory).cast("B")


def is_private(view: memoryview) -> bool:
    """Whether a view is of what was mapped here: its owner may write to it."""
    return isinstance(view.obj, ctypes.Array)


def _read(fd: int, size: int) -> memoryview:
    view = memoryview(bytearray(size))
    done = 0
    while done < size:
        read = os.preadv(fd, [view[done:]], done)
        if not read:
            raise OSError(errno.EIO, f"a file ends after {done} of {size} bytes")
        done += read
    return view
