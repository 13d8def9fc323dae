"""What `exex.progress` draws: HTML in a notebook, a line elsewhere. Runs in the client."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

from exex.client import interactive
from exex.client.display import duration, progress_html

_LOG_PERIOD_S = 10.0
"""Between two lines where nobody looks, such as in the log of a job."""


class Count(Protocol):
    """What a bar shows."""

    total: int
    failed: int
    cancelled: int

    @property
    def ended(self) -> int:
        """Tasks that have ended, in whatever way."""

    @property
    def running(self) -> int:
        """Tasks that have been running for a while."""


class Bar(Protocol):
    """What is drawn. All in one thread, but for the first moment."""

    def draw(self, count: Count) -> None:
        """Show this."""

    def close(self) -> None:
        """Leave what was drawn at last."""


def bar(total: int, title: str) -> Bar:
    """HTML in a notebook; tqdm's bar elsewhere, if it is installed; else a line."""
    if interactive.is_notebook():
        return _Html(title)
    try:
        from tqdm import tqdm
    except ImportError:
        return _Line(title)
    return _Tqdm(tqdm, total, title)


def sentence(count: Count) -> str:
    """`412 of 1000 done, 3 failed, 8 running`."""
    done = count.ended - count.failed - count.cancelled
    return ", ".join([f"{done} of {count.total} done", *_more(count)])


def _more(count: Count) -> list[str]:
    pairs = ((count.failed, "failed"), (count.cancelled, "cancelled"), (count.running, "running"))
    return [f"{number} {what}" for number, what in pairs if number]


class _Clock:
    """How long something has taken, and may take."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def passed(self) -> str:
        return duration(time.monotonic() - self._began_s)

    def left(self, count: Count) -> str:
        """Such as `, some 12 s left`, if it goes on as it went; "" if nobody can tell."""
        if not 0 < count.ended < count.total:
            return ""
        left_s = (time.monotonic() - self._began_s) / count.ended * (count.total - count.ended)
        return f", some {duration(left_s)} left"


class _Html:
    """A bar in the output of a cell. It stays in the notebook when that is saved, and needs no widgets."""

    def __init__(self, title: str) -> None:
        from IPython.display import display

        self._title = title
        self._clock = _Clock()
        self._handle = display({"text/plain": title}, raw=True, display_id=True)

    def draw(self, count: Count) -> None:
        what = f"{self._title}{self._title and ': '}{sentence(count)}"
        text = f"{what} · {self._clock.passed()}{self._clock.left(count)}"
        parts = (
            (count.ended - count.failed - count.cancelled, "done"),
            (count.failed, "failed"),
            (count.cancelled, "cancelled"),
            (count.running, "running"),
        )
        html = progress_html(text, count.total, parts)
        self._handle.update({"text/plain": text, "text/html": html}, raw=True)

    def close(self) -> None:
        pass


class _Tqdm:
    """tqdm's line in a terminal."""

    def __init__(self, tqdm: Any, total: int, title: str) -> None:
        self._is_seen = _is_seen()
        period_s = 0.1 if self._is_seen else _LOG_PERIOD_S
        self._bar = tqdm(total=total, desc=title or None, unit="task", dynamic_ncols=True, mininterval=period_s)

    def draw(self, count: Count) -> None:
        bar = self._bar
        bar.set_postfix_str(", ".join(_more(count)), refresh=False)
        if count.failed:
            bar.colour = "red"
        bar.update(count.ended - bar.n)
        if self._is_seen:
            bar.refresh()  # also if none has ended: the time goes on, and tasks begin to run

    def close(self) -> None:
        self._bar.close()


class _Line:
    """A line that is written over and over; where nobody looks, a new one now and then."""

    def __init__(self, title: str) -> None:
        self._title = f"{title}: " if title else ""
        self._clock = _Clock()
        self._file = sys.stderr
        self._is_seen = _is_seen()
        self._text = self._drawn = ""
        self._next_s = time.monotonic() + (0.0 if self._is_seen else _LOG_PERIOD_S)

    def draw(self, count: Count) -> None:
        self._text = self._title + sentence(count)
        if self._is_seen:
            self._rewrite(self._text)
        elif time.monotonic() >= self._next_s:
            self._next_s += _LOG_PERIOD_S
            print(self._text, file=self._file, flush=True)

    def close(self) -> None:
        text = f"{self._text}, after {self._clock.passed()}"
        if self._is_seen:
            self._rewrite(text)
            text = ""
        print(text, file=self._file, flush=True)

    def _rewrite(self, text: str) -> None:
        if text != self._drawn:
            print("\r" + text.ljust(len(self._drawn)), end="", file=self._file, flush=True)
            self._drawn = text


def _is_seen() -> bool:
    """Whether somebody looks at what is written."""
    return sys.stderr.isatty()
