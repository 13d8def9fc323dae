"""Staging before the ranks of a job are started, so that they start from there: by `exex run`, and in a job script by

    launcher, one rank on each node:  python -m exex.stage [options] script.py [args...]

with the words of the `python -m exex.run` that follows. This leaves in the directory EXEX_JOB_DIR the file `staged`, the program
for `sh -c` that becomes a rank on any of the nodes; see docs/staging.md.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

from exex.config import Config
from exex.errors import ConfigError, ExexError, StagingError, StartError
from exex.launch.run_words import read_command
from exex.launch.staging import Beat, Staged, Tree, Wanted, stage
from exex.launch.world import ExpectedWorld, expected_world, settling_s, singletons_message, task_environment
from exex.reaper import Reaper
from exex.transport import broadcast
from exex.worker import staged_ranks

NAME = "staged"
"""The file in EXEX_JOB_DIR."""

_TRY_S = 60.0
"""What is added to `start_timeout_s` for a look whether the staged interpreter runs."""


def main(argv: list[str] | None = None) -> int:
    """Be one rank of the step. Returns its exit status."""
    words = sys.argv[1:] if argv is None else argv
    command = read_command(words, os.environ)
    if command is None:
        from exex import cli

        command = cli.parse_run_args(words)
    config = command[0]
    expected = expected_world(os.environ)
    where = f"{'this process' if expected.rank is None else f'rank {expected.rank}'} at {socket.gethostname()}"
    try:
        with _Watch(config.start_timeout_s + _TRY_S, where) as watch:
            _stage_all(config, expected, where, watch)
    except (StagingError, ConfigError) as error:  # all know; a launcher may end the step as soon as one says that it has failed
        if not expected.rank:
            print(f"exex: {where}: {error}", file=sys.stderr, flush=True)
        return 0 if expected.rank else 1
    except ExexError as error:
        print(f"exex: {where}: {error}", file=sys.stderr, flush=True)
        if expected.launcher != "none":
            _end_the_step()
        return 1
    return 0


def _stage_all(config: Config, expected: ExpectedWorld, where: str, watch: _Watch) -> None:
    """Stage on every node, and say how ranks start there. Collective."""
    directory = os.environ.get("EXEX_JOB_DIR", "")
    if not (config.stage or config.stage_file):
        raise ConfigError("nothing is to be staged: give --stage or --stage-file")
    if not directory:
        raise ConfigError("EXEX_JOB_DIR must name a directory of this job, for the file that says how ranks start")
    try:
        from exex.transport import mpi
    except (ImportError, RuntimeError) as error:
        raise StartError(f"mpi4py cannot load an MPI library: {error}; try `exex doctor`") from error
    library = mpi.library()
    beat = Beat(watch.alive)
    key, world, tree = secrets.token_hex(8), cast("Any", None), cast("Tree", broadcast.Alone())
    if expected.launcher != "none":
        world = mpi.start()
        if message := singletons_message(expected, library, world.size):
            raise StartError(message)
        time.sleep(settling_s(expected, library))
        key = mpi.tell_all(world, key)
        tree = broadcast.Tree(*mpi.leaders_and_node(world), beat)
    notes = []
    path = os.path.join(directory, NAME)

    def prepare(staged: Staged) -> None:
        notes.append(staged_ranks.prepare(staged, task_environment(os.environ), library, waits=True))
        if not expected.rank:
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                file.write(staged_ranks.shell_text(config.stage_dir, key, os.getuid()) + "\n")

    wanted = Wanted(config.stage, config.stage_file, config.stage_dir, key)
    try:
        stage(wanted, tree, beat, os.environ, where, prepare=prepare)
        notes = notes if world is None else [note for found in mpi.gather(world, notes) for note in found]
    finally:
        if world is not None:
            mpi.finish()
    if not expected.rank:
        _say_why(config, notes)
        os.replace(f"{path}.new", path)  # only now: the job script goes on if there is such a file


def _say_why(config: Config, notes: list[str]) -> None:
    """Tell the user if ranks start from the shared environment nevertheless.

    Args:
        notes: why, of each node; "" where they do not.
    """
    reasons = [note for note in notes if note]
    if config.stage and reasons:
        nodes = f" on {len(reasons)} of {len(notes)} nodes" if len(notes) > 1 else ""
        text = f"ranks{nodes} start from {sys.executable}, and only tasks from what is staged: {reasons[0]}"
        print(f"exex: {text}", file=sys.stderr, flush=True)


def _end_the_step() -> NoReturn:
    """End this process so that the launcher ends the others, which may wait for it in MPI_Init."""
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    raise SystemExit(1)


class _Watch:
    """Ends this process if nothing has happened for too long, be it in MPI_Init or on a file system that does not answer."""

    def __init__(self, limit_s: float, where: str) -> None:
        self._limit_s = limit_s
        self._where = where
        self._until_s = time.monotonic() + limit_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def alive(self) -> None:
        """Something has happened."""
        self._until_s = time.monotonic() + self._limit_s

    def _run(self) -> None:
        while not self._over.wait(max(0.0, self._until_s - time.monotonic())):
            if time.monotonic() >= self._until_s:
                text = f"exex: {self._where} has got no further with what is staged for {self._limit_s:g} s"
                print(text, file=sys.stderr, flush=True)
                os._exit(1)


# ---- exex run ----


@contextlib.contextmanager
def staged_here(config: Config, library: str) -> Iterator[list[str]]:
    """Stage on this machine, by this process; the words that start a rank there. Nothing is left afterwards.

    Args:
        library: name of the MPI library that the job uses.

    Raises:
        StagingError: it cannot be staged.
    """
    notes = []

    def prepare(staged: Staged) -> None:
        notes.append(staged_ranks.prepare(staged, task_environment(os.environ), library, waits=False))

    reaper = Reaper()  # in case this process is killed
    try:
        staged, place = _stage_alone(config, prepare)
        reaper.note_directory(staged.directory)
        _say_why(config, notes)
        try:
            yield ["/bin/sh", os.path.join(staged.directory, staged_ranks.START)]
        finally:
            place.give_up()
    finally:
        reaper.dismiss()


def _stage_alone(config: Config, prepare: Callable[[Staged], None]) -> tuple[Staged, Any]:
    """Stage in this process alone, which leaves nothing behind if it is told to end meanwhile."""
    wanted = Wanted(config.stage, config.stage_file, config.stage_dir)
    before = signal.signal(signal.SIGTERM, _give_up)
    try:
        alone, beat, where = cast("Tree", broadcast.Alone()), Beat(lambda: None), socket.gethostname()
        return stage(wanted, alone, beat, os.environ, where, prepare=prepare)
    finally:
        signal.signal(signal.SIGTERM, before)


def _give_up(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
