"""What a launcher tells the processes that it starts, read and removed. Pure: environments in, values out.

Runs in the guard before it forks, so it imports little and never touches MPI.

Sources: environments captured under srun, Hydra (MPICH 5.0, Intel MPI 2021.18), PRRTE (Open MPI 5.0) and ORTE (Open MPI
4.1); the manuals of ALPS, PALS and Flux; tests/unit/test_world.py holds them. The files in `launchers/` say the same of each
launcher (`ranks_see`, `world_is`), and a test compares; a guard does not read them, as 8,192 of them start at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from exex.launch.hostlist import expand_counts

Environment = Mapping[str, str]


class ExpectedWorld(NamedTuple):
    """The world as the launcher's variables describe it; None where they do not tell."""

    launcher: str  # srun, Hydra mpiexec, Open MPI mpiexec, PALS mpiexec, aprun, jsrun, flux run, PMI, PMIx or none
    rank: int | None = None
    size: int | None = None
    ranks_on_node: int | None = None  # of this world, this process's node


# ---- which launcher ----


def expected_world(env: Environment) -> ExpectedWorld:
    """The world that this process should find itself in.

    The first that fits counts. Inside an allocation mpiexec starts its helpers through srun, and Flux may have been started
    by it, so what they set goes before SLURM_STEP_*; cray_shasta sets PALS_* in every srun step, so SLURM_STEP_* goes before
    PALS_*; the shell of `salloc` and a batch script have SLURM_JOB_ID but no step.
    """
    for is_here, describe in _LAUNCHERS:
        if is_here(env):
            return describe(env)
    return ExpectedWorld("none")


def _number(env: Environment, *names: str) -> int | None:
    """The first of the variables that holds a number."""
    for name in names:
        value = env.get(name, "")
        if value.isdecimal():
            return int(value)
    return None


def _openmpi(env: Environment) -> ExpectedWorld:
    numbers = [_number(env, f"OMPI_COMM_WORLD_{name}") for name in ("RANK", "SIZE", "LOCAL_SIZE")]
    return ExpectedWorld("Open MPI mpiexec", *numbers)


def _jsrun(env: Environment) -> ExpectedWorld:
    rank = _number(env, "JSM_NAMESPACE_RANK", "OMPI_COMM_WORLD_RANK")
    size = _number(env, "JSM_NAMESPACE_SIZE", "OMPI_COMM_WORLD_SIZE")
    return ExpectedWorld("jsrun", rank, size, _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE"))


def _pmi(launcher: str) -> Callable[[Environment], ExpectedWorld]:
    def describe(env: Environment) -> ExpectedWorld:
        on_node = _number(env, "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")
        return ExpectedWorld(launcher, _number(env, "PMI_RANK"), _number(env, "PMI_SIZE"), on_node)

    return describe


def _is_srun(env: Environment) -> bool:
    """In a step, and not in an mpiexec that a step started: that one's PMI_SIZE is not the step's."""
    size = _number(env, "SLURM_STEP_NUM_TASKS")
    return "SLURM_STEP_ID" in env and size is not None and _number(env, "PMI_SIZE") in (None, size)


def _srun(env: Environment) -> ExpectedWorld:
    on_node = _slurm_tasks(env.get("SLURM_STEP_TASKS_PER_NODE", ""), _number(env, "SLURM_NODEID") or 0)
    return ExpectedWorld("srun", _number(env, "SLURM_PROCID"), _number(env, "SLURM_STEP_NUM_TASKS"), on_node)


def _slurm_tasks(counts: str, node: int) -> int | None:
    """Tasks of the `node`-th node in Slurm's list: "4(x2),3" is 4, 4, 3."""
    try:
        return expand_counts(counts)[node]
    except (ValueError, IndexError):
        return None


def _is_flux(env: Environment) -> bool:
    """In a job of Flux, and not in an srun that it started."""
    size = _number(env, "FLUX_JOB_SIZE")
    return "FLUX_TASK_RANK" in env and size is not None and _number(env, "PMI_SIZE") in (None, size)


def _flux(env: Environment) -> ExpectedWorld:
    return ExpectedWorld("flux run", _number(env, "FLUX_TASK_RANK"), _number(env, "FLUX_JOB_SIZE"))


def _pals(env: Environment) -> ExpectedWorld:
    rank = _number(env, "PALS_RANKID", "PMI_RANK")
    return ExpectedWorld("PALS mpiexec", rank, _number(env, "PMI_SIZE"), _number(env, "PMI_LOCAL_SIZE"))


def _aprun(env: Environment) -> ExpectedWorld:
    return ExpectedWorld("aprun", _number(env, "ALPS_APP_PE"), _number(env, "PMI_SIZE"))


def _pmix(env: Environment) -> ExpectedWorld:
    return ExpectedWorld("PMIx", _number(env, "PMIX_RANK"))


_LAUNCHERS: list[tuple[Callable[[Environment], bool], Callable[[Environment], ExpectedWorld]]] = [
    (lambda env: "JSM_NAMESPACE_RANK" in env, _jsrun),
    (lambda env: "OMPI_COMM_WORLD_SIZE" in env, _openmpi),
    (lambda env: "MPI_LOCALNRANKS" in env and "PMI_RANK" in env, _pmi("Hydra mpiexec")),
    (_is_flux, _flux),
    (_is_srun, _srun),
    (lambda env: "PALS_APID" in env or "PALS_RANKID" in env, _pals),
    (lambda env: "ALPS_APP_PE" in env, _aprun),
    (lambda env: "PMI_RANK" in env, _pmi("PMI")),
    (lambda env: "PMIX_RANK" in env, _pmix),
]


# ---- a world of singletons ----


def library_family(library: str) -> str:
    """`openmpi`, `cray`, `mpich` (with Intel MPI and MVAPICH, which start alike) or "" of a library's version text."""
    text = library.lower()
    for word, family in (("open mpi", "openmpi"), ("cray", "cray"), ("mpich", "mpich"), ("intel", "mpich")):
        if word in text:
            return family
    return "mpich" if "mvapich" in text else ""


_SRUN_MPI = {"openmpi": "pmix", "mpich": "pmi2", "cray": "cray_shasta"}


def singletons_message(expected: ExpectedWorld, library_name: str, size: int) -> str | None:
    """What to say if the launcher started many processes and MPI finds each alone; None if all is well.

    Every process of such a world holds itself for rank 0; `expected.rank` tells them apart.

    Args:
        library_name: first line of the library's version text.
        size: of MPI's world.
    """
    if size != 1 or expected.size is None or expected.size <= 1:
        return None
    library = " ".join(library_name.split())
    return (
        f"{expected.launcher} started {expected.size} processes, but for MPI each is alone in a world of size 1: "
        f"the loaded library, {library}, does not take part in this launcher's start. "
        f"{_cure(expected.launcher, library_family(library))} `exex doctor` shows what belongs together."
    )


def _cure(launcher: str, family: str) -> str:
    if launcher == "srun":
        if family in _SRUN_MPI:
            return f"Start it with `srun --mpi={_SRUN_MPI[family]} ...`."
        return "Start it with the `srun --mpi=...` that this library needs; `srun --mpi=list` names them."
    if launcher == "PALS mpiexec" and family == "openmpi":
        return "Start it with `mpiexec --pmi=pmix ...`."
    if launcher == "Hydra mpiexec" and family == "openmpi":
        return "This mpiexec is MPICH's: start it with Open MPI's (`mpiexec --version` must say Open MPI)."
    if launcher == "Open MPI mpiexec" and family in ("mpich", "cray"):
        return "This mpiexec is Open MPI's: start it with MPICH's (`mpiexec --version` must say HYDRA or Intel)."
    return "Start it with the launcher of the installation that this library comes from."


# ---- leaving MPI_Init ----


def settling_s(expected: ExpectedWorld, library_name: str) -> float:
    """Seconds that a rank should wait after MPI_Init before it sends anything.

    Under srun ranks leave MPI_Init at times of their own, and Open MPI 5 crashes on a message that comes to a rank which is still
    inside: https://github.com/open-mpi/ompi/issues/12495. Of 130 starts of five ranks on four nodes 9 failed so, and with this
    wait none of 150.
    """
    return 0.2 if expected.launcher == "srun" and library_family(library_name) == "openmpi" else 0.0


# ---- what tasks must not inherit ----

_PREFIXES = (
    *("PMI_", "PMI2_", "PMIX_", "PRTE_", "HYDI_", "JSM_", "PALS_", "ALPS_APP_", "MV2_COMM_WORLD_"),
    *("OMPI_COMM_WORLD_", "OMPI_WORLD_", "OMPI_APP_CTX_", "OMPI_MCA_orte_", "OMPI_MCA_ess_base_"),
    *("SLURM_STEP_", "SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_SRUN_COMM_", "SLURM_PMIX"),
    *("HYDRA_BSTRAP_", "I_MPI_INFO_"),
)
_HYDRA = {
    *("MPI_LOCALNRANKS", "MPI_LOCALRANKID", "GFORTRAN_UNBUFFERED_PRECONNECTED"),
    *("HYDRA_LAUNCH_TYPE", "HYDRA_IP_VERSION", "I_MPI_HYDRA_UUID", "I_MPI_INTERNAL_MEM_POLICY"),  # Intel MPI
    *("I_MPI_PIN_INFO", "I_MPI_PIN_MAPPING", "I_MPI_RETURN_WIN_MEM_NUMA"),
}
_OPENMPI = {
    *("OMPI_ARGV", "OMPI_COMMAND", "OMPI_FILE_LOCATION", "OMPI_FIRST_RANKS", "OMPI_LIBDIR_LOC", "OMPI_NUM_APP_CTX"),
    *("OMPI_TOOL_NAME", "OMPI_UNIVERSE_SIZE", "OMPI_VERSION", "OPAL_USER_PARAMS_GIVEN"),
    *("OMPI_MCA_PREFIXES", "OMPI_MCA_cpu_type", "OMPI_MCA_initial_wdir", "OMPI_MCA_num_procs"),
    *("OMPI_MCA_mpi_oversubscribe", "OMPI_MCA_shmem_RUNTIME_QUERY_hint"),
}
_SLURM = {  # of the step and the process, not of the job
    *("SLURM_STEPID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_GTIDS", "SLURM_TASK_PID"),
    *("SLURM_LAUNCH_NODE_IPADDR", "SLURM_EXTERNAL_LAUNCHER"),
}
_EXEX = {  # a job that a task starts is another job
    *("EXEX_JOB_DIR", "EXEX_CLIENT_SOCKET", "EXEX_TTY", "EXEX_TASK_ID", "EXEX_ATTEMPT", "EXEX_RANK", "EXEX_NODE", "EXEX_GUARD"),
    *("EXEX_GRANTED_CORES", "EXEX_GRANTED_GPUS", "EXEX_GRANTED_NODES", "EXEX_STARTED_BY", "EXEX_OWN_WORLD", "EXEX_STAGED"),
    *("EXEX_MPI_PREFIX", "EXEX_MPI_ERROR", "EXEX_NODES", "EXEX_NUM_NODES", "EXEX_RANKS_PER_NODE", "EXEX_NUM_RANKS"),
    *("PARSL_MPI_PREFIX", "PARSL_NUM_NODES", "PARSL_RANKS_PER_NODE", "PARSL_NUM_RANKS"),
}
_FLUX = {  # FLUX_URI leads to the instance, and stays
    *("FLUX_TASK_RANK", "FLUX_TASK_LOCAL_ID", "FLUX_JOB_ID", "FLUX_JOB_SIZE", "FLUX_JOB_NNODES"),
    *("FLUX_KVS_NAMESPACE", "FLUX_PMI_LIBRARY_PATH"),
}
_NAMES = _HYDRA | _OPENMPI | _SLURM | _EXEX | _FLUX
_LAUNCHER_VALUES = {  # others are the user's
    "OMPI_MCA_ess": "^singleton",
    "OMPI_MCA_pmix": "^s1,s2,cray,isolated",
    "I_MPI_BIND_WIN_ALLOCATE": "localalloc",
    "I_MPI_HYDRA_TOPOLIB": "ipl2",
}
_SETTINGS = ("PMIX_MCA_", "PRTE_MCA_")
_SETTING_NAMES = {
    *("PMI_NO_FORK", "PMI_NO_PREINITIALIZE", "PMI_MMAP_SYNC_WAIT_TIME", "PMI_MAX_KVS_ENTRIES"),
    *("PALS_PING_PERIOD", "PALS_RPC_TIMEOUT"),
}
_FD_NAMES = ("PMI_FD", "HYDI_CONTROL_FD", "PMI2_FD")
_ALPS_FDS = (100, 102, 108, 110)


def task_environment(env: Environment) -> dict[str, str]:
    """`env` without what tells a process that it is a rank, so that a task may start MPI programs of its own.

    The job's variables (SLURM_JOB_ID, PBS_NODEFILE) and the user's settings of MPI (OMPI_MCA_*, PRTE_MCA_*, MPIR_CVAR_*,
    HYDRA_*, I_MPI_*, FI_*, UCX_*) stay.
    """
    return {name: value for name, value in env.items() if not _tells_a_rank(name, value)}


def _tells_a_rank(name: str, value: str) -> bool:
    if name in _SETTING_NAMES or name.startswith(_SETTINGS):
        return False
    return name in _NAMES or name.startswith(_PREFIXES) or _LAUNCHER_VALUES.get(name) == value


def inherited_fds_to_close(env: Environment) -> tuple[int, ...]:
    """Descriptors through which a launcher talks to the rank: for the rank alone, closed in everything else."""
    named = {int(env[name]) for name in _FD_NAMES if env.get(name, "").isdecimal()}
    alps = _ALPS_FDS if "ALPS_APP_PE" in env else ()
    return tuple(sorted(fd for fd in named.union(alps) if fd > 2))
