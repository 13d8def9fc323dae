"""Big tasks that tasks make, where tasks that wait keep what they ask for."""

from __future__ import annotations

from typing import Any

import pytest

from exex.errors import InvalidResourceSpecification
from exex.manager import from_clients, nesting, standstill
from exex.manager.inner import Inner
from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Attach, FromTasks, Outcome, Submit
from tests.unit.test_packing import GIB, Machine


class Process:
    """The task process of a task of this machine, as a client."""

    def __init__(self, machine: Machine, task: int) -> None:
        self.machine, self.state, self.task = machine, machine.state, task
        inner = Inner(machine.began[task])
        self.client = from_clients.on_attach(self.state, Attach(version="1", pid=0, title="task"), inner=inner)
        self.next = 0

    def make(self, **spec: Any) -> int:
        """A task of this task."""
        app = AppSpec(app=self.next, name="child", function=b"d", **spec)
        assert nesting.on_said(self.state, self.client, self.task)
        from_clients.on_submit(self.state, self.client, Submit(self.next, [app], {b"d": b"code"}, [self.next], [b""], {}, {}, 0))
        child = self.client.base + self.next
        self.next += 1
        standstill.end_impossible(self.state, self.client, [child])
        self.state.check()
        self.machine.turn()
        return child

    def wait(self) -> None:
        moves = FromTasks([], [], [], waiting=[self.task])
        nesting.on_moves(self.state, self.machine.began[self.task], moves)
        self.machine.turn()

    def error(self, child: int) -> str:
        """With which a child has failed; "" if it has not."""
        if child in self.state.tasks:
            return ""
        place = self.client.tasks.index(child)
        assert self.client.outcomes[place] == Outcome.FAILED
        error = payloads.load(self.client.payloads[place])
        assert isinstance(error, InvalidResourceSpecification)
        return str(error)


@pytest.mark.parametrize(
    ("parent", "child", "key"),
    [
        ({"gpus": 1}, {"gpus": 1}, "gpus"),
        ({"memory_bytes": 3 * GIB}, {"memory_bytes": 2 * GIB}, "memory"),
        ({"nodes": 1}, {"nodes": 1}, "nodes"),
        ({"nodes": 1}, {"nodes": 1, "cores": 1, "exclusive": True}, "nodes"),
    ],
)
def test_what_a_task_above_keeps_can_never_be_had(parent: dict[str, Any], child: dict[str, Any], key: str) -> None:
    machine = Machine(1, 4, memory_gib=4, gpus=1)
    (task,) = machine.submit(name="above", **parent)
    process = Process(machine, task)
    error = process.error(process.make(**child))
    assert error.startswith(f"invalid resource specification ['{key}']. task 1.0 (child) asks for 1 "), error
    assert "but task 0 (above), which made it, will keep what is missing until it ends, also while it waits" in error


def test_what_tasks_further_above_keep_counts() -> None:
    machine = Machine(1, 4, gpus=2)
    (top,) = machine.submit(gpus=1)
    first = Process(machine, top)
    below = first.make(gpus=1)
    second = Process(machine, below)
    assert "task 0 (f) and task" not in second.error(second.make()), "a small one runs"
    assert "task 1.0 (child) and task 0 (f), which made it, will keep" in second.error(second.make(gpus=1))


@pytest.mark.parametrize(
    ("machine", "parent", "child"),
    [
        (Machine(2, 4, gpus=1), {"gpus": 1}, {"gpus": 1}),
        (Machine(1, 4, gpus=2), {"gpus": 1}, {"gpus": 1}),
        (Machine(1, 4, memory_gib=4), {"memory_bytes": 2 * GIB}, {"memory_bytes": 2 * GIB}),
        (Machine(1, 4), {"cores": 4}, {"cores": 4}),  # it gives its slots away
        (Machine(2, 4), {"nodes": 1}, {"nodes": 1}),
    ],
)
def test_what_is_left_over_can_be_had(machine: Machine, parent: dict[str, Any], child: dict[str, Any]) -> None:
    (task,) = machine.submit(**parent)
    process = Process(machine, task)
    made = process.make(**child)
    process.wait()
    assert not process.error(made) and made in machine.began


def test_trees_that_wait_for_each_other_do_not_stand_still_for_ever() -> None:
    machine = Machine(2, 4, gpus=1)
    processes = [Process(machine, task) for task in machine.submit(2, gpus=1)]
    made = [process.make(gpus=1) for process in processes]
    for process in processes:
        process.wait()
    state = machine.state
    for now_s in (100.0, 100.0 + 0.9 * standstill.STANDSTILL_S):
        state.now_s = now_s
        standstill.look(state)
    assert made[0] in state.tasks and made[1] in state.tasks
    state.now_s = 100.0 + standstill.STANDSTILL_S
    standstill.look(state)
    standstill.look(state)
    errors = [process.error(child) for process, child in zip(processes, made)]
    (error,) = filter(None, errors)
    assert "all that runs has waited for a while, and tasks that wait keep what is missing" in error
    state.check()


def test_nobody_is_failed_while_something_runs() -> None:
    machine = Machine(2, 4, gpus=1)
    one, other = [Process(machine, task) for task in machine.submit(2, gpus=1)]
    made = one.make(gpus=1)
    one.wait()
    for now_s in (100.0, 1000.0):
        machine.state.now_s = now_s
        standstill.look(machine.state)
    assert made in machine.state.tasks and other.task in machine.state.tasks
