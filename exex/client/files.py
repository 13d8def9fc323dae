"""Files as arguments of apps. Runs in the client and in task processes; touches no file."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|file:")


class File:
    """A file, named by a path or by a URL.

    A plain path is taken as it is; characters such as `?`, `#` and `%` mean nothing in it.

    Attributes:
        url: as given.
        scheme: "file" for plain paths.
        netloc: host part of the URL; "" for plain paths.
        path: path part of the URL.
        filename: last part of the path.
        local_path: where the file lies on this machine, if that is not what the URL says; None as long as nobody knows.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = os.fspath(url)
        if not isinstance(self.url, str):
            raise TypeError(f"a File is named by a str or a path, not by {type(self.url).__name__}")
        if _SCHEME.match(self.url):
            parts = urlsplit(self.url)
            self.scheme, self.netloc, self.path = parts.scheme, parts.netloc, parts.path
        else:
            self.scheme, self.netloc, self.path = "file", "", self.url
        self.filename = os.path.basename(self.path)
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
            f"{self.url} is not on this machine, and exex does not fetch {self.scheme}: files; "
            "fetch it in a task, or set its local_path"
        )

    def cleancopy(self) -> File:
        """The same file without its `local_path`."""
        return File(self.url)

    def __fspath__(self) -> str:
        return self.filepath

    def __str__(self) -> str:
        return self.filepath

    def __repr__(self) -> str:
        local = "" if self.local_path is None else f" local_path={self.local_path!r}"
        return f"<File {self.url!r}{local}>"
