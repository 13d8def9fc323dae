"""Job scripts: a template of `jobscripts/`, filled in for a `Job`. Pure: values in, text out.

A template is a shell script in which `@{NAME}` stands for a block. It has no branches: a block that a job does not need is
empty, and a line that holds nothing else is left out, with the blank line behind it if there is one before it, too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from exex.errors import ConfigError
from exex.launch.batch import clock
from exex.launch.job import Job
from exex.launch.launchers import Layout

_PLACE = re.compile(r"@\{(\w+)\}")
_WIDTH = 110
_INDENT = "    "


def world_layout(job: Job) -> Layout:
    """What the launcher is to start: the same on every node, bound to cores where ranks share a node."""
    node = job.node
    cores = max(1, (node.usable_cores or 1) // job.ranks_per_node)
    devices = node.accelerators
    gpus = len(devices.names) // job.ranks_per_node if devices and devices.by_launcher else 0
    crowded = job.slots is not None and job.slots > cores
    return Layout(
        nodes=job.nodes - job.spare_nodes,
        ranks_per_node=job.ranks_per_node,
        cores_per_rank=cores,
        gpus_per_rank=gpus,
        threads_per_core=node.threads_per_core if crowded else 1,
        bind=job.ranks_per_node > 1 and node.usable_cores is not None,
    )


def stage_layout(job: Job) -> Layout:
    """The step before that, for a job that stages: one rank on each of these nodes."""
    return Layout(nodes=job.nodes - job.spare_nodes, ranks_per_node=1, bind=False)


def job_script(
    job: Job, template: str, launcher_argv: Sequence[str], helped: str = "", stage_argv: Sequence[str] = ()
) -> str:
    """The script.

    Args:
        template: text of the batch system's file. Only if it has a place for `stage` do ranks start from what is staged.
        launcher_argv: what stands before `python -m exex.run`.
        stage_argv: what stands before `python -m exex.stage`.
        helped: program of a launcher that compute nodes cannot start, so that tasks need the launch helper.

    Raises:
        ConfigError: a template with a place that nothing belongs to; or a directive needs the number of cores, and it is unknown.
    """
    stages = job.stages and "stage" in _PLACE.findall(template)
    return fill_template(template, _blocks(job, launcher_argv, helped, stage_argv if stages else ()))


def fill_template(template: str, blocks: Mapping[str, str]) -> str:
    """`template` with its blocks.

    Raises:
        ConfigError: a place that no block belongs to.
    """
    lines: list[str] = []
    for line in template.splitlines():
        names = _PLACE.findall(line)
        for name in names:
            if name not in blocks:
                raise ConfigError(f"the job-script template has @{{{name}}}; there are {', '.join(blocks)}")
        if len(names) == 1 and line == f"@{{{names[0]}}}" and not blocks[names[0]]:
            continue
        if not line and (not lines or not lines[-1]):
            continue
        lines.append(_PLACE.sub(lambda place: blocks[place[1]], line))
    return "\n".join(lines) + "\n"


def _blocks(job: Job, launcher_argv: Sequence[str], helped: str, stage_argv: Sequence[str]) -> dict[str, str]:
    machine, system = job.machine, job.machine.system
    walltime = system.walltime(job.walltime_s)
    queue_directives = job.queue.directives if job.queue else ()
    return {
        "title": f"{job.name}: {_count(job.nodes, 'node')} of {machine.name} for {clock(job.walltime_s)}",
        "machine": machine.name,
        "name": job.name,
        "walltime": walltime,
        "signal": _signal(job),
        "on_signal": """trap 'kill -USR2 "$launcher"' USR2""" if _signal(job) else "",
        "request": _directives(job, machine.request),
        "queue": _directives(job, job.queue.options if job.queue else ()),
        "account": _directives(job, (system.account.format(account=job.account),) if job.account else ()),
        "directives": "\n".join(
            text
            for text in (
                _directives(job, (*machine.directives, *queue_directives)),
                "\n".join(f"{system.prefix} {text}" for text in job.directives),
            )
            if text
        ),
        "modules": "\n".join(f"module load {name}" for name in (*machine.modules, *job.modules)),
        "environment": _environment(job),
        "setup": "\n".join([*([f"source {shlex.quote(job.venv + '/bin/activate')}"] if job.venv else []), *job.setup]),
        "run_dir": _run_dir(job.run_dir),
        "shape": _shape(job),
        "stage": _stage(job, stage_argv),
        "command": _staged_command(job, launcher_argv) if stage_argv else _command(job, launcher_argv),
        "unstage": _unstage(stage_argv),
        "keep": _keep(job),
        "helper": _helper(job, helped),
        "end_helper": _END_HELPER if helped else "",
        "on_term": "left=0" if job.chain else ":",
        "chain": _chain(job),
    }


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _directives(job: Job, texts: Iterable[str]) -> str:
    """Directives of the machine file, their fields filled in."""
    devices = job.node.accelerators
    fields = {
        **job.site,
        "nodes": job.nodes,
        "ranks_per_node": job.ranks_per_node,
        "ranks": job.nodes * job.ranks_per_node,
        "cores": job.cores,
        "gpus": len(devices.names) if devices else 0,
        "walltime": job.machine.system.walltime(job.walltime_s),
    }
    lines = []
    for text in texts:
        if "{cores}" in text and job.cores is None:
            raise ConfigError(
                f"{job.machine.name} does not say how many cores a node has, and its batch system must be told: give --slots"
            )
        lines.append(f"{job.machine.system.prefix} {text.format_map(fields)}")
    return "\n".join(lines)


def _run_dir(directory: str) -> str:
    """As it must stand between double quotes; all ranks must find it, so it begins where the job was submitted."""
    quoted = _double_quoted(directory).replace("$", "\\$")
    return quoted if directory.startswith("/") else f"$PWD/{quoted}"


def _signal(job: Job) -> str:
    """The directive that asks for a signal before the end, for launchers that pass it on to the ranks; others would die of it."""
    system = job.machine.system
    return system.signal.format(seconds=job.notice_s) if job.launcher == system.launcher else ""


def _double_quoted(text: str) -> str:
    """As it must stand between double quotes, where the shell then replaces variables only."""
    return re.sub(r'([\\"`])', r"\\\1", text)


def _environment(job: Job) -> str:
    """The machine's variables, in which others are replaced, then the user's, which are taken as they are."""
    lines = []
    scratch = {"EXEX_SCRATCH": job.scratch} if job.scratch else {}
    for name, value in {**scratch, **job.machine.environment}.items():
        plain = re.fullmatch(r"[\w./:,+-]+", value)
        lines.append(f"export {name}={value}" if plain else f'export {name}="{_double_quoted(value)}"')
    lines += [f"export {name}={shlex.quote(value)}" for name, value in job.environment]
    return "\n".join(lines)


def _shape(job: Job) -> str:
    """One sentence."""
    slots = "a slot for each core that it finds" if job.slots is None else _count(job.slots, "slot")
    if job.ranks_per_node == 1:
        return f"One rank on each node, with {slots}. Rank 0 is the manager as well."
    return f"{job.ranks_per_node} ranks on each node, with {slots} each. Rank 0 is the manager and runs no tasks."


def _command(job: Job, launcher_argv: Sequence[str]) -> str:
    """The launcher's command line, over several lines."""
    exex = [job.python, "-m", "exex.run"]
    words = [*map(shlex.quote, exex), *_left(job), *map(shlex.quote, job.exex_args)]
    return _lines([_quoted(launcher_argv), words, _script(job)])


def _staged_command(job: Job, launcher_argv: Sequence[str]) -> str:
    """The same from what is staged."""
    return _lines([_quoted(launcher_argv), [*_FROM_STAGED, *_left(job), '"${words[@]}"']])


_FROM_STAGED = ("/bin/sh -c", '"$(<"$EXEX_JOB_DIR/staged")"', "exex")
"""Words that become a rank on a node that is staged; see `worker.staged_ranks.shell_text`."""

_UNSTAGE_S = 60


def _stage(job: Job, stage_argv: Sequence[str]) -> str:
    """The step that stages."""
    if not stage_argv:
        return ""
    words = _lines([[*_quoted(job.exex_args)], _script(job)])
    command = _lines([_quoted(stage_argv), [*_quoted([job.python, "-m", "exex.stage"]), '"${words[@]}"']])
    return f"""\
# First every node gets what is to be staged, by one rank on each, and says in the file `staged` how ranks start from there.
words=({words})
rm -f "$EXEX_JOB_DIR/staged"
{command}
if [ ! -e "$EXEX_JOB_DIR/staged" ]; then
    echo "exex: the job ends, because it could not be staged" >&2
    exit 1
fi"""


def _unstage(stage_argv: Sequence[str]) -> str:
    """Removes what a world that has failed may not have come to hold; one that has started does so itself."""
    if not stage_argv:
        return ""
    command = _lines([[f"timeout {_UNSTAGE_S}", *_quoted(stage_argv)], [*_FROM_STAGED, "--remove"]])
    command = command.replace("\n", f"\n{_INDENT}")
    return f"""\
# What was staged goes with the last rank of each node. A world that has failed may not have had all of them.
if [ "$status" -ne 0 ]; then
    {command}
fi"""


def _quoted(words: Iterable[str]) -> list[str]:
    return [shlex.quote(word) for word in words]


def _left(job: Job) -> list[str]:
    """How long the job may still run, where the batch system does not tell."""
    return [] if job.machine.system.tells_end else ["--walltime", f'"$(({int(job.walltime_s)} - SECONDS))"']


def _script(job: Job) -> list[str]:
    return ["--", *_quoted(job.script_args)]


def _lines(parts: Sequence[Sequence[str]]) -> str:
    """Words as one command line over several lines; each part begins one."""
    return f" \\\n{_INDENT}".join(line for part in parts if part for line in _wrapped(part))


def _wrapped(words: Sequence[str]) -> list[str]:
    """Words in lines of a readable width; an option and its value stay together."""
    pieces: list[str] = []
    for word in words:
        if pieces and not word.startswith("-") and pieces[-1].startswith("-") and " " not in pieces[-1]:
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + 1 + len(piece) > _WIDTH - len(_INDENT):
            lines.append(piece)
        else:
            lines[-1] += f" {piece}"
    return lines


def _keep(job: Job) -> str:
    """How many jobs may follow, and the script for them: a batch system may run a copy of it that is gone afterwards."""
    if not job.chain:
        return ""
    return f"""\

# Jobs that may follow this one, each with one less: a chain that gets nowhere comes to its end. None follows a job that is
# told to end. This script is kept for them.
left=${{EXEX_CHAIN:-{job.chain}}}
unset EXEX_CHAIN
cp "$0" "$EXEX_JOB_DIR/job.sh\""""


def _helper(job: Job, program: str) -> str:
    if not program:
        return ""
    words = [job.python, "-m", "exex", "launch-helper", "--launcher", job.launcher]
    return f"""\
# Compute nodes cannot start {program}. What tasks want it to start is started here, by this helper.
export EXEX_LAUNCH_HELPER="$EXEX_JOB_DIR/launch-helper"
{shlex.join(words)} "$EXEX_LAUNCH_HELPER" &
helper=$!"""


_END_HELPER = 'kill -HUP "$helper" 2>/dev/null && wait "$helper"'


def _chain(job: Job) -> str:
    if not job.chain:
        return ""
    return f"""\
# 75: the allocation has ended before the work. The next job goes on from the journal.
if [ "$status" -eq 75 ] && [ "$left" -gt 0 ]; then
    echo "exit status 75: submitting the next job; $((left - 1)) more may follow it"
    {job.machine.system.resubmit}
fi"""
