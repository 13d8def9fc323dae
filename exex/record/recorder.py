"""What the manager's loop tells of, for the run record. Runs at rank 0, in the loop's own turns; another process writes the file.

Columns are gathered as they came, over turns; what must be put together per task is put together by the writer. It takes all
results of a block after all assignments of it, so a block ends before what that order would get wrong. A pipe that is full
makes nothing wait: frames are kept, up to a limit, and dropped and counted beyond it.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import structs

from exex.protocol.messages import (
    CLIENT_SHIFT,
    Answer,
    AppSpec,
    Assign,
    Cancel,
    Done,
    Finish,
    Hello,
    Rank,
    Submit,
    TaskId,
)
from exex.record.blocks import Answers, Block, Results, pack, pack_sizes, sizes_of
from exex.record.frames import HEADER, Kind

if TYPE_CHECKING:
    from subprocess import Popen

MOST_WAITING_BYTES = 128 * 1024**2
"""Of frames that the writer has not taken."""

_BATCH_BYTES = 256 * 1024
_BLOCK_TASKS = 1024
"""Of messages that are packed at once, about: few enough that what is packed is still in the processor's caches."""

PAUSE_US = 100_000
"""After which what has gathered is sent, however little it is."""

SAMPLE_US = 50_000
"""Between two samples, at first; later a five thousandth of the time so far."""

_SAMPLES = 5000

Sample = Sequence[int]


class Numbered(Protocol):
    """An app of the manager's."""

    number: int


class Recorder:
    """The manager's side of a run record.

    Args:
        fd: non-blocking pipe to the writer.
        zero_s: time 0 of the record, by `clock`.
        sample: what the columns of `samples` after `longest_us` are now.

    Attributes:
        dropped: messages that are missing in the record.
        repeated: ended tasks that have run once more because their values were lost: what they do then has no rows.
        ready: tasks that have become ready in this turn, one by one: the queue of ready tasks appends them.
    """

    def __init__(
        self,
        fd: int,
        zero_s: float,
        sample: Callable[[], Sample] = tuple,
        *,
        clock: Callable[[], float] = monotonic,
        writer: Popen[bytes] | None = None,
    ) -> None:
        self.sample = sample
        self.dropped = 0
        self.ready: list[TaskId] = []
        self.repeated: Set[TaskId] = frozenset()
        self._fd = fd
        self._zero_s = zero_s
        self._clock = clock
        self._writer = writer
        self._now_us = self._written_us = self._sample_us = 0
        self._parts: list[bytes] = []
        self._part_bytes = 0
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._turns = self._busy_us = self._longest_us = 0
        self._readied, self._assigned, self._results, self._answered = Block(), Block(), Results(), Answers()
        self._blocks = {
            Kind.READY: self._readied,
            Kind.ASSIGN: self._assigned,
            Kind.DONE: self._results,
            Kind.ANSWER: self._answered,
        }
        self._gathered = 0  # tasks in blocks
        self._ends_blocks = False  # with this turn

    # ---- what happens ----

    @property
    def writer_pid(self) -> int:
        """Process that writes."""
        return self._writer.pid if self._writer else 0

    def begin(self, path: str, attributes: dict[str, Any]) -> None:
        """First of all: where the file is to be, and its attributes."""
        self._put(Kind.BEGIN, 0, 0, json.dumps({"path": path, "attributes": attributes}).encode())

    def turn_begins(self, now_s: float) -> None:
        """All that follows happens at this time."""
        self._now_us = int((now_s - self._zero_s) * 1e6)

    def hello(self, rank: Rank, msg: Hello) -> None:
        """A worker is up."""
        times = [*msg.times_s, 0.0, 0.0, 0.0]
        body = {
            "node": msg.node,
            "pid": msg.pid,
            "gpus": len(msg.gpus),
            "memory_bytes": msg.memory_bytes,
            "forked_s": times[0],
            "imported_s": times[1],
            "initialised_s": times[2],
        }
        self._put(Kind.HELLO, rank, msg.slots, json.dumps(body).encode())

    def lost(self, rank: Rank, attempts: int, how: str) -> None:
        """A worker is lost."""
        self._end_blocks()
        self._put(Kind.LOST, rank, attempts, how.encode())

    def made(self, first: TaskId, count: int, parent: TaskId) -> None:
        """The tasks that are submitted next are made by another."""
        self._put(Kind.MADE, first, count, pack("q", [parent]))

    def client_said(self, client: int, msg: object, apps: Mapping[int, Numbered]) -> None:
        """A client's message was taken. `apps` has the manager's apps by the client's numbers."""
        if type(msg) is Submit:
            self._submit(client, msg, apps)
        elif type(msg) is Cancel:
            tasks = [(client << CLIENT_SHIFT) + task for task in msg.tasks]
            self._put(Kind.CANCEL, client, len(tasks), pack("q", tasks))
            self._ends_blocks = True  # they are cancelled with the end of the turn
        elif type(msg) is Finish:
            self._end_blocks()
            self._ends_blocks = True
            self._put(Kind.FINISH, client, int(msg.cancel), b"")

    def _submit(self, client: int, msg: Submit, apps: Mapping[int, Numbered]) -> None:
        first, count = (client << CLIENT_SHIFT) + msg.first, len(msg.payloads)
        for spec in msg.apps:
            self._app(client, spec, apps[spec.app].number)
        self._put(Kind.SUBMIT, first, count, pack_sizes(sizes_of(msg.payloads)) + pack("I", msg.calls))
        if msg.needs:
            lists = msg.needs.values()
            body = pack("I", list(msg.needs)) + pack("I", list(map(len, lists)))
            self._put(Kind.NEEDS, first, len(msg.needs), body + pack("q", list(chain.from_iterable(lists))))

    def _app(self, client: int, spec: AppSpec, number: int) -> None:
        body = {
            "app": number,
            "name": spec.name,
            "kind": spec.kind,
            "priority": spec.priority,
            "retries": spec.retries,
            "cores": spec.cores,
            "gpus": spec.gpus,
            "nodes": spec.nodes,
            "memory_bytes": spec.memory_bytes or 0,
            "walltime_s": spec.walltime_s or 0.0,
        }
        self._put(Kind.APP, client, spec.app, json.dumps(body).encode())

    def assign(self, rank: Rank, msg: Assign) -> None:
        """Attempts were sent to a worker."""
        if self.repeated and not self.repeated.isdisjoint(msg.tasks):
            at = [i for i, task in enumerate(msg.tasks) if task not in self.repeated]
            attempts = {new: msg.attempts[old] for new, old in enumerate(at) if old in msg.attempts}
            msg = structs.replace(msg, tasks=[msg.tasks[i] for i in at], attempts=attempts)
        if msg.attempts:
            self._end_blocks()  # what the attempts before came to
            tasks = [msg.tasks[i] for i in msg.attempts]
            self._put(Kind.AGAIN, rank, len(tasks), pack("q", tasks) + pack("I", list(msg.attempts.values())))
        if self._has_room(len(msg.tasks)):
            self._assigned.add(self._now_us, rank, msg.tasks)

    def done(self, rank: Rank, msg: Done) -> None:
        """Attempts have ended."""
        if self.repeated and not self.repeated.isdisjoint(msg.tasks):
            msg = _without(msg, self.repeated)
        if msg.tasks and self._has_room(len(msg.tasks)):
            self._results.add_done(self._now_us, rank, msg)

    def returned(self, tasks: Sequence[TaskId]) -> None:
        """Attempts that had not begun were taken back; they will be assigned again."""
        tasks = [task for task in tasks if task not in self.repeated]
        self._end_blocks()
        self._put(Kind.RETURNED, 0, len(tasks), pack("q", tasks))

    def answer(self, client: int, msg: Answer) -> None:
        """Tasks were answered."""
        if msg.tasks and self._has_room(len(msg.tasks)):
            tasks = msg.tasks if not client else [(client << CLIENT_SHIFT) + task for task in msg.tasks]
            self._answered.add(self._now_us, 0, tasks)
            self._answered.outcomes += msg.outcomes

    def placed(self) -> None:
        """What this turn has readied is placed, and is about to be sent."""
        if self.ready:
            ready = [task for task in self.ready if task not in self.repeated] if self.repeated else self.ready
            if self._results.has_failed:
                self._end_blocks()  # what is tried again is ready later than its first attempt was
            if self._has_room(len(ready)):
                self._readied.add(self._now_us, 0, ready)
            self.ready.clear()

    # ---- blocks ----

    def _has_room(self, count: int) -> bool:
        """Whether a message about so many tasks may be gathered; if not it is dropped."""
        if self._waiting_bytes > MOST_WAITING_BYTES:
            self.dropped += 1
            return False
        self._gathered += count
        return True

    def _end_blocks(self) -> None:
        """What has gathered comes before all that follows."""
        if self._gathered:
            self._gathered = 0
            for kind, block in self._blocks.items():
                if block.heads:
                    self._put(kind, *block.take())

    # ---- the pipe ----

    def turn_ends(self) -> None:
        """Take a sample if it is time; send what is worth a write."""
        took_us = int((self._clock() - self._zero_s) * 1e6) - self._now_us
        self._turns += 1
        self._busy_us += took_us
        self._longest_us = max(self._longest_us, took_us)
        if self._now_us >= self._sample_us:
            self._take_sample()
        if self._ends_blocks or self._gathered > _BLOCK_TASKS:
            self._ends_blocks = False
            self._end_blocks()
        is_late = self._now_us - self._written_us > PAUSE_US
        if self._part_bytes > _BATCH_BYTES or (is_late and (self._part_bytes or self._gathered)):
            self._send()
        elif self._waiting:
            self._write()

    def _take_sample(self) -> None:
        self._sample_us = self._now_us + max(SAMPLE_US, self._now_us // _SAMPLES)
        columns = (self._turns, self._busy_us, self._longest_us, *self.sample(), self._waiting_bytes)
        self._longest_us = 0
        self._put(Kind.SAMPLE, 0, 0, pack("q", columns))

    def _put(self, kind: int, a: int, b: int, body: bytes) -> None:
        if self._waiting_bytes > MOST_WAITING_BYTES:
            self.dropped += 1
            return
        self._parts.append(HEADER.pack(len(body), kind, self._now_us, a, b))
        self._parts.append(body)
        self._part_bytes += HEADER.size + len(body)

    def _send(self) -> None:
        self._end_blocks()
        self._written_us = self._now_us
        if self._fd < 0:
            self._parts.clear()
            self._part_bytes = 0
            return
        data = memoryview(b"".join(self._parts))
        self._parts.clear()
        self._part_bytes = 0
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self._write()

    def _write(self) -> None:
        try:
            while self._waiting:
                written = os.write(self._fd, self._waiting[0])
                self._waiting_bytes -= written
                if written < len(self._waiting[0]):
                    self._waiting[0] = self._waiting[0][written:]
                    return
                self._waiting.popleft()
        except BlockingIOError:
            return
        except OSError:  # the writer has ended, and has said why
            self._give_up()

    def _give_up(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._waiting.clear()
        self._waiting_bytes = 0

    def close(self, most_s: float = 60.0) -> int | None:
        """Tell the writer the rest, and wait until the file is complete.

        Returns:
            Its exit status; None if it had not ended in time, and was left to itself.
        """
        self._end_blocks()
        self._take_sample()
        self._put(Kind.END, self.dropped, 0, b"")
        self._send()
        if self._fd >= 0:
            _write_all(self._fd, self._waiting, self._clock() + most_s, self._clock)
            self._give_up()
        if self._writer is None:
            return 0
        import subprocess

        try:
            return self._writer.wait(most_s)
        except subprocess.TimeoutExpired:
            return None


def _write_all(fd: int, waiting: deque[memoryview], until_s: float, clock: Callable[[], float]) -> None:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while waiting and (left_s := until_s - clock()) > 0:
        poll.poll(left_s * 1e3)
        try:
            waiting[0] = waiting[0][os.write(fd, waiting[0]) :]
        except BlockingIOError:
            continue
        except OSError:
            return
        if not waiting[0]:
            waiting.popleft()


def _without(msg: Done, tasks: Set[TaskId]) -> Done:
    """What a message says of other tasks."""
    at = [i for i, task in enumerate(msg.tasks) if task not in tasks]
    return structs.replace(
        msg,
        tasks=[msg.tasks[i] for i in at],
        outcomes=bytes(msg.outcomes[i] for i in at),
        payloads=[msg.payloads[i] for i in at],
        seconds=[msg.seconds[i] for i in at],
        slots=[msg.slots[i] for i in at] if msg.slots else msg.slots,
        peaks={new: msg.peaks[old] for new, old in enumerate(at) if old in msg.peaks},
    )
