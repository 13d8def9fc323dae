"""Code that a script brings along, as against what is installed; and the names that it uses. Runs in the client."""

from __future__ import annotations

import dis
import functools
import os
import sys
import sysconfig
import types

_GLOBALS = frozenset(("LOAD_GLOBAL", "LOAD_NAME"))

_INSTALLED = tuple(
    os.path.realpath(path) + os.sep
    for path in {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_OURS = os.path.dirname(os.path.dirname(os.path.realpath(__file__))) + os.sep


def is_main(module: str | None) -> bool:
    """Whether a module is the script itself."""
    return module in (None, "__main__", "__mp_main__")


@functools.lru_cache(maxsize=4096)
def is_own(module: str | None) -> bool:
    """Whether a module is the script or lies beside it: its code may change from run to run, as installed code does not."""
    if is_main(module):
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    return file is not None and not os.path.realpath(file).startswith((*_INSTALLED, _OURS))


def names_in(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Global names that the code and the code inside it loads, and all names that it uses in any way."""
    loaded = {instruction.argval for instruction in dis.get_instructions(code) if instruction.opname in _GLOBALS}
    used = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = names_in(constant)
            loaded |= inner[0]
            used |= inner[1]
    return loaded, used
