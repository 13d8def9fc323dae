"""How archives are compressed: gzip, xz and bzip2 by the standard library, zstd by the package zstandard (`exex[stage]`)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, cast

from exex.errors import ConfigError, StartError

MAGIC = {b"\x1f\x8b": "gz", b"\xfd7zXZ\x00": "xz", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zst"}
"""What files of each kind begin with."""

MAGIC_BYTES = 262
"""How much of a file must be read to know its kind: a tar archive says "ustar" at its byte 257."""

SUFFIXES = {".tar": "tar", ".tar.gz": "gz", ".tgz": "gz", ".tar.xz": "xz", ".txz": "xz", ".tar.zst": "zst", ".tzst": "zst"}
"""The kind of archive that a name asks for."""

_ZSTD_LEVEL = 3


def has_zstd() -> bool:
    """Whether this Python can read and write zstd."""
    return importlib.util.find_spec("zstandard") is not None


def kind_of(head: bytes) -> str | None:
    """`tar`, `gz`, `xz`, `bz2` or `zst` of a file's first MAGIC_BYTES; None for anything else."""
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    return "tar" if head[257:262] == b"ustar" else None


def open_reader(stream: Any, kind: str) -> IO[bytes]:
    """The tar archive inside `stream`, which has `read` and may have nothing else.

    Raises:
        StartError: for zstd, which this Python cannot read.
    """
    if kind == "zst":
        try:
            zstandard: Any = importlib.import_module("zstandard")
        except ImportError:
            raise StartError(
                "an archive compressed by zstd needs the package zstandard on every node (pip install 'exex[stage]'); "
                "or make a .tar.gz of it"
            ) from None
        return cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True))
    if kind == "tar":
        return cast("IO[bytes]", stream)
    module, name = {"gz": ("gzip", "GzipFile"), "xz": ("lzma", "LZMAFile"), "bz2": ("bz2", "BZ2File")}[kind]
    opener: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return cast("IO[bytes]", opener(fileobj=stream, mode="rb") if kind == "gz" else opener(stream, "rb"))


def compressed(pieces: Iterable[bytes], kind: str) -> Iterator[bytes]:
    """`pieces`, compressed.

    Raises:
        ConfigError: for zstd without the package zstandard.
    """
    if kind == "tar":
        yield from pieces
        return
    compressor = _compressor(kind)
    for piece in pieces:
        if data := compressor.compress(piece):
            yield data
    yield compressor.flush()


def _compressor(kind: str) -> Any:
    if kind == "zst":
        try:
            zstandard: Any = importlib.import_module("zstandard")
        except ImportError:
            raise ConfigError("a .tar.zst needs the package zstandard (pip install 'exex[stage]'); or name a .tar.gz") from None
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, threads=-1).compressobj()
    if kind == "xz":
        lzma: Any = importlib.import_module("lzma")
        return lzma.LZMACompressor(preset=1)
    zlib: Any = importlib.import_module("zlib")
    return zlib.compressobj(6, zlib.DEFLATED, 31)
