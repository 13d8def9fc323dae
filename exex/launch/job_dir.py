"""The directory that EXEX_JOB_DIR names: what a job and whoever has started it, `exex run` or a job script, tell each other."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping


def is_held_in_foreground(environment: Mapping[str, str]) -> bool:
    """Whether an `exex run` on this node waits for the job."""
    directory = environment.get("EXEX_JOB_DIR")
    return bool(directory) and os.path.exists(os.path.join(directory or "", "job.sock"))


def status_is_written(environment: Mapping[str, str]) -> bool:
    """Whether `exex run` knows the status already: then a launcher that hears of success has nothing to complain of."""
    directory = environment.get("EXEX_JOB_DIR")
    return bool(directory) and os.path.exists(os.path.join(directory or "", "status"))


def clear_status(environment: Mapping[str, str]) -> None:
    """Remove the status of an earlier job from the directory."""
    directory = environment.get("EXEX_JOB_DIR")
    if directory:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, "status"))


def write_status(environment: Mapping[str, str], status: int) -> None:
    """Leave the job's status for `exex run`, which cannot trust the launcher's."""
    directory = environment.get("EXEX_JOB_DIR")
    if not directory:
        return
    try:
        with open(os.path.join(directory, "status.new"), "w") as file:
            file.write(f"{status}\n")
        os.replace(os.path.join(directory, "status.new"), os.path.join(directory, "status"))
    except OSError as error:
        print(f"exex: cannot write the job's status to {directory}: {error}", file=sys.stderr)
