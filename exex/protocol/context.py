"""Whether this process is running a task. Set by whoever runs tasks, read by apps: a task cannot call one."""

from __future__ import annotations

current_task: object | None = None
"""The task that runs in this process; None outside a task. Its `str` says which one it is: "task 7 (f)"."""
