"""`exex.Executor` keeps the contract of `concurrent.futures` in a real job: see `tests/workflows/executor_contract.py`."""

from __future__ import annotations

import pytest

from tests.launch import ROOT, Launch


@pytest.mark.one_library
def test_the_contract_holds(launch: Launch) -> None:
    script = (ROOT / "tests/workflows/executor_contract.py").read_text()
    done = launch.workflow(3, script, options=("--slots", "1"))  # some of it is about calls that find no room
    assert done.status == 0, (done.out, done.err)
    assert done.err == "", done.err
    assert done.out.count("ok check_") == script.count("def check_")
    assert (launch.cwd / "after-the-end").read_text() == "written"
