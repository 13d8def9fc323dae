"""Command lines: what they are taken for, what they start, and what a mistake is told."""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from exex import cli
from exex.config import Config
from exex.errors import StartError
from exex.launch import doctor, foreground, launcher, own_command
from exex.launch.deadline import find_end_s
from exex.launch.doctor import Check
from exex.version import __version__

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty directory with a script, and no variable of ours or of a launcher."""
    for name in list(os.environ):
        if name.startswith(("EXEX_", "PMI", "OMPI_COMM", "SLURM_", "MPI_LOCAL")):
            monkeypatch.delenv(name)
    (tmp_path / "wf.py").write_text("")
    (tmp_path / "directory").mkdir()
    (tmp_path / "settings.toml").write_text("retries = 5\nslots = 3\n")
    monkeypatch.chdir(tmp_path)


# ---- exex launch-helper ----


@pytest.mark.parametrize(
    "words, status, says",
    [
        (["nowhere/file"], 1, "exex launch-helper: cannot write the connection file "),
        (["--launcher", "aprunn", "file"], 2, "exex launch-helper: there is no launcher 'aprunn'; the nearest is 'aprun'"),
        (["--most", "0", "file"], 2, "Invalid value for '--most'"),
        ([], 2, "Missing argument 'FILE'"),
    ],
)
def test_a_launch_helper_that_cannot_start(words, status, says):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "exex", "launch-helper", *words]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr and "Traceback" not in done.stderr
    assert not Path("file").exists()


# ---- python -m exex.run ----


@pytest.mark.parametrize(
    "argv, changes, args",
    [
        ("wf.py", {}, []),
        ("wf.py a b", {}, ["a", "b"]),
        ("wf.py --slots 2 -n 3 --help", {}, ["--slots", "2", "-n", "3", "--help"]),
        ("wf.py -- a -- b", {}, ["--", "a", "--", "b"]),
        ("-- wf.py --retries 7", {}, ["--retries", "7"]),
        ("--slots 2 wf.py", {"slots": 2}, []),
        ("--slots=auto --isolation none -- wf.py -x", {"isolation": "none"}, ["-x"]),
        ("--progress --preload a,b.c wf.py", {"progress": True, "preload": ("a", "b.c")}, []),
        ("--config settings.toml wf.py", {"retries": 5, "slots": 3}, []),
        ("--config settings.toml --slots 1 --no-progress wf.py", {"retries": 5, "slots": 1}, []),
        (
            "--max-waiting-bytes 1000 --prefetch-s 0 --run-dir r wf.py",
            {"max_waiting_bytes": 1000, "prefetch_s": 0.0, "run_dir": "r"},
            [],
        ),
    ],
)
def test_options_are_ours_before_the_script_and_its_own_after(argv, changes, args):
    assert cli.parse_run_args(argv.split()) == (Config(**changes), "wf.py", args)


def test_arguments_are_not_touched():
    args = ["", " ", "a b", "--x=1 2", "ä", "*", "$HOME"]
    assert cli.parse_run_args(["wf.py", *args])[2] == args


def test_variables_count(monkeypatch):
    monkeypatch.setenv("EXEX_RETRIES", "2")
    monkeypatch.setenv("EXEX_CONFIG", "settings.toml")
    assert cli.parse_run_args(["wf.py"])[0] == Config(retries=2, slots=3)


MISTAKES = [
    ("", 2, "Missing argument 'SCRIPT'"),
    ("--slots 2", 2, "Missing argument 'SCRIPT'"),
    ("--slot 2 wf.py", 2, "--slots"),
    ("--slots", 2, "--slots"),
    ("--slots x wf.py", 2, "--slots is 'x'; accepted: an integer, at least 1, or auto"),
    ("--config no.toml wf.py", 2, "cannot read the configuration file no.toml"),
    ("no.py", 2, "the script no.py does not exist (current directory: "),
    ("directory", 2, "the script directory is a directory"),
]


@pytest.mark.parametrize("argv, status, says", MISTAKES)
def test_mistakes_end_with_status_2(capfd, argv, status, says):
    with pytest.raises(SystemExit) as end:
        cli.parse_run_args(argv.split())
    out, err = capfd.readouterr()
    assert (end.value.code, out) == (status, "")
    assert says in err and "Traceback" not in err


def test_a_wrong_variable_is_a_mistake(capfd, monkeypatch):
    monkeypatch.setenv("EXEX_SLOT", "2")
    with pytest.raises(SystemExit) as end:
        cli.parse_run_args(["wf.py"])
    assert end.value.code == 2
    assert capfd.readouterr().err == "exex: unknown variable EXEX_SLOT; the nearest is EXEX_SLOTS\n"


@pytest.mark.parametrize("rank, quiet", [("0", False), ("1", True)])
@pytest.mark.parametrize("argv, status", [("no.py", 2), ("--help", 0), ("--slots", 2)])
def test_of_all_ranks_the_first_speaks(capfd, monkeypatch, rank, quiet, argv, status):
    for name, value in [("PMI_RANK", rank), ("PMI_SIZE", "3"), ("MPI_LOCALNRANKS", "3")]:
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        cli.parse_run_args([argv])
    assert end.value.code == status
    assert (capfd.readouterr() == ("", "")) == quiet


# ---- exex ----


@pytest.fixture
def invoke(monkeypatch):
    """`invoke(line)` runs `exex line` without starting anything; the result, with what would have been started."""

    def run_world(argv, env, stop_timeout_s):
        started.append((argv, env, stop_timeout_s))
        return 7

    started = []
    library = launcher.Library("hydra", "MPICH Version: 5.0.2", "/b/libmpi.so.12", "4.1.2")
    monkeypatch.setattr(launcher, "mpi_library", lambda python, env: library)
    monkeypatch.setattr(launcher, "find_mpiexec", lambda library, python, env: launcher.Launcher("hydra", "/b/mpiexec", "Hydra"))
    monkeypatch.setattr(foreground, "run_world", run_world)
    monkeypatch.setattr("exex.launch.allocation.usable_cores", lambda: 8)

    def invoke(line):
        started.clear()
        result = CliRunner().invoke(cli.main, line.split(), prog_name="exex")
        result.started = started[0] if started else None
        return result

    return invoke


@pytest.mark.parametrize(
    "cores, workers, slots, shape",
    [
        (8, None, "auto", (8, 1)),
        (1, None, "auto", (1, 1)),
        (8, 1, "auto", (1, 8)),
        (8, 3, "auto", (3, 2)),
        (2, 16, "auto", (16, 1)),
        (8, None, 4, (2, 4)),
        (8, None, 16, (1, 16)),
        (8, 3, 5, (3, 5)),
    ],
)
def test_shape(cores, workers, slots, shape):
    assert own_command.shape(cores, workers, slots) == shape


@pytest.mark.parametrize(
    "line, ranks, tail",
    [
        ("run wf.py", 9, ["--slots", "1", "--", "wf.py"]),
        ("run -n 2 wf.py -n 5 --slots", 3, ["--slots", "4", "--", "wf.py", "-n", "5", "--slots"]),
        ("run --workers 2 --slots 1 -- wf.py -- x", 3, ["--slots", "1", "--", "wf.py", "--", "x"]),
        ("run --config settings.toml wf.py", 3, ["--config", "settings.toml", "--", "wf.py"]),
        ("run --no-progress --preload a,b wf.py", 9, ["--preload", "a,b", "--no-progress", "--slots", "1", "--", "wf.py"]),
    ],
)
def test_run_starts_workers_beside_the_manager(invoke, line, ranks, tail):
    result = invoke(line)
    assert (result.exit_code, result.output) == (7, "")
    argv, _, _ = result.started
    start = argv.index("-n")
    assert argv[0] == "/b/mpiexec"
    assert argv[start:] == ["-n", str(ranks), sys.executable, "-m", "exex.run", *tail]


def test_what_run_passes_on_is_understood(invoke):
    options = "--slots 2 --isolation none --preload a,b --retries 1 --start-timeout-s 5 --grace-s 1 --progress --run-dir r"
    options += " --stop-timeout-s 3 --max-waiting 9 --max-waiting-bytes 99 --prefetch-s 0.5"
    argv, _, stop_timeout_s = invoke(f"run {options} wf.py --retries x").started
    config, script, args = cli.parse_run_args(argv[argv.index("exex.run") + 1 :])
    assert (script, args, stop_timeout_s) == ("wf.py", ["--retries", "x"], 3.0)
    assert config == Config(
        slots=2, isolation="none", preload=("a", "b"), retries=1, start_timeout_s=5.0, grace_s=1.0, progress=True, run_dir="r",
        stop_timeout_s=3.0, max_waiting=9, max_waiting_bytes=99, prefetch_s=0.5,
    )  # fmt: skip


def test_run_in_a_task_starts_a_job_of_its_own(invoke, monkeypatch):
    for name, value in [("PMI_RANK", "1"), ("PMI_FD", "9"), ("EXEX_JOB_DIR", "/tmp/outer"), ("EXEX_RETRIES", "2")]:
        monkeypatch.setenv(name, value)
    _, env, _ = invoke("run wf.py").started
    assert not {"PMI_RANK", "PMI_FD", "EXEX_JOB_DIR", "EXEX_TTY"} & env.keys()
    assert env["EXEX_RETRIES"] == "2"


def test_run_names_the_terminal(invoke, monkeypatch):
    monkeypatch.setattr(os, "isatty", lambda fd: fd == 2)
    monkeypatch.setattr(os, "ttyname", lambda fd: f"/dev/pts/{fd}")
    assert invoke("run wf.py").started[1]["EXEX_TTY"] == "/dev/pts/2"


@pytest.mark.parametrize("argv, status, says", [*MISTAKES, ("-n 0 wf.py", 2, "-n"), ("-n x wf.py", 2, "-n")])
def test_mistakes_of_run_start_nothing(invoke, argv, status, says):
    result = invoke(f"run {argv}")
    assert (result.exit_code, result.stdout, result.started) == (status, "", None)
    assert says in result.stderr and "Traceback" not in result.stderr


def test_no_launcher_is_status_1(invoke, monkeypatch):
    def find_mpiexec(library, python, env):
        raise StartError("there is none")

    monkeypatch.setattr(launcher, "find_mpiexec", find_mpiexec)
    result = invoke("run wf.py")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "exex run: there is none\n")


def test_help_shows_every_setting(invoke):
    text = " ".join(invoke("run --help").stdout.split())
    for field in Config.fields_help():
        assert f"{field.option} " in text and f"Also {field.variable}." in text
        assert field.help in text


def test_version(invoke):
    assert invoke("--version").stdout == f"exex {__version__}\n"


@pytest.mark.parametrize("oks, status", [([True, True], 0), ([True, False, True], 1)])
def test_doctor_tells_by_its_status(invoke, monkeypatch, oks, status):
    monkeypatch.setattr("exex.launch.doctor.checks", lambda env: iter([Check(ok, "thing", "text") for ok in oks]))
    result = invoke("doctor")
    assert result.exit_code == status
    assert result.stdout.splitlines() == [f"{'ok  ' if ok else 'FAIL'}  thing          text" for ok in oks]


HELLO = "hello 3 3\n"


@pytest.mark.parametrize(
    "status, output, ok, says",
    [
        (0, HELLO * 3, True, "3 ranks started and talked in "),
        (0, "a warning of the library\n" + HELLO * 3, True, "3 ranks started and talked in "),
        (
            0,
            "hello 1 0\n" * 3,
            False,
            "started 3 processes that are no world of 3 (hello 1 0, hello 1 0, hello 1 0): /b/mpiexec is not of",
        ),
        (0, HELLO * 2, False, "started 2 processes that are no world of 3"),
        (0, "", False, "ended with status 0; it printed: nothing"),
        (213, "no slots", False, "ended with status 213; it printed: no slots"),
        (None, "hello", False, "did not end within 60 s; it printed: hello"),
    ],
)
def test_doctor_starts_a_world(monkeypatch, status, output, ok, says):
    library = launcher.Library("hydra", "MPICH Version: 5.0.2", "/b/libmpi.so.12", "4.1.2")
    mpiexec = launcher.Launcher("hydra", "/b/mpiexec", "Hydra")
    monkeypatch.setattr(doctor, "mpi_library", lambda python, env: library)
    monkeypatch.setattr(doctor, "find_mpiexec", lambda library, python, env: mpiexec)
    monkeypatch.setattr(doctor, "_run", lambda argv, env: (status, output.strip()))
    *_, world = doctor.checks({})
    assert (world.subject, world.ok) == ("world", ok)
    assert says in world.text


def test_doctor_stops_where_nothing_can_follow(monkeypatch):
    def mpi_library(python, env):
        raise StartError("no MPI; install it")

    monkeypatch.setattr(doctor, "mpi_library", mpi_library)
    monkeypatch.setattr(doctor, "_SHARED_MEMORY", "/no/shm")
    env = {"SLURM_JOB_ID": "5", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_END_TIME": "1"}
    found = {check.subject: (check.ok, check.text) for check in doctor.checks(env)}
    assert list(found) == ["Python", "exex", "allocation", "shared memory", "MPI"]
    assert found["allocation"][0] and found["allocation"][1].startswith("Slurm job 5, 2 nodes, ends at ")
    assert found["shared memory"] == (False, "/no/shm: No such file or directory; MPI needs it: mount a tmpfs there")
    assert found["MPI"] == (False, "no MPI; install it")


@pytest.mark.parametrize(
    "env, ok, says",
    [
        ({}, True, "none: this machine, 8 cores by affinity"),
        (
            {"SLURM_JOB_NODELIST": "nid[1-9]", "SLURM_JOB_CPUS_PER_NODE": "64(x8),32", "SLURM_JOB_END_TIME": "4600"},
            True,
            "Slurm job 5, 9 nodes (nid1 ... nid9), 544 cores, ends at {end} (in 1:00:00); here 8 cores by affinity",
        ),
        (
            {"SLURM_JOB_NODELIST": "n1,n7", "SLURM_JOB_END_TIME": "999"},
            True,
            "Slurm job 5, 2 nodes (n1, n7), ends at {end} (in 0:00:00); here 8 cores by affinity",
        ),
        ({}, False, "Slurm job 5, nodes unknown, end unknown; here 8 cores by affinity"),
        ({"SLURM_JOB_NODELIST": "n[1"}, False, "SLURM_JOB_NODELIST is 'n[1': 'n[1' is no host name"),
    ],
)
def test_doctor_shows_the_allocation(monkeypatch, env, ok, says):
    monkeypatch.setattr(doctor, "usable_cores", lambda: 8)
    monkeypatch.setattr(doctor.time, "time", lambda: 1000.0)
    monkeypatch.setattr(doctor, "find_end_s", lambda env, now_s: find_end_s(env, now_s, run=lambda argv: ""))
    job = {} if says.startswith("none") else {"SLURM_JOB_ID": "5"}
    says = says.replace("{end}", str(datetime.datetime.fromtimestamp(int(env.get("SLURM_JOB_END_TIME", 0)))))
    check = doctor._allocation({**job, **env})
    assert check.ok == ok and check.text.startswith(says), check


def test_importing_the_command_line_is_light():
    program = "import sys, exex.cli; print(*sorted(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True).stdout
    loaded = set(out.split())
    assert "exex.config" in loaded
    heavy = {"mpi4py", "numpy", "zmq", "h5py", "msgspec", "cloudpickle", "subprocess", "socket", "asyncio", "logging"}
    if sys.version_info < (3, 11):
        heavy.remove("subprocess")  # by platform, there
    assert not loaded & {*heavy, "exex.launch.doctor", "exex.launch.foreground", "exex.launch.launcher"}
