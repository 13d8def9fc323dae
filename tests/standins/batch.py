"""Stand-ins for batch systems: sbatch, the two qsub, bsub. A job is a process on this machine, in a fake allocation.

`FakeBatchSystem` puts them on PATH. They parse directives and options as the manuals have them, refuse the rest, keep a copy of
the script for as long as the job runs, give it the environment that the real one gives, and end it when its time is up.
"""

from __future__ import annotations

import json
import os
import re
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
from launching import play  # noqa: E402
from options import Option, Refused, parse  # noqa: E402

_KILL_WAIT_S = 5.0
_LATE_S = 15.0  # batch systems look at the clock now and then (Slurm has been seen to end a minute's job after 87 s)

BATCH_SYSTEMS = {"Slurm": "sbatch", "PBS": "qsub", "Torque": "qsub", "Cobalt": "qsub", "LSF": "bsub"}


class Asked(NamedTuple):
    """What a script and its command line ask for."""

    nodes: int
    walltime_s: float
    name: str
    out: str | None  # file, with what stands for the job's id replaced; None for the system's default
    script: str
    variables: dict[str, str]  # to be added to the job's environment
    signal: tuple[int, float] | None = None  # number, to the shell alone; seconds before the end


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


# ---- what is asked for ----


def directives(script: str, prefix: str) -> list[str]:
    """Words of the directives, up to the first command."""
    words: list[str] = []
    for line in script.splitlines():
        if line.startswith(prefix) and line[len(prefix) :][:1].isspace():
            words += shlex.split(line[len(prefix) :])
        elif line.strip() and not line.startswith("#"):
            break
    return words


def whole(text: str, name: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise Refused(f"invalid {name}: {text!r}")
    return int(text)


def clock_s(text: str, pattern: str, name: str) -> float:
    """Seconds of H:M:S, or fewer parts."""
    if not re.fullmatch(pattern, text):
        raise Refused(f"invalid {name}: {text!r}")
    return float(sum(int(part) * unit for part, unit in zip(reversed(text.split(":")), (1, 60, 3600))))


SBATCH = [
    Option(("--job-name", "-J")),
    Option(("--nodes", "-N"), number=1),
    Option(("--ntasks", "-n"), number=1),
    Option(("--ntasks-per-node",), number=1),
    Option(("--cpus-per-task", "-c"), number=1),
    Option(("--gpus-per-node",)),
    Option(("--gres",)),
    Option(("--time", "-t")),
    Option(("--partition", "-p")),
    Option(("--qos", "-q")),
    Option(("--account", "-A")),
    Option(("--constraint", "-C")),
    Option(("--output", "-o")),
    Option(("--error", "-e")),
    Option(("--exclusive",), "attached"),
    Option(("--no-kill", "-k"), "attached"),
    Option(("--signal",)),
    Option(("--mail-type",)),
    Option(("--dependency", "-d")),
    Option(("--export",)),
]


def sbatch(argv: list[str]) -> Asked:
    """As sbatch(1) of Slurm 22.05."""
    options, (path, *args) = parse(argv, SBATCH)
    script = read(path)
    if not script.startswith("#!"):
        raise Refused("This does not look like a batch script.  The first line must start with #! followed by the path to an interpreter.")
    options = {**parse([*directives(script, "#SBATCH"), "-"], SBATCH)[0], **options}
    minutes = str(options.get("time", "60"))
    found = re.fullmatch(r"(B:)?(?:SIG)?(USR[12]|TERM|INT|\d+)(?:@(\d{1,5}))?", str(options.get("signal", "USR1")))
    if found is None:
        raise Refused(f"Invalid --signal specification: {options['signal']}")
    days, dash, rest = minutes.rpartition("-")
    walltime_s = clock_s(rest, r"\d+(:\d+){0,2}", "--time specification") * (1 if ":" in rest else 60) + (int(days) * 86400 if dash else 0)
    number = getattr(signal, f"SIG{found[2]}", None) if not found[2].isdecimal() else int(found[2])
    return Asked(
        int(options.get("nodes", 1)),
        walltime_s,
        str(options.get("job-name", Path(path).name)),
        str(options.get("output", "slurm-%j.out")),
        path,
        {},
        (int(number or 0), float(found[3] or 60)) if "signal" in options and found[1] else None,
    )


QSUB = [
    Option(("-N",)),
    Option(("-l",), is_list=True),
    Option(("-q",)),
    Option(("-A",)),
    Option(("-o",)),
    Option(("-e",)),
    Option(("-j",)),
    Option(("-k",)),
    Option(("-m",)),
    Option(("-M",)),
    Option(("-r",)),
    Option(("-S",)),
    Option(("-v",)),
    Option(("-V",), 0),
    Option(("-W",)),
]
RESOURCES = {"select", "place", "walltime", "nodes", "filesystems", "ncpus", "mem", "gres"}
CHUNK = {"ncpus", "mpiprocs", "ngpus", "ompthreads", "mem", "system", "host", "vnode"}


def qsub(argv: list[str]) -> Asked:
    """As qsub(1B) of PBS Professional, and Torque's `-l nodes=`."""
    given, (path, *args) = parse(argv, QSUB)
    if args:
        raise Refused("script file: too many words")
    in_script, _ = parse([*directives(read(path), "#PBS"), "-"], QSUB)
    options = {**in_script, **given}
    resources: dict[str, str] = {}
    for text in [*in_script.get("l", []), *given.get("l", [])]:
        for part in str(text).split(","):
            name, equals, value = part.partition("=")
            if name not in RESOURCES or not equals or not value:
                raise Refused(f"Unknown resource: {name}")
            resources[name] = value
    if "select" in resources and "nodes" in resources:
        raise Refused('"-l nodes=" and "-l select=" together')
    nodes = sum(map(_chunk, resources.get("select", resources.get("nodes", "1")).split("+")))
    for name, pattern in (("j", "oe|eo|n"), ("k", r"d?o?e?|d?e?o?|n"), ("r", "y|n"), ("m", "[abejn]+")):
        if name in options and not re.fullmatch(pattern, str(options[name])):
            raise Refused(f"illegal -{name} value")
    if "place" in resources and not re.fullmatch(r"(scatter|pack|free|vscatter)(:(excl|shared|exclhost))?(:group=\w+)?", resources["place"]):
        raise Refused(f"Illegal value for place: {resources['place']}")
    name = str(options.get("N", Path(path).name))
    if not re.fullmatch(r"[A-Za-z_][^\s]{0,229}", name):
        raise Refused("illegal -N value")
    walltime_s = clock_s(resources.get("walltime", "1:00:00"), r"\d+(:\d+){0,2}", "walltime")
    return Asked(nodes, walltime_s, name, None, path, _assignments(str(options.get("v", "")), ","))


def _chunk(text: str) -> int:
    """Nodes of `4:ncpus=2:mpiprocs=2`, or of Torque's `4:ppn=32:xe`."""
    count, *rest = text.split(":")
    for part in rest:
        name, equals, value = part.partition("=")
        is_known = re.fullmatch(r"\d+", value) if name == "ppn" else name in CHUNK and value if equals else re.fullmatch(r"\w+", name)
        if not is_known:
            raise Refused(f"Illegal chunk: {part}")
    return whole(count, "number of chunks")


def _assignments(text: str, separator: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(separator) if part]
    for name, equals, _ in pairs:
        if not equals or not name.isidentifier():
            raise Refused(f"invalid variable: {name}")
    return {name: value for name, _, value in pairs}


COBALT = [
    Option(("--proccount",)),
    Option(("-n", "--nodecount"), number=1),
    Option(("-t", "--time")),
    Option(("-q", "--queue")),
    Option(("-A", "--project")),
    Option(("--attrs",)),
    Option(("--mode",)),
    Option(("--jobname",)),
    Option(("-o", "--output")),
    Option(("-e", "--error")),
    Option(("-O", "--outputprefix")),
    Option(("--env",), is_list=True),
    Option(("--cwd",)),
    Option(("--dependencies",)),
]


def cobalt(argv: list[str]) -> Asked:
    """As qsub(1) of Cobalt. Its directives begin in the second line, and stand together."""
    given, (path, *args) = parse(argv, COBALT)
    lines = read(path).splitlines()
    words: list[str] = []
    for line in lines[1:]:
        if not line.startswith("#COBALT"):
            break
        words += shlex.split(line.removeprefix("#COBALT"))
    late = [line for line in lines if line.startswith("#COBALT")]
    if late and (not words or late[-1] not in lines[1 : 1 + len(late)]):
        raise Refused("#COBALT directives must stand together, from the second line on")
    if not os.access(path, os.X_OK):
        raise Refused(f"command {path} is not executable")
    options = {**parse([*words, "-"], COBALT)[0], **given}
    for name in ("n", "t"):
        if name not in options:
            raise Refused(f"'{'nodecount' if name == 'n' else 'time'}' not provided")
    text = str(options["t"])
    walltime_s = int(text) * 60 if text.isdecimal() else clock_s(text, r"\d+:\d\d:\d\d", "time")
    if "attrs" in options and not re.fullmatch(r"\w+=[\w,-]+(:\w+=[\w,-]+)*", str(options["attrs"])):
        raise Refused(f"invalid --attrs: {options['attrs']}")
    variables = {name: value for text in options.get("env", []) for name, value in _assignments(str(text), ":").items()}
    return Asked(int(options["n"]), walltime_s, str(options.get("jobname", Path(path).name)), None, path, variables)


BSUB = [
    Option(("-P",)),
    Option(("-W",)),
    Option(("-nnodes",), number=1),
    Option(("-J",)),
    Option(("-o",)),
    Option(("-e",)),
    Option(("-q",)),
    Option(("-alloc_flags",)),
    Option(("-w",)),
    Option(("-N",), 0),
    Option(("-B",), 0),
]


def bsub(argv: list[str]) -> Asked:
    """As bsub(1) of Summit's LSF."""
    given, (path, *args) = parse(argv, BSUB)
    options = {**parse([*directives(read(path), "#BSUB"), "-"], BSUB)[0], **given}
    if "nnodes" not in options:
        raise Refused("Please specify -nnodes. Job not submitted.")
    walltime_s = clock_s(str(options.get("W", "10")), r"\d+(:\d+)?", "-W") * 60
    for flag in str(options.get("alloc_flags", "smt4")).split():
        if not re.fullmatch(r"smt[124]|gpumps|nvme|gpudefault|maximizegpfs", flag):
            raise Refused(f"Unknown alloc_flag {flag}. Job not submitted.")
    out = str(options["o"]) if "o" in options else None
    return Asked(int(options["nnodes"]), walltime_s, str(options.get("J", Path(path).name)), out, path, {})


def read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise Refused(f"Unable to open file {path}") from error


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
