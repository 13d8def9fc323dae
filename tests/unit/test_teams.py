"""Calls on communicators of worker ranks at the manager: who takes part, how they end, how they are stopped, who is lost."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exex.errors import AppTimeout, DeserializationError, InvalidResourceSpecification, MpiTaskFailed, ProtocolError, WorkerLost
from exex.manager import from_clients, from_workers, teams
from exex.manager.task import Status
from exex.protocol import payload
from exex.protocol.messages import AppSpec, Cancel, Done, Finish, Hello, Join, Kind, NodeShape, Outcome, Part
from exex.protocol.parts import RankPart, combine
from exex.protocol.payload import Large
from exex.protocol.request import impossible, request_of
from exex.protocol.runs import as_runs, from_runs
from tests.unit.test_packing import Machine

VALUE, ERROR = payload.dump("v"), payload.dump_error(ValueError("no"), "")
Word = tuple[int, tuple[int, ...], bool]


class TeamMachine(Machine):
    """With ranks of one slot, and guards that do as the test says."""

    def __init__(self, nodes: int = 1, slots: int = 4, per_rank: int | None = 1, **about: Any) -> None:
        super().__init__(nodes, slots, per_rank, **about)
        self.words: list[Word] = []
        self.probed: list[int] = []

    def call(self, ranks: int, **spec: Any) -> int:
        """Submit one call on so many ranks, and place it if that can be."""
        (task,) = self.submit(kind=Kind.TOGETHER, ranks=ranks, **spec)
        return task

    def joins(self) -> list[tuple[list[int], Join]]:
        """What ranks are called to since this was asked last."""
        joins, self.state.joins[:] = list(self.state.joins), []
        return joins

    def team(self, task: int) -> teams.Team:
        return self.state.teams[task]

    def part(self, task: int, rank: int, outcome: int = Outcome.DONE, value: Any = None, seconds: float = 1.0) -> None:
        """The part of a rank has ended, as that says it."""
        value = value if value is not None else {Outcome.DONE: VALUE, Outcome.FAILED: ERROR}.get(Outcome(outcome), b"")
        if self.began.get(task) == rank:
            from_workers.on_done(self.state, rank, Done([task], bytes([outcome]), [value], [seconds], []))
        else:
            from_workers.on_part(self.state, rank, Part(task, outcome, value, seconds))
        self.state.check()

    def all_done(self, task: int, but: Sequence[int] = ()) -> None:
        for rank in self.team(task).ranks:
            if rank not in but and task in self.state.teams and rank in self.team(task).missing:
                self.part(task, rank)

    def value(self, task: int) -> Any:
        outcome, value = self.client.kept[task]
        assert outcome == Outcome.DONE, payload.load(value)
        return payload.load(value)

    # ---- teams.Reach ----

    def stop(self, call: int, ranks: Sequence[int], hard: bool) -> None:
        self.words.append((call, tuple(ranks), hard))

    def probe(self, ranks: Sequence[int]) -> None:
        self.probed += ranks

    def look(self, time_s: float) -> list[teams.Unreached]:
        """Time passes; what the guards were told is in `words`."""
        self.words.clear()
        self.state.now_s = time_s
        unreached = teams.look(self.state, self)
        self.state.check()
        return unreached

    def is_free(self) -> bool:
        """Whether all slots are there again."""
        return not self.state.holdings and all(
            worker.room == worker.open == worker.slots and not worker.held and not worker.lent and not worker.in_team
            for worker in self.state.workers.values()
        )


def hello(rank: int, node: str) -> Any:
    return Hello("1", "3", node, rank, 1, "", [], [], 0, [])


# ---- who takes part -------------------------------------------------------------------------------------------


def test_a_team_is_formed_of_as_many_ranks_as_it_asks_for() -> None:
    machine = TeamMachine(2, 4)
    task = machine.call(4)
    ((told, join),) = machine.joins()
    assert from_runs(join.runs) == told == machine.team(task).ranks and len(set(told)) == 4
    assert machine.began[task] == told[0] == machine.team(task).lead, "the lead gets the call"
    assert (join.task, join.after_loss) == (task, False)
    assert len({machine.state.workers[rank].node for rank in told}) == 1


def test_attempts_have_numbers_of_their_own() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2, retries=1)
    ((_, first),) = machine.joins()
    machine.part(task, 1, Outcome.FAILED)
    machine.part(task, 2, Outcome.FAILED)
    machine.turn()
    ((_, second),) = machine.joins()
    assert first.task == second.task and first.call != second.call


def test_it_waits_until_enough_ranks_are_idle() -> None:
    machine = TeamMachine(1, 4)
    small = machine.submit(2)
    task = machine.call(3)
    assert machine.waits(task) and not machine.joins()
    machine.done(small[0])
    assert not machine.waits(task) and len(machine.team(task).ranks) == 3


@pytest.mark.parametrize(("per_rank", "own_world"), [(2, False), (4, False), (1, True)])
def test_others_start_a_world_of_their_own(per_rank: int, own_world: bool) -> None:
    machine = TeamMachine(1, 4, per_rank)
    task = machine.call(4, own_world=own_world)
    assert task in machine.running() and not machine.state.teams and not machine.joins()
    assert sum(share.slots for share in machine.grants[task].shares) == 4
    machine.done(task)
    assert machine.is_free()


def test_the_worker_of_rank_0_takes_no_part() -> None:
    machine = TeamMachine(1, 4)
    machine.state.own = 4
    task = machine.call(4)
    assert task in machine.running() and not machine.state.teams
    machine.done(task)
    assert machine.call(1) in machine.running()


def test_ranks_beyond_those_that_were_asked_for_wait() -> None:
    machine = TeamMachine(2, 2)
    task = machine.call(3)
    assert len(machine.team(task).ranks) == 3
    assert machine.waits(machine.submit()[0]), "the fourth holds its slot for nothing"
    machine.all_done(task)
    assert machine.value(task) == "v"
    machine.turn()
    assert len(machine.running() - {task}) == 1


def test_nothing_is_queued_behind_a_function() -> None:
    machine = TeamMachine(1, 4)
    machine.learn(1e-6)
    task = machine.call(3)
    small = machine.submit(1000)
    inside = set(machine.team(task).ranks)
    assert not any(machine.began[other] in inside for other in small if other in machine.began)
    assert all(machine.state.workers[rank].held == (rank == machine.team(task).lead) for rank in inside)
    machine.part(task, machine.team(task).ranks[1])
    machine.turn()
    assert not any(machine.began[other] in inside for other in small if other in machine.began), "nor before all have ended"


def test_nor_when_its_lead_has_ended() -> None:
    """Where both are known to be short, a rank outside would be given many."""
    machine = TeamMachine(1, 3)
    machine.learn(1e-6)
    task = machine.call(3)
    for rank in (1, 2, 3):
        machine.part(task, rank, seconds=1e-6)
    machine.began.clear()
    task = machine.call(3)
    machine.submit(100)
    assert machine.running() == {task}
    machine.part(task, machine.team(task).lead)
    machine.turn()
    assert machine.running() <= {task}


def test_each_node_gives_an_accelerator() -> None:
    machine = TeamMachine(2, 2, gpus=2)
    task = machine.call(4, gpus=1)
    assert [len(share.gpus) for share in machine.grants[task].shares] == [1, 1]


# ---- ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_it_ends_when_all_parts_are_in_and_its_value_is_that_of_the_first(order: tuple[int, ...]) -> None:
    machine = TeamMachine(1, 3)
    task = machine.call(3)
    ranks = machine.team(task).ranks
    for number in order:
        assert task in machine.state.tasks and not machine.is_free()
        machine.part(task, ranks[number - 1], value=payload.dump(number), seconds=number)
    assert machine.value(task) == 1 and machine.is_free() and not machine.state.teams
    assert max(app.mean_s for app in machine.state.apps.values()) == 3.0, "it took as long as its slowest rank"


def test_the_values_of_all_ranks_come_in_the_order_of_the_communicator() -> None:
    machine = TeamMachine(1, 3)
    task = machine.call(3, every_rank=True)
    ranks = machine.team(task).ranks
    for number in (3, 1, 2):
        value = payload.dump(number) if number < 3 else Large([pickle.dumps(3), b""])
        machine.part(task, ranks[number - 1], value=value)
    assert machine.value(task) == [1, 2, 3]


def test_a_rank_that_takes_no_part_cannot_end_one() -> None:
    machine = TeamMachine(1, 3)
    task = machine.call(2)
    with pytest.raises(ProtocolError, match="in which it takes none"):
        from_workers.on_part(machine.state, 3, Part(task, Outcome.DONE, VALUE, 1.0))
    machine.part(task, 1)
    for rank, other in ((1, task), (2, 99)):
        with pytest.raises(ProtocolError, match="in which it takes none"):
            from_workers.on_part(machine.state, rank, Part(other, Outcome.DONE, VALUE, 1.0))
    with pytest.raises(ProtocolError, match="before its Hello"):
        from_workers.on_part(machine.state, 9, Part(task, Outcome.DONE, VALUE, 1.0))
    machine.state.check()


@pytest.mark.parametrize("tasks", [[0, 0], [0, 7]])
def test_who_says_too_much_loses_no_call(tasks: list[int]) -> None:
    """The first word is true, and ends the call; the second is a lie."""
    machine = TeamMachine(1, 3)
    task = machine.call(2)
    machine.part(task, 1)
    with pytest.raises(ProtocolError):
        from_workers.on_done(machine.state, 2, Done(tasks, bytes(2), [VALUE] * 2, [1.0] * 2, []))
    machine.state.check()
    machine.lose(2)
    assert machine.value(task) == "v" and not machine.state.teams


@pytest.mark.parametrize("outcome", [Outcome.ASK, Outcome.NEED_FAILED])
def test_a_part_comes_to_nothing_that_only_a_task_can(outcome: Outcome) -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2)
    with pytest.raises(ProtocolError, match="with the outcome"):
        machine.part(task, 1, outcome, ERROR)


def test_other_results_in_the_same_message_count() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2)
    message = Done([task], bytes(1), [VALUE], [1.0], [])
    assert teams.split_off(machine.state, message) == (Done([], b"", [], [], []), [Part(task, 0, VALUE, 1.0)])
    assert teams.split_off(machine.state, Done([5], bytes(1), [VALUE], [1.0], [5])) == (Done([5], bytes(1), [VALUE], [1.0], [5]), [])


# ---- failures -------------------------------------------------------------------------------------------------


def test_one_error_names_all_ranks_that_failed_and_their_nodes() -> None:
    machine = TeamMachine(2, 2)
    task = machine.call(4, name="solve")
    ranks = machine.team(task).ranks
    machine.part(task, ranks[0])
    machine.part(task, ranks[3], Outcome.FAILED, payload.dump_error(KeyError("k"), ""))
    machine.part(task, ranks[1], Outcome.FAILED, payload.dump_error(ValueError("bad"), ""))
    machine.part(task, ranks[2], Outcome.CANCELLED)
    error = machine.error(task)
    assert isinstance(error, MpiTaskFailed)
    nodes = [machine.state.workers[rank].node for rank in ranks]
    assert [(failure.rank, failure.node, type(failure.error)) for failure in error.failures] == [
        (1, nodes[1], ValueError), (3, nodes[3], KeyError),
    ]  # fmt: skip
    text = str(error)
    assert text.startswith(f"task {task} (solve), attempt 1, failed on 2 of its 4 ranks: rank 1 at {nodes[1]}: ValueError: bad")
    assert text.endswith("; another one was stopped")
    assert machine.is_free()


def failed(rank: int, error: Any) -> RankPart:
    return RankPart(rank, f"n{rank}", int(Outcome.FAILED), error, 0.5)


def test_the_error_survives_pickling() -> None:
    outcome, value, seconds = combine("task 7 (f), attempt 1,", [failed(0, ERROR), failed(1, ERROR)], False)
    error = pickle.loads(pickle.dumps(payload.load(value)))
    assert (outcome, seconds) == (Outcome.FAILED, 0.5)
    assert isinstance(error, MpiTaskFailed) and [failure.rank for failure in error.failures] == [0, 1]
    assert "failed on 2 of its 2 ranks" in str(error) and "stopped" not in str(error)


def test_the_first_failure_is_the_cause() -> None:
    _, value, _ = combine("t", [failed(2, ERROR), failed(5, ERROR)], False)
    assert isinstance(payload.load(value).__cause__, ValueError)


@pytest.mark.parametrize(("count", "quoted", "more"), [(8, 8, None), (9, 8, "and 1 more"), (1000, 8, "and 992 more")])
def test_eight_ranks_are_quoted(count: int, quoted: int, more: str | None) -> None:
    _, value, _ = combine("t", [failed(rank, ERROR) for rank in range(count)], False)
    error = payload.load(value)
    assert str(error).count("ValueError: no") == quoted and len(error.failures) == count
    assert (more in str(error)) if more else "more" not in str(error)


@pytest.mark.parametrize("stopped", [0, 1, 2])
def test_it_says_how_many_were_stopped(stopped: int) -> None:
    parts = [failed(0, ERROR)] + [RankPart(1 + i, "n", int(Outcome.CANCELLED), b"", 0.0) for i in range(stopped)]
    text = str(payload.load(combine("t", parts, False)[1]))
    assert [word in text for word in ("another one was stopped", "2 others were stopped")] == [stopped == 1, stopped == 2]


def test_an_error_that_cannot_be_opened_is_named_and_hides_no_other() -> None:
    _, value, _ = combine("t", [failed(0, b"garbage"), failed(1, payload.dump(3)), failed(2, ERROR)], False)
    error = payload.load(value)
    kinds = [type(failure.error) for failure in error.failures]
    assert kinds == [DeserializationError, DeserializationError, ValueError]
    assert "cannot be unpickled here" in str(error) and "its error is 3" in str(error)


def test_large_errors_travel_out_of_band() -> None:
    big = payload.dump_error(ValueError("x" * 300_000), "")
    _, value, _ = combine("t", [failed(0, big), failed(1, ERROR)], False)
    assert len(str(payload.load(value).failures[0].error)) == 300_000


def test_no_value_without_all_ranks() -> None:
    done = RankPart(0, "n", int(Outcome.DONE), VALUE, 1.0)
    for other in (Outcome.CANCELLED, Outcome.LOST):
        assert combine("t", [done, RankPart(1, "n", int(other), b"", 2.0)], False) == (Outcome.CANCELLED, b"", 2.0)
    assert combine("t", [], True) == (Outcome.CANCELLED, b"", 0.0)
    assert combine("t", [done], False) == (Outcome.DONE, VALUE, 1.0)


def test_a_failed_attempt_is_tried_again_on_as_many_ranks() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2, retries=1)
    for _ in range(2):
        for rank in list(machine.team(task).ranks):
            machine.part(task, rank, Outcome.FAILED)
        machine.turn()
    assert isinstance(machine.error(task), MpiTaskFailed) and "attempt 2," in str(machine.error(task)) and machine.is_free()


def test_a_retry_handler_is_asked_once_for_all_ranks() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2, asks=True)
    machine.part(task, 1, Outcome.FAILED)
    assert not machine.client.outcomes
    machine.part(task, 2, Outcome.FAILED)
    assert list(machine.client.outcomes) == [Outcome.ASK]
    assert machine.state.tasks[task].status == Status.ASKING and machine.is_free()


# ---- being stopped --------------------------------------------------------------------------------------------


def test_others_go_on_for_a_while_when_one_has_failed_then_are_told_then_killed() -> None:
    machine = TeamMachine(1, 3)
    task = machine.call(3)
    call = machine.team(task).call
    machine.look(1.0)
    machine.part(task, 2, Outcome.FAILED)
    assert not machine.look(1.9) and not machine.words, "they may be about to fail for the same reason"
    machine.look(1.0 + teams.OTHERS_S)
    assert machine.words == [(call, (1, 3), False)]
    machine.part(task, 3, Outcome.CANCELLED)
    machine.look(2.0 + teams.LOOK_S)
    assert not machine.words, "not again so soon"
    machine.look(2.0 + teams.AGAIN_S)
    assert machine.words == [(call, (1,), False)], "a word may be lost"
    machine.look(2.0 + machine.state.grace_s)
    assert machine.words == [(call, (1,), True)]
    machine.lose(1)
    error = machine.error(task)
    assert isinstance(error, MpiTaskFailed) and "failed on 1 of its 3 ranks" in str(error) and "2 others were stopped" in str(error)
    assert machine.is_free()


def test_only_those_that_failed_let_the_others_go() -> None:
    machine = TeamMachine(1, 4)
    task = machine.call(4)
    machine.part(task, 2, Outcome.FAILED)
    machine.part(task, 3)
    machine.look(teams.OTHERS_S)
    assert machine.state.drops == {2: [task]}
    machine.look(teams.OTHERS_S + teams.AGAIN_S)
    assert machine.state.drops == {2: [task]}, "once"


def test_nobody_is_told_when_all_fail_together() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2)
    machine.part(task, 1, Outcome.FAILED)
    machine.part(task, 2, Outcome.FAILED)
    machine.look(teams.OTHERS_S)
    assert not machine.words and not machine.state.drops and task not in machine.state.tasks


def test_walltime() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2, walltime_s=5.0, name="slow")
    machine.look(4.9)
    assert not machine.words
    machine.look(5.0)
    assert machine.words == [(machine.team(task).call, (1, 2), False)]
    machine.part(task, 2, Outcome.CANCELLED)
    assert task in machine.state.tasks
    machine.part(task, 1, Outcome.CANCELLED)
    error = machine.error(task)
    assert isinstance(error, AppTimeout)
    assert str(error) == f"task {task} (slow), attempt 1, was stopped on its 2 ranks: it ran longer than its walltime, 5.0 s"


def test_walltime_counts_for_each_attempt() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2, walltime_s=5.0, retries=1)
    machine.look(5.0)
    machine.part(task, 1, Outcome.CANCELLED)
    machine.part(task, 2, Outcome.CANCELLED)
    machine.turn()
    machine.look(9.9)
    assert not machine.words
    machine.look(10.0)
    assert machine.words


def test_one_that_ends_in_time_after_all_has_its_value() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2, walltime_s=5.0)
    machine.look(5.0)
    machine.all_done(task)
    assert machine.value(task) == "v"


def test_cancelled_ranks_are_told_at_once_and_hold_their_slots_until_they_have_ended() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2)
    call = machine.team(task).call
    from_clients.on_cancel(machine.state, machine.client, Cancel([task]))
    machine.state.check()
    assert task not in machine.state.tasks and not machine.state.drops, "who is inside hears no Drop"
    machine.look(0.0)
    assert machine.words == [(call, (1, 2), False)]
    (other,) = machine.submit()
    assert machine.waits(other)
    machine.part(task, 2, Outcome.CANCELLED)
    machine.part(task, 1)
    machine.turn()
    assert not machine.state.dropped and other in machine.running()


def test_so_are_those_of_a_client_that_ends() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2)
    from_clients.on_finish(machine.state, machine.client, Finish(cancel=True))
    machine.look(0.0)
    assert machine.words == [(machine.team(task).call, (1, 2), False)]
    machine.part(task, 1, Outcome.FAILED)
    machine.part(task, 2, Outcome.CANCELLED)
    assert not machine.state.clients and machine.is_free()


def test_the_end_of_the_job_shortens_the_patience_with_those_that_are_being_stopped() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2, walltime_s=1.0)
    machine.state.grace_s = 100.0
    machine.look(1.0)
    machine.state.grace_s = 0.5
    teams.condemn(machine.state, task, teams.Reason.UNWANTED)
    machine.look(1.5)
    assert machine.words == [(1, (1, 2), True)]


def test_a_rank_that_lives_though_it_was_killed_is_given_up() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2, walltime_s=1.0)
    time_s, given_up, hard = 1.0, [], 0
    while not given_up and time_s < 60:
        given_up = machine.look(time_s)
        hard += sum(word[2] for word in machine.words)
        time_s += teams.AGAIN_S
    assert given_up == [teams.Unreached([1, 2], task)] and hard == teams.KILLINGS


def test_not_because_the_whole_job_stood_still() -> None:
    machine = TeamMachine(1, 2)
    machine.call(2, walltime_s=1.0)
    machine.look(1.0)
    assert not machine.look(1e6) and machine.words


def test_the_client_hears_of_long_calls_only() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2)
    machine.look(teams.STARTED_S / 2)
    assert not machine.client.started
    machine.look(0.2)
    machine.look(0.4)
    assert machine.client.started == [task]


def test_looks_are_rare() -> None:
    machine = TeamMachine(1, 2)
    machine.call(2)
    machine.look(1.0)
    next_s = machine.state.look_at_teams_s
    machine.look(1.0 + teams.LOOK_S / 2)
    assert machine.state.look_at_teams_s == next_s == 1.0 + teams.LOOK_S


# ---- lost ranks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_rank_that_dies_costs_an_attempt_but_is_no_failure(lost: int) -> None:
    machine = TeamMachine(1, 5)
    task = machine.call(3, retries=0)
    machine.joins()
    machine.lose(lost)
    machine.look(0.1)
    others = tuple(rank for rank in (1, 2, 3) if rank != lost)
    assert machine.words == [(1, others, False)], "at once: they may wait for it"
    machine.part(task, others[0], Outcome.CANCELLED)
    assert task in machine.state.teams
    machine.part(task, others[1], Outcome.FAILED)
    machine.turn()
    assert machine.state.tasks[task].attempt == 2 and len(machine.team(task).ranks) == 3
    ((_, join),) = machine.joins()
    assert join.after_loss and lost not in from_runs(join.runs)
    machine.all_done(task)
    assert machine.value(task) == "v" and machine.is_free()


def test_another_rank_stands_in_for_a_lost_lead() -> None:
    machine = TeamMachine(1, 3)
    task = machine.call(3)
    machine.lose(1)
    assert machine.team(task).lead == 2 and machine.state.tasks[task].rank == 2
    machine.lose(2)
    assert machine.team(task).lead == 3 and machine.state.workers[3].held == 1
    machine.part(task, 3, Outcome.CANCELLED)
    assert machine.state.tasks[task].attempt == 2 and machine.is_free()


def test_all_are_lost_with_the_last_one() -> None:
    machine = TeamMachine(1, 3)
    task = machine.call(2)
    machine.lose(1)
    machine.lose(2)
    assert machine.state.tasks[task].attempt == 2 and machine.is_free() and not machine.state.teams
    machine.turn()
    assert isinstance(machine.error(task), InvalidResourceSpecification), "one rank is left"


def test_a_cancelled_call_of_which_all_ranks_die() -> None:
    machine = TeamMachine(1, 3)
    task = machine.call(2)
    from_clients.on_cancel(machine.state, machine.client, Cancel([task]))
    machine.lose(1)
    assert machine.state.dropped == {task: 2}
    machine.lose(2)
    assert not machine.state.dropped and not machine.state.teams and machine.is_free()


def test_a_rank_that_dies_after_its_part_takes_nothing_with_it_if_the_others_end() -> None:
    machine = TeamMachine(1, 3)
    task = machine.call(3)
    for rank in (1, 2):
        machine.part(task, rank, value=payload.dump(rank))
        machine.lose(rank)
    machine.look(teams.OTHERS_S * 0.9)
    assert not machine.words
    machine.part(task, 3)
    assert machine.value(task) == 1 and machine.is_free()


def test_others_may_wait_for_a_rank_that_has_died_after_its_part() -> None:
    machine = TeamMachine(1, 5)
    task = machine.call(2)
    machine.part(task, 1)
    machine.lose(1)
    machine.look(teams.OTHERS_S * 1.1)
    assert [ranks for _, ranks, _ in machine.words] == [(2,)]
    machine.part(task, 2, Outcome.CANCELLED)
    machine.turn()
    assert machine.team(task).ranks == [2, 3]


def test_a_rank_that_only_holds_its_slot_takes_nothing_with_it() -> None:
    machine = TeamMachine(2, 2)
    task = machine.call(3)
    (spare,) = machine.state.workers.keys() - set(machine.team(task).ranks)
    machine.lose(spare)
    machine.all_done(task)
    assert machine.value(task) == "v" and machine.is_free()


def test_ranks_that_had_to_be_killed_have_only_been_stopped() -> None:
    machine = TeamMachine(1, 4)
    task = machine.call(2, walltime_s=1.0)
    machine.look(1.0)
    machine.look(1.0 + machine.state.grace_s)
    machine.lose(1)
    machine.lose(2)
    error = machine.error(task)
    assert isinstance(error, AppTimeout) and "it ran longer than its walltime" in str(error)
    assert machine.is_free() and not machine.state.losses


def test_a_call_that_loses_one_rank_after_the_other_is_the_cause() -> None:
    machine = TeamMachine(1, 10)
    task = machine.call(2)
    for _ in range(from_workers.LOSSES_TOLERATED + 1):
        victim, other = machine.team(task).ranks
        machine.lose(victim)
        machine.part(task, other, Outcome.CANCELLED)
        machine.turn()
    error = machine.error(task)
    assert isinstance(error, WorkerLost) and "lost its worker 4 times" in str(error) and machine.is_free()


def test_no_communicator_is_a_loss() -> None:
    machine = TeamMachine(1, 2)
    task = machine.call(2)
    machine.part(task, 1, Outcome.LOST)
    machine.look(0.1)
    assert machine.words == [(1, (2,), False)]
    machine.part(task, 2, Outcome.LOST)
    assert machine.state.tasks[task].attempt == 2 and machine.state.losses == {task: 1} and machine.is_free()


def test_a_call_that_no_node_can_hold_any_more_is_spread_over_others() -> None:
    machine = TeamMachine(0)
    rank = 0
    for node, slots in (("big", 4), ("a", 2), ("b", 2)):
        for _ in range(slots):
            rank += 1
            from_workers.on_hello(machine.state, rank, hello(rank, node))
    task = machine.call(4)
    assert {machine.state.workers[rank].node for rank in machine.team(task).ranks} == {"big"}
    waiting = machine.submit(2, kind=Kind.TOGETHER, ranks=4)
    machine.lose(4)
    for rank in (1, 2, 3):
        machine.part(task, rank, Outcome.CANCELLED)
    machine.turn()
    first = next(iter(machine.state.teams))
    assert {machine.state.workers[rank].node for rank in machine.team(first).ranks} == {"a", "b"}
    for _ in range(3):
        running = next(iter(machine.state.teams))
        machine.all_done(running)
        machine.turn()
    assert [machine.value(one) for one in (task, *waiting)] == ["v"] * 3 and machine.is_free()


# ---- requests and runs ----------------------------------------------------------------------------------------


SHAPES = st.lists(
    st.builds(NodeShape, st.integers(1, 3), st.integers(1, 6), st.sampled_from([0, 100, 300]), st.integers(0, 2)), min_size=0, max_size=4
)


@given(st.integers(1, 20), SHAPES, st.sampled_from([None, 1, 200]), st.integers(0, 2))
def test_ranks_go_to_equal_shares_of_as_few_nodes_as_can_be_or_to_whole_nodes(ranks: int, nodes: list[NodeShape], memory: int | None, gpus: int) -> None:
    spec = AppSpec(app=0, name="f", function=b"f", kind=Kind.TOGETHER, ranks=ranks, memory_bytes=memory, gpus=gpus)
    request = request_of(spec, nodes)
    assert request is not None
    each = [node for node in nodes for _ in range(node.count)]
    each = [node for node in each if node.gpus >= gpus and (not node.memory_bytes or node.memory_bytes >= (memory or 0))]
    possible = [
        (count, size)
        for count in range(1, ranks + 1)
        for size in range(1, ranks + 1)
        if count * size >= ranks and sum(node.slots >= size for node in each) >= count
    ]
    assert (impossible("f", request, nodes) is None) == (sum(node.slots for node in each) >= ranks)
    assert request.whole == (not possible and sum(node.slots for node in each) >= ranks)
    if possible:
        assert (request.nodes, request.cores) == min(possible)
    elif request.whole:  # any so many nodes of at least so many slots will do
        slots = sorted(node.slots for node in each if node.slots >= request.cores)
        assert sum(slots[: request.nodes]) >= ranks > sum(slots[: request.nodes - 1])


@given(st.lists(st.integers(0, 30), unique=True))
def test_runs(ranks: list[int]) -> None:
    assert from_runs(as_runs(ranks)) == ranks


def test_neighbours_are_one_run() -> None:
    assert as_runs(range(5, 10_000)) == [5, 9995] and as_runs([4, 5, 6, 2]) == [4, 3, 2, 1]
