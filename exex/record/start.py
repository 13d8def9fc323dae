"""Starts the record's writer, at rank 0 before MPI_Init: a process that is forked afterwards inherits what it must not have."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from fcntl import F_SETPIPE_SZ, fcntl
from typing import Any

from exex.config import Config
from exex.errors import RecordError
from exex.record.recorder import Recorder

_PIPE_BYTES = 1 << 20

NAME = "run.h5"
"""Of a record in a run directory."""


def record_path(config: Config, run_dir: str, in_allocation: bool) -> str:
    """Where the record is to be; "" for nowhere."""
    if config.record == "none" or (config.record == "auto" and not in_allocation):
        return ""
    return os.path.join(run_dir, NAME) if config.record in ("auto", "run") else os.path.abspath(config.record)


def start_writer(environment: Mapping[str, str], zero_s: float) -> Recorder:
    """Start the process that writes.

    Args:
        environment: without the launcher's variables.
        zero_s: time 0 of the record, by time.monotonic().

    Raises:
        RecordError: it cannot be started.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl(write_fd, F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        pass  # the user has too many large pipes: this one is small
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join(dict.fromkeys(filter(None, [root, *sys.path])))  # a staged rank has set up its own
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        writer = subprocess.Popen(
            [sys.executable, "-m", "exex.record.writer"],
            stdin=read_fd,
            stdout=subprocess.DEVNULL,
            env={**environment, **threads, "PYTHONPATH": path},
            start_new_session=True,
        )
    except OSError as error:
        os.close(write_fd)
        raise RecordError(f"the writer of the run record cannot be started: {error}") from error
    finally:
        os.close(read_fd)
    os.set_blocking(write_fd, False)
    return Recorder(write_fd, zero_s, writer=writer)


def attributes(config: Config, script: str, versions: dict[str, str], zero_s: float) -> dict[str, Any]:
    """What is known at the beginning."""
    meta = {"script": script, "host": socket.gethostname(), "settings": dataclasses.asdict(config), "versions": versions}
    return {"began_unix_s": time.time() - (time.monotonic() - zero_s), "meta": meta}
