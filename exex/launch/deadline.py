"""When the allocation ends: from the batch system's variables where they tell, else from its commands.

The parsing is pure; `find_end_s` alone runs commands. All times are seconds since the epoch.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from exex.config import parse_duration
from exex.errors import ConfigError

_COMMAND_TIMEOUT_S = 10.0

RESERVE_SHARE = 0.05
RESERVE_LEAST_S = 2.0
RESERVE_MOST_S = 60.0


def reserve_s(left_s: float) -> float:
    """What to keep of the time that is left for an orderly end: 5 %, at least 2 s, at most a minute."""
    return min(RESERVE_MOST_S, max(RESERVE_LEAST_S, RESERVE_SHARE * left_s))


def end_in_variables(env: Mapping[str, str]) -> float | None:
    """The end that Slurm (from 22.05 on) and Cobalt put into the environment."""
    for name in ("SLURM_JOB_END_TIME", "COBALT_ENDTIME"):
        text = env.get(name, "")
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
    return None


def end_of_squeue(output: str, now_s: float) -> float | None:
    """From `squeue --format %L`: time left, or a word such as UNLIMITED."""
    try:
        return now_s + parse_duration(output)
    except ConfigError:
        return None


def end_of_qstat(output: str) -> float | None:
    """From `qstat -f` of PBS and Torque: start and walltime of the job."""
    found = dict(re.findall(r"^\s*(\S+) = (.+)$", output, re.MULTILINE))
    try:
        limit_s = parse_duration(found["Resource_List.walltime"])
        start = found.get("stime") or found["start_time"]
        return time.mktime(time.strptime(start.strip(), "%a %b %d %H:%M:%S %Y")) + limit_s
    except (KeyError, ValueError, ConfigError):
        return None


def _run(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def find_end_s(env: Mapping[str, str], now_s: float, run: Callable[[Sequence[str]], str] = _run) -> float | None:
    """When the allocation of this process ends; None where there is none, or nobody tells."""
    end_s = end_in_variables(env)
    if end_s is not None:
        return end_s
    if "SLURM_JOB_ID" in env:
        return end_of_squeue(run(["squeue", "--noheader", "--format", "%L", "--jobs", env["SLURM_JOB_ID"]]), now_s)
    if "PBS_JOBID" in env:
        return end_of_qstat(run(["qstat", "-f", env["PBS_JOBID"]]))
    return None
