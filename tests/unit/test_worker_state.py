"""What a worker decides about limits, replacement and lost templates. Pure: ports only remember what they were told."""

import pytest

from exex import errors
from exex.protocol import payload
from exex.protocol.messages import AppSpec, Assign, Done, Drop, Grant, Kind, Outcome, Share
from exex.worker import assigned, filling, running
from exex.worker.state import WorkerState

LIMIT = 1000


class Port:
    """Remembers; `left` is what take_back finds."""

    def __init__(self):
        self.given, self.kills, self.measured, self.left = [], [], [], 0

    def give(self, calls):
        self.given += [call.task for call in calls]

    def take_back(self):
        left, self.left = self.left, 0
        return left

    def kill(self, gently):
        self.kills.append("SIGTERM" if gently else "SIGKILL")

    def measure(self, limit_bytes):
        self.measured.append(limit_bytes)


def make(slots=1, **settings):
    ports = [Port() for _ in range(slots)]
    state = WorkerState(3, "nid00012", ports, **settings)
    specs = [
        AppSpec(app=0, name="plain", function=b"d"),
        AppSpec(app=1, name="limited", function=b"d", memory_bytes=LIMIT),
        AppSpec(app=2, name="other", function=b"d", memory_bytes=LIMIT),
    ]
    assigned.on_assign(
        state, Assign(apps=specs, functions={b"d": b""}, tasks=[], calls=[0], payloads=[], values={}, attempts={})
    )
    return state, ports


def assign(state, app, *tasks, now=0.0):
    grants = dict.fromkeys(range(len(tasks)), Grant(1, [], [Share("nid00012", 1, [], [3])])) if app else {}
    message = Assign(
        apps=[], functions={}, tasks=list(tasks), calls=[app], payloads=[b""] * len(tasks), values={}, attempts={}, grants=grants
    )
    assigned.on_assign(state, message)
    filling.fill(state, now)


def test_where_attempts_ran_and_what_they_used_is_told():
    state, _ = make(slots=2)
    assign(state, 0, 7, 8)
    ended = Done(tasks=[8], outcomes=b"\0", payloads=[b""], seconds=[0.1], started=[], peaks={0: 4096})
    running.on_slot_done(state, state.slots[1], ended, 0.0)
    assign(state, 0, 9, 10)
    assigned.on_drop(state, Drop([10]), 0.0)
    told = state.take_done()
    assert (told.tasks, told.slots, told.peaks) == ([8, 10], [1, -1], {0: 4096})
    state, _ = make()
    assign(state, 0, 7)
    done(state, 7)
    told = state.take_done()
    assert (told.slots, told.peaks) == ([], {})


def done(state, *tasks, now=0.0, seconds=1e-6, slot=0):
    message = Done(
        tasks=list(tasks), outcomes=bytes(len(tasks)), payloads=[b""] * len(tasks), seconds=[seconds] * len(tasks), started=[]
    )
    running.on_slot_done(state, state.slots[slot], message, now)
    filling.fill(state, now)


def died(state, now=0.0, code=-9, blameless="", slot=0):
    running.on_slot_died(state, state.slots[slot], code, "", now, blameless)
    filling.fill(state, now)


def reported(state):
    """(task, outcome, error or None) of all that is to be reported."""
    message = state.take_done()
    if message is None:
        return []
    values = [payload.load(each) if each else None for each in message.payloads]
    return list(zip(message.tasks, message.outcomes, values, strict=True))


def measured(state, used_bytes, now, seconds=1e-4):
    running.on_measured(state, state.slots[0], used_bytes, seconds, now)


# ---- memory ---------------------------------------------------------------------------------------------------


def test_only_tasks_with_a_limit_are_measured():
    state, [port] = make()
    assign(state, 0, 7)
    running.on_tick(state, 1.0)
    assert not port.measured


def test_a_task_that_uses_too_much_is_killed_at_once_and_says_so():
    state, [port] = make()
    assign(state, 1, 7)
    running.on_tick(state, 1.0)
    assert port.measured == [LIMIT]
    measured(state, LIMIT + 1, 1.0)
    assert port.kills == ["SIGKILL"]
    died(state, now=1.5)
    [(task, outcome, error)] = reported(state)
    assert (task, outcome, type(error)) == (7, Outcome.FAILED, errors.MemoryLimitExceeded)
    assert (error.used_bytes, error.limit_bytes) == (LIMIT + 1, LIMIT)
    assert str(error).startswith("task 7 (limited), attempt 1, was stopped on rank 3 at nid00012: it and what it had started used ")


def test_a_task_within_its_limit_is_measured_again_and_left_alone():
    state, [port] = make()
    assign(state, 1, 7)
    running.on_tick(state, 1.0)
    running.on_tick(state, 1.1)
    assert len(port.measured) == 1  # one question at a time
    measured(state, LIMIT, 1.1)
    running.on_tick(state, 1.1 + running.MEASURE_S / 2)
    assert len(port.measured) == 1
    running.on_tick(state, 1.1 + running.MEASURE_S)
    assert len(port.measured) == 2 and not port.kills


def test_what_takes_long_to_measure_is_measured_seldom():
    state, [port] = make()
    assign(state, 1, 7)
    running.on_tick(state, 1.0)
    measured(state, LIMIT, 1.0, seconds=0.1)
    running.on_tick(state, 1.0 + 0.99 * 0.1 / running.MEASURE_SHARE)
    assert len(port.measured) == 1
    running.on_tick(state, 1.0 + 1.01 * 0.1 / running.MEASURE_SHARE)
    assert len(port.measured) == 2


def test_a_measurement_of_a_task_that_has_ended_does_not_hit_the_next():
    state, [port] = make()
    assign(state, 1, 7, 8)
    running.on_tick(state, 1.0)
    done(state, 7, now=1.0)
    assert port.given == [7, 8]
    measured(state, LIMIT + 1, 1.0)
    assert not port.kills
    running.on_tick(state, 2.0)
    measured(state, LIMIT + 1, 2.0)
    assert port.kills == ["SIGKILL"]


def test_a_measurement_of_a_task_that_is_being_cancelled_changes_nothing():
    state, [port] = make()
    assign(state, 1, 7)
    running.on_tick(state, 1.0)
    assigned.on_drop(state, Drop(tasks=[7]), 1.0)
    measured(state, LIMIT + 1, 1.0)
    assert port.kills == ["SIGTERM"]
    died(state)
    assert [(task, outcome) for task, outcome, _ in reported(state)] == [(7, Outcome.CANCELLED)]


@pytest.mark.parametrize("behind", [0, 1])
def test_nothing_is_queued_behind_a_task_with_a_limit(behind):
    state, [port] = make()
    state.paces = {0: 1e-6, 1: 1e-6}
    assign(state, 1, 7)
    assign(state, behind, 8)
    assert port.given == [7]


def test_a_task_with_a_limit_is_not_queued_behind_another():
    state, [port] = make()
    state.paces = {0: 1e-6, 1: 1e-6}
    assign(state, 0, 7)
    assign(state, 1, 8)
    assert port.given == [7]


def test_a_task_with_a_limit_does_not_pay_for_what_other_apps_have_left():
    state, [port] = make()
    assign(state, 0, 1)
    done(state, 1)
    assign(state, 1, 7)
    assert port.given == [1] and port.kills == ["SIGKILL"]
    died(state)
    assert port.given == [1, 7]
    done(state, 7)
    assign(state, 1, 8)
    assert port.given == [1, 7, 8]  # its own leftovers are its own
    done(state, 8)
    assign(state, 2, 9)
    assert port.kills == ["SIGKILL"] * 2
    assert [outcome for _, outcome, _ in reported(state)] == [Outcome.DONE] * 3


def test_limits_need_a_task_process_of_their_own():
    assert filling.may_run_inline(AppSpec(app=0, name="f", function=b""))
    assert not filling.may_run_inline(AppSpec(app=0, name="f", function=b"", walltime_s=1.0))
    assert not filling.may_run_inline(AppSpec(app=0, name="f", function=b"", kind=Kind.BASH))


# ---- replacement ----------------------------------------------------------------------------------------------


def test_a_process_is_replaced_after_so_many_tasks():
    state, [port] = make(tasks_per_process=2)
    state.paces = {0: 1e-6}
    assign(state, 0, 1, 2, 3)
    assert port.given == [1, 2]
    done(state, 1)
    assert not port.kills
    done(state, 2)
    assert port.kills == ["SIGKILL"] and port.given == [1, 2]
    died(state)
    assert port.given == [1, 2, 3]
    assert [task for task, outcome, _ in reported(state) if outcome == Outcome.DONE] == [1, 2]


def test_what_was_taken_back_does_not_count():
    state, [port, _] = make(slots=2, tasks_per_process=3)
    slot = state.slots[0]
    state.paces = {0: 1e-6}
    assign(state, 0, 1, 2, 3, 4)
    held = len(slot.held)
    port.left = held - 1
    assigned.on_drop(state, Drop(tasks=[slot.held[0].task]), 0.0)
    assert (len(slot.held), slot.given) == (1, 1)


# ---- nobody's fault -------------------------------------------------------------------------------------------


def test_what_a_dead_template_took_along_is_run_again_without_a_failure():
    state, [port] = make()
    assign(state, 0, 7)
    for time in range(1, running.LOSSES_TOLERATED + 1):
        died(state, blameless="its template has ended")
        assert port.given == [7] * (time + 1) and not reported(state)
    died(state, blameless="its template has ended")
    [(task, outcome, error)] = reported(state)
    assert (task, outcome) == (7, Outcome.LOST)
    assert "on rank 3 at nid00012 ended 4 times through no fault of its own: its template has ended" in str(error)


def test_a_cancelled_task_stays_cancelled_though_its_template_died():
    state, [port] = make()
    assign(state, 0, 7)
    assigned.on_drop(state, Drop(tasks=[7]), 0.0)
    died(state, blameless="its template has ended")
    assert port.given == [7]
    assert [(task, outcome) for task, outcome, _ in reported(state)] == [(7, Outcome.CANCELLED)]


# ---- big calls ------------------------------------------------------------------------------------------------


def assign_big(state, task, slots, cores=(), total=None, app=0, now=0.0):
    grant = Grant(slots, list(cores), [Share("nid00012", total or slots, [], [3])])
    message = Assign(
        apps=[], functions={}, tasks=[task], calls=[app], payloads=[b""], values={}, attempts={}, grants={0: grant}
    )
    assigned.on_assign(state, message)
    filling.fill(state, now)


def busy(state):
    """Numbers of the slots that are not idle."""
    return [slot.number for slot in state.slots if not slot.is_idle()]


def test_a_big_call_holds_as_many_slots_as_it_was_granted():
    state, ports = make(4)
    assign_big(state, 1, 3)
    assert [port.given for port in ports] == [[1], [], [], []] and busy(state) == [0, 1, 2]
    assign(state, 0, 2)
    assert ports[3].given == [2]
    done(state, 1)
    assert busy(state) == [3]


def test_a_big_call_waits_until_its_slots_are_idle_and_small_ones_go_on():
    state, ports = make(4, tasks_per_process=1)
    assign(state, 0, 1, 2)
    done(state, 1, slot=0)
    assert state.slots[0].ending_s == 0.0, "its process is replaced"
    assign_big(state, 9, 3)
    assert not state.slots[2].held and list(state.big)
    died(state, slot=0)
    assert state.slots[0].held or state.slots[2].held
    assert busy(state) == [0, 1, 2, 3]


def test_slots_side_by_side_are_chosen():
    state, _ = make(6)
    assign(state, 0, 1, 2, 3)
    done(state, 1, slot=0)
    assign_big(state, 9, 3)
    assert state.slots[3].held and busy(state) == [1, 2, 3, 4, 5]


def test_nothing_is_queued_behind_a_big_call():
    state, ports = make(2)
    for task in range(100, 200):
        assign(state, 0, task)
        done(state, task, seconds=1e-6, slot=next(slot.number for slot in state.slots if slot.held))
    assign_big(state, 1, 1)
    assign(state, 0, *range(2, 50))
    assert ports[0].given[-1] == 1 or ports[1].given[-1] == 1


def test_a_dropped_big_call_is_killed_and_frees_its_slots():
    state, ports = make(3)
    assign_big(state, 1, 3)
    assigned.on_drop(state, Drop(tasks=[1]), 0.0)
    assert ports[0].kills == ["SIGTERM"] and len(busy(state)) == 3
    died(state, code=-15)
    assert busy(state) == [] and reported(state) == [(1, Outcome.CANCELLED, None)]


def test_a_waiting_big_call_that_is_dropped_is_reported():
    state, _ = make(2)
    assign(state, 0, 1)
    assign_big(state, 2, 2)
    assigned.on_drop(state, Drop(tasks=[2]), 0.0)
    assert reported(state) == [(2, Outcome.CANCELLED, None)] and not state.big


def test_a_big_call_that_loses_its_process_without_fault_is_given_again():
    state, ports = make(3)
    assign_big(state, 1, 2)
    died(state, blameless="its template has ended")
    assert ports[0].given == [1, 1] and busy(state) == [0, 1] and not reported(state)


def test_a_big_call_whose_process_dies_frees_its_slots():
    state, _ = make(3)
    assign_big(state, 1, 3)
    died(state, code=-11)
    [(task, outcome, _)] = reported(state)
    assert (task, outcome) == (1, Outcome.LOST) and busy(state) == []


def test_a_big_call_that_was_not_started_is_taken_back_with_its_slots():
    state, ports = make(2)
    assign_big(state, 1, 2)
    ports[0].left = 1
    running.recover(state, state.slots[0])
    assert busy(state) == [] and [call.task for call in state.big] == [1]


def test_cpus_of_slots_and_of_other_workers_first_one_of_each_core():
    state, _ = make(4)
    state.slot_cores = [[0, 8], [1, 9], [2, 10], [3, 11]]
    assign_big(state, 1, 2)
    assert state.slots[0].held[0].cores == [0, 1, 8, 9]
    assign_big(state, 2, 2, cores=[4, 12], total=3)
    assert state.slots[2].held[0].cores == [2, 3, 4, 10, 11, 12]


def test_a_part_that_nobody_can_name_leaves_the_call_unbound():
    state, _ = make(2)
    state.slot_cores = [[0], [1]]
    assign_big(state, 1, 1, total=2)
    assert state.slots[0].held[0].cores == []


def test_a_call_with_a_memory_limit_gets_a_process_that_only_its_app_has_used():
    state, ports = make(2)
    assign(state, 0, 1, 2)
    done(state, 1, slot=0)
    done(state, 2, slot=1)
    assign(state, 1, 3)
    assert ports[0].kills == ["SIGKILL"] and not ports[1].kills and not ports[1].given[1:]
    filling.fill(state, 0.0)
    assert not ports[1].kills, "one process is on its way already"
    died(state)
    assert ports[0].given == [1, 3]


# ---- time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.DONE])
def test_who_fails_as_its_walltime_is_over_has_failed_by_that(outcome):
    """What a task has started is told to end first: bash may be gone, and the task report that, before it hears of it itself."""
    state, [port] = make()
    spec = AppSpec(app=3, name="late", function=b"d", walltime_s=1.0)
    state.apps[3] = spec
    assigned.on_assign(state, Assign(apps=[spec], functions={}, tasks=[7], calls=[3], payloads=[b""], values={}, attempts={}))
    filling.fill(state, 0.0)
    running.on_tick(state, 1.5)
    assert port.kills == ["SIGTERM"]
    own = payload.dump_error(errors.BashExitFailure("late", 143), "") if outcome == Outcome.FAILED else payload.dump(5)
    running.on_slot_done(state, state.slots[0], Done([7], bytes([outcome]), [own], [1.5], []), 1.6)
    died(state, now=1.6)
    [(task, told, value)] = reported(state)
    assert (task, told) == (7, outcome)
    assert value == 5 if outcome == Outcome.DONE else isinstance(value, errors.AppTimeout) and "1.0 s" in str(value)
