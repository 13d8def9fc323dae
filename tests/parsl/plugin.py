"""A plugin of pytest for Parsl's own tests: passes over some, writes down how the others ended, and lets them run under any pytest.

PARSL_OUTCOMES names the file for the outcomes: a line for each test, its last outcome and its name.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from parsl.tests import conftest

from tests.parsl.excused import not_run

_ends: dict[str, str] = {}
_ignore_collect = conftest.pytest_ignore_collect


def _ignore_path(collection_path: Path) -> bool | None:
    """Parsl's hook, which takes an argument that pytest has had until version 8."""
    return _ignore_collect(SimpleNamespace(strpath=str(collection_path))) or None


conftest.pytest_ignore_collect = _ignore_path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if not_run(item.nodeid, {mark.name for mark in item.iter_markers()})]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        if _ends.get(report.nodeid) != "failed":
            _ends[report.nodeid] = report.outcome


def pytest_sessionfinish() -> None:
    Path(os.environ["PARSL_OUTCOMES"]).write_text("".join(f"{how} {test}\n" for test, how in _ends.items()))
