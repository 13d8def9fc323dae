"""Chunks from rank 0 to leaders of nodes, over a real MPI library; nodes are played."""

from __future__ import annotations

from tests.launch import Launch


def test_staging_over_four_ranks(launch: Launch) -> None:
    for name in ("node0", "node1", "modules"):
        (launch.cwd / name).mkdir()
    (launch.cwd / "modules" / "mine.py").write_text("")
    (launch.cwd / "table").write_text("hello")
    done = launch.module(4, "tests.mpi.broadcasting", str(launch.cwd))
    assert sorted(done.out.splitlines()) == [f"rank {rank} is content" for rank in range(4)], done.err
