"""Ranks that start from what is staged, and open nothing of the shared environment, however many they are.

Who starts the world has all nodes staged before: `exex run` does it by itself, a job script by a step of one rank on each node
(`exex.stage`). On each node `start` is left in the staged directory, a few lines for sh that become a rank, and `staged.json`,
which says what is there. If the staged interpreter cannot run ranks, they start from the shared one, and only tasks from there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from exex.errors import StartError
from exex.launch.stage_hold import STAGE, UNTIL, parent_name
from exex.launch.stage_place import auto_bases
from exex.launch.staging import DEPS, OWN, Staged
from exex.worker.staged import HIDDEN, shared_path, task_environment

AT = "EXEX_STAGED_AT"
"""The variable by which a rank knows that its node is staged already: the directory."""

START, TOLD = "start", "staged.json"

CHECK = "--check"
"""The word, instead of options, with which an interpreter imports what a rank needs and prints the name of the MPI library."""

REMOVE = "--remove"
"""The word that has a node's copy removed, instead of options for a rank."""

_CHECK_S = 60.0
_LATER_S = 1800.0
"""How long a staged directory waits for its ranks before other jobs on the node may take it for a left-over."""


class Prepared(NamedTuple):
    """What a node had before its ranks were started."""

    staged: Staged
    runs_ranks: bool  # its interpreter runs them, and not only task processes


def read(directory: str) -> Prepared:
    """What `prepare` has written.

    Raises:
        StartError: it is gone.
    """
    try:
        with open(os.path.join(directory, TOLD), encoding="utf-8") as file:
            told = json.load(file)
    except OSError as error:
        raise StartError(f"what was staged in {directory} is gone: {error.strerror}") from error
    return Prepared(Staged(**told["staged"]), told["runs_ranks"])


def prepare(staged: Staged, environment: Mapping[str, str], library: str, *, waits: bool) -> str:
    """Write how ranks start from a staged directory.

    Args:
        environment: of ranks, without what tells one.
        library: name of the MPI library that the job uses.
        waits: nobody holds the directory until the ranks do.

    Returns:
        "", or why ranks must be started from this Python nevertheless.

    Raises:
        OSError: it cannot be written.
    """
    found = task_environment(environment, staged)
    told: dict[str, Any] = {
        "staged": asdict(staged),
        "runs_ranks": True,
        "python": list(sys.version_info[:2]),
        "own": os.path.join(staged.directory, OWN),
        "deps": os.path.join(staged.directory, DEPS),
        "shared": shared_path(sys.path, staged.origin),
        "hidden": {name: found[name] for name in HIDDEN if name in found},
    }
    _write(staged.directory, TOLD, json.dumps(told))
    _write(staged.directory, START, _start_there(staged, environment, found))
    why_not = _why_not(staged, environment, library) if staged.python else "it has no interpreter"
    if why_not:
        _write(staged.directory, TOLD, json.dumps({**told, "runs_ranks": False}))
        _write(staged.directory, START, _start_here(staged))
    if waits:
        _write(staged.directory, UNTIL, str(time.time() + _LATER_S))
    return why_not


def _write(directory: str, name: str, text: str) -> None:
    with open(os.path.join(directory, name), "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def _start_there(staged: Staged, environment: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Lines for sh: the environment of the staged one, in which its interpreter becomes a rank."""
    program = [staged.python, "-s", os.path.join(staged.directory, OWN, "exex", "staged_rank.py")]
    unset = sorted({*HIDDEN, *(environment.keys() - found.keys())})
    changed = {name: value for name, value in found.items() if name not in HIDDEN and environment.get(name) != value}
    lines = [f"unset {' '.join(unset)}", *(f"export {name}={shlex.quote(value)}" for name, value in sorted(changed.items()))]
    return "\n".join([*lines, *_become(staged, program)])


def _start_here(staged: Staged) -> str:
    return "\n".join(_become(staged, [sys.executable, "-m", "exex.run"]))


def _become(staged: Staged, program: list[str]) -> list[str]:
    return [f"export {AT}={shlex.quote(staged.directory)}", f'exec {shlex.join(program)} "$@"', ""]


def _why_not(staged: Staged, environment: Mapping[str, str], library: str) -> str:
    """Try what a rank imports; "" if the interpreter can be one, with the library that the job uses."""
    argv = ["/bin/sh", os.path.join(staged.directory, START), CHECK]
    try:
        done = subprocess.run(
            argv, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_CHECK_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"its interpreter did not answer within {_CHECK_S:g} s"
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return said[0][:300]
    found, wanted = " ".join(done.stdout.split()), " ".join(library.split())
    same = found.startswith(wanted)  # both begin with name and version
    return "" if same else f"mpi4py loads {found or 'no MPI library'} there, and the job uses {wanted}"


# ---- the words that find it ----


def shell_text(setting: str, key: str, uid: int) -> str:
    """What `sh -c` needs to become a rank on any node, or with REMOVE to remove the node's copy. One line, the same on all nodes.

    Args:
        setting: `stage_dir`.
        key: that ends the names of the directories; see `Place`.
    """
    bases = auto_bases(_variable) if setting == "auto" else [_quoted(setting)]
    directory = f"$base/{parent_name(STAGE, uid)}/${{node%%.*}}-{key}"
    return (
        f"read -r node </proc/sys/kernel/hostname; for base in {' '.join(bases)}; do at={directory}; "
        f'[ -O "$at" ] || continue; [ "$1" != {REMOVE} ] || exec rm -rf "$at"; . "$at/{START}"; done; '
        f'[ "$1" = {REMOVE} ] || {{ echo "exex: what was staged on $node is gone: the system has removed it, or these are '
        'other nodes" >&2; exit 1; }'
    )


def _variable(name: str) -> str:
    return f'"${name}"'


def _quoted(setting: str) -> str:
    """Between double quotes, where only variables are replaced, as `os.path.expandvars` does."""
    escaped = re.sub(r'([\\"`])', r"\\\1", setting)
    escaped = re.sub(r"\$(?!\{?[A-Za-z_]\w*)", r"\\$", escaped)
    return f'"{escaped}"'
