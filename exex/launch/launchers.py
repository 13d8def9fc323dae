"""Launchers as data: what `launchers/*.toml` says, and command lines that are made of it.

Pure but for reading the files. docs/launchers.md describes them; `exex.launch.data` says where they are looked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from exex.errors import ConfigError
from exex.launch import data
from exex.launch.layout import (
    HOST_STYLES,
    TIME_UNITS,
    UNEVEN,
    HostStyle,
    Layout,
    TimeUnit,
    Uneven,
    check_layout,
    check_ranks,
    spell_hosts,
    spell_walltime,
)
from exex.launch.toml_table import Table, read_table
from exex.launch.word_lines import Line, fill_lines, parse_line

__all__ = ["LauncherFile", "Layout", "launcher_names", "load_launcher"]

Room = Literal["cores", "free cores", "nodes"]
"""Where a sub-task can start: on cores that the world has; on cores that it has left free; on nodes that it has left free."""

_ROOMS = ("cores", "free cores", "nodes")
_BATCH_SYSTEMS = ("Slurm", "PBS", "Cobalt", "LSF", "Flux", "none")
_LEFT_OUT = ("cores_per_rank", "threads_per_core", "gpus_per_rank", "walltime")
_LOCAL_FIELDS = {"program", "ranks", "goes_on"}


@dataclass(frozen=True)
class LauncherFile:
    """One launcher. Fields have the names of the file's keys.

    Attributes:
        goes_on_since: major version of the launcher from which `goes_on` words exist; None: all have them.
    """

    name: str
    path: str
    text: str
    about: str
    program: str
    tried: bool
    world_is: str
    batch_systems: tuple[str, ...]
    from_compute_nodes: bool
    room: Room
    uneven: Uneven
    hosts: HostStyle | None
    walltime: TimeUnit | None
    left_out: frozenset[str]
    words: tuple[Line, ...]
    goes_on_without_rank: bool = False
    goes_on_without_node: bool = False
    goes_on: tuple[str, ...] = ()
    goes_on_since: int | None = None
    ranks_see: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    set: Mapping[str, str] = field(default_factory=dict)
    set_with: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    local_words: tuple[Line, ...] = ()
    local_variables: Mapping[str, str] = field(default_factory=dict)
    local_variables_of_root: Mapping[str, str] = field(default_factory=dict)

    def world_argv(self, layout: Layout) -> list[str]:
        """The words before `python -m exex.run ...`; with those that let the job go on when a rank dies.

        Raises:
            ConfigError: the launcher cannot start this layout.
        """
        return self._argv(layout, "world", self.goes_on)

    def subtask_argv(self, layout: Layout) -> list[str]:
        """The words before the program of a sub-task, which is started inside the job and ends as a whole if a rank of it fails.

        The launcher wants the environment that `nested_environment` makes.

        Raises:
            ConfigError: the launcher cannot start this layout.
        """
        return self._argv(layout, "subtask", ())

    def can_say(self, field: str) -> bool:
        """Whether there are words for this part of a layout, or the file says that it is left out."""
        return field in self.left_out or field in _said(self.words)

    def nested_environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """What the launcher of a sub-task must be given: nothing of the world that is an option to it, and what it needs there.

        What the user has set stays.

        Args:
            env: of a task, which holds nothing that tells a rank (`world.task_environment`).
        """
        added = dict(self.set)
        for name, variables in self.set_with.items():
            if name in env:
                added.update(variables)
        return added | {name: value for name, value in env.items() if not self._drops(name)}

    def goes_on_words(self, version: str) -> list[str]:
        """Options with which the other ranks go on when one dies, if a launcher of this version has them.

        Args:
            version: text with a number such as 5.0.11 in it.
        """
        number = re.search(r"(\d+)\.\d+", version)
        if self.goes_on_since is not None and not (number and int(number[1]) >= self.goes_on_since):
            return []
        return list(self.goes_on)

    def local_argv(self, ranks: int, program: str, version: str) -> list[str]:
        """The words for ranks on this machine alone that share its cores.

        Args:
            program: the launcher's path.
            version: see `goes_on_words`.

        Raises:
            ConfigError: the file has no [local] part.
        """
        if not self.local_words:
            raise ConfigError(f"{self.path}: {self.name} is not for ranks on this machine alone: the file has no [local]")
        values = {"program": program, "ranks": str(ranks)}
        return _filled(self.local_words, values, frozenset(), {}, self.goes_on_words(version))

    def local_environment(self, uid: int) -> dict[str, str]:
        """Variables that go with `local_argv`.

        Args:
            uid: of the user; some launchers want root to insist.
        """
        return {**self.local_variables, **(self.local_variables_of_root if uid == 0 else {})}

    def _argv(self, layout: Layout, kind: str, goes_on: Sequence[str]) -> list[str]:
        check_layout(self.name, layout)
        check_ranks(self.name, layout, self.uneven)
        self._check_words_for(layout)
        values = {
            "program": self.program,
            "nodes": str(layout.nodes),
            "ranks": str(layout.all_ranks),
            "ranks_per_node": str(layout.ranks_per_node),
            "cores_per_rank": str(layout.cores_per_rank),
            "threads_per_core": str(layout.threads_per_core),
            "cpus_per_rank": str(layout.cores_per_rank * layout.threads_per_core),
            "nodes_in_job": str(len(layout.allocation) or layout.nodes),
        }
        if layout.gpus_per_rank:
            values["gpus_per_rank"] = str(layout.gpus_per_rank)
        if layout.hosts and self.hosts:
            values["hosts"] = spell_hosts(self.name, layout, self.hosts)
        if layout.walltime_s is not None and self.walltime:
            values["walltime"] = spell_walltime(layout.walltime_s, self.walltime)
        flags = {
            kind: True,
            "bind": layout.bind,
            "hyperthreads": layout.threads_per_core > 1,
            "uneven": layout.all_ranks < layout.nodes * layout.ranks_per_node,
        }
        return _filled(self.words, values, frozenset(name for name, holds in flags.items() if holds), layout.env, goes_on)

    def _check_words_for(self, layout: Layout) -> None:
        asked = {
            "hosts": layout.hosts,
            "cores_per_rank": layout.cores_per_rank > 1,
            "threads_per_core": layout.threads_per_core > 1,
            "gpus_per_rank": layout.gpus_per_rank,
            "walltime": layout.walltime_s is not None,
            "env": layout.env,
        }
        for name, is_asked in asked.items():
            if is_asked and not self.can_say(name):
                raise ConfigError(
                    f"{self.name} has no words for {name}, which this launch asks for: {self.path} does not use {{{name}}}"
                )

    def _drops(self, name: str) -> bool:
        return any(name.startswith(entry[:-1]) if entry.endswith("*") else name == entry for entry in self.drop)


def _filled(
    lines: Sequence[Line], values: Mapping[str, str], flags: frozenset[str], env: Mapping[str, str], goes_on: Sequence[str]
) -> list[str]:
    words = fill_lines(lines, values, flags, env, goes_on)
    return words if any("program" in line.fields for line in lines) else [values["program"], *words]


def _said(lines: Sequence[Line]) -> set[str]:
    """Parts of a layout for which there are words."""
    fields = {name for line in lines for name in line.fields}
    fields |= {"hyperthreads" for line in lines if "hyperthreads" in line.when}
    if fields & {"cpus_per_rank", "hyperthreads"}:
        fields.add("threads_per_core")
    if "cpus_per_rank" in fields:
        fields.add("cores_per_rank")
    if fields & {"env_name", "env_value"}:
        fields.add("env")
    return fields


def launcher_names(env: Mapping[str, str]) -> list[str]:
    """All launchers that there are files of, sorted."""
    return data.names("launchers", env)


def load_launcher(name: str, env: Mapping[str, str]) -> LauncherFile:
    """A launcher by name, or by the path of its file.

    Raises:
        ConfigError: there is none, or its file cannot be used; it names file and key.
    """
    file = data.read("launchers", name, env)
    top = read_table(file.path, file.text)
    words = _lines(top, "words")
    loss, environment, local = top.table("loss"), top.table("environment"), top.table("local")
    set_with = environment.table("set_with")
    launcher = LauncherFile(
        name=name.rsplit("/", 1)[-1].removesuffix(".toml"),
        path=file.path,
        text=file.text,
        about=top.text("about"),
        program=top.text("program"),
        tried=top.flag("tried"),
        world_is=top.text("world_is"),
        batch_systems=top.texts("batch_systems", choices=_BATCH_SYSTEMS),
        from_compute_nodes=top.flag("from_compute_nodes"),
        room=top.choice("room", _ROOMS),
        uneven=top.choice("uneven", UNEVEN),
        hosts=top.choice("hosts", HOST_STYLES, None),
        walltime=top.choice("walltime", TIME_UNITS, None),
        left_out=frozenset(top.texts("left_out", (), choices=_LEFT_OUT)),
        words=words,
        goes_on_without_rank=loss.flag("rank", False),
        goes_on_without_node=loss.flag("node", False),
        goes_on=_plain_words(loss, "words"),
        goes_on_since=loss.number("since", None),
        ranks_see=environment.texts("ranks_see", ()),
        drop=environment.texts("drop", ()),
        set=environment.variables("set"),
        set_with={variable: set_with.variables(variable) for variable in set_with},
        local_words=_lines(local, "words", ()),
        local_variables=local.variables("environment"),
        local_variables_of_root=local.variables("environment_of_root"),
    )
    for table in (top, loss, environment, local):
        table.refuse_unknown()
    _check_file(launcher, top)
    return launcher


def _check_file(launcher: LauncherFile, top: Table) -> None:
    """Refuse what is well written but cannot be meant."""
    said = _said(launcher.words)
    if "ranks" not in said:
        raise top.wrong("words", "never says how many ranks: use {ranks}")
    for name, style in (("hosts", launcher.hosts), ("walltime", launcher.walltime)):
        if (name in said) != (style is not None):
            how = "does not say how it is spelled" if style is None else "is set"
            raise top.wrong(name, f"{how}, and {{{name}}} is {'used' if name in said else 'not used'} in words")
    for name in sorted(launcher.left_out & said):
        raise top.wrong("left_out", f"has {name}, for which there are words")
    for line in launcher.local_words:
        for name in sorted(line.fields - _LOCAL_FIELDS) + sorted(line.when):
            raise top.wrong("local.words", f"has {name}; accepted: {', '.join(sorted(_LOCAL_FIELDS))}, and no condition")
    if launcher.goes_on and not (launcher.goes_on_without_rank or launcher.goes_on_without_node):
        raise top.wrong("loss.words", "is set, but neither loss.rank nor loss.node is true")
    if launcher.goes_on and "goes_on" not in said:
        raise top.wrong("words", "has no line \"{goes_on}\" for loss.words")


_REQUIRED: tuple[Line, ...] = (Line((), (), frozenset()),)


def _lines(table: Table, key: str, default: tuple[Line, ...] = _REQUIRED) -> tuple[Line, ...]:
    """Lines: texts, or tables of `words` and `when`."""
    entries = table.entries(key, is_required=default is _REQUIRED)
    return tuple(_line(table, f"{key}, line {number}", entry) for number, entry in enumerate(entries, start=1))


def _line(table: Table, where: str, entry: object) -> Line:
    try:
        if isinstance(entry, str):
            return parse_line(entry)
        inner = table.inner(where, entry)
        text, when = inner.text("words"), inner.texts("when", is_text_enough=True)
        inner.refuse_unknown()
        return parse_line(text, when)
    except ValueError as error:
        raise table.wrong(where, str(error)) from None


def _plain_words(table: Table, key: str) -> tuple[str, ...]:
    text = table.text(key, "")
    if not text:
        return ()
    line = _line(table, key, text)
    if line.fields:
        raise table.wrong(key, f"has the field {{{min(line.fields)}}}; accepted: words without fields")
    return line.words
