"""How commands end that cannot do what they should."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from exex.errors import ConfigError, ExexError

USAGE = 2
"""Exit status for what the user has to write differently; 1 for all else."""


@contextmanager
def told_errors(command: str) -> Iterator[None]:
    """Errors of exex end the process with a line on stderr and a status."""
    try:
        yield
    except ExexError as error:
        print(f"exex {command}: {error}", file=sys.stderr)
        sys.exit(USAGE if isinstance(error, ConfigError) else 1)
