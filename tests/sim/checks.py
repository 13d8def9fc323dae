"""What must hold in a simulation beside what the manager checks of itself."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from exex.manager.liveness import LOOKS, PAUSE
from exex.manager.loop import QUIET_S
from exex.manager.task import CachedTask, Status, Task
from exex.protocol.messages import AppSpec, Retract
from tests.sim.played_client import CLIENT_BASE, has_outputs

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


def check_retract(sim: Simulation, rank: int, message: Retract) -> None:
    """Somebody gains by it: a slot is idle, a node is kept, or something better waits; and no task comes back for ever."""
    state, one = sim.manager, sim.manager.workers[rank]
    sim.tell(f"the manager asks rank {rank} for {message.tasks} back")
    sim.asked_back += len(message.tasks)
    assert message.tasks and len(message.tasks) <= one.held - one.room, f"rank {rank} is asked for more than it has queued"
    assert rank not in sim.asked, f"rank {rank} is asked again before it has answered"
    sim.asked.add(rank)
    first = state.ready.first()
    has_idle = any(other.held < other.open for other in state.workers.values())
    tasks = [state.tasks[number] for number in message.tasks]
    is_worse = first is not None and all(task.app.spec.priority > first.app.spec.priority for task in tasks)  # type: ignore[union-attr]
    assert has_idle or one.home.kept is not None or is_worse, f"rank {rank} is asked for tasks, and nobody gains by it"


def could_ever_run(sim: Simulation, spec: AppSpec) -> bool:
    """Whether the nodes that are left can meet a request when they are idle."""
    slots: Counter[str] = Counter()
    for one in sim.workers.values():
        slots[one.node] += one.slots
    has_rest = sim.gpus >= spec.gpus and (not sim.memory_bytes or sim.memory_bytes >= (spec.memory_bytes or 0))
    if spec.ranks:
        shares = range(1, len(slots) + 1)
        return has_rest and any(sum(count * n >= spec.ranks for count in slots.values()) >= n for n in shares)
    return has_rest and sum(count >= max(1, spec.cores) for count in slots.values()) >= max(1, spec.nodes)


def check_placed(sim: Simulation, task: Task) -> None:
    """What begins must be able to end in time."""
    ends_s = sim.manager.ends_s
    assert task.app is not None
    walltime_s = task.app.spec.walltime_s
    if ends_s is None:
        return
    assert sim.now < ends_s, f"task {task.id} is placed after the end"
    assert walltime_s is None or sim.now <= ends_s - walltime_s, (
        f"task {task.id} begins {ends_s - sim.now} s before the end"
    )
    is_known = walltime_s is not None or task.app.number in sim.done_apps
    assert is_known or not sim.manager.noticed, f"task {task.id}, of unknown length, begins after the notice"


def check_cached(sim: Simulation, task: CachedTask) -> None:
    """Nothing equal runs, and no result is known."""
    identity = sim.identity(task)
    for other in sim.manager.tasks.values():
        if isinstance(other, CachedTask) and other is not task and other.status != Status.WAITING:
            assert sim.identity(other) != identity, f"tasks {task.id} and {other.id} are equal, and both run"
    if sim.journal is not None:
        assert not sim.journal.must_know(task.key), f"task {task.id} runs, but its result is recorded"
    if not sim.small_memory and not has_outputs(identity[0]):
        assert identity not in sim.done_calls, f"task {task.id} runs, but its result is in memory"


def check_silence(sim: Simulation) -> None:
    """Who is silent for the limit is given up."""
    longest_s = sim.limit_s * (1 + 1 / LOOKS + PAUSE)
    for one in sim.workers.values():
        if sim.limit_s and one.rank in sim.heard_s and not one.stopped:
            silent_s = sim.now - max(sim.heard_s[one.rank], sim.paused_s)
            assert silent_s <= longest_s, f"rank {one.rank} has said nothing for {silent_s:.3f} s and is not given up"


def check_end(sim: Simulation, was_out: bool) -> None:
    """The job ends in the first turn after its end, or when nothing that is left fits."""
    loop, state = sim.manager_loop, sim.manager
    if not state.shelved or state.assigned or state.ready.count or state.ready.line.count:
        sim.busy_s = sim.now
    if state.ends_s is None or was_out:
        return
    if not loop.out_of_time:
        assert sim.now < state.ends_s, f"the job goes on {sim.now - state.ends_s} s after its end"
        assert sim.now - sim.busy_s < QUIET_S, "the job goes on, though nothing that is left fits"
        return
    is_early = sim.now < state.ends_s
    assert not is_early or sim.now - sim.busy_s >= QUIET_S, "the job ends early, though something ran just now"
    sim.to_be_told = {*loop._clients.records, *(number for number, _ in loop._clients.waiting)}
    sim.tell("the manager ends the job")


def check_all_told(sim: Simulation) -> None:
    """The job has ended before its clients: they know."""
    untold = [
        client.number for client in sim.clients if CLIENT_BASE + client.number in sim.to_be_told and not client.knows()
    ]
    assert not untold, f"clients {untold} were not told that the job ends"


def check_nothing_left(sim: Simulation) -> None:
    """All that was asked for is done, and nothing of it is kept anywhere."""
    untold = {(rank, task) for rank, task in sim.owed_drops if sim.workers[rank].is_up()}
    assert not untold, f"these were never told to drop the task: {untold}"
    assert not sim.manager.tasks and not sim.manager.dropped and not sim.manager.ready.count
    assert not sim.manager.teams and not sim.teams.inside, f"{sim.manager.teams} {sim.teams.inside}"
    assert not sim.manager.holdings and not sim.manager.broken and not sim.manager.packing.kept
    assert not sim.manager.ready.line.count and not sim.manager.ready.affinity
    assert not sim.manager.waiting and not sim.manager.parents and not sim.manager.orphaned
    assert not sim.manager.stock.asked and not sim.manager.stock.returns
    for one in sim.manager.workers.values():
        assert one.room == one.open == one.slots, f"rank {one.rank}: slots are not given back"
        assert one.held == 0 and one.held_s == 0.0, f"rank {one.rank}: {one.held} attempts, {one.held_s} s are held"
    for client in sim.clients:
        if client.gone:
            assert client.known_as not in sim.manager.clients, "the record of a client that is gone is left"
            continue
        assert client.answers.keys() | client.cancelled == set(range(client.total))
        assert not sim.manager.clients[client.known_as].kept, "values are kept that nobody can ask for"
        assert not sim.manager.clients[client.known_as].owned, "stored values are kept that were released"
    assert not sim.manager.data.records, f"records are left: {list(sim.manager.data.records)}"
    assert not sim.data.left(), f"files are left: {sim.data.left()}"
