"""One driver script per system; each runs one workload in a process (or MPI world) of its own."""
