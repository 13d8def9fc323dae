"""Files that all nodes see: fetching one is copying it. Runs in task processes."""

from __future__ import annotations

import os
import shutil

from exex.files.file import File
from exex.files.staging import Staging


class Copy(Staging):
    """Fetches and sends `file:` URLs and plain paths."""

    schemes = ("file",)

    def fetch(self, file: File, path: str) -> None:
        """Copy the file to `path`, with its permissions: it may be a program."""
        shutil.copy(file.path, path)

    def send(self, path: str, file: File) -> None:
        """Copy the file at `path` to where the URL says."""
        beside = f"{file.path}.{os.getpid()}.part"
        try:
            shutil.copy(path, beside)
            os.replace(beside, file.path)
        finally:
            if os.path.exists(beside):
                os.unlink(beside)
