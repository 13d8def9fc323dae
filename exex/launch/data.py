"""Data files: descriptions of launchers (`launchers/`), of machines (`configs/`), and job-script templates (`jobscripts/`).

A user's own file counts before the one that comes with exex; a new name adds one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from exex.errors import ConfigError

Kind = Literal["launchers", "configs", "jobscripts"]

_SINGULAR = {"launchers": "launcher", "configs": "machine", "jobscripts": "job-script template"}
_PACKAGE = Path(__file__).resolve().parent.parent


class DataFile(NamedTuple):
    """One file as it was read."""

    path: str
    text: str


def directories(kind: Kind, env: Mapping[str, str]) -> list[Path]:
    """Where files of a kind are looked for: the user's directory, then ours (beside the package in a checkout)."""
    home = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".config")
    ours = _PACKAGE / "data" / kind
    return [Path(home) / "exex" / kind, ours if ours.is_dir() else _PACKAGE.parent / kind]


def names(kind: Kind, env: Mapping[str, str], suffix: str = ".toml") -> list[str]:
    """All names of a kind, sorted."""
    found = {path.name for directory in directories(kind, env) for path in directory.glob(f"*{suffix}")}
    return sorted(name.removesuffix(suffix) for name in found)


def read(kind: Kind, name: str, env: Mapping[str, str], suffix: str = ".toml") -> DataFile:
    """The file of a name; `name` may also be a path, if it holds a slash.

    Raises:
        ConfigError: there is none (it names the nearest), or it cannot be read.
    """
    candidates = [Path(name)] if "/" in name else [directory / (name + suffix) for directory in directories(kind, env)]
    for path in candidates:
        try:
            return DataFile(str(path), path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the {_SINGULAR[kind]} file {path}: {error}") from error
    if "/" in name:
        raise ConfigError(f"the {_SINGULAR[kind]} file {name} does not exist")
    known = names(kind, env, suffix)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise ConfigError(f"there is no {_SINGULAR[kind]} {name!r}; the nearest is {near[0]!r}; all: {', '.join(known)}" if near else
                      f"there is no {_SINGULAR[kind]} {name!r}")  # fmt: skip
