"""The store of a node: one directory in its memory, and one on its disk for what finds no room there. Stored payloads are files.

A file holds the frames of its payload one after another, each at a multiple of 64 bytes, so that arrays in it are aligned. It is
written under a temporary name and gets its own when it is complete: whoever finds it finds all of it. Readers map it; what they
have mapped stays theirs, also when the file is gone. Every process of the job on this node may use the store at any time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Sequence

from exex.errors import StoreFull
from exex.protocol.payload import Buffer, Large, Stored
from exex.store.mapping import map_privately
from exex.store.recycling import remove_all, take

ALIGNMENT = 64

SPARE_BYTES = 16 * 1024**2
"""What is left free on each file system: MPI libraries have their own memory beside ours."""

SPILL = "spill"
"""Name of the link, in the directory in memory, to the one on disk."""

KEY = "key"
"""Name of the file with the key by which ranks know that they have the same store."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRITE_BYTES = 1 << 30  # the kernel takes no more than 2 GiB at once


def offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where frames of these sizes begin in a file, and how large the file is."""
    found, end = [], 0
    for size in sizes:
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        found.append(begin)
        end = begin + size
    return found, end


class NodeStore:
    """See the module docstring.

    Args:
        directory: the one in memory, or the only one.
        limit_bytes: payloads larger than that do not go into memory; None for no limit.

    Attributes:
        spill: the directory on disk; "" if there is none.
    """

    def __init__(self, directory: str, limit_bytes: int | None = None) -> None:
        self.directory = directory
        self.limit_bytes = limit_bytes
        try:
            self.spill = os.readlink(os.path.join(directory, SPILL))
        except OSError:
            self.spill = ""

    @staticmethod
    def at(directory: str) -> NodeStore | None:
        """The store of this name, if it is this node's."""
        return NodeStore(directory) if directory and os.path.exists(os.path.join(directory, KEY)) else None

    @staticmethod
    def begin(directory: str, spill: str, limit_bytes: int) -> NodeStore:
        """The store in these directories, which exist. Whoever comes first makes it one."""
        if spill:
            with contextlib.suppress(FileExistsError):
                os.symlink(spill, os.path.join(directory, SPILL))
        path = os.path.join(directory, KEY)
        if not os.path.exists(path):
            own = f"{path}.{os.getpid()}"
            with open(own, "w", encoding="ascii") as file:
                file.write(f"{socket.gethostname().encode('ascii', 'replace').decode()}-{os.urandom(16).hex()}")
            with contextlib.suppress(FileExistsError):
                os.link(own, path)
            os.unlink(own)
        return NodeStore(directory, limit_bytes)

    def key(self) -> str:
        """Equal for all who have this store, and nobody else."""
        with open(os.path.join(self.directory, KEY), encoding="ascii") as file:
            return file.read()

    # ---- reading ----

    def path(self, name: str) -> str | None:
        """Where a stored payload lies; None if it is not here."""
        for path in self.paths(name):
            if os.path.exists(path):
                return path
        return None

    def paths(self, name: str) -> list[str]:
        """Where it may lie, in the order in which to look: what is moved to disk is there before it leaves memory."""
        directories = (self.directory, self.spill) if self.spill else (self.directory,)
        return [os.path.join(directory, name) for directory in directories]

    def names(self, prefix: str) -> set[str]:
        """Names of what is here, complete or not, that begin so and end with a number. O(all)."""
        directories = (self.directory, self.spill) if self.spill else (self.directory,)
        found = (name.removeprefix(".") for directory in directories for name in os.listdir(directory))
        return {name for name in found if name.startswith(prefix) and name[len(prefix) :].isdecimal()}

    def has(self, name: str) -> bool:
        """Whether it is here, complete."""
        return self.path(name) is not None

    def map(self, stored: Stored) -> Large:
        """The payload over memory that its user may write to, without others seeing it; nothing is copied before that.

        Raises:
            FileNotFoundError: it is not here, or not what was announced.
        """
        begins, size = offsets(stored.sizes)
        view = self.view(stored.name)
        if len(view) != size:
            raise FileNotFoundError(errno.ENOENT, f"{len(view)} bytes, where {size} were announced", stored.name)
        return Large([view[begin : begin + length] for begin, length in zip(begins, stored.sizes)])

    def view(self, name: str) -> memoryview:
        """All bytes of its file, as `map` would give them.

        Raises:
            FileNotFoundError: it is not here.
        """
        for path in self.paths(name):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                return map_privately(fd, os.fstat(fd).st_size)
            finally:
                os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "not in the store of this node", name)

    # ---- writing ----

    def write(self, name: str, frames: Sequence[Buffer]) -> Stored:
        """Put a payload here.

        Raises:
            StoreFull: there is no room for it.
        """
        views = [memoryview(frame).cast("B") for frame in frames]
        sizes = [len(view) for view in views]
        begins, size = offsets(sizes)
        for directory in self._with_room(size):
            temporary = os.path.join(directory, f".{name}")
            try:
                with open(_new_file(directory, temporary, size), "wb", 0) as file:
                    for begin, view in zip(begins, views):
                        write_at(file.fileno(), view, begin)
                    file.truncate(size)  # the last frame may be empty, or the file a larger one's
                os.rename(temporary, os.path.join(directory, name))
                return Stored(name, sizes)
            except OSError as error:
                _unlink(temporary)
                if error.errno not in _NO_ROOM:
                    raise
        raise self.full(name, size)

    def incoming(self, name: str, size: int, writer: int) -> Incoming:
        """Room for a file of `size` bytes that comes in pieces.

        Args:
            writer: a number that no other process has that may get the same at the same time.

        Raises:
            StoreFull: there is none.
        """
        for directory in self._with_room(size):
            return Incoming(directory, name, size, writer)
        raise self.full(name, size)

    def remove(self, names: Iterable[str]) -> None:
        """Remove what is here of these, also what was not completed."""
        for name in names:
            for path in self.paths(name):
                _unlink(path)
                directory, base = os.path.split(path)
                _unlink(os.path.join(directory, f".{base}"))

    def _with_room(self, size: int) -> Iterable[str]:
        """Directories that can hold so much, memory first."""
        may = self.limit_bytes is None or size <= self.limit_bytes or not self.spill
        if may and (free_bytes(self.directory) >= size or (remove_all(self.directory) and free_bytes(self.directory) >= size)):
            yield self.directory
        if self.spill and free_bytes(self.spill) >= size:
            yield self.spill

    def full(self, name: str, size: int) -> StoreFull:
        """The error that says so."""
        found = [f"{path} has {_megabytes(free_bytes(path))} to give" for path in (self.directory, self.spill) if path]
        return StoreFull(
            f"node {socket.gethostname()} has no room for the stored value {name} of {_megabytes(size)} ({size} bytes): "
            f"{', '.join(found)}. Name a directory with more room by --store-dir, or keep less of it at once"
        )


class Incoming:
    """A file that is being written, piece by piece.

    Attributes:
        size: of the whole file, in bytes.
    """

    def __init__(self, directory: str, name: str, size: int, writer: int) -> None:
        self.size = size
        self._path = os.path.join(directory, name)
        self._temporary = os.path.join(directory, f".{name}.{writer}")
        self._fd = _new_file(directory, self._temporary, size)
        os.ftruncate(self._fd, size)
        self._view: memoryview | None = None

    def write(self, at: int, data: Buffer) -> None:
        """Write a piece.

        Raises:
            OSError: the file system is full after all, or broken.
        """
        write_at(self._fd, memoryview(data).cast("B"), at)

    def view(self) -> memoryview:
        """All bytes. Only those that were written may be looked at: there may be no room for others."""
        if self._view is None:
            self._view = map_privately(self._fd, self.size)
        return self._view

    def complete(self) -> None:
        """All is there: let it be found."""
        os.close(self._fd)
        os.rename(self._temporary, self._path)

    def abandon(self) -> None:
        """It will not be completed."""
        os.close(self._fd)
        _unlink(self._temporary)


def _new_file(directory: str, path: str, size: int) -> int:
    """A descriptor of a new file, to which about so much will be written."""
    if not take(directory, size, path):
        _unlink(path)  # what was begun before
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def write_at(fd: int, data: memoryview, at: int) -> None:
    """Write all of `data`."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done : done + _WRITE_BYTES], at + done)


def free_bytes(directory: str) -> int:
    """What may still be written below a directory."""
    found = os.statvfs(directory)
    return max(0, found.f_bavail * found.f_frsize - SPARE_BYTES)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
