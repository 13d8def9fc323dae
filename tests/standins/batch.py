"""Stand-ins for batch systems: sbatch, the two qsub, bsub. A job is a process on this machine, in a fake allocation.

`FakeBatchSystem` puts them on PATH. They take what `batch_options` understands, keep a copy of the script for as long as the
job runs, give it the environment that the real one gives, and end it when its time is up.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PROGRAMS = Path(__file__).resolve().parent
sys.path.insert(0, str(PROGRAMS))  # the programs beside this file import each other by their short names

from allocation import FakeAllocation  # noqa: E402
from batch_options import Asked, bsub, cobalt, qsub, sbatch  # noqa: E402
from launching import play  # noqa: E402
from options import Refused  # noqa: E402

_KILL_WAIT_S = 5.0
_LATE_S = 15.0  # batch systems look at the clock now and then (Slurm has been seen to end a minute's job after 87 s)

BATCH_SYSTEMS = {"Slurm": "sbatch", "PBS": "qsub", "Torque": "qsub", "Cobalt": "qsub", "LSF": "bsub"}


class FakeBatchSystem:
    """A site with one batch system and one launcher.

    Args:
        system: a key of BATCH_SYSTEMS.
        launcher: of its jobs, one that has a stand-in; None for a site whose scripts start a real mpiexec.
        directory: new; for what the stand-ins leave.
        mpiexec: MPICH's, for the stand-in of the launcher.
        nodes: of the site.
        cores: of each node.

    Attributes:
        environment: of a login node, besides what this machine has.
    """

    def __init__(self, system: str, launcher: str | None, directory: Path, mpiexec: str, nodes: int = 4, cores: int = 4) -> None:
        self._directory = directory
        for folder in ("bin", "spool", "jobs"):
            (directory / folder).mkdir(parents=True)
        program = directory / "bin" / BATCH_SYSTEMS[system]
        code = f"import sys; sys.path.insert(0, {str(PROGRAMS)!r}); import batch; batch.main({system!r})"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -c {shlex.quote(code)} "$@"\n')
        program.chmod(0o755)
        site = {"launcher": launcher, "mpiexec": mpiexec, "nodes": nodes, "cores": cores}
        (directory / "site").write_text(json.dumps(site))
        home = directory / "home"
        home.mkdir()
        (home / ".bash_profile").write_text('PATH="$SITE_PATH"\n')
        self.environment = {
            "PATH": f"{directory}/bin:{os.environ['PATH']}",
            "HOME": str(home),
            "STANDIN_SITE": str(directory),
        }

    def ended(self, job: str, limit_s: float = 60.0) -> int:
        """Wait for a job's end; its exit status."""
        note = self._directory / "jobs" / job.partition(".")[0] / "ended"
        until = time.monotonic() + limit_s
        while not note.exists():
            assert time.monotonic() < until, f"job {job} did not end"
            time.sleep(0.05)
        return int(note.read_text())

    def jobs(self) -> list[str]:
        """Numbers of all jobs, in order."""
        return sorted((path.name for path in (self._directory / "jobs").iterdir()), key=int)

    def launches(self, job: str) -> list[dict[str, Any]]:
        """See `FakeAllocation.launches`."""
        log = self._directory / "jobs" / job.partition(".")[0] / "allocation" / "log"
        return [json.loads(line) for line in log.read_text().splitlines()]


# ---- a job ----


class System(NamedTuple):
    """How a batch system takes a job and starts it."""

    parse: Callable[[list[str]], Asked]
    keeps_environment: bool  # of the submitting shell
    starts_at_home: bool
    answer: str
    out: str  # default name of the output
    variables: Callable[[str, Asked, str], dict[str, str]]  # id, what was asked, directory of submission


SYSTEMS = {
    "Slurm": System(
        sbatch,
        True,
        False,
        "Submitted batch job {job}",
        "slurm-{job}.out",
        lambda job, asked, cwd: {
            "SLURM_JOB_ID": job,
            "SLURM_JOBID": job,
            "SLURM_SUBMIT_DIR": cwd,
            "SLURM_JOB_END_TIME": str(int(time.time() + asked.walltime_s)),
        },
    ),
    "PBS": System(
        qsub,
        False,
        True,
        "{job}.server",
        "{name}.o{job}",
        lambda job, asked, cwd: {"PBS_JOBID": f"{job}.server", "PBS_O_WORKDIR": cwd},
    ),
    "Cobalt": System(
        cobalt,
        False,
        False,
        "{job}",
        "{job}.output",
        lambda job, asked, cwd: {"COBALT_JOBID": job, "COBALT_ENDTIME": str(int(time.time() + asked.walltime_s))},
    ),
    "LSF": System(
        bsub,
        True,
        False,
        "Job <{job}> is submitted to default queue <batch>.",
        "{job}.out",
        lambda job, asked, cwd: {"LSB_JOBID": job, "LS_SUBCWD": cwd},
    ),
}
SYSTEMS["Torque"] = SYSTEMS["PBS"]


def main(name: str) -> None:
    """Be the program that submits, or, with STANDIN_JOB set, what watches a job."""
    if "STANDIN_JOB" in os.environ:
        _watch(json.loads(os.environ.pop("STANDIN_JOB")))
    else:
        play(BATCH_SYSTEMS[name], lambda argv: _submit(name, argv))


def _submit(name: str, argv: list[str]) -> int:
    system, top = SYSTEMS[name], Path(os.environ["STANDIN_SITE"])
    site = json.loads((top / "site").read_text())
    asked = system.parse(argv)
    if asked.nodes > site["nodes"]:
        raise Refused("Batch job submission failed: Node count specification invalid")
    number = 100
    while True:
        number += 1
        try:
            (top / "jobs" / str(number)).mkdir()
            break
        except FileExistsError:
            continue
    job, cwd = str(number), os.getcwd()
    spool = top / "spool" / f"{job}.SC"  # a copy, which is gone when the job has ended
    shutil.copy(asked.script, spool)
    spool.chmod(0o700)
    environment = dict(os.environ) if system.keeps_environment else _login_environment()
    environment |= {**asked.variables, **_allocation(top / "jobs" / job, site, asked.nodes), **system.variables(job, asked, cwd)}
    out = (asked.out or system.out).replace("%j", job).replace("%J", job).replace("%x", asked.name)
    plan = {
        "script": str(spool),
        "environment": environment,
        "cwd": os.environ["HOME"] if system.starts_at_home else cwd,
        "out": os.path.join(cwd, out.format(job=job, name=asked.name)),
        "ended": str(top / "jobs" / job / "ended"),
        "walltime_s": asked.walltime_s,
        "signal": asked.signal,
    }
    code = f"import sys; sys.path.insert(0, {str(PROGRAMS)!r}); import batch; batch.main({name!r})"
    null = subprocess.DEVNULL
    subprocess.Popen(
        [sys.executable, "-S", "-c", code], env={**os.environ, "STANDIN_JOB": json.dumps(plan)}, stdin=null, stdout=null, stderr=null,
        start_new_session=True,
    )  # fmt: skip
    print(system.answer.format(job=job))
    return 0


def _login_environment() -> dict[str, str]:
    """What a batch system that hands nothing on gives to a job. PATH comes from the user's profile, which reads SITE_PATH."""
    kept = ("HOME", "USER", "LOGNAME", "SHELL", "LANG", "STANDIN_SITE")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _allocation(directory: Path, site: dict[str, Any], nodes: int) -> dict[str, str]:
    """A fake allocation of the launcher's kind, or this machine as a node, for a real mpiexec."""
    if site["launcher"] is None:
        (directory / "nodes").write_text("localhost\n")
        return {"PBS_NODEFILE": str(directory / "nodes"), "SITE_PATH": os.environ["PATH"], "PATH": os.environ["PATH"]}
    fake = FakeAllocation(site["launcher"], directory / "allocation", site["mpiexec"], nodes, site["cores"])
    path = fake.environment["PATH"]
    return {**fake.environment, "SITE_PATH": path}


def _watch(plan: dict[str, Any]) -> None:
    """Run the script, send it what was asked for, and end it in time."""
    began_s = time.monotonic()
    with open(plan["out"], "ab") as out:
        shell = subprocess.Popen(
            [plan["script"]], env=plan["environment"], cwd=plan["cwd"], stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    if plan["signal"]:
        number, before_s = plan["signal"]
        if _still_runs(shell, began_s + plan["walltime_s"] - before_s):
            shell.send_signal(number)
    if _still_runs(shell, began_s + plan["walltime_s"] + _LATE_S):
        os.killpg(shell.pid, signal.SIGTERM)
        if _still_runs(shell, time.monotonic() + _KILL_WAIT_S):
            os.killpg(shell.pid, signal.SIGKILL)
    code = shell.wait()
    os.unlink(plan["script"])
    note = Path(plan["ended"])
    note.with_suffix(".new").write_text(str(code if code >= 0 else 128 - code))
    note.with_suffix(".new").rename(note)


def _still_runs(shell: subprocess.Popen[bytes], until_s: float) -> bool:
    try:
        shell.wait(timeout=max(0.0, until_s - time.monotonic()))
        return False
    except subprocess.TimeoutExpired:
        return True
