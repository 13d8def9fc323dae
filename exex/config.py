"""What a user can set: one frozen dataclass, filled from a TOML file, `EXEX_*` variables and flags, the later winning.

Pure but for reading the file. Fields, their options, variables and help texts are one declaration, so they cannot
drift apart. Whatever is not understood is an error: a misspelt key must not run a job of a thousand nodes.
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from exex.errors import ConfigError

PREFIX = "EXEX_"

INTERNAL_VARIABLES = {
    "EXEX_CONFIG": "the TOML file, as --config",
    "EXEX_GUARD": "set in all processes of a job: whose they are, so that none outlives it",
    "EXEX_JOB_DIR": "set by `exex run` and by job scripts for their job: the directory of the job's socket and status",
    "EXEX_CLIENT_SOCKET": "set by a program for a world of its own: where it waits for the stream to the manager",
    "EXEX_CHAIN": "set by a job script for the next job of its chain: how many may follow that one",
    "EXEX_LAUNCH_HELPER": "set by job scripts where compute nodes cannot launch: the connection file of the launch helper",
    "EXEX_TTY": "set by `exex run` for its job: the terminal for the progress line",
    "EXEX_SCRATCH": "set by a job script: a directory on a disk of each node's own",
    "EXEX_STAGED": "set for a task of a job with --stage-file: the directory of the staged files",
    "EXEX_STAGED_AT": "set for a rank whose node was staged before: the directory",
    "EXEX_TASK_ID": "set for a bash app: the number of the task",
    "EXEX_ATTEMPT": "set for a bash app: the attempt, from 1",
    "EXEX_RANK": "set for a bash app: the rank of its worker",
    "EXEX_NODE": "set for a bash app: the host name of its worker",
    "EXEX_GRANTED_CORES": "set for a task that asks for resources: how many cores it has, on this node",
    "EXEX_GRANTED_GPUS": "set for a task that asks for resources: names of its accelerators on this node, with commas",
    "EXEX_STARTED_BY": "set for tasks: what has started the job, and where its programs lie",
    "EXEX_MPI_PREFIX": "set for a task that asks for nodes: what begins the command line of an MPI program on them",
    "EXEX_MPI_ERROR": "set for a task that asks for nodes: why there is nothing that could start an MPI program",
    "EXEX_NODES": "set for a task that asks for nodes: host names, with commas",
    "EXEX_NUM_NODES": "set for a task that asks for nodes: how many",
    "EXEX_RANKS_PER_NODE": "set for a task that asks for nodes: ranks that the prefix starts on each",
    "EXEX_NUM_RANKS": "set for a task that asks for nodes: ranks that the prefix starts on all",
    "EXEX_OWN_WORLD": "set for the ranks of a function on a communicator that get a world of their own: who has started them",
    "EXEX_GRANTED_NODES": "set for a task that asks for resources: host names of its nodes, this one first, with commas",
}
"""Names that start with `EXEX_` and are no fields of `Config`."""


_UNITS_S = (1, 60, 3600, 86400)


def parse_duration(text: str) -> float:
    """Seconds in "90", "1:30", "01:30:00" or "1-12:00:00" (days first, as Slurm writes them).

    Raises:
        ConfigError: anything else.
    """
    days, dash, rest = text.strip().rpartition("-")
    words = rest.split(":")
    shaped = re.fullmatch(r"\d+(\.\d+)?(:\d+(\.\d+)?){0,2}", rest) and (not dash or days.isdecimal())
    if not shaped:
        raise ConfigError(f"{text!r} is no duration; accepted: seconds, MM:SS, HH:MM:SS or D-HH:MM:SS")
    seconds = sum(float(word) * unit for word, unit in zip(reversed(words), _UNITS_S))
    return seconds + (int(days) * _UNITS_S[3] if dash else 0)


class _Rule(NamedTuple):
    """How one field is read and what it accepts."""

    kind: Literal["int", "float", "bool", "text", "words"]
    help: str
    least: float | None = None
    choices: tuple[str, ...] = ()

    def accepts(self) -> str:
        """What is accepted, for messages: "an integer, at least 1, or auto"."""
        nouns = {"int": "an integer", "float": "a number", "bool": "true or false", "text": "text", "words": "names"}
        choices = " or ".join(self.choices)
        if self.kind == "text" and choices:
            return choices
        least = "" if self.least is None else f", at least {self.least:g}"
        return nouns[self.kind] + least + (f", or {choices}" if choices else "")


class FieldHelp(NamedTuple):
    """One field as a command line shows it."""

    name: str
    option: str  # "--max-waiting"
    variable: str  # "EXEX_MAX_WAITING"
    kind: str  # of the value: int, float, bool, text or words
    metavar: str
    help: str  # what, unit and default


def _setting(default: Any, kind: Any, help: str, least: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"rule": _Rule(kind, help, least, choices)})


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one job; every field is documented where it is declared. Durations in seconds, sizes in bytes."""

    slots: int | Literal["auto"] = _setting(
        "auto", "int", "Single-core tasks that a worker rank runs at once; auto: the cores granted to the rank.", 1, ("auto",)
    )
    manager_slots: int | Literal["auto"] = _setting(
        "auto",
        "int",
        "Single-core tasks that rank 0 of a larger world runs beside the manager; auto: none where it shares its node with other "
        "ranks, else the cores granted to it less one.",
        0,
        ("auto",),
    )
    bind: Literal["auto", "cores", "none"] = _setting(
        "auto",
        "text",
        "cores: each slot is bound to CPUs of its own. auto: where the launcher gave each rank CPUs of its own. none: nowhere.",
        choices=("auto", "cores", "none"),
    )
    gpus: str = _setting(
        "auto", "text", "Accelerators of each node, by the names that mask them: 0,1,2,3; auto: those that are found; none."
    )
    gpu_variable: str = _setting(
        "auto", "text", "Variable that masks accelerators; auto: CUDA_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES or ZE_AFFINITY_MASK."
    )
    subtask_launcher: str = _setting(
        "auto", "text", "What starts MPI sub-tasks: a name that `exex launchers` prints; auto: what has started the job."
    )
    isolation: Literal["process", "none"] = _setting(
        "process",
        "text",
        "process: tasks run in processes of their own. none: Python tasks run in the worker rank.",
        choices=("process", "none"),
    )
    preload: tuple[str, ...] = _setting((), "words", "Modules to import once per rank, before task processes are forked.")
    stage: str = _setting(
        "", "text", "Environment, an archive or a directory, that is copied to every node once and that tasks start from."
    )
    stage_file: tuple[str, ...] = _setting(
        (), "words", "Files and directories, PATH or PATH:NAME, that are copied to every node once: exex.staged(NAME)."
    )
    stage_dir: str = _setting(
        "auto", "text", "Directory of each node for what is staged; auto: its scratch directory, TMPDIR, /dev/shm or /tmp."
    )
    staging: tuple[str, ...] = _setting(
        (), "words", "What fetches and sends files, MODULE:NAME of an exex.files.Staging, asked before those that exex has."
    )
    fetch_to: str = _setting(
        "run",
        "text",
        "Where files that are elsewhere are fetched to: run, the directory of the run; node, a disk of each node's own; or a "
        "directory that all nodes see.",
    )
    keep_bytes: int = _setting(
        64 * 1024,
        "int",
        "Values and arguments of at least so many bytes stay in the memory of the node where they were made, until somebody "
        "needs them; 0: none. Those below 32 KiB never do.",
        0,
    )
    store_bytes: int | Literal["auto"] = _setting(
        "auto",
        "int",
        "Bytes of a node's memory for such values, what is beyond goes to its disk; auto: a quarter of what is free, and no more "
        "than /dev/shm has.",
        0,
        ("auto",),
    )
    store_dir: str = _setting(
        "auto",
        "text",
        "Directory of each node for such values that find no room in memory; auto: its scratch directory, TMPDIR or /tmp.",
    )
    retries: int = _setting(0, "int", "Further attempts of a failed task.", 0)
    start_timeout_s: float = _setting(
        60.0, "float", "Seconds until every rank must be up; unset, longer on nodes with many more ranks than cores.", 0.1
    )
    stop_timeout_s: float = _setting(10.0, "float", "Seconds that an orderly end may take.", 0.1)
    walltime: str = _setting(
        "auto", "text", "When the allocation ends, from now: seconds or HH:MM:SS; auto: as the batch system says; none: never."
    )
    notice_s: float = _setting(
        20.0, "float", "Seconds that the job may go on after SIGTERM, or after SIGUSR1 or SIGUSR2 if its end is not known.", 0
    )
    grace_s: float = _setting(2.0, "float", "Seconds between SIGTERM and SIGKILL for a task that has to end.", 0)
    detach_on_client_exit: bool = _setting(
        False, "bool", "If the script fails or is killed, finish its tasks before the job ends, instead of cancelling them."
    )
    heartbeat_s: float = _setting(10.0, "float", "Seconds of silence after which a rank tells that it is alive.", 0.01)
    heartbeat_limit_s: float = _setting(
        120.0, "float", "Seconds of silence after which a rank is given up, and the job goes on without it; 0: never.", 0
    )
    progress: bool = _setting(False, "bool", "Show a line of progress on the terminal.")
    tasks_per_process: int | Literal["unlimited"] = _setting(
        "unlimited", "int", "Tasks after which a task process is replaced by a new one.", 1, ("unlimited",)
    )
    run_dir: str = _setting("runinfo", "text", "Directory for the files of a run, in numbered directories 000, 001, ...")
    record: str = _setting(
        "auto",
        "text",
        "File for the run record; run: run.h5 in the directory of the run; auto: that, in an allocation of a batch system, and "
        "none elsewhere; none.",
    )
    output: Literal["inherit", "files"] = _setting(
        "inherit",
        "text",
        "inherit: what tasks print goes to the stdout and stderr of the job. files: into a file per node, for exex logs.",
        choices=("inherit", "files"),
    )
    output_limit_bytes: int = _setting(
        1024**2, "int", "Bytes of each stream of one attempt that --output files keeps.", 0
    )
    max_waiting: int | Literal["auto"] = _setting(
        "auto",
        "int",
        "Unfinished tasks that a client may have before submitting blocks; auto: 250000, or four for each slot if that is more.",
        1,
        ("auto",),
    )
    max_waiting_bytes: int = _setting(
        2 * 1024**3, "int", "Bytes of unfinished tasks that a client may have before submitting blocks.", 1
    )
    max_parents: int | Literal["auto"] = _setting(
        "auto",
        "int",
        "Tasks of a worker rank that may wait for tasks which they have made, each with a process of its own; auto: those for "
        "which half of the rank's share of its node's memory is enough at 16 MB each, and its descriptors; at least 16.",
        1,
        ("auto",),
    )
    prefetch_s: float = _setting(0.005, "float", "Seconds of work kept queued at a worker beyond its slots.", 0)
    journal: str = _setting("", "text", "File in which results of apps with cache=True are recorded.")
    resume: bool = _setting(False, "bool", "Take recorded results from the journal, which may exist; without it, it must not.")
    checkpoint_mode: Literal["task_exit", "periodic", "dfk_exit", "manual"] = _setting(
        "task_exit",
        "text",
        "When results are written to the journal: as tasks end, every checkpoint_period_s, at the end, by exex.checkpoint().",
        choices=("task_exit", "periodic", "dfk_exit", "manual"),
    )
    checkpoint_period_s: float = _setting(60.0, "float", "Seconds between two writes in the mode periodic.", 0.1)
    cache_bytes: int = _setting(
        256 * 1024**2, "int", "Bytes of results of apps with cache=True that the manager keeps in memory.", 0
    )

    listen: str = _setting(
        "", "text", "Take clients from other nodes at this address, [HOST:]PORT; port 0: any. No script is needed then."
    )
    interface: str = _setting(
        "", "text", "Network interface, or address, under which clients find the job; unset, all that there are."
    )
    connection_file: str = _setting("", "text", "Where clients read how to reach the job; unset, exex-JOB.json in the directory.")
    client_grace_s: float = _setting(
        60.0, "float", "Seconds for which a client from elsewhere may not be heard of until its tasks are cancelled.", 5
    )
    client_bytes: int = _setting(
        256 * 1024**2, "int", "Bytes of results that wait for a client from elsewhere, from which on no task of it is begun.", 1
    )

    @classmethod
    def load(cls, file: str | None, env: Mapping[str, str], flags: Mapping[str, object]) -> Config:
        """Settings from all sources: `file` (else the one that EXEX_CONFIG names), then `env`, then `flags`.

        Args:
            file: path of a TOML file; no file is read that is not named.
            env: of the process; variables that do not start with `EXEX_` are passed over.
            flags: by field name, as text or of the field's type; None means not given.

        Raises:
            ConfigError: a file that cannot be read, an unknown key, a value of the wrong type or out of range.
        """
        values: dict[str, Any] = {}
        path = file or env.get("EXEX_CONFIG")
        if path:
            for name, value in _read_toml(path).items():
                values[name] = _check(name, value, f"{path}: {name}", f"{path}: unknown key '{name}'", str)
        for variable in sorted(env):
            if variable.startswith(PREFIX) and variable not in INTERNAL_VARIABLES:
                name = variable.removeprefix(PREFIX).lower()
                text = _parse_text(name, env[variable])
                values[name] = _check(name, text, variable, f"unknown variable {variable}", _variable)
        for name, given in flags.items():
            if given is not None:
                value = _parse_text(name, given) if isinstance(given, str) else given
                values[name] = _check(name, value, _option(name), f"unknown option {_option(name)}", _option)
        config = cls(**values)
        if config.resume and not config.journal:
            raise ConfigError("--resume needs --journal FILE: the journal from which recorded results are taken")
        if config.stage and config.isolation == "none":
            raise ConfigError("--stage needs --isolation process: task processes can start in another environment, ranks cannot")
        return config

    @classmethod
    def fields_help(cls) -> tuple[FieldHelp, ...]:
        """Every field in the order of its declaration, for command lines and docs."""
        return tuple(_field_help(name, rule) for name, rule in _RULES.items())


def most_waiting(slots: int) -> int:
    """What `max_waiting` is left to be, in a world of so many slots: each has work waiting while the client takes breath."""
    return max(250_000, 4 * slots)


_RULES: dict[str, _Rule] = {entry.name: entry.metadata["rule"] for entry in fields(Config)}
_DEFAULTS: dict[str, Any] = {entry.name: entry.default for entry in fields(Config)}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _field_help(name: str, rule: _Rule) -> FieldHelp:
    default = _DEFAULTS[name]
    shown = f"{default:g}" if isinstance(default, float) else {"()": "none", "False": "no", "": "none"}.get(str(default), default)
    metavar = {"int": "N", "float": "SECONDS", "text": "TEXT", "words": "NAME,...", "bool": ""}[rule.kind]
    if rule.choices:
        metavar = "|".join((["N"] if rule.kind == "int" else []) + list(rule.choices))
    return FieldHelp(name, _option(name), _variable(name), rule.kind, metavar, f"{rule.help} Default: {shown}.")


def _read_toml(path: str) -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # the same, before 3.11
    try:
        with open(path, encoding="utf-8") as file:
            values: dict[str, Any] = toml.loads(file.read())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return values


def _parse_text(name: str, text: str) -> object:
    """The value that `text`, of a variable or a flag, stands for; `text` itself where it stands for none."""
    rule = _RULES.get(name)
    if rule is None:
        return text
    text = text.strip()
    if rule.kind == "words":
        return [word.strip() for word in text.split(",") if word.strip()]
    if rule.kind == "bool":
        words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
        return words.get(text.lower(), text)
    convert: Callable[[str], object] = {"int": int, "float": float}.get(rule.kind, str)
    try:
        return convert(text)
    except ValueError:
        return text


def _check(name: str, value: object, source: str, unknown: str, spell: Callable[[str], str]) -> object:
    """The value as the field holds it. `source` and `unknown` begin the messages; `spell` writes a name as there."""
    rule = _RULES.get(name)
    if rule is None:
        nearest = difflib.get_close_matches(name, _RULES, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{unknown}; the nearest is {spell(nearest)}")
    checked = _fit(rule, value)
    if name == "walltime" and checked not in (None, "auto", "none"):
        try:
            parse_duration(str(checked))
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}, auto or none") from None
    if checked is None:
        raise ConfigError(f"{source} is {value!r}; accepted: {rule.accepts()}")
    return checked


def _fit(rule: _Rule, value: object) -> object:
    """`value` in the field's type, or None if it has another or is out of range."""
    if rule.kind == "words":
        is_words = isinstance(value, (list, tuple)) and all(isinstance(word, str) and word for word in value)
        return tuple(value) if is_words else None  # type: ignore[arg-type]
    if rule.kind == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, str):
        allowed = value in rule.choices if rule.choices else rule.kind == "text" and value
        return value if allowed else None
    return _fit_number(rule, value)


def _fit_number(rule: _Rule, value: object) -> int | float | None:
    types = {"int": (int,), "float": (int, float)}.get(rule.kind, ())
    if isinstance(value, bool) or not isinstance(value, types) or not math.isfinite(value):
        return None
    if rule.least is not None and value < rule.least:
        return None
    return float(value) if rule.kind == "float" else value
