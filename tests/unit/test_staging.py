"""Staging without MPI: what rank 0 reads, what a node has afterwards, and what it says when that fails."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from exex.errors import ConfigError, StagingError, StartError
from exex.launch import stage_pack
from exex.launch.stage_codec import has_zstd
from exex.launch.stage_leader import Taker
from exex.launch.stage_source import CHUNK_BYTES, Kind, Source, parse_files
from exex.launch.staging import Beat, Staged, Wanted, stage
from exex.transport.broadcast import Alone
from exex.worker import staged as at_worker
from exex.worker.staged_start import failed, far_path, near_path

VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "mine.py").write_text("x = 1\n")
    return tmp_path / "modules"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Where the node has its own disk."""
    (tmp_path / "node").mkdir()
    return tmp_path / "node"


def run(node: Path, environment: str = "", *files: str) -> Staged:
    found, _ = stage(Wanted(environment, files, str(node)), Alone(), Beat(lambda: None), {}, "rank 0 at here")
    return found


def fails(node: Path, environment: str = "", *files: str) -> str:
    with pytest.raises(StagingError) as caught:
        run(node, environment, *files)
    assert not any(path.is_file() for path in node.rglob("*")), "nothing is left"
    return str(caught.value)


# ---- what a node has ----


def test_a_directory_and_files(node: Path, modules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table").write_bytes(os.urandom(3 * CHUNK_BYTES + 5))
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "tool").chmod(0o755)
    found = run(node, str(modules), f"{tmp_path}/table", f"{tmp_path}/tool:t", f"{modules}:all", f"{modules}/mine.py:m")
    files = Path(found.files)
    assert (files / "table").read_bytes() == (tmp_path / "table").read_bytes()
    assert os.access(files / "t", os.X_OK)
    assert (files / "all" / "mine.py").read_text() == (files / "m").read_text() == "x = 1\n"
    assert (Path(found.prefix) / "mine.py").exists() and found.python == "" and found.origin == str(modules)
    assert (Path(found.directory) / "own" / "exex" / "worker" / "staged_start.py").exists()
    assert (Path(found.directory) / "deps" / "msgspec" / "__init__.py").exists()
    assert f"exex: staged {modules}, table, t and 2 more (6 files, 3.1 MB) in {node} of 1 node in " in capsys.readouterr().err


def test_files_alone_bring_nothing_else(node: Path, modules: Path) -> None:
    found = run(node, "", f"{modules}/mine.py")
    assert sorted(os.listdir(found.directory)) == ["files", "lock"] and found.prefix == ""


def archive(tmp_path: Path, name: str, **members: str) -> Path:
    """A .tar.gz as other programs make it."""
    with tarfile.open(tmp_path / name, "w:gz") as tar:
        for path, text in members.items():
            info = tarfile.TarInfo(path.replace("__", "/"))
            if text.startswith("-> "):
                info.type, info.linkname = tarfile.SYMTYPE, text[3:]
                tar.addfile(info)
            else:
                info.size, info.mode = len(text), 0o755
                tar.addfile(info, io.BytesIO(text.encode()))
    return tmp_path / name


def test_the_one_directory_in_an_archive_may_be_the_environment(node: Path, tmp_path: Path) -> None:
    found = run(node, str(archive(tmp_path, "e.tgz", myenv__bin__python="#!/bin/sh\n", myenv__x="")))
    assert found.prefix.endswith("/env/myenv") and found.python == f"{found.prefix}/bin/python"


def test_conda_unpack_is_run(node: Path, tmp_path: Path) -> None:
    python = f"-> {sys.executable}"
    good = archive(tmp_path, "e.tgz", bin__python=python, **{"bin__conda-unpack": "open(__file__ + '.ran', 'w')"})
    assert os.path.exists(run(node, str(good)).prefix + "/bin/conda-unpack.ran")
    bad = archive(tmp_path, "f.tgz", bin__python=python, **{"bin__conda-unpack": "raise SystemExit('not here')"})
    (tmp_path / "other").mkdir()
    assert "conda-unpack failed with status 1: not here" in fails(tmp_path / "other", str(bad))


# ---- what can be wrong ----


def test_errors_name_the_node_the_file_and_what_is_missing(node: Path, modules: Path, tmp_path: Path) -> None:
    assert fails(node, str(tmp_path / "nothere.tar")) == f"cannot stage {tmp_path}/nothere.tar: No such file or directory"
    assert fails(node, "", str(tmp_path / "nothere")) == f"cannot stage {tmp_path}/nothere: No such file or directory"
    assert "mine.py is no archive that exex knows" in fails(node, str(modules / "mine.py"))
    dangling = archive(tmp_path, "e.tgz", bin__python="-> /nowhere/python3.11")
    assert f"rank 0 at here cannot unpack {dangling}: its bin/python leads to /nowhere/python3.11" in fails(node, str(dangling))
    damaged = tmp_path / "damaged.tar.gz"
    whole = archive(tmp_path, "w.tgz", a=str(os.urandom(9999)))
    damaged.write_bytes(whole.read_bytes()[:5000])
    assert f"rank 0 at here cannot unpack {damaged}: it is damaged, or no archive" in fails(node, str(damaged))
    gone = str(tmp_path / "gone")
    assert f"rank 0 at here has no directory for what is staged, which needs about 0.0 MB: {gone} no such" in fails(Path(gone), "", str(modules))


def test_a_full_disk_is_told(node: Path, modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exex.launch.stage_tar.unpack", full)
    said = fails(node, str(modules))
    assert f"rank 0 at here has no space left in {node} for " in said and "MB were free" in said and "--stage-dir" in said


def test_a_file_that_cannot_be_read_to_its_end(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table").write_bytes(b"x" * 100)

    def broken(*_: object) -> Iterator[bytes]:
        yield b"x"
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("exex.launch.stage_source._pieces", broken)
    assert "cannot read" in fails(node, "", str(tmp_path / "table")) and not list(node.rglob("table"))


@pytest.mark.skipif(not has_zstd(), reason="no zstandard")
def test_damaged_zstd(node: Path, modules: Path, tmp_path: Path) -> None:
    stage_pack.pack(str(modules), str(tmp_path / "e.tar.zst"))
    data = bytearray((tmp_path / "e.tar.zst").read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    (tmp_path / "e.tar.zst").write_bytes(data)
    assert "e.tar.zst: it is damaged, or no archive" in fails(node, str(tmp_path / "e.tar.zst"))


def test_an_archive_with_less_in_it_than_it_says(node: Path, tmp_path: Path) -> None:
    short = archive(tmp_path, "e.tgz", **{".exex-pack.json": '{"files": 7}', "a": "x"})
    assert "7 files should be in it, 2 are" in fails(node, str(short))


def test_after_an_error_the_rest_is_passed_over() -> None:
    """The others would wait for this node's part in each broadcast."""
    chunks = iter([(Kind.HEADER, b"[]"), (Kind.ERROR, b"first"), (Kind.DATA, b"x"), (Kind.PART_END, b"")])
    taker = Taker("/nonexistent", {}, "rank 1 at there")
    taker.take(chunks)
    assert "rank 1 at there has no directory" in taker.error or taker.error == "first"
    assert next(chunks, None) is None and taker.place is None


@pytest.mark.parametrize(
    ("words", "found"),
    [(["/a/b"], [("/a/b", "b")]), (["/a/b/"], [("/a/b/", "b")]), (["/a/b:c", "d"], [("/a/b", "c"), ("d", "d")])],
)
def test_names_of_files(words: list[str], found: list[tuple[str, str]]) -> None:
    assert parse_files(words) == found


@pytest.mark.parametrize("words", [["/a:b/c"], [":x"], ["/a:"], ["/a:.."], ["/a/x", "/b/x"]])
def test_names_that_are_none(words: list[str]) -> None:
    with pytest.raises(StartError, match="--stage-file"):
        parse_files(words)


def test_chunks_are_full(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"x" * (CHUNK_BYTES // 2))
    source = Source(str(tmp_path), [])
    sizes = [len(data) for kind, data in source.chunks() if kind == Kind.DATA]
    assert sizes[0] == CHUNK_BYTES and max(sizes) == CHUNK_BYTES and len(sizes) == 2


def test_a_slow_look_gives_signs(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exex.launch.stage_source._SIGN_S", 0.0)
    kinds = [kind for kind, _ in Source(str(modules), []).chunks()]
    assert kinds == [Kind.SIGN, Kind.HEADER, Kind.DATA, Kind.PART_END]


# ---- what tasks find ----


def test_variables_of_tasks(tmp_path: Path) -> None:
    prefix = tmp_path / "env"
    (prefix / "lib").mkdir(parents=True)
    (prefix / "lib" / "libx.so.1").touch()
    staged = Staged(str(tmp_path), str(prefix), str(prefix / "bin" / "python"), "/shared/env", "/n/files")
    before = {"PATH": "/shared/env/bin:/usr/bin", "LD_LIBRARY_PATH": "/shared/env/lib/x:/opt/lib", "PYTHONHOME": "/h", "A": "/shared/env"}
    found = at_worker.task_environment({**before, "CONDA_PREFIX": "/shared/env"}, staged)
    assert found == {
        "PATH": f"{prefix}/bin:/usr/bin",
        "LD_LIBRARY_PATH": f"{prefix}/lib:{prefix}/lib/x:/opt/lib",
        "A": "/shared/env",
        "VIRTUAL_ENV": str(prefix),
        "EXEX_STAGED": "/n/files",
    }
    (prefix / "conda-meta").mkdir()
    conda = at_worker.task_environment(before, staged)
    assert conda["CONDA_PREFIX"] == str(prefix) and conda["LD_LIBRARY_PATH"] == f"{prefix}/lib/x:/opt/lib"


def test_variables_with_files_alone() -> None:
    assert at_worker.task_environment({"PATH": "/bin"}, Staged("/n", files="/n/files")) == {"PATH": "/bin", "EXEX_STAGED": "/n/files"}


def test_modules_of_an_environment_without_an_interpreter(tmp_path: Path) -> None:
    assert at_worker.packages(str(tmp_path)) == [str(tmp_path)]
    site = tmp_path / "lib" / VERSION / "site-packages"
    site.mkdir(parents=True)
    (tmp_path / "lib64").symlink_to("lib")
    assert at_worker.packages(str(tmp_path)) == [str(site)]


def test_the_staged_environment_is_searched_before_the_shared_one() -> None:
    told = {"own": "/n/own", "deps": "/n/deps", "shared": ["/ours", "/n/env/x"], "hidden": {"PYTHONPATH": "/p:/ours:"}}
    assert near_path(told, ["/n/env/x", "/n/env/y"]) == ["/n/own", "/n/env/x", "/n/env/y", "/n/deps"]
    assert far_path(told) == ["/p", "/ours", "/n/env/x"]


def test_the_shared_path_leaves_out_the_original_and_the_standard_library() -> None:
    library = os.path.dirname(os.__file__)
    path = ["", "/src", library, f"{library}/lib-dynload", "/x/python311.zip", "/shared/env/lib/site-packages", "/shared/env2"]
    assert at_worker.shared_path(path, "/shared/env") == ["/src", "/shared/env2"]
    assert at_worker.shared_path(["/shared/env/x"], "") == ["/shared/env/x"]


def test_what_a_start_that_fails_says_is_understood_by_the_rank() -> None:
    from exex.worker.processes import Failed, _decode_event

    assert _decode_event(failed("no märchen")) == Failed("no märchen")
    assert len(failed("x" * 100_000)) < 65536


def test_staged_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import exex

    monkeypatch.delenv("EXEX_STAGED", raising=False)
    with pytest.raises(ConfigError, match="nothing was staged: 'table' needs `exex run --stage-file PATH:table`"):
        exex.staged("table")
    (tmp_path / "table").touch()
    monkeypatch.setenv("EXEX_STAGED", str(tmp_path))
    assert exex.staged("table") == str(tmp_path / "table")
    for name in ("tabel", "../x"):
        with pytest.raises(ConfigError, match=r"staged: table$"):
            exex.staged(name)
