"""What tasks printed, with `--output files`: one file per node of the job, and an index beside it that says whose each part is.

`RUN_DIR/output/XX/NODE.out` holds the bytes as they were printed, `NODE.index` one entry of fixed size per part. XX spreads nodes
over directories. Ranks of a node append to the same files, each at most once a second or per 64 KiB.
"""

from __future__ import annotations

import os
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from exex.errors import OutputError
from exex.protocol.task_numbers import name_of

FOLDER = "output"
FLUSH_S = 1.0
_FLUSH_BYTES = 65536
_ENTRY = struct.Struct("<qHBxIQd")
_STREAMS = ("stdout", "stderr", "note")
NOTE = 2
"""Written by exex: how much of a task's output is missing."""


class Part(NamedTuple):
    """Some bytes that one attempt printed.

    Attributes:
        task: as `task_numbers.shown` says; -1: no task, or nobody knows.
        stream: 0: stdout, 1: stderr, `NOTE`.
        time_s: Unix time, when they were written to the file.
        path: of the file, without its suffix.
    """

    task: int
    attempt: int
    stream: int
    length: int
    offset: int
    time_s: float
    path: str


def stem(run_dir: str, node: str) -> str:
    """Path of a node's two files, without their suffixes."""
    return os.path.join(run_dir, FOLDER, f"{zlib.crc32(node.encode()) & 0xFF:02x}", node)


class TaskOutput:
    """A rank's part of its node's files, which are made when something is printed.

    Args:
        limit_bytes: kept of each stream of one attempt.
    """

    def __init__(self, run_dir: str, node: str, limit_bytes: int) -> None:
        self._stem = stem(run_dir, node)
        self._limit = limit_bytes
        self._files: tuple[int, int] | None = None
        self._parts: list[tuple[int, int, int, bytes]] = []
        self._waiting_bytes = 0
        self._since_s = 0.0
        self._sizes: dict[tuple[int, int, int], int] = {}  # of attempts that have not ended
        self._is_broken = False

    def write(self, owner: tuple[int, int], stream: int, data: bytes, now_s: float) -> None:
        """Keep what a task has printed, up to the limit."""
        key = (*owner, stream)
        size = self._sizes.get(key, 0)
        self._sizes[key] = size + len(data)
        if owner[0] >= 0:
            data = data[: max(0, self._limit - size)]
        if data:
            self._add(*owner, stream, data, now_s)

    def ended(self, task: int, name: str, now_s: float) -> None:
        """An attempt has ended: say what was cut off. O(attempts that have printed and not ended)."""
        for key in [key for key in self._sizes if key[0] == task]:
            missing = self._sizes.pop(key) - self._limit
            if missing > 0 and task >= 0:
                said = f"{_STREAMS[key[2]]} of task {name_of(task)} ({name}) is cut off: {missing:,} B more were printed"
                note = f"exex: {said}; output_limit_bytes is {self._limit:,}\n"
                self._add(key[0], key[1], NOTE, note.encode(), now_s)

    def has_printed(self) -> bool:
        """Whether an attempt that has not ended has printed."""
        return bool(self._sizes)

    def _add(self, task: int, attempt: int, stream: int, data: bytes, now_s: float) -> None:
        if not self._parts:
            self._since_s = now_s
        last = self._parts[-1] if self._parts else None
        if last is not None and last[:3] == (task, attempt, stream):
            self._parts[-1] = (task, attempt, stream, last[3] + data)
        else:
            self._parts.append((task, attempt, stream, data))
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _FLUSH_BYTES:
            self.flush()

    def flush_if_due(self, now_s: float) -> None:
        """Write what has waited for a second."""
        if self._parts and now_s - self._since_s >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        parts, self._parts, self._waiting_bytes = self._parts, [], 0
        if not parts or self._is_broken:
            return
        try:
            self._write(parts)
        except OSError as error:
            self._is_broken = True
            text = f"what tasks print cannot be kept in {self._stem}.out, and is lost from here on: {error.strerror}"
            print(f"exex: {text}", file=sys.stderr, flush=True)

    def _write(self, parts: list[tuple[int, int, int, bytes]]) -> None:
        if self._files is None:
            os.makedirs(os.path.dirname(self._stem), exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._files = (os.open(self._stem + ".out", flags, 0o644), os.open(self._stem + ".index", flags, 0o644))
        out, index = self._files
        data = b"".join(part[3] for part in parts)
        written = os.write(out, data)
        offset = os.lseek(out, 0, os.SEEK_CUR) - written  # others append, too: this is where ours has gone
        entries, now_s = [], time.time()
        for task, attempt, stream, text in parts:
            length = min(len(text), max(0, written))
            written -= length
            entries.append(_ENTRY.pack(task, attempt, stream, length, offset, now_s))
            offset += length
        os.write(index, b"".join(entries))

    def close(self) -> None:
        """Write what waits, and close the files."""
        self.flush()
        for fd in self._files or ():
            os.close(fd)
        self._files = None


# ---- reading --------------------------------------------------------------------------------------------------


def find_run_dir(parent: str) -> str:
    """The newest run below `parent` in which tasks have printed into files; or `parent` itself, if it is one.

    Raises:
        OutputError: there is none.
    """
    if os.path.isdir(os.path.join(parent, FOLDER)):
        return parent
    names = sorted((name for name in _listed(parent) if name.isdecimal()), key=int, reverse=True)
    for name in names:
        if os.path.isdir(os.path.join(parent, name, FOLDER)):
            return os.path.join(parent, name)
    raise OutputError(f"no run below {parent} has kept what tasks print: run the job with --output files, or name its --run-dir")


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def parts(run_dir: str) -> Iterator[Part]:
    """All parts of all nodes; those of one rank in order."""
    for folder in sorted(_listed(os.path.join(run_dir, FOLDER))):
        for name in sorted(_listed(os.path.join(run_dir, FOLDER, folder))):
            if name.endswith(".index"):
                path = os.path.join(run_dir, FOLDER, folder, name)
                with open(path, "rb") as file:
                    entries = file.read()
                for fields in _ENTRY.iter_unpack(entries[: len(entries) // _ENTRY.size * _ENTRY.size]):
                    yield Part._make((*fields, path.removesuffix(".index")))


def read(part: Part) -> bytes:
    """The bytes of a part."""
    with open(part.path + ".out", "rb") as file:
        file.seek(part.offset)
        return file.read(part.length)


def output_of(run_dir: str, task: int, streams: frozenset[int]) -> Iterator[tuple[Part, bytes]]:
    """What one task printed, by attempt, then in order.

    Raises:
        OutputError: it has printed nothing.
    """
    found = [part for part in parts(run_dir) if part.task == task and part.stream in streams | {NOTE}]
    if not found:
        raise OutputError(f"task {name_of(task)} has printed nothing in {run_dir}, or was not run")
    for part in sorted(found, key=lambda part: (part.attempt, part.time_s)):
        yield part, read(part)


def summary(run_dir: str, most: int = 20) -> str:
    """How much was printed, and by whom."""
    sizes: dict[int, int] = {}
    cut, files = 0, set()
    for part in parts(run_dir):
        files.add(part.path)
        if part.stream == NOTE:
            cut += 1
        else:
            sizes[part.task] = sizes.get(part.task, 0) + part.length
    nobody = sizes.pop(-1, 0)
    lines = [f"{run_dir}: tasks that have printed: {len(sizes):,}; files: {len(files):,}; kept: {sum(sizes.values()):,} B"]
    if cut:
        lines.append(f"streams that were cut off: {cut:,}")
    if nobody:
        lines.append(f"{nobody:,} B belong to no task")
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    lines += [f"  task {name_of(task):>10}  {size:>14,} B" for task, size in ordered[:most]]
    if len(ordered) > most:
        lines.append(f"  and {len(ordered) - most:,} more tasks")
    return "\n".join(lines)
