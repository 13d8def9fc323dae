"""Simulate, merge, analyze: programs write a file each, another merges them, a Python function reads it.

    exex run -n 4 examples/simulate_analyze_merge.py [--sims 20] [--output logistic]

The simulation is the logistic map x -> r x (1 - x), which turns chaotic above r = 3.56995. Each task scans
its own stretch of r from 3.5 to 4; the analysis finds the onset of chaos in the merged file. At r = 4 the
Lyapunov exponent is ln 2.
"""

import argparse
import math
import shlex
from itertools import pairwise
from pathlib import Path

from exex import File, bash_app, python_app

PROGRAM = shlex.quote(str(Path(__file__).resolve().with_name("logistic.awk")))
POINTS = 2000


@bash_app
def simulate(first, step, count, outputs=()):
    out = shlex.quote(outputs[0].filepath)
    return f"awk -v first={first:.6f} -v step={step:.6f} -v count={count} -f {PROGRAM} > {out}"


@bash_app
def merge(inputs=(), outputs=()):
    parts = " ".join(shlex.quote(part.filepath) for part in inputs)
    return f"LC_ALL=C sort -n {parts} > {shlex.quote(outputs[0].filepath)}"


@python_app
def analyze(inputs=()):
    """Number of points, the smallest r with a positive exponent, and the last exponent."""
    with open(inputs[0].filepath) as f:
        points = [tuple(map(float, line.split())) for line in f]
    onset = next(r for r, exponent in points if exponent > 0.005)
    return len(points), onset, points[-1][1]


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--sims", type=int, default=20, help="number of simulations (default %(default)s)")
parser.add_argument("--output", type=Path, default=Path("logistic"), help="directory (default ./%(default)s)")
args = parser.parse_args()
args.output.mkdir(parents=True, exist_ok=True)

# r = 4 is the last point of the last simulation.
step = 0.5 / POINTS
bounds = [POINTS * i // args.sims for i in range(args.sims + 1)]
sims = [
    simulate(3.5 + (low + 1) * step, step, high - low, outputs=[File(args.output / f"sim-{i}.txt")])
    for i, (low, high) in enumerate(pairwise(bounds))
]
merged = merge(inputs=[sim.outputs[0] for sim in sims], outputs=[File(args.output / "all.txt")])
result = analyze(inputs=[merged.outputs[0]])

points, onset, last = result.result()
print(f"{points} points from {args.sims} simulations in {merged.outputs[0].filepath}")
print(f"chaos begins at r = {onset:.4f} (known: 3.5699)")
print(f"exponent at r = 4: {last:.4f} (ln 2 = {math.log(2):.4f})")
