"""A lock file beside a file that one process of a whole cluster may write. Runs at rank 0 and in `exex journal`.

POSIX locks are off, slow or wrong on many parallel file systems; making a file with O_EXCL is right on all of them. The
lock names its holder. A holder that is gone is found out in two ways: on the same machine by its process, at once; from
another one by its lease, which is over when the lock's time of modification has not moved for `LEASE_S`. Both times of
that comparison are the file system's own: the clocks of two nodes may differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass

from exex.errors import JournalError

LEASE_S = 30.0
"""Without a sign of life for so long, a holder on another machine counts as gone."""

RENEW_S = 5.0
"""Between two signs of life."""

_LOOK_S = 0.25


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        boot, pids: of the machine since it was started, and of the set of process numbers: where both are ours, `pid`
            and `started` tell exactly whether the holder lives.
        started: of the process, in clock ticks since the machine was started.
        since: when it took the lock, for people.
        token: no two holders have the same.
    """

    host: str
    boot: str
    pids: str
    pid: int
    started: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_here(self) -> bool:
        """Whether its process can be seen from here."""
        mine = _this_process()
        return (self.boot, self.pids) == (mine.boot, mine.pids)

    def lives(self) -> bool:
        """Of one that is here: whether its process runs."""
        return _started(self.pid) == self.started


class Lock:
    """A lock that this process holds.

    Attributes:
        path: of the lock file.
    """

    def __init__(self, path: str, me: Holder) -> None:
        self.path = path
        self._me = me

    def renew(self) -> None:
        """Show that the holder lives. Nothing happens if the lock is lost: `is_ours` tells."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def is_ours(self) -> bool:
        """Whether nobody has taken the lock away."""
        return _read(self.path) == self._me

    def release(self) -> None:
        """Give the lock back."""
        if self.is_ours():
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def acquire(target: str, lease_s: float = LEASE_S) -> Lock:
    """Lock the file `target`. Waits, for `lease_s` at most, where only time can tell whether the holder is gone.

    Raises:
        JournalError: somebody holds the lock; or it cannot be made.
    """
    path = target + ".lock"
    me = _this_process()
    seen: tuple[Holder | None, float] | None = None
    until: float | None = None
    while True:
        if _make(path, me):
            return Lock(path, me)
        holder, changed = _read(path), _modified(path)
        if changed is None:
            continue  # it has just gone
        if holder is not None and holder.is_here():
            if holder.lives():
                raise JournalError(f"{target} is in use by {holder}")
            _remove_dead(path, holder, me)
            continue
        now = time.monotonic()
        if until is None:
            until = now + max(0.0, lease_s - (_now_of(path, me) - changed))
            seen = (holder, changed)
        elif (holder, changed) != seen:
            raise JournalError(f"{target} is in use by {holder or 'somebody'}, who shows that it lives")
        if now >= until:
            _remove_dead(path, holder, me)
            until = None
        else:
            time.sleep(min(_LOOK_S, until - now))


def _make(path: str, me: Holder) -> bool:
    """Make a lock file; False if it exists."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        raise JournalError(f"the lock {path} cannot be made: {error.strerror}") from error
    try:
        os.write(fd, json.dumps(asdict(me)).encode())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise JournalError(f"the lock {path} cannot be written: {error.strerror}") from error
    finally:
        os.close(fd)
    return True


def _remove_dead(path: str, holder: Holder | None, me: Holder) -> None:
    """Remove the lock of a dead holder, unless somebody else is at it or it is another's by now.

    A lock of its own guards the look and the removal: otherwise two processes that have found the same dead holder could
    remove each other's new lock.
    """
    guard = path + ".break"
    if not _make(guard, me):
        other, changed = _read(guard), _modified(guard)
        is_dead = other is not None and other.is_here() and not other.lives()
        if changed is not None and (is_dead or _now_of(path, me) - changed > LEASE_S):
            with contextlib.suppress(OSError):
                os.unlink(guard)
        time.sleep(_LOOK_S / 10)
        return
    try:
        if _read(path) == holder:
            os.unlink(path)
    except FileNotFoundError:
        pass
    finally:
        os.unlink(guard)


def _read(path: str) -> Holder | None:
    """Who holds a lock; None if there is none, or if it does not say."""
    try:
        with open(path, encoding="utf-8") as file:
            return Holder(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None


def _modified(path: str) -> float | None:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return None


def _now_of(path: str, me: Holder) -> float:
    """The time now, by the clock of the file system where `path` lies."""
    probe = f"{path}.{me.token}"
    fd = os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, b".")
        os.fsync(fd)
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)
        os.unlink(probe)


def _this_process() -> Holder:
    return Holder(
        host=socket.gethostname(),
        boot=_text("/proc/sys/kernel/random/boot_id"),
        pids=os.readlink("/proc/self/ns/pid"),
        pid=os.getpid(),
        started=_started(os.getpid()),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        token=uuid.uuid4().hex,
    )


def _started(pid: int) -> str:
    """When a process was started, in clock ticks; "" if there is none."""
    stat = _text(f"/proc/{pid}/stat")
    fields = stat.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
