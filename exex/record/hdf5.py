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

CHUNK_ROWS = {"attempts": 16384, "edges": 16384}
_FEW_ROWS = 512
_WASTE = 1.25

FLUSH_S = 2.0
"""Between two flushes at first; later a hundredth of the time so far, because each leaves a part of a chunk behind."""


def versions() -> dict[str, str]:
    """Of what writes the file."""
    return {"numpy": np.__version__, "h5py": h5py.__version__, "HDF5": h5py.version.hdf5_version}


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
        self._columns = {table: self._make(table) for table in TABLES}
        self._waiting: dict[str, list[dict[str, NDArray[Any]]]] = {table: [] for table in TABLES}
        self._rows = dict.fromkeys(TABLES, 0)
        self._file.swmr_mode = True

    def _make(self, table: str) -> dict[str, Any]:
        rows = CHUNK_ROWS.get(table, _FEW_ROWS)
        return {
            column.name: self._file.create_dataset(
                f"{table}/{column.name}",
                shape=(0,),
                maxshape=(None,),
                dtype=column.dtype,
                chunks=(rows,),
                compression="gzip",
                compression_opts=1,
                shuffle=True,
            )
            for column in TABLES[table]
        }

    def add(self, table: str, columns: dict[str, NDArray[Any]]) -> None:
        """Append rows; to the file when they fill chunks, or with `flush`."""
        count = len(next(iter(columns.values())))
        if not count:
            return
        self._waiting[table].append(columns)
        self._rows[table] += count
        chunk = CHUNK_ROWS.get(table, _FEW_ROWS)
        if self._rows[table] >= 2 * chunk:
            self._write(table, self._rows[table] // chunk * chunk)

    def _write(self, table: str, most: int) -> None:
        """Write up to a multiple of the chunk from what the file holds: chunks that are written in parts are written twice."""
        parts, written = self._waiting[table], 0
        chunk = CHUNK_ROWS.get(table, _FEW_ROWS)
        for name, dataset in self._columns[table].items():
            values = np.concatenate([part[name] for part in parts]) if len(parts) > 1 else parts[0][name]
            there = dataset.shape[0]
            end = there + most
            if most < len(values):
                end -= end % chunk
            written = end - there
            dataset.resize((end,))
            dataset[there:] = values[:written]
        rest = {name: np.concatenate([part[name] for part in parts])[written:] for name in self._columns[table]}
        self._waiting[table] = [rest] if self._rows[table] > written else []
        self._rows[table] -= written

    def flush_if_due(self, now_us: int) -> None:
        """Let readers see what there is, if they have not for a while."""
        if now_us - self._flushed_us >= max(FLUSH_S * 1e6, now_us / 100):
            self.flush(now_us)

    def flush(self, now_us: int) -> None:
        """Let readers see all that there is."""
        self._flushed_us = now_us
        for table, parts in self._waiting.items():
            if parts:
                self._write(table, self._rows[table])
        self._file.flush()

    def close(self, ended_us: int, dropped: int) -> None:
        """Complete the file."""
        self.flush(ended_us)
        used = sum(dataset.id.get_storage_size() for columns in self._columns.values() for dataset in columns.values())
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
            self._rows = {name: min(dataset.shape[0] for dataset in self._file[name].values()) for name in TABLES}
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
