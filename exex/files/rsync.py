"""Files by rsync: from and to its daemons, and other machines by ssh. Runs in task processes; needs the program `rsync`."""

from __future__ import annotations

import os
import subprocess
from urllib.parse import unquote, urlsplit

from exex.errors import TransferError
from exex.files.file import File
from exex.files.staging import Staging

_MAY_PASS = {
    10: "a socket broke",
    12: "the stream of data broke",
    30: "nothing came for too long",
    35: "the daemon did not answer in time",
    255: "ssh could not connect",
}
"""Exit codes of failures that may not come again; rsync(1), EXIT VALUES, and ssh(1)."""

_BUSY = "max connections"
_TAIL = 500


class Rsync(Staging):
    """Fetches and sends `rsync://HOST/MODULE/PATH`, of a daemon, and `rsync+ssh://HOST/PATH`, by ssh without a password.

    Both may have a user name and a port. A daemon's password stands in the URL or in RSYNC_PASSWORD. Only what is different
    travels, if something was fetched before; what is sent gets its name when it is complete.

    Args:
        options: further words for rsync, such as "--bwlimit=10000".
        program: of rsync.
    """

    schemes = ("rsync", "rsync+ssh")

    def __init__(
        self,
        options: tuple[str, ...] = (),
        *,
        program: str = "rsync",
        tries: int = 3,
        pause_s: float = 1.0,
        timeout_s: float = 60.0,
    ) -> None:
        super().__init__(tries=tries, pause_s=pause_s, timeout_s=timeout_s)
        self._options = tuple(options)
        self._program = program

    def fetch(self, file: File, path: str) -> None:
        """Fetch the file; what was begun is gone on with."""
        self._run(["--inplace", *self.words(file), "--", remote(file), path], file)

    def send(self, path: str, file: File) -> None:
        """Send the file."""
        self._run([*self.words(file), "--", path, remote(file)], file)

    def words(self, file: File) -> list[str]:
        """Options for either way."""
        seconds = str(max(1, round(self.timeout_s)))
        found = ["--quiet", "--copy-links", f"--timeout={seconds}"]
        if file.scheme == "rsync":
            found.append(f"--contimeout={seconds}")
        else:
            port = urlsplit(file.url).port
            by = f"ssh -o BatchMode=yes -o ConnectTimeout={seconds}" + (f" -p {port}" if port else "")
            found += ["--protect-args", f"--rsh={by}"]
        return [*found, *self._options]

    def _run(self, words: list[str], file: File) -> None:
        env, password = dict(os.environ), urlsplit(file.url).password
        if password:
            env["RSYNC_PASSWORD"] = unquote(password)
        try:
            done = subprocess.run(
                [self._program, *words],
                check=False,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
            )
        except FileNotFoundError as error:
            raise TransferError(f"this node has no program {self._program}, which {file.scheme}: URLs need") from error
        if done.returncode:
            said = done.stderr.strip()[-_TAIL:]
            text = f"rsync ended with {done.returncode}: {said or _MAY_PASS.get(done.returncode, 'it said nothing')}"
            if done.returncode in _MAY_PASS or _BUSY in said:
                raise OSError(text)
            raise TransferError(text)


def remote(file: File) -> str:
    """A file as rsync is told it.

    Raises:
        TransferError: the URL names no file.
    """
    parts = urlsplit(file.url)
    path, user = file.remote_path(), f"{unquote(parts.username)}@" if parts.username else ""
    if not parts.hostname or path.endswith("/") or len(path) < 2:
        raise TransferError("the URL names no file: it must be rsync://HOST/MODULE/PATH or rsync+ssh://HOST/PATH")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if file.scheme == "rsync":
        return f"rsync://{user}{host}{f':{parts.port}' if parts.port else ''}{path}"
    return f"{user}{host}:{path}"
