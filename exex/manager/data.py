"""What becomes of tasks and clients when stored payloads arrive, are lost, or are made again. Once per turn. Pure."""

from __future__ import annotations

from exex.errors import WorkerLost
from exex.manager import ends, from_workers
from exex.manager.records import Again, Kept, Origin, records_of
from exex.manager.state import ManagerState
from exex.manager.stored import HOME
from exex.manager.task import Status
from exex.protocol import payload as payloads
from exex.protocol.messages import CLIENT_SHIFT, Outcome, TaskId
from exex.protocol.payload import Stored

FETCHES_TOLERATED = 20
"""A payload that rank 0 could not get so often, though it is said to be there, is given up."""


def settle(state: ManagerState) -> None:
    """Let tasks go on whose payloads are there, make again what is lost and wanted, fail what waits for what cannot be had.

    Cost: O(records that changed + tasks that wait for them); O(tasks) after a loss.
    """
    data = state.data
    while data.changed or data.is_lost or data.unwanted:
        unwanted, data.unwanted = data.unwanted, []
        for number in unwanted:
            _forget_again(state, number)
        if data.is_lost:
            data.is_lost = False
            _withdraw(state)
        while data.changed:
            _look_after(state, data.changed.popitem()[1])
    ends.end_found(state)


def on_event(state: ManagerState, name: str, is_here: bool) -> None:
    """Rank 0 has got a payload, or could not."""
    data, record = state.data, state.data.get(name)
    if record is None or record.name != name or data.home is None:
        data.free(HOME, name)
        return
    record.fetching = False
    if is_here:
        record.hold(data.home, HOME)
    else:
        record.failures += 1
        if record.failures > FETCHES_TOLERATED:
            _give_up(record, f"rank 0 could not get it, in {record.failures} attempts")
        for store in list(record.holders)[:FETCHES_TOLERATED]:
            data.check(record, store)
    data.note(record)


# ---- after a loss ---------------------------------------------------------------------------------------------


def _forget_again(state: ManagerState, number: TaskId) -> None:
    """Nobody needs what a task makes again: if it has not begun, it need not."""
    task = state.tasks.get(number)
    if isinstance(task, Again) and task.status in (Status.WAITING, Status.READY) and task.origin.get() is None:
        ends.cancel(state, task)


def _withdraw(state: ManagerState) -> None:
    """Tasks that are ready, and need what is not there, wait again. O(tasks)."""
    starving = [
        task
        for task in state.tasks.values()
        if task.status == Status.READY
        and (type(task.payload) is Kept or (task.values is not None and Kept in map(type, task.values)))
        and any(record.value is None and not record.is_there() for record in records_of(task))
    ]
    if starving:
        state.ready.withdraw(starving)
        for task in starving:
            state.data.admit(task)


def _look_after(state: ManagerState, record: Kept) -> None:
    """A record has changed."""
    if record.client not in state.clients:
        return  # gone, and only the note of the change is left
    if record.error is not None:
        _fail_waiters(state, record)
    elif record.value is not None or record.is_there():
        _serve(state, record)
        for number in list(record.waiters):
            task = state.tasks.get(number)
            if task is None or task.status != Status.WAITING:
                del record.waiters[number]
            else:
                ends.requeue(state, task)
    elif not record.holders and not record.again and (record.waiters or record.wants or record.at_home):
        _make_again(state, record)


def _serve(state: ManagerState, record: Kept) -> None:
    """A record is there: bring it to rank 0 if it is wanted there, and from there to clients."""
    data = state.data
    if not record.wants and not record.at_home:
        return
    if record.value is None and not data.has_at_home(record):
        if not record.fetching and record.is_there():
            record.fetching = True
            data.fetches.append((record, data.any_holder(record, HOME)))
        return
    record.at_home = False
    record.failures = 0
    data.brought += [(client, name, record, maps) for client, name, maps in record.wants]
    record.wants.clear()


def _fail_waiters(state: ManagerState, record: Kept) -> None:
    """A payload is lost for good."""
    state.data.brought += [(client, name, record, maps) for client, name, maps in record.wants]
    record.wants.clear()
    waiters, record.waiters = record.waiters, {}
    for number in waiters:
        task = state.tasks.get(number)
        if task is None or task.status != Status.WAITING:
            continue
        if record.origin is None:
            ends.fail(state, task, Outcome.FAILED, record.error)
        else:
            ends.fail(state, task, Outcome.NEED_FAILED, record.error, [record.origin.task])


def _give_up(record: Kept, why: str) -> None:
    """Nothing can bring a payload back."""
    number = -1 if record.origin is None else record.origin.task & ((1 << CLIENT_SHIFT) - 1)
    what = "an argument" if record.origin is None else f"the value of task {number} ({record.origin.app.spec.name})"
    error = WorkerLost(f"{what}, {len(record):,} bytes that were stored on a node, is lost: {why}")
    record.error = payloads.dump_error(error, "")


def _make_again(state: ManagerState, lost: Kept) -> None:
    """Run the task once more that has made a payload. What it needs, and is gone as well, it waits for: `settle` goes on."""
    origin = lost.origin
    if origin is None:
        _give_up(lost, "it was in no store any more, and only its client could have made it again")
        state.data.note(lost)
        return
    origin.losses += 1
    if origin.losses > from_workers.LOSSES_TOLERATED:
        _give_up(lost, f"it was lost {origin.losses} times with the ranks that had it")
        state.data.note(lost)
        return
    lost.again = True
    if isinstance(state.tasks.get(origin.task), Again):
        return  # begun for a record that nobody needed any more
    task = Again(origin)
    if origin.values is not None:
        task.values = [_record_of(state, value, lost.client) for value in origin.values]
    state.tasks[task.id] = task
    state.data.repeated.add(task.id)
    state.clients[lost.client].unfinished += 1
    ends.requeue(state, task)


def _record_of(state: ManagerState, value: object, client: int) -> object:
    """What an origin holds, as a task needs it."""
    if not isinstance(value, Origin):
        return value
    record = value.get()
    if record is None:
        record = Kept(state.data, Stored(f"t{value.task}.{value.attempt}", ()), client, value)
    return record
