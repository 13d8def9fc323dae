"""Fixtures that every level of tests shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch import Launch


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Starts worlds under the mpiexec of this environment, in an empty directory."""
    return Launch(tmp_path)
