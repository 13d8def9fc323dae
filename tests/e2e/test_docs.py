"""The Python blocks of the documentation, run as a user runs them; what they print is what the page says.

In `README.md` and `docs/quickstart.md` each block is a script of its own; on the other pages all blocks, one after the
other, are one script. A `text` block right behind a Python block, or behind the command that starts it, is its output.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.launch import ROOT, Launch
from tests.unit.test_docs import blocks

pytestmark = pytest.mark.one_library

A_SCRIPT_PER_BLOCK = ("README.md", "docs/quickstart.md")
ONE_SCRIPT = ("docs/apps-and-futures.md", "docs/asyncio.md", "docs/files.md", "docs/resume.md", "docs/coming-from-parsl.md")


class Example(NamedTuple):
    """A script and what it must print; None where the page does not say."""

    script: str
    output: str | None


def parts(document: Path) -> list[Example]:
    """The Python blocks of a page, each with the output behind it."""
    found: list[Example] = []
    is_near = False  # nothing but commands since the last Python block
    for block in blocks(document):
        if block.before.strip():
            is_near = False
        if block.language == "python":
            found.append(Example(block.text, None))
            is_near = True
        elif block.language == "text" and is_near:
            found[-1] = found[-1]._replace(output=block.text)
            is_near = False
        elif block.language != "sh":
            is_near = False
    return found


def examples() -> list[object]:
    found: list[object] = []
    for name in A_SCRIPT_PER_BLOCK:
        for number, part in enumerate(parts(ROOT / name), start=1):
            found.append(pytest.param(part, id=f"{name}-{number}"))
    found += [pytest.param(whole(ROOT / name), id=name) for name in ONE_SCRIPT]
    return found


def whole(document: Path) -> Example:
    """All Python blocks of a page as one script."""
    all_parts = parts(document)
    return Example("\n".join(part.script for part in all_parts), "".join(part.output or "" for part in all_parts))


def comparable(text: str) -> list[str]:
    """Lines without what differs from run to run: node, ranks, task numbers, directories, line numbers, carets."""
    text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "nid00012", text)
    text = re.sub(r'File ".*/workflow\.py", line \d+', "File workflow.py", text)
    text = re.sub(r"(?<!\S)/\S*?/(runinfo/|\w+\.)", r"\1", text)
    text = re.sub(r"\b(rank |task |task_)\d+", r"\1N", text)
    return [line.rstrip() for line in text.splitlines() if line.strip(" ~^")]


@pytest.mark.parametrize("example", examples())
def test_examples_run(launch: Launch, example: Example) -> None:
    check(launch, example)


def check(launch: Launch, example: Example, **environment: str) -> None:
    """Run an example, and compare what it prints."""
    done = launch.workflow(3, example.script, **environment)
    assert done.status == 0, (done.out, done.err)
    assert done.err == "", done.err
    if example.output is not None:
        assert comparable(done.out) == comparable(example.output)
