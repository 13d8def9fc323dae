"""A few runs of each scenario of tests/endurance.py; `python -m tests.endurance` makes a hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.endurance import SCENARIOS, run_once


@pytest.mark.parametrize("seed", range(1000, 1003))
@pytest.mark.parametrize(
    "scenario", [name if name == "interrupt" else pytest.param(name, marks=pytest.mark.one_library) for name in SCENARIOS]
)
def test_a_job_ends_as_it_must(scenario: str, seed: int, tmp_path: Path) -> None:
    run_once(scenario, seed, tmp_path)
