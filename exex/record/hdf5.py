"""The run record's file. The only place that knows HDF5.

Written in mode SWMR (single writer, multiple readers): others can read while the job runs, and whatever happens to the writer,
the file is whole up to its last flush.
"""

from __future__ import annotations

import json
import os
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from exex.errors import RecordError
from exex.record.columns import FORMAT, TABLES, UNKNOWN
from exex.record.packing import deflated, filters, packed

Rows = dict[str, NDArray[Any]]

CHUNK_ROWS = {"attempts": 16384, "edges": 16384}
_FEW_ROWS = 512
_WASTE = 1.25

FLUSH_S = 2.0
"""Between two flushes at first; later a hundredth of the time so far, because each leaves a part of a chunk behind."""


def versions() -> dict[str, str]:
    """Of what writes the file."""
    return {"numpy": np.__version__, "h5py": h5py.__version__, "HDF5": h5py.version.hdf5_version}


class _Table:
    """A table that is being written.

    Args:
        columns: its data sets.
    """

    def __init__(self, columns: dict[str, Any], rows_of_chunk: int) -> None:
        self._columns = columns
        self._chunk = rows_of_chunk
        self._parts: list[Rows] = []  # what is in no whole chunk
        self._count = 0  # of their rows
        self._whole = 0  # rows in whole chunks of the file
        self._there = 0  # rows in the file

    def add(self, rows: Rows) -> None:
        """Append rows; to the file when they fill chunks, or with `write`."""
        count = len(next(iter(rows.values())))
        if count:
            self._parts.append(rows)
            self._count += count
            if self._count >= 2 * self._chunk:
                self._write(self._count // self._chunk * self._chunk)

    def write(self) -> None:
        """Write all that is not there yet."""
        if self._whole + self._count > self._there:
            self._write(self._count)

    def _write(self, count: int) -> None:
        """Write the first of the rows that are in no whole chunk: whole chunks for good, what is left for now."""
        parts, chunk = self._parts, self._chunk
        whole = count // chunk * chunk
        self._there = max(self._there, self._whole + count)
        rest = {}
        for name, dataset in self._columns.items():
            values = np.concatenate([part[name] for part in parts], dtype=dataset.dtype, casting="unsafe")
            dataset.id.set_extent((self._there,))
            for begin in range(0, whole, chunk):
                data, mask = packed(values[begin : begin + chunk])
                dataset.id.write_direct_chunk((self._whole + begin,), data, mask)
            if count > whole:
                data, mask = deflated(values[whole:], chunk)
                dataset.id.write_direct_chunk((self._whole + whole,), data, mask)
            rest[name] = values[whole:].copy()
        self._parts = [rest] if self._count > whole else []
        self._count -= whole
        self._whole += whole

    def stored_bytes(self) -> int:
        """What is in the file."""
        return sum(dataset.id.get_storage_size() for dataset in self._columns.values())


class RecordFile:
    """A record that is being written.

    Args:
        attributes: those of `columns.ATTRIBUTES` that are known at the beginning.

    Raises:
        RecordError: it cannot be made there.
    """

    def __init__(self, path: str, attributes: dict[str, Any]) -> None:
        self.path = path
        self._flushed_us = 0
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            set_aside(path)
            self._file = h5py.File(path, "w", libver="latest", locking=False)
        except OSError as error:
            raise RecordError(f"the run record {path} cannot be made: {error}") from error
        for name, value in {**attributes, "format": FORMAT, "ended_us": UNKNOWN, "dropped": 0}.items():
            self._file.attrs[name] = value
        self._tables = {table: self._make(table) for table in TABLES}
        self._file.swmr_mode = True

    def _make(self, table: str) -> _Table:
        rows = CHUNK_ROWS.get(table, _FEW_ROWS)
        columns = {}
        for name, dtype, _ in TABLES[table]:
            options = filters(np.dtype(dtype))
            columns[name] = self._file.create_dataset(f"{table}/{name}", (0,), dtype, maxshape=(None,), chunks=(rows,), **options)
        return _Table(columns, rows)

    def add(self, table: str, rows: Rows) -> None:
        """Append rows."""
        self._tables[table].add(rows)

    def flush_if_due(self, now_us: int) -> None:
        """Let readers see what there is, if they have not for a while."""
        if now_us - self._flushed_us >= max(FLUSH_S * 1e6, now_us / 100):
            self.flush(now_us)

    def flush(self, now_us: int) -> None:
        """Let readers see all that there is."""
        self._flushed_us = now_us
        for table in self._tables.values():
            table.write()
        self._file.flush()

    def close(self, ended_us: int, dropped: int) -> None:
        """Complete the file."""
        self.flush(ended_us)
        used = sum(table.stored_bytes() for table in self._tables.values())
        self._file.close()
        with h5py.File(self.path, "r+", libver="latest", locking=False) as file:
            file.attrs["ended_us"] = ended_us
            file.attrs["dropped"] = dropped
        if os.path.getsize(self.path) > _WASTE * used + 100_000:
            self._pack()

    def _pack(self) -> None:
        """Write the file again, without what flushes of parts of chunks have left behind."""
        packed = self.path + ".new"
        with (
            h5py.File(self.path, "r", locking=False) as old,
            h5py.File(packed, "w", libver="latest", locking=False) as new,
        ):
            for name in old:
                old.copy(name, new)
            for name, value in old.attrs.items():
                new.attrs[name] = value
        os.replace(packed, self.path)


def set_aside(path: str) -> None:
    """Rename a file that is in the way: run.h5 becomes run.1.h5, or the next number that is free."""
    if not os.path.lexists(path):
        return
    stem, suffix = os.path.splitext(path)
    number = 1
    while os.path.lexists(f"{stem}.{number}{suffix}"):
        number += 1
    os.rename(path, f"{stem}.{number}{suffix}")


_NONE = {"": np.zeros(0)}
"""A table that records of earlier versions do not have."""


class Record:
    """A record that is read, whole or while it is written. Columns are read when they are asked for.

    Attributes:
        path: as given.
        began_unix_s: time 0.
        ended_us: when it was closed; `UNKNOWN` if it is not.
        dropped: messages that are missing.
        meta: script, settings, versions, host.

    Raises:
        RecordError: no such file, or not a run record of a format that is known.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = _open(path)
        try:
            attributes = self._file.attrs
            if "format" not in attributes or "meta" not in attributes:
                raise RecordError(f"{path} is an HDF5 file, but not a run record of exex")
            if int(attributes["format"]) > FORMAT:
                raise RecordError(f"{path} has the format {attributes['format']} of a later exex; this one reads up to {FORMAT}")
            self.began_unix_s = float(attributes["began_unix_s"])
            self.ended_us = int(attributes["ended_us"])
            self.dropped = int(attributes["dropped"])
            self.meta: dict[str, Any] = json.loads(attributes["meta"])
            self._rows = {name: min(dataset.shape[0] for dataset in self._file.get(name, _NONE).values()) for name in TABLES}
        except (KeyError, ValueError, OSError) as error:
            self._file.close()
            raise RecordError(f"the run record {path} is damaged: {error}") from error
        except RecordError:
            self._file.close()
            raise

    def rows(self, table: str) -> int:
        """How many rows a table has: those of which all columns are there."""
        rows: int = self._rows[table]
        return rows

    def has_column(self, table: str, name: str) -> bool:
        """Whether there is such a column: records of earlier versions have fewer."""
        return name in self._file[table]

    def column(self, table: str, name: str, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """One column, or a part of it.

        Raises:
            RecordError: it cannot be read.
        """
        if table not in self._file:
            return np.zeros(0)  # a record of an earlier version
        end = self._rows[table] if end is None else min(end, self._rows[table])
        try:
            values: NDArray[Any] = self._file[table][name][begin:end]
        except (OSError, KeyError) as error:
            raise RecordError(f"the run record {self.path} is damaged at {table}/{name}: {error}") from error
        return values

    def texts(self, table: str, name: str) -> list[str]:
        """A column of texts."""
        return [value.decode(errors="replace") for value in self.column(table, name).tolist()]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: str) -> Any:
    if not os.path.isfile(path):
        raise RecordError(f"there is no run record {path}")
    error: Exception | None = None
    for options in ({}, {"swmr": True, "libver": "latest"}):  # the second: it is being written, or its writer was killed
        try:
            return h5py.File(path, "r", locking=False, **options)
        except OSError as failure:
            error = failure
    raise RecordError(f"{path} is no run record, or is damaged: {error}") from error
