"""A played client: submits a random graph, cancels some of it, and checks every answer.

The graph comes from a random generator of its own, so that the script of a job that was killed makes the same calls again.
A call's payload says what its value is: its salt plus the sum of its needs' values, but for those that are left out. Cached
calls with equal payloads and values are equal calls, also across clients.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exex.protocol import codec
from exex.protocol.checks import KEY_BYTES
from exex.protocol.messages import (
    CLIENT_SHIFT,
    Answer,
    Applied,
    AppSpec,
    Attach,
    Brought,
    CacheKey,
    Cancel,
    Checkpoint,
    Checkpointed,
    Fulfil,
    JobEnds,
    Kind,
    Outcome,
    Promise,
    Release,
    Spread,
    Submit,
    Verdict,
    Want,
    Welcome,
)
from exex.protocol.payload import Stored
from exex.transport.base import Link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.sim.simulation import Simulation

MANAGER = 0
CLIENT_BASE = 1000
FUNCTION = b"f" * 16
CODE = b"code"
MEMORY_BYTES = 1000
LIMIT_S = 0.3
APPS = [
    AppSpec(app=0, name="plain", function=FUNCTION, retries=0),
    AppSpec(app=1, name="retried", function=FUNCTION, retries=2, priority=-1),
    AppSpec(app=2, name="asked", function=FUNCTION, asks=True),
    AppSpec(app=3, name="limited", function=FUNCTION, walltime_s=LIMIT_S, retries=1),
    AppSpec(app=4, name="small", function=FUNCTION, retries=1, memory_bytes=MEMORY_BYTES),
    AppSpec(app=5, name="long", function=FUNCTION, walltime_s=10 * LIMIT_S),
    AppSpec(app=6, name="two cores", function=FUNCTION, cores=2),
    AppSpec(app=7, name="three cores", function=FUNCTION, cores=3, walltime_s=LIMIT_S, retries=1),
    AppSpec(app=8, name="accelerated", function=FUNCTION, gpus=1, retries=1),
    AppSpec(app=9, name="much accelerated", function=FUNCTION, cores=2, gpus=2, memory_bytes=MEMORY_BYTES),
    AppSpec(app=10, name="node", function=FUNCTION, nodes=1, asks=True),
    AppSpec(app=11, name="gang", function=FUNCTION, nodes=2, retries=1),
    AppSpec(app=12, name="partial gang", function=FUNCTION, nodes=2, cores=1, gpus=1, priority=-1),
    AppSpec(app=13, name="alone", function=FUNCTION, nodes=1, cores=1, exclusive=True, walltime_s=10 * LIMIT_S),
    AppSpec(app=14, name="pair", function=FUNCTION, kind=Kind.TOGETHER, ranks=2),
    AppSpec(app=15, name="trio", function=FUNCTION, kind=Kind.TOGETHER, ranks=3, walltime_s=LIMIT_S, retries=1),
    AppSpec(app=16, name="four", function=FUNCTION, kind=Kind.TOGETHER, ranks=4, asks=True, priority=-1),
    AppSpec(app=17, name="accelerated pair", function=FUNCTION, kind=Kind.TOGETHER, ranks=2, gpus=1, retries=2, walltime_s=10 * LIMIT_S),
    AppSpec(app=18, name="pair apart", function=FUNCTION, kind=Kind.TOGETHER, ranks=2, own_world=True, walltime_s=LIMIT_S),
]
SMALL_APPS, BIG_APPS = 6, 14
"""Those before the first number ask for one slot, those before the second for more; the others for ranks."""
OUTPUTS = ["/"]  # exists

Identity = tuple[bytes, tuple[tuple[int, bytes], ...]]
"""What equal calls have in common: the payload, and (place, value) of each need that counts."""


def make_payload(salt: int, ignored: Sequence[int], is_cached: bool, has_outputs: bool) -> bytes:
    """The arguments of a call."""
    return f"{salt}|{','.join(map(str, ignored))}|{'c' * is_cached}{'o' * has_outputs}".encode()


def identity_of(payload: bytes, values: Sequence[object] | None) -> Identity:
    """What a call computes; see `Identity`."""
    ignored = {int(place) for place in payload.split(b"|")[1].split(b",") if place}
    counts = tuple((place, bytes(value)) for place, value in enumerate(values or ()) if place not in ignored)  # type: ignore[call-overload]
    return payload, counts


def is_cached(payload: bytes) -> bool:
    """Whether a call has a key."""
    return b"c" in payload


def has_outputs(payload: bytes) -> bool:
    """Whether a recorded result counts only if a file exists."""
    return payload.endswith(b"o")


def value_of(identity: Identity) -> int:
    """The only right result of a call."""
    payload, counts = identity
    return int(payload.split(b"|")[0]) + sum(int(value) for _, value in counts)


@dataclass
class _Planned:
    """A line of the script."""

    app: int  # -1: a promise
    needs: list[int]
    salt: int
    ignored: list[int]
    is_cached: bool
    has_outputs: bool


def _write_script(rng: random.Random, tasks: int, cache_rate: float, big_rate: float, team_rate: float) -> list[_Planned]:
    script: list[_Planned] = []
    app = 0
    for number in range(tasks):
        if rng.random() < 0.7:
            app = rng.randrange(SMALL_APPS, BIG_APPS) if rng.random() < big_rate else rng.randrange(SMALL_APPS)
            if team_rate and rng.random() < team_rate:
                app = rng.randrange(BIG_APPS, len(APPS))
        needs = [rng.randrange(number) for _ in range(rng.choice([0, 0, 1, 2, 3]))] if number else []
        cached = rng.random() < cache_rate
        salt = rng.choice([1, 2, 100 + number])
        ignored = [place for place in range(len(needs)) if cached and rng.random() < 0.1]
        planned = _Planned(app, needs, salt, ignored, cached, cached and rng.random() < 0.15)
        if rng.random() < 0.07:
            planned = _Planned(-1, [], 1, [], False, False)
        script.append(planned)
    return script


class SimClient:
    """See the module docstring.

    Attributes:
        ended: it was told that the job ends.
        known_as: its number to the manager.
    """

    def __init__(self, sim: Simulation, number: int, tasks: int) -> None:
        self.sim, self.number, self.total = sim, number, tasks
        self.script = _write_script(random.Random(f"{sim.seed} script {number}"), tasks, sim.cache_rate, sim.big_rate, sim.team_rate)
        self.link: Link = sim.network.end(CLIENT_BASE + number)
        self.encoder, self.decoder = codec.Encoder(), codec.to_client()
        self.next, self.applied = 0, 0
        self.welcomed = False
        self.gone = False
        self.ended = False
        self.named_apps = False
        self.known_as = -1
        self.needs: dict[int, list[int]] = {}
        self.payloads: dict[int, bytes] = {}
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.cancelled: set[int] = set()
        self.promises: set[int] = set()
        self.asked = 0
        self.checkpoints: dict[int, set[Identity]] = {}  # what was done when each was asked for
        self.done: set[Identity] = set()
        self.stored: dict[str, Stored] = {}  # that it may name
        self.spread: dict[int, Stored] = {}  # by the number, below 0, that stands for it among the needs
        self.wanted: set[str] = set()
        self.put = 0
        self.send(Attach(version="1", pid=number, title="sim", python="3.11.0", name=f"c{number}"))

    def send(self, message: object) -> None:
        self.link.send(MANAGER, self.encoder.encode(message))

    def left(self) -> int:
        """Tasks that are neither answered nor cancelled, submitted or not."""
        if self.gone or self.ended:
            return 0
        return self.total - len(self.answers.keys() | self.cancelled)

    def knows(self) -> bool:
        """Whether it need not be told any more that the job ends."""
        return self.gone or self.ended

    def is_waiting(self) -> bool:
        """Whether something of it is still to come."""
        waits = self.left() or self.promises or self.checkpoints or self.stored or self.wanted
        return not self.gone and not self.ended and bool(waits)

    def act(self) -> None:
        """One random thing that a client may do now."""
        if self.gone:
            return
        while (arrived := self.link.receive()) is not None:
            self._apply(self.decoder.decode(arrived[1]))
        rng = self.sim.rng
        if not self.welcomed or self.ended:
            return
        choice = rng.random()
        if self.next < self.total and choice < 0.6:
            self._submit(rng.randint(1, 8))
        elif self.promises and choice < 0.8:
            self._fulfil(self.promises.pop())
        elif choice < 0.83 and self.left():
            self.asked += 1
            self.send(Checkpoint(number=self.asked))
            self.checkpoints[self.asked] = set(self.done)
        elif choice < 0.87 and (self.stored or self.sim.data_rate) and self.welcomed:
            self._act_on_stored()
        elif choice > 0.92 and self.sim.cancel_rate > rng.random():
            open_tasks = [
                t for t in range(self.next) if t not in self.answers and t not in self.cancelled and t not in self.promises
            ]
            if open_tasks:
                rare = [t for t in open_tasks if self.sim.is_rare(self.known_as << CLIENT_SHIFT | t)]
                task = rng.choice(rare or open_tasks)
                self.cancelled.add(task)
                self.sim.tell(f"client {self.number} cancels task {task}")
                self.send(Cancel(tasks=[task]))

    def _act_on_stored(self) -> None:
        """Ask for a stored value, let go of some, or let all nodes have one."""
        rng = self.sim.rng
        if self.next < self.total and rng.random() < 0.2 * self.sim.data_rate:
            stored = self._store(b"%d" % rng.randrange(100))
            self.stored[stored.name] = self.spread[-1 - len(self.spread)] = stored
            self.send(Spread(payload=stored))
            return
        names = sorted(self.stored)
        if not names:
            return
        name = rng.choice(names)
        if rng.random() < 0.4 and name not in self.wanted:
            self.wanted.add(name)
            self.send(Want(names=[name], here=rng.random() < 0.5))
        elif name not in self.wanted and (rng.random() < 0.3 or self.next == self.total):
            gone = [name, *(other for other in names[:3] if other not in self.wanted and other != name)]
            for other in gone:
                del self.stored[other]
            self.send(Release(names=gone))

    def _store(self, content: bytes) -> Stored:
        """Put something into the store of rank 0's node."""
        self.put += 1
        return self.sim.data.store(self.sim.data.home).write(f"c{self.known_as}.{self.put}", content)

    def value(self, need: int) -> bytes:
        """Of a task that is done, or what was spread."""
        return self.sim.data.open(self.spread[need] if need < 0 else self.answers[need][1])

    def given(self, need: int) -> object:
        """The same, as a call gets it."""
        payload = self.spread[need] if need < 0 else self.answers[need][1]
        return payload if not isinstance(payload, Stored) or payload.name in self.stored else self.sim.data.open(payload)

    def _submit(self, count: int) -> None:
        first = self.next
        if self.script[first].app < 0:
            self.next += 1
            self.needs[first] = []
            self.promises.add(first)
            self.send(Promise(first=first, count=1))
            return
        count = next((i for i in range(1, count) if first + i >= self.total or self.script[first + i].app < 0), count)
        self.next += count
        needs: dict[int, list[int]] = {}
        given: dict[int, dict[int, object]] = {}
        payloads: list[object] = []
        keys: dict[int, CacheKey] = {}
        for i in range(count):
            planned, task = self.script[first + i], first + i
            chosen = [need for need in planned.needs if need not in self.cancelled]
            if any(self.answers.get(need, (Outcome.DONE,))[0] != Outcome.DONE for need in chosen):
                chosen = []  # a client never sends what has failed: it fails the task itself
            alive = [number for number, stored in self.spread.items() if stored.name in self.stored]
            if alive and self.sim.rng.random() < 0.3:
                chosen.append(self.sim.rng.choice(alive))
            self.needs[task] = chosen
            ignored = [place for place in planned.ignored if place < len(chosen)]
            payload = self.payloads[task] = make_payload(planned.salt, ignored, planned.is_cached, planned.has_outputs)
            payloads.append(self._store(payload) if self.sim.rng.random() < self.sim.data_rate / 2 else payload)
            if planned.is_cached:
                partial = hashlib.blake2b(payload, digest_size=KEY_BYTES).digest()
                keys[i] = CacheKey(partial, ignored, OUTPUTS if planned.has_outputs else [])
            if chosen:
                needs[i] = [-1 if need < 0 else -2 - need if need in self.answers else need for need in chosen]
                if known := {place: self.given(need) for place, need in enumerate(chosen) if need < 0 or need in self.answers}:
                    given[i] = known
        rng = self.sim.rng
        affinity = {i: rng.randrange(first + i) for i in range(count) if first + i and rng.random() < self.sim.near_rate}
        calls = [self.script[first + i].app for i in range(count)]
        new = not self.named_apps
        self.named_apps = True
        self.send(
            Submit(
                first=first,
                apps=APPS if new else [],
                functions={FUNCTION: CODE} if new else {},
                calls=calls[:1] if len(set(calls)) == 1 else calls,
                payloads=payloads,
                needs=needs,
                given=given,
                answered=self.applied,
                keys=keys,
                affinity=affinity,
            )
        )

    def _fulfil(self, task: int) -> None:
        failed = self.sim.rng.random() < 0.1
        self.send(Fulfil(tasks=[task], outcomes=bytes([Outcome.FAILED if failed else Outcome.DONE]), payloads=[b"1"]))

    def _apply(self, message: object) -> None:
        if self.ended:
            return  # words that crossed: a real client has closed its stream
        if type(message) is Welcome:
            self.welcomed = True
            self.known_as = message.client
        elif type(message) is Answer:
            for task, outcome, payload in zip(message.tasks, message.outcomes, message.payloads, strict=True):
                if outcome == Outcome.ASK:
                    assert APPS[self.script[task].app].asks
                    self.send(Verdict(task=task, retry=self.sim.rng.random() < 0.7, payload=b"given up"))
                    continue
                assert task not in self.answers, f"task {task} answered twice"
                if isinstance(payload, Stored):
                    self.stored[payload.name] = payload
                    self.answers[task] = (outcome, payload)
                else:
                    self.answers[task] = (outcome, bytes(payload))
                self.sim.tell(f"client {self.number} hears that task {task} is {Outcome(outcome).name}")
                self._check(task, outcome, payload)
            self.applied = message.sequence
            self.send(Applied(answered=self.applied))
        elif type(message) is Checkpointed:
            done = self.checkpoints.pop(message.number)
            if not message.error:
                self.sim.check_saved(done)
        elif type(message) is Brought:
            self.wanted.discard(message.name)
            if message.outcome == Outcome.DONE:
                assert self.sim.data.open(message.payload) == self.sim.data.contents[message.name], "another value was brought"
                is_here = not isinstance(message.payload, Stored) or self.sim.data.store(self.sim.data.home).has(message.payload.name)
                assert is_here or (message.payload.name, self.sim.data.home) in self.sim.data.vanished, "it is not where it was brought to"
            else:
                assert self.sim.may_be_lost(message.name), f"{message.name} is said to be lost: {message.payload!r}"
        elif type(message) is JobEnds:
            self.sim.tell(f"client {self.number} is told: {message.reason}")
            self.ended = True
        else:
            raise AssertionError(message)

    def identity(self, task: int) -> Identity:
        """What a task of which all needs are done computes."""
        return identity_of(self.payloads[task], [self.value(need) for need in self.needs[task]])

    def _check(self, task: int, outcome: int, payload: bytes) -> None:
        if outcome == Outcome.DONE:
            known = [self.answers.get(need) for need in self.needs[task] if need >= 0]
            assert all(answer is not None and answer[0] == Outcome.DONE for answer in known), (
                f"task {task} is done before its needs"
            )
            if self.script[task].app >= 0:
                identity = self.identity(task)
                payload = self.sim.data.open(payload)
                assert int(payload) == value_of(identity), f"task {task} has the value {payload!r}, not {value_of(identity)}"
                if is_cached(identity[0]):
                    self.done.add(identity)
        elif outcome == Outcome.NEED_FAILED:
            bad = [n for n in self.needs[task] if n >= 0 and (n in self.cancelled or self.answers.get(n, (0,))[0] != Outcome.DONE)]
            bad += [n for n in self.needs[task] if self.sim.could_lose_value()]
            assert bad, f"task {task} failed for a need, but none failed"
        elif self.script[task].app >= 0:
            spec = APPS[self.script[task].app]
            number = self.known_as << CLIENT_SHIFT | task
            tried = self.sim.excuses[number]
            shared = is_cached(self.payloads[task]) and self.identity(task) in self.sim.failed_calls
            lost = self.sim.could_lose_value()
            assert tried > spec.retries or shared or lost or number in self.sim.impossible, f"task {task} failed after {tried} attempts of {1 + spec.retries}"

    def vanish(self) -> None:
        """The script is killed."""
        self.sim.tell(f"client {self.number} vanishes")
        self.gone = True
        self.link.close()
