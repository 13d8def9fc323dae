"""Stage tasks: fetch a file, send a file, look at its sum. Runs in task processes.

What is fetched gets its name when it is complete and has the right sum; before that it lies beside, under a name that begins
with a dot.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from exex.errors import TransferError
from exex.files.file import File, shown
from exex.files.staging import Staging
from exex.protocol import context

_BLOCK_BYTES = 1 << 20
_LOCAL = frozenset({
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.EFBIG, errno.ENAMETOOLONG, errno.EMFILE, errno.ELOOP),
})
"""Errors of file systems, which a second try does not mend."""


class Content(NamedTuple):
    """What a file has."""

    sha256: str
    size_bytes: int


def fetch(staging: Staging, file: File) -> Content:
    """The function of `_stage_in` tasks: bring `file` to its `local_path`, unless what is there has the sum that it must have.

    Raises:
        TransferError: it does not come, or not with the sum that it must have.
    """
    assert file.local_path is not None
    if file.sha256 is not None and os.path.isfile(file.local_path):
        content = content_of(file.local_path)
        if content.sha256 == file.sha256:
            return content
    return bring(staging, file, file.local_path) or content_of(file.local_path)


def verify(staging: Staging, file: File) -> Content:
    """The function of `_stage_in` tasks for a file that stays where it is: only look at its sum.

    Raises:
        TransferError: it is not there, or has another sum.
    """
    assert file.local_path is not None
    try:
        return _expect(file, file.local_path)
    except OSError as error:
        raise _failure("cannot be read", file, staging, error, 1) from error


def send(staging: Staging, file: File) -> Content:
    """The function of `_stage_out` tasks: send what lies at the file's `local_path`.

    Raises:
        TransferError: the task has not made the file, it has another sum than the File says, or it cannot be sent.
    """
    path = file.local_path
    assert path is not None
    if not os.path.isfile(path):
        raise TransferError(f"{_where()}: the task that was to make {path}, for {shown(file.url)}, has not", file.url, _node())
    content = _expect(file, path)
    _try(lambda: staging.send(path, file), staging, file, f"cannot be sent from {path}")
    return content


def bring(staging: Staging, file: File, path: str) -> Content | None:
    """Fetch a file to `path`. Whoever sees it there sees all of it, with the right sum; returned if it was looked at.

    Raises:
        TransferError: see `fetch`.
    """
    directory, name = os.path.split(path)
    part = os.path.join(directory, f".{name[:40]}.{uuid.uuid4().hex[:12]}.part")
    doing = f"cannot be fetched to {path}"
    try:
        _try(lambda: os.makedirs(directory or ".", exist_ok=True), staging, file, doing)
        _try(lambda: staging.fetch(file, part), staging, file, doing)
        if not os.path.isfile(part):
            raise TransferError(f"{_where()}: {shown(file.url)} {doing}: {staging} has written nothing", file.url, _node())
        content = None if file.sha256 is None else _expect(file, part)
        os.replace(part, path)
        return content
    finally:
        if os.path.exists(part):
            os.unlink(part)


def _try(step: Callable[[], Any], staging: Staging, file: File, doing: str) -> None:
    """Do a step, again and again as the staging says, while it fails for reasons that may pass."""
    pause_s = staging.pause_s
    for number in range(1, staging.tries + 1):
        try:
            step()
            return
        except TransferError as error:
            raise TransferError(f"{_where()}: {shown(file.url)} {doing}: {error}", file.url, _node()) from error
        except Exception as error:
            passes = isinstance(error, (OSError, EOFError)) and getattr(error, "errno", None) not in _LOCAL
            if not passes or number == staging.tries:
                raise _failure(doing, file, staging, error, number) from error
        time.sleep(pause_s)
        pause_s *= 2


def content_of(path: str) -> Content:
    """Sum and size of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return Content(digest.hexdigest(), size)


def _expect(file: File, path: str) -> Content:
    content = content_of(path)
    if file.sha256 not in (None, content.sha256):
        text = (
            f"{_where()}: the content of {shown(file.url)} has the sha256 {content.sha256} ({content.size_bytes:,} bytes), where "
            f"{file.sha256} was expected: it is another file, or was damaged on its way"
        )
        raise TransferError(text, file.url, _node())
    return content


def _failure(doing: str, file: File, staging: Staging, error: Exception, tries: int) -> TransferError:
    said = str(error) or type(error).__name__
    if not isinstance(error, OSError):
        said = f"{type(error).__name__}: {said}"
    times = f", {tries} times" if tries > 1 else ""
    return TransferError(f"{_where()}: {shown(file.url)} {doing} by {staging}{times}: {said}", file.url, _node())


def _where() -> str:
    """What messages say of the task: "task 7 (_stage_in:http) on rank 3 at nid00012"."""
    task: Any = context.current_task
    if task is None:
        return f"at {_node()}"
    rank = getattr(task, "rank", None)
    return f"{task} at {_node()}" if rank is None else f"{task} on rank {rank} at {_node()}"


def _node() -> str:
    return getattr(context.current_task, "node", "") or socket.gethostname()
