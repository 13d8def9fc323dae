"""The terminal of a guard, lent to the client."""

from __future__ import annotations

import os
import signal


class Terminal:
    """Lets Ctrl-C at a terminal reach the client alone, and lets it read there, as a shell does for its jobs."""

    def __init__(self) -> None:
        self._ours = 0  # our process group, while the client has the terminal

    def lend(self, client: int) -> None:
        """Put the client into a process group of its own, and that into the foreground, if the guard is there."""
        try:
            os.setpgid(client, client)
            if not os.isatty(0) or os.tcgetpgrp(0) != os.getpgrp():
                return
            ours = os.getpgrp()
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, client)
            self._ours = ours
        except OSError:
            pass  # it has ended already, or the terminal is not ours

    def take_back(self) -> None:
        """Be in the foreground again."""
        if self._ours:
            os.tcsetpgrp(0, self._ours)
