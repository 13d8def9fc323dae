"""Accounts of the machine of a simulation, apart from what the manager thinks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from exex.protocol.messages import Grant, Share
from exex.worker.slot import Call

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


class Usage:
    """Who uses what of the machine, as it really is."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.used: dict[tuple[int, int], Grant | None] = {}  # (task, rank of its lead); None for one slot there
        self.paused: set[tuple[int, int]] = set()  # those that wait

    def begin(self, call: Call, rank: int) -> None:
        """An attempt begins on a rank that the manager has not given up."""
        one = self.sim.workers[rank]
        assert (call.task, rank) not in self.used
        self.used[call.task, rank] = call.grant
        spec, grant = call.spec, call.grant
        if grant is None:
            assert spec.cores <= 1 and not spec.gpus and not spec.nodes and spec.memory_bytes is None, "it has no grant"
        else:
            share = grant.shares[0]
            assert share.host == one.node and rank == share.ranks[0]
            assert len(grant.shares) == max(1, spec.nodes) or 1 <= len(grant.shares) <= spec.ranks
            assert len(set(grant.hosts)) == len(grant.hosts)
            for share in grant.shares:
                whole = spec.exclusive or (spec.nodes and not spec.cores)
                wanted = -(-spec.ranks // len(grant.shares)) if spec.ranks else max(1, spec.cores)
                is_spread = spec.ranks and sum(share.slots for share in grant.shares) >= spec.ranks  # whole nodes, unequal ones
                assert share.slots == wanted or is_spread or (whole and share.slots >= spec.cores)
                assert len(share.gpus) >= spec.gpus
        self._check()

    def end(self, task: int, rank: int) -> None:
        """An attempt has ended, whoever knows."""
        self.used.pop((task, rank), None)
        self.paused.discard((task, rank))

    def pause(self, task: int, rank: int) -> None:
        """It waits without its slots of this rank."""
        if (task, rank) in self.used:
            self.paused.add((task, rank))

    def go_on(self, task: int, rank: int) -> None:
        """It has them again."""
        self.paused.discard((task, rank))
        self._check()

    def forget(self, rank: int) -> None:
        """A rank is given up: what it does now counts no more."""
        self.used = {key: grant for key, grant in self.used.items() if key[1] != rank}
        self.paused = {key for key in self.paused if key[1] != rank}

    def _served(self, grant: Grant | None, share: Share, task: int, rank: int) -> tuple[int, list[int]]:
        """Slots that an attempt uses of a node, and the ranks that serve it there."""
        if (task, rank) not in self.paused or rank not in share.ranks:
            return share.slots, share.ranks
        return share.slots - (1 if grant is None else grant.slots), [other for other in share.ranks if other != rank]

    def _check(self) -> None:
        slots: Counter[str] = Counter()
        memory: Counter[str] = Counter()
        gpus: Counter[tuple[str, str]] = Counter()
        alone: list[str] = []
        on_node: Counter[str] = Counter()
        on_rank: Counter[int] = Counter()
        for (task, rank), grant in self.used.items():
            app = self.sim.manager_app(task)
            for share in [Share(self.sim.workers[rank].node, 1, [], [rank])] if grant is None else grant.shares:
                count, ranks = self._served(grant, share, task, rank)
                slots[share.host] += count
                on_node[share.host] += count > 0
                on_rank.update(ranks)
                gpus.update((share.host, name) for name in share.gpus)
                if app is not None and grant is not None:
                    memory[share.host] += app.memory_bytes or 0
                    is_alone = app.exclusive or (app.nodes and not app.cores)
                    alone += [share.host] if is_alone and (task, rank) not in self.paused else []
        total = Counter(self.sim.slots_before_losses)
        for host, count in slots.items():
            assert count <= total[host], f"{count} slots of {host} are in use, which has {total[host]}"
        inside = self.sim.teams.inside
        for (task, rank), grant in self.used.items():
            shares = [Share(self.sim.workers[rank].node, 1, [], [rank])] if grant is None else grant.shares
            for other in [other for share in shares for other in self._served(grant, share, task, rank)[1]]:
                assert other not in inside or self.sim.teams.comms[inside[other]].task == task, f"rank {other} is inside, and serves {task}"
        for rank, count in on_rank.items():
            assert rank not in self.sim.workers or count <= self.sim.workers[rank].slots, f"rank {rank} serves {count} tasks"
        assert all(count == 1 for count in gpus.values()), f"an accelerator is used twice: {gpus}"
        assert all(on_node[host] == 1 for host in alone), f"somebody is not alone on {alone}"
        for host, size in memory.items():
            assert not self.sim.memory_bytes or size <= self.sim.memory_bytes, f"{size} bytes of {host} are in use"
