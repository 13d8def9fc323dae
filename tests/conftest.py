"""Fixtures that every level of tests shares."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.launch import Launch

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a run in the background inherits that, and would hand it on
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Starts worlds under the mpiexec of this environment, in an empty directory."""
    return Launch(tmp_path)
