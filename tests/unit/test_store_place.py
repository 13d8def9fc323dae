"""Where the store of a node stands. Memory is a directory of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exex.errors import StartError
from exex.launch import store_place
from exex.launch.stage_hold import remove_if_left
from exex.launch.store_place import StorePlace, find_place

KEY = b"of a job"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    for name in ("memory", "disk", "other"):
        (tmp_path / name).mkdir()
    return tmp_path


def find(node: Path, key: bytes = KEY, disk: str = "disk", limit: int | str = "auto") -> StorePlace:
    place = find_place(key, str(node / disk), limit, {}, str(node / "memory"))
    assert place is not None
    return place


def let_go(place: StorePlace) -> None:
    for fd in place.held:
        os.close(fd)


def test_all_ranks_of_a_node_find_the_same_and_other_jobs_do_not(node: Path) -> None:
    mine, other_rank, other_job = find(node), find(node), find(node, b"of another job")
    assert (mine.directory, mine.spill) == (other_rank.directory, other_rank.spill)
    assert {mine.directory, mine.spill}.isdisjoint(other_job.directories())
    assert mine.directory.startswith(f"{node}/memory/exex-store-{os.getuid()}/")
    assert mine.spill.startswith(f"{node}/disk/exex-store-{os.getuid()}/")
    assert os.stat(mine.directory).st_mode & 0o077 == 0


def test_ranks_with_another_directory_have_another_store(node: Path) -> None:
    assert find(node).directory != find(node, disk="other").directory


def test_it_goes_with_the_last_who_holds_it(node: Path) -> None:
    one, two = find(node), find(node)
    let_go(one)
    for path in one.directories():
        remove_if_left(path)
    assert all(map(os.path.exists, one.directories()))
    let_go(two)
    for path in two.directories():
        remove_if_left(path)
    assert not any(map(os.path.exists, one.directories()))


def test_what_a_killed_job_has_left_is_removed_by_the_next(node: Path) -> None:
    code = (
        "import os, signal\nfrom exex.launch.store_place import find_place\n"
        f"place = find_place(b'killed', {str(node / 'disk')!r}, 'auto', {{}}, {str(node / 'memory')!r})\n"
        "print(*place.directories(), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL and len(done.stdout.split()) == 2, done.stderr
    mine = find(node)
    assert not any(map(os.path.exists, done.stdout.split()))
    other = find(node)
    assert other.directory == mine.directory and all(map(os.path.exists, mine.directories())), "somebody holds it"


def test_the_limit(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_place, "available_memory", lambda: 4000)
    assert find(node).limit_bytes == 1000
    assert find(node, limit=10).limit_bytes == 10
    found = os.statvfs(node)
    assert find(node, limit=1 << 60).limit_bytes <= found.f_bavail * found.f_frsize, "no more than there is"


def test_without_memory_the_disk_is_all_there_is(node: Path) -> None:
    place = find_place(KEY, str(node / "disk"), 1000, {}, str(node / "nothing"))
    assert place is not None and place.directory.startswith(f"{node}/disk/") and place.spill == "" and place.limit_bytes == 1000


def test_without_a_disk_memory_is_all_there_is(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_place, "file_system", lambda path: "tmpfs")
    place = find_place(KEY, "auto", "auto", {"TMPDIR": str(node / "disk")}, str(node / "memory"))
    assert place is not None and place.directory.startswith(f"{node}/memory/") and place.spill == ""
    assert find_place(KEY, "auto", "auto", {}, str(node / "nothing")) is None


def test_scratch_comes_first_and_variables_are_expanded(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_place, "file_system", lambda path: "xfs")
    env = {"EXEX_SCRATCH": str(node / "other"), "TMPDIR": str(node / "disk")}
    place = find_place(KEY, "auto", "auto", env, str(node / "memory"))
    assert place is not None and place.spill.startswith(f"{node}/other/")
    monkeypatch.setenv("NODE_DISK", str(node / "disk"))
    place = find_place(KEY, "$NODE_DISK", "auto", {}, str(node / "memory"))
    assert place is not None and place.spill.startswith(f"{node}/disk/")


def test_a_directory_that_is_set_must_be_one(node: Path) -> None:
    with pytest.raises(StartError, match=r"--store-dir .*/missing no such file or directory"):
        find(node, disk="missing")
    (node / "disk" / f"exex-store-{os.getuid()}").mkdir()
    (node / "disk" / f"exex-store-{os.getuid()}").chmod(0o777)
    with pytest.raises(StartError, match=r"--store-dir .*/disk cannot be used: .* others may write to it"):
        find(node)
