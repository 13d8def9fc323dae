"""`python -m exex.remote aprun -n 2 ./solver`; or by the path of this file, which spares the search for modules elsewhere.

By its path it is run with `-I -S`: no file in the task's directory can stand in for a module, and Python starts in half the time.
"""

from __future__ import annotations

import os
import sys

if not __package__:
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from exex.remote.task_end import run

run()
