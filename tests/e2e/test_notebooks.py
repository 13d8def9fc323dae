"""Notebooks with a real kernel: the tutorial, Ctrl-C in a cell, and the ends of kernels.

    python -m tests.e2e.test_notebooks --write    # executes docs/tutorial.ipynb, and stores in it what its cells give
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.launch import ROOT, Launch

TUTORIAL = ROOT / "docs" / "tutorial.ipynb"
LIMIT_S = 60

# ---- the tutorial --------------------------------------------------------------------------------------------------


def execute(directory: Path, env: dict[str, str]) -> Any:
    """The tutorial with what its cells give when they are run in this directory."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(TUTORIAL, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": str(directory)}}, record_timing=False
    )
    client.execute(env={**env, "IPYTHONDIR": str(directory / "ipython")})
    return notebook


def tidy(output: Any) -> dict[str, Any]:
    """An output as it is stored: what is for other programs, and where things lie, is left out."""
    kind = output["output_type"]
    if kind == "stream":
        return {"output_type": kind, "name": output["name"], "text": output["text"]}
    if kind == "error":
        line = output["ename"] + (f": {output['evalue']}" if output["evalue"] else "")
        return {"output_type": kind, "ename": output["ename"], "evalue": output["evalue"], "traceback": [line]}
    data = {kind: text for kind, text in output["data"].items() if kind in ("text/plain", "text/html")}
    return {**{key: value for key, value in output.items() if key != "data"}, "data": data, "metadata": {}}


def comparable(cell: Any) -> list[Any]:
    """What a cell gives, without times, and without numbers of tasks, which depend on what `map` makes of its items."""
    texts = [json.dumps(tidy(output), sort_keys=True, ensure_ascii=False) for output in cell.outputs]
    return [re.sub(r"\b(task|AppFuture) \d+", r"\1 N", re.sub(r"(\d+ min )?[\d.]+ m?s\b", "1 s", text)) for text in texts]


def test_the_tutorial_gives_what_it_shows(launch: Launch, tmp_path: Path) -> None:
    import nbformat

    stored = nbformat.read(TUTORIAL, as_version=4)
    executed = execute(tmp_path, launch.environment())
    for ours, theirs in zip(stored.cells, executed.cells, strict=True):
        if ours.cell_type == "code":
            assert comparable(theirs) == comparable(ours), ours.source


# ---- Ctrl-C, and the end -------------------------------------------------------------------------------------------

APPS = """
import concurrent.futures, os, signal, threading, time
import exex
from exex import python_app

@python_app
def echo(value):
    return value

@python_app
def sleep():
    time.sleep(1000)

def interrupt(when, future):
    "Ctrl-C as soon as that is true; once more if Python was just about to sleep, and has overheard it."
    def watch():
        while not when():
            time.sleep(0.001)
        while not future.cancelled():
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(300):
                if not future.cancelled():
                    time.sleep(0.01)
    threading.Thread(target=watch, daemon=True).start()

def is_waited_for(future):
    rare = future._rare
    return rare is not None and (rare.sleepers or rare.waiters or rare.callbacks)
"""
WORLD = "world = exex.start(workers=1, slots=2)"
NAPS = "print(echo(1).result()); naps = [sleep() for _ in range(3)]\nwhile not naps[0].running(): time.sleep(0.01)"


class Kernel:
    """A kernel that has imported exex, and its client."""

    def __init__(self, launch: Launch) -> None:
        from jupyter_client.manager import KernelManager

        self.manager = KernelManager(connection_file=str(launch.cwd / "kernel.json"))
        self._env = launch.environment(IPYTHONDIR=str(launch.cwd / "ipython"))
        self._cwd = str(launch.cwd)
        self.manager.start_kernel(env=self._env, cwd=self._cwd)
        self._attach()

    def _attach(self) -> None:
        self._client = self.manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=LIMIT_S)
        assert self.run(APPS) == ("ok", "")

    def run(self, cell: str) -> tuple[str, str]:
        """Run a cell. Returns ok or the name of its error, and all that it has printed or shown."""
        shown: list[str] = []

        def take(message: Any) -> None:
            content = message["content"]
            shown.append(content.get("text", "") if "text" in content else content.get("data", {}).get("text/plain", ""))

        reply = self._client.execute_interactive(cell, timeout=LIMIT_S, output_hook=take)["content"]
        return reply.get("ename", reply["status"]), "".join(shown)

    def processes(self) -> list[psutil.Process]:
        """All that it has started, and that they have."""
        return psutil.Process(self.manager.provisioner.pid).children(recursive=True)

    def restart(self) -> None:
        """As the menu does it."""
        self._client.stop_channels()
        self.manager.restart_kernel(env=self._env, cwd=self._cwd)
        self._attach()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    kernel = Kernel(Launch(tmp_path_factory.mktemp("kernel")))
    yield kernel
    kernel.kill()


@pytest.fixture
def world(kernel: Kernel) -> Kernel:
    """A kernel with a world."""
    assert kernel.run(f"if not ('world' in globals() and world.connected):\n    {WORLD}")[0] == "ok"
    return kernel


WAITS = [
    ("old[0].result()", "1000"),
    ("concurrent.futures.wait(old[:2])", "1100"),
    ("for future in concurrent.futures.as_completed(old[:2]): pass", "1100"),
    ("await old[0]", "1000"),
    ("await exex.aio.gather(*old[:3])", "1110"),
    ("bar.wait()", "1111"),
]


@pytest.mark.parametrize(("wait", "expected"), WAITS)
def test_an_interrupt_cancels_what_a_cell_waits_for_and_has_started(world: Kernel, wait: str, expected: str) -> None:
    made = "bar = exex.progress(old)" if "bar" in wait else "import exex.aio"
    assert world.run(f"old = [sleep() for _ in range(4)]; {made}")[0] == "ok"
    when = "len(bar._all_ended._cond._waiters) == 2" if "bar" in wait else "is_waited_for(old[0])"  # the other one draws
    status, shown = world.run(f"new = sleep()\ninterrupt(lambda: {when}, old[0])\n{wait}")
    awaits = wait.startswith("await")
    assert status == ("CancelledError" if awaits else "KeyboardInterrupt"), shown
    _, shown = world.run("print(*(int(future.cancelled()) for future in old), sep=''); print(new.cancelled())")
    assert shown == f"{expected}\n{not awaits or sys.version_info >= (3, 11)}\n"
    assert world.run("for future in [*old, new]: future.cancel()\nprint(echo(1).result())") == ("ok", "1\n")


def test_a_kernel_that_is_restarted_or_killed_leaves_nothing(world: Kernel) -> None:
    """This is the last test of the kernel."""
    assert world.run(NAPS) == ("ok", "1\n")
    processes = world.processes()
    assert len(processes) > 3
    world.restart()
    assert psutil.wait_procs(processes, timeout=LIMIT_S)[1] == []
    assert world.run(f"{WORLD}\n{NAPS}") == ("ok", "1\n")
    processes = world.processes()
    assert len(processes) > 3
    world.kill()
    assert psutil.wait_procs(processes, timeout=LIMIT_S)[1] == []


def write() -> None:
    """Execute the tutorial, and store what it gives."""
    import nbformat

    with tempfile.TemporaryDirectory() as directory:
        notebook = execute(Path(directory), {**os.environ, "PYTHONPATH": str(ROOT)})
    for number, cell in enumerate([cell for cell in notebook.cells if cell.cell_type == "code"], start=1):
        cell.outputs = [nbformat.from_dict(tidy(output)) for output in cell.outputs]
        cell.execution_count = number
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    nbformat.write(notebook, TUTORIAL)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write()
