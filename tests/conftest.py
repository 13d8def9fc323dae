"""Fixtures that every level of tests shares."""

from __future__ import annotations

import gc
import signal
from pathlib import Path

import pytest

from tests.launch import Launch

for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:  # a run in the background, or by nohup, inherits that, and would hand it on
        signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """What was imported stays: collections need not look at it again and again. Some tests make hundreds of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Starts worlds under the mpiexec of this environment, in an empty directory."""
    return Launch(tmp_path)
