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
from exex.launch.stage_place import (
    AUTO,
    available_memory,
    bases,
    file_system,
    judge,
    locked,
    make_lock,
    node_name,
    own_parent,
    sweep,
)
from exex.store.node_store import KEY, SPILL, free_bytes

MEMORY = "/dev/shm"

MEMORY_SHARE = 4
"""The part of a node's memory that values may take, unless the user says so: what tasks use themselves is the larger part."""

LEAST_BYTES = 1024**2
"""A file system with less room than that is of no use."""


class StorePlace(NamedTuple):
    """What this rank uses of its node.

    Attributes:
        directory: names the store.
        directories: all that guards hold and remove.
        limit_bytes: of the node's memory, for all ranks on it together.
        held: descriptors that hold it as long as this process lives.
    """

    directory: str
    directories: list[str]
    limit_bytes: int
    held: list[int]


def open_store(job_key: bytes, setting: str, limit: int | str, env: Mapping[str, str], memory: str = MEMORY) -> StorePlace | None:
    """Make the store of this node, or find it; None if no directory can be used.

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
    in_memory = memory if _is_usable(memory) else ""
    made: list[tuple[str, int]] = []
    for base in (disk, in_memory):  # memory last: when its directory is there, the other is, too
        if base:
            with contextlib.suppress(OSError) if setting == AUTO or base is in_memory else contextlib.nullcontext():
                made.append(_make(base, name, made[0][0] if made else ""))
    if not made:
        return None
    directory = made[-1][0]
    is_memory = len(made) > 1 or not disk
    most_bytes = free_bytes(directory) if is_memory else 1 << 62
    if limit == AUTO or not isinstance(limit, int):
        limit_bytes = min(available_memory() // MEMORY_SHARE, most_bytes)
    else:
        limit_bytes = min(limit, most_bytes)
    return StorePlace(directory, [path for path, _ in made], limit_bytes, [held for _, held in made])


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


def _is_usable(memory: str) -> bool:
    try:
        return os.access(memory, os.W_OK | os.X_OK) and free_bytes(memory) >= LEAST_BYTES
    except OSError:
        return False


def _make(base: str, name: str, spill: str) -> tuple[str, int]:
    """Make a directory of the store, or find it; returns its path, and the descriptor that holds it."""
    sweep(base, STORE)
    parent = own_parent(base, STORE)
    path = os.path.join(parent, name)
    with locked(parent):
        if os.path.exists(os.path.join(path, LOCK)) and (held := hold(path)) >= 0:
            return path, held
        os.makedirs(path, 0o700, exist_ok=True)
        held = make_lock(path)
        if spill and not os.path.islink(os.path.join(path, SPILL)):
            os.symlink(spill, os.path.join(path, SPILL))
        with open(os.open(os.path.join(path, KEY), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(f"{name}-{os.urandom(8).hex()}")
        return path, held
