"""Fixtures of many unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import FakeManager, Job


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    """A session with a fake manager."""
    with Job() as manager:
        yield manager
