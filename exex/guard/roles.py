"""What each process that goes on from a guard's `split` is."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from exex.guard.control import Control
from exex.transport.page import Page


@dataclass(frozen=True)
class RankRole:
    """This process is the rank: it may initialise MPI."""

    control: Control
    template: socket.socket
    alarm_port: int  # of its guard
    page: Page  # shared with its guard


@dataclass(frozen=True)
class ClientRole:
    """This process is the client: it runs the user's script."""

    message: dict[str, Any]
    staged_files: str  # directory of the files that were staged; "" if there are none


@dataclass(frozen=True)
class GuardRole:
    """This process was the guard, and everything has ended.

    Attributes:
        others_wait: its rank failed before the handshake, and others may wait for it in MPI_Init.
    """

    status: int
    others_wait: bool
