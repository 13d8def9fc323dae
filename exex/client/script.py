"""Runs the user's script as `__main__` in the client process. Forked from the guard of rank 0; never sees MPI."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import types
from typing import Any

from exex.client import session
from exex.config import Config
from exex.errors import ExexError, ManagerLost
from exex.launch import hand_over
from exex.transport.stream import StreamLink

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells have it."""


def run(script: str, args: list[str], message: dict[str, Any], config: Config) -> int:
    """Be the client. Returns the script's exit status.

    Args:
        message: from the manager, with the descriptor of the stream to it.
    """
    settings = session.Settings(
        title=os.path.basename(script),
        retries=config.retries,
        max_waiting=config.max_waiting,
        max_waiting_bytes=config.max_waiting_bytes,
        start_timeout_s=config.start_timeout_s * 2,
        journal=os.path.abspath(config.journal) if config.journal else "",
    )
    try:
        session.start(StreamLink(socket.socket(fileno=message["fd"])), settings)
    except ManagerLost:
        return 1  # rank 0, or its guard, has said why
    except ExexError as error:
        print(f"exex: the workflow {script} cannot start: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return _run_to_the_end(script, args, config.detach_on_client_exit)


def stand_in(path: str, message: dict[str, Any]) -> int:
    """Be the client's deputy: the program that has started this world waits at `path`. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that is for the program
    try:
        return hand_over.stand_in(path, message["fd"])
    except ExexError as error:
        print(f"exex: {error}", file=sys.stderr, flush=True)
        return 1


def _run_to_the_end(script: str, args: list[str], detach: bool) -> int:
    """Run the script, then finish its tasks, or cancel them if it failed and they are not to be finished nevertheless."""
    status = 1
    try:
        status = _run_main(script, args)
        session.finish(cancel=status != 0 and not detach)
    except KeyboardInterrupt:
        print("exex: interrupted", file=sys.stderr, flush=True)
        status = INTERRUPTED
    finally:
        if status:
            try:
                session.finish(cancel=True)
            except KeyboardInterrupt:
                pass  # impatient: the manager cancels what is left when this process ends
    return status


def _run_main(script: str, args: list[str]) -> int:
    """Execute the script as Python itself would; its exit status."""
    path = os.path.abspath(script)
    sys.argv = [script, *args]
    sys.path.insert(0, os.path.dirname(path))
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = main
    try:
        with io.open_code(path) as file:
            code = compile(file.read(), path, "exec")
        exec(code, main.__dict__)
    except SystemExit as ending:
        return _exit_status(ending.code)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _show(error)
        return 1
    return 0


def _exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr, flush=True)
    return 1


def _show(error: BaseException) -> None:
    """Print the traceback, from the script's first line on: what calls the script is no business of its author.

    Of a job that has ended only the message, which says why: the script has no part in it.
    """
    if isinstance(error, ManagerLost):
        print(f"exex: the script ends: {error}", file=sys.stderr, flush=True)
        return
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    error.__traceback__ = trace
    sys.excepthook(type(error), error, trace)
    sys.stderr.flush()
