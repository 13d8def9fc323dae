"""A campaign's file, checked, and the jobs that it asks for. Pure but for reading the file.

docs/campaigns.md describes the keys.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from exex.campaign.model import Design, waiting_for
from exex.config import Config
from exex.errors import ConfigError
from exex.launch import keys
from exex.launch.job import Job, plan_job
from exex.launch.machines import load_machine
from exex.launch.toml_table import Table, read_table

WORKLOAD = Path(__file__).with_name("workload.py")
_JOB_KEYS = ("account", "queue", "python", "venv", "launcher")
_JOB_LISTS = ("set_env", "module", "setup", "directive", "site")
FIELDS = ("nodes", "ranks", "slots")
"""What the arguments of the user's script may name in braces."""


class Shape(NamedTuple):
    """Ranks on a node and slots of each; None: as the machine's cores say."""

    name: str
    shape: str = "node"
    ranks_per_node: int | None = None
    slots: int | None = None


class Load(NamedTuple):
    """One workload: built in, or the user's script."""

    name: str
    length_s: float
    script: str = ""
    args: tuple[str, ...] = ()


class Point(NamedTuple):
    """One job of a campaign."""

    name: str
    nodes: int
    shape: Shape
    load: Load
    repeat: int
    tasks: int  # of the whole job, or for each slot if the campaign is weak


@dataclass(frozen=True)
class Campaign:
    """What a file asks for.

    Attributes:
        directory: where jobs and results are, beside the file.
        tasks: strong: of each job; weak: for each slot.
        at_once: jobs that may be queued or running at the same time.
        job: options as `exex submit` has them, by name.
        exex_args: options of `python -m exex.run`.
        costs: file with what the model takes; "" for what it knows.
    """

    name: str
    directory: Path
    machine: str
    nodes: tuple[int, ...]
    scaling: str
    tasks: int
    walltime: str
    at_once: int
    repeats: int
    shapes: tuple[Shape, ...]
    loads: tuple[Load, ...]
    job: Mapping[str, Any]
    exex_args: tuple[str, ...]
    costs: str

    def points(self) -> list[Point]:
        """All jobs: small ones first."""
        return [
            Point(f"{shape.name}-{load.name}-n{nodes:05d}-r{repeat}", nodes, shape, load, repeat, self.tasks)
            for nodes in self.nodes
            for shape in self.shapes
            for load in self.loads
            for repeat in range(1, self.repeats + 1)
        ]

    def folder(self, point: Point) -> Path:
        """Where a job's script, output and results are."""
        return self.directory / point.name


def read_campaign(path: str) -> Campaign:
    """The campaign of a file.

    Raises:
        ConfigError: it cannot be read, or says something that is not understood.
    """
    if Path(path).suffix != ".toml":
        raise ConfigError(f"the campaign {path} is no .toml file; what belongs to it is kept in a directory of its name")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the campaign {path}: {error}") from error
    top = read_table(path, text)
    scaling = top.choice("scaling", ("strong", "weak"))
    campaign = Campaign(
        name=Path(path).stem,
        directory=Path(os.path.abspath(path)).with_suffix(""),
        machine=top.read("machine", keys.text),
        nodes=_nodes(top),
        scaling=scaling,
        tasks=0,
        walltime=top.read("walltime", keys.text),
        at_once=top.read("at_once", keys.integer(1), 4),
        repeats=top.read("repeats", keys.integer(1), 1),
        shapes=_shapes(top.table("shapes")),
        loads=(),
        job=_job(top.table("job")),
        exex_args=top.read("exex_args", keys.texts, ()),
        costs=top.read("costs", keys.text, ""),
    )
    tasks, loads = _workload(top.table("workload"), scaling, Path(path).parent)
    top.refuse_unknown()
    return Campaign(**{**campaign.__dict__, "tasks": tasks, "loads": loads})


def _nodes(top: Table) -> tuple[int, ...]:
    values = [_integer(top, value) for value in top.entries("nodes", is_required=True)]
    if not values or sorted(set(values)) != values:
        raise top.wrong("nodes", f"is {values}; accepted: numbers of nodes, each larger than the one before")
    return tuple(values)


def _integer(top: Table, value: object) -> int:
    """A number of nodes."""
    try:
        return int(keys.integer(1)(value))
    except ValueError as error:
        raise top.wrong("nodes", f"has {value!r}; accepted: {error}") from None


def _shapes(table: Table) -> tuple[Shape, ...]:
    shapes = []
    for name in table.names():
        if not re.fullmatch(r"[A-Za-z][\w-]*", name):
            raise table.wrong(name, "is no name of a shape: a letter, then letters, digits, '_' and '-'")
        one = table.table(name)
        shape = one.choice("shape", ("node", "core"), "node")
        ranks = one.read("ranks_per_node", keys.integer(1), None)
        shapes.append(Shape(name, shape, ranks, one.read("slots", keys.integer(1), None)))
        one.refuse_unknown()
    return tuple(shapes) or (Shape("node"),)


def _workload(table: Table, scaling: str, home: Path) -> tuple[int, tuple[Load, ...]]:
    script = table.read("script", keys.text, "")
    if script:
        path = home / script
        if not path.is_file():
            raise table.wrong("script", f"is {script!r}: there is no such file in {home.resolve()}")
        args = table.read("args", keys.texts, ())
        for word in args:
            _fill(table, word, dict.fromkeys(FIELDS, 1))
        table.refuse_unknown()
        return 0, (Load(path.stem, 0.0, str(path.resolve()), args),)
    tasks = table.read("tasks" if scaling == "strong" else "tasks_per_slot", keys.integer(1))
    lengths = table.entries("lengths_s", is_required=True)
    table.refuse_unknown()
    if not lengths or not all(isinstance(value, (int, float)) and 0 <= value < 1e5 for value in lengths):
        raise table.wrong("lengths_s", f"is {lengths}; accepted: a list of seconds, 0 for no-ops")
    return tasks, tuple(Load(_length(float(value)), float(value)) for value in lengths)


def _length(seconds: float) -> str:
    if not seconds:
        return "noop"
    return f"{seconds * 1000:g}ms" if seconds < 1 else f"{seconds:g}s"


def _fill(table: Table, word: str, values: Mapping[str, int]) -> str:
    try:
        return word.format_map(values)
    except (KeyError, ValueError, IndexError):
        raise table.wrong("args", f"has {word!r}; accepted in braces: {', '.join(FIELDS)}") from None


def _job(table: Table) -> dict[str, Any]:
    values: dict[str, Any] = {name: table.read(name, keys.text, None) for name in _JOB_KEYS}
    values |= {name: table.read(name, keys.texts, ()) for name in _JOB_LISTS}
    table.refuse_unknown()
    return values


# ---- one job ----

RECORD = "run.h5"
"""The run record of a job, in its directory, where `exex_args` do not say otherwise."""


def make_job(campaign: Campaign, point: Point, env: Mapping[str, str]) -> Job:
    """The batch job of a point.

    Raises:
        ConfigError: the machine cannot run it.
    """
    machine = load_machine(campaign.machine, env)
    shape = point.shape
    out = str(campaign.folder(point) / "result.json")
    words = list(campaign.exex_args)
    if not any(word.partition("=")[0] == "--record" for word in words):
        words += ["--record", str(campaign.folder(point) / RECORD)]
    if shape.slots is not None:
        words += ["--slots", str(shape.slots)]
    values = {
        **campaign.job,
        "nodes": str(point.nodes),
        "walltime": campaign.walltime,
        "name": re.sub(r"[^\w.-]+", "-", point.name)[: machine.system.name_chars],
        "shape": shape.shape,
        "ranks_per_node": None if shape.ranks_per_node is None else str(shape.ranks_per_node),
        "chain": None,
        "setup": (*campaign.job["setup"], "export CAMPAIGN_BEGAN=$(date +%s.%N)"),
    }
    flags = {"slots": str(shape.slots)} if shape.slots is not None else {}
    config = Config.load(None, env, flags)

    def job_of(words: list[str], script_args: list[str]) -> Job:
        return plan_job(machine, values, config=config, words=words, script_args=script_args, python=sys.executable)

    first = job_of(words, [str(WORKLOAD)])
    slots = (first.slots or 1) * first.ranks_per_node * point.nodes
    if waiting_for(slots) > config.max_waiting and "--max-waiting" not in words:
        words += ["--max-waiting", str(waiting_for(slots))]
    return job_of(words, [str(WORKLOAD), "--out", out, "--point", point.name, *_words(campaign, point, first, slots)])


def _words(campaign: Campaign, point: Point, job: Job, slots: int) -> list[str]:
    """Arguments of the workload."""
    if point.load.script:
        values = {"nodes": point.nodes, "ranks": point.nodes * job.ranks_per_node, "slots": slots}
        return ["--", point.load.script, *(word.format_map(values) for word in point.load.args)]
    count = ["--tasks" if campaign.scaling == "strong" else "--each", str(point.tasks)]
    return [*count, "--length", f"{point.load.length_s:g}"]


def design_of(campaign: Campaign, load: Load, ranks: int, slots: int) -> Design:
    """What the model is to play for a size: `slots` of all ranks together."""
    tasks = campaign.tasks if campaign.scaling == "strong" else campaign.tasks * slots
    return Design(ranks, slots, tasks, load.length_s, waiting_for(slots))
