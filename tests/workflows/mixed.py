"""Everything that a job can run: Python and bash tasks, MPI programs on one node and on two, functions on communicators.

usage: mixed.py PROGRAM: an MPI program (ring.c). Writes what ran where to mixed.json.
"""

import json
import os
import sys

from exex import bash_app, mpi_app, python_app


@python_app
def where(i):
    import socket
    import time

    time.sleep(0.02)
    return socket.gethostname()


@bash_app
def shell(i, stdout=None):
    return "hostname"


@mpi_app(nodes=1, ranks_per_node=2)
def on_one(program, name, stdout=None):
    return f"{program} {name}"


@mpi_app(nodes=2, ranks_per_node=2)
def on_two(program, name, stdout=None):
    return f"{program} {name}"


@bash_app(nodes=2)
def by_hand(program, name, stdout=None):
    return f"$EXEX_MPI_PREFIX {program} {name} && env"


@mpi_app(ranks=2)
def together(comm, x):
    return comm.allreduce(x + comm.rank)


@mpi_app(ranks=3, every_rank=True)
def each(comm):
    import socket

    return comm.rank, socket.gethostname()


def text(future):
    """What a task has printed."""
    assert future.result() == 0
    with open(future.stdout) as file:
        return file.read()


def main(program):
    python = [where(i) for i in range(20)]
    bash = [shell(i, stdout=f"bash-{i}") for i in range(4)]
    ones = [on_one(program, f"one-{i}", stdout=f"one-{i}") for i in range(2)]
    twos = [on_two(program, f"two-{i}", stdout=f"two-{i}") for i in range(2)]
    hand = by_hand(program, "hand", stdout="hand")
    functions = [together(i) for i in range(10)]
    all_ranks = each()
    found = {
        "python": [future.result() for future in python],
        "bash": [text(future).strip() for future in bash],
        "one": [text(future).splitlines() for future in ones],
        "two": [text(future).splitlines() for future in twos],
        "hand": [line for line in text(hand).splitlines() if line.startswith("hand rank")],
        "environment": dict(line.split("=", 1) for line in text(hand).splitlines() if "=" in line and "rank" not in line.split("=")[0]),
        "together": [future.result() for future in functions],
        "each": all_ranks.result(),
    }
    with open("mixed.json", "w") as file:
        json.dump(found, file)
    print(f"mixed: {len(python)} Python, {len(bash)} bash, {len(ones)} + {len(twos)} + 1 MPI programs, {len(functions) + 1} functions")


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
