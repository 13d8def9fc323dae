"""The journal as a file: its format, its checks, its rows. Runs at rank 0 and in `exex journal`; knows no job.

An SQLite database of two tables. `meta` says who wrote it. `results` has the recorded results in batches, in the order in
which they were recorded: number of the first, how many, their keys, and the rows (key, app, finished_s, seconds, value) as
MessagePack, with one checksum over all of that. Nothing is ever changed or taken out, and of two results with one key the
later one counts. There is no index on disk: batches are only ever added at the end, so a commit writes few pages, one
behind the other, however large the file is.

Batches, since the writer shares an interpreter with the manager: a row, a checksum and a statement's parameters for each result
took a third of the rate of cached calls. The price is that a flipped byte costs a batch of results, not one.

How SQLite is used, and why:

* `journal_mode=TRUNCATE`: a rollback journal. The other kind (WAL) needs memory shared between processes and is
  wrong on network and parallel file systems. TRUNCATE rather than DELETE, since making and removing a file for each commit
  are two more operations of the metadata server.
* `synchronous=FULL`: what is committed outlives a crash of the node. In TRUNCATE mode that includes the commit itself: SQLite
  syncs the truncated rollback journal.
* `vfs=unix-none`: no POSIX locks, which parallel file systems have off, slow or wrong. One connection of one thread
  uses the file, and `exex.store.lock` keeps others away.
* `locking_mode=EXCLUSIVE`: SQLite need not look whether somebody else has changed the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sqlite3
import struct
import time
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from exex.errors import JournalError
from exex.protocol.payload import LARGE_BYTES, Large, Payload
from exex.version import __version__

FORMAT = 1
APPLICATION_ID = 0x65786578  # "exex"; file(1) and SQLite show it
_MAGIC = b"SQLite format 3\0"
_NUMBERS = struct.Struct("<qq")
_COLUMNS = "first, count, checksum, keys, rows"
_PARAMETERS = len(_COLUMNS.split(","))
ROWS_A_BATCH = 100
BATCH_BYTES = 256 * 1024
"""A batch has no more rows; one whose values are larger than this together is written row by row."""

_BATCHES_AT_ONCE = 100
"""Batches in one statement. Many, since Python lets other threads run, and must then wait for its turn, for each."""

LARGEST_VALUE_BYTES = 900_000_000
"""SQLite takes values of a little more."""


class Row(NamedTuple):
    """One recorded result.

    Attributes:
        finished_s: when, in seconds since 1970.
        seconds: how long the call ran.
    """

    key: bytes
    app: str
    finished_s: float
    seconds: float
    value: Payload


NewRow = tuple[bytes, str, float, float, Payload]
"""What a Row has, without the cost of making one."""


class Damaged(NamedTuple):
    """A result in a batch whose checksum is wrong."""

    number: int


def python_version() -> str:
    """The part of Python's version on which pickles and code depend."""
    return ".".join(platform.python_version_tuple()[:2])


# ---- opening --------------------------------------------------------------------------------------------------


def create(path: str) -> None:
    """Make an empty journal. It appears under its name when it is complete: a file without a beginning is never ours.

    Raises:
        JournalError: it cannot be made.
    """
    new = path + ".new"
    try:
        for left in (new, new + "-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left)
        db = connect(new)
        try:
            db.execute("PRAGMA journal_mode=TRUNCATE")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("BEGIN IMMEDIATE")
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={FORMAT}")
            db.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
            db.execute(
                "CREATE TABLE results (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, checksum BLOB NOT NULL, "
                "keys BLOB NOT NULL, rows BLOB NOT NULL)"
            )
            created = time.strftime("%Y-%m-%d %H:%M:%S %z")
            meta = {"format": str(FORMAT), "exex": __version__, "python": python_version(), "created": created}
            db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            db.execute("COMMIT")
        finally:
            db.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new + "-journal")
        os.rename(new, path)
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"the journal {path} cannot be made: {error}") from error


def connect(path: str, read_only: bool = False) -> sqlite3.Connection:
    """A connection without locks. With `read_only` nothing beside the file is looked at, either."""
    options = "mode=ro&immutable=1" if read_only else "vfs=unix-none"
    db = sqlite3.connect(f"file:{quote(path)}?{options}", uri=True, isolation_level=None, check_same_thread=False)
    if not read_only:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
    return db


def check_magic(path: str) -> None:
    """Refuse what SQLite would take for a new database, or for none.

    Raises:
        JournalError: it is empty, or something else.
    """
    with open(path, "rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise JournalError(_damaged(path, "it is empty" if not magic else "it does not begin as a journal does"))


def remove_empty_rollback(path: str) -> None:
    """Remove SQLite's file beside the journal, unless it is needed. Only for who has the lock."""
    with contextlib.suppress(OSError):
        if not os.path.getsize(path + "-journal"):
            os.unlink(path + "-journal")


def open_checked(path: str) -> sqlite3.Connection:
    """Open a journal and check all of it but the rows' checksums. Cost: it is read once.

    What a killed writer has left half done is undone here.

    Raises:
        JournalError: it is damaged, of another version, or no journal at all; the message says what to do.
    """
    db: sqlite3.Connection | None = None
    try:
        check_magic(path)
        db = connect(path)
        check_versions(path, read_meta(db), db.execute("PRAGMA application_id").fetchone()[0])
        found = find_damage(db, path, "quick_check(5)")
        if found:
            raise JournalError(_damaged(path, "; ".join(found)))
        set_up_writing(db)
        return db
    except BaseException as error:
        if db is not None:
            db.close()
        if isinstance(error, sqlite3.Error):
            raise JournalError(_damaged(path, str(error))) from error
        if isinstance(error, OSError):
            raise JournalError(f"the journal {path} cannot be opened: {error.strerror}") from error
        raise


def find_damage(db: sqlite3.Connection, path: str, check: str) -> list[str]:
    """What is wrong with the pages of the file; `check` is the pragma that looks at them."""
    found = [str(row[0]) for row in db.execute(f"PRAGMA {check}") if row[0] != "ok"]
    pages, page_bytes = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    size_bytes = os.path.getsize(path)
    if size_bytes != pages * page_bytes:  # SQLite reads a last page that is cut off as if zeros followed
        found.append(f"it has {size_bytes:,} bytes and should have {pages * page_bytes:,}")
    return found


def set_up_writing(db: sqlite3.Connection) -> None:
    """See the module's docstring."""
    db.execute("PRAGMA journal_mode=TRUNCATE")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA temp_store=MEMORY")


def read_meta(db: sqlite3.Connection) -> dict[str, str]:
    """Who wrote the journal: format, exex, python, created."""
    return dict(db.execute("SELECT name, value FROM meta"))


def check_versions(path: str, meta: dict[str, str], application_id: int) -> None:
    """Refuse what this version cannot take results from.

    Raises:
        JournalError: says what to do.
    """
    if application_id != APPLICATION_ID:
        raise JournalError(f"{path} is an SQLite database, but no journal of exex")
    for name, title, mine in (
        ("format", "the journal's format", str(FORMAT)),
        ("exex", "exex", __version__),
        ("python", "Python", python_version()),
    ):
        if meta.get(name) != mine:
            raise JournalError(
                f"the journal {path} was written with {title} {meta.get(name, '(unknown)')}, and this is {mine}: results of "
                f"another version are not used. Run with that version, or begin a new journal under another name; "
                f"`exex journal info {path}` shows what is in it"
            )


def _damaged(path: str, what: str) -> str:
    return (
        f"the journal {path} is damaged: {what}. Nothing of it is used. `exex journal verify {path}` tells more; to begin anew, "
        "move it away or name another file"
    )


# ---- rows -----------------------------------------------------------------------------------------------------


def _frames_of(value: object) -> list[bytes]:
    """A large value in the middle of MessagePack: a list of its frames."""
    assert type(value) is Large
    return [bytes(frame) for frame in value.frames]


_encode = msgspec.msgpack.Encoder(enc_hook=_frames_of).encode
_decode_keys = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_rows = msgspec.msgpack.Decoder(list[tuple[bytes, str, float, float, bytes | list[bytes]]]).decode


def _checksum(first: int, count: int, keys: bytes, rows: bytes) -> bytes:
    digest = hashlib.blake2b(_NUMBERS.pack(first, count), digest_size=8)
    digest.update(keys)
    digest.update(rows)
    return digest.digest()


def insert(db: sqlite3.Connection, first: int, rows: Sequence[NewRow]) -> None:
    """Append results, numbered from `first`, in the transaction that is open."""
    values: list[object] = []
    for begin in range(0, len(rows), ROWS_A_BATCH):
        part = rows[begin : begin + ROWS_A_BATCH]
        is_large = sum([len(row[4]) for row in part]) > BATCH_BYTES
        for number, batch in enumerate(([row] for row in part) if is_large else (part,), first + begin):
            keys, packed = _encode([row[0] for row in batch]), _encode(batch)
            values += (number, len(batch), _checksum(number, len(batch), keys, packed), keys, packed)
    one = "(" + ",".join("?" * _PARAMETERS) + ")"
    most = _BATCHES_AT_ONCE * _PARAMETERS
    for begin in range(0, len(values), most):
        some = values[begin : begin + most]
        db.execute(f"INSERT INTO results ({_COLUMNS}) VALUES {','.join([one] * (len(some) // _PARAMETERS))}", some)


def last_number(db: sqlite3.Connection) -> int:
    """Number of the result that was recorded last; 0 if there is none."""
    return int(db.execute("SELECT max(first + count - 1) FROM results").fetchone()[0] or 0)


def read_row(db: sqlite3.Connection, number: int) -> Row | Damaged:
    """The result of this number."""
    found = db.execute(f"SELECT {_COLUMNS} FROM results WHERE first <= ? ORDER BY first DESC LIMIT 1", (number,)).fetchone()
    for found_number, row in _checked(found) if found else ():
        if found_number == number:
            return row
    return Damaged(number)


def read_rows(db: sqlite3.Connection) -> Generator[tuple[int, Row | Damaged], None, None]:
    """All results with their numbers, in the order in which they were recorded."""
    for found in db.execute(f"SELECT {_COLUMNS} FROM results ORDER BY first"):
        yield from _checked(found)


def read_keys(db: sqlite3.Connection, after: int) -> Iterator[tuple[int, bytes]]:
    """Numbers and keys of the results after this number. They are not checked: see `read_row`."""
    for first, keys in db.execute("SELECT first, keys FROM results WHERE first + count - 1 > ? ORDER BY first", (after,)):
        with contextlib.suppress(msgspec.MsgspecError, TypeError):  # a damaged batch
            yield from ((number, key) for number, key in enumerate(_decode_keys(keys), first) if number > after)


def _checked(found: tuple[int, int, bytes, bytes, bytes]) -> list[tuple[int, Row | Damaged]]:
    first, count, checksum, keys, packed = found
    try:
        if _checksum(first, count, keys, packed) == checksum:
            return [(number, Row(*row[:4], _payload(row[4]))) for number, row in enumerate(_decode_rows(packed), first)]
    except (TypeError, ValueError, struct.error, msgspec.MsgspecError):  # columns that have become something else
        pass
    is_count = isinstance(count, int) and 0 < count <= ROWS_A_BATCH
    return [(number, Damaged(number)) for number in range(first, first + (count if is_count else 1))]


def _payload(value: bytes | list[bytes]) -> Payload:
    if isinstance(value, list):
        return Large(value)
    return Large([value]) if len(value) >= LARGE_BYTES else value
