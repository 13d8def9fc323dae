"""The run record's tables and columns. The file is made from these, docs/run-record.md is printed from them. Pure."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

FORMAT = 1
"""Of the file; readers refuse a later one."""

UNKNOWN = -1
"""In columns of times and ranks: there is none, or nobody knows."""


class How(IntEnum):
    """How a row of `attempts` ended. 0 to 4 are the outcomes of the protocol."""

    DONE = 0  # with a value
    FAILED = 1  # with an error
    CANCELLED = 2  # nobody wanted it any more
    NEED_FAILED = 3  # it never ran, because a task that it needed had failed
    PROCESS_LOST = 4  # its task process died
    WORKER_LOST = 5  # its worker rank died or was given up
    UNFINISHED = 6  # the record ended before it
    STARVED = 7  # it did not begin: a stored value that it needs was not to be had from where it was said to be; tried again


class Column(NamedTuple):
    """One column: a data set `table/name`, all of one table equally long."""

    name: str
    dtype: str  # as numpy spells it; S: UTF-8, cut off to the length
    meaning: str


TABLES: dict[str, tuple[Column, ...]] = {
    "attempts": (
        Column("task", "u8", "number of the task, as its client counts, plus the client's number times 2^40"),
        Column("app", "u4", "number of its app, in `apps`"),
        Column("attempt", "u2", "from 1; 0: the task ended without one (its value was known, it was cancelled, a need failed)"),
        Column("rank", "i4", "worker that had it, in `workers`; -1: none"),
        Column("how", "u1", "how it ended, see below"),
        Column("submit_us", "i8", "the manager took the task from its client; the same for all calls of one message"),
        Column("ready_us", "i8", "nothing was missing any more; for a later attempt: it could be tried again"),
        Column("assign_us", "i8", "sent to its worker; the same for all attempts of one message"),
        Column(
            "start_us",
            "i8",
            "the function began: `end_us` less `run_s`, but not before `assign_us`",
        ),
        Column(
            "end_us",
            "i8",
            "the function ended: when the result was on rank 0, less what ran after it of the same message; 1 ms or better on an "
            "idle network, while the worker's turn is not delayed",
        ),
        Column("run_s", "f4", "running time of the function, as its task process has measured it; -1: it did not run"),
        Column("done_us", "i8", "the result was on rank 0; the same for all of one message"),
        Column("answer_us", "i8", "sent on to the client; -1: it never was, or more than a second later"),
        Column("bytes_in", "u8", "pickled arguments, without the values of other tasks"),
        Column("bytes_out", "u8", "pickled value or error"),
        Column("slot", "i4", "of its worker, in which it ran, from 0; of a big task the first; -1: none, or not known"),
        Column(
            "peak_bytes",
            "u8",
            "most memory that its task process, or a program of a bash app, had resident while it ran, with what it had before; "
            "in KiB; 0: not known: it was shorter than 2 ms, or died",
        ),
    ),
    "apps": (
        Column("app", "u4", "number, as the manager counts"),
        Column("client", "u4", "who named it"),
        Column("name", "S64", "of the function"),
        Column("kind", "u1", "0: Python, 1: bash, 2: rows of a `map`"),
        Column("priority", "i4", "lower runs first"),
        Column("retries", "u4", "further attempts after a failed one"),
        Column("cores", "u4", "asked for, on each node; 0: one slot, or whole nodes"),
        Column("gpus", "u4", "asked for, on each node"),
        Column("nodes", "u4", "asked for; 0: a part of one"),
        Column("memory_bytes", "u8", "limit; 0: none"),
        Column("walltime_s", "f4", "limit; 0: none"),
    ),
    "edges": (
        Column("task", "u8", "a task that waited for another"),
        Column("need", "u8", "the other"),
    ),
    "made": (
        Column("parent", "u8", "a task that made tasks, in one message"),
        Column("first", "u8", "the first of them; the others have the next numbers"),
        Column("count", "u4", "how many they are"),
    ),
    "workers": (
        Column("rank", "i4", "in the MPI world; 0: rank 0 where it runs tasks, too"),
        Column("node", "S64", "host name"),
        Column("slots", "u4", "tasks that it runs at once"),
        Column("pid", "u4", "of the rank"),
        Column("gpus", "u4", "accelerators that it can use"),
        Column("memory_bytes", "u8", "of its node; 0: not known"),
        Column("hello_us", "i8", "its first message was on rank 0"),
        Column("forked_s", "f4", "from the start of its guard: the rank was forked; on the worker's clock, as the next two"),
        Column("imported_s", "f4", "the MPI library was loaded"),
        Column("initialised_s", "f4", "MPI_Init was done"),
    ),
    "losses": (
        Column("time_us", "i8", "the manager heard of it"),
        Column("rank", "i4", "worker that was lost"),
        Column("attempts", "u4", "that it held"),
        Column("how", "S200", "what was said of it"),
    ),
    "samples": (
        Column("time_us", "i8", "of this look at the manager"),
        Column("turns", "u8", "turns of its loop so far"),
        Column("busy_us", "u8", "time that these took, so far"),
        Column("longest_us", "u8", "the longest turn since the sample before"),
        Column("waiting", "u8", "tasks that wait for needs, for their client, or for more time than there is"),
        Column("ready", "u8", "tasks that could run: no slot is free for them"),
        Column("assigned", "u8", "attempts at workers, queued or running"),
        Column("done", "u8", "tasks done so far"),
        Column("failed", "u8", "tasks failed so far"),
        Column("cancelled", "u8", "tasks cancelled so far"),
        Column("slots", "u8", "of all workers that were up"),
        Column("memory_bytes", "u8", "resident memory of rank 0"),
        Column("backlog_bytes", "u8", "of this record, not yet taken by its writer"),
    ),
}

ATTRIBUTES: dict[str, str] = {
    "format": "version of this format",
    "began_unix_s": "time 0 of all columns, in seconds of Unix time: when the first process of rank 0 began",
    "ended_us": "when the record was closed; -1: it is not closed: the job runs, or was killed",
    "dropped": "messages that are missing, because the writer could not keep up; 0 in all usual jobs",
    "meta": "JSON: script, settings (the whole configuration), versions (exex, Python, numpy, h5py, HDF5, MPI), host",
}
