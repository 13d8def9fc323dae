"""What launchers tell their processes. The environments are captured ones, with paths, names and numbers of the site replaced."""

import pytest

from exex.launch.world import (
    ExpectedWorld,
    expected_world,
    inherited_fds_to_close,
    library_family,
    settling_s,
    singletons_message,
    task_environment,
)


def variables(text):
    return dict(line.strip().split("=", 1) for line in text.strip().splitlines())


# ---- captured: what a task may see, and what it must not ----

USER = variables("""
    PATH=/usr/bin:/bin
    HOME=/home/user
    FI_PROVIDER=tcp
    UCX_NET_DEVICES=lo
    MPIR_CVAR_CH4_NETMOD=ofi
    HYDRA_LAUNCHER=ssh
    I_MPI_FABRICS=shm
    I_MPI_PIN_DOMAIN=core
    OMPI_MCA_btl=self,sm
    OMPI_MCA_mpi_yield_when_idle=1
    OMPI_ALLOW_RUN_AS_ROOT=1
    PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
    PMIX_MCA_gds=hash
    PMI_NO_FORK=1
    PMI_MMAP_SYNC_WAIT_TIME=300
    PALS_PING_PERIOD=240
    EXEX_RETRIES=2
    EXEX_CONFIG=/home/user/exex.toml
""")

SLURM_JOB = variables("""
    SLURM_CLUSTER_NAME=fake
    SLURM_CONF=/etc/slurm/slurm.conf
    SLURM_JOBID=5
    SLURM_JOB_CPUS_PER_NODE=3,1
    SLURM_JOB_ID=5
    SLURM_JOB_NAME=batch.sh
    SLURM_JOB_NODELIST=node[1-2]
    SLURM_JOB_NUM_NODES=2
    SLURM_JOB_PARTITION=debug
    SLURM_NNODES=2
    SLURM_NODELIST=node[1-2]
    SLURM_NODE_ALIASES=(null)
    SLURM_NPROCS=4
    SLURM_NTASKS=4
    SLURM_SUBMIT_DIR=/home/user
    SLURM_SUBMIT_HOST=login1
    SLURM_TASKS_PER_NODE=3,1
""")

BATCH = variables("""
    SLURM_GTIDS=0
    SLURM_LOCALID=0
    SLURM_NODEID=0
    SLURM_PROCID=0
    SLURM_TASK_PID=10717
""")

STEP = variables("""
    SLURM_GTIDS=2
    SLURM_LAUNCH_NODE_IPADDR=192.0.2.1
    SLURM_LOCALID=0
    SLURM_NODEID=1
    SLURM_PROCID=2
    SLURM_SRUN_COMM_HOST=192.0.2.1
    SLURM_SRUN_COMM_PORT=27224
    SLURM_STEPID=0
    SLURM_STEP_ID=0
    SLURM_STEP_LAUNCHER_PORT=27224
    SLURM_STEP_NODELIST=node[1-2]
    SLURM_STEP_NUM_NODES=2
    SLURM_STEP_NUM_TASKS=3
    SLURM_STEP_TASKS_PER_NODE=2,1
    SLURM_TASK_PID=10525
""")

SRUN_PMI2 = STEP | variables("""
    PMI_FD=11
    PMI_JOBID=1.0
    PMI_RANK=2
    PMI_SIZE=3
""")

SRUN_PMIX = STEP | variables("""
    PMIX_BFROP_BUFFER_TYPE=PMIX_BFROP_BUFFER_NON_DESC
    PMIX_DSTORE_21_BASE_PATH=/var/spool/slurmd/node2/pmix.2.0//pmix_dstor_ds21_10565
    PMIX_GDS_MODULE=ds21,ds12,hash
    PMIX_HOSTNAME=node2
    PMIX_NAMESPACE=slurm.pmix.2.0
    PMIX_RANK=2
    PMIX_SECURITY_MODE=native
    PMIX_SERVER_TMPDIR=/var/spool/slurmd/node2/pmix.2.0/
    PMIX_SERVER_URI41=pmix-server.10565;tcp4://127.0.0.1:33665
    PMIX_SYSTEM_TMPDIR=/tmp
    PMIX_VERSION=4.2.2rc2
    SLURM_PMIXP_ABORT_AGENT_PORT=27650
    SLURM_PMIX_MAPPING_SERV=(vector,(0,1,2),(1,1,1))
""")

SRUN_CRAY_SHASTA = STEP | variables("""
    PALS_APID=4.0
    PALS_APINFO=/var/spool/slurmd/node2/mpi_cray_shasta/4.0/apinfo
    PALS_NODEID=1
    PALS_RANKID=2
    PALS_SPOOL_DIR=/var/spool/slurmd/node2/mpi_cray_shasta/4.0
""")

HYDRA = variables("""
    GFORTRAN_UNBUFFERED_PRECONNECTED=y
    HYDI_CONTROL_FD=7
    MPI_LOCALNRANKS=3
    MPI_LOCALRANKID=1
    PMI_FD=9
    PMI_HOSTNAME=node1
    PMI_RANK=1
    PMI_SIZE=3
""")

# mpiexec of Intel MPI 2021.18 on one node; of I_MPI_INFO_* some
HYDRA_INTEL = variables("""
    GFORTRAN_UNBUFFERED_PRECONNECTED=y
    HYDRA_BSTRAP_DEBUG=0
    HYDRA_BSTRAP_DOWNSTREAM_CONTROL=
    HYDRA_BSTRAP_DOWNSTREAM_HOSTS=
    HYDRA_BSTRAP_LAUNCHER=fork
    HYDRA_BSTRAP_LOCALHOST=localhost
    HYDRA_BSTRAP_NODE_ID=0
    HYDRA_BSTRAP_PROXY_ID=0
    HYDRA_BSTRAP_UPSTREAM_FD=7
    HYDRA_IP_VERSION=2
    HYDRA_LAUNCH_TYPE=2
    I_MPI_BIND_WIN_ALLOCATE=localalloc
    I_MPI_HYDRA_TOPOLIB=ipl2
    I_MPI_HYDRA_UUID=f4360000-788e-5097-cb60-06005ccca830
    I_MPI_INFO_CACHES=3
    I_MPI_INFO_LCPU=2
    I_MPI_INFO_NUMA_NODE_MAP=
    I_MPI_INTERNAL_MEM_POLICY=default
    I_MPI_PIN_INFO=1
    I_MPI_PIN_MAPPING=2:0 0,1 1
    I_MPI_RETURN_WIN_MEM_NUMA=-1,0
    MPI_LOCALNRANKS=2
    MPI_LOCALRANKID=1
    PMI_FD=11
    PMI_RANK=1
    PMI_SIZE=2
""")

# mpiexec of MPICH in a batch script: srun starts its proxies, two of them, and they 3 ranks and 1
HYDRA_IN_SLURM = STEP | variables("""
    GFORTRAN_UNBUFFERED_PRECONNECTED=y
    MPI_LOCALNRANKS=1
    MPI_LOCALRANKID=0
    PMI_FD=5
    PMI_HOSTNAME=node2
    PMI_RANK=3
    PMI_SIZE=4
    SLURM_EXTERNAL_LAUNCHER=1
    SLURM_PROCID=1
    SLURM_STEP_NUM_TASKS=2
    SLURM_STEP_TASKS_PER_NODE=1(x2)
""")

OPENMPI_5 = variables("""
    OMPI_ARGV=-m exex.run
    OMPI_COMMAND=/opt/venv/bin/python
    OMPI_COMM_WORLD_LOCAL_RANK=2
    OMPI_COMM_WORLD_LOCAL_SIZE=3
    OMPI_COMM_WORLD_NODE_RANK=2
    OMPI_COMM_WORLD_RANK=2
    OMPI_COMM_WORLD_SIZE=3
    OMPI_FILE_LOCATION=/tmp/ompi.3772/1/2
    OMPI_LIBDIR_LOC=/opt/openmpi/lib
    OMPI_MCA_PREFIXES=mca,opal,ompi,atomic,memheap
    OMPI_MCA_cpu_type=x86_64
    OMPI_MCA_initial_wdir=/home/user
    OMPI_MCA_num_procs=3
    OMPI_NUM_APP_CTX=1
    OMPI_TOOL_NAME=mpiexec
    OMPI_UNIVERSE_SIZE=2
    OMPI_VERSION=5.0.11
    OMPI_WORLD_LOCAL_SIZE=3
    OMPI_WORLD_SIZE=3
    OPAL_USER_PARAMS_GIVEN=1
    PMIX_BFROP_BUFFER_TYPE=PMIX_BFROP_BUFFER_NON_DESC
    PMIX_GDS_MODULE=shmem2,hash
    PMIX_HOSTNAME=node1
    PMIX_NAMESPACE=prterun-node1-3772@1
    PMIX_PARAM_FILE_PASSED=1
    PMIX_PREFIX=/opt/openmpi
    PMIX_RANK=2
    PMIX_SECURITY_MODE=native
    PMIX_SERVER_TMPDIR=/tmp/ompi.3772
    PMIX_SERVER_URI41=prterun-node1-3772@0.0;tcp4://127.0.0.1:57119
    PMIX_SYSTEM_TMPDIR=/tmp
    PMIX_VERSION=5.0.11rc1
    PRTE_LAUNCHED=1
    PRTE_SHARED_FS=FALSE
""")

OPENMPI_4 = variables("""
    OMPI_APP_CTX_NUM_PROCS=2
    OMPI_COMMAND=env
    OMPI_COMM_WORLD_LOCAL_RANK=0
    OMPI_COMM_WORLD_LOCAL_SIZE=2
    OMPI_COMM_WORLD_NODE_RANK=0
    OMPI_COMM_WORLD_RANK=0
    OMPI_COMM_WORLD_SIZE=2
    OMPI_FILE_LOCATION=/tmp/ompi.node1.0/pid.14943/0/0
    OMPI_FIRST_RANKS=0
    OMPI_MCA_ess=^singleton
    OMPI_MCA_ess_base_jobid=1453391873
    OMPI_MCA_ess_base_vpid=0
    OMPI_MCA_initial_wdir=/home/user
    OMPI_MCA_mpi_oversubscribe=0
    OMPI_MCA_orte_app_num=0
    OMPI_MCA_orte_bound_at_launch=1
    OMPI_MCA_orte_ess_num_procs=2
    OMPI_MCA_orte_hnp_uri=1453391872.0;tcp://192.0.2.1:52445
    OMPI_MCA_orte_launch=1
    OMPI_MCA_orte_local_daemon_uri=1453391872.0;tcp://192.0.2.1:52445
    OMPI_MCA_orte_precondition_transports=6faad4fdd768d7c9-6274ac313a1994ac
    OMPI_MCA_orte_top_session_dir=/tmp/ompi.node1.0
    OMPI_MCA_pmix=^s1,s2,cray,isolated
    OMPI_MCA_shmem_RUNTIME_QUERY_hint=mmap
    OMPI_NUM_APP_CTX=1
    OMPI_UNIVERSE_SIZE=2
    PMIX_DSTORE_ESH_BASE_PATH=/tmp/ompi.node1.0/pid.14943/pmix_dstor_ds12_14943
    PMIX_ID=1453391873.0
    PMIX_NAMESPACE=1453391873
    PMIX_RANK=0
    PMIX_SERVER_URI2=1453391872.0;tcp4://127.0.0.1:60925
""")

# from the manuals, not captured
PALS = variables("""
    PALS_APID=b8f1a6f0-77a3-4f0d-9b7f-6a4e2f6e0d55
    PALS_LOCAL_RANKID=3
    PALS_NODEID=1
    PALS_RANKID=35
    PALS_SPOOL_DIR=/var/run/palsd/b8f1a6f0
    PMI_CONTROL_PORT=20000
    PMI_LOCAL_RANK=3
    PMI_LOCAL_SIZE=32
    PMI_RANK=35
    PMI_SIZE=64
""")
ALPS = variables("""
    ALPS_APP_DEPTH=1
    ALPS_APP_ID=1234567
    ALPS_APP_PE=17
""")
JSRUN = variables("""
    JSM_NAMESPACE_RANK=5
    JSM_NAMESPACE_SIZE=42
    OMPI_COMM_WORLD_LOCAL_SIZE=6
    OMPI_COMM_WORLD_RANK=5
    OMPI_COMM_WORLD_SIZE=42
    PMIX_NAMESPACE=2
    PMIX_RANK=5
""")
FLUX = variables("""
    FLUX_JOB_ID=f2Vd5PqKJ
    FLUX_JOB_NNODES=2
    FLUX_JOB_SIZE=4
    FLUX_KVS_NAMESPACE=job-42
    FLUX_TASK_LOCAL_ID=1
    FLUX_TASK_RANK=3
    PMI_FD=11
    PMI_RANK=3
    PMI_SIZE=4
""")
FLUX_INSTANCE = {"FLUX_URI": "local:///tmp/flux-Xy12/local-0", "FLUX_JOB_TMPDIR": "/tmp/flux-Xy12/jobtmp-0"}
OURS = variables("""
    EXEX_ATTEMPT=1
    EXEX_GRANTED_CORES=4
    EXEX_GRANTED_GPUS=0,1
    EXEX_GRANTED_NODES=node1,node2
    EXEX_JOB_DIR=/tmp/exex-a1b2c3d4
    EXEX_NODE=node1
    EXEX_RANK=1
    EXEX_TASK_ID=7
    EXEX_TTY=/dev/pts/3
""")
NOTHING: dict[str, str] = {}

WORLDS = {
    "login node": (NOTHING, NOTHING, ExpectedWorld("none", None, None, None)),
    "salloc": (SLURM_JOB, NOTHING, ExpectedWorld("none", None, None, None)),
    "batch script": (SLURM_JOB, BATCH, ExpectedWorld("none", None, None, None)),
    "srun pmi2": (SLURM_JOB, SRUN_PMI2, ExpectedWorld("srun", 2, 3, 1)),
    "srun pmix": (SLURM_JOB, SRUN_PMIX, ExpectedWorld("srun", 2, 3, 1)),
    "srun none": (SLURM_JOB, STEP, ExpectedWorld("srun", 2, 3, 1)),
    "srun cray_shasta": (SLURM_JOB, SRUN_CRAY_SHASTA, ExpectedWorld("srun", 2, 3, 1)),
    "hydra": (NOTHING, HYDRA, ExpectedWorld("Hydra mpiexec", 1, 3, 3)),
    "hydra of intel mpi": (NOTHING, HYDRA_INTEL, ExpectedWorld("Hydra mpiexec", 1, 2, 2)),
    "hydra in slurm": (SLURM_JOB, HYDRA_IN_SLURM, ExpectedWorld("Hydra mpiexec", 3, 4, 1)),
    "open mpi 5": (NOTHING, OPENMPI_5, ExpectedWorld("Open MPI mpiexec", 2, 3, 3)),
    "open mpi 5 in slurm": (SLURM_JOB, BATCH | OPENMPI_5, ExpectedWorld("Open MPI mpiexec", 2, 3, 3)),
    "open mpi 5, daemons by srun": (SLURM_JOB, STEP | OPENMPI_5, ExpectedWorld("Open MPI mpiexec", 2, 3, 3)),
    "open mpi 5 in hydra": (NOTHING, HYDRA | OPENMPI_5, ExpectedWorld("Open MPI mpiexec", 2, 3, 3)),
    "open mpi 4": (NOTHING, OPENMPI_4, ExpectedWorld("Open MPI mpiexec", 0, 2, 2)),
    "pals": (NOTHING, PALS, ExpectedWorld("PALS mpiexec", 35, 64, 32)),
    "aprun": (NOTHING, ALPS, ExpectedWorld("aprun", 17, None, None)),
    "jsrun": (NOTHING, JSRUN, ExpectedWorld("jsrun", 5, 42, 6)),
    "flux": (FLUX_INSTANCE, FLUX, ExpectedWorld("flux run", 3, 4, None)),
    "flux in slurm": (SLURM_JOB | FLUX_INSTANCE, STEP | FLUX, ExpectedWorld("flux run", 3, 4, None)),
    "hydra in flux": (FLUX_INSTANCE, FLUX | HYDRA, ExpectedWorld("Hydra mpiexec", 1, 3, 3)),
    "ibrun": (SLURM_JOB, STEP | {"PMI_RANK": "60", "PMI_SIZE": "112"}, ExpectedWorld("PMI", 60, 112, None)),
    "another pmix": (NOTHING, {"PMIX_NAMESPACE": "a", "PMIX_RANK": "4"}, ExpectedWorld("PMIx", 4, None, None)),
    "exex run, a task of it": (NOTHING, OURS, ExpectedWorld("none", None, None, None)),
}


@pytest.mark.parametrize("kept, removed, world", WORLDS.values(), ids=WORLDS)
def test_which_world(kept, removed, world):
    assert expected_world(USER | kept | removed) == world


@pytest.mark.parametrize("kept, removed, world", WORLDS.values(), ids=WORLDS)
def test_a_task_sees_the_job_and_the_settings_but_no_rank(kept, removed, world):
    seen = task_environment(USER | kept | removed)
    assert seen == USER | kept
    assert expected_world(seen) == ExpectedWorld("none")
    assert task_environment(seen) == seen


@pytest.mark.parametrize("value, stays", [("^singleton", False), ("tool", True)])
def test_a_users_setting_that_a_launcher_may_set_too(value, stays):
    assert ("OMPI_MCA_ess" in task_environment({"OMPI_MCA_ess": value})) == stays


@pytest.mark.parametrize(
    "env, fds",
    [
        (NOTHING, ()),
        (HYDRA, (7, 9)),
        (HYDRA_IN_SLURM, (5,)),
        (SRUN_PMI2, (11,)),
        (OPENMPI_5, ()),
        (ALPS, (100, 102, 108, 110)),
        ({"PMI_FD": "1", "HYDI_CONTROL_FD": "-1"}, ()),
        ({"PMI_FD": "x"}, ()),
    ],
)
def test_descriptors_that_belong_to_the_rank(env, fds):
    assert inherited_fds_to_close(env) == fds


@pytest.mark.parametrize(
    "counts, node, ranks",
    [
        ("4", 0, 4),
        ("4(x2),3", 1, 4),
        ("4(x2),3", 2, 3),
        ("4(x2),3", 3, None),
        ("2(x1000),1", 1000, 1),
        ("", 0, None),
        ("x", 0, None),
    ],
)
def test_tasks_of_a_node_in_slurms_list(counts, node, ranks):
    step = STEP | {"SLURM_STEP_TASKS_PER_NODE": counts, "SLURM_NODEID": str(node)}
    assert expected_world(step).ranks_on_node == ranks


# ---- singletons ----

MPICH, CRAY, OPEN_MPI = (
    "MPICH Version:      5.0.2",
    "MPI VERSION    : CRAY MPICH version 8.1.28 (ANL base 3.4a2)",
    "Open MPI v5.0.11",
)
INTEL, MVAPICH = "Intel(R) MPI Library 2021.13 for Linux* OS", "MVAPICH2 Version      :\t2.3.7"


@pytest.mark.parametrize(
    "library, family",
    [
        (MPICH, "mpich"),
        (CRAY, "cray"),
        (OPEN_MPI, "openmpi"),
        (INTEL, "mpich"),
        (MVAPICH, "mpich"),
        ("Spectrum MPI", ""),
        ("", ""),
    ],
)
def test_library_family(library, family):
    assert library_family(library) == family


@pytest.mark.parametrize(
    "env, library, cure",
    [
        (STEP, MPICH, "`srun --mpi=pmi2 ...`"),
        (SRUN_PMIX, MPICH, "`srun --mpi=pmi2 ...`"),
        (SRUN_PMI2, OPEN_MPI, "`srun --mpi=pmix ...`"),
        (SRUN_CRAY_SHASTA, OPEN_MPI, "`srun --mpi=pmix ...`"),
        (STEP, CRAY, "`srun --mpi=cray_shasta ...`"),
        (STEP, INTEL, "`srun --mpi=pmi2 ...`"),
        (STEP, "Spectrum MPI", "`srun --mpi=list`"),
        (PALS, OPEN_MPI, "`mpiexec --pmi=pmix ...`"),
        (HYDRA, OPEN_MPI, "MPICH's: start it with Open MPI's (`mpiexec --version` must say Open MPI)"),
        (OPENMPI_5, MPICH, "Open MPI's: start it with MPICH's (`mpiexec --version` must say HYDRA or Intel)"),
        (HYDRA, MPICH, "launcher of the installation that this library comes from"),
        (PALS, MPICH, "launcher of the installation that this library comes from"),
    ],
)
def test_a_world_of_singletons_is_told_what_is_missing(env, library, cure):
    expected = expected_world(env)
    message = singletons_message(expected, library, 1)
    assert message is not None
    assert message.startswith(f"{expected.launcher} started {expected.size} processes, but for MPI each is alone")
    assert f"the loaded library, {' '.join(library.split())}, " in message
    assert cure in message


@pytest.mark.parametrize(
    "expected, size",
    [
        (ExpectedWorld("srun", 0, 3), 3),
        (ExpectedWorld("srun", 0, 3), 2),
        (ExpectedWorld("srun", 0, 1), 1),
        (ExpectedWorld("aprun", 0, None), 1),
        (ExpectedWorld("none"), 1),
    ],
)
def test_every_other_world_is_left_alone(expected, size):
    assert singletons_message(expected, MPICH, size) is None


@pytest.mark.parametrize(
    "env, library, waits",
    [(SRUN_PMIX, OPEN_MPI, True), (SRUN_PMI2, MPICH, False), (OPENMPI_5, OPEN_MPI, False), (NOTHING, OPEN_MPI, False)],
)
def test_who_waits_after_mpi_init(env, library, waits):
    assert bool(settling_s(expected_world(env), library)) == waits
