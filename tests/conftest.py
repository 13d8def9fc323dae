"""Fixtures that every level of tests shares."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.launch import Launch

for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:  # a run in the background, or by nohup, inherits that, and would hand it on
        signal.signal(number, handler)


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Starts worlds under the mpiexec of this environment, in an empty directory."""
    return Launch(tmp_path)
