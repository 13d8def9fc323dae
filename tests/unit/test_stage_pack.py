"""Environments: what belongs into an archive, and what makes them work in another place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

from exex.errors import ConfigError
from exex.launch import stage_pack
from exex.launch.stage_pack import MANIFEST, Manifest, environment, manifest_of, pack, settle
from exex.launch.staging import BASE

VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """What looks like an interpreter's prefix."""
    root = tmp_path / "base"
    for path, text in {
        f"bin/{VERSION}": "#!/bin/sh\necho base\n",
        f"lib/{VERSION}/os.py": "",
        f"lib/{VERSION}/site-packages/other.py": "",
        f"lib/{VERSION}/test/test_os.py": "",
        f"lib/{VERSION}/config-x/libpython.a": "",
        "lib/libpython3.so.1": "",
        "lib/libother.so.1": "",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "bin" / VERSION).chmod(0o755)
    return root


@pytest.fixture
def environ(tmp_path: Path, base: Path) -> Path:
    """A virtual environment of that interpreter."""
    root = tmp_path / "env"
    (root / "lib" / VERSION / "site-packages").mkdir(parents=True)
    (root / "lib" / VERSION / "site-packages" / "mine.py").write_text("x = 1\n")
    (root / "bin").mkdir()
    (root / "bin" / "python").symlink_to(base / "bin" / VERSION)
    (root / "bin" / "python3").symlink_to("python")
    (root / "bin" / VERSION).symlink_to("python")
    (root / "lib64").symlink_to("lib")
    (root / "bin" / "tool").write_text(f"#!{root}/bin/python\nprint('{root}-other')\n")
    (root / "bin" / "program").write_bytes(b"\x7fELF\0" + str(root).encode())
    (root / "pyvenv.cfg").write_text(f"home = {base}/bin\ninclude-system-site-packages = false\n")
    return root


def unpacked(archive: Path, to: Path) -> Path:
    to.mkdir()
    with tarfile.open(archive) as tar:
        tar.extractall(to)
    return to


def test_a_virtual_environment_takes_its_interpreter_along(environ: Path, base: Path, tmp_path: Path) -> None:
    said = pack(str(environ), str(tmp_path / "env.tar.gz"))
    assert f"its interpreter is taken along, from {base}" in said
    there = unpacked(tmp_path / "env.tar.gz", tmp_path / "there")
    manifest = manifest_of((there / MANIFEST).read_bytes())
    assert manifest.origin == str(environ) and manifest.base == str(base)
    settle(str(there), manifest)
    assert (there / "bin" / "python").resolve() == there / BASE / "bin" / VERSION
    assert f"home = {there}/{BASE}/bin" in (there / "pyvenv.cfg").read_text()
    assert (there / BASE / "lib" / VERSION / "os.py").exists()
    assert (there / BASE / "lib" / "libpython3.so.1").exists()
    for left_out in ("libother.so.1", f"{VERSION}/test", f"{VERSION}/site-packages", f"{VERSION}/config-x"):
        assert not (there / BASE / "lib" / left_out).exists()
    assert os.readlink(there / "lib64") == "lib"


def test_scripts_name_the_new_place_and_programs_are_left_alone(environ: Path, tmp_path: Path) -> None:
    pack(str(environ), str(tmp_path / "env.tar"))
    there = unpacked(tmp_path / "env.tar", tmp_path / "there")
    settle(str(there), manifest_of((there / MANIFEST).read_bytes()))
    assert (there / "bin" / "tool").read_text() == f"#!{there}/bin/python\nprint('{environ}-other')\n"
    assert (there / "bin" / "program").read_bytes() == b"\x7fELF\0" + str(environ).encode()


def test_the_systems_own_interpreter_is_not_taken_along(environ: Path, base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage_pack, "_SYSTEM", (str(base),))
    said = pack(str(environ), str(tmp_path / "env.tar"))
    assert f"every node needs the interpreter {base}/bin/{VERSION}, which is not in it" in said
    there = unpacked(tmp_path / "env.tar", tmp_path / "there")
    settle(str(there), manifest_of((there / MANIFEST).read_bytes()))
    assert os.readlink(there / "bin" / "python") == str(base / "bin" / VERSION)
    assert f"home = {base}/bin" in (there / "pyvenv.cfg").read_text()


def test_an_environment_whose_interpreter_is_gone(environ: Path, base: Path) -> None:
    (base / "bin" / VERSION).unlink()
    with pytest.raises(ConfigError, match="does not exist: this environment does not work"):
        pack(str(environ), "x.tar")


def test_any_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "a.py").write_text("x = 1\n")
    packed = environment(str(tmp_path / "modules"))
    assert [entry.name for entry in packed.entries] == [MANIFEST, "a.py"]
    assert packed.manifest == Manifest(str(tmp_path / "modules"), "", 6, 1)


def test_a_package_that_is_installed_editable_is_told(environ: Path, tmp_path: Path) -> None:
    info = environ / "lib" / VERSION / "site-packages" / "mine-1.dist-info"
    info.mkdir()
    (info / "direct_url.json").write_text(json.dumps({"dir_info": {"editable": True}, "url": "file:///src/mine"}))
    assert "mine-1.dist-info is installed editable: its source stays at file:///src/mine" in pack(str(environ), str(tmp_path / "x.tar"))


def test_names_of_archives(environ: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"its end must be one of \.tar, \.tar\.gz"):
        pack(str(environ), "env.zip")
    with pytest.raises(ConfigError, match="is no directory"):
        pack(str(environ / "nothere"), None)
    monkeypatch.chdir(tmp_path / "base")
    monkeypatch.setattr(stage_pack, "has_zstd", lambda: False)
    assert pack(str(environ), None).startswith("env.tar.gz: ")
    assert not list(Path().glob("*.part"))


def test_conda_pack_makes_archives_of_conda_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env" / "conda-meta").mkdir(parents=True)
    assert "made without conda-pack" in pack(str(tmp_path / "env"), str(tmp_path / "x.tar"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "conda-pack").write_text('#!/bin/sh\necho "$@" > "$4"\n')
    (tmp_path / "bin" / "conda-pack").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert "made by conda-pack" in pack(str(tmp_path / "env"), str(tmp_path / "y.tar"))
    assert (tmp_path / "y.tar").read_text().split() == ["--prefix", str(tmp_path / "env"), "--output", str(tmp_path / "y.tar"), "--force"]


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"files": "many"}', b"\xff"])
def test_what_is_no_manifest_says_nothing(data: bytes) -> None:
    assert manifest_of(data) == Manifest()


def test_a_real_environment_works_in_another_place_and_not_in_its_own(tmp_path: Path) -> None:
    """Without the interpreter: it is large."""
    venv.create(tmp_path / "env", symlinks=True)
    (tmp_path / "env" / "lib" / VERSION / "site-packages" / "mine.py").write_text("x = 1\n")
    (tmp_path / "env" / "bin" / "tool").write_text(f"#!{tmp_path}/env/bin/python\nimport mine, sys; print(sys.prefix, mine.__file__)\n")
    (tmp_path / "env" / "bin" / "tool").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_pack, "_SYSTEM", (sys.base_prefix, os.path.realpath(sys.base_prefix)))
        pack(str(tmp_path / "env"), str(tmp_path / "env.tar.xz"))
    there = unpacked(tmp_path / "env.tar.xz", tmp_path / "there")
    settle(str(there), manifest_of((there / MANIFEST).read_bytes()))
    (tmp_path / "env").rename(tmp_path / "gone")
    done = subprocess.run([str(there / "bin" / "tool")], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(there), f"{there}/lib/{VERSION}/site-packages/mine.py"]
