"""What `exex journal` shows of a journal. Takes the journal's lock, so that no job writes meanwhile."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator
from typing import IO

from exex.errors import JournalError
from exex.store import journal_file
from exex.store.journal_file import Damaged, Row
from exex.store.lock import acquire

_COLUMNS = ("key", "app", "finished", "seconds", "bytes")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[sqlite3.Connection]:
    """A connection to a journal of any version, checked for nothing but being one.

    Raises:
        JournalError: there is none, it is in use, or it is so damaged that SQLite cannot read it.
    """
    path = os.path.abspath(path)
    if not os.path.exists(path):
        raise JournalError(f"there is no file {path}")
    is_ours = os.access(os.path.dirname(path), os.W_OK) and os.access(path, os.W_OK)
    lock = acquire(path) if is_ours else None  # an archive that nobody can write to needs none
    db: sqlite3.Connection | None = None
    try:
        if not is_ours and os.path.exists(path + "-journal") and os.path.getsize(path + "-journal"):
            raise JournalError(f"{path} was left in the middle of a write and cannot be mended here: copy it with {path}-journal")
        journal_file.check_magic(path)
        db = journal_file.connect(path, read_only=not is_ours)
        if db.execute("PRAGMA application_id").fetchone()[0] != journal_file.APPLICATION_ID:
            raise JournalError(f"{path} is an SQLite database, but no journal of exex")
        yield db
    except sqlite3.Error as error:
        raise JournalError(f"the journal {path} is damaged: {error}") from error
    finally:
        if db is not None:
            db.close()
        if lock is not None:
            journal_file.remove_empty_rollback(path)
            lock.release()


def info(path: str) -> str:
    """Who wrote it, and what is in it."""
    with _opened(path) as db:
        meta = journal_file.read_meta(db)
        lines = [f"{name:<9} {meta.get(name, '?')}" for name in ("format", "exex", "python", "created")]
        lines.append(f"{'size':<9} {os.path.getsize(path):,} bytes")
        apps: dict[str, list[float]] = {}  # results, bytes, seconds
        first_s, last_s, total = math.inf, -math.inf, 0
        for _, row in journal_file.read_rows(db):
            if isinstance(row, Damaged):
                continue
            total += 1
            first_s, last_s = min(first_s, row.finished_s), max(last_s, row.finished_s)
            sums = apps.setdefault(row.app, [0, 0, 0.0])
            for i, more in enumerate((1, len(row.value), row.seconds)):
                sums[i] += more
        if total:
            lines.append(f"{'results':<9} from {_clock(first_s)} to {_clock(last_s)}")
        for app, (count, size, seconds) in sorted(apps.items()):
            lines.append(f"  {app}: {count:,.0f} results, {size:,.0f} bytes, {seconds:,.3f} s of work")
        return "\n".join([*lines, f"{'total':<9} {total:,} results"])


def verify(path: str) -> tuple[str, bool]:
    """Check everything that can be checked; what was found, and whether all is well."""
    try:
        with _opened(path) as db:
            problems = journal_file.find_damage(db, path, "integrity_check(20)")
            rows = damaged = 0
            for number, row in journal_file.read_rows(db):
                rows += 1
                if isinstance(row, Damaged):
                    damaged += 1
                    if damaged <= 20:
                        problems.append(f"result {number}: wrong checksum")
            meta = journal_file.read_meta(db)
    except JournalError as error:
        return str(error), False
    if problems:
        return "\n".join([*problems, f"{path} is damaged: {damaged:,} of {rows:,} results have a wrong checksum"]), False
    try:
        journal_file.check_versions(path, meta, journal_file.APPLICATION_ID)
    except JournalError as error:
        return f"{path} is sound: {rows:,} results. But: {error}", True
    return f"{path} is sound: {rows:,} results", True


def export(path: str, style: str, out: IO[str]) -> int:
    """Write a line per sound result, of jsonl or csv. Returns how many are damaged."""
    damaged = 0
    with _opened(path) as db:
        table = csv.writer(out)
        if style == "csv":
            table.writerow(_COLUMNS)
        for _, row in journal_file.read_rows(db):
            if isinstance(row, Damaged):
                damaged += 1
                continue
            values = _values(row)
            if style == "csv":
                table.writerow(values)
            else:
                out.write(json.dumps(dict(zip(_COLUMNS, values))) + "\n")
    return damaged


def _values(row: Row) -> tuple[object, ...]:
    return row.key.hex(), row.app, _clock(row.finished_s), row.seconds, len(row.value)


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
