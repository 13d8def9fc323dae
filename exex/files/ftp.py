"""Files of FTP servers. Runs in task processes."""

from __future__ import annotations

import ftplib
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import unquote, urlsplit

from exex.errors import TransferError
from exex.files.file import File
from exex.files.staging import Staging

_BLOCK_BYTES = 1 << 20


class Ftp(Staging):
    """Fetches and sends `ftp:` URLs, and `ftps:` ones with TLS from the login on.

    A path is that below the directory in which the server puts who logs in; one that begins with another slash (`ftp://host//data/x`)
    is absolute. Without a name in the URL the login is anonymous. What is sent gets its name when it is complete.
    """

    schemes = ("ftp", "ftps")

    def __init__(self, *, tries: int = 3, pause_s: float = 1.0, timeout_s: float = 60.0) -> None:
        super().__init__(tries=tries, pause_s=pause_s, timeout_s=timeout_s)
        self._versions: dict[str, tuple[int, str]] = {}  # of what was begun, by path

    def fetch(self, file: File, path: str) -> None:
        """RETR the file, or the rest of it if it has not changed."""
        with self._session(file) as ftp:
            name = _path_of(file)
            version = _version(ftp, name)
            at = os.path.getsize(path) if os.path.exists(path) else 0
            if version is None or self._versions.get(path) != version or at > version[0]:
                at = 0
            if version is not None:
                self._versions[path] = version
            with open(path, "ab" if at else "wb") as out:
                ftp.retrbinary(f"RETR {name}", out.write, _BLOCK_BYTES, at or None)
                came = out.tell()
        if version is not None and came != version[0]:
            raise OSError(f"the connection broke after {came:,} of {version[0]:,} bytes")

    def send(self, path: str, file: File) -> None:
        """STOR the file under another name, then rename it."""
        with self._session(file) as ftp, open(path, "rb") as content:
            name = _path_of(file)
            directory, base = posixpath.split(name)
            beside = posixpath.join(directory, f".{base[:40]}.{uuid.uuid4().hex[:12]}.part")
            try:
                ftp.storbinary(f"STOR {beside}", content, _BLOCK_BYTES)
                ftp.rename(beside, name)
            except BaseException:
                with suppress(ftplib.Error, OSError, EOFError):
                    ftp.delete(beside)
                raise

    @contextmanager
    def _session(self, file: File) -> Iterator[ftplib.FTP]:
        parts = urlsplit(file.url)
        ftp = ftplib.FTP_TLS(timeout=self.timeout_s) if file.scheme == "ftps" else ftplib.FTP(timeout=self.timeout_s)
        try:
            ftp.connect(parts.hostname or "", parts.port or ftplib.FTP_PORT)
            ftp.login(unquote(parts.username or ""), unquote(parts.password or ""))
            if isinstance(ftp, ftplib.FTP_TLS):
                ftp.prot_p()
            ftp.voidcmd("TYPE I")
            yield ftp
            with suppress(ftplib.Error, OSError, EOFError):
                ftp.quit()
        except ftplib.error_perm as error:
            raise TransferError(f"the server says {error}") from error
        except (ftplib.Error, EOFError) as error:
            raise OSError(f"the server says {error}" if str(error) else "the connection broke") from error
        finally:
            ftp.close()


def _path_of(file: File) -> str:
    path = file.remote_path()[1:]
    if not path or path.endswith("/") or not path.isprintable():
        raise TransferError(f"{path!r} names no file")
    return path


def _version(ftp: ftplib.FTP, name: str) -> tuple[int, str] | None:
    """Size of a file, and when it was written; None if the server tells no size."""
    try:
        size = ftp.size(name)
    except ftplib.error_perm:
        return None  # RETR will say what is wrong
    try:
        written = ftp.voidcmd(f"MDTM {name}")
    except ftplib.error_perm:
        written = ""
    return None if size is None else (size, written)
