"""The file that tells tasks where their launch helper listens, and the key. Lines of a name and a value; mode 0600."""

from __future__ import annotations

import os

from exex.remote.wire import KEY_BYTES


class Unreachable(Exception):
    """No helper; it may be worth another try."""


class Meeting:
    """What a connection file says.

    Attributes:
        hosts: IPv4 addresses of the helper's node; not all may be reachable.
        node: its name.
    """

    def __init__(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Unreachable(f"its connection file {path} cannot be read: {error.strerror}") from None
        try:
            about = os.fstat(fd)
            if about.st_uid != os.geteuid() or about.st_mode & 0o077:
                raise Unreachable(f"its connection file {path} belongs to somebody else, or others may read it")
            text = os.read(fd, 65536)
        finally:
            os.close(fd)
        said = dict(line.split(" ", 1) for line in os.fsdecode(text).splitlines() if " " in line)
        try:
            self.hosts = said["hosts"].split()
            self.port = int(said["port"])
            self.key = bytes.fromhex(said["key"])
            self.pid, self.node = int(said["pid"]), said["node"]
        except (KeyError, ValueError):
            raise Unreachable(f"its connection file {path} is not one") from None
        if not self.hosts or len(self.key) != KEY_BYTES:
            raise Unreachable(f"its connection file {path} is not one")


def write(path: str, hosts: tuple[str, ...], port: int, key: bytes) -> None:
    """Put the file of this process there, at once and as a whole.

    Raises:
        OSError: it cannot be written.
    """
    new = f"{path}.{os.getpid()}"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(f"hosts {' '.join(hosts)}\nport {port}\nkey {key.hex()}\n{_me()}")
        file.flush()
        os.fsync(fd)
    os.replace(new, path)


def remove(path: str) -> None:
    """Remove the file, if it is that of this process."""
    try:
        with open(path) as file:
            if _me() in file.read():
                os.unlink(path)
    except OSError:
        pass  # somebody has tidied up


def _me() -> str:
    return f"pid {os.getpid()}\nnode {os.uname().nodename}\n"
