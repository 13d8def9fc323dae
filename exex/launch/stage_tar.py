"""Tar archives of environments: made as a stream of bytes, and taken apart without trusting what they say."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple, cast

from exex.errors import StartError

PIECE_BYTES = 1024**2
"""Files are read and written in pieces of this size."""

_END = b"\0" * 1024
_BLOCK = 512
_LEFT_OUT = {".git", ".hg", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"}


class UnsafeArchiveError(StartError):
    """An archive wants to write where it may not, or holds what is neither a file, a directory nor a link."""


class Entry(NamedTuple):
    """What becomes one member of an archive."""

    name: str  # in the archive, without a leading "./"
    path: str  # of the file, directory or link that it is made of; "" if `data` holds it
    data: bytes | None = None  # instead of what stands in the file


class Unpacked(NamedTuple):
    """What has been written."""

    files: int
    size_bytes: int


# ---- making one ----


def tree(root: str, name: str = "", leave_out: Sequence[str] = ()) -> Iterator[Entry]:
    """Entries for all below a directory, sorted, so that equal directories make equal archives.

    Args:
        name: of the directory in the archive; "" for none.
        leave_out: paths relative to `root` that are not taken.
    """
    with os.scandir(root) as scan:
        found = sorted(scan, key=lambda item: item.name)
    for item in found:
        relative = f"{name}/{item.name}" if name else item.name
        if item.name in _LEFT_OUT or item.name in leave_out:
            continue
        yield Entry(relative, item.path)
        if item.is_dir(follow_symlinks=False):
            below = [path[len(item.name) + 1 :] for path in leave_out if path.startswith(item.name + "/")]
            yield from tree(item.path, relative, below)


def tar_stream(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The bytes of a tar archive (pax), in pieces. Each file is opened once. Sockets, pipes and devices are left out.

    Raises:
        OSError: a file cannot be read, or has become shorter meanwhile.
    """
    for entry in entries:
        info = _info(entry)
        if info is None:
            continue
        yield info.tobuf(tarfile.PAX_FORMAT)
        if entry.data is not None:
            yield entry.data
        elif info.isreg():
            yield from _content(entry.path, info.size)
        if info.isreg() and info.size % _BLOCK:
            yield b"\0" * (_BLOCK - info.size % _BLOCK)
    yield _END


def _info(entry: Entry) -> tarfile.TarInfo | None:
    info = tarfile.TarInfo(entry.name)
    if entry.path:
        found = os.lstat(entry.path)
        info.mode, info.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
        if stat.S_ISLNK(found.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(entry.path)
        elif stat.S_ISDIR(found.st_mode):
            info.type = tarfile.DIRTYPE
        elif stat.S_ISREG(found.st_mode):
            info.size = found.st_size
        else:
            return None
    if entry.data is not None:
        info.type, info.size, info.linkname = tarfile.REGTYPE, len(entry.data), ""
    return info


def _content(path: str, size: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while size:
            piece = file.read(min(size, PIECE_BYTES))
            if not piece:
                raise OSError(errno.EIO, "the file has become shorter while it was read", path)
            size -= len(piece)
            yield piece


# ---- taking one apart ----


def unpack(stream: IO[bytes], directory: str) -> Unpacked:
    """Write the members of a tar archive below `directory`, which exists. The archive is trusted with nothing outside of it:

    names lead downwards and through no symbolic link, hard links lead to members, and there are only files, directories and
    links. Symbolic links themselves may point anywhere, as those of environments do. Owners and the bits that give rights to
    others or to a program are not taken over; times are, because compiled Python files carry that of their source.

    Raises:
        UnsafeArchiveError: see above.
        OSError: no space, and what else can happen to files.
        tarfile.TarError: it is no tar archive.
    """
    directories = {""}  # below `directory`, made by us, so no links
    files = size_bytes = 0
    forward = Forward(stream)
    with tarfile.open(fileobj=cast("IO[bytes]", forward), mode="r:") as archive:
        for member in archive:
            name = _safe_name(member.name)
            if not name:
                continue
            _make_parents(directory, name, directories)
            path = os.path.join(directory, name)
            if member.isdir():
                _make_directory(path, name, directories)
                continue
            if name in directories:
                raise UnsafeArchiveError(f"{member.name!r} is a directory and then something else")
            if os.path.lexists(path):
                os.unlink(path)
            if member.isreg():
                _write(archive.extractfile(member), path, member)
                size_bytes += member.size
            elif member.issym():
                os.symlink(member.linkname, path)
            elif member.islnk():
                _hard_link(directory, member, path, directories)
            else:
                raise UnsafeArchiveError(f"{member.name!r} is neither a file nor a directory nor a link")
            files += 1
    while forward.read(PIECE_BYTES):
        pass  # to the end, where checksums are
    return Unpacked(files, size_bytes)


def _safe_name(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise UnsafeArchiveError(f"{name!r} leads out of the directory that it is unpacked to")
    return "/".join(parts)


def _make_parents(directory: str, name: str, directories: set[str]) -> None:
    parent = name.rpartition("/")[0]
    if parent in directories:
        return
    _make_parents(directory, parent, directories)
    _make_directory(os.path.join(directory, parent), parent, directories)


def _make_directory(path: str, name: str, directories: set[str]) -> None:
    if name in directories:
        return
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        raise UnsafeArchiveError(f"{name!r} is a file or a link, and then a directory") from None
    directories.add(name)


def _write(source: IO[bytes] | None, path: str, member: tarfile.TarInfo) -> None:
    assert source is not None
    mode = 0o700 if member.mode & 0o100 else 0o600
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(fd, "wb", buffering=0) as file:
        while piece := source.read(PIECE_BYTES):
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
    os.utime(path, (member.mtime, member.mtime))


def _hard_link(directory: str, member: tarfile.TarInfo, path: str, directories: set[str]) -> None:
    target = _safe_name(member.linkname)
    source = os.path.join(directory, target)
    if target.rpartition("/")[0] not in directories or not os.path.isfile(source) or os.path.islink(source):
        raise UnsafeArchiveError(f"{member.name!r} is a hard link to {member.linkname!r}, which is no file of the archive")
    os.link(source, path)


class Reader:
    """A file to read from, made of pieces of bytes, as `tarfile` and decompressors want one.

    Attributes:
        read_bytes: so far.
    """

    def __init__(self, pieces: Iterator[Any]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")
        self.read_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, as many as there are until the end; all if it is negative."""
        found = []
        while size:
            if not self._left:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._left = memoryview(piece)
                continue
            part = self._left if size < 0 else self._left[:size]
            self._left = self._left[len(part) :]
            found.append(bytes(part))
            size -= len(part) if size > 0 else 0
        data = b"".join(found)
        self.read_bytes += len(data)
        return data


class Forward:
    """A stream of which the position is known, and which can be moved forward: what `tarfile` wants."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._reader = Reader(iter(lambda: stream.read(PIECE_BYTES), b""))

    def read(self, size: int = -1) -> bytes:
        """See `Reader.read`."""
        return self._reader.read(size)

    def tell(self) -> int:
        """Bytes read or passed over so far."""
        return self._reader.read_bytes

    def seek(self, position: int) -> int:
        """Pass over what is before `position`.

        Raises:
            OSError: it is behind us.
        """
        if position < self._reader.read_bytes:
            raise OSError(errno.ESPIPE, "an archive is read once, from its beginning to its end")
        while (left := position - self._reader.read_bytes) and self._reader.read(min(left, PIECE_BYTES)):
            pass
        return self._reader.read_bytes
