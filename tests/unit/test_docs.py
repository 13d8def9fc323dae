"""What the documentation prints from the code is what the code says; its examples compile, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from exex.campaign.plan import read_campaign
from exex.config import Config
from exex.launch.launchers import load_launcher
from exex.launch.machines import load_machine
from tests.parsl import excused

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")])

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block: its language, its text, and what stands between the block before it and this one."""

    language: str
    text: str
    before: str


def blocks(document: Path) -> list[Block]:
    """All fenced blocks, in order."""
    text, found, end = document.read_text(encoding="utf-8"), [], 0
    for match in _BLOCK.finditer(text):
        found.append(Block(match[1], match[2], text[end : match.start()]))
        end = match.end()
    return found


def print_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("print_tables", DOCS / "print_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_architecture_tables_are_current() -> None:
    text = (DOCS / "architecture.md").read_text()
    assert print_tables().with_parts(text) == text, "run: python docs/print_tables.py --write"


@pytest.mark.parametrize("document", print_tables().DOCUMENTS)
def test_tables_are_current(document: str) -> None:
    text = (DOCS / document).read_text()
    assert print_tables().with_parts(text, document) == text, "run: python docs/print_tables.py --write"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_python_blocks_compile(document: Path) -> None:
    for number, block in enumerate(blocks(document), start=1):
        if block.language == "python":
            compile(block.text, f"{document.name}, block {number}", "exec")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_block_names_its_language_and_is_closed(document: Path) -> None:
    fences = re.findall(r"^```", document.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(blocks(document))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_toml_blocks_are_what_the_page_is_about(document: Path, tmp_path: Path) -> None:
    for block in blocks(document):
        if block.language == "toml":
            path = tmp_path / "exex.toml"
            path.write_text(block.text)
            if document.name == "launchers.md":
                load_launcher(str(path), {})
            elif document.name == "machines.md":
                load_machine(str(path), {})
            elif document.name == "campaigns.md":
                (tmp_path / "simulate.py").touch()
                assert read_campaign(str(path)).points()
            else:
                Config.load(str(path), {}, {})


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = _BLOCK.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def prose(document: Path) -> str:
    """A document without its code."""
    text = document.read_text(encoding="utf-8")
    if document.suffix == ".ipynb":
        return "".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return _BLOCK.sub("", text)


@pytest.mark.parametrize("document", [*DOCUMENTS, DOCS / "tutorial.ipynb"], ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    for link in _LINK.findall(prose(document)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_the_tests_of_parsl_that_are_excused_are_named_with_their_reasons() -> None:
    text = (DOCS / "parsl.md").read_text()
    for name, why in {**excused.FAIL, **excused.NOT_RUN_MARKS, **excused.NOT_RUN_AS_ROOT}.items():
        assert re.search(rf"^\|[^|]*`{re.escape(name)}`[^|]*\| {re.escape(why)} \|$", text, re.MULTILINE), name
