"""Staging over real ranks that play four nodes, and two nodes of two: `mpiexec -n 4 python -m tests.mpi.broadcasting DIR`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from exex.errors import StagingError
from exex.launch.staging import Beat, Wanted, stage
from exex.transport import mpi
from exex.transport.broadcast import CHUNK_BYTES, DEPTH, Tree


def source(count: int) -> Iterator[tuple[int, bytes]]:
    """Chunks of all sizes."""
    for number in range(count):
        yield 1 + number % 4, bytes([number % 251]) * (number * 70_001 % (CHUNK_BYTES + 1))
    yield 2, b"x" * CHUNK_BYTES


def check_chunks(world: mpi.MPI.Intracomm) -> None:
    """Every leader gets what rank 0 has, in order, also if it looks at nothing of it."""
    for count in (0, 1, DEPTH - 1, DEPTH, 3 * DEPTH + 1):
        tree = Tree(world.Dup(), mpi.MPI.COMM_SELF.Dup())
        found = [(kind, bytes(data)) for kind, data in tree.chunks(source(count) if world.rank == 0 else None)]
        assert found == list(source(count)), count
        for _ in tree.chunks(source(count) if world.rank == 0 else None):
            pass
        words = tree.gather(f"rank {world.rank}")
        assert words == ([f"rank {rank}" for rank in range(world.size)] if world.rank == 0 else [])
        assert tree.tell_leaders("yes" if world.rank == 0 else "no") == "yes"
        tree.close()


def two_nodes(world: mpi.MPI.Intracomm, beat: Beat) -> Tree:
    """Ranks 0 and 1 on one, 2 and 3 on the other."""
    node = world.Split(world.rank // 2, world.rank)
    leaders = world.Split(0 if node.rank == 0 else mpi.MPI.UNDEFINED, world.rank)
    return Tree(leaders if node.rank == 0 else None, node, beat)


def check_stage(world: mpi.MPI.Intracomm, directory: str) -> None:
    """All ranks of a node find the same directory; if one node fails, none has anything, and all know why."""
    own = f"{directory}/node{world.rank // 2}"
    beats: list[int] = []
    beat = Beat(lambda: beats.append(1))
    found, place = stage(Wanted(f"{directory}/modules", (f"{directory}/table",), own), two_nodes(world, beat), beat, {}, "x")
    assert found.directory.startswith(own) and beats
    assert (place is not None) == (world.rank % 2 == 0)
    with open(f"{found.files}/table") as file:
        assert file.read() == "hello"
    assert os.path.exists(f"{found.prefix}/mine.py")
    seen = world.allgather(found.directory)
    assert seen[0] == seen[1] != seen[2] == seen[3]
    if place is not None:
        place.give_up()  # type: ignore[attr-defined]
    wrong = f"{directory}/nothere" if world.rank >= 2 else own
    try:
        stage(Wanted("", (f"{directory}/table",), wrong), two_nodes(world, beat), beat, {}, f"rank {world.rank} at x")
    except StagingError as error:
        assert str(error).startswith("rank 2 at x has no directory for what is staged"), error
    else:
        raise AssertionError("staged, though a node cannot")
    assert not [name for _, _, names in os.walk(own) for name in names]


def main() -> None:
    world = mpi.start()
    check_chunks(world)
    check_stage(world, sys.argv[1])
    leaders, node = mpi.leaders_and_node(world)
    assert node.size == world.size and (leaders is None) == (world.rank > 0)
    os.write(1, f"rank {world.rank} is content\n".encode())
    mpi.finish()


if __name__ == "__main__":
    main()
