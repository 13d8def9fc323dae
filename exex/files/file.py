"""Files as arguments of apps. Runs in the client and in task processes; touches no file."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from exex.protocol import payload as payloads

RUN, NODE = "run", "node"
"""Where a fetched file lies: in the directory of the run, which all nodes see; on a disk of each node's own."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|file:")
_SHA256 = re.compile(r"[0-9a-f]{64}")

as_argument: Callable[[File], tuple[Any, ...] | None] | None = None
"""How a File pickles as an argument of an app, if not as itself; set in the client, which has it fetched."""


class File:
    """A file, named by a path or by a URL.

    A plain path is taken as it is; characters such as `?`, `#` and `%` mean nothing in it. As an argument of an app, at any
    depth, a file that is elsewhere makes the call wait until it is here; the task finds its path under `filepath`.

    Args:
        sha256: what its content must have, 64 hexadecimal digits; None for whatever comes.
        to: where it is fetched to: "run", the directory of the run; "node", a disk of each node's own, once per node; or a
            directory that all nodes see. None: as the setting `--fetch-to` says; a `file:` then stays where it is.

    Attributes:
        url: as given.
        scheme: "file" for plain paths.
        netloc: host part of the URL; "" for plain paths.
        path: path part of the URL.
        filename: last part of the path.
        sha256: as given; of a file that was sent, what its content has.
        size_bytes: of a file that was sent; None as long as nobody knows.
        local_path: where the file lies on this machine, if that is not what the URL says; None as long as nobody knows.

    Raises:
        TypeError: the name is no text and no path.
        ValueError: `sha256` is no such sum, or `to` is empty.
    """

    def __init__(
        self, url: str | os.PathLike[str], *, sha256: str | None = None, to: str | os.PathLike[str] | None = None
    ) -> None:
        self.url = os.fspath(url)
        if not isinstance(self.url, str):
            raise TypeError(f"a File is named by a str or a path, not by {type(self.url).__name__}")
        if _SCHEME.match(self.url):
            parts = urlsplit(self.url)
            self.scheme, self.netloc, self.path = parts.scheme, parts.netloc, parts.path
        else:
            self.scheme, self.netloc, self.path = "file", "", self.url
        self.filename = os.path.basename(self.path)
        self.sha256 = None if sha256 is None else sha256.lower()
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256= of {shown(self.url)} must be 64 hexadecimal digits, not {sha256!r}")
        self.to = None if to is None else os.fspath(to)
        if self.to == "":
            raise ValueError(f"to= of {shown(self.url)} is empty; name a directory, {RUN!r} or {NODE!r}")
        self.size_bytes: int | None = None
        self.local_path: str | None = None

    @property
    def filepath(self) -> str:
        """Path by which programs on this machine can open the file.

        Raises:
            ValueError: the file lies elsewhere.
        """
        if self.local_path is not None:
            return self.local_path
        if self.scheme == "file":
            return self.path
        raise ValueError(
            f"{shown(self.url)} is not on this machine: as an argument of an app it is fetched for the task; elsewhere, set its "
            "local_path"
        )

    def cleancopy(self) -> File:
        """The same file without its `local_path`."""
        return File(self.url, sha256=self.sha256, to=self.to)

    def at(self, path: str) -> File:
        """The same file, which lies there."""
        copy = self.cleancopy()
        copy.local_path = path
        return copy

    def local_name(self) -> str:
        """What it is called where it is fetched to."""
        return self.filename if self.filename not in ("", ".", "..") else "file"

    def remote_path(self) -> str:
        """The path of the URL, for servers that are not asked by URLs: with the characters that %20 and the like stand for."""
        return unquote(self.path)

    def __fspath__(self) -> str:
        return self.filepath

    def __str__(self) -> str:
        return self.filepath

    def __repr__(self) -> str:
        local = "" if self.local_path is None else f" local_path={self.local_path!r}"
        return f"<File {shown(self.url)!r}{local}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        if as_argument is not None and self.local_path is None and payloads.collecting() and not _thread.left_alone:
            found = as_argument(self)
            if found is not None:
                return found
        return super().__reduce_ex__(protocol)


@contextmanager
def files_left_alone() -> Iterator[None]:
    """Meanwhile this thread pickles files among arguments as themselves."""
    _thread.left_alone = True
    try:
        yield
    finally:
        _thread.left_alone = False


class _Thread(threading.local):
    left_alone = False


_thread = _Thread()


def shown(url: str) -> str:
    """A URL as messages have it: without a password, and without what follows a question mark, which may be one."""
    if not _SCHEME.match(url):
        return url
    parts = urlsplit(url)
    netloc = parts.netloc
    if "@" in netloc:
        user, _, host = netloc.rpartition("@")
        netloc = f"{user.partition(':')[0]}@{host}"
    return parts._replace(netloc=netloc, query="..." if parts.query else "", fragment="").geturl()
