"""The external program of nersc_sum.py: prints the sum of three integers. Knows nothing of exex."""

import argparse

parser = argparse.ArgumentParser(description=__doc__)
for name in "abc":
    parser.add_argument(f"-{name}", type=int, required=True)
args = parser.parse_args()

print(f"sum is {args.a + args.b + args.c}")
