"""Some runs of each scenario of dead_ranks; by hand, many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.dead_ranks import SCENARIOS, run_once


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_worker_ranks_die(scenario: str, seed: int, tmp_path: Path) -> None:
    try:
        run_once(scenario, seed, tmp_path)
    except AssertionError as error:
        if scenario == "slurm" and "exex: rank 0 at node1 has not moved" in str(error):
            pytest.xfail("over libfabric's tcp MPI_Isend of MPICH 5.0 may spin for ever on a peer that has just died: docs/architecture.md")
        raise
