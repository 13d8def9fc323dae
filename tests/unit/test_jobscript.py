"""Job scripts: golden ones for every machine, and what they do under a real bash.

`python -m tests.unit.test_jobscript --write` writes the golden scripts into tests/unit/jobscripts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exex.config import Config
from exex.errors import ConfigError
from exex.launch import data
from exex.launch.job import plan_job
from exex.launch.jobscript import fill_template
from exex.launch.machines import load_machine, machine_names
from exex.launch.submit import make_script

GOLDEN = Path(__file__).parent / "jobscripts"
NO_USER = {"HOME": "/nobody"}
PYTHON = "/home/ada/exex/bin/python"


def script(machine, /, env=NO_USER, *, words=(), config=None, args=("workflow.py",), python=PYTHON, **values):
    job = plan_job(
        load_machine(machine, env), {"walltime": "01:00:00", **values}, config=config or Config(), words=words, script_args=args,
        python=python,
    )  # fmt: skip
    return make_script(job, env)


# ---- golden scripts ----

OF_MACHINES = {
    "aurora": {"nodes": "256", "account": "Ocean"},
    "blue-waters": {"nodes": "8192", "walltime": "24:00:00"},
    "blue-waters-xk": {"nodes": "16", "account": "baxx"},
    "cobalt": {"nodes": "4", "queue": "default"},
    "comet": {"nodes": "8", "account": "abc123"},
    "cori-haswell": {"nodes": "2", "queue": "debug", "walltime": "30:00"},
    "cori-knl": {"nodes": "64", "account": "m1234"},
    "frontera": {"nodes": "4", "module": ("python3",)},
    "frontier": {"nodes": "184", "account": "ABC123", "walltime": "12:00:00"},
    "midway": {"nodes": "4", "account": "pi-ada"},
    "pbs": {"nodes": "8", "config": Config(slots=32), "words": ("--slots", "32")},
    "perlmutter-cpu": {"nodes": "128", "account": "m1234", "venv": "/global/homes/a/ada/exex"},
    "perlmutter-gpu": {"nodes": "2", "account": "m1234", "queue": "debug", "walltime": "30:00"},
    "polaris": {"nodes": "10", "account": "Ocean"},
    "slurm": {"nodes": "8", "set_env": ("SLURM_MPI_TYPE=pmi2",)},
    "stampede3": {"nodes": "4", "queue": "spr"},
    "summit": {"nodes": "4", "account": "ABC123"},
    "theta": {"nodes": "128", "account": "Catalyst", "walltime": "03:00:00"},
}
OTHERS = {
    "chain-slurm": ("perlmutter-cpu", {"nodes": "16", "account": "m1234", "chain": "3", "walltime": "48:00:00"}),
    "chain-pbs": ("polaris", {"nodes": "25", "account": "Ocean", "chain": "3", "walltime": "06:00:00"}),
    "chain-alps": ("blue-waters", {"nodes": "64", "chain": "3"}),
    "chain-cobalt": ("theta", {"nodes": "256", "account": "Catalyst", "chain": "3", "walltime": "06:00:00"}),
    "chain-lsf": ("summit", {"nodes": "46", "account": "ABC123", "chain": "3", "walltime": "06:00:00"}),
    "staged-slurm": ("comet", {"nodes": "8", "account": "abc123", "config": Config(stage="env.tar.zst"), "words": ("--stage", "env.tar.zst")}),
    "staged-pbs": (
        "polaris",
        {"nodes": "10", "account": "Ocean", "chain": "1", "config": Config(stage_file=("a b:t",)), "words": ("--stage-file", "a b:t")},
    ),
    "staged-alps": ("blue-waters", {"nodes": "64", "config": Config(stage="e.tar"), "words": ("--stage", "e.tar")}),
    "rank-per-core": ("theta", {"nodes": "128", "account": "Catalyst", "shape": "core"}),
    "ranks-per-node": ("perlmutter-gpu", {"nodes": "4", "account": "m1234", "ranks_per_node": "4"}),
    "everything": (
        "polaris",
        {
            "nodes": "10",
            "account": "Ocean",
            "queue": "debug-scaling",
            "name": "everything",
            "venv": "/home/ada/my exex",
            "module": ("conda", "cray-hdf5/1.14"),
            "setup": ("ulimit -c 0", 'echo "nodes: $(sort -u "$PBS_NODEFILE" | wc -l)"'),
            "directive": ("-m abe",),
            "site": ("filesystems=home:grand",),
            "set_env": ("TITLE=it's $mine", "FI_CXI_RX_MATCH_MODE=hybrid"),
            "config": Config(run_dir="/lus/grand/runs", retries=1, journal="ocean.journal"),
            "words": ("--run-dir", "/lus/grand/runs", "--retries", "1", "--journal", "ocean.journal"),
            "args": ("workflow.py", "--size", "100", "two words", "it's", 'a "b"', "$HOME", "back`tick`", "*", "", "ä\nb"),
        },
    ),
}


def golden_scripts():
    """Name and text of every golden script."""
    for machine, values in OF_MACHINES.items():
        yield machine, script(machine, **values)
    for name, (machine, values) in OTHERS.items():
        yield name, script(machine, **values)


@pytest.mark.parametrize("name, text", [pytest.param(name, text, id=name) for name, text in golden_scripts()])
def test_golden(name, text):
    assert text == (GOLDEN / f"{name}.sh").read_text(), "right? then: python -m tests.unit.test_jobscript --write"


def test_every_machine_has_a_golden_script():
    assert OF_MACHINES.keys() == set(machine_names(NO_USER)) - {"laptop"}
    assert {path.stem for path in GOLDEN.glob("*.sh")} == OF_MACHINES.keys() | OTHERS.keys()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.sh")), ids=lambda path: path.stem)
def test_bash_understands_it(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.sh")), ids=lambda path: path.stem)
def test_shellcheck_has_nothing_to_say(path):
    done = subprocess.run(["shellcheck", "--severity=style", "--exclude=SC1091,SC2016", path], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.sh")), ids=lambda path: path.stem)
def test_directives_come_before_the_first_command(path):
    commands = False
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        is_directive = line.startswith(("#SBATCH", "#PBS", "#COBALT", "#BSUB"))
        assert not (is_directive and commands), line
        if is_directive and "COBALT" in line:
            assert number > 1 and all(other.startswith("#COBALT") for other in path.read_text().splitlines()[1 : number - 1])
        commands |= bool(line.strip()) and not line.startswith("#")


# ---- templates ----


def test_a_line_without_a_block_is_left_out():
    template = "a @{x}\n@{empty}\n\n@{empty}\n\n@{two}\n\n  @{empty}\nb@{empty}c\n@{empty}"
    assert fill_template(template, {"x": "X", "empty": "", "two": "1\n2"}) == "a X\n\n1\n2\n\n  \nbc\n"


def test_what_belongs_to_the_shell_stays():
    assert fill_template('echo $x ${x@Q} a@b.c "$@" @ {x}', {}) == 'echo $x ${x@Q} a@b.c "$@" @ {x}\n'


def test_blocks_are_not_looked_into():
    assert fill_template("@{a}", {"a": "@{b}\n\n\n\\1", "b": "no"}) == "@{b}\n\n\n\\1\n"


def test_an_unknown_place_is_an_error():
    with pytest.raises(ConfigError, match=r"the job-script template has @\{walltme\}; there are walltime"):
        fill_template("@{walltme}", {"walltime": "1"})


@pytest.mark.parametrize("name", data.names("jobscripts", NO_USER, ".sh"))
def test_templates_do_not_branch_on_what_we_fill_in(name):
    for line in data.read("jobscripts", name, NO_USER, ".sh").text.splitlines():
        assert not (line.startswith(("if ", "case ", "for ")) and "@{" in line), line


def test_cores_that_nobody_knows():
    with pytest.raises(ConfigError, match="pbs does not say how many cores a node has, and its batch system must be told: give --slots"):
        script("pbs")


def test_staging_is_told_of_the_nodes_own_disk():
    staged = script("comet", account="abc123", config=Config(stage_file=("a",)), words=("--stage-file", "a"))
    assert 'export EXEX_SCRATCH="/scratch/$USER/$SLURM_JOB_ID"\n' in staged
    assert "EXEX_SCRATCH" not in script("comet", account="abc123")


STAGES = {"config": Config(stage_file=("a b",)), "words": ("--stage-file", "a b")}


def test_a_template_without_a_place_for_it_has_ranks_that_stage_by_themselves(site):
    here = site()
    template = data.read("jobscripts", "slurm", NO_USER, ".sh").text.replace("@{stage}\n", "").replace("@{unstage}\n", "")
    (here.top / "exex" / "jobscripts").mkdir()
    (here.top / "exex" / "jobscripts" / "slurm.sh").write_text(template)
    text = here.script(**STAGES).read_text()
    assert "exex.stage" not in text and "-m exex.run --slots 4 --stage-file 'a b' \\\n" in text


def test_a_launcher_of_another_batch_system():
    with pytest.raises(ConfigError, match="aprun does not start jobs of Slurm, but of PBS, Cobalt"):
        script("slurm", launcher="aprun")


# ---- under bash ----

LAUNCHER = """
about = "a program that notes how it was called"
program = "{program}"
tried = true
world_is = "none"
batch_systems = ["Slurm", "PBS", "Cobalt", "LSF"]
from_compute_nodes = true
room = "cores"
uneven = "packed"
left_out = ["cores_per_rank", "threads_per_core", "gpus_per_rank"]
words = ["-n {{ranks}}"]
"""
PROGRAM = f"""#!{sys.executable}
import json, os, signal, sys, time
told = []
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: told.append(signal.Signals(number).name))
with open("called.new", "w") as file:
    json.dump([sys.argv[1:], dict(os.environ), os.getcwd()], file)
os.rename("called.new", "called")
until = time.monotonic() + float(os.environ.get("TEST_WAIT", 0))
while time.monotonic() < until and not told:
    time.sleep(0.01)
if told:
    print(*told, flush=True)
if "TEST_STAGED" in os.environ and "exex.stage" in sys.argv:
    with open(os.path.join(os.environ["EXEX_JOB_DIR"], "staged"), "w") as file:
        file.write(os.environ["TEST_STAGED"] + chr(10))
if os.environ.get("TEST_STATUS", "none") != "none":
    with open(os.path.join(os.environ["EXEX_JOB_DIR"], "status"), "w") as file:
        file.write(os.environ["TEST_STATUS"] + chr(10))
sys.exit(int(os.environ.get("TEST_EXIT", 0)))
"""
SYSTEMS = {
    "Slurm": ("sbatch", {"SLURM_JOB_ID": "42"}, "42"),
    "PBS": ("qsub", {"PBS_JOBID": "42.server", "PBS_O_WORKDIR": "."}, "42.server"),
    "Torque": ("qsub", {"PBS_JOBID": "42.server", "PBS_O_WORKDIR": "."}, "42.server"),
    "Cobalt": ("qsub", {"COBALT_JOBID": "42"}, "42"),
    "LSF": ("bsub", {"LSB_JOBID": "42"}, "42"),
}


class Site:
    """A machine of the user's, whose launcher and batch system are programs that take notes."""

    def __init__(self, top: Path, system: str, launcher: str = "notes") -> None:
        self.top, self.system = top, system
        submit, self.variables, self.job = SYSTEMS[system]
        for folder in ("exex/configs", "exex/launchers", "bin", "work"):
            (top / folder).mkdir(parents=True)
        program = top / "bin" / "launch it"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        resubmit = top / "bin" / submit
        resubmit.write_text('#!/bin/sh\necho "$(basename "$0")" "$@" "${EXEX_CHAIN-unset}" >> submitted\n')
        resubmit.chmod(0o755)
        (top / f"exex/launchers/{launcher}.toml").write_text(LAUNCHER.format(program=program))
        (top / "exex/configs/here.toml").write_text(
            f'description = "here"\nbatch_system = "{system}"\nlauncher = "{launcher}"\nnode.cores = 4\nenvironment = {{ A = "$HOME/b" }}\n'
        )

    def script(self, **values):
        """A script for this site, as a file."""
        path = self.top / "work" / "job.sh"
        path.write_text(script("here", {"XDG_CONFIG_HOME": str(self.top)}, python="/the/python", **values))
        path.chmod(0o755)
        return path

    def start(self, path, **variables):
        """Start the script as the batch system would."""
        variables = {"TEST_STATUS": "0", **variables}
        env = {"PATH": f"{self.top / 'bin'}:{os.environ['PATH']}", "HOME": str(self.top), **self.variables, **variables}
        return subprocess.Popen(
            ["bash", path], cwd=self.top / "work", env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def run(self, path, **variables):
        """Its exit status, stdout and stderr."""
        process = self.start(path, **variables)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def called(self):
        """Words, environment and directory of the launcher."""
        return json.loads((self.top / "work" / "called").read_text())

    def submitted(self):
        """Lines of what was submitted."""
        path = self.top / "work" / "submitted"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def site(tmp_path):
    return lambda system="Slurm", **values: Site(tmp_path / "top", system, **values)


AWKWARD = ["two words", "it's", 'a "b"', "$HOME", "$(touch broken)", "`touch broken`", "new\nline", "", "*", "~", "a\\b", "-x", "ä", "&", ";"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_arguments_arrive_as_they_are(site, system):
    here = site(system)
    path = here.script(args=("my workflow.py", *AWKWARD), set_env=("B=$HOME it's\n",), nodes="3")
    assert here.run(path) == (0, "", "")
    words, env, directory = here.called()
    options = words[words.index("exex.run") + 1 : words.index("--")]
    if options[0] == "--walltime":
        assert 3590 <= int(options[1]) <= 3600
        options = options[2:]
    assert words[: words.index("exex.run") + 1] == ["-n", "3", "/the/python", "-m", "exex.run"]
    assert options == ["--slots", "4"]
    assert words[words.index("--") + 1 :] == ["my workflow.py", *AWKWARD]
    assert (env["A"], env["B"]) == (f"{here.top}/b", "$HOME it's\n")
    assert directory == str(here.top / "work")
    assert env["EXEX_JOB_DIR"] == f"{here.top}/work/runinfo/job-{here.job}"
    assert sorted(os.listdir(here.top / "work")) == ["called", "job.sh", "runinfo"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12), max_size=5))
def test_any_arguments_arrive_as_they_are(tmp_path_factory, args):
    here = Site(tmp_path_factory.mktemp("any") / "top", "Slurm")
    assert here.run(here.script(args=("workflow.py", *args)))[0] == 0
    words = here.called()[0]
    assert words[words.index("--") + 1 :] == ["workflow.py", *args]


@pytest.mark.parametrize("system", SYSTEMS)
def test_ranks_start_from_what_was_staged(site, system):
    here = site(system)
    path = here.script(args=("my workflow.py", *AWKWARD), **STAGES)
    assert here.run(path, TEST_STAGED="read -r x; $HOME 'it'")[0] == 0
    words, _, _ = here.called()
    assert words[:6] == ["-n", "1", "/bin/sh", "-c", "read -r x; $HOME 'it'", "exex"]
    assert words[-len(AWKWARD) - 6 :] == ["--slots", "4", "--stage-file", "a b", "--", "my workflow.py", *AWKWARD]
    assert ("--walltime" in words) == (system not in ("Slurm", "Cobalt"))


def test_the_step_that_stages_has_the_words_of_the_ranks(site):
    here = site()
    status, out, err = here.run(here.script(args=("my workflow.py", *AWKWARD), **STAGES))
    assert (status, out, err) == (1, "", "exex: the job ends, because it could not be staged\n")
    words = ["-n", "1", "/the/python", "-m", "exex.stage", "--slots", "4", "--stage-file", "a b", "--", "my workflow.py", *AWKWARD]
    assert here.called()[0] == words


def test_what_a_failed_world_may_have_left_is_removed(site):
    here = site()
    assert here.run(here.script(**STAGES), TEST_STAGED="text", TEST_STATUS="none", TEST_EXIT="5")[0] == 5
    assert here.called()[0] == ["-n", "1", "/bin/sh", "-c", "text", "exex", "--remove"]


def test_slurm_and_cobalt_tell_the_end_themselves(site):
    here = site("Slurm")
    here.run(here.script())
    assert "--walltime" not in here.called()[0]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("launcher, own, status", [("137", "0", 0), ("0", "3", 3), ("9", None, 9), ("0", None, 1)])
def test_the_jobs_own_status_counts(site, system, launcher, own, status):
    here = site(system)
    assert here.run(here.script(), TEST_EXIT=launcher, TEST_STATUS=own or "none")[0] == status


def test_a_status_of_an_earlier_run_does_not_count(site):
    here = site()
    path = here.script()
    assert here.run(path, TEST_STATUS="5")[0] == 5
    assert here.run(path, TEST_EXIT="6", TEST_STATUS="none")[0] == 6


@pytest.mark.parametrize("system", SYSTEMS)
def test_outside_of_a_job_it_refuses(site, system):
    here = site(system)
    here.variables = {}
    status, out, err = here.run(here.script())
    assert (status, out) == (127, "") or (status, out) == (1, "")
    assert "this is a job script: submit it with " in err
    assert not (here.top / "work" / "called").exists()


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_chain_submits_the_next_job_and_counts_down(site, system):
    here = site(system)
    path = here.script(chain="2")
    status, out, _ = here.run(path, TEST_STATUS="75")
    assert (status, out) == (75, "exit status 75: submitting the next job; 1 more may follow it\n")
    kept = here.top / "work" / "runinfo" / f"job-{here.job}" / "job.sh"
    assert kept.read_text() == path.read_text() and os.access(kept, os.X_OK)
    option = {"PBS": "-v EXEX_CHAIN=1 ", "Torque": "-v EXEX_CHAIN=1 ", "Cobalt": "--env EXEX_CHAIN=1 "}.get(system, "")
    assert here.submitted() == [f"{SYSTEMS[system][0]} {option}{kept} {'unset' if option else '1'}"]
    assert "EXEX_CHAIN" not in here.called()[1]
    here.run(path, TEST_STATUS="75", EXEX_CHAIN="1")
    assert len(here.submitted()) == 2
    status, out, _ = here.run(path, TEST_STATUS="75", EXEX_CHAIN="0")
    assert (status, out, len(here.submitted())) == (75, "", 2)


@pytest.mark.parametrize("status", ["0", "1", "137"])
def test_a_chain_ends_with_the_work_or_an_error(site, status):
    here = site()
    assert here.run(here.script(chain="2"), TEST_STATUS=status)[0] == int(status)
    assert here.submitted() == []


def test_without_a_chain_nothing_is_submitted(site):
    here = site()
    assert here.run(here.script(), TEST_STATUS="75", EXEX_CHAIN="3")[0] == 75
    assert here.submitted() == []


def told(here, path, number, to_all=True, **variables):
    """Run a script whose launcher waits for a signal, and send it to all processes of the job, or to the shell alone."""
    process = here.start(path, TEST_WAIT="20", **variables)
    until = time.monotonic() + 20
    while not (here.top / "work" / "called").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(-process.pid if to_all else process.pid, number)
    out, _ = process.communicate(timeout=30)
    return process.returncode, out


@pytest.mark.parametrize("system", SYSTEMS)
def test_told_to_end_it_waits_for_the_ranks_and_ends_the_chain(site, system):
    here = site(system)
    assert told(here, here.script(chain="2"), signal.SIGTERM, TEST_STATUS="75") == (75, "SIGTERM\n")
    assert here.submitted() == []


def test_notice_is_passed_on_and_the_chain_goes_on(site):
    here = site("Slurm", launcher="srun")
    path = here.script(chain="2")
    assert "#SBATCH --signal=B:USR2@120\n" in path.read_text()
    status, out = told(here, path, signal.SIGUSR2, to_all=False, TEST_STATUS="75")
    assert (status, out.splitlines()[0], len(here.submitted())) == (75, "SIGUSR2", 1)


def test_launchers_that_would_die_of_the_signal_get_none(site):
    assert "USR2" not in site("Slurm").script().read_text()


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.sh"):
        path.unlink()
    for name, text in golden_scripts():
        (GOLDEN / f"{name}.sh").write_text(text)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    main()
