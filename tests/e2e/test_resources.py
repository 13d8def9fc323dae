"""Cores, memory, accelerators and nodes of real tasks, in worlds of both shapes: many ranks of one slot, one of many slots."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.endurance import MARK, nobody_left
from tests.faults.dead_ranks import OPTIONS, workers
from tests.launch import Launch

SHAPES = pytest.mark.parametrize(
    ("ranks", "slots"),
    [pytest.param(5, 1, id="rank-per-core"), pytest.param(2, 4, id="rank-per-node", marks=pytest.mark.one_library)],
)

BEGIN = """
import json, os, time
from exex import bash_app, python_app, InvalidResourceSpecification

def look(seconds):
    began_s = time.monotonic()
    time.sleep(seconds)
    names = ("EXEX_GRANTED_CORES", "EXEX_GRANTED_GPUS", "EXEX_GRANTED_NODES", "OMP_NUM_THREADS", "FAKE_DEVICES")
    found = {name: os.environ.get(name) for name in names}
    return {**found, "span": (began_s, time.monotonic()), "cpus": sorted(os.sched_getaffinity(0)), "node": os.uname().nodename}

look_app = python_app(look)
"""


def run(launch: Launch, ranks: int, script: str, *options: str) -> Any:
    """Run a workflow; what it prints as JSON."""
    ended = launch.workflow(ranks, BEGIN + script, options=options)
    assert ended.status == 0, ended
    return json.loads(ended.out.splitlines()[-1])


def most_at_once(found: list[dict[str, Any]], weight: Callable[[dict[str, Any]], float]) -> float:
    """The largest sum of weights of tasks that ran at the same time."""
    starts = [(task["span"][0], 1, weight(task)) for task in found]
    ends = [(task["span"][1], 0, -weight(task)) for task in found]
    most = now = 0.0
    for _, _, change in sorted(starts + ends):
        now += change
        most = max(most, now)
    return most


def cores(task: dict[str, Any]) -> int:
    return int(task["EXEX_GRANTED_CORES"] or 1)


@SHAPES
def test_tasks_of_many_sizes_never_use_more_than_there_is(launch: Launch, ranks: int, slots: int) -> None:
    found = run(
        launch, ranks,
        """
futures = []
for i in range(12):
    futures += [look_app(0.02, cores=1 + i % 4), look_app(0.01), look_app(0.02, gpus=1 + i % 2), look_app(0.01, nodes=1, cores=2)]
print(json.dumps([future.result() for future in futures]))
""",
        "--slots", str(slots), "--gpus", "a,b", "--gpu-variable", "FAKE_DEVICES",
    )  # fmt: skip
    assert len(found) == 48
    assert most_at_once(found, cores) <= 4
    assert most_at_once(found, lambda task: len((task["EXEX_GRANTED_GPUS"] or "").split(",")) if task["FAKE_DEVICES"] else 0) <= 2
    for name in ("a", "b"):
        assert most_at_once(found, lambda task: name in (task["FAKE_DEVICES"] or "").split(",")) == 1
    big = [task for i, task in enumerate(found) if i % 4 == 0]
    assert [task["OMP_NUM_THREADS"] for task in big] == [str(1 + i % 4) for i in range(12)]
    assert all(task["FAKE_DEVICES"] == task["EXEX_GRANTED_GPUS"] != "" for i, task in enumerate(found) if i % 4 == 2)
    small = [task for i, task in enumerate(found) if i % 4 == 1]
    assert all(task["EXEX_GRANTED_CORES"] is None and task["FAKE_DEVICES"] is None for task in small)


@SHAPES
def test_memory_is_counted(launch: Launch, ranks: int, slots: int) -> None:
    found = run(
        launch, ranks,
        """
from exex.launch.equipment import read_memory
part = int(read_memory(os.environ) * 0.4)
futures = [look_app(0.05, memory=part) for _ in range(5)]
print(json.dumps([future.result() for future in futures]))
""",
        "--slots", str(slots),
    )  # fmt: skip
    assert most_at_once(found, lambda task: 1) == 2


@SHAPES
def test_a_node_to_itself(launch: Launch, ranks: int, slots: int) -> None:
    found = run(
        launch, ranks,
        """
futures = [look_app(0.02) for _ in range(8)] + [look_app(0.05, nodes=1), look_app(0.05, cores=1, exclusive=True)] + [look_app(0.02) for _ in range(8)]
print(json.dumps([future.result() for future in futures]))
""",
        "--slots", str(slots),
    )  # fmt: skip
    for alone in found[8:10]:
        began_s, ended_s = alone["span"]
        others = [task for task in found if task is not alone and task["span"][0] < ended_s and task["span"][1] > began_s]
        assert not others
    assert found[8]["EXEX_GRANTED_CORES"] == "4" and found[8]["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS")


@SHAPES
def test_what_can_never_be_fails_at_the_call(launch: Launch, ranks: int, slots: int) -> None:
    found = run(
        launch, ranks,
        """
errors = []
for asked in ({"cores": 5}, {"nodes": 2}, {"gpus": 1}, {"memory": 1 << 50}):
    try:
        look_app(0, **asked)
    except InvalidResourceSpecification as error:
        errors.append([sorted(error.invalid_keys), str(error)])
print(json.dumps(errors))
""",
        "--slots", str(slots), "--gpus", "none",
    )  # fmt: skip
    assert [keys for keys, _ in found] == [["cores"], ["nodes"], ["gpus"], ["memory"]]
    assert "app look asks for 1 node with 5 cores, but there is 1 node, and 0 of them can meet that; the largest has 4 slots" in found[0][1]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
@pytest.mark.parametrize(("ranks", "slots"), [(3, 1), (2, 2)])
def test_slots_are_bound_to_cpus_of_their_own(launch: Launch, ranks: int, slots: int) -> None:
    found = run(
        launch, ranks,
        """
small = [look_app(0.1).result() for _ in range(2)] + [future.result() for future in [look_app(0.2), look_app(0.2)]]
big = look_app(0, cores=2).result()
after = [future.result() for future in [look_app(0.2), look_app(0.2)]]
print(json.dumps([small, big, after]))
""",
        "--slots", str(slots), "--bind", "cores",
    )  # fmt: skip
    small, big, after = found
    assert all(task["cpus"] for task in small)
    (one,), (other,) = ({tuple(task["cpus"]) for task in pair} for pair in ([small[2]], [small[3]]))
    assert not set(one) & set(other)
    assert set(big["cpus"]) == set(one) | set(other)
    assert {tuple(task["cpus"]) for task in after} == {one, other}


@SHAPES
def test_nothing_is_bound_where_ranks_share_all_cores(launch: Launch, ranks: int, slots: int) -> None:
    found = run(launch, ranks, "print(json.dumps([look_app(0).result(), look_app(0, cores=2).result()]))", "--slots", str(slots))
    assert all(set(task["cpus"]) == os.sched_getaffinity(0) for task in found)
    assert found[1]["OMP_NUM_THREADS"] == "2"


def test_bash_apps_and_executors_ask_as_well(launch: Launch) -> None:
    found = run(
        launch, 2,
        """
import exex

@bash_app(cores=3)
def say(stdout=("said", "w")):
    return 'echo "$EXEX_GRANTED_CORES $OMP_NUM_THREADS $EXEX_GRANTED_NODES"'

say().result()
with exex.Executor(cores=2) as executor:
    counts = list(executor.map(lambda _: os.environ["EXEX_GRANTED_CORES"], range(5)))
print(json.dumps([open("said").read().split()[:2], counts, look_app(0, cores=1).result()["OMP_NUM_THREADS"]]))
""",
        "--slots", "4",
    )  # fmt: skip
    assert found == [["3", "3"], ["2"] * 5, "1"]


def test_walltime_and_cancel_free_all_slots(launch: Launch) -> None:
    found = run(
        launch, 2,
        """
from exex import AppTimeout
late = look_app(100, cores=4, walltime=0.3)
long = look_app(100, cores=4)
assert isinstance(late.exception(), AppTimeout)
while not long.running():
    time.sleep(0.01)
began_s = time.monotonic()
long.cancel()
print(json.dumps([look_app(0, cores=4).result()["EXEX_GRANTED_CORES"], time.monotonic() - began_s]))
""",
        "--slots", "4",
    )  # fmt: skip
    assert found[0] == "4" and found[1] < 20


# ---- several nodes --------------------------------------------------------------------------------------------

RENAME = """#!/bin/sh
rank=${PMI_RANK:-$OMPI_COMM_WORLD_RANK}
exec unshare --uts sh -c 'hostname "$0"; exec "$@"' "node$(( (rank + 1) / 2 ))" "$@"
"""


def can_rename() -> bool:
    """Whether a process here can have a host name of its own."""
    return subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode == 0


NODES = pytest.mark.skipif(not can_rename(), reason="a namespace of its own for each node needs root")


def start_on_nodes(launch: Launch, ranks: int, script: str, *options: str, **extra: str) -> subprocess.Popen[str]:
    """Start a world in which rank 0 is on node0, ranks 1 and 2 on node1, and so on."""
    rename = launch.cwd / "rename"
    rename.write_text(RENAME)
    rename.chmod(0o755)
    path = launch.cwd / "workflow.py"
    path.write_text(BEGIN + script)
    go_on = {"mpich": ["-disable-auto-cleanup"], "openmpi": ["--with-ft", "ulfm"]}[launch.family]
    argv = [launch.mpiexec, *go_on, "-n", str(ranks), str(rename), sys.executable, "-m", "exex.run", *options, str(path)]
    return launch.start(argv, **extra)


@NODES
def test_gangs_and_small_tasks_share_the_nodes(launch: Launch) -> None:
    script = """
gangs = [look_app(0.1, nodes=2) for _ in range(4)]
singles = [look_app(0.1, nodes=1) for _ in range(4)]
small = [look_app(0.02) for _ in range(30)]
print(json.dumps([future.result() for future in gangs + singles + small]))
"""
    ended = launch.finish(start_on_nodes(launch, 7, script, "--slots", "2"))
    assert ended.status == 0, ended
    found = json.loads(ended.out.splitlines()[-1])
    gangs, singles, small = found[:4], found[4:8], found[8:]
    assert {task["node"] for task in small} <= {"node1", "node2", "node3"}
    for task in gangs:
        hosts = task["EXEX_GRANTED_NODES"].split(",")
        assert len(set(hosts)) == 2 and task["node"] == hosts[0] and task["EXEX_GRANTED_CORES"] == "4"
    for name in ("node1", "node2", "node3"):
        alone = [task for task in gangs + singles if name in task["EXEX_GRANTED_NODES"].split(",")]
        assert most_at_once(alone, lambda task: 1) <= 1
        for task in alone:
            others = [other for other in small if other["node"] == name]
            assert not any(other["span"][0] < task["span"][1] and other["span"][1] > task["span"][0] for other in others)


@NODES
def test_affinity_brings_a_task_to_the_node_of_another(launch: Launch) -> None:
    script = """
first = [look_app(0.05) for _ in range(6)]
where = [future.result()["node"] for future in first]
near = [look_app(0, affinity=future).result()["node"] for future in first]
print(json.dumps([where, near]))
"""
    ended = launch.finish(start_on_nodes(launch, 7, script, "--slots", "1"))
    assert ended.status == 0, ended
    where, near = json.loads(ended.out.splitlines()[-1])
    assert len(set(where)) == 3 and near == where


@NODES
def test_a_gang_that_loses_a_node_is_run_again_on_others(launch: Launch) -> None:
    script = """
import exex
print(exex.manager_pid(), flush=True)

@python_app(nodes=2)
def gang():
    nodes = os.environ["EXEX_GRANTED_NODES"]
    with open("began", "a") as file:
        file.write(nodes + "\\n")
    if open("began").read().count("\\n") == 1:
        time.sleep(100)
    return nodes

print(gang().result())
"""
    mark = uuid.uuid4().hex
    process = start_on_nodes(launch, 7, script, "--slots", "1", *OPTIONS, **{MARK: mark})
    assert process.stdout is not None
    manager = int(process.stdout.readline())
    began = Path(launch.cwd / "began")
    until = time.monotonic() + 60
    while not began.exists() or not began.read_text().endswith("\n"):
        assert time.monotonic() < until
        time.sleep(0.02)
    other = began.read_text().strip().split(",")[1]
    lost = 0
    for rank in workers(mark, manager):
        with contextlib.suppress(psutil.Error):
            number = int(rank.environ().get("PMI_RANK") or rank.environ()["OMPI_COMM_WORLD_RANK"])
            if f"node{(number + 1) // 2}" == other:
                rank.kill()
                lost += 1
    assert lost == 2
    ended = launch.finish(process)
    assert "lost rank" in ended.err, ended
    nobody_left(mark)
    nodes = ended.out.splitlines()[-1].split(",")
    assert len(nodes) == 2 and other not in nodes, ended
