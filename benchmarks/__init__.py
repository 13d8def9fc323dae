"""Side-by-side benchmarks of exex and of the systems that a user would otherwise take."""
