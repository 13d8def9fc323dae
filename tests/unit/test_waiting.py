"""Tasks that wait for tasks of their own, at their worker. Pure: ports only remember what they were told."""

from __future__ import annotations

from exex.errors import TooManyParents
from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Assign, Done, Drop, Grant, Outcome, Share
from exex.worker import assigned, filling, running, waiting
from exex.worker.relay import Relay
from exex.worker.slot import Call, Slot
from exex.worker.state import WorkerState


class Port:
    """Remembers; `left` is what take_back finds."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self.kills: list[bool] = []
        self.seats: list[tuple[list[int], list[int]]] = []
        self.left = 0

    def give(self, calls: list[Call]) -> None:
        self.given += [call.task for call in calls]

    def take_back(self) -> int:
        left, self.left = self.left, 0
        return left

    def kill(self, gently: bool) -> None:
        self.kills.append(gently)

    def measure(self, limit_bytes: int) -> None:
        pass

    def go_on(self, home: list[int], cores: list[int]) -> None:
        self.seats.append((home, cores))


class World:
    """A worker whose task processes are ports."""

    def __init__(self, slots: int = 1) -> None:
        self.state = WorkerState(3, "nid00012", [Port() for _ in range(slots)])
        self.state.new_place = lambda number: Slot(number, Port())
        self.state.slot_cores = [[10 + number] for number in range(slots)]
        self.relay = Relay(self.state, lambda fd: None, set(), lambda: None)
        specs = [
            AppSpec(app=0, name="plain", function=b"d"),
            AppSpec(app=1, name="limited", function=b"d", walltime_s=10.0),
            AppSpec(app=2, name="two cores", function=b"d", cores=2),
        ]
        self._assign(specs, 0, [], {})

    def _assign(self, specs: list[AppSpec], app: int, tasks: list[int], grants: dict[int, Grant]) -> None:
        payloads: list[object] = [b""] * len(tasks)
        message = Assign(
            apps=specs, functions={}, tasks=tasks, calls=[app], payloads=payloads, values={}, attempts={}, grants=grants
        )
        assigned.on_assign(self.state, message)

    def assign(self, app: int, *tasks: int, now: float = 0.0) -> None:
        grants = {i: Grant(2, [], [Share("nid00012", 2, [], [3])]) for i in range(len(tasks))} if app == 2 else {}
        self._assign([], app, list(tasks), grants)
        filling.fill(self.state, now)

    def holder(self, task: int) -> Slot:
        return next(slot for slot in self.state.places() if any(call.task == task for call in slot.held))

    def leave(self, task: int, now: float = 0.0) -> Slot:
        slot = self.holder(task)
        waiting.on_left(self.state, slot, task, now)
        filling.fill(self.state, now)
        return slot

    def back(self, task: int, now: float = 0.0) -> None:
        waiting.on_back(self.state, self.holder(task))
        filling.fill(self.state, now)

    def seat(self, task: int, now: float = 0.0) -> None:
        waiting.on_seat(self.state, task)
        filling.fill(self.state, now)

    def done(self, task: int, now: float = 0.0) -> None:
        slot = self.holder(task)
        running.on_slot_done(self.state, slot, Done([task], b"\0", [b""], [1.0], []), now)
        filling.fill(self.state, now)

    def running(self) -> list[int]:
        return [slot.held[0].task for slot in self.state.slots if slot.held]

    def told(self) -> tuple[list[int], list[int]]:
        message = self.relay.take()
        return ([], []) if message is None else (message.waiting, message.back)


def test_who_waits_leaves_its_slot_to_the_next_one_and_gets_it_back_before_others_begin() -> None:
    world = World()
    world.assign(0, 1, 2, 3)
    assert world.running() == [1]
    parent = world.leave(1)
    assert world.running() == [2] and world.told() == ([1], [])
    world.back(1)
    assert world.told() == ([], [1])
    world.seat(1)
    assert world.running() == [2], "nobody is torn out"
    world.done(2)
    assert world.running() == [1] and parent.port.seats == [([10], [10])]  # type: ignore[attr-defined]
    world.done(1)
    assert world.running() == [3] and not world.state.waiting


def test_an_idle_slot_is_kept_for_who_would_go_on_until_the_manager_has_answered() -> None:
    world = World(slots=2)
    world.assign(0, 1, 2)
    world.leave(1)
    world.told()
    world.back(1)
    world.assign(0, 3)
    assert world.running() == [2], "task 3 has not begun, so it does not come before task 1"
    world.seat(1)
    assert world.running() == [1, 2]


def test_what_was_queued_behind_who_waits_runs_elsewhere() -> None:
    world = World()
    for task in range(1, 8):
        world.assign(0, task)
    slot = world.state.slots[0]
    slot.held.extend(world.state.queue)
    world.state.queue.clear()
    slot.port.left = 6  # type: ignore[attr-defined]
    world.leave(1)
    assert [call.task for call in slot.held] == [1] and world.running() == [2]
    assert len(world.state.slots[0].held) == 1, "nothing is queued behind tasks of an app of which some wait"
    assert [call.task for call in world.state.queue] == [3, 4, 5, 6, 7]


def test_recursion_takes_one_process_for_each_level_and_gives_them_all_back() -> None:
    world = World()
    for task in range(50):
        world.assign(0, task)
        world.leave(task)
    assert len(world.state.waiting) == 50
    for task in reversed(range(50)):
        world.back(task)
        world.seat(task)
        assert world.running() == [task]
        world.done(task)
    assert not world.state.waiting and len(world.state.spare[0]) == 50
    waiting.end_spares(world.state, waiting.SPARE_S + 1.0)
    assert not world.state.spare


def test_a_process_that_has_no_task_is_taken_for_the_next_one_that_waits() -> None:
    world = World()
    world.assign(0, 1, 2)
    world.leave(1)
    second = world.state.slots[0]
    world.back(1)
    world.seat(1)
    world.done(2)
    world.assign(0, 3)
    world.leave(1)
    assert world.state.slots[0] is second and world.running() == [3]


def test_waiting_does_not_count_for_walltime() -> None:
    world = World()
    world.assign(1, 1, now=0.0)
    slot = world.leave(1, now=6.0)
    running.on_tick(world.state, 100.0)
    assert slot.ending_s < 0
    world.back(1, now=100.0)
    world.seat(1, now=100.0)
    running.on_tick(world.state, 103.0)
    assert slot.ending_s < 0
    running.on_tick(world.state, 104.5)
    assert slot.ending_s == 104.5


def test_who_waits_can_be_cancelled() -> None:
    world = World()
    world.assign(0, 1, 2)
    slot = world.leave(1)
    world.told()
    assigned.on_drop(world.state, Drop([1]), 1.0)
    assert slot.port.kills == [True]  # type: ignore[attr-defined]
    running.on_slot_died(world.state, slot, -15, "", 2.0)
    told = world.state.take_done()
    assert told is not None and (told.tasks, list(told.outcomes)) == ([1], [Outcome.CANCELLED])
    assert world.running() == [2] and not world.state.waiting and world.told() == ([], [1])


def test_a_process_that_dies_while_it_would_go_on_is_forgotten() -> None:
    world = World()
    world.assign(0, 1, 2)
    slot = world.leave(1)
    world.told()
    world.back(1)
    assert world.told() == ([], [1])
    running.on_slot_died(world.state, slot, -9, "", 2.0)
    world.seat(1)
    world.done(2)
    assert not world.running() and not world.state.asked and world.told() == ([], [])


def test_a_task_that_loses_its_process_while_it_waits_begins_again_when_the_manager_allows_it() -> None:
    world = World()
    world.assign(0, 1, 2)
    slot = world.leave(1)
    world.told()
    running.on_slot_died(world.state, slot, -9, "", 2.0, "its template has ended")
    assert world.told() == ([], [1])
    world.done(2)
    assert world.running() == [], "its slot may be lent"
    world.seat(1)
    assert world.running() == [1]


def test_a_task_that_is_to_begin_again_can_be_cancelled() -> None:
    world = World()
    world.assign(0, 1)
    slot = world.leave(1)
    world.told()
    running.on_slot_died(world.state, slot, -9, "", 2.0, "its template has ended")
    assigned.on_drop(world.state, Drop([1]), 3.0)
    told = world.state.take_done()
    assert told is not None and (told.tasks, list(told.outcomes)) == ([1], [Outcome.CANCELLED])
    world.seat(1)
    assert world.running() == []


def test_who_waits_for_less_than_a_turn_has_not_waited() -> None:
    world = World()
    world.assign(0, 1)
    world.leave(1)
    world.back(1)
    assert world.told() == ([], []) and world.running() == [1]


def test_a_task_of_two_cores_goes_on_when_two_slots_are_free() -> None:
    world = World(slots=2)
    world.assign(2, 1)
    slot = world.leave(1)
    world.assign(0, 2, 3)
    assert world.running() == [2, 3]
    world.back(1)
    world.seat(1)
    world.done(3)
    world.assign(0, 4)
    assert world.running() == [2], "nobody comes in between"
    world.done(2)
    assert world.running() == [1] and slot.port.seats == [([10], [10, 11])]  # type: ignore[attr-defined]
    assert [place.helps is not None for place in world.state.slots] == [False, True]


def test_no_more_tasks_wait_than_may() -> None:
    world = World()
    world.state.most_parents = 2
    world.assign(0, 1, 2, 3)
    world.leave(1)
    world.leave(2)
    slot = world.leave(3)
    assert slot.waits_s < 0 and slot.port.kills == [True] and set(world.state.left) == {1, 2}
    running.on_slot_died(world.state, slot, -9, "", 0.5)
    done = world.state.take_done()
    assert done is not None and (done.tasks, done.outcomes) == ([3], bytes([Outcome.FAILED]))
    error = payloads.load(done.payloads[0])
    assert isinstance(error, TooManyParents) and error.waiting == 2
    assert "task 3 (plain), attempt 1, was stopped on rank 3 at nid00012: it would have waited" in str(error)
    assert "--max-parents" in str(error)


def test_who_has_kept_its_slot_goes_on_at_once() -> None:
    world = World()
    world.state.new_place = None
    world.assign(0, 1)
    slot = world.leave(1)
    world.back(1)
    assert slot.port.seats == [([], [])] and world.relay.take() is None
