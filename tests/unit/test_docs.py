"""What the documentation prints from the code is what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_architecture_tables_are_current() -> None:
    spec = importlib.util.spec_from_file_location("print_tables", DOCS / "print_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (DOCS / "architecture.md").read_text()
    assert module.with_parts(text) == text, "run: python docs/print_tables.py --write"
