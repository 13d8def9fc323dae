"""The command lines on the pages about job scripts and machines, run as they stand there; scripts and messages are those shown."""

from __future__ import annotations

import os
import re
import shlex
import sys

import pytest
from click.testing import CliRunner

from exex import cli
from tests.unit.test_docs import DOCS, blocks

PAGES = ("job-scripts.md", "machines.md", "launchers.md")


def shown():
    """(page, command lines of a block, language and text of the block behind it)."""
    for page in PAGES:
        found = blocks(DOCS / page)
        for number, block in enumerate(found):
            if block.language == "sh":
                lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
                behind = found[number + 1] if number + 1 < len(found) and not found[number + 1].before.strip() else None
                yield page, lines, (behind.language, behind.text) if behind and behind.language in ("bash", "text") else None


def run(line):
    """Run one line, without what it sends elsewhere; a job is not really submitted."""
    words = shlex.split(line.partition(" > ")[0], comments=True)
    assert words.pop(0) == "exex"
    if words[0] == "submit" and "--dry-run" not in words:
        words.insert(1, "--dry-run")
    return CliRunner().invoke(cli.main, words, prog_name="exex")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("EXEX_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workflow.py").write_text("")


BLOCKS = list(shown())


@pytest.mark.parametrize("page, lines, behind", BLOCKS, ids=[f"{page}-{number}" for number, (page, *_) in enumerate(BLOCKS)])
def test_command_lines(page, lines, behind):
    said = []
    for line in lines:
        if not line.startswith("exex "):
            assert line.startswith(("salloc ", "bash ")), line  # those run in tests/e2e/test_submit_slurm.py
            continue
        done = run(line)
        is_refused = behind is not None and behind[0] == "text"
        assert done.exit_code == (2 if is_refused else 0), (line, done.stderr)
        said.append(done.stderr if is_refused else done.stdout.replace(sys.executable, "python"))
    assert behind is None or "".join(said) == behind[1]


def test_the_pages_show_commands():
    assert sum(line.startswith("exex ") for _, lines, _ in BLOCKS for line in lines) > 15
    assert {behind[0] for _, _, behind in BLOCKS if behind} == {"bash", "text"}


def test_the_machine_of_the_page_is_one_for_job_scripts(tmp_path):
    (text,) = [block.text for block in blocks(DOCS / "machines.md") if block.language == "toml"]
    (tmp_path / "exex" / "configs").mkdir(parents=True)
    (tmp_path / "exex" / "configs" / "mine.toml").write_text(text)
    done = run("exex jobscript --machine mine --nodes 2 --walltime 10:00 --queue gpu workflow.py")
    assert done.exit_code == 0, done.stderr
    for line in (
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --exclusive",
        "module load mpich/4.2",
        'export TMPDIR="/local/$USER"',
        "export SLURM_MPI_TYPE=pmi2",
    ):
        assert f"\n{line}\n" in done.stdout
    assert "--slots 64" in done.stdout and "--gpus-per-task=2" in done.stdout


def test_every_key_of_a_machine_file_is_on_the_page():
    """The page's table names the keys that the reader asks for, and no others."""
    source = (DOCS.parent / "exex" / "launch" / "machines.py").read_text()
    asked = set(re.findall(r'(?<!data\.)(?:read|flag|choice|table|has)\(\s*"(\w+)"', source)) | {"request", "queue_option", "directives", "options"}
    table = (DOCS / "machines.md").read_text().partition("## The whole file")[2]
    first_cells = " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))
    named = set(re.findall(r"[a-z_]+", first_cells)) - {"key"}
    assert asked == named
