"""Where staged files go, who holds them, and that they go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exex.errors import StartError
from exex.launch import stage_place
from exex.launch.stage_hold import hold, release, remove_if_left
from exex.launch.stage_place import Place, bases, file_system, judge, sweep

MB = 1024**2


def test_the_last_who_holds_it_removes_it(tmp_path: Path) -> None:
    place = Place(str(tmp_path), {}, MB)
    (Path(place.path) / "env").mkdir()
    others = [hold(place.path), hold(place.path)]
    place.give_up()
    remove_if_left(place.path)
    release(others[0], place.path)
    assert (Path(place.path) / "env").exists(), "one is left"
    release(others[1], place.path)
    assert not Path(place.path).exists()
    assert hold(place.path) == -1
    release(-1, place.path)


def test_it_is_for_its_user_alone(tmp_path: Path) -> None:
    place = Place(str(tmp_path), {}, MB)
    assert os.stat(place.path).st_mode & 0o777 == 0o700
    assert os.stat(os.path.dirname(place.path)).st_mode & 0o777 == 0o700


def test_what_a_killed_job_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom exex.launch.stage_place import Place\n"
        f"place = Place({str(tmp_path)!r}, {{}}, 1)\nprint(place.path, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left = Path(done.stdout.strip())
    assert left.exists(), done.stderr
    half = left.parent / f"{left.name}-half"  # no lock yet
    of_another_node = left.parent / f"x{left.name}"
    half.mkdir()
    of_another_node.mkdir()
    mine = Place(str(tmp_path), {}, MB)
    assert not left.exists() and not half.exists() and Path(mine.path).exists() and of_another_node.exists()
    sweep(str(tmp_path))
    assert Path(mine.path).exists(), "somebody holds it"


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lock").touch()
    remove_if_left(str(tmp_path / "other"))
    assert (tmp_path / "other").exists()


def test_a_directory_of_that_name_which_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"exex-stage-{os.getuid()}").mkdir()
    (tmp_path / f"exex-stage-{os.getuid()}").chmod(0o777)
    with pytest.raises(StartError, match=r"cannot be used: .* others may write to it"):
        Place(str(tmp_path), {}, MB)


def test_a_link_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / f"exex-stage-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="belongs to somebody else"):
        Place(str(tmp_path), {}, MB)


def test_the_order_is_scratch_tmpdir_memory_disk() -> None:
    assert bases("auto", {"EXEX_SCRATCH": "/s", "TMPDIR": "/t"}) == ["/s", "/t", "/dev/shm", "/tmp", "/var/tmp"]
    assert bases("auto", {"TMPDIR": "/tmp"}) == ["/tmp", "/dev/shm", "/var/tmp"]


def test_a_directory_that_is_set_is_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    assert bases("$HERE/x", {"TMPDIR": "/t"}) == [str(tmp_path / "x")]
    with pytest.raises(StartError, match=r"x no such file or directory\. Name one .* --stage-dir DIR"):
        Place("$HERE/x", {}, MB)


def test_no_space_says_how_much_there_is_and_how_much_it_takes(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"needs about 1,000,000,000\.0 MB: .* has room for [\d,.]+ MB"):
        Place(str(tmp_path), {}, 10**15)


def test_only_part_of_the_memory_is_used_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_place, "file_system", lambda path: "tmpfs")
    monkeypatch.setattr(stage_place, "available_memory", lambda: 400 * MB)
    assert judge(str(tmp_path), 90 * MB, is_asked_for=False).why_not == "has room for 104.9 MB"
    assert judge(str(tmp_path), 80 * MB, is_asked_for=False).why_not == ""
    assert judge(str(tmp_path), 90 * MB, is_asked_for=True).why_not == ""


def test_a_shared_file_system_is_not_used_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_place, "file_system", lambda path: "lustre")
    assert "not the node's own (lustre)" in judge(str(tmp_path), 1, is_asked_for=False).why_not
    assert judge(str(tmp_path), 1, is_asked_for=True).why_not == ""


def test_the_kind_of_a_file_system(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/a / ext4 rw 0 0\nx /home lustre rw 0 0\ny /home/local\\040disk xfs rw 0 0\nz /homes nfs rw 0 0\n")
    kinds = [file_system(path, str(mounts)) for path in ("/etc", "/home", "/home/me", "/home/local disk/x", "/homes/a")]
    assert kinds == ["ext4", "lustre", "lustre", "xfs", "nfs"]
