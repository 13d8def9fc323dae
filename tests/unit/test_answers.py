"""When the manager's loop tells a client of outcomes, on a clock that the test turns."""

from __future__ import annotations

from exex.manager.loop import ANSWER_S
from exex.protocol import codec
from exex.protocol.messages import Answer, AppSpec, Assign, Done, Outcome, Submit
from tests.unit.test_the_end import Job


class Chain(Job):
    """A worker of one slot, and a chain of three tasks, of which the client knows."""

    def __init__(self) -> None:
        super().__init__()
        self.hello()
        self.said()
        app = AppSpec(app=0, name="f", function=b"d")
        needs = {1: [0], 2: [1]}
        message = Submit(first=0, apps=[app], functions={b"d": b""}, calls=[0], payloads=[b""] * 3, needs=needs, given={}, answered=0)
        self.client.send(0, self.encoder.encode(message))
        self.loop.turn()
        self.calls = codec.to_worker()

    def run(self, outcome: Outcome = Outcome.DONE) -> None:
        """The worker runs what it was assigned."""
        assign = self.calls.decode(self.worker.receive()[1])
        assert type(assign) is Assign
        done = Done(tasks=assign.tasks, outcomes=bytes([outcome]), payloads=[b"v"], seconds=[1e-5], started=[])
        self.worker.send(0, self.encoder.encode(done))
        self.loop.turn()

    def answered(self) -> list[int]:
        tasks = []
        while (arrived := self.client.receive()) is not None:
            message = self.decoder.decode(arrived[1])
            assert type(message) is Answer
            tasks += message.tasks
        return tasks


def test_what_only_others_waited_for_is_held_back_until_the_last() -> None:
    job = Chain()
    job.run()
    job.run()
    assert job.answered() == [] and job.loop.next_s() == ANSWER_S
    job.run()
    assert job.answered() == [0, 1, 2] and job.loop.next_s() > ANSWER_S


def test_but_not_for_long() -> None:
    job = Chain()
    job.run()
    assert job.answered() == []
    job.now_s += 2 * ANSWER_S
    job.loop.turn()
    assert job.answered() == [0]


def test_a_failure_is_told_at_once() -> None:
    job = Chain()
    job.run()
    job.run(Outcome.FAILED)
    assert job.answered() == [0, 1, 2]
