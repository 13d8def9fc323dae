"""Templates of a node that was staged: with the environment's own interpreter, or with its packages in front of ours.

Runs in the guard's fork that becomes the template. What tasks find is a pure function of what the node has.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from exex.errors import ConfigError
from exex.launch.staging import BASE, DEPS, OWN, Staged

STAGED = "EXEX_STAGED"
"""The variable that names the directory of staged files."""

START = "EXEX_TEMPLATE_START"
"""What a template with an interpreter of its own is told; gone before it does anything."""

HIDDEN = ("PYTHONPATH", "PYTHONHOME")
"""Gone while an interpreter starts: it would look there for its own modules."""

_SHARED_LIBRARY = re.compile(r".*\.so(\.\d+)*")


def staged_template(sock: socket.socket, environment: Mapping[str, str], staged: Staged) -> None:
    """Be the template of a staged node. Does not return.

    Args:
        sock: to the rank.
        environment: for task processes, before staging.
    """
    environment = task_environment(environment, staged)
    if staged.python:
        os.set_inheritable(sock.fileno(), True)
        start = os.path.join(staged.directory, OWN, "exex", "worker", "staged_start.py")
        told = {
            "fd": sock.fileno(),
            "python": list(sys.version_info[:2]),
            "own": os.path.join(staged.directory, OWN),
            "deps": os.path.join(staged.directory, DEPS),
            "shared": shared_path(sys.path, staged.origin),
            "hidden": {name: environment[name] for name in HIDDEN if name in environment},
        }
        visible = {name: value for name, value in environment.items() if name not in HIDDEN}
        try:
            os.execve(staged.python, [staged.python, "-s", start], {**visible, START: json.dumps(told)})
        except OSError as error:
            _fail(sock, f"cannot run {staged.python}, staged: {error.strerror}")
    if staged.prefix:
        sys.path[:0] = packages(staged.prefix)
    from exex.worker import template

    template.template_main(sock, environment)


def _fail(sock: socket.socket, text: str) -> None:
    from exex.worker.processes import Failed, encode

    sock.send(encode(Failed(text)))
    os._exit(1)


# ---- what a task finds ----


def task_environment(environment: Mapping[str, str], staged: Staged) -> dict[str, str]:
    """Variables of tasks: those of the staged environment in front; what named the original one names the staged one."""
    found = dict(environment)
    if staged.files:
        found[STAGED] = staged.files
    if not staged.prefix:
        return found
    if staged.origin:
        for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "MANPATH", "PKG_CONFIG_PATH"):
            if name in found:
                found[name] = os.pathsep.join(_moved(path, staged) for path in found[name].split(os.pathsep))
    found["PATH"] = _in_front(os.path.join(staged.prefix, "bin"), found.get("PATH", os.defpath))
    for directory in library_directories(staged.prefix):
        found["LD_LIBRARY_PATH"] = _in_front(directory, found.get("LD_LIBRARY_PATH", ""))
    if staged.python:
        found.pop("PYTHONHOME", None)
        is_conda = os.path.isdir(os.path.join(staged.prefix, "conda-meta"))
        found.pop("CONDA_PREFIX" if not is_conda else "VIRTUAL_ENV", None)
        found["CONDA_PREFIX" if is_conda else "VIRTUAL_ENV"] = staged.prefix
    return found


def _moved(path: str, staged: Staged) -> str:
    if path == staged.origin or path.startswith(staged.origin + "/"):
        return staged.prefix + path[len(staged.origin) :]
    return path


def _in_front(directory: str, paths: str) -> str:
    others = [path for path in paths.split(os.pathsep) if path and path != directory]
    return os.pathsep.join([directory, *others])


def library_directories(prefix: str) -> list[str]:
    """Directories that the dynamic linker must be told of. Conda's programs know theirs, and are better off with them alone."""
    base = os.path.join(prefix, BASE)
    found = []
    for root in (prefix, base):
        for library in ("lib", "lib64"):
            directory = os.path.join(root, library)
            if os.path.islink(directory) or os.path.isdir(os.path.join(root, "conda-meta")):
                continue
            if os.path.isdir(directory) and any(_SHARED_LIBRARY.fullmatch(name) for name in os.listdir(directory)):
                found.append(directory)
    return found


def packages(prefix: str) -> list[str]:
    """Where an environment without an interpreter has its modules: site-packages of this Python, else the directory itself."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    found = [os.path.join(prefix, library, version, "site-packages") for library in ("lib", "lib64")]
    found = [path for path in dict.fromkeys(map(os.path.realpath, found)) if os.path.isdir(path)]
    return found or [prefix]


def shared_path(path: Sequence[str], origin: str) -> list[str]:
    """What a template with an interpreter of its own should look through last: where this process has its packages from."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"  # the standard library's directory is called so
    outside = [each for each in path if each and not each.endswith((f"/{version}", "/lib-dynload", ".zip"))]
    return [each for each in outside if not origin or not each.startswith(origin + "/")]


def staged(name: str) -> str:
    """Path of a file that was staged with `--stage-file PATH:NAME`, or of a directory, on the node where this runs.

    Raises:
        ConfigError: nothing was staged under this name; the message says what was.
    """
    directory = os.environ.get(STAGED)
    if not directory:
        raise ConfigError(f"nothing was staged: {name!r} needs `exex run --stage-file PATH:{name}`")
    path = os.path.join(directory, name)
    if "/" in name or not os.path.exists(path):
        raise ConfigError(f"nothing was staged under the name {name!r}; staged: {', '.join(sorted(os.listdir(directory)))}")
    return path


def as_staged(told: Mapping[str, Any]) -> Staged:
    """What the rank has told its guard."""
    return Staged(**told)
