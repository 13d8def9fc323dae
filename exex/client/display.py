"""How futures, connections and executors look: a line in a terminal, a few lines of HTML in a notebook. Runs in the client.

Looking changes nothing: it waits for nothing, fetches no value, and nobody counts as having seen an error.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable
from concurrent.futures._base import FINISHED
from typing import TYPE_CHECKING, NamedTuple

from exex.client.found import FoundFuture
from exex.client.lazy import OPEN
from exex.client.outcomes import Failed, NeedFailed, Raised
from exex.errors import DependencyError

if TYPE_CHECKING:
    from exex.client.futures import AppFuture, DataFuture
    from exex.client.proxy import Proxy

_MOST_CHARACTERS = 300
_WORDS = {"launched": "queued", "pending": "waiting"}
_FAINT = "opacity:.65"
_ERROR = (
    "margin:.2em 0 0 1.2em;padding:.1em .5em;border-left:3px solid #d0453e;white-space:pre-wrap;overflow-wrap:anywhere;"
    "font-family:var(--jp-code-font-family,monospace);font-size:.92em"
)
_COLOURS = {
    "done": "#2e9e4f",
    "running": "#2f7fd1",
    "joining": "#2f7fd1",
    "open": "#2e9e4f",
    "failed": "#d0453e",
    "a need failed": "#d0453e",
    "cancelled": "#c98a1b",
}
_GREY = "#8a8a8a"  # and these all read on white as well as on black


class State(NamedTuple):
    """What there is to say of a task.

    Attributes:
        word: waiting (for its needs, or to be sent), queued, running, joining, done, failed, "a need failed" or cancelled.
        seconds: from when the manager was told to the end, or until now; None if that is not known.
        error: in short; "" if there is none, or it must be fetched first.
    """

    word: str
    seconds: float | None
    error: str


def state_of(future: AppFuture) -> State:
    """What there is to say of a task at this moment."""
    state = future._state  # first: the rest is there when it is final
    sent_s: float | None = getattr(future, "_sent_s", None)
    ended_s: float | None = getattr(future, "_ended_s", None)
    if state in OPEN:
        status = future.task_status()
        word, error, ended_s = _WORDS.get(status, status), "", time.monotonic()
    elif state == FINISHED:
        word, error = _failure(future) if future._has_failed() else ("done", "")
    else:
        word, error = "cancelled", ""
    return State(word, None if sent_s is None or ended_s is None else ended_s - sent_s, error)


def _failure(future: AppFuture) -> tuple[str, str]:
    raw = future._raw
    if isinstance(raw, NeedFailed):
        return "a need failed", ", ".join(cause._title() for cause in raw.causes[:3])
    if isinstance(raw, Failed):
        if type(raw.payload) is not bytes:  # it may have to be fetched
            return "failed", ""
        future._open()
    value = future._value
    error = value.error if type(value) is Raised else None
    return "a need failed" if isinstance(error, DependencyError) else "failed", short(error)


def short(error: BaseException | None) -> str:
    """An error in one line."""
    if error is None:
        return ""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # of the user's class
        lines = []
    text = type(error).__name__ + (f": {lines[0]}" if lines else "")
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


def duration(seconds: float) -> str:
    """For people: `40 ms`, `3.2 s`, `5 min 12 s`, `26 h 3 min`."""
    if seconds < 0.9995:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


# ---- a terminal ------------------------------------------------------------------------------------------------


def future_text(future: AppFuture) -> str:
    """`repr` of the future of a task."""
    return f"<{type(future).__name__} {future.tid} {future.app_name}: {_sentence(future)}>"


def file_text(future: DataFuture) -> str:
    """`repr` of the future of a file."""
    return f"<DataFuture {future.file_obj.url!r} of {future.app_future!r}>"


def _sentence(future: AppFuture) -> str:
    state = state_of(future)
    when = _when(state)
    return f"{state.word}{when and ' '}{when}{state.error and ': '}{state.error}"


def _when(state: State) -> str:
    if state.seconds is None:
        return ""
    is_open = state.word in ("waiting", "queued", "running", "joining")
    return f"{'for' if is_open else 'after'} {duration(state.seconds)}"


# ---- a notebook ------------------------------------------------------------------------------------------------


def future_html(future: AppFuture) -> str:
    """The future of a task."""
    state = state_of(future)
    tag = future.tag if isinstance(future, FoundFuture) else ""  # of others that would be a new task
    details = [f"task {future.tid}", *([f"“{tag}”"] if tag else []), " ".join(filter(None, (state.word, _when(state))))]
    files = [file.file_obj.url for file in future.outputs]
    if files:
        details.append(f"makes {', '.join(files[:3])}{' …' if len(files) > 3 else ''}")
    return f"<div>{_head(state.word, future.app_name, details)}{_error(state.error)}</div>"


def file_html(future: DataFuture) -> str:
    """The future of a file."""
    state = state_of(future.app_future)
    maker = f"of task {future.tid} ({future.app_future.app_name})"
    details = [maker, " ".join(filter(None, (state.word, _when(state))))]
    return f"<div>{_head(state.word, future.file_obj.url, details)}{_error(state.error)}</div>"


def card(title: str, is_open: bool, details: str, rows: Iterable[tuple[str, object]]) -> str:
    """A connection, a world or an executor: a line, and a small table below it."""
    cell = "text-align:left;padding:0 1em 0 0;border:none;background:none"
    body = "".join(
        f'<tr style="background:none"><td style="{cell};{_FAINT}">{html.escape(name)}</td>'
        f'<td style="{cell}">{html.escape(str(value))}</td></tr>'
        for name, value in rows
    )
    table = f'<table style="margin:.2em 0 0 1.2em;border:none;border-collapse:collapse">{body}</table>' if body else ""
    return f"<div>{_head('open' if is_open else 'ended', title, [details])}{table}</div>"


def job_rows(proxy: Proxy) -> list[tuple[str, object]]:
    """What a card says of a job and of this client's tasks in it."""
    welcome = proxy.welcome
    rows: list[tuple[str, object]] = [("workers", f"{welcome.workers:,} with {welcome.slots:,} slots")]
    if welcome.nodes:
        rows.append(("nodes", f"{sum(shape.count for shape in welcome.nodes):,}"))
    if proxy.open:
        rows.append(("tasks", f"{len(proxy.outbox):,} not done"))
    if proxy.journal or welcome.journal:
        rows.append(("journal", proxy.journal or welcome.journal))
    return rows


def progress_html(text: str, total: int, parts: Iterable[tuple[int, str]]) -> str:
    """A bar of coloured parts, and a line below it.

    Args:
        parts: numbers with words of `State`, from the left.
    """
    spans = "".join(
        f'<span style="width:{100 * number / total:.2f}%;background:{_COLOURS[word]}"></span>' for number, word in parts if number
    )
    frame = "display:flex;height:.7em;max-width:40em;margin:.3em 0 .1em 0;border-radius:.35em;overflow:hidden"
    bar = f'<div style="{frame};background:rgba(128,128,128,.25)">{spans}</div>'
    return f"<div>{bar}<div>{html.escape(text)}</div></div>"


def _head(word: str, title: str, details: list[str]) -> str:
    dot = f'<span style="color:{_COLOURS.get(word, _GREY)}">●</span>'
    return f'{dot} <b>{html.escape(title)}</b> <span style="{_FAINT}">· {html.escape(" · ".join(details))}</span>'


def _error(text: str) -> str:
    return f'<div style="{_ERROR}">{html.escape(text)}</div>' if text else ""
