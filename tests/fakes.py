"""A manager with its only worker, in a thread of the test's own process. What it may not be asked, it complains about."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exex.client import session
from exex.errors import WorkerLost
from exex.files import arrivals
from exex.protocol import codec
from exex.protocol import payload as payloads
from exex.protocol.messages import (
    Answer,
    Applied,
    AppSpec,
    Attach,
    Brought,
    Cancel,
    Finish,
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
from exex.protocol.payload import Large, Stored
from exex.store.node_store import NodeStore
from exex.transport.base import GONE
from exex.transport.stream import StreamLink
from exex.version import __version__


@contextmanager
def shaken() -> Iterator[None]:
    """Threads take turns after microseconds: what can come between two steps does."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(2e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)


class FakeTask:
    def __init__(self, tid: int, spec: AppSpec | None, payload: Any) -> None:
        self.tid = tid
        self.spec = spec
        self.payload = payload
        self.values: list[Any] = []
        self.open_needs = 0
        self.dependents: list[tuple[FakeTask, int]] = []
        self.attempt = 1


class FakeManager(threading.Thread):
    """Runs calls in order, one at a time, as soon as their needs are there, unless their app is held.

    Attributes:
        received: every message.
        complaints: what a real manager would take for an error of the client.
        options: of each task that was run with options, by task.
        ran: numbers of the tasks that were run, in order.
        kept: stored payloads that the client may name, by name; `far`: frames of those that are on another node.
    """

    def __init__(
        self, slots: int = 2, batch: int = 1000, version: str = __version__, run_dir: str = "/runs/000", nodes: Any = (),
        store: NodeStore | None = None, keep_bytes: int = 0
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self.received: list[Any] = []
        self.complaints: list[str] = []
        self.options: dict[int, dict[str, Any]] = {}
        self.ran: list[int] = []
        self.kept: dict[str, Stored] = {}
        self.far: dict[str, Large] = {}
        self.released: set[str] = set()
        self.keeps_far = False  # new values are stored on another node
        self._store, self._keep_bytes = store, keep_bytes
        self.finished = threading.Event()
        self._slots, self._batch, self._version, self._run_dir = slots, batch, version, run_dir
        self._nodes = list(nodes)
        self._ours, theirs = socket.socketpair()
        self.client_link = StreamLink(theirs)
        self._link = StreamLink(self._ours)
        self._encoder, self._decoder = codec.Encoder(), codec.from_client()
        self._bell_read, self._bell_write = os.pipe()
        self._lock = threading.RLock()
        self._held: set[str] = set()
        self._apps: dict[int, AppSpec] = {}
        self._functions: dict[bytes, Any] = {}
        self._loaded: dict[bytes, Any] = {}
        self.tasks: dict[int, FakeTask] = {}
        self._ready: deque[FakeTask] = deque()
        self._kept: dict[int, tuple[int, Any]] = {}
        self._unapplied: deque[tuple[int, list[int]]] = deque()
        self._sequence = 0
        self._out: list[tuple[int, int, Any, list[int]]] = []
        self._running: list[int] = []
        self._end: str | None = None

    # ---- for tests -------------------------------------------------------------------------------------------------

    def hold(self, *names: str) -> None:
        """Do not run tasks of these apps."""
        with self._lock:
            self._held.update(names)

    def release(self, *names: str) -> None:
        """Run them."""
        with self._lock:
            self._held.difference_update(names)
        self._ring()

    def report_started(self, *tids: int) -> None:
        """Tell the client that these tasks run."""
        with self._lock:
            self._running.extend(tids)
        self._ring()

    def end(self, reason: str | None) -> None:
        """End the job: with a JobEnds, or (None) as when the manager dies."""
        with self._lock:
            self._end = "" if reason is None else reason or "the job ends"
        self._ring()

    def told(self, cls: type) -> list[Any]:
        """Messages of one kind that have arrived."""
        return [message for message in list(self.received) if isinstance(message, cls)]

    def until(self, condition: Any, timeout_s: float = 20.0) -> Any:
        """Wait for a condition about what has arrived."""
        give_up_s = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < give_up_s, "it never became true"
            time.sleep(0.001)
        return value

    def close(self) -> None:
        """End the thread, if it has not ended, and close its descriptors."""
        self.finished.wait(20.0)  # what the client says last should have been heard
        self.end(None)
        self.join(20.0)
        os.close(self._bell_read)
        os.close(self._bell_write)
        self._bell_write = -1

    # ---- the thread ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._serve()
        finally:
            self._link.close()
            self.finished.set()

    def _serve(self) -> None:
        while True:
            busy = self._link.progress()
            select.select([self._link, self._bell_read], [], [], 0.001 if busy else 0.2)
            with self._lock:
                if self._end is not None:
                    if self._end:
                        self._send(JobEnds(reason=self._end))
                        while self._link.progress():
                            pass
                    return
                while (received := self._link.receive()) is not None:
                    if received[1] is GONE:
                        return
                    message = self._decoder.decode(received[1])
                    self.received.append(message)
                    try:
                        self._on(message)
                    except Exception as error:
                        self.complaints.append(f"{type(error).__name__}: {error}")
                self._run_ready()
                self._answer()
            if select.select([self._bell_read], [], [], 0)[0]:
                os.read(self._bell_read, 1000)

    def _ring(self) -> None:
        if self._bell_write >= 0:
            os.write(self._bell_write, b"!")

    def _send(self, message: Any) -> None:
        try:
            self._link.send(0, self._encoder.encode(message))
        except ConnectionError:
            pass

    def _on(self, message: Any) -> None:
        if isinstance(message, Attach):
            self._send(
                Welcome(
                    self._version, 0, 4711, 1, self._slots, self._run_dir, self._nodes,
                    store=self._store.directory if self._store else "/nowhere", keep_bytes=self._keep_bytes,
                )
            )
        elif isinstance(message, Submit):
            self._on_submit(message)
        elif isinstance(message, Promise):
            for tid in range(message.first, message.first + message.count):
                self._new(FakeTask(tid, None, None))
        elif isinstance(message, Fulfil):
            for tid, outcome, value in zip(message.tasks, message.outcomes, message.payloads, strict=True):
                task = self.tasks[tid]
                assert task.spec is None, f"task {tid} is no promise"
                assert outcome in (Outcome.DONE, Outcome.FAILED)
                if isinstance(value, Stored):
                    self.kept[value.name] = value
                self._finish(task, outcome, value)
        elif isinstance(message, Cancel):
            for tid in message.tasks:
                if tid in self.tasks:
                    self._finish(self.tasks[tid], Outcome.CANCELLED, b"")
        elif isinstance(message, Verdict):
            task = self.tasks.get(message.task)
            if task is not None:
                if message.retry:
                    task.attempt += 1
                    self._ready.append(task)
                else:
                    self._finish(task, Outcome.FAILED, message.payload)
        elif isinstance(message, Applied):
            self._applied(message.answered)
        elif isinstance(message, Finish):
            self.finished.set()
        elif isinstance(message, Want):
            for name in message.names:
                self._bring(name, message.here)
        elif isinstance(message, Release):
            for name in message.names:
                known = self.kept.pop(name, None) or name in self.released  # the answer of a promise may cross
                assert known, f"{name} is released, and was not named"
                self.released.add(name)
        elif isinstance(message, Spread):
            assert self._store is not None and self._store.has(message.payload.name)
            self.kept[message.payload.name] = message.payload

    def _bring(self, name: str, here: bool) -> None:
        assert name in self.kept, f"{name} is wanted, and was released"
        large = self.far.get(name)
        if large is None:
            error = payloads.dump_error(WorkerLost(f"the value {name} is lost"), "")
            self._send(Brought(name, Outcome.FAILED, error))
        elif here and self._store is not None:
            self._send(Brought(name, Outcome.DONE, self._store.write(name, large.frames)))
        else:
            self._send(Brought(name, Outcome.DONE, large))

    def _keep(self, task: FakeTask, value: Any) -> Any:
        """A large value as it is sent."""
        if not self._keep_bytes or len(value) < self._keep_bytes or type(value) is not Large:
            return value
        name = f"t{task.tid}.{task.attempt}"
        if self._store is None or self.keeps_far:
            self.far[name] = Large([bytes(frame) for frame in value.frames])
            self.kept[name] = Stored(name, [memoryview(frame).nbytes for frame in value.frames])
        else:
            self.kept[name] = self._store.write(name, value.frames)
        return self.kept[name]

    def open(self, payload: Any) -> Any:
        """The bytes of what may be stored."""
        if not isinstance(payload, Stored):
            return payload
        return self.far[payload.name] if payload.name in self.far else self._store.map(payload)

    def _applied(self, sequence: int) -> None:
        assert sequence <= self._sequence
        while self._unapplied and self._unapplied[0][0] <= sequence:
            for tid in self._unapplied.popleft()[1]:
                self._kept.pop(tid, None)

    def _new(self, task: FakeTask) -> None:
        assert task.tid not in self.tasks, f"task {task.tid} exists"
        self.tasks[task.tid] = task

    def _on_submit(self, message: Submit) -> None:
        self._applied(message.answered)
        for digest, function in message.functions.items():
            assert digest not in self._functions, "a function was sent twice"
            self._functions[digest] = function
        for spec in message.apps:
            assert spec.app not in self._apps and spec.function in self._functions
            self._apps[spec.app] = spec
        count = len(message.payloads)
        assert count and len(message.calls) in (1, count)
        for i in range(count):
            spec = self._apps[message.calls[i if len(message.calls) > 1 else 0]]
            task = FakeTask(message.first + i, spec, message.payloads[i])
            self._new(task)
            needs = message.needs.get(i, [])
            given = message.given.get(i, {})
            task.values = [None] * len(needs)
            failed = None
            for place, need in enumerate(needs):
                if place in given:
                    assert need < 0
                    task.values[place] = given[place]
                elif need in self.tasks:
                    self.tasks[need].dependents.append((task, place))
                    task.open_needs += 1
                else:
                    assert need in self._kept, f"task {task.tid} needs {need}, which is unknown"
                    outcome, value = self._kept[need]
                    if outcome == Outcome.DONE:
                        task.values[place] = value
                    else:
                        failed = (need, value)
            if failed is not None:
                self._finish(task, Outcome.NEED_FAILED, failed[1], [failed[0]])
            elif not task.open_needs:
                self._ready.append(task)

    def _finish(self, task: FakeTask, outcome: int, payload: Any, causes: list[int] | None = None) -> None:
        ended = deque([(task, outcome, payload, causes or [])])
        while ended:
            task, outcome, payload, causes = ended.popleft()
            if self.tasks.pop(task.tid, None) is None:
                continue
            if outcome == Outcome.CANCELLED:
                payload = payloads.dump_error(RuntimeError("cancelled"), "")
            else:
                self._kept[task.tid] = (outcome, payload)
                self._out.append((task.tid, outcome, payload, causes))
            for dependent, place in task.dependents:
                if dependent.tid not in self.tasks:
                    continue
                if outcome != Outcome.DONE:
                    ended.append((dependent, Outcome.NEED_FAILED, payload, [task.tid]))
                    continue
                dependent.values[place] = payload
                dependent.open_needs -= 1
                if not dependent.open_needs:
                    self._ready.append(dependent)

    def _run_ready(self) -> None:
        waiting: deque[FakeTask] = deque()
        ran = 0
        while self._ready and ran < self._batch:
            task = self._ready.popleft()
            if task.tid not in self.tasks:
                continue
            assert task.spec is not None
            if task.spec.name in self._held:
                waiting.append(task)
                continue
            ran += 1
            outcome, payload = self._execute(task, task.spec)
            if outcome == Outcome.FAILED and task.spec.asks:
                self._out.append((task.tid, Outcome.ASK, payload, []))
            elif outcome == Outcome.FAILED and task.attempt <= task.spec.retries:
                task.attempt += 1
                self._ready.append(task)
            else:
                self._finish(task, outcome, payload)
        if self._ready:
            self._ring()
        self._ready.extendleft(reversed(waiting))

    def _execute(self, task: FakeTask, spec: AppSpec) -> tuple[int, Any]:
        self.ran.append(task.tid)
        try:
            if spec.function not in self._loaded:
                self._loaded[spec.function] = payloads.load(self._functions[spec.function])
            function = self._loaded[spec.function]
            call = payloads.load_call(self.open(task.payload), [self.open(value) for value in task.values])
            if arrivals.pending:
                arrivals.complete()
            payloads.forget_shared(lambda name: False)  # the next manager's have the same names
            if len(call) == 3:
                self.options[task.tid] = call[2]
            if spec.kind == Kind.MAP:
                value = _run_rows(function, call[0])
            else:
                value = function(*call[0], **call[1])
                if spec.kind == Kind.BASH:
                    value = 0
            return Outcome.DONE, self._keep(task, payloads.dump(value)) if not spec.sends_value else payloads.dump(value)
        except BaseException as error:
            where = f"task {task.tid} ({spec.name}) on rank 1 at fake, attempt {task.attempt}"
            return Outcome.FAILED, payloads.dump_error(error, where)

    def _answer(self) -> None:
        if not self._out and not self._running:
            return
        self._sequence += 1
        out, self._out = self._out, []
        started, self._running = self._running, []
        self._unapplied.append((self._sequence, [tid for tid, outcome, _, _ in out if outcome != Outcome.ASK]))
        self._send(
            Answer(
                sequence=self._sequence,
                tasks=[tid for tid, _, _, _ in out],
                outcomes=bytes(outcome for _, outcome, _, _ in out),
                payloads=[payload for _, _, payload, _ in out],
                causes={i: causes for i, (_, _, _, causes) in enumerate(out) if causes},
                started=started,
            )
        )


def _run_rows(function: Any, columns: tuple[Any, ...]) -> tuple[list[Any], Any, float]:
    values: list[Any] = []
    began_s = time.perf_counter()
    error = None
    try:
        for row in zip(*columns, strict=True):
            values.append(function(*row))
    except BaseException as failure:
        error = payloads.dump_error(failure, f"row {len(values)}")
    return values, error, time.perf_counter() - began_s


class Job:
    """A session with a fake manager; a context manager for tests."""

    def __init__(self, manager: FakeManager | None = None, **settings: Any) -> None:
        self.manager = manager or FakeManager()
        self._settings = session.Settings(**settings)

    def __enter__(self) -> FakeManager:
        self.manager.start()
        session.start(self.manager.client_link, self._settings)
        return self.manager

    def __exit__(self, *error: object) -> None:
        session.finish(cancel=error[0] is not None)
        self.manager.close()
        if error[0] is None:
            assert self.manager.complaints == [], self.manager.complaints
