"""What job scripts and command lines ask batch systems for, parsed as their manuals say, and refused where these know nothing of it."""

from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path
from typing import NamedTuple

from options import Option, Refused, parse


class Asked(NamedTuple):
    """What a script and its command line ask for."""

    nodes: int
    walltime_s: float
    name: str
    out: str | None  # file, with what stands for the job's id replaced; None for the system's default
    script: str
    variables: dict[str, str]  # to be added to the job's environment
    signal: tuple[int, float] | None = None  # number, to the shell alone; seconds before the end


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
