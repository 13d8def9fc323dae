"""`exex submit`: keeps the job script, hands it to the batch system, and learns the job's id."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from exex.errors import ConfigError, StartError
from exex.launch import data
from exex.launch.batch import BatchSystem, job_id
from exex.launch.job import Job
from exex.launch.jobscript import job_script, stage_layout, world_layout
from exex.launch.launchers import load_launcher

_ANSWER_TIMEOUT_S = 120.0  # a busy batch system takes long


class Answer(NamedTuple):
    """How the submitting program ended."""

    status: int
    out: str
    err: str


def make_script(job: Job, env: Mapping[str, str]) -> str:
    """The job script, with the launcher's and the batch system's data files.

    Raises:
        ConfigError: a file that cannot be used, or a job that the launcher has no words for.
    """
    launcher = load_launcher(job.launcher, env)
    system = job.machine.system
    if system.variables not in launcher.batch_systems:
        raise ConfigError(
            f"{launcher.name} does not start jobs of {job.machine.batch_system}, but of {', '.join(launcher.batch_systems)}"
        )
    template = data.read("jobscripts", system.template, env, ".sh")
    helped = "" if launcher.from_compute_nodes else launcher.program
    stage_argv = launcher.subtask_argv(stage_layout(job)) if job.stages else ()
    return job_script(job, template.text, launcher.world_argv(world_layout(job)), helped, stage_argv)


def keep_script(script: str, name: str, directory: str) -> str:
    """Write an executable file of a new name, NAME.sh or else NAME-2.sh, NAME-3.sh, ...; its path.

    Raises:
        ConfigError: it cannot be written.
    """
    number = 1
    while True:
        path = os.path.join(directory, f"{name}.sh" if number == 1 else f"{name}-{number}.sh")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o777)
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            raise ConfigError(f"cannot write the job script {path}: {error.strerror}") from error
        with open(fd, "w", encoding="utf-8") as file:
            file.write(script)
        return path


def ask(argv: Sequence[str], directory: str | None = None) -> Answer:
    """Run a program of the batch system, in the current directory or another.

    Raises:
        StartError: it cannot be run, or does not answer.
    """
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_ANSWER_TIMEOUT_S,
            check=False, cwd=directory,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise StartError(f"{argv[0]} did not answer within {_ANSWER_TIMEOUT_S:g} s; see whether the job is queued") from error
    except OSError as error:
        raise StartError(f"cannot run {argv[0]}: {error.strerror}") from error
    return Answer(done.returncode, done.stdout, done.stderr)


def submit(system: BatchSystem, path: str, env: Mapping[str, str], run: Callable[[Sequence[str]], Answer] = ask) -> str:
    """Hand a script to the batch system; the id of the job.

    Raises:
        StartError: there is no such batch system here, it refuses the job, or its answer names none.
    """
    if shutil.which(system.submit, path=env.get("PATH", os.defpath)) is None:
        raise StartError(f"{system.submit} is not on PATH: submit {path} on a login node of the machine")
    answer = run([system.submit, path])
    said = answer.err.strip() or answer.out.strip() or "nothing"
    if answer.status != 0:
        raise StartError(f"{system.submit} {path} ended with status {answer.status}; it said: {said}")
    found = job_id(system, answer.out)
    if found is None:
        raise StartError(f"{system.submit} {path} ended well, but its answer names no job; it said: {answer.out.strip() or said}")
    return found
