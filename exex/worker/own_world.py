"""A Python function on a communicator in an MPI world of its own: the task process that has it started. See own_world_rank.

Its ranks are started by the launcher of sub-tasks. Rank 0 connects to this process by TCP and fetches the call; at the end it
brings what all ranks have come to. A rank that fails connects, too, tells its error, and ends its world, as the others may wait
for it in MPI.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from exex.errors import AppException, BashExitFailure
from exex.launch import subtasks
from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Grant, Outcome, TaskId
from exex.protocol.parts import RankPart, combine
from exex.protocol.payload import Payload
from exex.protocol.task_numbers import shown
from exex.transport.alarm import addresses
from exex.worker import bash, subtask
from exex.worker.context import Place, TaskContext
from exex.worker.execute import environment, flush_output, where
from exex.worker.together import Head, make_head, unhanded

VARIABLE = "EXEX_OWN_WORLD"
"""Of rank 0: addresses with commas, port, and key in hexadecimal, with colons between them."""

_PROGRAM = "exex.worker.own_world_rank"
_LAST_WORDS_S = 2.0


def run(  # noqa: PLR0917
    grant: Grant,
    spec: AppSpec,
    function: Payload,
    payload: Payload,
    values: Sequence[Payload] | None,
    task: TaskId,
    attempt: int,
    place: Place,
) -> tuple[int, Payload, float]:
    """Run one attempt; returns as `execute.execute`."""
    current = TaskContext(shown(task), attempt, spec.name, place.rank, place.node)
    title = f"{current}, attempt {attempt},"
    try:
        head = make_head(spec, function, payload, values, attempt)
        meeting = _Meeting((task, head))
        try:
            _start_world(grant, spec, current, where(current, place), meeting)
        except BashExitFailure as error:
            if not meeting.wait():
                text = f"{title}: its MPI world of {spec.ranks} ranks ended with status {error.exitcode} before it was done"
                tail = f"; its stderr ends:\n{error.stderr_tail}" if error.stderr_tail else ""
                raise AppException(text + tail) from None
        finally:
            meeting.close()
        parts = meeting.parts()
        if len(parts) < spec.ranks and all(part.outcome == Outcome.DONE for part in parts):
            silent = spec.ranks - len(parts)
            raise AppException(f"{title}: its MPI world has ended, and {silent} of its {spec.ranks} ranks have said nothing")
        stopped = [RankPart(-1, "", int(Outcome.CANCELLED), b"", 0.0)] * (spec.ranks - len(parts))
        return combine(title, [*parts, *stopped], spec.every_rank)
    except Exception as error:
        return int(Outcome.FAILED), payloads.dump_error(error, where(current, place)), 0.0


def _start_world(grant: Grant, spec: AppSpec, current: TaskContext, at: str, meeting: _Meeting) -> None:
    """Start the ranks, and wait until they have ended.

    Raises:
        BashExitFailure: the launcher says that they did not end well.
        ConfigError: no launcher is known, or it cannot start this layout.
    """
    layout = subtask.layout_of(spec, grant, {"ranks": spec.ranks, "ranks_per_node": -(-spec.ranks // len(grant.shares))})
    path = os.environ.get("PYTHONPATH")
    found = subtasks.sub_task(layout._replace(bind=False), os.environ, subtask.masks(grant))
    dropped = os.environ.keys() - found.environment.keys()
    with ExitStack() as stack:
        stack.enter_context(environment({**found.environment, VARIABLE: meeting.address}, dropped))
        program = [sys.executable, "-m", _PROGRAM, sys.argv[0], sys.path[0]]
        if path is not None:
            program = ["env", f"PYTHONPATH={path}", *program]  # not every launcher hands variables on
        flush_output()
        bash.run_command(
            f"exec {shlex.join([*found.prefix, *program])}", context=current, where=at, stdout=None, stderr=None
        )


class _Meeting:
    """Where the ranks bring what they have to say.

    Args:
        call: for rank 0: number of the task, and its head.
    """

    def __init__(self, call: tuple[TaskId, Head]) -> None:
        key = os.urandom(32)
        self._call = call
        self._parts: list[RankPart] = []
        self._said = threading.Event()
        self._lock = threading.Lock()
        self._key = key
        self._listener = socket.create_server(("", 0), backlog=64)
        self.address = f"{','.join(addresses())}:{self._listener.getsockname()[1]}:{key.hex()}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(Connection(sock.detach()),), daemon=True).start()

    def _serve(self, connection: Connection[Any, Any]) -> None:
        try:
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            while True:
                said = connection.recv()
                if said is None:
                    connection.send(self._call)
                    continue
                with self._lock:
                    self._parts += said
                connection.send(None)
                self._said.set()
        except (OSError, EOFError, AuthenticationError):
            pass  # that was all, or it was somebody without the key
        finally:
            connection.close()

    def wait(self) -> bool:
        """After the world's end: whether any rank has said something."""
        return self._said.wait(_LAST_WORDS_S)

    def parts(self) -> list[RankPart]:
        """What the ranks have come to, as far as they have said it."""
        with self._lock:
            return sorted(RankPart(*part[:3], unhanded(part[3]), part[4]) for part in self._parts)

    def close(self) -> None:
        """Hear no more."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # else its thread would wait on
        finally:
            self._listener.close()

