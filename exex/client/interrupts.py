"""Ctrl-C in the client's main thread: it must not come in the middle of a talk with the manager. Runs in the client.

A signal handler that raises can do so between any two steps of the main thread. Where that thread has half a message in
its hands, Ctrl-C is put off until it has none.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_getsignal: Callable[[int], Any] = getattr(signal.getsignal, "__wrapped__", signal.getsignal)  # without the slow enums


class NoShield:
    """Where Ctrl-C does not come. See `Shield`."""

    was_interrupted = False

    def install(self) -> None:
        """Nothing to do."""

    remove = lower = install

    def raise_(self) -> bool:
        """Whether Ctrl-C is put off: it does not come."""
        return True


class Shield:
    """Puts Ctrl-C off. Threads other than the main one are not interrupted anyway.

    Args:
        on_interrupt: called when Ctrl-C has been put off, so that a wait ends.

    Attributes:
        was_interrupted: Ctrl-C has been put off.
    """

    def __init__(self, on_interrupt: Callable[[], None]) -> None:
        self.was_interrupted = False
        self._on_interrupt = on_interrupt
        self._main = threading.main_thread().ident
        self._depth = 0  # how often it was raised; only the main thread looks at it
        self._handler = self._handle  # one object, to be recognised

    def install(self) -> None:
        """Take over Ctrl-C, if nobody but Python itself handles it and this is the main thread."""
        if threading.get_ident() == self._main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handler)

    def remove(self) -> None:
        """Give Ctrl-C back."""
        if threading.get_ident() == self._main and signal.getsignal(signal.SIGINT) is self._handler:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def raise_(self) -> bool:
        """Put Ctrl-C off until `lower`. False if that cannot be done, because the script handles it itself."""
        if threading.get_ident() != self._main:
            return True
        self._depth += 1
        if _getsignal(signal.SIGINT) is self._handler:
            return True
        self._depth -= 1
        return False

    def lower(self) -> None:
        """Put it off no longer.

        Raises:
            KeyboardInterrupt: Ctrl-C has come meanwhile.
        """
        if threading.get_ident() == self._main:
            self._depth -= 1
            if self.was_interrupted and not self._depth:
                self.was_interrupted = False
                raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._depth:
            self.was_interrupted = True
            self._on_interrupt()
        else:
            signal.default_int_handler(number, frame)
