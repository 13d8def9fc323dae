"""The manager's loop when the allocation ends, on a clock that the test turns."""

from __future__ import annotations

from exex.manager.loop import QUIET_S, ManagerLoop, Settings
from exex.protocol import codec
from exex.protocol.messages import AppSpec, Attach, Hello, JobEnds, Submit, Welcome
from exex.transport.memory import Network

CLIENT = 7


class Job:
    """A manager with one client and one worker, who says Hello when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        workers, clients = Network(), Network()
        settings = Settings("1", "3.11.0", 0, frozenset([1]), "run", 1e9, 1e9, 0.005)
        self.loop = ManagerLoop(settings, workers.end(0), None, lambda: None, clock=lambda: self.now_s)
        self.loop.listen(clients.end(0))
        self.worker, self.client = workers.end(1), clients.end(CLIENT)
        self.encoder, self.decoder = codec.Encoder(), codec.to_client()
        self.client.send(0, self.encoder.encode(Attach(version="1", pid=1, title="t")))

    def hello(self) -> None:
        message = Hello(version="1", python="3.11.0", node="n", pid=1, slots=1, error="", times_s=[])
        self.worker.send(0, self.encoder.encode(message))
        self.loop.turn()

    def submit(self, walltime_s: float) -> None:
        app = AppSpec(app=0, name="f", function=b"d", walltime_s=walltime_s)
        message = Submit(first=0, apps=[app], functions={b"d": b""}, calls=[0], payloads=[b""], needs={}, given={}, answered=0)
        self.client.send(0, self.encoder.encode(message))
        self.loop.turn()

    def said(self) -> list[type]:
        said = []
        while (arrived := self.client.receive()) is not None:
            said.append(type(self.decoder.decode(arrived[1])))
        return said


def test_what_does_not_fit_waits_a_moment_for_what_does() -> None:
    job = Job()
    job.hello()
    job.now_s += 100.0  # nothing has run for long when the end becomes known
    job.loop.notice(30.0, "SIGTERM", sooner=True)
    job.submit(walltime_s=60.0)
    assert job.loop.state.shelved == 1 and not job.loop.out_of_time
    job.now_s += QUIET_S
    job.loop.turn()
    assert job.loop.out_of_time and job.said() == [Welcome, JobEnds]


def test_a_client_that_was_not_welcomed_yet_is_told_of_the_end() -> None:
    job = Job()
    job.loop.turn()
    job.loop.set_end(5.0)
    job.now_s += 5.0
    job.loop.turn()
    assert job.loop.out_of_time and job.said() == [JobEnds]
