"""Files that are elsewhere: what fetches them for tasks, and what sends those that tasks make.

The names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in typing, whose import would take longer than all else here
if TYPE_CHECKING:
    from typing import Any

    from exex.errors import TransferError
    from exex.files.file import File
    from exex.files.ftp import Ftp
    from exex.files.globus import Globus
    from exex.files.http import Http
    from exex.files.rsync import Rsync
    from exex.files.staging import Staging, use

_HOME_OF = {
    "File": "exex.files.file",
    "Ftp": "exex.files.ftp",
    "Globus": "exex.files.globus",
    "Http": "exex.files.http",
    "Rsync": "exex.files.rsync",
    "Staging": "exex.files.staging",
    "TransferError": "exex.errors",
    "use": "exex.files.staging",
}

__all__ = ["File", "Ftp", "Globus", "Http", "Rsync", "Staging", "TransferError", "use"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'exex.files' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
