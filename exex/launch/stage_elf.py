"""Where programs and libraries of an unpacked interpreter look for others: beside themselves, and not where it was built for.

The dynamic linker looks for every library, the system's too, in the directories that a program names (DT_RUNPATH, DT_RPATH): on
the shared file system, 16 opens for each process of such an interpreter. They are replaced in place, as chrpath does, by shorter
ones that begin with $ORIGIN. Source: elf(5), ld.so(8).
"""

from __future__ import annotations

import os
import struct

_IDENT = b"\x7fELF\x02\x01"  # 64 bits, little-endian: others are left as they are
_LOAD, _DYNAMIC = 1, 2
_STRTAB, _STRSZ, _RPATH, _RUNPATH = 5, 10, 15, 29


def move_search_path(path: str, old: str, new: str) -> bool:
    """Let the file at `path` look below `new` instead of below `old`, if it is one that names such directories.

    Returns:
        Whether it has been changed.

    Raises:
        OSError: it cannot be read or written.
    """
    with open(path, "rb") as file:
        data = file.read(64)
        if not data.startswith(_IDENT) or len(data) < 64:
            return False
        data += file.read()
    changes = {}
    try:
        for at in _search_paths(data):
            before = data[at : data.index(b"\0", at)]
            after = b":".join(_moved(entry, path, old, new) for entry in before.split(b":"))
            if after != before and len(after) <= len(before):
                changes[at] = after.ljust(len(before), b"\0")
    except (struct.error, ValueError):
        return False  # it is cut, or not as it should be
    if changes:
        _write(path, changes)
    return bool(changes)


def _write(path: str, changes: dict[int, bytes]) -> None:
    mode = os.stat(path).st_mode
    os.chmod(path, mode | 0o200)
    with open(path, "r+b") as file:
        for at, text in changes.items():
            file.seek(at)
            file.write(text)
    os.chmod(path, mode)


def _moved(entry: bytes, path: str, old: str, new: str) -> bytes:
    directory = os.fsdecode(entry)
    if directory != old and not directory.startswith(old + "/"):
        return entry
    return os.fsencode(os.path.join("$ORIGIN", os.path.relpath(new + directory[len(old) :], os.path.dirname(path))))


def _search_paths(data: bytes) -> list[int]:
    """Offsets of the texts that say where the file looks for libraries.

    Raises:
        ValueError, struct.error: the file is damaged.
    """
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, table + number * size) for number in range(count)]
    tags: dict[int, int] = {}
    for kind, _, offset, _, _, length, _, _ in segments:
        if kind == _DYNAMIC:
            tags.update(struct.iter_unpack("<QQ", data[offset : offset + length - length % 16]))
    if _STRTAB not in tags or not tags.keys() & {_RPATH, _RUNPATH}:
        return []
    texts = _offset_of(tags[_STRTAB], segments)
    found = [tags[tag] for tag in (_RPATH, _RUNPATH) if tag in tags]
    if any(at >= tags.get(_STRSZ, 0) for at in found):
        raise ValueError("beyond the table of texts")
    return [texts + at for at in found]


def _offset_of(address: int, segments: list[tuple[int, ...]]) -> int:
    """Where in the file is what is loaded at an address."""
    for kind, _, offset, begin, _, length, _, _ in segments:
        if kind == _LOAD and begin <= address < begin + length:
            return address - begin + offset
    raise ValueError("nothing is loaded there")
