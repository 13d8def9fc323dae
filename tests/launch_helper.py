"""A launch helper under test, with an `aprun` that is no more than a shell's `exec`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from exex.launch.helped import helped
from exex.remote import wire
from exex.remote.connection_file import Meeting
from exex.remote.wire import Wire

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 30.0


def wait_until(holds: Callable[[], Any], what: str = "") -> Any:
    """Wait for something that comes soon; its value. It has not come if a process vanishes while it is asked."""
    until = time.monotonic() + LIMIT_S
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            if found := holds():
                return found
        assert time.monotonic() < until, f"it never came: {what or holds}"
        time.sleep(0.005)


class RunningHelper:
    """Started by `start`, as a job script would.

    Args:
        directory: for its files.
        options: of `exex launch-helper`.
        constants: of `exex.remote.helper`, to be replaced.
    """

    def __init__(self, directory: Path, *options: str, constants: str = "pass") -> None:
        self.directory = directory
        self.file = directory / "launch-helper"
        (directory / "bin").mkdir(exist_ok=True)
        aprun = directory / "bin" / "aprun"
        aprun.write_text('#!/bin/sh\nexec "$@"\n')
        aprun.chmod(0o755)
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EXEX_")},
            "PYTHONPATH": str(ROOT),
            "EXEX_LAUNCH_HELPER": str(self.file),
        }
        code = f"import exex.cli, exex.remote.helper as helper; {constants}; exex.cli.main()"
        self.argv = [sys.executable, "-c", code, "launch-helper", "--launcher", "aprun", "--verbose", *options, str(self.file)]
        self.own = {**self.environment, "PATH": f"{directory}/bin:{os.environ['PATH']}"}
        self.said = directory / "said"

    def start(self) -> RunningHelper:
        """Start it; when this returns it listens."""
        with open(self.said, "wb") as said:
            self.process = subprocess.Popen(self.argv, env=self.own, stderr=said, stdin=subprocess.DEVNULL)
        wait_until(lambda: self.file.exists() or self.process.poll() is not None, "the connection file")
        assert self.file.exists(), self.text()
        return self

    def words(self, *words: str) -> list[str]:
        """A command line that has it start `aprun WORDS`."""
        return helped(["aprun", *words], self.environment)

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """A task's end; what it starts has our mark in its environment."""
        env = {**self.environment, "TEST_MARK": self.mark}
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": env, **options}
        return subprocess.Popen(self.words(*words), **options)

    def run(self, *words: str, **options: Any) -> tuple[int, bytes, bytes]:
        """Return code, stdout and stderr of a task's end."""
        data = options.pop("input", None)
        if data is not None:
            options["stdin"] = subprocess.PIPE
        process = self.popen(*words, **options)
        out, err = process.communicate(data, timeout=LIMIT_S)
        return process.returncode, out, err

    def started(self) -> list[psutil.Process]:
        """Processes that were started through it, and live."""
        return self._started()

    def _started(self, by: list[psutil.Process] | None = None) -> list[psutil.Process]:
        parents = None if by is None else {process.pid for process in by}
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                mine = environment.get("TEST_MARK") == self.mark and "EXEX_GUARD" in environment
                if mine and process.status() != psutil.STATUS_ZOMBIE and (parents is None or process.ppid() in parents):
                    found.append(process)
            except psutil.Error:
                pass
        return found

    def programs(self) -> list[psutil.Process]:
        """Those of them that were asked for, without what these have started."""
        return self._started(self.keepers())

    def await_nothing(self) -> None:
        """Wait until nothing is left of all that was started, but the helper itself."""
        wait_until(lambda: not self.started() and not self.keepers(), "the end of what was started")

    def keepers(self) -> list[psutil.Process]:
        """Its children."""
        try:
            return psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", Meeting(str(self.file)).port), timeout=LIMIT_S)

    def insider(self) -> tuple[Wire, bytes, bytes, bytes]:
        """A connection of one who has proved the key: with it the key, and both numbers."""
        key = Meeting(str(self.file)).key
        link = Wire(self.connect(), (wire.HELLO, wire.PROOF, wire.REFUSED, wire.STARTED, wire.DATA, wire.ENDED, wire.CREDIT))
        theirs = next_frame(link)[1][len(wire.MAGIC) :]
        ours = wire.new_number()
        link.send(wire.PROOF, ours, wire.proof(key, b"task", theirs, ours))
        link.flush()
        assert next_frame(link) == (wire.PROOF, wire.proof(key, b"helper", theirs, ours))
        return link, key, theirs, ours

    def ask(self, *words: bytes, directory: bytes = b"/") -> Wire:
        """A connection of one who has asked for a launch."""
        link, key, theirs, ours = self.insider()
        variables = {b"TEST_MARK": self.mark.encode(), b"PATH": b"/usr/bin:/bin"}
        text = wire.pack_request(directory, [b"aprun", *words], variables)
        link.send(wire.REQUEST, wire.proof(key, b"request", theirs, ours, text), text)
        link.flush()
        return link

    def text(self) -> str:
        """What it has said."""
        return self.said.read_text()

    def stop(self) -> None:
        """As the job script does at its end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)
        assert self.process.wait(LIMIT_S) == 0, self.text()


def next_frame(link: Wire) -> tuple[int, bytes]:
    """The next frame; (0, b"") at the end of the connection."""

    def look() -> tuple[int, bytes] | None:
        link.flush()
        link.read()
        return link.frame() or ((0, b"") if link.ended else None)

    found: tuple[int, bytes] = wait_until(look, "a frame")
    return found
