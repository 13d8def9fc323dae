"""Bash apps: from the function that makes the command line to bash's exit code. Runs in task processes.

bash is started by `posix_spawn`, which costs half of what a fork of a Python process and an exec do, and stays in the
session of its task process, by which the template finds what it leaves behind. Nothing here limits its time: the
rank does that, by killing the task process.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from typing import Any

from exex.errors import AppBadFormatting, AppException, BashAppNoReturn, BashExitFailure
from exex.launch.notices import NOTICES
from exex.protocol.task_numbers import name_of
from exex.worker.context import TaskContext, TaskStopped, stop
from exex.worker.peak import peak

TAIL_BYTES = 2048
"""How much of the end of stderr an error quotes."""

_READ_BYTES = 65536
_MOST_READS = 16  # before a look at the process: a flood must not hide its end
_SLOWEST_LOOK_S = 0.25
_DEFAULT_SIGNALS = (signal.SIGINT, *NOTICES, signal.SIGPIPE, signal.SIGXFSZ)
"""Whatever this process or Python does with them, bash starts with the default."""


class StreamFile:
    """An open file for stdout or stderr.

    Attributes:
        path: as the user gave it.
        fd: open for writing.
        start: size when it was opened; what is before belongs to others.
    """

    __slots__ = ("fd", "path", "start")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.start = os.fstat(fd).st_size

    def tail(self) -> bytes:
        """The end of what was written since it was opened; b"" if it cannot be read again."""
        try:
            with open(f"/proc/self/fd/{self.fd}", "rb") as file:
                size = os.fstat(self.fd).st_size
                start = self.start if self.start <= size else 0  # somebody has truncated it
                file.seek(max(start, size - TAIL_BYTES))
                return file.read(TAIL_BYTES)
        except OSError:
            return b""


def run(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    context: TaskContext,
    where: str,
    stdout: StreamFile | None,
    stderr: StreamFile | None,
    prefix: str = "",
) -> int:
    """Run one bash app and wait for bash itself, not for what it leaves in the background.

    Args:
        where: "task 7 (f) on rank 3 at nid00012, attempt 1".
        stdout: None for this process's own; so for stderr.
        prefix: of the command line: a launcher's words.

    Returns:
        0, the exit code.

    Raises:
        BashAppNoReturn: the function returned no command line.
        AppBadFormatting: it could not format it.
        BashExitFailure: another exit code than 0.
        AppException: bash cannot be started.
    """
    command = command_line(function, args, kwargs, context.app)
    if prefix:
        command = f"{prefix} {command}"
    return run_command(command, context=context, where=where, stdout=stdout, stderr=stderr)


def run_command(
    command: str, *, context: TaskContext, where: str, stdout: StreamFile | None, stderr: StreamFile | None
) -> int:
    """Run one command line: see `run`."""
    out = -1 if stdout is None else stdout.fd
    if stderr is None:
        exitcode, tail = _run_listening(command, context, where, out)
    else:
        exitcode = _wait(_start(command, context, where, out, stderr.fd))
        tail = stderr.tail() if exitcode else b""
    if exitcode:
        raise BashExitFailure(context.app, exitcode, _details(where, command, stdout, stderr), tail.decode(errors="replace"))
    return 0


def command_line(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> str:
    """What the app's function returns.

    As in Parsl, an AttributeError or IndexError in it counts as a fault of formatting, and comes as such.
    """
    try:
        command = function(*args, **kwargs)
    except (AttributeError, IndexError) as error:
        kind = type(error).__name__
        raise AppBadFormatting(f"the command line of bash_app {name} cannot be formatted ({kind}: {error})") from error
    if not isinstance(command, str):
        raise BashAppNoReturn(
            f"the function of bash_app {name} returned {'None' if command is None else type(command).__name__}; "
            "it must return the command line, as str"
        )
    return command


def _details(where: str, command: str, stdout: StreamFile | None, stderr: StreamFile | None) -> str:
    """What the error says of the attempt, on one line."""
    shown = " ".join(command.split())
    text = f"{where}; command: {shown if len(shown) <= 200 else shown[:200] + ' ...'}"
    if stdout is not None:
        text += f"; stdout: {stdout.path}"
    if stderr is not None:
        text += f"; stderr: {stderr.path}"
    return text


def _start(command: str, context: TaskContext, where: str, stdout: int, stderr: int) -> int:
    """Start bash; its pid. The caller must wait for it even if the task is stopped, and allows that to be told."""
    actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    if stdout >= 0:
        actions.append((os.POSIX_SPAWN_DUP2, stdout, 1))
    actions.append((os.POSIX_SPAWN_DUP2, stderr, 2))
    environment = {
        **os.environ,
        "EXEX_TASK_ID": name_of(context.task),
        "EXEX_ATTEMPT": str(context.attempt),
        "EXEX_RANK": str(context.rank),
        "EXEX_NODE": context.node,
    }
    argv = ["bash", "-c", command]
    stop.delay()
    try:
        return os.posix_spawnp(
            "bash", argv, environment, file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=_DEFAULT_SIGNALS
        )
    except FileNotFoundError as error:
        stop.allow()
        raise AppException(f"{where}: there is no bash in PATH={os.environ.get('PATH', '')}") from error
    except (OSError, ValueError) as error:
        stop.allow()
        hint = "; put long scripts into a file" if len(command) > 100_000 else ""
        raise AppException(
            f"{where}: bash cannot be started for a command of {len(command)} characters: {error}{hint}"
        ) from error


def _wait(pid: int) -> int:
    """Wait until bash ends; its exit code. If the task is stopped, bash has got SIGTERM too, and may clean up."""
    try:
        stop.allow()
        _, status, usage = os.wait4(pid, 0)
        peak.note_program(usage)
        return os.waitstatus_to_exitcode(status)
    except TaskStopped:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # it had ended just before
        raise


# ---- stderr that goes on to our own ---------------------------------------------------------------------------


def _run_listening(command: str, context: TaskContext, where: str, stdout: int) -> tuple[int, bytes]:
    """Run bash with a pipe as its stderr; its exit code, and the end of what came through the pipe."""
    pipe, theirs = os.pipe2(os.O_CLOEXEC)
    open_still = False
    try:
        try:
            pid = _start(command, context, where, stdout, theirs)
        finally:
            os.close(theirs)
        status, tail, open_still = _wait_and_pass_on(pid, pipe)
    finally:
        if not open_still:
            os.close(pipe)
    if open_still:  # a background process writes there: were the pipe closed, SIGPIPE would end it
        threading.Thread(target=_pass_on_the_rest, args=(pipe,), daemon=True).start()
    return os.waitstatus_to_exitcode(status), tail


def _wait_and_pass_on(pid: int, pipe: int) -> tuple[int, bytes, bool]:
    """Pass on to our stderr what comes through `pipe` until process `pid` ends.

    Returns:
        Its status, the end of what came, and whether anybody can still write there.
    """
    tail, status, open_still, stopped = b"", None, True, False
    os.set_blocking(pipe, False)
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    pidfd = _open_pidfd(pid)
    if pidfd >= 0:
        poll.register(pidfd, select.POLLIN)
    look_s = 0.001
    try:
        while status is None:
            try:
                stop.allow()
                poll.poll(None if pidfd >= 0 else look_s * 1e3)
                look_s = min(look_s * 1.5, _SLOWEST_LOOK_S)
                tail, open_still = _pass_on(pipe, tail)
                ended, code, usage = os.wait4(pid, os.WNOHANG if open_still else 0)
                if ended:
                    peak.note_program(usage)
                status = code if ended else None
            except TaskStopped:
                stopped = True  # bash has got SIGTERM too, and may clean up
            except ChildProcessError:
                if not stopped:
                    raise
                break  # it was just being reaped
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    if stopped or status is None:
        raise TaskStopped
    if open_still:
        tail, open_still = _pass_on(pipe, tail)
    return status, tail, open_still


def _open_pidfd(pid: int) -> int:
    """A descriptor that turns readable when the process ends; -1 before Linux 5.3."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _pass_on(pipe: int, tail: bytes) -> tuple[bytes, bool]:
    """Copy what is there now, within limits; the new tail, and whether anybody can still write."""
    for _ in range(_MOST_READS):
        try:
            data = os.read(pipe, _READ_BYTES)
        except BlockingIOError:
            return tail, True
        if not data:
            return tail, False
        _write(data)
        tail = (tail + data)[-TAIL_BYTES:]
    return tail, True


def _pass_on_the_rest(pipe: int) -> None:
    os.set_blocking(pipe, True)
    try:
        while data := os.read(pipe, _READ_BYTES):
            _write(data)
    finally:
        os.close(pipe)


def _write(data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(2, view) :]
    except OSError:
        pass  # nobody takes it; the tail is kept all the same
