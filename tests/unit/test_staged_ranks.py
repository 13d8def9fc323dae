"""How ranks start from what is staged: lines for sh, what is tried before, and who waits for whom."""

from __future__ import annotations

import json
import os
import shlex
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exex.errors import StartError
from exex.launch.stage_elf import move_search_path
from exex.launch.stage_hold import UNTIL, release
from exex.launch.stage_place import Place, node_name, sweep
from exex.launch.staging import Beat, Staged, Wanted, stage
from exex.transport.broadcast import Alone
from exex.worker.staged_ranks import prepare, read, shell_text

LIBRARY = "MPICH Version: 5.0.2"
PYTHON = """#!/bin/sh
[ "$3" = --check ] && {{ {check}; }}
echo "$EXEX_STAGED_AT|$PYTHONPATH|$LD_LIBRARY_PATH|$VIRTUAL_ENV|$1|$2|$3|$4"
"""


@pytest.fixture
def staged(tmp_path: Path) -> Staged:
    """What a node has: an environment with an interpreter that says how it was called."""
    (tmp_path / "at" / "env" / "bin").mkdir(parents=True)
    (tmp_path / "at" / "env" / "lib").mkdir()
    (tmp_path / "at" / "env" / "lib" / "libx.so").touch()
    return interpreter(Staged(str(tmp_path / "at"), str(tmp_path / "at" / "env"), "", "/shared/env"), f"echo '{LIBRARY}'; exit 0")


def interpreter(staged: Staged, check: str) -> Staged:
    python = Path(staged.prefix) / "bin" / "python"
    python.write_text(PYTHON.format(check=check))
    python.chmod(0o755)
    return Staged(staged.directory, staged.prefix, str(python), staged.origin)


def start(staged: Staged, *words: str, **environment: str) -> str:
    argv = ["/bin/sh", f"{staged.directory}/start", *words]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout


ENVIRONMENT = {"PYTHONPATH": "/p:/shared/env/x", "LD_LIBRARY_PATH": "/shared/env/lib:/l", "VIRTUAL_ENV": "/shared/env", "PATH": "/bin"}


def test_a_rank_has_the_staged_environment(staged: Staged) -> None:
    assert prepare(staged, ENVIRONMENT, LIBRARY, waits=False) == ""
    said = start(staged, "--slots", "two words", **ENVIRONMENT, OTHER="stays").strip().split("|")
    program = f"{staged.directory}/own/exex/staged_rank.py"
    assert said == [staged.directory, "", f"{staged.prefix}/lib:/l", staged.prefix, "-s", program, "--slots", "two words"]
    told = json.loads(Path(staged.directory, "staged.json").read_text())
    assert told["hidden"] == {"PYTHONPATH": f"/p:{staged.prefix}/x"} and told["python"] == list(sys.version_info[:2])
    assert read(staged.directory) == (staged, True)
    assert sorted(os.listdir(staged.directory)) == ["env", "staged.json", "start"]


@pytest.mark.parametrize(
    "check, why",
    [
        ("echo 'Open MPI v5.0.11'; exit 0", f"mpi4py loads Open MPI v5.0.11 there, and the job uses {LIBRARY}"),
        ("echo Traceback >&2; echo 'ModuleNotFoundError: mpi4py' >&2; exit 1", "ModuleNotFoundError: mpi4py"),
        ("exit 3", "exit status 3"),
        ("exit 0", f"mpi4py loads no MPI library there, and the job uses {LIBRARY}"),
    ],
)
def test_else_it_starts_from_the_shared_one(staged: Staged, check: str, why: str) -> None:
    assert prepare(interpreter(staged, check), ENVIRONMENT, LIBRARY, waits=False) == why
    lines = Path(staged.directory, "start").read_text()
    assert lines == f'export EXEX_STAGED_AT={staged.directory}\nexec {shlex.quote(sys.executable)} -m exex.run "$@"\n'
    assert read(staged.directory).runs_ranks is False


def test_files_alone_need_no_interpreter(tmp_path: Path) -> None:
    assert prepare(Staged(str(tmp_path)), {}, LIBRARY, waits=False) == "it has no interpreter"


def test_what_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"what was staged in .*gone is gone: No such file"):
        read(str(tmp_path / "gone"))


# ---- the words that find it ----


def test_the_words_look_where_it_was_put() -> None:
    auto, named = shell_text("auto", "k3y", 7), shell_text('/a "b"/`x`/$(y)/$SLURM_JOB_ID/${TOP}/$1', "k3y", 7)
    assert 'for base in "$EXEX_SCRATCH" "$TMPDIR" /dev/shm /tmp /var/tmp; do at=$base/exex-stage-7/${node%%.*}-k3y;' in auto
    assert r'for base in "/a \"b\"/\`x\`/\$(y)/$SLURM_JOB_ID/${TOP}/\$1"; do' in named
    assert "\n" not in auto + named


def sh(text: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", "-c", text, "exex", *words], env=environment, capture_output=True, text=True, check=False)


def test_the_words_start_a_rank_or_remove_it(tmp_path: Path) -> None:
    place = Place(str(tmp_path), {}, 1, "k3y")
    assert os.path.basename(place.path) == f"{node_name()}-k3y"
    Path(place.path, "start").write_text('echo "a rank: $1 $2"; exit 3\n')
    text = shell_text("$TOP", "k3y", os.getuid())
    done = sh(text, "two words", "x", TOP=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (3, "a rank: two words x\n", "")
    assert sh(text, "--remove", TOP=str(tmp_path)).returncode == 0 and not Path(place.path).exists()
    assert sh(text, "--remove", TOP=str(tmp_path)).returncode == 0
    done = sh(text, "x", TOP=str(tmp_path))
    assert done.returncode == 1 and "exex: what was staged on " in done.stderr and " is gone" in done.stderr


def test_by_itself_it_is_found_in_the_first_place_that_has_it(tmp_path: Path) -> None:
    for name in ("scratch", "tmp"):
        (tmp_path / name).mkdir()
    place = Place(str(tmp_path / "tmp"), {}, 1, "k3y")
    Path(place.path, "start").write_text("pwd; exit\n")
    text = shell_text("auto", "k3y", os.getuid())
    assert sh(text, EXEX_SCRATCH=str(tmp_path / "scratch"), TMPDIR=str(tmp_path / "tmp")).returncode == 0
    assert sh(text, EXEX_SCRATCH=str(tmp_path / "scratch")).returncode == 1


# ---- between the step and the ranks ----


def test_what_waits_for_its_ranks_is_not_taken_for_a_left_over(tmp_path: Path) -> None:
    place = Place(str(tmp_path), {}, 1, "k3y")
    prepare(Staged(place.path), {}, LIBRARY, waits=True)
    os.close(place._held)  # the step has ended
    sweep(str(tmp_path))
    assert Path(place.path).exists()
    Path(place.path, UNTIL).write_text(str(time.time() - 1))
    sweep(str(tmp_path))
    assert not Path(place.path).exists()


def test_the_ranks_of_a_job_remove_it_though_it_may_wait(tmp_path: Path) -> None:
    place = Place(str(tmp_path), {}, 1, "k3y")
    prepare(Staged(place.path), {}, LIBRARY, waits=True)
    release(place._held, place.path)
    assert not Path(place.path).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interrupted_start_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "file").write_text("x")

    def prepare(staged: Staged) -> None:
        assert Path(staged.files, "file").exists()
        raise error

    with pytest.raises(type(error)):
        wanted = Wanted("", (f"{tmp_path}/file",), str(tmp_path / "node"), "k3y")
        (tmp_path / "node").mkdir()
        stage(wanted, Alone(), Beat(lambda: None), {}, "here", prepare=prepare)
    assert not [path for path in (tmp_path / "node").rglob("*") if path.is_file()]


def test_what_cannot_be_made_ready_is_an_error_of_the_node(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    def prepare(staged: Staged) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StartError, match=r"rank 3 at here cannot make ready what is staged: \[Errno 28\]"):
        stage(Wanted("", (f"{tmp_path}/file",), str(tmp_path)), Alone(), Beat(lambda: None), {}, "rank 3 at here", prepare=prepare)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "file"]


# ---- libraries ----


def elf(path: Path, run_path: str) -> bytes:
    """The least that the dynamic linker would call a program: a header, two segments, a table of two tags, and their text."""
    text = b"\0lib\0" + run_path.encode() + b"\0beyond\0"
    at_table, at_text = 64 + 2 * 56, 64 + 2 * 56 + 4 * 16
    base = 0x400000
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    whole = at_text + len(text)
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, whole, whole, 4096)
    segments += struct.pack("<IIQQQQQQ", 2, 6, at_table, base + at_table, base + at_table, 64, 64, 8)
    table = struct.pack("<8Q", 5, base + at_text, 10, len(text), 29, 5, 0, 0)
    path.write_bytes(header + segments + table + text)
    return header + segments + table


def test_a_library_looks_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "lib" / "dynload").mkdir(parents=True)
    path = tmp_path / "lib" / "dynload" / "x.so"
    head = elf(path, "/opt/python/lib:/usr/lib:/opt/python")
    path.chmod(0o555)
    assert move_search_path(str(path), "/opt/python", str(tmp_path))
    assert path.read_bytes() == head + b"\0lib\0" + b"$ORIGIN/..:/usr/lib:$ORIGIN/../..".ljust(36, b"\0") + b"\0beyond\0"
    assert path.stat().st_mode & 0o777 == 0o555
    assert not move_search_path(str(path), "/opt/python", str(tmp_path))


def test_what_does_not_fit_or_is_no_program_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    elf(path, "/o")
    for data in (path.read_bytes(), path.read_bytes()[:100], path.read_bytes()[:200], b"\x7fELF\x01" + bytes(100), b"#!/bin/sh\n", b""):
        path.write_bytes(data)
        assert not move_search_path(str(path), "/o", str(tmp_path)) and path.read_bytes() == data
