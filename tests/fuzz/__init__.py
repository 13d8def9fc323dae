"""Random and mutated messages at everything that hears any: `python -m tests.fuzz --messages 1000000 --seed 1`."""
