"""Launching where compute nodes cannot: a task's end asks the launch helper, on the job script's node, to start a launcher.

`helper` listens, `keeper` holds one launch, `task_end` is the other side; `connection_file`, `wire` and `flows` are what
both share. These and `task_end` are imported for every launch, so they import little.
"""
