"""Some runs of each scenario of dead_ranks; by hand, many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.dead_ranks import SCENARIOS, run_once


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_worker_ranks_die(scenario: str, seed: int, tmp_path: Path) -> None:
    run_once(scenario, seed, tmp_path)
