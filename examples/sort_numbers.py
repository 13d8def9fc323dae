"""A task that reads a file: the workflow passes it as `inputs`, the task finds it under `.filepath`.

    exex run -n 4 examples/sort_numbers.py [FILE]

Args:
    FILE: one integer per line (default ./unsorted_numbers.txt, written with 100 random ones if missing).
"""

import random
import sys
from pathlib import Path

from exex import File, python_app


@python_app
def sort_numbers(inputs=()):
    with open(inputs[0].filepath) as f:
        return sorted(int(line) for line in f)


path = Path(sys.argv[1] if len(sys.argv) > 1 else "unsorted_numbers.txt")
if not path.exists():
    rng = random.Random(2020)
    path.write_text("".join(f"{rng.randrange(1000)}\n" for _ in range(100)))

unsorted_file = File(path)
print(*sort_numbers(inputs=[unsorted_file]).result())
