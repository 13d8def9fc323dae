"""The line of progress on the user's terminal. Runs in the manager's loop; never waits for the terminal."""

from __future__ import annotations

import contextlib
import os

_DEFAULT_COLUMNS = 80
_RATE_WINDOW_S = 5.0


class Progress:
    """A line that is rewritten in place, at most every `interval_s`. Quiet if there is no terminal.

    Args:
        stream_path: terminal to write to; None for the one in EXEX_TTY, else this process's own.
        interval_s: between two writes.
    """

    def __init__(self, stream_path: str | None = None, interval_s: float = 0.5) -> None:
        self._fd = _open_terminal(stream_path or os.environ.get("EXEX_TTY") or "/dev/tty")
        self._interval_s = interval_s
        self._began_s: float | None = None
        self._due_s = float("-inf")
        self._latest = (0, 0, 0, 0)
        self._latest_s = 0.0
        self._rate_at = (0, 0.0)  # done, when: the base of the rate
        self._rate = 0.0
        self._shown = False

    def update(self, *, done: int, running: int, waiting: int, failed: int, now_s: float) -> None:
        """Take the counts; write them if the last line is old enough. `now_s` is monotonic."""
        if self._fd is None:
            return
        self._latest = (done, running, waiting, failed)
        self._latest_s = now_s
        if now_s >= self._due_s:
            self._due_s = now_s + self._interval_s
            self._write_line()

    def close(self) -> None:
        """Write the latest counts, end the line and release the terminal. Idempotent."""
        if self._fd is None:
            return
        if self._shown:
            self._write_line()
            self._write("\n")
        os.close(self._fd)
        self._fd = None

    def _write_line(self) -> None:
        assert self._fd is not None
        done, running, waiting, failed = self._latest
        if self._began_s is None:
            self._began_s = self._latest_s
            self._rate_at = (done, self._latest_s)
        base, base_s = self._rate_at
        if self._latest_s > base_s:
            self._rate = (done - base) / (self._latest_s - base_s)
        if self._latest_s - base_s >= _RATE_WINDOW_S:
            self._rate_at = (done, self._latest_s)
        line = render(
            done=done,
            running=running,
            waiting=waiting,
            failed=failed,
            elapsed_s=self._latest_s - self._began_s,
            rate=self._rate,
            width=_columns(self._fd),
        )
        self._write(f"\r{line}\x1b[K")
        self._shown = True

    def _write(self, text: str) -> None:
        assert self._fd is not None
        with contextlib.suppress(OSError):  # stopped by Ctrl-S, or hung up
            os.write(self._fd, text.encode("ascii"))


def render(*, done: int, running: int, waiting: int, failed: int, elapsed_s: float, rate: float, width: int) -> str:
    """The line, shorter than `width` columns: what matters less is left out where there is no room. Pure.

    Args:
        elapsed_s: since the first line.
        rate: tasks done per second, lately.
    """
    parts = [f"{done:,} done"]
    if failed:
        parts.append(f"{failed:,} failed")
    parts += [f"{running:,} running", f"{waiting:,} waiting", f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"]
    parts.append(_clock(elapsed_s))
    while parts:
        line = "exex: " + ", ".join(parts)
        if len(line) < width:
            return line
        parts.pop()
    return ""


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _columns(fd: int) -> int:
    try:
        return os.get_terminal_size(fd).columns or _DEFAULT_COLUMNS
    except OSError:
        return _DEFAULT_COLUMNS


def _open_terminal(path: str) -> int | None:
    """A descriptor of its own, so that not waiting for it is nobody else's affair; None if `path` is no terminal."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if os.isatty(fd):
        return fd
    os.close(fd)
    return None
