"""The run record: what ran where and when, in one HDF5 file per job, for analysis."""
