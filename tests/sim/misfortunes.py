"""What may go wrong in a simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


class Misfortunes:
    """Those that a simulation has left, in the order that its seed chooses."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim

    def strike(self) -> None:
        """One of them, if there is one left."""
        sim, rng = self.sim, self.sim.rng
        kind = rng.randrange(9 if sim.lose_files else 8)
        if kind == 8:
            sim.lose_files -= 1
            sim.data.lose_file()
        elif kind == 7:
            self._lose_node()
        elif kind <= 2:
            found = [one for one in sim.workers.values() if one.dead]
            sound = [one for one in sim.workers.values() if not one.dead and sim.now > one.thaws_s + sim.limit_s]
            if found and kind:
                sim._give_up(rng.choice(found))
            elif sim.lose_ranks and len(sound) > 1 and not sim.manager_loop._missing:
                sim.lose_ranks -= 1
                one = rng.choice([one for one in sound if one.part is not None] or sound)
                if kind == 1:
                    sim.tell(f"rank {one.rank} dies, and nobody knows")
                    one.dead = True
                elif kind == 2:
                    sim._give_up(one)  # it was only stopped, and goes on
                else:
                    one.thaws_s = sim.now + rng.choice([0.5, 1.5]) * (sim.limit_s or 1.0)
                    sim.tell(f"rank {one.rank} is stopped until {one.thaws_s:.3f}")
        elif kind == 3 and sim.lose_templates:
            sim.lose_templates -= 1
            sim.rng.choice(list(sim.workers.values())).lose_template()
        elif kind == 4 and sim.lose_clients:
            sim.lose_clients -= 1
            here = [client for client in sim.clients if not client.gone]
            if here:
                rng.choice(here).vanish()
        elif kind == 5 and sim.pauses:
            sim.pauses -= 1
            sim.now = sim.paused_s = sim.now + 2 * sim.limit_s
            sim.tell("the whole job stood still until now")
            sim.turn()
        elif kind == 6 and sim.notices:
            sim.notices -= 1
            self.notice()

    def _lose_node(self) -> None:
        """All ranks of a node are gone at once, if others are left."""
        sim = self.sim
        node = sim.rng.choice([one.node for one in sim.workers.values()])
        ranks = [one.rank for one in sim.workers.values() if one.node == node and not one.dead]
        others = [one for one in sim.workers.values() if one.node != node and not one.dead and sim.now > one.thaws_s + sim.limit_s]
        if sim.lose_ranks and others and not sim.manager_loop._missing:
            sim.lose_ranks -= 1
            sim.tell(f"{node} is gone")
            for rank in ranks:
                sim.workers[rank].dead = True
            for rank in ranks if sim.rng.random() < 0.7 else []:
                sim._give_up(sim.workers[rank])

    def notice(self) -> None:
        """The job gets a signal."""
        sim = self.sim
        before_s = sim.manager.ends_s
        sim.busy_s = sim.busy_s if before_s is not None else sim.now
        sim.manager_loop.notice(sim.rng.choice([0.5, 5.0, 20.0]), "simulated signal", sooner=sim.rng.random() < 0.5)
        assert sim.manager.ends_s is not None
        assert before_s is None or sim.manager.ends_s <= before_s, "a notice has made the end later"
        sim.tell(f"notice: the job ends at {sim.manager.ends_s:.3f}")

    def learn_end(self) -> None:
        """The batch system tells when the allocation ends, or has only a signal for that."""
        sim = self.sim
        if sim.manager.ends_s is not None or sim.rng.random() < 0.5:
            self.notice()
        else:
            sim.busy_s = sim.now
            sim.manager_loop.set_end(sim.rng.choice([1.0, 5.0, 30.0]))
            sim.tell(f"the allocation ends at {sim.manager.ends_s:.3f}")
