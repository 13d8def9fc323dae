"""How a rank is reached while a function of the user's has its main thread: by a datagram to a thread beside it.

A function that runs on a communicator runs in the rank itself, which hears nothing by MPI until it returns. The manager, which
knows that the task was cancelled, has used up its time, or has lost one of its ranks, sends a datagram to all of them. The first
raises `TaskStopped` in the function's Python code; one that says `hard` kills the rank, which may be waiting in MPI for a dead
one, and so for ever.

A datagram: u64 task, u8 hard, 16 bytes of BLAKE2s over both, keyed with the world's secret (see alarm).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_BODY = struct.Struct("<QB")
_MAC_BYTES = 16


def _mac(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2s(body, key=key, digest_size=_MAC_BYTES).digest()


class Interrupts:
    """A rank's end.

    Args:
        key: the world's secret.
        number: the signal that the main thread gets. Outside `heeded` it must be ignored.
        on_signal: its handler while a function runs; raises in the function.
    """

    def __init__(self, key: bytes, number: int, on_signal: Callable[[int, object], None]) -> None:
        self._key = key
        self._number = number
        self._on_signal = on_signal
        self._task = -1
        self._thread: threading.Thread | None = None
        self._inside = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(("", 0))
        self.port: int = self._socket.getsockname()[1]

    @contextmanager
    def heeded(self, task: int) -> Iterator[None]:
        """While this lasts, a datagram that names `task` ends it. To be entered by the main thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._listen, name="exex-interrupts", daemon=True)
            self._thread.start()
        before = signal.signal(self._number, self._in_main)
        self._task = task
        try:
            self._inside = True
            yield
        finally:
            self._inside = False
            self._task = -1
            signal.signal(self._number, before)

    def _in_main(self, number: int, frame: object) -> None:
        if self._inside:
            self._inside = False  # once
            self._on_signal(number, frame)

    def _listen(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while True:
            try:
                data = self._socket.recv(64)
            except OSError:
                return
            body, mac = data[: _BODY.size], data[_BODY.size :]
            if len(body) != _BODY.size or not hmac.compare_digest(mac, _mac(self._key, body)):
                continue
            task, hard = _BODY.unpack(body)
            if task == self._task:
                if hard:
                    os.kill(os.getpid(), signal.SIGKILL)
                signal.pthread_kill(main, self._number)

    def close(self) -> None:
        """Release the socket; the thread ends with the process."""
        self._socket.close()


def interrupt(host: str, port: int, key: bytes, task: int, hard: bool) -> None:
    """Tell a rank to end `task`. A datagram may be lost: repeat it until the rank reports, or is dead."""
    body = _BODY.pack(task, hard)
    address = "127.0.0.1" if host == socket.gethostname() else host
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(body + _mac(key, body), (address, port))
    except OSError:
        pass
