"""First code of a rank that runs with a staged environment's own interpreter: the script that `start` in its directory runs.
It imports nothing of exex before it has seen to it that this comes from the node and not from the shared file system.

Whether ranks can start so has been tried before, by this script with the word CHECK; see `worker.staged_ranks`.
"""

from __future__ import annotations

import json
import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the directory of this file is no place for modules


def main() -> int:
    """Set up `sys.path`, then be a rank with its guard, or try what one imports. Returns its exit status."""
    from exex.worker.staged_ranks import AT, CHECK, TOLD
    from exex.worker.staged_start import settle

    with open(os.path.join(os.environ[AT], TOLD), encoding="utf-8") as file:
        far = settle(json.load(file))
    if sys.argv[1:] == [CHECK]:
        import exex.rank  # noqa: F401
        from exex.transport import mpi

        print(mpi.library())
        return 0
    from exex import run

    return run.main(far=far)


if __name__ == "__main__":
    sys.exit(main())
