"""Is the net tight? Deliberate bugs, each of which the simulation must find: `python -m tests.sim.mutations [--seeds 1000]`.

A mutation replaces a piece of a function's source. One that does not apply any more is an error: bring it up to date.
"""

from __future__ import annotations

import argparse
import inspect
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from exex.manager import (
    assigning,
    data,
    ends,
    from_clients,
    from_workers,
    grants,
    keeping,
    memo,
    near_data,
    nesting,
    packing,
    placement,
    retraction,
    teams,
)
from exex.manager.line import Line, Shape
from exex.manager.liveness import Liveness
from exex.manager.loop import ManagerLoop
from exex.manager.memo import Memo
from exex.manager.nodes import NodeRecord, Nodes
from exex.manager.ready import ReadyQueue
from exex.manager.records import Kept
from exex.manager.state import ClientRecord, ManagerState
from exex.manager.stored import Data
from exex.protocol import parts
from exex.worker import assigned, filling, giving_back, running, waiting
from exex.worker.state import WorkerState
from tests.sim.__main__ import SeedFailed, run_seed

LIMIT_S = 20
"""For one seed, which takes some 20 ms: a bug may also show as a loop without end."""


class Mutation(NamedTuple):
    """A bug: in `function`, `old` becomes `new`."""

    name: str
    function: Callable[..., Any]
    old: str
    new: str


MUTATIONS = [
    Mutation("a failed attempt is not queued again", from_workers._attempt_failed, "task.attempt += 1\n        requeue(state, task)", "task.attempt += 1"),
    Mutation("attempts of a lost rank are not queued again", from_workers._attempt_lost, "        requeue(state, task)", "        pass"),
    Mutation("the attempt's number stays when a rank is lost", from_workers._attempt_lost, "task.attempt += 1", "pass"),
    Mutation("attempts of a lost rank still count as assigned", from_workers.on_worker_lost, "state.assigned -= 1", "pass"),
    Mutation("a lost rank still gets tasks", from_workers.on_worker_lost, "worker.leaving = True", "pass"),
    Mutation("cancelled attempts of a lost rank are awaited", from_workers.on_worker_lost, "        del state.dropped[task_id]", "        pass"),
    Mutation(
        "late words of a lost rank are heeded", ManagerLoop._drain_workers, "if rank in self.lost:", "if False:"
    ),
    Mutation("a slot is given back twice", from_workers._retire, "        worker.held -= 1\n        if state.parents", "        worker.held -= 2\n        if state.parents"),
    Mutation("the slot of a cancelled attempt is not given back", from_workers._dropped, "worker.held -= 1", "pass"),
    Mutation("a worker is not listed again when it has reported", from_workers._retire, "    state.list_worker(worker)", "    pass"),
    Mutation("the guess of a task's length is never taken back", from_workers._retire, "worker.held_s -= task.guess_s", "pass"),
    Mutation("the last dependent is forgotten", ends.succeed, "in task.dependents:", "in task.dependents[:-1] or task.dependents[:1]:"),
    Mutation("a dependent starts before its last need", ends.succeed, "if not dependent.open_needs:", "if dependent.open_needs <= 1 and dependent.status == 0:"),
    Mutation("a value lands in the wrong place", ends.succeed, "dependent.values[place] = value", "dependent.values[0] = value"),
    Mutation("dependents of dependents do not fail", ends.fail, "failed.append(dependent)", "pass"),
    Mutation("a ready task that is cancelled still counts", ends.cancel, "state.ready.forget(task)", "pass"),
    Mutation("a running task that is cancelled is not awaited", ends.cancel, "state.dropped[task.id] = task.rank", "pass"),
    Mutation("the worker is not told of a cancelled task", ends.cancel, "state.drops.setdefault(task.rank, []).append(task.id)", "pass"),
    Mutation("the guess of a cancelled task's length is not taken back", ends.cancel, "held_s -= task.guess_s", "held_s -= 0"),
    Mutation("what the retry handler grants is not queued", from_clients.on_verdict, "        requeue(state, task)", "        pass"),
    Mutation("a retry handler's task may run on", from_workers._attempt_failed, "task.status = Status.ASKING", "state.ready.push(task)"),
    Mutation("tasks of a client that is gone live on", from_clients.on_finish, "(msg.cancel or waits_for_client)", "waits_for_client"),
    Mutation("an answer is lost", ManagerState.finish_task, "client.tasks.append(task.id)", "client.tasks.append(task.id) if task.id % 16 else None"),
    Mutation("an answer is given twice", ClientRecord.take_answer, "self.clear_answer()", "self.clear_answer() if self.sequence % 9 else None"),
    Mutation("values are let go of too early", ClientRecord.take_answer, "self.unapplied.append((self.sequence, kept))", "[self.kept.pop(t, None) for t in kept]"),
    Mutation("values are never let go of", ClientRecord.applied, "self.kept.pop(task, None)", "pass"),
    Mutation("a free worker's flag stays set", placement._fill_free, "worker.in_free = False", "pass"),
    Mutation("the ready queue counts one too few", ReadyQueue.push_all, "self._count(self._last, len(tasks) - 1)", "self._count(self._last, max(len(tasks) - 2, 0))"),
    Mutation("a dropped call is not reported", assigned.on_drop, "                state.report(call, Outcome.CANCELLED, b\"\")", "                pass"),
    Mutation("a dropped call that stands aside is not reported", assigned.on_drop, "        wanted.discard(task)\n        state.report(call, Outcome.CANCELLED, b\"\")", "        wanted.discard(task)"),
    Mutation("a started call is taken back", running.recover, "min(slot.port.take_back(), len(slot.held))", "min(slot.port.take_back() + 1, len(slot.held))"),
    Mutation("what a dead process had queued is lost", running.on_slot_died, "state.queue.appendleft(slot.held.pop())", "slot.held.pop()"),
    Mutation("the death of a task process is not reported", running.on_slot_died, "state.report(running, Outcome.LOST,", "(running, Outcome.LOST,"),
    Mutation("a walltime is never enforced", running.on_tick, "running_s >= head.spec.walltime_s", "running_s >= 1e9"),
    Mutation("a result is not recorded", Memo.done, "self._store.record(task.key, task.app.spec.name, value, seconds)", "pass"),
    Mutation("a result is not remembered", Memo.done, "self.remember(task.key, value)", "pass"),
    Mutation("a key leaves out the values of the needs", memo.complete_key, "digest.update(frame)", "pass"),
    Mutation("needs that do not count are part of the key", memo.complete_key, "if place in cache.ignored:", "if False:"),
    Mutation("a follower of an equal call is forgotten", Memo.done, "for other in line if", "for other in list(line)[:2] if"),
    Mutation("a failed head leaves its followers waiting", Memo.failed, "self._lines.pop(task.key) if", "self._lines.pop(task.key) if False if"),
    Mutation("nobody runs for a cancelled head", Memo.cancelled, "return None if key in self._fetching else line[0]", "return None"),
    Mutation("a cancelled head's follower does not wait for the store", Memo.cancelled, "None if key in self._fetching else line[0]", "line[0]"),
    Mutation("a cancelled follower runs", Memo.cancelled, "while line and not line[0].key:", "for _ in range(1):"),
    Mutation("equal calls all run", Memo.enter, "line.append(task)\n        return False", "line.append(task)\n        return True"),
    Mutation("an answer that the store owes to a cancelled call is not awaited", Memo.enter, "if key in self._fetching:", "if False:"),
    Mutation("the store is not asked", Memo.enter, "if self._store is None or not self._store.has(key):", "if True:"),
    Mutation("the store's answer is awaited for ever", Memo.fetched, "self._fetching.discard(key)", "pass"),
    Mutation("a result that does not count lets nobody run", Memo.fetched, "return line[0]", "return None"),
    Mutation("a recorded result ends only the first", Memo.fetched, "for task in line if", "for task in list(line)[:1] if"),
    Mutation("tasks that known results ready are forgotten", ends.on_fetched, "    end_found(state)", "    pass"),
    Mutation("a checkpoint that failed is said to be made", ManagerLoop._drain_journal, "number=asked, error=error", "number=asked, error=''"),
    Mutation("a silent rank is never given up", Liveness.silent, "if now_s - heard_s > self.limit_s]", "if False]"),
    Mutation("the job's own pause counts as silence", Liveness.silent, "if gap_s > self.limit_s * PAUSE:", "if False:"),
    Mutation("only the first word of a rank is noted", ManagerLoop._drain_workers, "self._liveness.heard(rank, self._now_s)", "self._liveness._heard_s.setdefault(rank, self._now_s)"),
    Mutation("a rank is given up at half the limit", Liveness.silent, "now_s - heard_s > self.limit_s]", "now_s - heard_s > self.limit_s / 2]"),
    Mutation("a shelved task is assigned", assigning._shelve_what_does_not_fit, "shelve(state, task)", "shelve(state, task); fitting.append(task)"),
    Mutation("what does not fit is begun", assigning.fits_in_time, "else needs_s <= left_s", "else True"),
    Mutation("a notice changes nothing", assigning.fits_in_time, "not state.noticed if", "True if"),
    Mutation("a shelved task that is cancelled still counts", ends.cancel, "state.shelved -= 1", "pass"),
    Mutation("the job goes on after its end", ManagerLoop._mind_the_end, "if now_s < state.ends_s and", "if now_s < state.ends_s + 1.0 and"),
    Mutation("the job waits for its end with nothing left that fits", ManagerLoop._mind_the_end, "and now_s - self._quiet_since_s < QUIET_S", "and True"),
    Mutation("clients are not told that the job ends", ManagerLoop._mind_the_end, "self._clients.tell_of_end(reason)", "pass"),
    Mutation("a rank does not get back what it has lent", grants._return_slots, "worker.change_room(slots)", "pass"),
    Mutation("a lead does not get its slots back", grants._return_slots, "worker.change_room(slots - 1)", "pass"),
    Mutation("a lead lends all of its slots, and one more", grants._lend, "worker.change_room(1 - slots)", "worker.change_room(-slots)"),
    Mutation("lent slots are not noted", grants._lend, "worker.lent += slots", "pass"),
    Mutation("an accelerator is granted twice", grants.take, "del node.free_gpus[name]", "pass"),
    Mutation("accelerators are not given back", grants.give_back, "node.give_gpus_back(gpus)", "pass"),
    Mutation("memory is not counted", grants.take, "node.free_memory -= request.memory_bytes", "pass"),
    Mutation("memory is not given back", grants.give_back, "node.free_memory += memory_bytes", "pass"),
    Mutation("a big attempt that ends keeps what it holds", from_workers._retire, "if holdings and task_id in holdings:", "if False:"),
    Mutation("a big attempt that was cancelled keeps what it holds", from_workers._dropped, "grants.give_back(state, task_id)", "pass"),
    Mutation("a cancelled big attempt gives back before it has ended", ends.cancel, "        state.dropped[task.id] = task.rank", "        state.dropped[task.id] = task.rank; task.id in state.holdings and grants.give_back(state, task.id)"),
    Mutation("the lead of a broken gang is not told", from_workers._break, "state.drops.setdefault(task.rank, []).append(task_id)", "pass"),
    Mutation("a broken gang is begun again beside itself", from_workers._break, "state.broken[task_id] = loss", "state.assigned -= 1; _attempt_lost(state, task, loss)"),
    Mutation("what comes back is not queued again", retraction._take_back, "state.ready.put_back(reversed(tasks))", "pass"),
    Mutation("what comes back still counts as held", retraction._take_back, "worker.held -= len(tasks)", "pass"),
    Mutation("what comes back still counts as assigned", retraction._take_back, "state.assigned -= len(tasks)", "pass"),
    Mutation("an unwanted task that comes back is awaited", retraction.on_returned, "del state.dropped[task_id]", "pass"),
    Mutation("a worker that has answered counts as asked", retraction.on_returned, "del state.stock.asked[rank]", "pass"),
    Mutation("a worker is asked before it has answered", retraction._queues, "worker.rank in stock.asked or", ""),
    Mutation("tasks come back for ever", retraction._ask, "stock.returns.get(task.id, 0) < MOST_RETURNS", "True"),
    Mutation("what has no better is taken back for it", retraction._is_worse, "task.app.spec.priority > than.app.spec.priority", "True"),
    Mutation("a lost worker is asked", from_workers.on_worker_lost, "state.stock.forget(worker)", "pass"),
    Mutation("what is given back is run, too", giving_back.on_retract, "    if len(kept) < len(state.queue):", "    if False:"),
    Mutation("a call that has begun is given back", giving_back.on_retract, "    state.give_back(returned)", "    state.give_back(returned + [c.task for s in state.slots for c in s.held if c.task in wanted])"),
    Mutation("what a process holds and has not begun is kept", giving_back.on_retract, "            recover(state, slot)", "            pass"),
    Mutation("a broken gang counts as failed", from_workers._break, "state.broken[task_id] = loss", "pass"),
    Mutation("a broken gang that ends well stays broken", from_workers._retire, "state.broken.pop(task_id, None)", "pass"),
    Mutation("what a lost rank had lent is expected back", grants.forget_worker, "            del holding.lent[worker]\n            broken", "            broken"),
    Mutation("what a lost lead held is not free", grants.forget_worker, "            give_back(state, task)", "            pass"),
    Mutation("a lost rank's node keeps its slots", Nodes.remove, "node.slots -= worker.slots", "pass"),
    Mutation("a node that is gone is still a candidate", keeping.note_loss, "state.ready.line.forget_node(node)", "pass"),
    Mutation("changes of nodes are not followed", Nodes.touch, "self.touched[node] = None", "pass"),
    Mutation("a node that comes free is no candidate", Shape.follow, "self.fits.put(node, self._left_over(node))", "pass"),
    Mutation("a node that fills up stays a candidate", Shape.follow, "    else:\n        self.fits.drop(node)", "    else:\n        pass"),
    Mutation("a whole node need not be free", NodeRecord.fits, "self.slots if request.whole else request.cores", "request.cores"),
    Mutation("memory need not be free", NodeRecord.fits, "self.free_memory < request.memory_bytes", "False"),
    Mutation("a kept node is forgotten", keeping.release_what_nobody_wants, "_shrink(state, shape, shape.waiting * shape.request.nodes)", "pass"),
    Mutation("workers of a released node are not listed", keeping.release, "state.list_worker(worker)", "pass"),
    Mutation("workers of a kept node get small tasks", keeping.hold, "worker.open = 0", "pass"),
    Mutation("what can never run waits for ever", Shape.is_possible, "return self.capable >= self.request.nodes", "return True"),
    Mutation("losses do not count in what is possible", Shape.is_possible, "if self.losses != nodes.losses:", "if self.losses < 0:"),
    Mutation("what could run is said to be impossible", Shape.is_possible, "self.capable >= self.request.nodes", "self.capable > self.request.nodes"),
    Mutation("a big task that is cancelled still counts", Line.forget, "self._count_one_less(self.shapes[task.app.request or SINGLE])", "pass"),
    Mutation("a big task is begun though it is too long", packing._Turn.start_first, "elif not fits_in_time(state, task.app):", "elif False:"),
    Mutation("an affinity is kept for ever", ManagerState._forget_task, "self.ready.affinity, ", ""),
    Mutation("a big call is given fewer slots than it was granted", filling._fill_big, "if len(idle) < call.grant.slots:", "if not idle:"),
    Mutation("helping slots get calls of their own", filling.fill, " and slot.helps is None", ""),
    Mutation("slots of a big call that ends stay taken", running.on_slot_done, "free_helpers(state, call)", "pass"),
    Mutation("slots of a big call that dies stay taken", running.on_slot_died, "free_helpers(state, running)", "pass"),
    Mutation("slots of a big call that is taken back stay taken", running.recover, "free_helpers(state, call)", "pass"),
    Mutation("a big call that lost its process runs in one slot", WorkerState.put_first, "(self.queue if call.grant is None else self.big).appendleft(call)", "self.queue.appendleft(call)"),
    Mutation("a call on a communicator gets no ranks beside its lead", teams.form, "state.joins.append((ranks, Join(", "state.joins.append((ranks[:1], Join("),
    Mutation("a call that wants a world of its own gets worker ranks", teams.form, "spec.kind != Kind.TOGETHER or spec.own_world", "spec.kind != Kind.TOGETHER"),
    Mutation("ranks with several slots take part", teams.form, "worker.slots == 1 and worker.rank != state.own", "worker.rank != state.own"),
    Mutation("ranks that only hold their slots take part", teams.form, "for worker in workers[: spec.ranks]]", "for worker in workers]"),
    Mutation("a call on a communicator ends with its first part", teams._note, "return None if team.missing else", "return None if False else"),
    Mutation("the others go on for ever when a rank has failed", teams._note, "team.missing and msg.outcome == Outcome.FAILED", "False"),
    Mutation("the others wait for ever for a rank without a communicator", teams._note, "elif team.missing and msg.outcome == Outcome.LOST", "elif False"),
    Mutation("a failed rank is overlooked", parts.combine, "part for part in parts if part.outcome == Outcome.FAILED", "part for part in parts[:1] if part.outcome == Outcome.FAILED"),
    Mutation("ranks that were stopped count as done", parts.combine, "if stopped or not parts:", "if False:"),
    Mutation("the value is that of another rank", parts.combine, "parts[0].payload", "parts[-1].payload"),
    Mutation("ranks are told to stop only once", teams._tell, "team.again_s = state.now_s + AGAIN_S", "team.again_s = state.now_s + 1e9"),
    Mutation("ranks that do not hear are never killed", teams._tell, "is_hard = state.now_s >= team.hard_s", "is_hard = False"),
    Mutation("a walltime on a communicator is never enforced", teams.look, "now_s - team.began_s >= limit_s", "False"),
    Mutation("all is told to the ranks of another call", teams._tell, "reach.stop(team.call,", "reach.stop(max(1, team.call - 1),"),
    Mutation("attempts have no numbers of their own", teams.form, "state.next_call += 1", "state.next_call = task.id % 1000 + 1"),
    Mutation("a pause of the job counts as time to be killed", teams.look, "team.killings == KILLINGS", "now_s >= team.hard_s + 5.0"),
    Mutation("the others wait for ever for a rank that died", teams.on_worker_lost, "condemn(state, task_id, Reason.LOST)", "pass"),
    Mutation("the part of a lost rank is awaited", teams.on_worker_lost, "team.missing.discard(rank)", "pass"),
    Mutation("nobody stands in for a lost lead", teams.on_worker_lost, "rank == team.lead and team.living", "False"),
    Mutation("who stands in does not hold the attempt", teams._change_lead, "new.held += 1", "pass"),
    Mutation("who stands in still lends its slot", teams._change_lead, "new.change_room(1)", "pass"),
    Mutation("a cancelled call is with its lost lead", teams._change_lead, "state.dropped[task_id] = new.rank", "pass"),
    Mutation("calls that end with a lost rank are forgotten", from_workers.on_worker_lost, "        if task_id in state.teams:", "        if False:"),
    Mutation("a team whose lead is lost is forgotten with it", from_workers.on_worker_lost, "teams.on_worker_lost(state, worker, how) if state.teams else []", "[]"),
    Mutation("a lead's part is the end of the call", from_workers.on_done, "if state.teams:", "if False:"),
    Mutation("the ranks of a cancelled call go on", ends.cancel, "teams.condemn(state, task.id, teams.Reason.UNWANTED)", "pass"),
    Mutation("ranks stay in a team that has ended", grants._return_slots, "worker.in_team = False", "pass"),
    Mutation("calls on communicators go on when the job ends", ManagerLoop.stop, "teams.condemn(self.state, task, teams.Reason.UNWANTED)", "pass"),
    Mutation("ranks in a function are given up for their silence", ManagerLoop._mind_teams, "reach.probe(quiet)", "pass"),
    Mutation("a sign of life of a guard is not heeded", ManagerLoop.heard, "self._liveness.heard(rank, self._clock())", "pass"),
    Mutation("ranks that no node can hold any more wait", packing._fail_all, "request is not None and impossible(\"\", request, nodes) is None", "False"),
    Mutation("what was spread over other nodes keeps its old shape", packing._fail_all, "task.app.request = request", "pass"),
    Mutation("a lead runs its call alone", assigned._queue, "if join is not None:", "if False:"),
    Mutation("what is freed is not told", Kept.__del__, "data.free(rank, self.name)", "pass"),
    Mutation("a value that its client may name is freed", ManagerState._note_result, "client.owned[payload.name] = payload", "pass"),
    Mutation("what a client releases is kept", from_clients.on_release, "client.owned.pop(name, None)", "pass"),
    Mutation("tasks do not let go of what they needed", ManagerState._is_only_made_again, "task.payload, task.values = b\"\", None", "pass"),
    Mutation("the client is answered twice", ManagerState._is_only_made_again, "    return True", "    return False"),
    Mutation("a lost value is not made again", data._make_again, "    ends.requeue(state, task)", "    pass"),
    Mutation("tasks that are ready begin without what was lost", data._withdraw, "    if starving:", "    if False:"),
    Mutation("who waits for a value is forgotten", data._look_after, "                ends.requeue(state, task)", "                del record.waiters[number]"),
    Mutation("who waits for what is lost for good waits for ever", data._look_after, "        _fail_waiters(state, record)", "        pass"),
    Mutation("a value that a client wants is not brought", data._serve, "data.brought += [", "[0 for _ in range(0)] + ["),
    Mutation("what a lost rank held is still there", Data.on_rank_lost, "if record.holders.get(store) == rank:", "if False:"),
    Mutation("nobody takes over", Data.on_rank_lost, "heir = self._listener(store)", "heir = None"),
    Mutation("what was lost is believed to be there", Data.on_absent, "record.drop(store)", "pass"),
    Mutation("a starved task is not tried again", from_workers._attempt_starved, "        requeue(state, task)", "        pass"),
    Mutation("who holds a copy is not noted", Data.on_holds, "record.hold(store, rank)", "pass"),
    Mutation("a copy of what is freed stays", Data.on_holds, "self.free(rank, name)", "pass"),
    Mutation("a key is made without what it needs", Data._can_be_had, "not _is_read_at_home(record, task) or", "True or"),
    Mutation("a task that waits where its data is counts twice", near_data._place_at, "near.take(task.id)", "pass"),
    Mutation("a second notice makes the end later", ManagerLoop.notice, "ends_s is None or (sooner and ends_s > self._clock() + left_s)", "True"),
    Mutation("what a task has made outlives it", nesting.end_orphans, "_end_open(state, client)", "pass"),
    Mutation("what an attempt of a lost rank has made goes on", from_workers.on_worker_lost, "            state.orphaned.append(task.id)", "            pass"),
    Mutation("what a cancelled task has made goes on", ends.cancel, "            state.orphaned.append(task.id)", "            pass"),
    Mutation("a task that is given up makes tasks", nesting.on_said, "        return False", "        return True"),
    Mutation("a task that waits keeps its slot at the manager", grants.leave, "_change(state, worker, slots)", "pass"),
    Mutation("a slot is another's after its task has waited", grants.come_back, "_change(state, worker, -slots)", "pass"),
    Mutation("who has waited goes on though its slots are lent", nesting.may_go_on, "worker.held <= worker.room or not (worker.lent or worker.in_team)", "True"),
    Mutation("what waits on a lost rank still waits", from_workers.on_worker_lost, "        state.waiting.pop(task.id, None)", "        pass"),
    Mutation("a task that would go on is not told when it may", waiting.on_seat, "state.returning.append(slot)", "pass"),
    Mutation("a task that has waited goes on without its slots", waiting.seat, "if len(idle) < wanted:", "if not idle:"),
    Mutation("the slot of a task that waits stays empty", waiting.on_left, "state.note_left(task)", "pass"),
    Mutation("a task that has waited begins again at once", running.on_slot_died, "state.to_begin_again[running.task] = running", "state.put_first(running)"),
]  # fmt: skip


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """The bug is there meanwhile, for everybody who holds the function.

    Raises:
        LookupError: the source has changed, and the mutation does not fit any more.
    """
    function = mutation.function
    source = textwrap.dedent(inspect.getsource(function))
    old, new = mutation.old, mutation.new
    if source.count(old) != 1:
        raise LookupError(f"{mutation.name}: {mutation.old!r} is {source.count(old)} times in {function.__qualname__}")
    names: dict[str, Any] = {}
    exec(compile("from __future__ import annotations\n" + source.replace(old, new), f"<{mutation.name}>", "exec"), function.__globals__, names)
    before = function.__code__
    function.__code__ = names[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = before


def caught(mutation: Mutation, seeds: int) -> tuple[int, str] | None:
    """The first seed that finds the bug, and by what; None if none does."""
    before = signal.signal(signal.SIGALRM, _hangs)
    try:
        with applied(mutation):
            for seed in range(seeds):
                signal.alarm(LIMIT_S)
                try:
                    run_seed(seed)
                except SeedFailed as failed:
                    return seed, str(failed).split("\n", 1)[0].split(": ", 1)[1]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def _hangs(*_: object) -> None:
    raise AssertionError(f"a seed runs for {LIMIT_S} s")


def main() -> int:
    """Print a table; 1 if a bug stays undetected."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutations", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    args = parser.parse_args()
    missed = 0
    print(f"{'bug':60} {'seed':>4}  found by")
    for mutation in MUTATIONS:
        found = caught(mutation, args.seeds)
        missed += found is None
        seed, how = found or ("-", f"NOT FOUND in {args.seeds} seeds")
        print(f"{mutation.name:60} {seed:>4}  {how[:110]}", flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
