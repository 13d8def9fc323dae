"""`exex report`: text, and the files that were asked for."""

from __future__ import annotations

from exex.record.hdf5 import Record
from exex.record.summary import summarize
from exex.report.text import text


def report(path: str, page: str | None = None, csv_dir: str | None = None, parquet_dir: str | None = None) -> str:
    """Write what was asked for; the summary as text.

    Raises:
        RecordError: the record cannot be read.
        ConfigError: pyarrow is missing.
        OSError: a file cannot be written.
    """
    with Record(path) as record:
        if parquet_dir is not None:
            from exex.report.export import write_parquet

            write_parquet(record, parquet_dir)
        if csv_dir is not None:
            from exex.report.export import write_csv

            write_csv(record, csv_dir)
        if page is None:
            return text(summarize(path))
        from exex.report.page import page as make_page

        made, summary = make_page(record)
        with open(page, "w", encoding="utf-8") as file:
            file.write(made)
        return text(summary)
