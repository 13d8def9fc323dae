"""The connection file: where a job listens for clients, and the keys. JSON, mode 0600, written as a whole."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from exex.errors import ConfigError
from exex.version import __version__

FORMAT = "exex connection 1"
_KEY_CHARACTERS = 40


@dataclass(frozen=True)
class Connection:
    """What a connection file says.

    Attributes:
        addresses: `host:port`, the likeliest first.
        server_key: public key of the job.
        client_public, client_secret: the key of its clients.
        job: id of the batch job, or the pid of rank 0.
        version: of exex; python: of Python.
        host: name of rank 0's node; pid: of rank 0.
    """

    addresses: list[str]
    server_key: str
    client_public: str
    client_secret: str = field(repr=False)
    job: str = ""
    version: str = __version__
    python: str = ""
    host: str = ""
    pid: int = 0


def write(path: str, connection: Connection) -> None:
    """Put the file there at once and as a whole.

    Raises:
        OSError: it cannot be written.
    """
    new = f"{path}.{os.getpid()}"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, **asdict(connection)}, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise


def read(path: str) -> Connection:
    """The connection file of a job.

    Raises:
        ConfigError: there is none, it is not this user's alone, or it is no such file. The text says what to do.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no connection file {path}: a job that was started with --listen writes one when its workers are up, "
            "and removes it when it ends"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read the connection file {path}: {error.strerror}") from None
    with open(fd, encoding="utf-8", errors="replace") as file:
        about = os.fstat(fd)
        if about.st_uid != os.geteuid() or about.st_mode & 0o077:
            raise ConfigError(f"the connection file {path} holds a secret key, but others can read or write it: chmod 600 {path}")
        text = file.read()
    try:
        said: dict[str, Any] = json.loads(text)
        if said.pop("format") != FORMAT:
            raise ValueError
        found = Connection(**said)
        keys = (found.server_key, found.client_public, found.client_secret)
        texts = (*found.addresses, *keys, found.version, found.python)
        if not found.addresses or not all(isinstance(text, str) for text in texts):
            raise ValueError
        if any(len(key) != _KEY_CHARACTERS for key in keys):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(f"{path} is not a connection file of exex, or one of another version of it") from None
    return found


def remove(path: str, connection: Connection) -> None:
    """Remove the file, if it is still that of this job."""
    try:
        if read(path) == connection:
            os.unlink(path)
    except (ConfigError, OSError):
        pass  # somebody has tidied up
