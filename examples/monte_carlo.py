"""Monte Carlo integration: the integral of sin(x) / (x + cos(x)^2) over [0, 1], with its error bar.

    exex run -n 4 examples/monte_carlo.py [--tasks 200] [--draws 20000] [--seed 0]

Every task draws from a stream seeded by its own number, so the answer is the same on any number of workers.
"""

import argparse
from math import cos, sin, sqrt
from random import Random

from exex import python_app

TRUE_VALUE = 0.36358  # by quadrature, to five decimals


@python_app
def monte_carlo(seed, draws):
    """Mean of the integrand over `draws` uniform points, and the variance of that mean."""
    uniform = Random(seed).random
    total = total_of_squares = 0.0
    for _ in range(draws):
        u = uniform()
        f = sin(u) / (u + cos(u) ** 2)
        total += f
        total_of_squares += f * f
    mean = total / draws
    return mean, (total_of_squares / draws - mean**2) / (draws - 1)


@python_app
def combine(estimates):
    """Mean over all tasks (of equally many draws) and its standard error."""
    means, variances = zip(*estimates, strict=True)
    return sum(means) / len(means), sqrt(sum(variances)) / len(variances)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--tasks", type=int, default=200, help="number of tasks (default %(default)s)")
parser.add_argument("--draws", type=int, default=20_000, help="draws per task (default %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="another seed, another sample (default %(default)s)")
args = parser.parse_args()

first = args.seed * args.tasks
futures = [monte_carlo(seed, args.draws) for seed in range(first, first + args.tasks)]
estimate, error = combine(futures).result()

print(f"draws:    {args.tasks * args.draws:,} in {args.tasks} tasks")
print(f"integral: {estimate:.5f} ± {error:.5f}")
print(f"truth:    {TRUE_VALUE:.5f}, {abs(estimate - TRUE_VALUE) / error:.1f} sigma away")
