"""Fixtures that every level of tests shares."""

from __future__ import annotations

import gc
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endurance import nobody_left
from tests.launch import Launch

for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:  # a run in the background, or by nohup, inherits that, and would hand it on
        signal.signal(number, handler)


def pytest_configure(config: pytest.Config) -> None:
    """Our marker."""
    config.addinivalue_line("markers", "one_library: what it shows does not depend on the MPI library; runs beside MPICH only")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """See the marker."""
    if item.get_closest_marker("one_library") and Launch(Path.cwd()).family != "mpich":
        pytest.skip("does not depend on the MPI library: one is enough")


def pytest_collection_finish() -> None:
    """What was imported stays: collections need not look at it again and again. Some tests make hundreds of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """Nor at what is left of the modules before; a manager in this process has turned collections off."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Starts worlds under the mpiexec of this environment, in an empty directory."""
    return Launch(tmp_path)


@pytest.fixture
def mark() -> Iterator[str]:
    """A value of MARK for every process of the test's job; none may be left at the end."""
    value = uuid.uuid4().hex
    yield value
    nobody_left(value)
