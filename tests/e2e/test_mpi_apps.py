"""Functions on communicators and MPI programs as tasks, in worlds of both shapes: ranks of one slot, and of several."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.launch import Launch

BEGIN = """
import json, os, re, signal, sys, time
from exex import AppTimeout, MpiTaskFailed, bash_app, mpi_app, python_app

out = {}

def error(future):
    try:
        return repr(future.result())
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
"""
FUNCTIONS = """
@mpi_app(ranks=2)
def add_up(comm, x, by=1):
    from mpi4py import MPI
    return comm.size, comm.allreduce(x + comm.rank * by), MPI.COMM_WORLD.size

@mpi_app(ranks=2, every_rank=True)
def each(comm):
    return comm.rank

@mpi_app(ranks=2)
def fails(comm, where):
    if comm.rank in where:
        raise ValueError(f"of rank {comm.rank}")

@mpi_app(ranks=2)
def leaves(comm, how):
    comm.Abort(3) if how == "abort" else sys.exit(4)

@mpi_app(ranks=2)
def says(comm, stdout=None):
    print("printed by", comm.rank)
    return os.getcwd(), os.environ["SAID"]

@python_app
def plain(x):
    return x + 1
"""


def run(launch: Launch, script: str, *options: str) -> dict[str, Any]:
    """Run a workflow by `exex run`; what it leaves in `out`."""
    (launch.cwd / "workflow.py").write_text(BEGIN + script + "\nprint(json.dumps(out))\n")
    ended = launch.finish(launch.start([sys.executable, "-m", "exex", "run", *options, "workflow.py"]))
    assert ended.status == 0, ended
    return {"err": ended.err, **json.loads(ended.out.splitlines()[-1])}


PER_CORE = ("--workers", "4", "--slots", "1")
PER_NODE = ("--workers", "1", "--slots", "4")


@pytest.mark.parametrize("options", [PER_CORE, PER_NODE], ids=["rank-per-core", "rank-per-node"])
def test_functions_on_communicators(launch: Launch, options: tuple[str, ...]) -> None:
    out = run(
        launch,
        FUNCTIONS
        + """
os.mkdir("there")
where = says(stdout="said", cwd="there", env={"SAID": "yes"})
futures = [plain(add_up(plain(1), by=plain(4))[1]), each(), each(ranks=3), each(ranks=1)]
out["values"] = [future.result() for future in futures]
out["world"] = add_up(0).result()
out["errors"] = [error(fails([1])), error(fails([0, 1])), error(leaves("abort")), error(leaves("exit"))]
out["cause"] = repr(fails([1]).exception().__cause__)
out["says"] = [where.result(), open("said").read()]
out["after"] = [add_up(1).result()[1], plain(1).result()]
""",
        *options,
    )
    assert out["values"] == [10, [0, 1], [0, 1, 2], [0]]
    assert out["world"] == [2, 1, 5 if options == PER_CORE else 2]  # the job's own ranks, or a world made for it
    one, both, abort, left = out["errors"]
    assert one.startswith("MpiTaskFailed: task ") and " failed on 1 of its 2 ranks: rank 1 at " in one
    assert "ValueError: of rank 1" in one and out["cause"] == "ValueError('of rank 1')"
    assert "failed on 2 of its 2 ranks: rank 0 at " in both or "1 of its 2 ranks" in both  # who is first may end the other
    assert "it called Abort(3) of its communicator" in abort
    assert "called sys.exit with exit code 4" in left
    assert out["says"][0] == [str(launch.cwd / "there"), "yes"] and "printed by 0\n" in out["says"][1]
    assert out["after"] == [3, 2]


def test_a_world_of_its_own_on_request(launch: Launch) -> None:
    """A crash there costs no worker rank."""
    out = run(
        launch,
        FUNCTIONS
        + """
@mpi_app(ranks=2, own_world=True)
def crashes(comm):
    from mpi4py import MPI
    assert MPI.COMM_WORLD.size == 2
    if comm.rank:
        os.kill(os.getpid(), signal.SIGSEGV)
    comm.recv(source=1)

@mpi_app(ranks=2, gpus=1, every_rank=True)
def sees(comm):
    from mpi4py import MPI
    return MPI.COMM_WORLD.size, os.environ["FAKE_DEVICES"]

out["error"] = error(crashes())
out["sees"] = sees().result()
out["after"] = add_up(1).result()
""",
        *(*PER_CORE, "--gpus", "4,5", "--gpu-variable", "FAKE_DEVICES"),
    )
    assert out["sees"] == [[2, "4"], [2, "4"]]  # an accelerator is seen by nobody who was not granted it
    assert "its MPI world of 2 ranks ended with status" in out["error"]
    assert out["after"] == [2, 3, 5]
    assert "lost rank" not in out["err"]


STOPPED = """
@mpi_app(ranks=2)
def ok(comm):
    return comm.allreduce(1)

@mpi_app(ranks=2)
def loops(comm):
    while True:
        time.sleep(0.01)

@mpi_app(ranks=2)
def waits(comm):
    comm.recv(source=1 - comm.rank)

@mpi_app(ranks=2)
def one_fails(comm):
    if comm.rank:
        raise ValueError("no")
    comm.recv(source=1)
"""


def test_functions_are_stopped(launch: Launch) -> None:
    """By cancel and walltime, in Python code and in MPI; in MPI that costs their ranks, and the job goes on."""
    out = run(
        launch,
        STOPPED
        + """
future = loops()
while not future.running():
    time.sleep(0.01)
out["cancel"] = [future.cancel(), error(future)]
out["late"] = error(loops(walltime=0.5))
out["first"] = ok().result()
out["fails"] = error(one_fails())
out["late_in_mpi"] = error(waits(walltime=0.5))
out["last"] = ok().result()
""",
        *("--workers", "6", "--slots", "1", "--grace-s", "0.5"),
    )
    assert out["cancel"] == [True, "CancelledError: "]
    assert out["late"].startswith("AppTimeout: task ") and "it ran longer than its walltime, 0.5 s" in out["late"]
    assert "failed on 1 of its 2 ranks: rank 1 at" in out["fails"] and "another one was stopped" in out["fails"]
    assert out["late_in_mpi"].startswith("AppTimeout: ")
    assert [out["first"], out["last"]] == [2, 2]
    assert out["err"].count("was killed by SIGKILL") == (2 if launch.family == "openmpi" else 3)


def test_a_dead_rank_costs_an_attempt(launch: Launch) -> None:
    out = run(
        launch,
        STOPPED
        + """
@mpi_app(ranks=2)
def dies(comm, rank):
    if comm.rank == rank and not os.path.exists(f"died-{rank}"):
        open(f"died-{rank}", "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return comm.allreduce(1)

out["values"] = [dies(1).result(), dies(0).result(), ok().result()]
""",
        *("--workers", "6", "--slots", "1", "--grace-s", "0.5"),
    )
    assert out["values"] == [2, 2, 2]


def test_a_job_ends_while_functions_wait_for_ever(launch: Launch) -> None:
    (launch.cwd / "workflow.py").write_text(BEGIN + STOPPED + "future = waits()\ntime.sleep(0.5)\nraise SystemExit(3)\n")
    words = ["-m", "exex", "run", "--workers", "4", "--slots", "1", "--grace-s", "0.5", "workflow.py"]
    ended = launch.finish(launch.start([sys.executable, *words]))
    assert ended.status == 3, ended
    assert ended.seconds < 30


def test_programs(launch: Launch) -> None:
    """A program on a node, started by exex and by hand; nothing of the job's own ranks is in its environment."""
    out = run(
        launch,
        """
@mpi_app(nodes=1, ranks_per_node=2)
def program(script, stdout=None):
    return f"{sys.executable} {script}"

@bash_app(nodes=1)
def by_hand(stdout=None):
    return "env -0; echo; $EXEX_MPI_PREFIX echo started"

@mpi_app(nodes=1)
def fails():
    return "sh -c 'echo broken >&2; exit 3'"

open("size.py", "w").write("from mpi4py import MPI; c = MPI.COMM_WORLD; print(f'<{c.rank}/{c.size}/{c.allreduce(1)}>')")
tasks = [program("size.py", stdout="two"), program("size.py", ranks_per_node=3, stdout="three"), by_hand(stdout="hand")]
out["codes"] = [task.result() for task in tasks]
out["two"], out["three"] = (sorted(re.findall("<(.*?)>", open(name).read())) for name in ("two", "three"))  # Hydra may mix lines
out["hand"] = open("hand").read()
out["error"] = error(fails())
""",
        *PER_NODE,
    )
    assert out["codes"] == [0, 0, 0]
    assert out["two"] == ["0/2/2", "1/2/2"]
    assert out["three"] == ["0/3/3", "1/3/3", "2/3/3"]
    environment = dict(entry.split("=", 1) for entry in out["hand"].split("\0") if "=" in entry)
    assert out["hand"].count("started\n") == int(environment["EXEX_NUM_RANKS"]) == 4
    assert environment["PARSL_MPI_PREFIX"] == environment["EXEX_MPI_PREFIX"]
    assert not [name for name in environment if name.startswith(("PMI_", "PMIX_RANK", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_"))]
    assert out["error"].startswith("BashExitFailure: ") and "broken" in out["error"]


def test_thousands_in_a_row(launch: Launch) -> None:
    """Communicators would run out if one leaked: MPICH has some 2,000. `python -m benchmarks.together` runs more."""
    out = run(
        launch,
        """
@mpi_app(ranks=2)
def nothing(comm):
    pass

for future in [nothing() for _ in range(3_000)]:
    out["last"] = future.result()
""",
        *PER_CORE,
    )
    assert out["last"] is None
