"""Which launcher starts a sub-task, with which words, and what a script is told."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from exex.errors import ConfigError
from exex.launch import subtasks
from exex.launch.launchers import Layout
from exex.launch.started_by import started_by
from exex.launch.world import ExpectedWorld

PAIR = Layout(nodes=2, ranks_per_node=4, hosts=("n1", "n2"))


def test_the_worlds_own_launcher_starts_sub_tasks(tmp_path: Path) -> None:
    (tmp_path / "mpiexec").write_text("")
    (tmp_path / "mpiexec").chmod(0o755)
    task = subtasks.sub_task(PAIR, {subtasks.STARTED_BY: f"Hydra mpiexec:{tmp_path}"})
    assert task.prefix[0] == str(tmp_path / "mpiexec")
    assert "n1,n2" in task.prefix and "8" in task.prefix


def test_srun_is_found_on_the_path() -> None:
    env = {subtasks.STARTED_BY: "srun:", "SLURM_NNODES": "4", "HOME": "/h"}
    task = subtasks.sub_task(PAIR, env)
    assert task.prefix[0] == "srun" and "--overlap" in task.prefix
    assert task.environment == {subtasks.STARTED_BY: "srun:", "HOME": "/h"}


def test_a_launcher_that_counts_nodes_is_told_of_all() -> None:
    env = {"EXEX_SUBTASK_LAUNCHER": "ibrun", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-4]", "SLURM_JOB_NUM_NODES": "4"}
    prefix = subtasks.sub_task(Layout(nodes=2, ranks_per_node=4, hosts=("n3", "n4")), env).prefix
    assert prefix[prefix.index("-o") + 1] == "8"
    with pytest.raises(ConfigError, match="neighbours"):
        subtasks.sub_task(Layout(nodes=2, ranks_per_node=4, hosts=("n1", "n4")), env)


def test_nodes_that_were_granted_different_accelerators() -> None:
    assert subtasks.mask_words("DEVICES", {"n1": ["0", "1"], "n2": ["0", "1"]}) == []
    assert subtasks.mask_words("", {"n1": ["0"], "n2": ["1"]}) == []
    here = socket.gethostname()
    words = subtasks.mask_words("DEVICES", {"elsewhere": ["0"], here: ["2", "3"]})
    env = {"EXEX_STARTED_BY": "srun:"}
    task = subtasks.sub_task(PAIR, env, words)
    assert task.prefix[-len(words) :] == words and task.variables["EXEX_MPI_PREFIX"].endswith(shlex.join(words))
    shown = subprocess.run([*words, "sh", "-c", 'echo $DEVICES "$0"', "a b"], capture_output=True, text=True, check=True).stdout
    assert shown == "2,3 a b\n"
    words = subtasks.mask_words("DEVICES", {"elsewhere": ["0"], "nowhere": ["1"]})
    refused = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    assert refused.returncode == 125 and "accelerators were granted on elsewhere, nowhere" in refused.stderr


def test_the_user_may_choose(tmp_path: Path) -> None:
    """Here one whose sub-tasks need the launch helper, and nodes that the world has left free."""
    env = {"EXEX_STARTED_BY": "srun:", "EXEX_SUBTASK_LAUNCHER": "aprun"}
    layout = Layout(nodes=2, ranks_per_node=4, hosts=("nid00012", "nid00013"))
    with pytest.raises(ConfigError, match="aprun starts programs only from where the job script runs"):
        subtasks.sub_task(layout, env)
    prefix = subtasks.sub_task(layout, {**env, "EXEX_LAUNCH_HELPER": str(tmp_path)}).prefix
    assert prefix[:2] == [sys.executable, "-I"]
    words = prefix[prefix.index("aprun") :]
    assert words[words.index("-n") + 1] == "8" and "-L" not in words


def test_what_a_script_is_told() -> None:
    task = subtasks.sub_task(PAIR, {subtasks.STARTED_BY: "srun:"})
    told = task.variables
    assert shlex.split(told["EXEX_MPI_PREFIX"]) == task.prefix
    assert told["PARSL_MPI_PREFIX"] == told["PARSL_SRUN_PREFIX"] == told["EXEX_MPI_PREFIX"]
    assert (told["EXEX_NODES"], told["EXEX_NUM_NODES"], told["EXEX_RANKS_PER_NODE"], told["EXEX_NUM_RANKS"]) == ("n1,n2", "2", "4", "8")
    assert (told["PARSL_NUM_NODES"], told["PARSL_RANKS_PER_NODE"], told["PARSL_NUM_RANKS"]) == ("2", "4", "8")


def test_an_unknown_launcher_is_named() -> None:
    with pytest.raises(ConfigError, match=r"that PMIx has started: set --subtask-launcher .*srun"):
        subtasks.sub_task(PAIR, {subtasks.STARTED_BY: "PMIx:/opt"})


def test_alone_in_the_world_it_is_what_mpiexec_is() -> None:
    launcher, program = subtasks.find_launcher({"PATH": os.environ["PATH"]})
    assert launcher.name in ("mpiexec-hydra", "mpiexec-openmpi")
    assert os.path.dirname(program) in (os.path.dirname(sys.executable), "")


def test_where_a_guards_launcher_lies() -> None:
    assert started_by(ExpectedWorld("none"), 1) == ""
    here = os.path.dirname(os.path.realpath("/proc/self/exe"))
    assert started_by(ExpectedWorld("Hydra mpiexec"), os.getpid()) == f"Hydra mpiexec:{here}"
    assert started_by(ExpectedWorld("srun"), 2**22) == "srun:"
