"""`python -m exex.run [options] script.py [args...]`: what the launcher starts, and the one place where roles part.

Each process started becomes a guard, a template and a rank; the guard of rank 0 also starts the client.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exex.guard.roles import ClientRole
    from exex.launch.run_words import Command
    from exex.launch.world import ExpectedWorld
    from exex.worker.staged_ranks import Prepared


def main(argv: list[str] | None = None, far: Sequence[str] = ()) -> int:
    """Run one process of the job. Returns its exit status.

    Args:
        far: the rest of `sys.path`: for the modules of others, and not for ours, of which some are tried that may be missing.
    """
    began_s = time.monotonic()
    gc.disable()  # until each process has what it needs: imports make no garbage, and many collections
    from exex.errors import ExexError
    from exex.guard.ending import end_the_world
    from exex.guard.loop import Guard
    from exex.guard.roles import GuardRole, RankRole
    from exex.launch.job_dir import status_is_written
    from exex.launch.started_by import STARTED_BY, started_by
    from exex.launch.world import expected_world, inherited_fds_to_close, task_environment
    from exex.reaper import TAG, Reaper

    expected = expected_world(os.environ)
    command = _read_words(sys.argv[1:] if argv is None else argv, expected)
    config, script, _ = command
    with contextlib.suppress(ImportError):  # of which the rank will tell
        import exex.worker.template  # noqa: F401  once for template and rank, which needs most of what that imports
    reaper = Reaper()
    environment = {**task_environment(os.environ), TAG: reaper.tag, STARTED_BY: started_by(expected, os.getppid())}
    if config.subtask_launcher != "auto":
        environment["EXEX_SUBTASK_LAUNCHER"] = config.subtask_launcher
    launcher_fds = inherited_fds_to_close(os.environ)
    try:
        before = _staged_before(environment)
    except ExexError as error:
        print(f"exex: {error}", file=sys.stderr, flush=True)
        end_the_world()
        return 1

    def template_main(sock: socket.socket, what: Mapping[str, str] | None) -> None:
        if what is not None and not (before and before.runs_ranks):  # else this interpreter is that one
            from exex.worker import staged

            staged.staged_template(sock, environment, staged.as_staged(what))
        sys.path.extend(far)
        from exex.worker import template

        template.template_main(sock, environment)

    name = "this process" if expected.rank is None else f"rank {expected.rank}"
    where = f"{name} at {socket.gethostname()}"
    role = Guard(
        template_main,
        where,
        is_first=not expected.rank,
        is_staged=bool(config.stage or config.stage_file) and before is None,
        staged=asdict(before.staged) if before else {},
        start_timeout_s=config.start_timeout_s,
        stop_timeout_s=config.stop_timeout_s,
        notice_s=config.notice_s,
        reaper=reaper,
    ).split()
    if isinstance(role, GuardRole):
        if role.others_wait:
            end_the_world()
        return 0 if status_is_written(os.environ) else role.status
    if not isinstance(role, RankRole):
        sys.path.extend(far)
        if role.staged_files:
            environment["EXEX_STAGED"] = role.staged_files
        return _be_client(role, environment, launcher_fds, command)

    try:
        from exex.rank import RankProcess
    except ImportError as error:
        print(f"exex: {where} cannot start: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    sys.path.extend(far)
    return RankProcess(role, config, script, expected, began_s, is_staged=before is not None).main()


def _be_client(role: ClientRole, environment: Mapping[str, str], launcher_fds: Sequence[int], command: Command) -> int:
    """Run the script; or, in a world that a program has started for itself, stand in for that. Returns the exit status."""
    from exex.client import script as client_script
    from exex.launch.hand_over import CLIENT_SOCKET
    from exex.launch.lent import take_stdio
    from exex.launch.notices import NOTICES, pass_over

    if not take_stdio(os.environ):  # `exex run` ends the script by SIGTERM; else all of this is for the guard
        pass_over(NOTICES)
    for fd in launcher_fds:
        try:
            os.close(fd)
        except OSError:
            pass  # the launcher named it, but did not pass it on
    gc.enable()
    program = os.environ.get(CLIENT_SOCKET)
    os.environ.clear()
    os.environ.update(environment)
    if program:
        return client_script.stand_in(program, role.message)
    config, script, args = command
    return client_script.run(script, args, role.message, config)


def _staged_before(environment: dict[str, str]) -> Prepared | None:
    """What this node had before its ranks were started; changes the environment of tasks accordingly."""
    directory = os.environ.pop("EXEX_STAGED_AT", "")
    if not directory:
        return None
    from exex.worker.staged import task_environment
    from exex.worker.staged_ranks import read

    before = read(directory)
    if before.staged.files:
        os.environ["EXEX_STAGED"] = before.staged.files
    if before.runs_ranks:
        environment.update(found := task_environment(environment, before.staged))
        for name in environment.keys() - found.keys():
            del environment[name]
    return before


def _read_words(words: list[str], expected: ExpectedWorld) -> Command:
    """Settings, script, and its arguments."""
    from exex.config import Config
    from exex.launch.run_words import read_command
    from exex.launch.together import patience

    command = read_command(words, os.environ)
    if command is None:
        from exex import cli

        command = cli.parse_run_args(words)
    config, script, args = command
    if config.start_timeout_s == Config().start_timeout_s:
        config = replace(config, start_timeout_s=config.start_timeout_s * patience(expected, os.cpu_count() or 1))
    return config, script, args


if __name__ == "__main__":
    sys.exit(main())
