"""`exex campaign` from its plan to its report on a real Slurm of four nodes; a missing size is made up for alone."""

from __future__ import annotations

import json
import sys
import time

import pytest

from tests.launch import ROOT
from tests.slurm import MPI, Cluster, why_not

FILE = """
machine = "slurm"
scaling = "weak"
nodes = [1, 2, 4]
walltime = "5:00"
at_once = 3

[shapes.node]
slots = 2

[workload]
tasks_per_slot = 10
lengths_s = [0.01]

[job]
set_env = [{variables}]
"""


MINE = """
import sys
from exex import python_app

@python_app
def square(x):
    return x * x

if __name__ == "__main__":
    print(sum(square(i).result() for i in range(4)), sys.argv, flush=True)
    square(5)  # nobody waits for it but the workload
"""


@pytest.fixture(scope="module")
def cluster():
    if why := why_not():
        pytest.skip(why)
    with Cluster(nodes=4) as cluster:
        yield cluster


def test_a_script_of_the_users_is_timed(launch):
    (launch.cwd / "mine.py").write_text(MINE)
    workload = str(ROOT / "exex" / "campaign" / "workload.py")
    argv = [sys.executable, "-m", "exex", "run", "-n", "1", workload, "--out", "r.json", "--point", "p", "--", "mine.py", "--n", "3"]
    done = launch.finish(launch.start(argv, PYTHONPATH=str(ROOT), CAMPAIGN_BEGAN=repr(time.time())))
    assert done.status == 0 and "14 ['mine.py', '--n', '3']" in done.out, done.err
    result = json.loads((launch.cwd / "r.json").read_text())
    assert result["point"] == "p" and result["workers"] == 1 and 0 < result["makespan_s"] < 60 and 0 < result["startup_s"] < 60


def test_a_campaign_from_plan_to_report(cluster, launch):
    if launch.family != "mpich":
        pytest.skip("with MPICH, whose ranks start by Slurm's pmi2")
    variables = {**MPI["mpich"][1], "SLURM_MPI_TYPE": "pmi2", "PYTHONPATH": str(ROOT)}
    (launch.cwd / "tiny.toml").write_text(FILE.format(variables=", ".join(f'"{name}={value}"' for name, value in variables.items())))

    def campaign(word, *options, status=0):
        argv = [sys.executable, "-m", "exex", "campaign", word, *options, "tiny.toml"]
        done = launch.finish(launch.start(argv, **{**cluster.environment, "PYTHONPATH": str(ROOT)}))
        assert done.status == status, (argv, done.out, done.err)
        return done.out

    assert "3 jobs on slurm: 0.58 node-hours at most" in campaign("plan")
    assert campaign("submit", "--wait").count(": job ") == 3
    assert campaign("status") == "3 jobs: 3 done\n"
    (launch.cwd / "tiny" / "node-10ms-n00002-r1" / "result.json").unlink()
    assert "node-10ms-n00002-r1                  ended without a result" in campaign("status", status=1)
    again = campaign("submit", "--wait")
    assert again.count(": job ") == 1 and "node-10ms-n00002-r1: job " in again and "(try 2)" in again
    assert "3 of 3 results" in campaign("collect")
    for result in json.loads((launch.cwd / "tiny" / "results.json").read_text()):
        run = result["run"]
        assert run["closed"] and run["done"] == result["tasks"] + result["slots"] and not run["failed"], "no-ops to warm up, and the tasks"
        assert 0.1 < run["utilisation"] <= 1 and run["rate_per_s"] > 0
    table = campaign("report")
    assert [line.split()[2] for line in table.splitlines()[1:4]] == ["1", "2", "4"]
    for result in json.loads((launch.cwd / "tiny" / "results.json").read_text()):
        assert result["tasks"] == 10 * result["slots"] and result["workers"] == result["nodes"]
        assert 0 < result["startup_s"] < 100 and 0.1 <= result["makespan_s"] < 60
        assert result["first_start_s"] < result["last_end_s"] <= result["makespan_s"] + 0.1
