"""What a killed job leaves in /dev/shm: MPI libraries remove their segments in MPI_Finalize only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence


def shared_memory() -> list[str]:
    """Files of this process in /dev/shm: those of the MPI library, which nobody removes after a crash."""
    with open("/proc/self/maps") as file:
        return sorted({line.split(None, 5)[5].rstrip("\n") for line in file if " /dev/shm/" in line})


def note_shared_memory(environment: Mapping[str, str], paths: Sequence[str]) -> None:
    """Tell `exex run` what a rank has in /dev/shm, in case all guards of the node are killed.

    A job script's directory gets no such notes: nobody reads them, and it is on a file system that all nodes share.
    """
    directory = environment.get("EXEX_JOB_DIR")
    if directory and paths and os.path.exists(os.path.join(directory, "job.sock")):
        try:
            with open(os.path.join(directory, f"shared.{os.getpid()}"), "w") as file:
                file.write("\n".join(paths))
        except OSError:
            pass  # it is on another node


def note_directory(environment: Mapping[str, str], path: str) -> None:
    """Tell `exex run` of a directory that the guards of this node hold, likewise."""
    directory = environment.get("EXEX_JOB_DIR")
    if directory and os.path.exists(os.path.join(directory, "job.sock")):
        try:
            with open(os.path.join(directory, f"held.{os.getpid()}"), "a") as file:
                file.write(path + "\n")
        except OSError:
            pass  # it is on another node


def remove_shared_memory(paths: Sequence[str]) -> None:
    """Remove what a job has left in /dev/shm; after an orderly end the MPI library has done so."""
    for path in paths:
        if path.startswith("/dev/shm/"):
            try:
                os.unlink(path)
            except OSError:
                pass
