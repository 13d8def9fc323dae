"""The process that the launcher starts on each rank: parent of the rank, the template and (on rank 0) the client."""
