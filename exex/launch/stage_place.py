"""Where staged files stand on a node: `BASE/exex-stage-UID/NAME/`, in the first BASE that is the node's own and has room."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from exex.errors import StartError
from exex.launch.stage_hold import LOCK, STAGE, UNTIL, parent_name, release, remove_if_left

AUTO = "auto"

_MEMORY_SHARE = 4
"""In memory at most this part of what is available is used, unless the user says so."""

_SPARE_BYTES = 16 * 1024**2
_REMOTE = {
    *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "9p", "afs", "panfs", "pvfs2", "orangefs", "ocfs2"),
    *("gfs2", "dvs", "glusterfs", "wekafs", "daos", "vast"),
}


class Candidate(NamedTuple):
    """A directory that could hold it."""

    path: str
    free_bytes: int
    why_not: str = ""  # "" if it can


def bases(setting: str, env: Mapping[str, str]) -> list[str]:
    """Directories in the order in which they are tried: the one that is set; or scratch, TMPDIR, memory and /tmp."""
    if setting != AUTO:
        return [os.path.abspath(os.path.expandvars(setting))]
    return list(dict.fromkeys(path for path in auto_bases(lambda name: env.get(name, "")) if path))


def auto_bases(value: Callable[[str], str]) -> list[str]:
    """Where `auto` looks, in this order; `value` is asked for variables."""
    return [value("EXEX_SCRATCH"), value("TMPDIR"), "/dev/shm", "/tmp", "/var/tmp"]


def judge(path: str, needs_bytes: int, is_asked_for: bool, runs_programs: bool = True) -> Candidate:
    """Whether a directory of this node can hold so much; one that the user has named may also be memory, or shared."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        return Candidate(path, 0, (error.strerror or "cannot be used").lower())
    free_bytes = found.f_bavail * found.f_frsize
    if not os.access(path, os.W_OK | os.X_OK):
        return Candidate(path, free_bytes, "may not be written to")
    if runs_programs and found.f_flag & os.ST_NOEXEC:
        return Candidate(path, free_bytes, "is mounted noexec: no program could be run there")
    kind = file_system(path)
    if not is_asked_for and (kind in _REMOTE or kind.startswith("fuse.")):
        return Candidate(path, free_bytes, f"is not the node's own ({kind})")
    if kind in ("tmpfs", "ramfs") and not is_asked_for:
        free_bytes = min(free_bytes, available_memory() // _MEMORY_SHARE)
    if free_bytes < needs_bytes + _SPARE_BYTES:
        return Candidate(path, free_bytes, f"has room for {_size(free_bytes)}")
    return Candidate(path, free_bytes)


def file_system(path: str, mounts: str = "/proc/self/mounts") -> str:
    """Kind of the file system that a path is on; "" if it cannot be told."""
    path = os.path.realpath(path)
    best, kind = "", ""
    with contextlib.suppress(OSError), open(mounts, encoding="utf-8", errors="replace") as file:
        for line in file:
            _, point, found, *_ = line.split()
            point = point.replace("\\040", " ")
            if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
                best, kind = point, found
    return kind


def available_memory() -> int:
    """Bytes that the kernel could give to programs; a large number if it does not tell."""
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 62


class Place:
    """A new directory, held by this process. What earlier jobs have left beside it, killed as they were, is removed first.

    Args:
        key: what its name ends with, after the node's; "" for a name of its own.

    Attributes:
        path: the directory, of mode 0700.
        base: the directory that was chosen for it.
        free_bytes: that it had.

    Raises:
        StartError: no directory can hold so much; the message names all that were tried, and why not.
    """

    def __init__(self, setting: str, env: Mapping[str, str], needs_bytes: int, key: str = "") -> None:
        self._key = key
        tried = []
        for base in bases(setting, env):
            sweep(base)
            candidate = judge(base, needs_bytes, is_asked_for=setting != AUTO)
            if candidate.why_not:
                tried.append(f"{base} {candidate.why_not}")
                continue
            self.base, self.free_bytes = base, candidate.free_bytes
            try:
                self._make()
                return
            except StartError as error:
                tried.append(f"{base} cannot be used: {error}")
        raise StartError(
            f"no directory for what is staged, which needs about {_size(needs_bytes)}: {'; '.join(tried)}. "
            "Name one that the node has for itself: --stage-dir DIR"
        )

    def _make(self) -> None:
        import tempfile

        parent = own_parent(self.base)
        with locked(parent):
            if self._key:
                self.path = os.path.join(parent, f"{node_name()}-{self._key}")
                os.mkdir(self.path, 0o700)
            else:
                self.path = tempfile.mkdtemp(prefix=f"{node_name()}-{os.getpid()}-", dir=parent)
            self._held = make_lock(self.path)

    def give_up(self) -> None:
        """Remove it."""
        release(self._held, self.path)


def make_lock(path: str) -> int:
    """Begin to hold a new directory; returns the descriptor that does so."""
    held = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(held, fcntl.LOCK_SH)
    return held


def sweep(base: str, kind: str = STAGE) -> None:
    """Remove what killed jobs of this user have left on this node below a directory.

    If that is shared after all, locks of other nodes may not be seen here, so that theirs are left alone.
    """
    parent = os.path.join(base, parent_name(kind))
    if not os.path.isdir(parent):
        return
    with contextlib.suppress(OSError, StartError), locked(own_parent(base, kind)):
        for name in os.listdir(parent):
            path = os.path.join(parent, name)
            if not name.startswith(f"{node_name()}-") or not os.path.isdir(path) or os.path.islink(path):
                continue
            if os.path.exists(os.path.join(path, LOCK)):
                if not _waits(path):
                    remove_if_left(path)
            else:  # killed while it was made, or while it was removed
                import shutil

                shutil.rmtree(path, ignore_errors=True)


def _waits(path: str) -> bool:
    """Whether a directory waits for the ranks of its job."""
    try:
        with open(os.path.join(path, UNTIL), encoding="ascii") as file:
            return float(file.read()) > time.time()
    except (OSError, ValueError):
        return False


def node_name() -> str:
    """What begins the names of this node's directories."""
    return socket.gethostname().partition(".")[0]


def own_parent(base: str, kind: str = STAGE) -> str:
    """The directory of this user below `base`, in which nobody else may write.

    Raises:
        StartError: somebody else may.
    """
    parent = os.path.join(base, parent_name(kind))
    with contextlib.suppress(FileExistsError):
        os.mkdir(parent, 0o700)
    found = os.lstat(parent)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        whose = "belongs to somebody else, or others may write to it"
        raise StartError(f"{parent} {whose}: name another directory, --{kind}-dir DIR")
    return parent


@contextlib.contextmanager
def locked(parent: str) -> Iterator[None]:
    """Nobody else makes or sweeps directories here meanwhile."""
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def no_space(error: OSError) -> bool:
    """Whether an error says that a file system, or the user's part of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
