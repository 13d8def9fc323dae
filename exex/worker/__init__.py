"""Ranks 1 and up: queue attempts, run them in task processes, report how they ended."""
