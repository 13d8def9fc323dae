"""Batch jobs as they are asked for: what is left open is filled in, and what the machine cannot run is refused."""

from __future__ import annotations

import pytest

from exex.config import Config
from exex.errors import ConfigError
from exex.launch.job import plan_job, variables
from exex.launch.jobscript import world_layout
from exex.launch.machines import load_machine

ENV = {"HOME": "/nobody"}


def plan(machine, /, *, words=(), config=None, script=("wf.py",), **values):
    values = {"walltime": "30:00", **values}
    return plan_job(
        load_machine(machine, ENV), values, config=config or Config(), words=words, script_args=script, python="/usr/bin/python3"
    )


# ---- what is left open ----


def test_defaults():
    job = plan("slurm")
    assert (job.nodes, job.walltime_s, job.account, job.queue, job.name) == (1, 1800, None, None, "wf")
    assert (job.ranks_per_node, job.slots, job.chain, job.python, job.launcher) == (1, None, 0, "/usr/bin/python3", "srun")
    assert (job.exex_args, job.script_args, job.run_dir) == ((), ("wf.py",), "runinfo")


@pytest.mark.parametrize(
    "text, seconds", [("90", 90), ("30:00", 1800), ("3:00:00", 10800), ("1-12:00:00", 129600), ("1.5", 1.5), ("168:00:00", 604800)]
)
def test_walltime(text, seconds):
    assert plan("slurm", walltime=text).walltime_s == seconds


def test_the_default_queue_is_the_machines():
    assert plan("perlmutter-cpu").queue.name == "regular"
    assert plan("perlmutter-cpu", queue="debug").queue.name == "debug"
    assert plan("slurm", queue="some").queue.options == ("--partition=some",)


@pytest.mark.parametrize(
    "script, chars, name",
    [
        ("wf.py", 200, "wf"),
        ("dir/my run.v2.py", 200, "my-run.v2"),
        ("2026.py", 200, "exex-2026"),
        ("-x.py", 200, "exex--x"),
        ("ä$(rm).py", 200, "exex--rm-"),
        ("a-very-long-name-of-a-script.py", 15, "a-very-long-nam"),
    ],
)
def test_the_name_is_made_of_the_scripts(script, chars, name):
    machine = "slurm" if chars == 200 else "blue-waters"
    assert plan(machine, script=(script,)).name == name


@pytest.mark.parametrize(
    "machine, values, slots, ranks, words",
    [
        ("theta", {"nodes": "128", "account": "X"}, 64, 1, ("--slots", "64")),
        ("theta", {"nodes": "128", "account": "X", "shape": "core"}, 1, 64, ("--slots", "1")),
        ("theta", {"nodes": "128", "account": "X", "ranks_per_node": "4"}, 16, 4, ("--slots", "16")),
        ("theta", {"nodes": "128", "account": "X", "shape": "core", "ranks_per_node": "16"}, 4, 16, ("--slots", "4")),
        ("frontier", {"account": "ABC123"}, 56, 1, ("--slots", "56")),
        ("aurora", {"nodes": "256", "account": "X", "ranks_per_node": "12"}, 8, 12, ("--slots", "8")),
        ("stampede3", {"queue": "spr"}, 112, 1, ("--slots", "112")),
        ("slurm", {"ranks_per_node": "4"}, None, 4, ()),
    ],
)
def test_the_shape_uses_all_cores_that_jobs_may_use(machine, values, slots, ranks, words):
    job = plan(machine, **values)
    assert (job.slots, job.ranks_per_node) == (slots, ranks)
    assert job.exex_args[: len(words)] == words


def test_slots_as_they_are_asked_for():
    job = plan("theta", nodes="128", account="X", config=Config(slots=256), words=("--slots", "256"))
    assert (job.slots, job.exex_args) == (256, ("--slots", "256"))
    job = plan("slurm", config=Config(slots=8), words=("--slots", "8"))
    assert (job.slots, job.cores) == (8, 8)


def test_large_jobs_may_take_longer_to_start():
    assert plan("slurm", nodes="128").exex_args == ()
    assert plan("slurm", nodes="129").exex_args == ("--start-timeout-s", "300")
    given = ("--start-timeout-s", "90")
    assert plan("slurm", nodes="129", config=Config(start_timeout_s=90), words=given).exex_args == given
    assert plan("slurm", nodes="129", config=Config(start_timeout_s=900)).exex_args == ()


@pytest.mark.parametrize(
    "values, python",
    [
        ({}, "/usr/bin/python3"),
        ({"venv": "/v"}, "/v/bin/python"),
        ({"venv": "/v/"}, "/v/bin/python"),
        ({"venv": "/v", "python": "/p"}, "/p"),
        ({"python": "python3.12"}, "python3.12"),
    ],
)
def test_which_python(values, python):
    assert plan("slurm", **values).python == python


@pytest.mark.parametrize(
    "chain, words, config, args",
    [
        ("0", (), {}, ()),
        ("2", (), {}, ("--journal", "wf.journal", "--resume")),
        ("2", ("--journal", "j"), {"journal": "j"}, ("--journal", "j", "--resume")),
        ("2", ("--journal", "j", "--resume"), {"journal": "j", "resume": True}, ("--journal", "j", "--resume")),
        ("0", ("--journal", "j"), {"journal": "j"}, ("--journal", "j", "--resume")),
        ("0", ("--journal", "j", "--no-resume"), {"journal": "j"}, ("--journal", "j", "--no-resume")),
        ("2", ("--config", "f"), {"journal": "j", "resume": True}, ("--config", "f")),
    ],
)
def test_a_script_that_is_submitted_again_goes_on(chain, words, config, args):
    job = plan("slurm", chain=chain, words=words, config=Config(**config))
    assert (job.chain, job.exex_args) == (int(chain), args)


def test_site_options():
    assert plan("theta", nodes="128", account="X").site["mcdram"] == "cache"
    assert plan("theta", account="X", queue="debug-flat-quad").site["mcdram"] == "flat"
    site = plan("theta", account="X", queue="debug-flat-quad", site=("mcdram=split", "numa=snc4")).site
    assert site == {"mcdram": "split", "numa": "snc4", "filesystems": "home,theta-fs0"}


def test_variables_are_taken_as_they_are():
    assert variables({"set_env": ("A=", "B=a b=c $X", "A=2\n3")}) == {"A": "2\n3", "B": "a b=c $X"}


@pytest.mark.parametrize("walltime, notice_s", [("3:00:00", 120), ("10:00", 120), ("5:00", 60), ("10", 2)])
def test_notice_fits_the_walltime(walltime, notice_s):
    assert plan("slurm", walltime=walltime).notice_s == notice_s


# ---- what the launcher is asked for ----


@pytest.mark.parametrize(
    "machine, values, layout",
    [
        ("theta", {"nodes": "128", "account": "X"}, (128, 1, 64, 0, 1, False)),
        ("theta", {"nodes": "128", "account": "X", "shape": "core"}, (128, 64, 1, 0, 1, True)),
        ("perlmutter-gpu", {"nodes": "2"}, (2, 1, 64, 4, 1, False)),
        ("perlmutter-gpu", {"nodes": "2", "ranks_per_node": "4"}, (2, 4, 16, 1, 1, True)),
        ("perlmutter-gpu", {"nodes": "2", "shape": "core"}, (2, 64, 1, 0, 1, True)),
        ("polaris", {"nodes": "10", "account": "X"}, (10, 1, 32, 0, 1, False)),
        ("slurm", {"nodes": "3", "ranks_per_node": "2"}, (3, 2, 1, 0, 1, False)),
    ],
)
def test_layout(machine, values, layout):
    found = world_layout(plan(machine, **values))
    assert layout == (
        found.nodes,
        found.ranks_per_node,
        found.cores_per_rank,
        found.gpus_per_rank,
        found.threads_per_core,
        found.bind,
    )
    assert (found.hosts, found.ranks, found.walltime_s) == ((), None, None)


def test_more_slots_than_cores_use_hardware_threads():
    job = plan("theta", nodes="128", account="X", ranks_per_node="4", config=Config(slots=64), words=("--slots", "64"))
    assert world_layout(job).threads_per_core == 4


# ---- what is refused ----


@pytest.mark.parametrize(
    "machine, values, says",
    [
        ("slurm", {"walltime": None}, "--walltime is missing"),
        ("slurm", {"walltime": "3h"}, "--walltime: '3h' is no duration; accepted: seconds, MM:SS, HH:MM:SS or D-HH:MM:SS"),
        ("slurm", {"walltime": "0"}, "--walltime is '0'; accepted: more than 0 seconds"),
        ("slurm", {"nodes": "0"}, "--nodes is '0'; accepted: an integer, at least 1"),
        ("slurm", {"nodes": "two"}, "--nodes is 'two'; accepted: an integer, at least 1"),
        ("slurm", {"chain": "-1"}, "--chain is '-1'; accepted: an integer, at least 0"),
        ("slurm", {"ranks_per_node": "0"}, "--ranks-per-node is '0'; accepted: an integer, at least 1"),
        ("theta", {"nodes": "4393", "account": "X"}, "theta has 4392 nodes, not 4393"),
        (
            "theta",
            {"nodes": "4", "account": "X"},
            "the queue default of theta takes 128 to 4100 nodes, not 4; queues that would take the job: debug-cache-quad, debug-flat-quad",
        ),
        (
            "theta",
            {"nodes": "8", "account": "X", "walltime": "2:00:00", "queue": "debug-cache-quad"},
            "the queue debug-cache-quad of theta lets 8 nodes run for 01:00:00, not 02:00:00",
        ),
        (
            "theta",
            {"nodes": "200", "account": "X", "walltime": "3:00:01"},
            "the queue default of theta lets 200 nodes run for 03:00:00, not 03:00:01",
        ),
        (
            "frontera",
            {"nodes": "2"},
            "the queue normal of frontera takes 3 to 512 nodes, not 2; queues that would take the job: small, development, flex, rtx",
        ),
        ("polaris", {"nodes": "560", "account": "X"}, "the queue prod of polaris takes 10 to 496 nodes, not 560"),
        ("perlmutter-cpu", {"queue": "regualr"}, "perlmutter-cpu has no queue 'regualr'; the nearest is 'regular'; all: regular, debug,"),
        ("theta", {"nodes": "128"}, "theta runs no job without --account, a project such as Catalyst"),
        ("frontier", {"account": "m1234"}, "--account is 'm1234'; accounts of frontier are names such as ABC123, matching "),
        ("slurm", {"account": "a b"}, "--account is 'a b'; accounts of slurm are names, matching "),
        ("slurm", {"account": "x\n#SBATCH --uid=0"}, "--account is 'x\\n#SBATCH --uid=0'; accounts of slurm are"),
        ("slurm", {"queue": "x\n#"}, "--queue is 'x\\n#', which is no name of a queue"),
        ("slurm", {"name": "a b"}, "--name is 'a b'; accepted: a letter, then up to 199 letters, digits, '_', '-' and '.'"),
        ("blue-waters", {"name": "sixteen-letters-"}, "--name is 'sixteen-letters-'; accepted: a letter, then up to 14 letters,"),
        ("slurm", {"shape": "cores"}, "--shape is 'cores'; accepted: node or core"),
        ("slurm", {"shape": "core"}, "slurm does not say how many cores a node has: give --ranks-per-node"),
        ("frontier", {"account": "ABC123", "ranks_per_node": "129"}, "129 ranks with 1 slots need 129 hardware threads; a node of frontier has 128, and 56 cores for jobs"),
        ("perlmutter-cpu", {"queue": "debug", "chain": "1"}, "--chain: in the queue debug of perlmutter-cpu jobs may not submit others"),
        ("slurm", {"set_env": ("A",)}, "--set-env is 'A'; accepted: NAME=VALUE"),
        ("slurm", {"set_env": ("A B=1",)}, "--set-env is 'A B=1'; accepted: NAME=VALUE"),
        ("slurm", {"module": ("a; rm",)}, "--module is 'a; rm'; accepted: a name without spaces"),
        ("slurm", {"setup": ("",)}, "--setup is ''; accepted: a line"),
        ("slurm", {"directive": ("A 1",)}, "--directive is 'A 1'; accepted: a line that begins with '-'"),
        ("slurm", {"directive": ("-A 1\nrm",)}, "--directive is '-A 1\\nrm'; accepted: a line that begins with '-'"),
        ("slurm", {"site": ("a=1",)}, "--site a: slurm has no site options"),
        ("polaris", {"nodes": "10", "account": "X", "site": ("filesystem=home",)}, "--site filesystem is no option of polaris; the nearest is filesystems; all: filesystems"),
        ("polaris", {"nodes": "10", "account": "X", "site": ("filesystems=",)}, "--site filesystems is ''; accepted: text of one line without quotation marks"),
        ("laptop", {}, "laptop has no batch system: start the job with `exex run`"),
    ],
)  # fmt: skip
def test_what_the_machine_cannot_run(machine, values, says):
    with pytest.raises(ConfigError) as caught:
        plan(machine, **values)
    assert str(caught.value).startswith(says)


def test_a_chain_needs_resume():
    with pytest.raises(ConfigError, match="--chain: the next job goes on by --resume"):
        plan("slurm", chain="1", words=("--journal", "j", "--no-resume"), config=Config(journal="j"))


def test_too_many_slots():
    with pytest.raises(ConfigError, match="1 ranks with 257 slots need 257 hardware threads; a node of theta has 256, and 64 cores"):
        plan("theta", nodes="128", account="X", config=Config(slots=257), words=("--slots", "257"))
