"""A record as CSV files or Parquet files, one per table. Needs memory for some columns of a part of the rows only."""

from __future__ import annotations

import csv
import importlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from exex.errors import ConfigError
from exex.record.columns import TABLES
from exex.record.hdf5 import Record

_ROWS = 1 << 18


def _parts(record: Record, table: str) -> Iterator[dict[str, Any]]:
    """Columns of some rows at a time, texts as str; at least one part."""
    for begin in range(0, max(1, record.rows(table)), _ROWS):
        part = {}
        for name, dtype, _ in TABLES[table]:
            values = record.column(table, name, begin, begin + _ROWS)
            part[name] = np.char.decode(values, "utf-8", "replace") if dtype[0] == "S" else values
        yield part


def write_csv(record: Record, folder: str) -> list[str]:
    """Write `attempts.csv`, `apps.csv` and so on; their paths."""
    os.makedirs(folder, exist_ok=True)
    paths = []
    for table, columns in TABLES.items():
        path = os.path.join(folder, f"{table}.csv")
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([column.name for column in columns])
            for part in _parts(record, table):
                writer.writerows(zip(*(values.tolist() for values in part.values())))
        paths.append(path)
    return paths


def write_parquet(record: Record, folder: str) -> list[str]:
    """Write `attempts.parquet`, `apps.parquet` and so on; their paths.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(f"--parquet needs pyarrow, which cannot be imported ({error}): pip install 'exex[parquet]'") from error
    os.makedirs(folder, exist_ok=True)
    paths = []
    for table in TABLES:
        path = os.path.join(folder, f"{table}.parquet")
        writer = None
        for part in _parts(record, table):
            rows = arrow.table({name: values.tolist() if values.dtype.kind == "U" else values for name, values in part.items()})
            writer = writer or parquet.ParquetWriter(path, rows.schema, compression="zstd")
            writer.write_table(rows)
        if writer is not None:
            writer.close()
        paths.append(path)
    return paths
