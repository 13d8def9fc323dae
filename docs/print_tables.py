"""Prints the parts of the documents that come from the code: `python docs/print_tables.py [--write]`.

A part stands between `<!-- from the code: NAME -->` and `<!-- end -->`. A test fails when a document differs.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent

# ---- architecture.md ----


def messages() -> str:
    """The table of messages."""
    from exex.protocol import messages as module

    rows = ["| message | direction | what it says | fields |", "|---|---|---|---|"]
    for name, cls in vars(module).items():
        if inspect.isclass(cls) and issubclass(cls, module.Message) and cls is not module.Message:
            direction, _, text = (cls.__doc__ or "").partition(": ")
            fields = ", ".join(f"`{field}`" for field in cls.__struct_fields__)
            rows.append(f"| `{name}` | {direction} | {' '.join(text.split())} | {fields} |")
    return "\n".join(rows)


def states() -> str:
    """The state diagram of a task."""
    from exex.manager.task import TRANSITIONS

    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    {old or '[*]'} --> {new}: {when}" for old, new, when in TRANSITIONS]
    lines += [f"    {end} --> [*]" for end in ("done", "failed", "cancelled")]
    return "\n".join([*lines, "```"])


def outcomes() -> str:
    """The table of outcomes."""
    from exex.protocol.messages import Outcome

    source = inspect.getsource(Outcome)
    rows = ["| outcome | byte | meaning |", "|---|---|---|"]
    for name, number, meaning in re.findall(r"(\w+) = (\d+)  # (.*)", source):
        rows.append(f"| `{name}` | {number} | {meaning} |")
    return "\n".join(rows)


def errors() -> str:
    """The tree of errors."""
    from exex import errors as module

    return "```\n" + (module.__doc__ or "").split("```")[1].strip() + "\n```"


# ---- running.md ----


def options() -> str:
    """The table of settings: option, variable, key of the TOML file."""
    from exex.config import Config

    rows = ["| option | variable | key | what it sets |", "|---|---|---|---|"]
    for field in Config.fields_help():
        option = f"{field.option} {field.metavar}".strip().replace("|", "\\|")
        if field.kind == "bool":
            option = f"{field.option}`, `--no-{field.option.removeprefix('--')}"
        rows.append(f"| `{option}` | `{field.variable}` | `{field.name}` | {field.help} |")
    return "\n".join(rows)


def task_variables() -> str:
    """The table of variables that tasks find."""
    from exex.config import INTERNAL_VARIABLES

    whose = ("a bash app", "a task that asks for resources", "a task of a job with --stage-file")
    tasks = {f"set for {each}": each for each in whose}
    rows = ["| variable | set for | meaning |", "|---|---|---|"]
    for name, text in INTERNAL_VARIABLES.items():
        who, _, meaning = text.partition(": ")
        if who in tasks:
            rows.append(f"| `{name}` | {tasks[who]} | {meaning} |")
    return "\n".join(rows)


# ---- launchers.md ----


def launchers() -> str:
    """The table of launchers."""
    from exex.launch.launcher_list import launcher_rows

    heads, *rows = launcher_rows({"HOME": "/nonexistent"})
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def launcher_fields() -> str:
    """The table of fields of words."""
    from exex.launch.word_lines import VALUES

    return "\n".join(["| field | stands for |", "|---|---|", *(f"| `{{{name}}}` | {text} |" for name, text in VALUES.items())])


def launcher_conditions() -> str:
    """The table of conditions besides fields."""
    from exex.launch.word_lines import FLAGS

    return "\n".join(["| condition | holds if |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in FLAGS.items())])


# ---- job-scripts.md, machines.md ----


def job_options() -> str:
    """The table of options of `exex jobscript`."""
    from exex.launch.job import OPTIONS

    rows = ["| option | what it says |", "|---|---|"]
    for option in OPTIONS:
        metavar = option.metavar.replace("|", "\\|")
        again = " May be given several times." if option.is_list else ""
        rows.append(f"| `{option.option} {metavar}` | {option.help}{again} |")
    return "\n".join(rows)


def machines() -> str:
    """The table of machines."""
    from exex.launch.machine_text import machine_rows

    head, *rows = machine_rows({"HOME": "/nobody"})
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join([f'`{row[0]}`', *row[1:]])} |" for row in rows)])


# ---- run-record.md ----


def record_tables() -> str:
    """The tables of a run record, with their columns."""
    from exex.record.columns import TABLES

    parts = []
    for table, columns in TABLES.items():
        rows = [f"| `{column.name}` | {column.dtype} | {column.meaning} |" for column in columns]
        parts.append("\n".join([f"#### `{table}`", "", "| column | type | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def record_ends() -> str:
    """The values of the column `how`."""
    from exex.record.columns import How

    rows = re.findall(r"(\w+) = (\d+)  # (.*)", inspect.getsource(How))
    lines = [f"| {number} | `{name}` | {text} |" for name, number, text in rows]
    return "\n".join(["| `how` | name | meaning |", "|---|---|---|", *lines])


def record_attributes() -> str:
    """The attributes of a run record."""
    from exex.record.columns import ATTRIBUTES

    return "\n".join(["| attribute | meaning |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in ATTRIBUTES.items())])


# ---- all ----

PARTS = {
    "messages": messages,
    "states": states,
    "outcomes": outcomes,
    "errors": errors,
    "options": options,
    "task variables": task_variables,
    "job options": job_options,
    "machines": machines,
    "launchers": launchers,
    "launcher fields": launcher_fields,
    "launcher conditions": launcher_conditions,
    "record tables": record_tables,
    "record ends": record_ends,
    "record attributes": record_attributes,
}
DOCUMENTS = {
    "job-scripts.md": ("job options",),
    "machines.md": ("machines",),
    "architecture.md": ("messages", "states", "outcomes", "errors"),
    "running.md": ("options", "task variables"),
    "launchers.md": ("launchers", "launcher fields", "launcher conditions"),
    "run-record.md": ("record tables", "record ends", "record attributes"),
}


def with_parts(text: str, document: str = "architecture.md") -> str:
    """The document's text with every part as the code has it now."""
    for name in DOCUMENTS[document]:
        begin, end = f"<!-- from the code: {name} -->", "<!-- end -->"
        pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{document} has no part {name!r}")
        replacement = f"{begin}\n{PARTS[name]()}\n{end}"
        text = pattern.sub(lambda _, replacement=replacement: replacement, text)
    return text


if __name__ == "__main__":
    if "--write" in sys.argv:
        for document in DOCUMENTS:
            path = DOCS / document
            path.write_text(with_parts(path.read_text(), document))
    else:
        print("\n\n".join(part() for part in PARTS.values()))
