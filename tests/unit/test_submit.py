"""Handing a job script over: where it is kept, what batch systems answer, and the commands around it."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from exex import cli
from exex.config import Config
from exex.errors import ConfigError, StartError
from exex.launch.batch import SYSTEMS, clock, hours_and_minutes, job_id
from exex.launch.job import OPTIONS
from exex.launch.submit import Answer, keep_script, submit

# ---- answers ----


@pytest.mark.parametrize(
    "system, answer, job",
    [
        ("Slurm", "Submitted batch job 1234\n", "1234"),
        ("Slurm", "Submitted batch job 1234 on cluster perlmutter\n", "1234"),
        ("Slurm", "\n-----\n  Welcome to Frontera\n-----\n--> Verifying job...OK\nSubmitted batch job 77\n", "77"),
        ("Slurm", "sbatch: error: Batch job submission failed: Invalid account\n", None),
        ("PBS", "1234.polaris-pbs-01.hsn.cm.polaris.alcf.anl.gov\n", "1234.polaris-pbs-01.hsn.cm.polaris.alcf.anl.gov"),
        ("PBS", "1234\n", "1234"),
        ("PBS", "1234[].server\n", "1234[].server"),
        ("PBS", "qsub: waiting for job 1234.server to start\n", None),
        ("Torque", "INFO: Job submitted to account: baxx\n11235813.bw\n", "11235813.bw"),
        ("Cobalt", "528491\n", "528491"),
        ("Cobalt", "Job routed to queue \"debug-cache-quad\".\n528491\n", "528491"),
        ("LSF", "Job <123456> is submitted to default queue <batch>.\n", "123456"),
        ("LSF", "Job <123456> is submitted to queue <debug>.\n", "123456"),
        ("LSF", "Project ABC123 does not exist. Job not submitted.\n", None),
        ("LSF", "", None),
    ],
)
def test_job_id(system, answer, job):
    assert job_id(SYSTEMS[system], answer) == job


@pytest.mark.parametrize("seconds, text", [(1, "00:00:01"), (59.2, "00:01:00"), (3600, "01:00:00"), (604800, "168:00:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize("seconds, text", [(1, "0:01"), (60, "0:01"), (61, "0:02"), (3600, "1:00"), (86400, "24:00")])
def test_lsf_counts_minutes(seconds, text):
    assert hours_and_minutes(seconds) == text


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """An sbatch on PATH, and what `submit` makes of what it does: `sbatch(Answer(...))`."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    def call(answer):
        asked = []

        def run(argv):
            asked.append(argv)
            return answer

        found = submit(SYSTEMS["Slurm"], "/w/job.sh", {"PATH": str(program.parent)}, run)
        assert asked == [["sbatch", "/w/job.sh"]]
        return found

    return call


def test_the_answer_is_the_jobs_id(sbatch):
    assert sbatch(Answer(0, "Submitted batch job 5\n", "sbatch: lua: be patient\n")) == "5"


@pytest.mark.parametrize(
    "answer, says",
    [
        (Answer(1, "", "sbatch: error: Invalid qos\n"), "sbatch /w/job.sh ended with status 1; it said: sbatch: error: Invalid qos"),
        (Answer(1, "no\n", ""), "sbatch /w/job.sh ended with status 1; it said: no"),
        (Answer(1, "", ""), "sbatch /w/job.sh ended with status 1; it said: nothing"),
        (Answer(0, "all right\n", ""), "sbatch /w/job.sh ended well, but its answer names no job; it said: all right"),
        (Answer(0, "", "hm"), "sbatch /w/job.sh ended well, but its answer names no job; it said: hm"),
    ],
)
def test_answers_that_name_no_job(sbatch, answer, says):
    with pytest.raises(StartError) as caught:
        sbatch(answer)
    assert str(caught.value) == says


def test_no_batch_system_here(tmp_path):
    with pytest.raises(StartError, match=r"sbatch is not on PATH: submit /w/job\.sh on a login node of the machine"):
        submit(SYSTEMS["Slurm"], "/w/job.sh", {"PATH": str(tmp_path)})


# ---- the script ----


def test_a_script_is_kept_under_a_new_name(tmp_path):
    first, second, third = (keep_script(f"echo {n}\n", "wf", str(tmp_path)) for n in range(3))
    assert [first, second, third] == [str(tmp_path / name) for name in ("wf.sh", "wf-2.sh", "wf-3.sh")]
    assert (tmp_path / "wf.sh").read_text() == "echo 0\n"
    assert os.access(first, os.X_OK)  # Cobalt wants that


def test_nowhere_to_keep_it(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot write the job script .*/nowhere/wf\.sh: No such file or directory"):
        keep_script("", "wf", str(tmp_path / "nowhere"))


# ---- command lines ----


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """`invoke(words)` runs `exex WORDS` in a directory with a script `wf.py`, where nothing of the user's is set."""
    for name in list(os.environ):
        if name.startswith("EXEX_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work" / "wf.py").write_text("")

    def run(*words):
        return CliRunner().invoke(cli.main, [word for text in words for word in text.split()], prog_name="exex")

    return run


ASK = "--machine slurm --nodes 2 --walltime 10:00"


def test_jobscript_prints_the_script(invoke):
    done = invoke(f"jobscript {ASK} --retries 2 --progress wf.py --nodes x")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("#!/bin/bash\n") and done.stdout.endswith('\nexit "$status"\n')
    assert "-m exex.run --retries 2 --progress \\\n    -- wf.py --nodes x &\n" in done.stdout
    assert "#SBATCH --nodes=2\n" in done.stdout and "#SBATCH --time=00:10:00\n" in done.stdout


def test_the_walltime_is_the_batch_systems(invoke):
    assert "exex.run --walltime" not in invoke(f"jobscript {ASK} wf.py").stdout


def test_a_script_for_another_machine_need_not_be_here(invoke):
    assert "elsewhere.py" in invoke(f"jobscript {ASK} elsewhere.py").stdout


def test_help_shows_every_option(invoke):
    for command in ("jobscript", "submit"):
        text = " ".join(invoke(f"{command} --help").stdout.split())
        for option in OPTIONS:
            assert f"{option.option} {option.metavar} " in text and option.help in text
        for field in Config.fields_help():
            assert f"{field.option} " in text
        assert ("--dry-run" in text) == (command == "submit")


@pytest.mark.parametrize(
    "words, status, says",
    [
        ("wf.py", 2, "--machine is missing; `exex machines` lists them"),
        ("--machine slrm --walltime 1 wf.py", 2, "there is no machine 'slrm'; the nearest is 'slurm'"),
        ("--machine slurm wf.py", 2, "--walltime is missing"),
        (f"{ASK} --slots x wf.py", 2, "--slots is 'x'; accepted: an integer, at least 1, or auto"),
        (f"{ASK} --set-env EXEX_SLOT=1 wf.py", 2, "unknown variable EXEX_SLOT; the nearest is EXEX_SLOTS"),
        (f"{ASK} --set-env EXEX wf.py", 2, "--set-env is 'EXEX'; accepted: NAME=VALUE"),
        (f"{ASK} --resume wf.py", 2, "--resume needs --journal FILE"),
        (f"{ASK} --launcher srn wf.py", 2, "there is no launcher 'srn'; the nearest is 'srun'"),
    ],
)
@pytest.mark.parametrize("command", ["jobscript", "submit"])
def test_mistakes(invoke, command, words, status, says):
    done = invoke(f"{command} {words}")
    assert (done.exit_code, done.stdout) == (status, "")
    assert done.stderr.startswith(f"exex {command}: {says}") and "Traceback" not in done.stderr
    assert os.listdir() == ["wf.py"]


def test_variables_of_the_login_node_do_not_count(invoke, monkeypatch):
    monkeypatch.setenv("EXEX_SLOTS", "nonsense")
    assert invoke(f"jobscript {ASK} wf.py").exit_code == 0


def test_a_script_that_does_not_exist_is_not_submitted(invoke):
    done = invoke(f"submit {ASK} nothere.py")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("exex submit: the script nothere.py does not exist (current directory: ")


def test_dry_run_submits_nothing(invoke):
    done = invoke(f"submit --dry-run {ASK} wf.py")
    assert done.exit_code == 0
    assert done.stdout == invoke(f"jobscript {ASK} wf.py").stdout + "\n# sbatch wf.sh\n"
    assert os.listdir() == ["wf.py"]


def test_submit_prints_the_id(invoke, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ntest -x "$1" && echo Submitted batch job 31\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    done = invoke(f"submit {ASK} wf.py")
    assert (done.exit_code, done.stdout) == (0, "31\n")
    assert done.stderr == f"exex submit: the job script is {tmp_path}/work/wf.sh\n"
    program.write_text("#!/bin/sh\necho no >&2; exit 3\n")
    done = invoke(f"submit {ASK} wf.py")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.endswith("exex submit: sbatch " + f"{tmp_path}/work/wf-2.sh ended with status 3; it said: no\n")


def test_machines(invoke, tmp_path):
    folder = tmp_path / "config" / "exex" / "configs"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text('description = "of my own"\nbatch_system = "LSF"\nlauncher = "jsrun"\n')
    done = invoke("machines")
    assert done.exit_code == 0
    assert any(line.split() == ["mine", "LSF", "jsrun", "of", "my", "own"] for line in done.stdout.splitlines())
    assert invoke("machines show mine").stdout.startswith(f"mine: of my own\n\nfile          {folder}/mine.toml\n")
    (folder / "mine.toml").write_text("")
    for words in ("machines", "machines show mine"):
        done = invoke(words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"exex machines: {folder}/mine.toml: the key ")
