"""Where the store of a node stands: a directory in its memory, and one on its disk for what finds no room there.

The first rank of a node that comes makes them, the others find them by a name that all ranks of the job can work out; nobody
waits for anybody. As staged directories, they are held by all guards of the node: see stage_hold. Memory is /dev/shm; where that
cannot be used, the directory on disk is all there is, and where no disk is the node's own, memory is all there is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from typing import NamedTuple

from exex.errors import StartError
from exex.launch.stage_hold import LOCK, STORE, hold
from exex.launch.stage_place import AUTO, available_memory, bases, file_system, judge, locked, make_lock, node_name, sweep
from exex.launch.stage_place import own_parent as parent_of

MEMORY = "/dev/shm"

MEMORY_SHARE = 4
"""The part of a node's free memory that values may take, unless the user says so: most of it is for what tasks use themselves."""

LEAST_BYTES = 1024**2
"""A file system with less room than that is of no use."""


class StorePlace(NamedTuple):
    """What this rank uses of its node.

    Attributes:
        directory: names the store.
        spill: the directory for what finds no room there; "" if there is none.
        limit_bytes: of the node's memory, for all ranks on it together.
        held: descriptors that hold both as long as this process lives.
    """

    directory: str
    spill: str
    limit_bytes: int
    held: list[int]

    def directories(self) -> list[str]:
        """All that guards hold and remove."""
        return [path for path in (self.directory, self.spill) if path]


def find_place(job_key: bytes, setting: str, limit: int | str, env: Mapping[str, str], memory: str = MEMORY) -> StorePlace | None:
    """Make the directories of this node's store, or find them; None if none can be used.

    Args:
        job_key: a secret of this job.
        setting: the directory for what finds no room in memory, or auto; variables in it are expanded. Ranks of a node for which
            it differs have stores of their own.
        limit: bytes of memory for all values of this node; auto: see MEMORY_SHARE.
        memory: where memory is a file system.

    Raises:
        StartError: the directory that is set cannot be used.
    """
    disk = _disk(setting, env)
    name = f"{node_name()}-{hashlib.blake2b(job_key + disk.encode(), digest_size=10).hexdigest()}"
    made: list[str] = []
    held: list[int] = []
    for base in (memory, disk):
        try:
            if base and (base == disk or not judge(base, LEAST_BYTES, is_asked_for=True, runs_programs=False).why_not):
                path, fd = _make(base, name)
                made.append(path)
                held.append(fd)
        except (OSError, StartError) as error:
            if base == disk and setting != AUTO:
                raise StartError(f"--store-dir {disk} cannot be used: {error}") from None
    if not made:
        return None
    limit_bytes = limit if isinstance(limit, int) else available_memory() // MEMORY_SHARE
    if made[0].startswith(memory + "/"):
        limit_bytes = min(limit_bytes, judge(memory, 0, is_asked_for=True, runs_programs=False).free_bytes)
    return StorePlace(made[0], made[1] if len(made) > 1 else "", limit_bytes, held)


def _disk(setting: str, env: Mapping[str, str]) -> str:
    """The directory below which this node's disk is used; "" if there is none."""
    for base in bases(setting, env):
        if setting == AUTO and file_system(base) in ("tmpfs", "ramfs"):
            continue
        candidate = judge(base, LEAST_BYTES, is_asked_for=setting != AUTO, runs_programs=False)
        if not candidate.why_not:
            return base
        if setting != AUTO:
            raise StartError(f"--store-dir {base} {candidate.why_not}")
    return ""


def _make(base: str, name: str) -> tuple[str, int]:
    """Make a directory of the store, or find it; returns its path, and the descriptor that holds it."""
    sweep(base, STORE)
    parent = parent_of(base, STORE)
    path = os.path.join(parent, name)
    with locked(parent):
        if os.path.exists(os.path.join(path, LOCK)) and (fd := hold(path)) >= 0:
            return path, fd
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        return path, make_lock(path)
