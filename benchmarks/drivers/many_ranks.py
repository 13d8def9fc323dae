"""Started on every rank in the place of `python -m exex.run`: says when each rank has reached which point of its start.

Adds two lines to what runs, and imports nothing that exex would not import there: the times are those of a job.
"""

from __future__ import annotations

import time

FIRST_LINE_S = time.monotonic()  # before anything else is imported

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from importlib.machinery import ModuleSpec, PathFinder  # noqa: E402
from types import ModuleType  # noqa: E402
from typing import Any  # noqa: E402

LAUNCHED = "MANY_RANKS_LAUNCHED"  # by time.monotonic(), which all processes of a machine share
PIDS = "MANY_RANKS_PIDS"  # file into which the manager writes the pids of the ranks


def patch_worker(module: Any) -> None:
    """Let each Hello also tell when this process ran its first line, and when the guard began."""
    hello = module.WorkerLoop.hello

    def say(self: Any, version: str, python: str, error: str, times_s: list[float]) -> None:
        began_s = time.monotonic() - times_s[-1]  # the last of them is now
        launched_s = float(os.environ[LAUNCHED])
        absolute = [began_s + each - launched_s for each in times_s]
        hello(self, version, python, error, [FIRST_LINE_S - launched_s, *absolute])

    module.WorkerLoop.hello = say


def patch_manager(module: Any) -> None:
    """Print what all Hellos have told as soon as the last one is there."""
    on_hello = module.ManagerLoop._on_hello
    told: dict[int, tuple[int, list[float]]] = {}

    def hear(self: Any, rank: int, message: Any) -> Any:
        told[rank] = (message.pid, message.times_s)
        result = on_hello(self, rank, message)
        if not self._missing:
            now_s = time.monotonic() - float(os.environ[LAUNCHED])
            with open(os.environ[PIDS], "w") as file:
                json.dump([os.getpid(), *(pid for pid, _ in told.values())], file)
            steps = list(zip(*(times for _, times in told.values())))
            print(json.dumps({"steps": [sorted(step) for step in steps], "last_hello_s": now_s}), flush=True)
        return result

    module.ManagerLoop._on_hello = hear


class Patches:
    """Patches modules when something imports them."""

    todo = {"exex.worker.loop": patch_worker, "exex.manager.loop": patch_manager}  # noqa: RUF012

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """What the importer does, and then the patch."""
        patch = cls.todo.get(name)
        spec = PathFinder.find_spec(name, path, target) if patch else None
        if spec is None or spec.loader is None or patch is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if __name__ == "__main__":
    sys.meta_path.insert(0, Patches)
    del sys.path[0]  # this file's directory, where `-m` would have another
    from exex.run import main

    sys.exit(main())
