"""Which task this process is running. Set by task processes (and by a rank that runs tasks itself); read by apps."""

from __future__ import annotations

current_task: str | None = None
"""Description of the running task, for messages: "task 7 (f)". None outside a task."""
