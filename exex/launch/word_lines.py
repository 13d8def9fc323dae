"""Lines of words with fields, `--nodes={nodes}`, of which a launcher's command line is made. Pure."""

from __future__ import annotations

import shlex
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

VALUES = {
    "program": "the launcher itself; it goes first if no line has it",
    "nodes": "number of nodes",
    "ranks": "ranks on all nodes together",
    "ranks_per_node": "ranks on each node, at most",
    "cores_per_rank": "cores of each rank",
    "threads_per_core": "hardware threads that are used of each core",
    "cpus_per_rank": "hardware threads of each rank: cores_per_rank times threads_per_core",
    "gpus_per_rank": "accelerators of each rank; unset without",
    "hosts": "on exactly these, in the spelling that the key `hosts` says; unset for all nodes of the job",
    "nodes_in_job": "nodes that the job has, where they are known; else those of this launch",
    "walltime": "time limit in the unit that the key `walltime` says, rounded up; unset without",
    "env": "NAME=VALUE; the line is repeated for each variable to set",
    "env_name": "NAME alone",
    "env_value": "VALUE alone",
    "goes_on": "the words of [loss], in a line of its own; unset for sub-tasks",
}
"""Fields, and what they stand for."""

FLAGS = {
    "world": "it starts exex itself",
    "subtask": "it starts a sub-task",
    "bind": "each rank is to be bound to cores of its own",
    "hyperthreads": "more than one hardware thread of each core is used",
    "uneven": "not every node has `ranks_per_node` ranks",
}
"""What `when` can name besides fields."""

_VARIABLE_FIELDS = {"env", "env_name", "env_value"}


class Line(NamedTuple):
    """Words that belong together: all of them, or none."""

    words: tuple[str, ...]  # with fields
    when: tuple[str, ...]  # "bind", "not bind"; all must hold
    fields: frozenset[str]


def parse_line(text: str, when: Sequence[str] = ()) -> Line:
    """A line as it stands in a file; words are separated and quoted as in a shell.

    Raises:
        ValueError: what is wrong with it.
    """
    for condition in when:
        name = condition.removeprefix("not ")
        if name not in FLAGS and name not in VALUES:
            raise ValueError(f"{condition!r} is no condition; there are {_listed(FLAGS)}, and the fields {_listed(VALUES)}")
    words = tuple(shlex.split(text))
    if not words:
        raise ValueError("a line without a word")
    fields: set[str] = set()
    for word in words:
        for _, field, spec, conversion in string.Formatter().parse(word):
            if field is None:
                continue
            if field not in VALUES or spec or conversion:
                raise ValueError(f"{text!r} has a field that is none of {_listed(VALUES)}")
            fields.add(field)
    if "goes_on" in fields and text.strip() != "{goes_on}":
        raise ValueError("{goes_on} stands for several words, and must have a line of its own")
    return Line(words, tuple(when), frozenset(fields))


def _listed(names: Mapping[str, str]) -> str:
    return ", ".join(names)


def fill_lines(
    lines: Sequence[Line], values: Mapping[str, str], flags: frozenset[str], env: Mapping[str, str], goes_on: Sequence[str]
) -> list[str]:
    """The words of all lines whose conditions hold and whose fields are set.

    Args:
        values: of the fields that are set; those of variables and `goes_on` come from the other arguments.
        flags: those that hold.
        env: lines with fields of variables are repeated for each.
        goes_on: instead of `{goes_on}`.
    """
    true = flags | values.keys() | (_VARIABLE_FIELDS if env else set()) | ({"goes_on"} if goes_on else set())
    found: list[str] = []
    for line in lines:
        if all((condition.removeprefix("not ") in true) != condition.startswith("not ") for condition in line.when):
            if "goes_on" in line.fields:
                found += goes_on
            elif line.fields <= true:
                found += _words(line, values, env)
    return found


def _words(line: Line, values: Mapping[str, str], env: Mapping[str, str]) -> Iterator[str]:
    if not line.fields & _VARIABLE_FIELDS:
        yield from (word.format_map(values) for word in line.words)
        return
    for name, value in env.items():
        variable = {"env": f"{name}={value}", "env_name": name, "env_value": value}
        yield from (word.format_map({**values, **variable}) for word in line.words)
