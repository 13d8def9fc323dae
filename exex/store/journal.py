"""The journal of a job: records results of cached calls, and gives back those of earlier runs. Runs at rank 0.

One thread owns the file. The manager's loop only appends to a queue and asks; it hears of answers through a descriptor.
What goes wrong with the disk is said once, and the job goes on: a journal is there to save work, not to cost any.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from exex.errors import JournalError
from exex.protocol.payload import Payload
from exex.store import journal_file
from exex.store.answers import Answers, Asker
from exex.store.beginning import check_before_start
from exex.store.journal_file import Damaged, NewRow
from exex.store.lock import RENEW_S, Lock, acquire

Mode = Literal["task_exit", "periodic", "dfk_exit", "manual"]

_PAUSE_S = 0.1
"""Between two commits of mode task_exit: a metadata server is not to see more than that of a job."""

_RETRY_S = 5.0
"""Until a disk that was full or broken is tried again."""

MOST_WAITING_BYTES = 128 * 1024**2
MOST_WAITING_ROWS = 200_000
"""What may wait to be written. Beyond it results are written in any mode, and nothing new is started meanwhile."""

_ROWS_A_COMMIT = 10_000
_BYTES_A_COMMIT = 16 * 1024**2
_ROW_BYTES = 250
_FETCHES_AT_ONCE = 64
_QUIET_S = 60.0
"""At the end: how long no commit may end before the rest is given up."""


def _say(text: str) -> None:
    print(f"exex: {text}", file=sys.stderr, flush=True)


class Summary(NamedTuple):
    """What `close` has found.

    Attributes:
        recorded: results that this job has added.
        lost: results that it should have added and has not.
        before: results that were there.
        damaged: rows whose checksum was wrong when they were needed.
        error: the last one of writing; "".
    """

    recorded: int
    lost: int
    before: int
    damaged: int
    error: str


@dataclass(frozen=True)
class _Fetch:
    key: bytes
    outputs: Sequence[str]


class Journal:
    """One job's journal; see `open_journal`.

    Attributes:
        path: absolute.
    """

    def __init__(  # noqa: PLR0917
        self,
        path: str,
        lock: Lock,
        db: sqlite3.Connection,
        mode: Mode,
        period_s: float,
        say: Callable[[str], None] = _say,
        retry_s: float = _RETRY_S,
    ) -> None:
        self.path = path
        self._lock = lock
        self._db: sqlite3.Connection | None = db
        self._mode = mode
        self._period_s = period_s
        self._say = say
        self._retry_s = retry_s
        self._numbers: dict[bytes, int] = {}  # key -> number of the row
        self._next = 1
        self._before = self._recorded = self._lost = self._damaged = 0
        self._error = ""
        self._was_said = False
        # Between the threads: appending, popping and setting single items is atomic.
        self._queue: deque[NewRow] = deque()
        self._unwritten: dict[bytes, Payload] = {}
        self._added = self._taken = 0  # bytes: written by the loop, and by the writer
        self._fetches: deque[_Fetch] = deque()
        self._askers: deque[Asker] = deque()
        self._answers = Answers()
        self._is_failing = False
        self._is_dead = False
        self._closing = False
        self._progress = 0
        self._bell = threading.Event()  # something is there to be done, at once or later
        self._question = threading.Event()  # somebody waits for an answer
        self._thread = threading.Thread(target=self._run, name="exex-journal", daemon=True)

    # ---- the beginning: no thread yet ----------------------------------------------------------------------------

    def load(self, most_bytes: int) -> Iterator[tuple[bytes, Payload]]:
        """Learn what is recorded. Yields keys and values, in the order in which they were recorded, up to `most_bytes`.

        To be run through to its end, or closed, before `start`.
        """
        assert self._db is not None
        last = size = 0
        rows = journal_file.read_rows(self._db)
        try:
            for number, row in rows:
                last = number
                if isinstance(row, Damaged):
                    self._damage(number)
                    continue
                self._numbers[row.key] = number
                size += len(row.value) + _ROW_BYTES
                yield row.key, row.value
                if size > most_bytes:
                    break
        finally:
            rows.close()
            for number, key in journal_file.read_keys(self._db, last):
                last = number
                self._numbers[key] = number
            self._next = last + 1
            self._before = len(self._numbers)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    # ---- the loop's thread: nothing here waits for the disk ------------------------------------------------------

    def has(self, key: bytes) -> bool:
        """Whether a result is recorded, or about to be."""
        return key in self._numbers or key in self._unwritten

    def fetch(self, key: bytes, outputs: Sequence[str]) -> None:
        """Ask for a result, if the files in `outputs` exist; `take` gives it, or None."""
        if self._is_dead:
            self._answers.fetched(key, self._unwritten.get(key))
            return
        self._fetches.append(_Fetch(key, outputs))
        self._ask()

    def record(self, key: bytes, app: str, value: Payload, seconds: float) -> None:
        """Record a result."""
        size = len(value)
        is_full = self._added - self._taken > MOST_WAITING_BYTES or len(self._queue) > MOST_WAITING_ROWS
        if self._is_dead or size > journal_file.LARGEST_VALUE_BYTES or (is_full and self._is_failing):
            self._lost += 1
            if size > journal_file.LARGEST_VALUE_BYTES and not self._is_dead:
                self._say(f"a result of {app} has {size:,} bytes, too many for the journal {self.path}: it is not recorded")
            return
        self._added += size + _ROW_BYTES
        self._unwritten[key] = value
        self._queue.append((key, app, time.time(), seconds, value))
        if not self._bell.is_set() and (self._mode == "task_exit" or is_full):
            self._bell.set()

    def checkpoint(self, asked_by: Asker) -> None:
        """Write what was recorded so far; `take` says when that is done."""
        if self._is_dead:
            self._answers.told(asked_by, self._error)
            return
        self._askers.append(asked_by)
        self._ask()

    def take(self) -> tuple[list[tuple[bytes, Payload]], list[tuple[Asker, str]]]:
        """Answers to `fetch` and to `checkpoint` that have come."""
        return self._answers.take()

    def is_behind(self) -> bool:
        """Whether more waits to be written than memory should hold."""
        if self._is_failing or self._is_dead:
            return False
        return self._added - self._taken > MOST_WAITING_BYTES or len(self._queue) > MOST_WAITING_ROWS

    def fileno(self) -> int:
        """Readable when there is something to `take`, and when the writer is no longer behind."""
        return self._answers.fileno()

    def close(self, quiet_s: float = _QUIET_S) -> Summary:
        """Write what waits, in any mode, and give the file free.

        Args:
            quiet_s: how long to wait for a commit that does not end.
        """
        self._closing = True
        self._ask()
        if self._thread.ident is None:  # it was never started
            self._leave()
        while self._thread.is_alive():
            progress = self._progress
            self._thread.join(quiet_s)
            if self._thread.is_alive() and self._progress == progress:
                self._error = f"the file system has not answered for {quiet_s:g} s"
                break
        lost = self._lost + len(self._unwritten)
        return Summary(self._recorded, lost, self._before, self._damaged, self._error)

    def _ask(self) -> None:
        self._bell.set()
        self._question.set()

    # ---- the writer's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._write_until_closed()
        except BaseException as error:
            self._error = f"{type(error).__name__}: {error}"
            self._say(f"the journal {self.path} cannot be written any more: {self._error}. The job goes on without it")
        finally:
            self._is_dead = True
            for fetch in self._drain_fetches():
                self._answers.fetched(fetch.key, self._unwritten.get(fetch.key))
            while self._askers:
                self._answers.told(self._askers.popleft(), self._error or "the journal is closed")
            self._leave()

    def _leave(self) -> None:
        self._disconnect()
        if self._lock.is_ours():
            journal_file.remove_empty_rollback(self.path)
        self._lock.release()

    def _write_until_closed(self) -> None:
        now_s = time.monotonic()
        renew_s, period_s, commit_s = now_s + RENEW_S, now_s + self._period_s, now_s
        while True:
            self._bell.clear()
            self._question.clear()
            for fetch in self._drain_fetches():
                self._answers.fetched(fetch.key, self._look_up(fetch))
            closing = self._closing
            now_s = time.monotonic()
            askers = [self._askers.popleft() for _ in range(len(self._askers))]
            is_due = closing or bool(askers) or self._waits_too_much()
            if self._mode == "task_exit":
                is_due |= bool(self._queue) and now_s >= commit_s
            elif self._mode == "periodic" and now_s >= period_s:
                is_due, period_s = True, now_s + self._period_s
            if self._is_failing and not closing and not askers:
                is_due = now_s >= commit_s
            if is_due and self._queue:
                self._write_all()
                commit_s = time.monotonic() + (self._retry_s if self._is_failing else _PAUSE_S)
            for asker in askers:
                self._answers.told(asker, self._error if self._is_failing else "")
            if closing:
                return
            if now_s >= renew_s:
                self._lock.renew()
                renew_s = now_s + RENEW_S
            due_s = renew_s
            if self._queue and (self._mode == "task_exit" or self._is_failing):
                due_s = min(due_s, commit_s)
            elif self._mode == "periodic":
                due_s = min(due_s, period_s)
            gathering = due_s == commit_s  # for one commit: only a question comes in between
            (self._question if gathering else self._bell).wait(max(0.0, due_s - time.monotonic()))

    def _waits_too_much(self) -> bool:
        return self._added - self._taken > MOST_WAITING_BYTES // 2 or len(self._queue) > MOST_WAITING_ROWS // 2

    def _drain_fetches(self) -> Iterator[_Fetch]:
        while self._fetches:
            yield self._fetches.popleft()

    def _look_up(self, fetch: _Fetch) -> Payload:
        """A result as far as it counts; None if it does not."""
        if not all(map(os.path.exists, fetch.outputs)):
            return None
        value = self._unwritten.get(fetch.key)
        number = self._numbers.get(fetch.key)
        if value is not None or number is None:
            return value
        try:
            row = journal_file.read_row(self._connected(), number)
        except (sqlite3.Error, OSError, JournalError) as error:
            self._say(f"a result in the journal {self.path} cannot be read ({error}): its call runs again")
            self._damaged += 1
            return None
        if isinstance(row, Damaged) or row.key != fetch.key:
            self._numbers.pop(fetch.key, None)
            self._damage(number)
            return None
        return row.value

    def _damage(self, number: int) -> None:
        self._damaged += 1
        if self._damaged <= 3:
            more = "; further ones are only counted" if self._damaged == 3 else ""
            self._say(f"result {number} of the journal {self.path} is damaged (wrong checksum): its call runs again{more}")

    def _write_all(self) -> None:
        """Write what is in the queue now, in one commit or several. On failure all that is not written stays in it."""
        left = len(self._queue)
        while left > 0 and self._queue:
            rows: list[NewRow] = []
            size = 0
            while self._queue and len(rows) < _ROWS_A_COMMIT and size < _BYTES_A_COMMIT:
                row = self._queue.popleft()
                rows.append(row)
                size += len(row[4]) + _ROW_BYTES
            try:
                self._commit(rows)
            except (sqlite3.Error, OSError, JournalError) as error:
                self._queue.extendleft(reversed(rows))
                self._fail(error)
                return
            left -= len(rows)
            self._note_written(rows, size)

    def _commit(self, rows: list[NewRow]) -> None:
        db = self._connected()
        if not self._lock.is_ours():
            raise JournalError("another job has taken it over, because this one seemed to be gone")
        self._lock.renew()
        db.execute("BEGIN IMMEDIATE")
        journal_file.insert(db, self._next, rows)
        db.execute("COMMIT")

    def _connected(self) -> sqlite3.Connection:
        """The connection; a new one after a failure, which undoes what was left half done."""
        if self._db is None:
            if not self._lock.is_ours():
                raise JournalError("another job has taken it over, because this one seemed to be gone")
            self._db = journal_file.connect(self.path)
            journal_file.set_up_writing(self._db)
            last = journal_file.last_number(self._db)
            if last >= self._next:  # the commit that failed did get through
                self._next = last + 1
        return self._db

    def _note_written(self, rows: list[NewRow], size: int) -> None:
        numbers, unwritten = self._numbers, self._unwritten
        for number, row in enumerate(rows, self._next):
            key = row[0]
            numbers[key] = number  # first: a result is always in one of the two
            if unwritten.get(key) is row[4]:
                del unwritten[key]
        was_behind = self.is_behind()
        self._next += len(rows)
        self._recorded += len(rows)
        self._taken += size
        self._progress += 1
        if was_behind:
            self._answers.wake()
        if self._is_failing:
            self._is_failing = False
            lost = f"; {self._lost:,} results are missing in it" if self._lost else ""
            self._say(f"the journal {self.path} is written again{lost}")
            self._was_said = False

    def _fail(self, error: Exception) -> None:
        self._disconnect()
        self._error = str(error) or type(error).__name__
        if not self._was_said:
            self._was_said = True
            self._say(
                f"the journal {self.path} cannot be written: {self._error}. The job goes on and tries again; results that "
                "are not recorded are computed again after --resume"
            )
        if not self._is_failing:
            self._is_failing = True
            self._answers.wake()

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()


def open_journal(
    path: str,
    *,
    resume: bool,
    mode: Mode = "task_exit",
    period_s: float = 60.0,
    say: Callable[[str], None] = _say,
    retry_s: float = _RETRY_S,
) -> Journal:
    """Lock and open the journal of a job: call `load`, then `start`.

    Args:
        resume: it may exist; otherwise it must not.
        mode: when results are written, as `Config.checkpoint_mode`.
        period_s: for mode periodic.
        say: is given lines for people.
        retry_s: until a disk that was full or broken is tried again.

    Raises:
        JournalError: it exists and `resume` is not set; it is in use, damaged, of another version, or cannot be made.
    """
    path = os.path.abspath(path)
    check_before_start(path, resume)
    lock = acquire(path)
    try:
        check_before_start(path, resume)
        if not os.path.exists(path):
            if resume:
                say(f"there is no journal {path} yet: beginning one")
            journal_file.create(path)
        return Journal(path, lock, journal_file.open_checked(path), mode, period_s, say, retry_s)
    except BaseException:
        lock.release()
        raise
