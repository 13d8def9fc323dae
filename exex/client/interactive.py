"""Whether a person works in this process, in a notebook or at IPython's prompt. Runs in the client; never imports IPython."""

from __future__ import annotations

import sys
from typing import Any


def shell() -> Any:
    """IPython's interactive shell in this process; None if there is none."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def is_notebook() -> bool:
    """Whether that shell is the kernel of a notebook, where HTML can be shown."""
    return getattr(shell(), "kernel", None) is not None
