"""The copy of a file on a node, which tasks of that node share. Runs in task processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import time

from exex.errors import TransferError
from exex.files import transfer
from exex.files.copying import Copy
from exex.files.file import File, shown


def bring(base: str, file: File, source: str) -> str:
    """Path of the copy of `source` below the directory `base` of this node. The first who asks for it makes it.

    Raises:
        TransferError: it cannot be copied; who waited meanwhile is told the same.
    """
    if not base:
        raise TransferError(
            f"{shown(file.url)} is to be copied to a disk of this node, {socket.gethostname()}, but this process has no "
            "directory there: jobs with --keep-bytes 0 have none, nor have functions in an MPI world of their own; take to='run'",
            file.url,
            socket.gethostname(),
        )
    directory = os.path.join(base, _key(file, source))
    path = os.path.join(directory, file.local_name())
    if os.path.exists(path):
        return path
    began_ns = time.time_ns()
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with open(os.path.join(directory, ".lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(path):
            return path
        failed = os.path.join(directory, ".failed")
        if os.path.exists(failed) and os.stat(failed).st_mtime_ns > began_ns:
            with open(failed, encoding="utf-8") as text:
                raise TransferError(text.read(), file.url, socket.gethostname())
        try:
            transfer.bring(Copy(), _at(source, file), path)
        except TransferError as error:
            with open(failed, "w", encoding="utf-8") as text:
                text.write(str(error))
            raise
    return path


def _at(source: str, file: File) -> File:
    """The file by the path from which it is copied, with the sum that it must have."""
    found = File(file.url, sha256=file.sha256)
    found.path = source
    return found


def _key(file: File, source: str) -> str:
    """Name of a directory: another one if `source` has been written anew."""
    try:
        found = os.stat(source)
        version = f"{found.st_mtime_ns} {found.st_size}"
    except OSError:
        version = ""  # copying will say what is wrong with it
    text = "\0".join((source, file.sha256 or "", version))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()
