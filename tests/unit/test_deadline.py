"""When the allocation ends."""

from __future__ import annotations

import time

import pytest

from exex.config import parse_duration
from exex.errors import ConfigError
from exex.launch.deadline import find_end_s, reserve_s


@pytest.mark.parametrize(
    "text, seconds", [("20", 20), ("1.5", 1.5), ("1:30", 90), ("02:00:00", 7200), ("1-00:00:05", 86405), ("2-01", 172801)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "an hour", "1:2:3:4", "-5", "1h", "x-1:00", "UNLIMITED", "NOT_SET"])
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is no duration"):
        parse_duration(text)


def test_the_reserve_is_a_share_within_bounds() -> None:
    assert [reserve_s(left) for left in (10, 200, 86400)] == [2, 10, 60]


def no_command(argv: object) -> str:
    raise AssertionError(argv)


@pytest.mark.parametrize("name", ["SLURM_JOB_END_TIME", "COBALT_ENDTIME"])
def test_variables_are_believed_first(name: str) -> None:
    assert find_end_s({name: "1700000000", "SLURM_JOB_ID": "7"}, 0.0, no_command) == 1.7e9


def test_slurm_is_asked_for_the_time_left() -> None:
    asked = []

    def squeue(argv: object) -> str:
        asked.append(argv)
        return "1:00:00\n"

    assert find_end_s({"SLURM_JOB_ID": "7"}, 1000.0, squeue) == 4600.0
    assert asked[0][-1] == "7"


@pytest.mark.parametrize("answer", ["UNLIMITED\n", "", "NOT_SET\n", "slurm_load_jobs error\n"])
def test_slurm_without_a_limit(answer: str) -> None:
    assert find_end_s({"SLURM_JOB_ID": "7"}, 0.0, lambda argv: answer) is None


QSTAT = """Job Id: 12.pbs
    Job_Name = x
    Resource_List.ncpus = 4
    Resource_List.walltime = 00:30:00
    stime = Sat Nov 21 10:00:00 2026
    resources_used.walltime = 00:00:10
"""


def test_pbs_is_asked_for_start_and_limit() -> None:
    start = time.mktime((2026, 11, 21, 10, 0, 0, 0, 0, -1))
    assert find_end_s({"PBS_JOBID": "12"}, 0.0, lambda argv: QSTAT) == start + 1800
    assert find_end_s({"PBS_JOBID": "12"}, 0.0, lambda argv: QSTAT.replace("stime", "mtime")) is None


def test_no_batch_system_no_end() -> None:
    assert find_end_s({}, 0.0, no_command) is None
