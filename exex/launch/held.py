"""`python -m exex.launch.held TETHER STOP_S WORD...`: a job in the foreground of a program that is not `exex run`.

What `exex run` does for a user at a terminal this does for a program that starts a world for itself. The job ends, as by SIGTERM,
when the other end of the tether is closed, which the kernel does if the program dies. The program's directory goes with it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from exex.errors import StartError
from exex.launch.foreground import run_world
from exex.launch.hand_over import CLIENT_SOCKET


def main(words: Sequence[str]) -> int:
    """Run the launcher's command line to its end.

    Args:
        words: number of the descriptor of the tether, seconds that an orderly end may take, and the command line.
    """
    tether, stop_timeout_s, *argv = words
    os.set_inheritable(int(tether), False)
    try:
        return run_world(argv, os.environ, float(stop_timeout_s), int(tether))
    except StartError as error:
        print(f"exex: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        shutil.rmtree(os.path.dirname(os.environ[CLIENT_SOCKET]), ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
