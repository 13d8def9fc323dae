"""Stored payloads from rank to rank, over a real MPI library; nodes are played."""

from __future__ import annotations

from tests.launch import Launch


def test_payloads_pass_through_a_chain_of_ranks(launch: Launch) -> None:
    done = launch.module(4, "tests.mpi.exchanging", str(launch.cwd))
    assert sorted(done.out.splitlines()) == [f"rank {rank} is content" for rank in range(4)], done.err
