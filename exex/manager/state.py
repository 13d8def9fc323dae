"""All that the manager knows, and what it is about to send. No I/O, no clock, no MPI."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from exex.errors import ProtocolError
from exex.manager.grants import Holding
from exex.manager.inner import Inner, InnerApp
from exex.manager.labels import Labels
from exex.manager.line import Shape
from exex.manager.longest import size_of
from exex.manager.memo import Memo
from exex.manager.nodes import NodeRecord, Nodes, WorkerRecord
from exex.manager.places import Places
from exex.manager.ranges import Ranges
from exex.manager.ready import ReadyQueue
from exex.manager.records import Again, Kept
from exex.manager.stock import Stock
from exex.manager.stored import Data
from exex.manager.task import App, Loss, Status, Task
from exex.manager.teams import Team
from exex.protocol import payload as payloads
from exex.protocol.messages import CLIENT_SHIFT, Answer, AppSpec, Assign, Done, Join, Outcome, Rank, TaskId
from exex.protocol.payload import Payload
from exex.protocol.request import request_of
from exex.protocol.task_numbers import INNER


class ClientRecord:
    """What the manager knows of one client, and the columns of its next Answer.

    Attributes:
        number: of the client; in the high bits of its task numbers.
        apps: by the client's own numbers.
        kept: outcome and payload of finished tasks whose Answer the client has not applied yet.
        unapplied: (sequence, tasks) of those Answers.
        unfinished: tasks without an outcome.
        finished: it has sent Finish, or it is gone.
        used: every task number it has ever used.
        functions: digests of those that it has sent.
        owned: stored payloads for which it may still ask, or which it may give to a call, by the names that it knows.
        hurry: its next Answer holds more than values that other tasks have waited for.
        held_since_s: when the oldest outcome in its next Answer was held back; negative if none is.
        labels: what is known of its tasks beyond that, if it is a remote one; None of the job's own client.
        inner: what is known if it is a task process; None of all others.
    """

    def __init__(self, number: int, labels: Labels | None = None) -> None:
        self.number = number
        self.labels = labels
        self.inner: Inner | None = None
        self.base: TaskId = number << CLIENT_SHIFT
        self.apps: dict[int, App] = {}
        self.kept: dict[TaskId, tuple[int, Payload]] = {}
        self.unapplied: deque[tuple[int, list[TaskId]]] = deque()
        self.unfinished = 0
        self.finished = False
        self.used = Ranges()
        self.functions: set[bytes] = set()
        self.owned: dict[str, Kept] = {}
        self.sequence = 0
        self.clear_answer()

    def can_be_asked(self) -> bool:
        """Whether it is there to judge a failed attempt."""
        return not self.finished and (self.labels is None or self.labels.attached)

    def clear_answer(self) -> None:
        """Begin the columns of the next Answer."""
        self.tasks: list[TaskId] = []
        self.outcomes = bytearray()
        self.payloads: list[Payload] = []
        self.causes: dict[int, list[TaskId]] = {}
        self.started: list[TaskId] = []
        self.hurry = False
        self.held_since_s = -1.0

    def take_answer(self) -> Answer:
        """The next Answer; its values are kept until the client has applied it."""
        self.sequence += 1
        base = self.base
        answer = Answer(
            sequence=self.sequence,
            tasks=[task - base for task in self.tasks] if base else self.tasks,
            outcomes=bytes(self.outcomes),
            payloads=self.payloads,
            causes=self.causes,
            started=[task - base for task in self.started],
        )
        kept = self.tasks
        if Outcome.ASK in self.outcomes:  # those are not finished: nothing of them is kept
            kept = [task for task, outcome in zip(self.tasks, self.outcomes) if outcome != Outcome.ASK]
        self.unapplied.append((self.sequence, kept))
        self.clear_answer()
        return answer

    def check_answered(self, sequence: int) -> None:
        """Raises:
        ProtocolError: the client has applied an Answer that it was never sent.
        """
        if not 0 <= sequence <= self.sequence:
            raise ProtocolError(f"client {self.number}: has applied answer {sequence}, but {self.sequence} were sent")

    def applied(self, sequence: int) -> None:
        """Let go of the values of all Answers up to `sequence`."""
        while self.unapplied and self.unapplied[0][0] <= sequence:
            tasks = self.unapplied.popleft()[1]
            if self.labels is not None:
                self.labels.applied(tasks, self.kept)
            for task in tasks:
                self.kept.pop(task, None)


@dataclass
class Counts:
    """Tasks by how they ended, for the progress line and the last words."""

    submitted: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclass
class Packing:
    """What placement of big tasks remembers between turns.

    Attributes:
        kept: shapes for which nodes are kept; `first`: that of the first task of the line that does not fit.
        idle: nodes that are kept and have free slots.
        small_wait: small tasks waited at the last placement; `small_number`: their place in the line of big ones.
        small_placed: how many were placed since they got it; `big_placed`: slots that big ones got.
        delayed: the first task of the line that small ones have delayed last: none is delayed twice.
        next_look_s: when all nodes may be looked at again; `next_fill_s`: when kept nodes may be filled again.
        blocked: shapes of which the first task did not fit at the last placement, and `blocked_at`, what the line was then.
        unknown_s: what is expected of apps of which nothing is known; `longest_s`: of the longest tasks.
    """

    kept: dict[Shape, None] = field(default_factory=dict)
    first: Shape | None = None
    idle: dict[NodeRecord, None] = field(default_factory=dict)
    small_wait: bool = False
    small_number: int = 0
    small_placed: int = 0
    big_placed: int = 0
    delayed: Task | None = None
    next_look_s: float = 0.0
    next_fill_s: float = 0.0
    blocked: list[Shape] = field(default_factory=list)
    blocked_at: tuple[int, int] = (0, 0)
    unknown_s: float = 0.0
    longest_s: float = 0.0


@dataclass
class ManagerState:
    """The whole state of rank 0.

    Attributes:
        prefetch_s: seconds of work to keep queued at a worker beyond its slots, per slot.
        tasks: every unfinished task.
        losses: of unfinished tasks, how many of their workers were lost; those do not count as failures.
        dropped: attempts whose task is cancelled but which their worker has not reported yet.
        free: workers that may have a free slot, the last busy one last; `busy`: those that may take prefetch. Each stands
            there once at the most; whether it fits, and lives, is checked when it is taken out.
        ends_s: when the last attempt must have ended, on the loop's clock; None if nobody knows.
        now_s: the loop's clock at the beginning of this turn.
        noticed: the end was announced, so what is of unknown length is not begun any more.
        shelved: how many tasks are SHELVED.
        refilled: workers with a non-empty `outgoing`.
        drops: per rank, tasks for its next Drop.
        holdings: what big attempts hold that their lead has not reported, those that nobody wants any more included.
        broken: attempts that have lost a node that they hold, and why; their lead was told to drop them.
        places: where tasks ran that have ended.
        teams: calls on communicators of worker ranks that are under way.
        joins: who is to be told to take part in one.
        next_call: number of the last of them.
        look_at_teams_s: when `teams.look` has something to do at the latest.
        own: the worker that is rank 0 itself, and cannot take part in one; None if there is none.
        grace_s: between telling a function to stop and killing it.
        waiting: attempts that wait for tasks of their own, and how many slots of their worker are free meanwhile.
        returning: attempts that would go on, and whose worker has lent what they need; with that worker.
        parents: tasks that have made tasks in their current attempt, and the clients that these belong to.
        orphaned: tasks of which such an attempt has ended.
        stands_since_s: since when all that runs waits, and big tasks find no room; negative: not so.
        inner: clients in task processes that are to be told something.
        inner_apps: their apps, by what they are but for their numbers.
        told: is called with ends of attempts when they have been handled; those of calls on communicators are of the whole call.
        cancelled: is called with a client in a task process and its tasks, in its own numbers, that end with the one that made
            them.
        data: stored payloads.
        stock: tasks that are queued at workers, and what was asked back of them.
        must_place: more could have been placed in this turn; the next one must follow at once.
    """

    prefetch_s: float = 0.005
    tasks: dict[TaskId, Task] = field(default_factory=dict)
    losses: dict[TaskId, int] = field(default_factory=dict)
    dropped: dict[TaskId, Rank] = field(default_factory=dict)
    ready: ReadyQueue = field(default_factory=ReadyQueue)
    workers: dict[Rank, WorkerRecord] = field(default_factory=dict)
    free: deque[WorkerRecord] = field(default_factory=deque)
    busy: deque[WorkerRecord] = field(default_factory=deque)
    refilled: list[WorkerRecord] = field(default_factory=list)
    ends_s: float | None = None
    now_s: float = 0.0
    noticed: bool = False
    shelved: int = 0
    drops: dict[Rank, list[TaskId]] = field(default_factory=dict)
    nodes: Nodes = field(default_factory=Nodes)
    packing: Packing = field(default_factory=Packing)
    holdings: dict[TaskId, Holding] = field(default_factory=dict)
    broken: dict[TaskId, Loss] = field(default_factory=dict)
    places: Places = field(default_factory=Places)
    teams: dict[TaskId, Team] = field(default_factory=dict)
    joins: list[tuple[list[Rank], Join]] = field(default_factory=list)
    next_call: int = 0
    look_at_teams_s: float = 0.0
    own: Rank | None = None
    grace_s: float = 2.0
    waiting: dict[TaskId, int] = field(default_factory=dict)
    returning: dict[TaskId, WorkerRecord] = field(default_factory=dict)
    parents: dict[TaskId, ClientRecord] = field(default_factory=dict)
    orphaned: list[TaskId] = field(default_factory=list)
    inner: dict[ClientRecord, None] = field(default_factory=dict)
    inner_apps: dict[AppSpec, InnerApp] = field(default_factory=dict)
    stands_since_s: float = -1.0
    must_place: bool = False
    stock: Stock = field(default_factory=Stock)
    told: Callable[[Rank, Done], None] | None = None
    cancelled: Callable[[int, list[TaskId]], None] | None = None
    clients: dict[int, ClientRecord] = field(default_factory=dict)
    apps: dict[int, App] = field(default_factory=dict)
    functions: dict[bytes, Payload] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    assigned: int = 0
    next_client: int = 0
    next_inner: int = INNER + 1
    next_app: int = 0
    memo: Memo = field(default_factory=Memo)
    data: Data = field(default_factory=Data)

    def __post_init__(self) -> None:
        self.data.workers = self.workers

    def tell(self, rank: Rank, msg: Done) -> None:
        """Ends of attempts have been handled."""
        if self.told is not None:
            self.told(rank, msg)

    def client_of(self, task: TaskId) -> ClientRecord:
        """The client whose task this is."""
        return self.clients[task >> CLIENT_SHIFT]

    def slots(self) -> int:
        """Slots of all workers together."""
        return self.nodes.slots

    def preferred_node(self, task: Task) -> NodeRecord | None:
        """The node that a task would like to run on, because another ran or runs there; None if it is not known or gone."""
        other = self.ready.affinity.get(task.id)
        if other is None:
            return None
        record = self.tasks.get(other)
        if record is not None and record.status == Status.ASSIGNED:
            return self.workers[record.rank].home
        node = self.places.of(other)
        return node if node is not None and node.workers else None

    def list_worker(self, worker: WorkerRecord) -> None:
        """Put a worker that may take more into the placement's lists. O(1)."""
        if worker.leaving:
            return
        if worker.held < worker.open:
            if not worker.in_free:
                worker.in_free = True
                self.free.append(worker)
        elif not worker.in_busy:
            worker.in_busy = True
            self.busy.append(worker)

    def check_apps(self, client: ClientRecord, apps: list[AppSpec], functions: dict[bytes, Payload]) -> None:
        """Raises:
        ProtocolError: an app that was named before, or whose function was never sent; a digest that names two functions.
        """
        named: set[int] = set()
        for spec in apps:
            if spec.app in client.apps or spec.app in named:
                raise ProtocolError(f"client {client.number}: names app {spec.app} twice")
            if spec.function not in self.functions and spec.function not in functions:
                raise ProtocolError(f"client {client.number}: app {spec.app} ({spec.name}) names a function that was never sent")
            named.add(spec.app)
        for digest, function in functions.items():
            known = self.functions.get(digest, function)
            if known is not function and not payloads.same(known, function):
                raise ProtocolError(f"client {client.number}: two functions have the digest {digest.hex()}")

    def new_app(self, client: ClientRecord, spec: AppSpec) -> None:
        """Register an app of a client under a number of our own. Its function is there already."""
        if client.inner is not None and self._shares_app(client, spec):
            return
        number = self.next_app
        self.next_app += 1
        self.stock.lowest = max(self.stock.lowest, spec.priority)
        own = msgspec.structs.replace(spec, app=number)
        request = request_of(own, self.nodes.shapes(exactly=True) if own.ranks else ())
        app = self.apps[number] = client.apps[spec.app] = App(own, self.functions[spec.function], request)
        app.size = size_of(app, self.ready)
        if client.inner is not None:
            self.inner_apps[msgspec.structs.replace(spec, app=0)] = InnerApp(app)

    def _shares_app(self, client: ClientRecord, spec: AppSpec) -> bool:
        """Whether another task process has named the same app. There may be very many that do."""
        known = self.inner_apps.get(msgspec.structs.replace(spec, app=0))
        if known is None:
            return False
        known.users += 1
        client.apps[spec.app] = known.app
        return True

    def forget_client(self, client: ClientRecord) -> None:
        """Nothing of a client is left: its record goes, and so do apps and functions that only it has used."""
        del self.clients[client.number]
        self.ready.forget_client(client.number)
        for app in client.apps.values():
            if client.inner is None or self._is_last_user(app):
                del self.apps[app.number]
        self.inner.pop(client, None)
        for digest in client.functions.difference(*(other.functions for other in self.clients.values())):
            del self.functions[digest]

    def _is_last_user(self, app: App) -> bool:
        spec = msgspec.structs.replace(app.spec, app=0)
        known = self.inner_apps[spec]
        known.users -= 1
        if known.users:
            return False
        del self.inner_apps[spec]
        return True

    def finish_task(self, task: Task, outcome: int, payload: Payload, causes: list[TaskId] | None = None) -> None:
        """Take the record of a task away and answer its client. Its dependents are the caller's business."""
        del self.tasks[task.id]
        client = self._forget_task(task)
        if self.data.in_use and self._is_only_made_again(client, task, outcome, payload):
            return
        if outcome == Outcome.DONE:
            self.counts.done += 1
        elif outcome == Outcome.CANCELLED:
            self.counts.cancelled += 1
        else:
            self.counts.failed += 1
        if client.finished:
            if not client.unfinished:
                self.forget_client(client)
            return
        if outcome == Outcome.CANCELLED:
            return  # the client knows: it asked for it
        client.kept[task.id] = (outcome, payload)
        if client.labels is not None or type(payload) is Kept:
            self._note_result(client, task, payload)
        if task.dependents is None or outcome != Outcome.DONE:
            client.hurry = True
        if causes:
            client.causes[len(client.tasks)] = causes
        client.tasks.append(task.id)
        client.outcomes.append(outcome)
        client.payloads.append(payload)

    def _forget_task(self, task: Task) -> ClientRecord:
        """What is remembered of a task beside its record. Returns its client."""
        for remembered in (self.losses, self.ready.affinity, self.stock.returns):
            if remembered:
                remembered.pop(task.id, None)
        client = self.clients[task.id >> CLIENT_SHIFT]
        client.unfinished -= 1
        if client.inner is not None:
            client.inner.open.pop(task.id, None)
            self.inner[client] = None
        return client

    def _note_result(self, client: ClientRecord, task: Task, payload: Payload) -> None:
        """A client may name what is stored; what waits for a remote one is counted."""
        if type(payload) is Kept:
            client.owned[payload.name] = payload
        if client.labels is not None and client.labels.ended(task, payload):
            self.ready.pause(client.number, True)

    def _is_only_made_again(self, client: ClientRecord, task: Task, outcome: int, payload: Payload) -> bool:
        """Let go of what a task needed. True if it has only made again what was lost: then that is there now, or cannot be."""
        task.payload, task.values = b"", None  # who still refers to the task does not need the data
        self.data.starved.pop(task.id, None)
        if not isinstance(task, Again):
            return False
        record = task.origin.get()
        del task.origin
        if record is not None:
            record.again = False
            if outcome == Outcome.DONE:
                if type(payload) is not Kept:
                    record.value = payload
            elif outcome != Outcome.CANCELLED and not record.is_there():
                record.error = payload
            self.data.note(record)
        if client.finished and not client.unfinished:
            self.forget_client(client)
        return True

    def take_assign(self, worker: WorkerRecord) -> Assign:
        """The next Assign of a worker, with the apps and functions that are new to it."""
        tasks, grants = worker.outgoing or [], worker.grants or {}
        worker.outgoing = worker.grants = None
        calls = [task.app.number for task in tasks]  # type: ignore[union-attr]
        distinct = set(calls)
        new = distinct - worker.apps
        functions = {self.apps[n].spec.function: self.apps[n].function for n in new}
        if new:
            for digest in worker.functions & functions.keys():
                del functions[digest]
            worker.apps = self.nodes.more(worker.apps, new)
            worker.functions = self.nodes.more(worker.functions, functions.keys())
        assign = Assign(
            apps=[self.apps[number].spec for number in sorted(new)],
            functions=functions,
            tasks=[task.id for task in tasks],
            calls=calls if len(distinct) > 1 else calls[:1],
            payloads=[task.payload for task in tasks],
            values={i: task.values for i, task in enumerate(tasks) if task.values is not None},
            attempts={i: task.attempt for i, task in enumerate(tasks) if task.attempt > 1},
            grants=grants,
        )
        if self.data.in_use:
            self._open_for_teams(assign)
            assign.sources.update(self.data.sources(worker, assign))
        return assign

    def _open_for_teams(self, assign: Assign) -> None:
        """What calls on communicators need goes with them: see `stored.Data.admit`."""
        for i, task in enumerate(assign.tasks) if self.teams else ():
            if task in self.teams:
                assign.payloads[i] = self._opened(assign.payloads[i])
                if i in assign.values:
                    assign.values[i] = [self._opened(value) for value in assign.values[i]]

    def _opened(self, payload: Payload) -> Payload:
        """A payload as it is on rank 0; if it has vanished there, who needs it has to look for it."""
        if type(payload) is not Kept:
            return payload
        try:
            return self.memo.open(payload)
        except (OSError, LookupError):
            return payload

    def check(self) -> None:
        """Assert every invariant. O(everything): for tests and the simulation."""
        from exex.manager.invariants import check

        check(self)
