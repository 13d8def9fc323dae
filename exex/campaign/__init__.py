"""Scaling campaigns: many jobs of one workload at many sizes, their results, and a model to compare them with."""
