"""A function by its name: imported where it runs, so that who submits the call need not have it."""

from __future__ import annotations

import importlib
from typing import Any


def call_named(name: str, *args: Any) -> Any:
    """Call `module:function`, or `module:Class.method`.

    Raises:
        ImportError: there is no such module, or nothing of that name in it.
    """
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ImportError(f"module {module} has no {path}")
        found = getattr(found, part)
    return found(*args)
