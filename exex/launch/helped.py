"""Words before a launcher's that have the launch helper start it. Runs in tasks; starts nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from exex.errors import ConfigError

VARIABLE = "EXEX_LAUNCH_HELPER"
"""Set by job scripts: the connection file of the launch helper."""

_TASK_END = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "remote", "__main__.py")


def helped(words: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """A command line that has the launch helper start `words`, and behaves as they would.

    Args:
        words: of a launcher with `from_compute_nodes = false`, and its program.
        env: of the task.

    Raises:
        ConfigError: no launch helper was started for this job.
    """
    if not env.get(VARIABLE):
        raise ConfigError(
            f"{words[0]} starts programs only from where the job script runs; the job script must start `exex launch-helper`, as "
            f"those of `exex jobscript` do, and set {VARIABLE} to its connection file"
        )
    # -I -S: no file in the task's directory can stand in for a module, and Python starts in half the time
    return [sys.executable, "-I", "-S", _TASK_END, *words]
