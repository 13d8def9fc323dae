"""What the leader of a node does while it is staged: it reads, if it is rank 0, and unpacks."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from exex.errors import ExexError, StartError
from exex.launch import stage_codec, stage_pack, stage_place, stage_tar
from exex.launch.stage_source import Kind, Part, Source, parse_files
from exex.launch.staging import DEPS, ENVIRONMENT, FILES, OWN, Chunk, Staged, Wanted

_DEPS = ("msgspec", "cloudpickle", "mpi4py")


def source(wanted: Wanted) -> Iterator[Chunk]:
    """What rank 0 sends."""
    try:
        yield from Source(wanted.environment, parse_files(wanted.files), _packages()).chunks()
    except ExexError as error:
        yield Kind.ERROR, str(error).encode()


def _packages() -> list[tuple[str, str]]:
    """This exex, and what its template needs, so that it works with any environment and without the shared file system."""
    found = [(OWN, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]
    for name in _DEPS:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            found.append((DEPS, os.path.dirname(spec.origin)))
    return found


class Taker:
    """Unpacks on one node what arrives.

    Attributes:
        error: "" or what went wrong here; everything that arrives afterwards is passed over.
        place: None before anything has arrived, or after an error.
        staged: what is there.
    """

    def __init__(self, directory: str, env: Mapping[str, str], where: str, key: str = "") -> None:
        self._directory = directory
        self._key = key
        self._env = env
        self._where = where
        self.error = ""
        self.place: stage_place.Place | None = None
        self.staged = Staged("")
        self._files = self._size_bytes = 0
        self._parts: list[Part] = []

    def take(self, chunks: Iterator[Chunk]) -> None:
        """Take all there is. Does not raise what it can put into `error`."""
        for kind, data in chunks:
            if kind == Kind.ERROR:
                self.error = bytes(data).decode()
            elif kind == Kind.HEADER and not self.error:
                self._begin([Part(**part) for part in json.loads(bytes(data))])
                for part in self._parts:
                    self._take_part(part, chunks)
        if self.error:
            self.give_up()

    def finish(self, prepare: Callable[[Staged], None]) -> None:
        """Have what is there made ready for ranks."""
        if not self.error:
            try:
                prepare(self.staged)
            except OSError as error:
                self.error = f"{self._where} cannot make ready what is staged: {error}"
                self.give_up()

    def give_up(self) -> None:
        """Remove what is there."""
        if self.place is not None:
            self.place.give_up()
            self.place = None

    def report(self, nodes: int, seconds: float) -> str:
        """One line for the user."""
        assert self.place is not None
        names = [part.path if part.role == "environment" else part.name for part in self._parts if part.role not in (OWN, DEPS)]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        size = f"{self._files:,} file{'s' * (self._files != 1)}, {self._size_bytes / 1e6:,.1f} MB"
        return f"staged {shown} ({size}) in {self.place.base} of {nodes} node{'s' * (nodes > 1)} in {seconds:.1f} s"

    def _begin(self, parts: list[Part]) -> None:
        self._parts = parts
        try:
            self.place = stage_place.Place(self._directory, self._env, sum(part.needs_bytes for part in parts), self._key)
            self.staged = Staged(self.place.path)
        except OSError as error:
            self.error = f"{self._where} cannot make a directory for what is staged: {error}"
        except StartError as error:
            self.error = f"{self._where} has {error}"

    def _take_part(self, part: Part, chunks: Iterator[Chunk]) -> None:
        pieces = self._pieces(chunks)
        if not self.error:
            try:
                self._unpack(part, pieces)
            except Exception as error:  # whatever an archive and its decompressor come up with: the others wait for us
                self.error = self.error or self._explain(part, error)
        for _ in pieces:
            pass  # the others are not to wait for us

    def _pieces(self, chunks: Iterator[Chunk]) -> Iterator[Any]:
        """The data of one part."""
        for kind, data in chunks:
            if kind == Kind.DATA:
                yield data
            elif kind == Kind.ERROR:
                self.error = bytes(data).decode()
                return
            else:
                return

    def _unpack(self, part: Part, pieces: Iterator[Any]) -> None:
        assert self.place is not None
        stream = stage_tar.Reader(pieces)
        if part.role == "file":
            directory = os.path.join(self.place.path, FILES)
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self.staged = Staged(**{**asdict(self.staged), "files": directory})
            path = os.path.join(directory, part.name)
            if part.form == "plain":
                self._write(path, part.mode, stream)
                return
        else:
            path = os.path.join(self.place.path, {OWN: OWN, DEPS: DEPS}.get(part.role, ENVIRONMENT))
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = stage_tar.unpack(stage_codec.open_reader(stream, part.form), path)
        if part.role not in (OWN, DEPS):
            self._count(found.files, found.size_bytes)
        if part.role == "environment":
            self._settle(part, path, found.files)

    def _write(self, path: str, mode: int, stream: stage_tar.Reader) -> None:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            while piece := stream.read(stage_tar.PIECE_BYTES):
                file.write(piece)
        self._count(1, stream.read_bytes)

    def _count(self, files: int, size_bytes: int) -> None:
        self._files += files
        self._size_bytes += size_bytes

    def _settle(self, part: Part, path: str, files: int) -> None:
        """Make it an environment of this place."""
        prefix = _prefix(path)
        manifest = stage_pack.Manifest(origin=part.origin)
        try:
            with open(os.path.join(prefix, stage_pack.MANIFEST), "rb") as file:
                manifest = stage_pack.manifest_of(file.read())
        except FileNotFoundError:
            pass  # made by another program
        if files < manifest.files:
            raise EOFError(f"{manifest.files:,} files should be in it, {files:,} are")
        stage_pack.settle(prefix, manifest)
        python = _interpreter(prefix)
        unpacker = os.path.join(prefix, "bin", "conda-unpack")
        if python and os.path.isfile(unpacker):
            done = subprocess.run([python, unpacker], capture_output=True, text=True, check=False)
            if done.returncode:
                raise StartError(f"conda-unpack failed with status {done.returncode}: {done.stderr.strip()[-300:]}")
        self.staged = Staged(**{**asdict(self.staged), "prefix": prefix, "python": python, "origin": manifest.origin})

    def _explain(self, part: Part, error: BaseException) -> str:
        assert self.place is not None
        if isinstance(error, OSError) and stage_place.no_space(error):
            free_mb, needs_mb = self.place.free_bytes / 1e6, part.needs_bytes / 1e6
            return (
                f"{self._where} has no space left in {self.place.base} for {part.path}: {free_mb:,.1f} MB were free, and it was "
                f"taken to need {needs_mb:,.1f} MB. Name another directory: --stage-dir DIR"
            )
        if isinstance(error, (StartError, OSError)):
            return f"{self._where} cannot unpack {part.path}: {error}"
        return f"{self._where} cannot unpack {part.path}: it is damaged, or no archive ({type(error).__name__}: {error})"


def _prefix(path: str) -> str:
    """The environment in a directory, or in the one directory that is in there."""
    found = os.listdir(path)
    if len(found) == 1 and not os.path.isdir(os.path.join(path, "bin")) and os.path.isdir(os.path.join(path, found[0], "bin")):
        return os.path.join(path, found[0])
    return path


def _interpreter(prefix: str) -> str:
    """Path of the environment's interpreter; "" if it has none.

    Raises:
        StartError: it has one that does not exist here.
    """
    for name in ("python", "python3"):
        path = os.path.join(prefix, "bin", name)
        if os.path.islink(path) and not os.path.exists(path):
            raise StartError(
                f"its bin/{name} leads to {os.readlink(path)}, which this node does not have. "
                "`exex pack` makes archives that take the interpreter along"
            )
        if os.access(path, os.X_OK):
            return path
    return ""
