"""Archives: made and taken apart again, and what a hostile one may not do."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from exex.launch.stage_codec import compressed, has_zstd, kind_of, open_reader
from exex.launch.stage_tar import Entry, Reader, UnsafeArchiveError, tar_stream, tree, unpack


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    """An archive with just these members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return io.BytesIO(file.getvalue())


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "", mode: int = 0o644, data: bytes = b"") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, linkname, mode
    return info, data


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "bin").mkdir(parents=True)
    (root / "lib" / ("deep" * 30) / ("er" * 60)).mkdir(parents=True)
    (root / "lib" / ("deep" * 30) / ("er" * 60) / "ümläut.py").write_text("x = 1\n")
    (root / "bin" / "tool").write_bytes(b"#!/bin/sh\n" + b"#" * 5000)
    (root / "bin" / "tool").chmod(0o755)
    os.utime(root / "bin" / "tool", (1234567890, 1234567890))
    (root / "empty").write_bytes(b"")
    (root / "lib64").symlink_to("lib")
    (root / "python").symlink_to("/somewhere/else/python")
    (root / ".git").mkdir()
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize("kind", ["tar", "gz", "xz", pytest.param("zst", marks=pytest.mark.skipif(not has_zstd(), reason="no zstandard"))])
def test_what_was_packed_is_unpacked(source: Path, tmp_path: Path, kind: str) -> None:
    data = b"".join(compressed(tar_stream(tree(str(source))), kind))
    assert kind_of(data[:262]) == kind
    target = tmp_path / "target"
    target.mkdir()
    pieces = iter([data[at : at + 777] for at in range(0, len(data), 777)])
    found = unpack(open_reader(Reader(pieces), kind), str(target))
    assert next(pieces, None) is None, "read to its end"
    tool = target / "bin" / "tool"
    assert tool.read_bytes() == (source / "bin" / "tool").read_bytes()
    assert os.access(tool, os.X_OK) and tool.stat().st_mtime == 1234567890
    assert not os.access(target / "empty", os.X_OK) or os.getuid() == 0
    assert (target / "lib64" / ("deep" * 30) / ("er" * 60) / "ümläut.py").read_text() == "x = 1\n"
    assert os.readlink(target / "python") == "/somewhere/else/python"
    assert not (target / "pipe").exists() and not (target / ".git").exists()
    assert found.files == 5 and found.size_bytes == 5010 + 6


def test_equal_directories_make_equal_archives(source: Path) -> None:
    assert b"".join(tar_stream(tree(str(source)))) == b"".join(tar_stream(tree(str(source))))


def test_a_file_that_becomes_shorter_is_an_error(source: Path) -> None:
    stream = tar_stream([Entry("tool", str(source / "bin" / "tool"))])
    next(stream)
    (source / "bin" / "tool").write_bytes(b"")
    with pytest.raises(OSError, match="shorter"):
        list(stream)


HOSTILE: dict[str, Callable[[], io.BytesIO]] = {
    "absolute": lambda: archive(member("/etc/evil", data=b"x")),
    "upwards": lambda: archive(member("a/../../evil", data=b"x")),
    "through a link": lambda: archive(member("a", tarfile.SYMTYPE, "/tmp"), member("a/evil", data=b"x")),
    "through a link inside": lambda: archive(member("d", tarfile.DIRTYPE), member("a", tarfile.SYMTYPE, "d"), member("a/evil", data=b"x")),
    "directory over a link": lambda: archive(member("a", tarfile.SYMTYPE, "/tmp"), member("a", tarfile.DIRTYPE)),
    "hard link out": lambda: archive(member("a", tarfile.LNKTYPE, "/etc/passwd")),
    "hard link upwards": lambda: archive(member("a", tarfile.LNKTYPE, "../../evil")),
    "hard link to a link": lambda: archive(member("l", tarfile.SYMTYPE, "/etc/passwd"), member("a", tarfile.LNKTYPE, "l")),
    "device": lambda: archive(member("a", tarfile.CHRTYPE)),
    "pipe": lambda: archive(member("a", tarfile.FIFOTYPE)),
    "file over a directory": lambda: archive(member("a", tarfile.DIRTYPE), member("a", data=b"x")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_writes_nothing_outside(name: str, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    with pytest.raises(UnsafeArchiveError):
        unpack(HOSTILE[name](), str(target))
    assert [path.name for path in tmp_path.rglob("evil")] == []


def test_a_file_in_the_place_of_a_link_replaces_the_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    target = tmp_path / "target"
    target.mkdir()
    unpack(archive(member("a", tarfile.SYMTYPE, str(outside)), member("a", data=b"theirs")), str(target))
    assert outside.read_text() == "mine" and (target / "a").read_text() == "theirs"


def test_rights_for_others_and_set_user_id_are_not_taken_over(tmp_path: Path) -> None:
    unpack(archive(member("a", mode=0o6777, data=b"x"), member("b", mode=0o444, data=b"x")), str(tmp_path))
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o700
    assert (tmp_path / "b").stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("cut", [100, 700, 5000])
def test_a_truncated_archive_is_an_error(source: Path, tmp_path: Path, cut: int) -> None:
    data = b"".join(compressed(tar_stream(tree(str(source))), "gz"))
    with pytest.raises((EOFError, tarfile.TarError)):
        unpack(open_reader(Reader(iter([data[: min(cut, len(data) - 20)]])), "gz"), str(tmp_path))
