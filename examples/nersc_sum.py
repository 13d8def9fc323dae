"""The same sum in two ways: a Python function, and an external program with a log file per task.

Run it: exex run -n 4 examples/nersc_sum.py
"""

import shlex
import sys
from pathlib import Path

from exex import AUTO_LOGNAME, bash_app, python_app

CALC_SUM = shlex.quote(str(Path(__file__).resolve().with_name("calc_sum.py")))


@python_app
def app_argsum(a, b, c):
    return a + b + c


@bash_app
def app_argsum_bash(a, b, c, stderr=AUTO_LOGNAME, stdout=AUTO_LOGNAME):
    return f"{shlex.quote(sys.executable)} {CALC_SUM} -a {a} -b {b} -c {c}"


# Every combination of three bits.
items = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]

# Map phase: one task per item, all of them submitted before the first result is asked for.
mapping = [app_argsum(*item) for item in items]
bashing = [app_argsum_bash(*item) for item in items]

# The future of a Python app holds its return value.
print("\n".join(f"sum is {future.result()}" for future in mapping))

# The future of a bash app holds the exit status; what the program printed is in a file.
for future in bashing:
    future.result()
    with open(future.stdout) as f:
        print(f"{future.stdout}: {f.read()}", end="")
