"""What rank 0 reads and sends, once: a stream of chunks that all nodes receive.

    SIGNs, HEADER (JSON: the parts), then for each part its DATA and a PART_END; ERROR (why) at any time; END.

A part is an archive or a file. Directories become tar archives while they are read.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import IO

from exex.errors import ExexError, StartError
from exex.launch import stage_codec, stage_pack
from exex.launch.stage_tar import Entry, tar_stream, tree
from exex.launch.staging import Chunk

CHUNK_BYTES = 1024**2
"""No chunk is larger."""

_SIGN_S = 1.0
_GROWS = 4
"""How much larger than a compressed archive an environment is taken to be, when the archive does not say."""


class Kind(IntEnum):
    """What a chunk holds."""

    END = 0
    HEADER = 1
    DATA = 2
    PART_END = 3
    ERROR = 4
    SIGN = 5  # rank 0 is still looking


@dataclass(frozen=True)
class Part:
    """One thing that is staged."""

    role: str  # "environment", "own", "deps" or "file"
    name: str  # of a file: that by which tasks ask for it
    path: str  # where rank 0 reads it, for messages
    form: str  # tar, gz, xz, bz2, zst; or "plain"
    needs_bytes: int  # on a node
    mode: int = 0o600
    origin: str = ""  # of an environment: the directory that it was made of


def parse_files(words: Sequence[str]) -> list[tuple[str, str]]:
    """(path, name) of each `--stage-file PATH[:NAME]`.

    Raises:
        StartError: a name that is none, or two of one name.
    """
    found: dict[str, str] = {}
    for word in words:
        path, colon, name = word.rpartition(":")
        if not colon:
            path, name = word, os.path.basename(word.rstrip("/"))
        if not path or not name or "/" in name or name in (".", ".."):
            raise StartError(f"--stage-file {word}: accepted: PATH or PATH:NAME, with a name without slashes")
        if name in found:
            raise StartError(f"--stage-file: {found[name]} and {path} have one name, {name}; write PATH:OTHERNAME")
        found[name] = path
    return [(path, name) for name, path in found.items()]


class Source:
    """All that is to be staged.

    Args:
        environment: archive or directory; "" for none.
        files: see `parse_files`.
        packages: directories of Python packages that come along beside an environment: role, and path of each.
    """

    def __init__(self, environment: str, files: Sequence[tuple[str, str]], packages: Sequence[tuple[str, str]] = ()) -> None:
        self._environment = environment
        self._files = files
        self._packages = packages if environment else ()
        self._streams: list[Iterator[bytes]] = []
        self.parts: list[Part] = []

    def chunks(self) -> Iterator[Chunk]:
        """The stream. An error while something is read becomes an ERROR chunk, and the end.

        Raises:
            StartError: something is missing or is no archive; before the HEADER.
        """
        sign_s = time.monotonic()
        for _ in self._look():
            if time.monotonic() - sign_s >= _SIGN_S:
                sign_s = time.monotonic()
                yield Kind.SIGN, b""
        yield Kind.HEADER, json.dumps([asdict(part) for part in self.parts]).encode()
        for part, stream in zip(self.parts, self._streams):
            try:
                for piece in _gathered(stream):
                    yield Kind.DATA, piece
            except (OSError, ExexError) as error:
                yield Kind.ERROR, f"cannot read {part.path}: {error}".encode()
                return
            yield Kind.PART_END, b""

    def _look(self) -> Iterator[None]:
        """Look at sizes; a sign after each."""
        try:
            for role, path in self._packages:
                self._add_package(role, path)
                yield
            if self._environment:
                yield from self._add_environment(self._environment)
            for path, name in self._files:
                self._add_file(path, name)
                yield
        except OSError as error:
            raise StartError(f"cannot stage {error.filename}: {error.strerror}") from error

    def _add(self, part: Part, stream: Iterator[bytes]) -> None:
        self.parts.append(part)
        self._streams.append(stream)

    def _add_package(self, role: str, path: str) -> None:
        name = os.path.basename(path)
        entries = [Entry(name, path), *tree(path, name)] if os.path.isdir(path) else [Entry(name, path)]
        size = sum(os.lstat(entry.path).st_size for entry in entries)
        self._add(Part(role, name, path, "tar", size), tar_stream(entries))

    def _add_environment(self, path: str) -> Iterator[None]:
        if os.path.isdir(path):
            packed = yield from stage_pack.scan(path)
            manifest = packed.manifest
            part = Part("environment", "", path, "tar", manifest.size_bytes, origin=manifest.origin)
            self._add(part, tar_stream(packed.entries))
            return
        file: IO[bytes] = io.FileIO(path)
        form = stage_codec.kind_of(file.read(stage_codec.MAGIC_BYTES))
        if form is None:
            raise StartError(f"--stage {path} is no archive that exex knows (tar, with gzip, xz, bzip2 or zstd) and no directory")
        size = os.fstat(file.fileno()).st_size
        file.seek(0)
        manifest = _manifest(file, form)
        needs_bytes = manifest.size_bytes or (size if form == "tar" else size * _GROWS)
        file.seek(0)
        self._add(Part("environment", "", path, form, needs_bytes, origin=manifest.origin), _pieces(file))

    def _add_file(self, path: str, name: str) -> None:
        if os.path.isdir(path):
            entries = list(tree(path))
            size = sum(os.lstat(entry.path).st_size for entry in entries)
            self._add(Part("file", name, path, "tar", size), tar_stream(entries))
        else:
            found = os.stat(path)
            mode = 0o700 if found.st_mode & 0o100 else 0o600
            self._add(Part("file", name, path, "plain", found.st_size, mode), _pieces(io.FileIO(path)))


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(CHUNK_BYTES):
            yield piece


def _manifest(file: IO[bytes], form: str) -> stage_pack.Manifest:
    """What an archive says of itself in its first member."""
    try:
        with tarfile.open(fileobj=stage_codec.open_reader(file, form), mode="r|", bufsize=tarfile.BLOCKSIZE) as archive:
            first = archive.next()
            if first is not None and first.name == stage_pack.MANIFEST and (content := archive.extractfile(first)):
                return stage_pack.manifest_of(content.read())
    except Exception as error:  # each decompressor has its own: the nodes will say what is wrong with it
        if isinstance(error, OSError) and error.errno:
            raise
    return stage_pack.Manifest()


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in chunks of CHUNK_BYTES: small files shall not become small messages."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= CHUNK_BYTES:
            data = b"".join(waiting)
            whole = size - size % CHUNK_BYTES
            for at in range(0, whole, CHUNK_BYTES):
                yield data[at : at + CHUNK_BYTES]
            waiting, size = [data[whole:]], size - whole
    if size:
        yield b"".join(waiting)
