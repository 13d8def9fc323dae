"""Functions on communicators of worker ranks under the mpiexec of this environment, without a manager."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch import Launch


@pytest.mark.parametrize("scenario", [("values",), ("failed",), ("interrupted",), ("many", "10000")], ids=lambda words: words[0])
def test_functions_on_communicators(scenario: tuple[str, ...], tmp_path: Path) -> None:
    done = Launch(tmp_path).module(4, "tests.mpi.together", *scenario)
    assert done.status == 0, done.err
    assert done.out.count("rank") == 4, done.out
