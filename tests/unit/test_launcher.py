"""Which mpiexec belongs to the library, and its command line."""

import os
import sys

import pytest

from exex.errors import StartError
from exex.launch import launcher
from exex.launch.launcher import Launcher, Library, launch_argv, launcher_family, mpi_library, world_argv

HYDRA = "HYDRA build details:\n    Version:                                 5.0.2\n    Process Manager:  pmi\n"
INTEL = "Intel(R) MPI Library for Linux* OS, Version 2021.13 Build 20240515\nCopyright 2003-2024, Intel Corporation.\n"
OPEN_MPI_5 = "mpiexec (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/\n"
OPEN_MPI_4 = "mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n"
PALS = "PALS 1.2.12\n"


@pytest.fixture(autouse=True)
def no_files_of_the_users(monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")


# ---- which mpiexec ----


@pytest.mark.parametrize(
    "text, family",
    [(HYDRA, "hydra"), (INTEL, "hydra"), (OPEN_MPI_5, "openmpi"), (OPEN_MPI_4, "openmpi"), (PALS, None), ("", None)],
)
def test_launcher_family(text, family):
    assert launcher_family(text) == family


@pytest.fixture
def programs(tmp_path):
    """`programs("dir/name", text)` makes a program that prints `text`; its path."""

    def make(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\n")
        path.chmod(0o755)
        return str(path)

    return make


def mpich(library_path=""):
    return Library("hydra", "MPICH Version: 5.0.2", library_path, "4.1.2")


def test_mpiexec_beside_python_goes_first(programs, tmp_path):
    venv, on_path = programs("venv/bin/mpiexec", HYDRA), programs("usr/bin/mpiexec", HYDRA)
    found = launcher.find_mpiexec(mpich(), str(tmp_path / "venv/bin/python"), {"PATH": os.path.dirname(on_path)})
    assert found == ("hydra", venv, "MPICH's Hydra 5.0.2")


def test_mpiexec_beside_the_library_goes_before_path(programs, tmp_path):
    beside, on_path = programs("opt/mpich/bin/mpiexec", HYDRA), programs("usr/bin/mpiexec", HYDRA)
    library = mpich(str(tmp_path / "opt/mpich/lib/libmpi.so.12"))
    assert launcher.find_mpiexec(library, "/no/python", {"PATH": os.path.dirname(on_path)}).path == beside


def test_one_of_another_family_is_passed_over(programs, tmp_path):
    other = programs("usr/bin/mpiexec", OPEN_MPI_5)
    right = programs("usr/bin/mpiexec.mpich", HYDRA)
    assert launcher.find_mpiexec(mpich(), "/no/python", {"PATH": os.path.dirname(other)}).path == right


@pytest.mark.parametrize(
    "text, name", [(OPEN_MPI_5, "mpiexec (Open MPI) 5.0.11"), (PALS, "PALS 1.2.12"), ("", "silent (exit status 0)")]
)
def test_only_another_family_names_both(programs, text, name):
    other = programs("usr/bin/mpiexec", text)
    with pytest.raises(StartError) as caught:
        launcher.find_mpiexec(mpich("/opt/lib/libmpi.so.12"), "/no/python", {"PATH": os.path.dirname(other)})
    message = str(caught.value)
    assert message.startswith(f"the MPI library is MPICH Version: 5.0.2 (/opt/lib/libmpi.so.12), but {other} is {name}.")
    assert "Put the mpiexec of MPICH on PATH" in message


def test_no_mpiexec_at_all(tmp_path):
    with pytest.raises(StartError, match="no mpiexec beside it, beside /no/python or on PATH"):
        launcher.find_mpiexec(mpich(), "/no/python", {"PATH": str(tmp_path)})


def test_a_library_of_a_system_launcher_is_not_for_exex_run():
    library = Library(None, "MPI VERSION : CRAY MPICH version 8.1.28", "/opt/cray/lib/libmpi.so", "4.0.0")
    with pytest.raises(StartError, match=r"CRAY MPICH version 8\.1\.28, which `exex run` cannot start.*srun"):
        launcher.find_mpiexec(library, sys.executable, os.environ)


def test_the_library_is_asked_for_in_a_process_of_its_own(programs):
    answer = '["Open MPI v5.0.11, package: Open MPI, ident: 5.0.11\\u0000", "/opt/lib/libmpi.so.40", "4.1.2"]\n'
    python = programs("python", "a module that prints\n" + answer)
    assert mpi_library(python, {}) == ("openmpi", "Open MPI v5.0.11", "/opt/lib/libmpi.so.40", "4.1.2")


def test_a_python_without_mpi_says_so(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'RuntimeError: cannot load MPI library' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(StartError, match=r"RuntimeError: cannot load MPI library.*MPI4PY_LIBMPI") as caught:
        mpi_library(str(python), {})
    assert str(python) in str(caught.value)


# ---- its command line ----


def test_command_line_of_hydra():
    argv, env = world_argv(
        Launcher("hydra", "/b/mpiexec", "MPICH's Hydra 5.0.2"), 5, program=["/b/python", "-m", "exex.run"], exex_args=["--slots", "2"], script_args=["wf.py", "--n"], uid=0
    )
    launcher_part = ["/b/mpiexec", "-launcher", "fork", "-hosts", "localhost", "-bind-to", "none", "-disable-auto-cleanup", "-n", "5"]
    assert argv == [*launcher_part, "/b/python", "-m", "exex.run", "--slots", "2", "--", "wf.py", "--n"]
    assert env == {}


@pytest.mark.parametrize("uid, root", [(0, True), (1000, False)])
@pytest.mark.parametrize("version, goes_on", [("5.0.11", ["--with-ft", "ulfm"]), ("4.1.4", []), ("unknown", [])])
def test_command_line_of_open_mpi(uid, root, version, goes_on):
    argv, env = launch_argv(Launcher("openmpi", "/b/mpiexec", f"mpiexec (Open MPI) {version}"), 5, uid)
    assert argv == ["/b/mpiexec", "--host", "localhost:5", "--oversubscribe", "--bind-to", "none", *goes_on, "-n", "5"]
    assert env.pop("OMPI_MCA_mpi_yield_when_idle") == "1"
    assert env == ({"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if root else {})
