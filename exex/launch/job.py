"""What a user asks of a batch job, checked against what is known of the machine. Pure: values in, a `Job` or an error out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from exex.config import Config, parse_duration
from exex.errors import ConfigError
from exex.launch.batch import clock
from exex.launch.machines import Machine, Node, Queue

NOTICE_S = 120.0
"""How long before the end a batch system that can do so sends a signal; a fifth of the walltime, if that is less."""

MANY_NODES = 128
PATIENCE_S = 300
"""`start_timeout_s` of jobs with more than MANY_NODES nodes: all of them read Python from the same file system."""


class JobOption(NamedTuple):
    """An option of `exex jobscript` and `exex submit`, as a command line shows it. Values arrive as they were typed."""

    name: str
    metavar: str
    help: str
    is_list: bool = False  # may be given several times

    @property
    def option(self) -> str:
        """As it is typed."""
        return "--" + self.name.replace("_", "-")


OPTIONS = (
    JobOption("machine", "NAME", "Machine, as `exex machines` lists them, or the path of a machine file."),
    JobOption("nodes", "N", "Nodes. Default: 1."),
    JobOption("walltime", "TIME", "Time limit of the job: HH:MM:SS, MM:SS, D-HH:MM:SS or seconds."),
    JobOption("account", "NAME", "Account or project to be charged."),
    JobOption("queue", "NAME", "Queue, partition or QOS. Default: the machine's, if its file names one."),
    JobOption("name", "NAME", "Name of the job. Default: that of the script."),
    JobOption("shape", "node|core", "One rank on each node with a slot for each core, or one rank on each core. Default: node."),
    JobOption("ranks_per_node", "N", "Ranks on each node, which share its cores. Default: as --shape says."),
    JobOption("spare_nodes", "N", "Nodes left free of ranks, for MPI sub-tasks of launchers that need such (aprun). Default: 0."),
    JobOption("chain", "N", "Jobs that may follow if the allocation ends before the work; for cached apps. Default: 0."),
    JobOption("set_env", "NAME=VALUE", "Set a variable in the job script.", is_list=True),
    JobOption("python", "PATH", "Python with exex, on that machine. Default: that of --venv, else the one that runs this."),
    JobOption("venv", "DIR", "Virtual environment to activate in the job script."),
    JobOption("module", "NAME", "Module to load, after those of the machine file.", is_list=True),
    JobOption("setup", "LINE", "Line of shell to run before the ranks start.", is_list=True),
    JobOption("directive", "TEXT", "Further directive of the batch system, without its prefix.", is_list=True),
    JobOption("site", "KEY=VALUE", "Value of a site option, as `exex machines show` lists them.", is_list=True),
    JobOption("launcher", "NAME", "Launcher, as `exex launchers` lists them. Default: the machine's."),
)


@dataclass(frozen=True, slots=True)
class Job:
    """A request that the machine can meet, as far as we know. Durations in seconds."""

    machine: Machine
    queue: Queue | None
    nodes: int
    spare_nodes: int  # of them, without ranks
    walltime_s: float
    account: str | None
    name: str
    ranks_per_node: int
    slots: int | None  # of each rank; None: as many as the rank finds cores
    chain: int
    environment: tuple[tuple[str, str], ...]  # for the script; values are taken as they are
    python: str
    venv: str | None
    modules: tuple[str, ...]
    setup: tuple[str, ...]
    directives: tuple[str, ...]
    site: Mapping[str, str]
    launcher: str
    run_dir: str
    scratch: str  # directory on a disk of each node's own, if something is staged; shell variables in it are expanded there
    exex_args: tuple[str, ...]  # options of `python -m exex.run`
    script_args: tuple[str, ...]  # the script and its arguments
    stages: bool = False  # something is to be staged

    @property
    def node(self) -> Node:
        """The shape of the nodes that it gets."""
        return self.queue.node if self.queue else self.machine.node

    @property
    def cores(self) -> int | None:
        """Cores of a node: those that the machine file tells, or as many as there are slots."""
        return self.node.cores or (None if self.slots is None else self.slots * self.ranks_per_node)

    @property
    def notice_s(self) -> int:
        """See `NOTICE_S`."""
        return int(min(NOTICE_S, self.walltime_s / 5))


def variables(values: Mapping[str, Any]) -> dict[str, str]:
    """The variables that the user sets in the script."""
    return dict(_pairs("--set-env", values.get("set_env") or (), r"[A-Za-z_]\w*"))


def plan_job(
    machine: Machine,
    values: Mapping[str, Any],
    *,
    config: Config,
    words: Sequence[str],
    script_args: Sequence[str],
    python: str,
) -> Job:
    """The job that `values` ask for.

    Args:
        values: of OPTIONS, by name; text, a tuple of texts for lists, None or () where not given.
        config: settings of the job.
        words: options of `python -m exex.run` that the user gave, as words.
        script_args: the script and its arguments.
        python: to take if neither --python nor --venv is given.

    Raises:
        ConfigError: a value that is none, or a job that the machine cannot run; it says what it could.
    """
    system = machine.system
    queue = machine.queue(values.get("queue"))
    nodes = _whole(values, "nodes", 1)
    walltime_s = _walltime_s(values.get("walltime"))
    _check_queue(machine, queue, nodes, walltime_s)
    ranks_per_node, slots = _shape(machine, queue.node if queue else machine.node, values, config.slots)
    name = _name(values.get("name"), script_args[0], system.name_chars)
    chain = _whole(values, "chain", 0)
    if chain and queue and not queue.chain:
        raise ConfigError(f"--chain: in the queue {queue.name} of {machine.name} jobs may not submit others")
    venv = values.get("venv")
    exex_args = [] if slots is None or config.slots != "auto" else ["--slots", str(slots)]
    if nodes > MANY_NODES and config.start_timeout_s < PATIENCE_S and "--start-timeout-s" not in words:
        exex_args += ["--start-timeout-s", str(PATIENCE_S)]
    return Job(
        machine=machine,
        queue=queue,
        nodes=nodes,
        spare_nodes=_spare_nodes(values, nodes),
        walltime_s=walltime_s,
        account=_account(machine, values.get("account")),
        name=name,
        ranks_per_node=ranks_per_node,
        slots=slots,
        chain=chain,
        environment=tuple(variables(values).items()),
        python=values.get("python") or (f"{venv.rstrip('/')}/bin/python" if venv else python),
        venv=venv,
        modules=_lines("--module", values.get("module") or (), r"[\w./+:@-]+", "a name without spaces"),
        setup=_lines("--setup", values.get("setup") or (), r".+", "a line"),
        directives=_lines("--directive", values.get("directive") or (), r"-.*", "a line that begins with '-'"),
        site=_site(machine, queue, values.get("site") or ()),
        launcher=values.get("launcher") or machine.launcher,
        run_dir=config.run_dir,
        scratch=(queue.node if queue else machine.node).scratch if config.stage or config.stage_file else "",
        exex_args=(*exex_args, *words, *_journal_args(config, words, chain, name)),
        script_args=tuple(script_args),
        stages=bool(config.stage or config.stage_file),
    )


def _whole(values: Mapping[str, Any], name: str, default: int) -> int:
    text = values.get(name)
    least = min(1, default)
    if text is None:
        return default
    if not re.fullmatch(r"\d+", text) or int(text) < least:
        raise ConfigError(f"--{name.replace('_', '-')} is {text!r}; accepted: an integer, at least {least}")
    return int(text)


def _spare_nodes(values: Mapping[str, Any], nodes: int) -> int:
    spare = _whole(values, "spare_nodes", 0)
    if spare >= nodes:
        raise ConfigError(f"--spare-nodes is {spare}: of {nodes} nodes at least one must have ranks")
    return spare


def _walltime_s(text: str | None) -> float:
    if text is None:
        raise ConfigError("--walltime is missing: how long may the job run?")
    try:
        seconds = parse_duration(text)
    except ConfigError as error:
        raise ConfigError(f"--walltime: {error}") from None
    if seconds <= 0:
        raise ConfigError(f"--walltime is {text!r}; accepted: more than 0 seconds")
    return seconds


# ---- what the machine can run ----


def _why_not(machine: Machine, queue: Queue | None, nodes: int, walltime_s: float) -> str:
    """Why the queue does not take such a job; "" if it does."""
    if machine.nodes is not None and nodes > machine.nodes:
        return f"{machine.name} has {machine.nodes} nodes, not {nodes}"
    if queue is None:
        return ""
    where = f"the queue {queue.name} of {machine.name}"
    if queue.nodes_most is not None and not queue.nodes_least <= nodes <= queue.nodes_most:
        return f"{where} takes {queue.nodes_least} to {queue.nodes_most} nodes, not {nodes}"
    if nodes < queue.nodes_least:
        return f"{where} takes {queue.nodes_least} nodes or more, not {nodes}"
    limit_s = queue.walltime_most_s(nodes)
    if limit_s is not None and walltime_s > limit_s:
        return f"{where} lets {nodes} node{'s' if nodes > 1 else ''} run for {clock(limit_s)}, not {clock(walltime_s)}"
    return ""


def _check_queue(machine: Machine, queue: Queue | None, nodes: int, walltime_s: float) -> None:
    problem = _why_not(machine, queue, nodes, walltime_s)
    if not problem:
        return
    others = [name for name, other in machine.queues.items() if not _why_not(machine, other, nodes, walltime_s)]
    if others:
        problem += f"; queues that would take the job: {', '.join(others)}"
    raise ConfigError(problem)


def _account(machine: Machine, account: str | None) -> str | None:
    rule = machine.account
    such_as = f" such as {rule.example}" if rule.example else ""
    if account is None:
        if rule.required:
            raise ConfigError(f"{machine.name} runs no job without --account, a project{such_as}")
        return None
    if not re.fullmatch(rule.pattern, account):
        raise ConfigError(f"--account is {account!r}; accounts of {machine.name} are names{such_as}, matching {rule.pattern}")
    return account


def _shape(machine: Machine, node: Node, values: Mapping[str, Any], slots: int | str) -> tuple[int, int | None]:
    """Ranks on each node, and slots of each rank; None where the ranks have to find out."""
    shape = values.get("shape") or "node"
    if shape not in ("node", "core"):
        raise ConfigError(f"--shape is {shape!r}; accepted: node or core")
    usable = node.usable_cores
    if shape == "core" and usable is None and values.get("ranks_per_node") is None:
        raise ConfigError(f"{machine.name} does not say how many cores a node has: give --ranks-per-node")
    ranks = _whole(values, "ranks_per_node", 1 if shape == "node" or usable is None else usable)
    if usable is None or node.cores is None:
        return ranks, slots if isinstance(slots, int) else None
    if not isinstance(slots, int):
        slots = max(1, usable // ranks)
    if ranks * slots > node.cores * node.threads_per_core:
        raise ConfigError(
            f"{ranks} ranks with {slots} slots need {ranks * slots} hardware threads; a node of {machine.name} has "
            f"{node.cores * node.threads_per_core}, and {usable} cores for jobs"
        )
    return ranks, slots


# ---- texts that end up in the script ----


def _name(given: str | None, script: str, chars: int) -> str:
    """The job's name: as given, or made of the script's."""
    if given is None:
        made = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePath(script).stem)
        return (made if made[:1].isalpha() else f"exex-{made}")[:chars]
    if not re.fullmatch(rf"[A-Za-z][A-Za-z0-9_.-]{{0,{chars - 1}}}", given):
        raise ConfigError(f"--name is {given!r}; accepted: a letter, then up to {chars - 1} letters, digits, '_', '-' and '.'")
    return given


def _lines(option: str, texts: Sequence[str], pattern: str, accepted: str) -> tuple[str, ...]:
    for text in texts:
        if not re.fullmatch(pattern, text) or not text.isprintable():
            raise ConfigError(f"{option} is {text!r}; accepted: {accepted}")
    return tuple(texts)


def _pairs(option: str, texts: Sequence[str], name_pattern: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(name_pattern, name) or "\0" in value:
            raise ConfigError(f"{option} is {text!r}; accepted: NAME=VALUE")
        pairs.append((name, value))
    return pairs


def _site(machine: Machine, queue: Queue | None, texts: Sequence[str]) -> dict[str, str]:
    """Values for the fields of directives: the machine's, the queue's over them, the user's over both."""
    site = {**machine.site, **(queue.site if queue else {})}
    for name, value in _pairs("--site", texts, r"\w+"):
        if name not in site:
            if not site:
                raise ConfigError(f"--site {name}: {machine.name} has no site options")
            near = difflib.get_close_matches(name, site, n=1, cutoff=0.0)[0]
            raise ConfigError(f"--site {name} is no option of {machine.name}; the nearest is {near}; all: {', '.join(site)}")
        if not value or not value.isprintable() or '"' in value:
            raise ConfigError(f"--site {name} is {value!r}; accepted: text of one line without quotation marks")
        site[name] = value
    return site


def _journal_args(config: Config, words: Sequence[str], chain: int, name: str) -> list[str]:
    """Words with which a script that is submitted once more goes on: --resume, and for a chain a journal."""
    if "--no-resume" in words:
        if chain:
            raise ConfigError("--chain: the next job goes on by --resume")
        return []
    if config.journal:
        return [] if config.resume else ["--resume"]
    return ["--journal", f"{name}.journal", "--resume"] if chain else []
