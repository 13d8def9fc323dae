"""The processes of a world that a program starts for itself. They end when the program does. Runs in the program."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import IO

from exex.errors import StartError
from exex.launch.hand_over import CLIENT_SOCKET, Deputy, Reception

_LAST_WORDS = 4000
"""Characters of what a world has printed, in the message that it did not come up."""

_MARGIN_S = 5.0
"""What the processes that hold a world may need beyond what it may need itself."""

_LOOK_S = 0.1
"""Between looks for a file."""


class Held:
    """The processes of a world, and what holds them: they end when this process does.

    Args:
        argv: the launcher, its options, and the program of every rank.
        log: file for what they print; None: where this program prints.
        stop_timeout_s: what an orderly end may take before processes are killed.

    Raises:
        StartError: they cannot be started.
    """

    def __init__(self, argv: list[str], env: dict[str, str], log: str | None, stop_timeout_s: float) -> None:
        self._log = log
        self._stop_s = stop_timeout_s
        self._deputy: Deputy | None = None
        self._directory = tempfile.mkdtemp(prefix="exex-", dir=_short_directory())
        self._reception = Reception(self._directory)
        self._tether, theirs = socket.socketpair()
        held = [sys.executable, "-m", "exex.launch.held", str(theirs.fileno()), str(stop_timeout_s), *argv]
        env = {**env, CLIENT_SOCKET: self._reception.path}
        try:
            with self._output() as out:
                self._process = subprocess.Popen(
                    held,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,  # Ctrl-C is for this program
                    pass_fds=[theirs.fileno()],
                )
        except OSError as error:
            self._tether.close()
            self._clear()
            raise StartError(f"cannot start a world: {error}") from error
        finally:
            theirs.close()
        _running.add(self)

    def _output(self) -> contextlib.AbstractContextManager[IO[bytes] | None]:
        if self._log is None:
            return contextlib.nullcontext()
        os.makedirs(os.path.dirname(os.path.abspath(self._log)), exist_ok=True)
        return open(self._log, "ab")

    def await_client(self) -> socket.socket:
        """The stream to the manager, when the world is up.

        Raises:
            StartError: it did not come up. How long that may take is known to its guards.
        """
        while True:
            if self._is_ready(self._reception.fileno(), None):
                taken = self._reception.take()
                if taken is not None:
                    stream, self._deputy = taken
                    return stream

    def await_file(self, path: str) -> None:
        """Return when the world, which is up, has written its connection file.

        Raises:
            StartError: as `await_client`.
        """
        while not os.path.exists(path):
            self._is_ready(None, _LOOK_S)

    def _is_ready(self, fd: int | None, most_s: float | None) -> bool:
        """Wait for a descriptor, or some time."""
        tether = self._tether.fileno()
        ready, _, _ = select.select([tether] if fd is None else [fd, tether], (), (), most_s)
        if tether in ready and fd not in ready:
            self._process.wait()
            raise StartError(f"the world did not come up (exit status {self._process.returncode}){self.last_words()}")
        return fd in ready

    def last_words(self) -> str:
        """What it has printed at last, to be added to a message."""
        if self._log is None:
            return "; see what it has printed"
        try:
            with open(self._log, errors="replace") as file:
                text = file.read()[-_LAST_WORDS:].strip()
        except OSError:
            text = ""
        return f"; {self._log} ends:\n{text}" if text else ""

    def end(self, is_told: bool = False) -> None:
        """End all processes, in order if they can be ended so. Idempotent.

        Args:
            is_told: the manager knows that it is to end.
        """
        if self not in _running:
            return
        if self._deputy is not None:
            self._deputy.dismiss()
        if self._deputy is not None or is_told:
            self._wait(self._stop_s + _MARGIN_S)
        self._tether.close()
        self._wait(2 * self._stop_s + _MARGIN_S)
        if self._process.poll() is None:
            self._process.kill()  # its launcher gets SIGTERM
            self._process.wait()
        self._clear()
        _running.discard(self)

    def _wait(self, most_s: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(most_s)

    def _clear(self) -> None:
        self._reception.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def forget(self) -> None:
        """In a forked child: the world is the parent's, and ends with it."""
        self._tether.close()
        self._reception.close()
        if self._deputy is not None:
            self._deputy.forget()


_running: set[Held] = set()


def _short_directory() -> str | None:
    """Where temporary directories are; /tmp if the paths of sockets there would be too long for the kernel."""
    return None if len(os.fsencode(tempfile.gettempdir())) < 70 else "/tmp"


def _after_fork_in_child() -> None:
    while _running:
        _running.pop().forget()


os.register_at_fork(after_in_child=_after_fork_in_child)
