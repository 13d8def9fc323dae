"""Which MPI library mpi4py loads, which mpiexec belongs to it, and the command line that starts a world on this machine.

Runs in `exex run` and `exex doctor`, never in a rank. It does not load MPI: another Python is asked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from exex.errors import StartError
from exex.launch.launchers import LauncherFile, load_launcher
from exex.launch.world import library_family, task_environment

Family = Literal["hydra", "openmpi"]

_QUESTION_TIMEOUT_S = 60.0  # the first import over a busy parallel file system takes long
_LIBRARY_PROGRAM = """
import json, mpi4py
mpi4py.rc.initialize = mpi4py.rc.finalize = False
from mpi4py import MPI
with open("/proc/self/maps") as file:
    paths = sorted({line.split()[-1] for line in file if "/libmpi" in line})
paths.sort(key=lambda path: not path.rsplit("/", 1)[1].startswith(("libmpi.so", "libmpich.so")))
print(json.dumps([MPI.Get_library_version(), paths[0] if paths else "", mpi4py.__version__]))
"""
_FAMILY_NAMES: dict[str, str] = {"hydra": "MPICH", "openmpi": "Open MPI"}


class Library(NamedTuple):
    """The MPI library that mpi4py loads."""

    family: Family | None  # of its own launcher; None for one that has none here (Cray MPICH)
    name: str  # with its version
    path: str
    mpi4py: str  # version


class Launcher(NamedTuple):
    """An mpiexec."""

    family: Family | None  # None for one that is neither Hydra nor Open MPI's
    path: str
    name: str  # first line of what `--version` prints


def mpi_library(python: str, env: Mapping[str, str]) -> Library:
    """The library that `python`'s mpi4py loads, found in a process of its own (0.1 s) without MPI_Init.

    Raises:
        StartError: no mpi4py, or no MPI library for it.
    """
    status, out, err = _ask([python, "-c", _LIBRARY_PROGRAM], task_environment(env))
    if status != 0:
        last = err.strip().splitlines()[-1:] or [f"exit status {status}"]
        raise StartError(
            f"mpi4py of {python} cannot load an MPI library: {last[0]}. Install mpi4py and an MPI library into this "
            "environment (`pip install mpi4py mpich`), or name the site's in MPI4PY_LIBMPI."
        )
    text, path, version = json.loads(out.strip().splitlines()[-1])
    name = " ".join(re.split(r"[\n,\x00]", text)[0].split())
    family: dict[str, Family] = {"mpich": "hydra", "openmpi": "openmpi"}
    return Library(family.get(library_family(name)), name, path, version)


def launcher_family(version_text: str) -> Family | None:
    """Whose mpiexec it is that prints this for `--version`. Pure."""
    if re.search(r"\bHYDRA\b|Intel\(R\) MPI", version_text):
        return "hydra"
    if re.search(r"Open MPI|OpenRTE|PRRTE|prterun", version_text):
        return "openmpi"
    return None


def find_mpiexec(library: Library, python: str, env: Mapping[str, str]) -> Launcher:
    """The mpiexec that belongs to `library`: beside `python`, beside the library, or on PATH, in this order.

    Raises:
        StartError: none is found, or only those of other families; it names library and mpiexec.
    """
    if library.family is None:
        raise StartError(
            f"the MPI library is {library.name}, which `exex run` cannot start. Start the job with the system's "
            "launcher: `srun python -m exex.run ...`, `aprun ...` or `mpiexec ...`."
        )
    others: list[Launcher] = []
    for path in mpiexec_candidates(library, python, env):
        found = describe_mpiexec(path, env)
        if found.family == library.family:
            return found
        others.append(found)
    wanted = f"the MPI library is {library.name} ({library.path})"
    if not others:
        raise StartError(f"{wanted}, but there is no mpiexec beside it, beside {python} or on PATH. Load its module.")
    seen = "; ".join(f"{other.path} is {other.name}" for other in others)
    raise StartError(
        f"{wanted}, but {seen}. Put the mpiexec of {_FAMILY_NAMES[library.family]} on PATH, or let mpi4py load the "
        "library of that mpiexec (MPI4PY_LIBMPI)."
    )


def mpiexec_candidates(library: Library, python: str, env: Mapping[str, str]) -> list[str]:
    """Programs that may be the library's mpiexec, likeliest first; each exists."""
    beside_library = os.path.join(os.path.dirname(os.path.dirname(library.path)), "bin") if library.path else ""
    names = ["mpiexec", "mpiexec.hydra", "mpiexec.mpich"] if library.family == "hydra" else ["mpiexec", "mpiexec.openmpi"]
    candidates = [shutil.which("mpiexec", path=os.path.dirname(python)), shutil.which("mpiexec", path=beside_library)]
    candidates += [shutil.which(name, path=env.get("PATH", os.defpath)) for name in names]
    return list(dict.fromkeys(path for path in candidates if path))


def describe_mpiexec(path: str, env: Mapping[str, str]) -> Launcher:
    """Ask an mpiexec what it is."""
    status, out, err = _ask([path, "--version"], task_environment(env))
    lines = [line.strip() for line in (out + err).splitlines() if line.strip()]
    family = launcher_family(out + err)
    name = lines[0].rstrip(":") if lines else f"silent (exit status {status})"
    if family == "hydra" and (version := re.search(r"Version:\s*(\S+)", out)):
        name = f"MPICH's Hydra {version[1]}"
    return Launcher(family, path, name)


def _ask(argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a short program."""
    try:
        done = subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_QUESTION_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, "", f"no answer within {_QUESTION_TIMEOUT_S:g} s"
    except OSError as error:
        return 127, "", str(error)
    return done.returncode, done.stdout, done.stderr


def _file(family: Family) -> LauncherFile:
    return load_launcher(f"mpiexec-{family}", os.environ)


def launch_argv(launcher: Launcher, ranks: int, uid: int) -> tuple[list[str], dict[str, str]]:
    """The launcher's part of a command line for ranks on this machine alone, and what its environment needs.

    Both come from the launcher's file in `launchers/`. More ranks than cores are allowed, and no rank is bound to cores: a
    worker's task processes need all of them.

    Args:
        uid: of the user; Open MPI refuses root unless it is told twice.
    """
    file = _file(launcher.family or "openmpi")
    return file.local_argv(ranks, launcher.path, launcher.name), file.local_environment(uid)


def world_argv(
    launcher: Launcher, ranks: int, *, program: Sequence[str], exex_args: Sequence[str], script_args: Sequence[str], uid: int
) -> tuple[list[str], dict[str, str]]:
    """Command line that starts an exex job on this machine, and what its environment needs.

    Args:
        ranks: manager and workers.
        program: what becomes a rank: `python -m exex.run`, or what stands for it.
        exex_args: options of it.
        script_args: the script and its arguments.
        uid: see `launch_argv`.
    """
    argv, env = launch_argv(launcher, ranks, uid)
    return [*argv, *program, *exex_args, "--", *script_args], env
