"""Tests of Parsl's own suite that do not pass, or are not run, with EXEX; and why. docs/parsl.md prints this list."""

from __future__ import annotations

import os
from collections.abc import Collection

FAIL = {
    "test_error_handling/test_resource_spec.py::test_resource": "asserts that an executor that refuses an unknown key is the "
    "HighThroughputExecutor, the WorkQueueExecutor or the ThreadPoolExecutor; and asks for 1 MB of memory, which is a limit here",
}
"""They run, and fail."""

NOT_RUN_MARKS = {
    "cleannet": "fetches files from servers in the Internet; Parsl's own runs leave it out as well (`-k 'not cleannet'`)",
}
"""By Parsl's mark."""

NOT_RUN_AS_ROOT = {
    "unix_filesystem_permissions_required": "expects that `/bad/dir` cannot be made, which root can",
}
"""The same, for root alone."""


def not_run(test: str, marks: Collection[str]) -> bool:
    """Whether a test is passed over."""
    left_out = NOT_RUN_MARKS.keys() | (NOT_RUN_AS_ROOT.keys() if os.getuid() == 0 else set())
    return not left_out.isdisjoint(marks) or any(mark in test for mark in left_out)
