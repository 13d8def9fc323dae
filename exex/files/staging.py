"""What fetches and sends files: the class to extend, and how one is found for a URL.

Chosen in the client; its methods run in stage tasks, on workers.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from exex.errors import ConfigError
from exex.files.file import File, shown

BUILT_IN = {
    "file": "exex.files.copying:Copy",
    "http": "exex.files.http:Http",
    "https": "exex.files.http:Http",
    "ftp": "exex.files.ftp:Ftp",
    "ftps": "exex.files.ftp:Ftp",
    "rsync": "exex.files.rsync:Rsync",
    "rsync+ssh": "exex.files.rsync:Rsync",
}
"""Who serves a scheme if the user says nothing: MODULE:CLASS."""


class Staging:
    """How files of some URL schemes come to a job's nodes, and how they leave them.

    Extend it, say in `schemes` which URLs it serves, and write `fetch`, `send` or both. exex does the rest: it calls them in
    tasks of their own, makes the directory, gives a fetched file its name when it is complete, looks at sums, tries again, and
    says what went wrong with which file, where. Objects are pickled with each stage task, so they hold settings and no
    connections.

    Attributes:
        schemes: of the URLs that it serves: ("s3",).
        tries: how often one attempt of a stage task calls the method, if it fails for reasons that may pass.
        pause_s: before the second call; doubled before each further one.
        timeout_s: of silence after which a server is given up.
    """

    schemes: tuple[str, ...] = ()
    tries: int = 3
    pause_s: float = 1.0
    timeout_s: float = 60.0

    def __init__(self, *, tries: int = 3, pause_s: float = 1.0, timeout_s: float = 60.0) -> None:
        if tries < 1 or pause_s < 0 or timeout_s <= 0:
            given = f"{tries}, {pause_s}, {timeout_s}"
            raise ValueError(f"tries must be at least 1, pause_s not negative and timeout_s positive, but they are {given}")
        self.tries, self.pause_s, self.timeout_s = tries, pause_s, timeout_s

    def serves(self, file: File) -> bool:
        """Whether this is for it: as a rule, whether its scheme is in `schemes`."""
        return file.scheme in self.schemes

    def fetch(self, file: File, path: str) -> None:
        """Write the content of `file` to `path`, in a directory that exists. Nobody else sees `path` before this returns.

        If an earlier call has failed, `path` may exist with what that has written.

        Raises:
            OSError: it did not work, but may if it is tried again: a connection broke, a server is busy.
            Exception: it will not work; TransferError for an exact message.
        """
        raise ConfigError(f"{type(self).__name__} cannot fetch files: {shown(file.url)}")

    def send(self, path: str, file: File) -> None:
        """Make the content of the file at `path` that of `file`, at best in one step: write beside it, then rename.

        Raises:
            As `fetch`.
        """
        raise ConfigError(f"{type(self).__name__} cannot send files: {shown(file.url)}")

    def __repr__(self) -> str:
        return type(self).__name__


_used: list[Staging] = []


def use(staging: Staging) -> None:
    """From now on ask this one first for files that are arguments or outputs of apps.

    Raises:
        TypeError: it is no Staging.
    """
    _used.append(_checked(staging, "exex.files.use"))


def find(file: File, configured: Sequence[Staging] = ()) -> Staging:
    """What serves a file: what the script used last, then what the settings name, then what exex has.

    Raises:
        ConfigError: nobody does.
    """
    for staging in (*reversed(_used), *configured):
        if staging.serves(file):
            return staging
    home = BUILT_IN.get(file.scheme)
    if home is not None:
        return load(home)
    served = sorted({*BUILT_IN, *(scheme for staging in (*_used, *configured) for scheme in staging.schemes)})
    more = " (for Globus, exex.files.use(exex.files.Globus(...)))" if file.scheme == "globus" else ""
    raise ConfigError(
        f"nothing fetches or sends {file.scheme}: files such as {shown(file.url)}; there is something for {', '.join(served)}. "
        f"Extend exex.files.Staging and name it by exex.files.use() or --staging MODULE:NAME{more}"
    )


def load(name: str) -> Staging:
    """The Staging of this name, MODULE:NAME: an object, or a class that can be called without arguments.

    Raises:
        ConfigError: there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
        return _checked(found() if isinstance(found, type) else found, name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"--staging {name} cannot be used, it must be MODULE:NAME of a Staging: {error}") from error


def _checked(staging: object, source: str) -> Staging:
    if not isinstance(staging, Staging):
        raise TypeError(f"{source} takes an object of a class that extends exex.files.Staging, not {staging!r}")
    return staging
