"""What people call tasks."""

from __future__ import annotations

import pytest

from exex.protocol.messages import CLIENT_SHIFT
from exex.protocol.task_numbers import INNER, name_of, number_of, prefix_of, shown


@pytest.mark.parametrize(("client", "name"), [(0, "7"), (3, "7"), (INNER, "7"), (INNER + 1, "1.7"), (INNER + 12, "12.7")])
def test_the_name_of_a_task(client: int, name: str) -> None:
    number = shown((client << CLIENT_SHIFT) + 7)
    assert name_of(number) == name == f"{prefix_of(client)}7"
    assert number_of(name) == number


def test_the_name_of_nobody() -> None:
    assert name_of(-1) == "-1"


@pytest.mark.parametrize("name", ["", "x", "-1", "1.", ".1", "1.2.3", "1.x"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="is no task; accepted: a number, as 7, or two"):
        number_of(name)
