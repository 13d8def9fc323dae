"""The line of progress: what it says, when it is written, and that it never holds the manager up."""

import os
import pty
import select

import pytest

from exex.manager.progress import Progress, render

COUNTS = {"done": 1234567, "running": 8, "waiting": 90, "failed": 2, "elapsed_s": 75.9, "rate": 512.4}


@pytest.fixture
def terminal():
    """A terminal: the reading end, and its name."""
    ours, theirs = pty.openpty()
    yield ours, os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


def read(fd):
    """What has been written to the terminal so far."""
    text = b""
    while select.select([fd], [], [], 0)[0]:
        text += os.read(fd, 65536)
    return text.decode("ascii")


@pytest.mark.parametrize(
    "width, line",
    [
        (200, "exex: 1,234,567 done, 2 failed, 8 running, 90 waiting, 512/s, 1:15"),
        (67, "exex: 1,234,567 done, 2 failed, 8 running, 90 waiting, 512/s, 1:15"),
        (66, "exex: 1,234,567 done, 2 failed, 8 running, 90 waiting, 512/s"),
        (40, "exex: 1,234,567 done, 2 failed"),
        (22, "exex: 1,234,567 done"),
        (20, ""),
        (0, ""),
    ],
)
def test_a_narrow_terminal_gets_what_matters_most(width, line):
    assert render(**COUNTS, width=width) == line
    assert len(line) < max(width, 1)


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"failed": 0}, "done, 8 running"),
        ({"rate": 9.96}, "10.0/s"),
        ({"rate": 0.04}, "0.0/s"),
        ({"rate": 84999.6}, "85,000/s"),
        ({"elapsed_s": 0.0}, ", 0:00"),
        ({"elapsed_s": 3599.9}, ", 59:59"),
        ({"elapsed_s": 90061.0}, ", 25:01:01"),
    ],
)
def test_numbers(changes, part):
    assert part in render(**{**COUNTS, **changes}, width=200)


def test_lines_are_written_in_place_when_due_and_ended_once(terminal):
    fd, name = terminal
    progress = Progress(name, interval_s=1.0)
    progress.update(done=0, running=1, waiting=9, failed=0, now_s=100.0)
    assert read(fd) == "\rexex: 0 done, 1 running, 9 waiting, 0.0/s, 0:00\x1b[K"
    progress.update(done=5, running=1, waiting=4, failed=0, now_s=100.9)
    assert read(fd) == ""
    progress.update(done=6, running=1, waiting=3, failed=0, now_s=102.0)
    assert read(fd) == "\rexex: 6 done, 1 running, 3 waiting, 3.0/s, 0:02\x1b[K"
    progress.update(done=10, running=0, waiting=0, failed=0, now_s=102.5)
    progress.close()
    assert read(fd) == "\rexex: 10 done, 0 running, 0 waiting, 4.0/s, 0:02\x1b[K\r\n"
    progress.close()
    progress.update(done=11, running=0, waiting=0, failed=0, now_s=200.0)
    assert read(fd) == ""


def test_the_rate_is_that_of_the_last_seconds(terminal):
    fd, name = terminal
    progress = Progress(name, interval_s=1.0)
    for now_s, done in [(0.0, 0), (5.0, 500), (6.0, 501), (10.0, 505)]:
        progress.update(done=done, running=0, waiting=0, failed=0, now_s=now_s)
    assert [line.split(", ")[3] for line in read(fd).split("\r")[1:]] == ["0.0/s", "100/s", "1.0/s", "1.0/s"]


def test_nothing_is_written_at_the_end_if_nothing_was_before(terminal):
    fd, name = terminal
    Progress(name).close()
    assert read(fd) == ""


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_without_a_terminal_it_is_quiet(tmp_path, kind):
    path = tmp_path / "tty"
    if kind == "file":
        path.write_text("as it was")
    progress = Progress(str(path))
    progress.update(done=1, running=0, waiting=0, failed=0, now_s=0.0)
    progress.close()
    assert path.exists() == (kind == "file")
    assert kind == "missing" or path.read_text() == "as it was"


def test_the_terminal_is_the_one_in_the_environment(terminal, monkeypatch):
    fd, name = terminal
    monkeypatch.setenv("EXEX_TTY", name)
    progress = Progress()
    progress.update(done=1, running=0, waiting=0, failed=0, now_s=0.0)
    assert read(fd).startswith("\rexex: 1 done")
    progress.close()


def test_a_terminal_that_takes_nothing_holds_nobody_up(terminal):
    fd, name = terminal
    progress = Progress(name, interval_s=0.0)
    for number in range(10_000):  # far more than a terminal buffers
        progress.update(done=number, running=0, waiting=0, failed=0, now_s=float(number))
    progress.close()
    assert 0 < len(read(fd)) < 10_000 * 40


def test_a_terminal_that_hangs_up_is_no_error():
    ours, theirs = pty.openpty()
    progress = Progress(os.ttyname(theirs), interval_s=0.0)
    os.close(theirs)
    os.close(ours)
    progress.update(done=1, running=0, waiting=0, failed=0, now_s=0.0)
    progress.close()
