"""Processes and all that they have started, as /proc tells: who they are, ending them, how much memory they use.

Runs in the template and in keepers. Every task process has a keeper that adopts its orphans, so whatever a task starts
stays a descendant of the keeper, in whatever session it is and whoever its parent was.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from exex.launch.steps import end_launchers

_KERNEL_LISTS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
_UNSHARED = ("RssAnon", "RssShmem", "VmSwap")
_HEX = b"0123456789abcdef"
_EXACT = ("Pss_Anon", "Pss_Shmem", "SwapPss")


# ---- who ------------------------------------------------------------------------------------------------------


def kill_family(ancestors: Iterable[int]) -> None:
    """SIGKILL processes and all that they have started; launchers may first end what they have started elsewhere."""
    ancestors = set(ancestors)
    end_launchers(family(ancestors))
    send(family(ancestors, freeze=True), signal.SIGKILL)


def family(ancestors: Iterable[int], freeze: bool = False) -> list[int]:
    """Processes and their descendants, parents first: a shell that is told to end must not first hear of its child's end.

    Args:
        ancestors: not reaped yet, so that their numbers are still theirs.
        freeze: SIGSTOP each as soon as it is found, so that none can start another unseen.
    """
    found: dict[int, None] = {}
    fresh = set(ancestors)
    while fresh:
        if freeze:
            send(fresh, signal.SIGSTOP)
        found.update(dict.fromkeys(fresh))
        fresh = {child for pid in found for child in children(pid)} - found.keys()
    return list(found)


def children(pid: int) -> set[int]:
    """Direct children, those of threads included; none of a process that has ended."""
    if not _KERNEL_LISTS_CHILDREN:
        return _children_by_parent(pid)
    found: set[int] = set()
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found.update(map(int, file.read().split()))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def _children_by_parent(pid: int) -> set[int]:
    """As `children`, on kernels without CONFIG_PROC_CHILDREN: looks at every process there is."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])  # after the name, which may hold anything
            except OSError:
                continue
            if parent == pid:
                found.add(int(name))
    return found


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to each that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


# ---- memory ---------------------------------------------------------------------------------------------------


def used_bytes(pids: Iterable[int], limit_bytes: int, template: int) -> int:
    """Memory of processes together: anonymous, shared among them, and swapped. Above the limit it is exact.

    The page cache is not counted, since the kernel takes it back; neither are pages that are still the template's. Up to
    the limit the sum of what the kernel counts per process will do, which costs no look at any page table, but counts a
    page once for each process that has it; only a sum above the limit is settled by proportional shares (Pss).
    """
    pids = list(pids)
    most = sum(sum(_fields(f"/proc/{pid}/status", _UNSHARED).values()) for pid in pids)
    if most <= limit_bytes or not os.path.exists("/proc/self/smaps_rollup"):
        return most
    template_share = _shared(template)
    return sum(max(0, _own(pid) - min(_shared(pid), template_share)) for pid in pids)


def _own(pid: int) -> int:
    """A process's proportional share of memory."""
    fields = _fields(f"/proc/{pid}/smaps_rollup", (*_EXACT, "Pss"))
    if "Pss_Anon" in fields:
        return sum(fields.get(name, 0) for name in _EXACT)
    # before Linux 5.4, or a process that may not be looked at
    return fields.get("Pss") or sum(_fields(f"/proc/{pid}/status", _UNSHARED).values())


def _shared(pid: int) -> int:
    """Of that, what others have, too, of pages that belong to no file.

    Files do not count: a template shares its libraries with other programs, and a forked process has none of their pages
    before it looks at them itself.
    """
    shared_kb, is_anonymous = 0, False
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            for line in file:
                if line[0] in _HEX:  # "7f0c...-7f0c... rw-p 00000000 00:00 0   [heap]"
                    is_anonymous = line.split(None, 5)[4] == b"0"
                elif is_anonymous and line.startswith((b"Pss:", b"Private_Clean:", b"Private_Dirty:")):
                    name, number = line.split()[:2]
                    shared_kb += int(number) if name == b"Pss:" else -int(number)
    except (OSError, ValueError):
        return 0
    return max(0, shared_kb) * 1024


def _fields(path: str, names: tuple[str, ...]) -> dict[str, int]:
    """Sizes in bytes from lines like "RssAnon:   1234 kB"; none of a process that has ended or is another user's."""
    found: dict[str, int] = {}
    try:
        with open(path) as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name in names:
                    found[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError):
        pass
    return found
