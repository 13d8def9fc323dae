"""Commands that look into what a job has left: its journal, what its tasks printed, the run record."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import click

from exex.commands.ending import USAGE
from exex.errors import ConfigError, ExexError

_JOURNAL = click.argument("file", type=click.Path(dir_okay=False))


@click.group()
def journal() -> None:
    """Look into the journal of a job that does not run at the moment."""


@contextlib.contextmanager
def _journal_errors() -> Iterator[None]:
    try:
        yield
    except ExexError as error:
        print(f"exex journal: {error}", file=sys.stderr)
        sys.exit(1)


@journal.command()
@_JOURNAL
def info(file: str) -> None:
    """Show who wrote FILE, and how many results of which apps are in it."""
    from exex.store import inspection

    with _journal_errors():
        print(inspection.info(file))


@journal.command()
@_JOURNAL
def verify(file: str) -> None:
    """Check every page and every row of FILE. The exit status is 1 if anything is damaged."""
    from exex.store import inspection

    with _journal_errors():
        text, is_sound = inspection.verify(file)
        print(text)
    sys.exit(0 if is_sound else 1)


@journal.command()
@_JOURNAL
@click.option("--format", "style", type=click.Choice(["jsonl", "csv"]), default="jsonl", help="Default: jsonl.")
def export(file: str, style: str) -> None:
    """Print one line per result: key, app, end, seconds, size. Damaged rows are left out and counted on stderr."""
    from exex.store import inspection

    with _journal_errors():
        damaged = inspection.export(file, style, sys.stdout)
    if damaged:
        print(f"exex journal: {damaged:,} damaged rows are left out", file=sys.stderr)
        sys.exit(1)


@click.command()
@click.argument("task", required=False)
@click.option("--run-dir", default="runinfo", show_default=True, metavar="DIR", help="Of the run, or of all: then the newest.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Only this one. Default: all.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this one. Default: both.")
def logs(task: str | None, run_dir: str, attempt: int | None, stream: str | None) -> None:
    """Print what TASK printed in a job with --output files; without TASK, which tasks printed how much."""
    from exex.protocol.task_numbers import number_of
    from exex.store import task_output

    try:
        run_dir = task_output.find_run_dir(run_dir)
        if task is None:
            print(task_output.summary(run_dir))
            return
        streams = frozenset({0, 1} if stream is None else {("stdout", "stderr").index(stream)})
        for part, data in task_output.output_of(run_dir, number_of(task), streams):
            if attempt in (None, part.attempt):
                sys.stdout.buffer.write(data)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (nobody reads any more, and the interpreter would flush it)
    except (ExexError, OSError, ValueError) as error:
        print(f"exex logs: {error}", file=sys.stderr)
        sys.exit(1)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--html", "page", metavar="PAGE", help="Write one page with pictures, which needs nothing else.")
@click.option("--csv", "csv_dir", metavar="DIR", help="Write one CSV file per table into DIR.")
@click.option("--parquet", "parquet_dir", metavar="DIR", help="Write one Parquet file per table into DIR; needs pyarrow.")
def report(file: str, page: str | None, csv_dir: str | None, parquet_dir: str | None) -> None:
    """Sum up the run record FILE, while the job runs or afterwards."""
    from exex.report import make

    try:
        print(make.report(file, page, csv_dir, parquet_dir), end="")
    except ExexError as error:
        print(f"exex report: {error}", file=sys.stderr)
        sys.exit(USAGE if isinstance(error, ConfigError) else 1)
    except OSError as error:
        print(f"exex report: {error}", file=sys.stderr)
        sys.exit(1)
