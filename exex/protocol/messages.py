"""Every message, with its direction in its docstring. Columns, not rows: one message carries many tasks.

`scripts` of the documentation print the table in docs/architecture.md from this module.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from msgspec import Struct

from exex.protocol.payload import Payload

TaskId = int
"""Number of a task. A client counts its own from 0; the manager adds `client << CLIENT_SHIFT`."""

Rank = int
"""Number of a process in the MPI world; the manager is 0."""

CLIENT_SHIFT = 40

KEY_BYTES = 16
"""Of the key of a cached call."""


class Outcome(IntEnum):
    """How an attempt, or a task, ended. One byte each in the `outcomes` columns."""

    DONE = 0  # payload: the pickled value
    FAILED = 1  # payload: the pickled error
    CANCELLED = 2  # no payload
    NEED_FAILED = 3  # payload: the root cause's error; `causes` names the needs that failed
    LOST = 4  # the attempt's process died: as FAILED, the payload is the error
    ASK = 5  # as FAILED, but the client's retry handler decides; the task waits for a Verdict
    STARVED = 6  # no payload: it has not begun, because something that it needs was not to be had from where it was said to be


class Kind(IntEnum):
    """How a task process runs a call."""

    PYTHON = 0
    BASH = 1
    MAP = 2  # payload: (iterables of equal length,); runs the function on each row
    TOGETHER = 3  # on a communicator: of worker ranks, in these themselves, or in an MPI world of its own


class AppSpec(Struct, frozen=True, array_like=True, kw_only=True):
    """What all calls of one app with the same options share; sent once, then named by its number.

    Attributes:
        app: number, given by the client; the manager gives its own towards the workers.
        name: of the function, for messages to people.
        function: digest of the pickled function.
        kind: how it is run.
        priority: lower runs first, as in Parsl and nice(1).
        retries: further attempts after a failed one.
        asks: whether the client's retry handler decides about each failure.
        walltime_s: limit of one attempt in seconds; None for none.
        memory_bytes: limit of one attempt and all that it starts, together, and what placement counts; None for none.
        cores: slots, on each node if there are several; 0: one, or all of the node if `nodes` is not 0.
        gpus: accelerators, on each node.
        nodes: 0 for a part of one node; else the attempt is a gang on so many.
        exclusive: nobody else on those nodes.
        ranks: of the communicator that a call runs on; 0: it runs in one process.
        every_rank: its value is the list of all ranks' values, not the first one's.
        own_world: the ranks are started for it, not worker ranks.
        sends_value: its value always goes to the manager, whatever its size.
    """

    app: int
    name: str
    function: bytes
    kind: int = Kind.PYTHON
    priority: int = 0
    retries: int = 0
    asks: bool = False
    walltime_s: float | None = None
    memory_bytes: int | None = None
    cores: int = 0
    gpus: int = 0
    nodes: int = 0
    exclusive: bool = False
    ranks: int = 0
    every_rank: bool = False
    own_world: bool = False
    sends_value: bool = False


class NodeShape(Struct, frozen=True, array_like=True):
    """So many nodes that are alike."""

    count: int
    slots: int
    memory_bytes: int  # 0 where it is not known
    gpus: int


class Share(Struct, frozen=True, array_like=True):
    """What a task is granted of one node.

    Attributes:
        host: name of the node.
        slots: reserved there, those of the lead included.
        gpus: names of accelerators.
        ranks: of the workers whose slots they are; on the first node the lead comes first.
    """

    host: str
    slots: int
    gpus: list[str]
    ranks: list[Rank]


class Grant(Struct, frozen=True, array_like=True):
    """What a task that asks for more than one slot may use. Nobody else gets any of it until its attempt has ended.

    Attributes:
        slots: of the lead, the worker that runs the attempt.
        cores: CPU numbers on the lead's node: from the manager those of other workers there, to the task process all;
            empty where slots are not bound.
        shares: one per node, the lead's first.
    """

    slots: int
    cores: list[int]
    shares: list[Share]

    @property
    def hosts(self) -> list[str]:
        """Names of the nodes, the lead's first."""
        return [share.host for share in self.shares]

    @property
    def gpus(self) -> list[str]:
        """Accelerators on the lead's node."""
        return self.shares[0].gpus


class CacheKey(Struct, frozen=True, array_like=True):
    """What the client knows of the key of a call of a cached app; the manager adds the values of its needs.

    Attributes:
        partial: digest of everything else: function, arguments, version.
        ignored: places of needs that do not count, in ascending order.
        outputs: absolute paths of the files that the call makes; a recorded result counts only if they all exist.
    """

    partial: bytes
    ignored: list[int] = []
    outputs: list[str] = []


class Message(Struct, frozen=True, array_like=True):
    """Base of all messages; the first element of the encoded array is the message's tag."""


# ---- client -> manager ----------------------------------------------------------------------------------------


class Attach(Message, frozen=True, tag=1):
    """Client -> manager: first message of a client."""

    version: str
    pid: int
    title: str  # of the workflow, for people
    python: str = ""  # version, of a client that the job did not start itself
    host: str = ""
    name: str = ""  # of the client; with it a detached one is found again
    detach: bool = False  # when it leaves, its tasks go on, and their results wait for a client of this name


class Submit(Message, frozen=True, tag=2):
    """Client -> manager: these calls are new. Task `first + i` is call i."""

    first: TaskId
    apps: list[AppSpec]  # not named before
    functions: dict[bytes, Payload]  # digest -> pickled function, not sent before
    calls: list[int]  # app of each call; one element means the same for all
    payloads: list[Payload]  # pickled arguments
    needs: dict[int, list[TaskId]]  # i -> tasks whose values fill the places 0, 1, ... in payload i
    given: dict[int, dict[int, Payload]]  # i -> place -> value, where the client had it; needs has -2 - task there, or -1
    answered: int  # sequence number of the last Answer that the client has applied
    keys: dict[int, CacheKey] = {}  # i -> key, where call i is of a cached app
    affinity: dict[int, TaskId] = {}  # i -> task near whose node call i would like to run; it need not exist any more
    tags: dict[int, str] = {}  # i -> what the user calls it, to find it again


class Promise(Message, frozen=True, tag=3):
    """Client -> manager: task `first + i`, i < count, will be fulfilled by the client itself."""

    first: TaskId
    count: int


class Fulfil(Message, frozen=True, tag=4):
    """Client -> manager: outcomes of promised tasks."""

    tasks: list[TaskId]
    outcomes: bytes
    payloads: list[Payload]


class Cancel(Message, frozen=True, tag=5):
    """Client -> manager: nobody wants these any more. The client already counts them as cancelled."""

    tasks: list[TaskId]


class Verdict(Message, frozen=True, tag=6):
    """Client -> manager: what the retry handler said of a failed attempt (answered with `Outcome.ASK`)."""

    task: TaskId
    retry: bool
    payload: Payload  # if it is not tried again: the final error


class Applied(Message, frozen=True, tag=7):
    """Client -> manager: all answers up to `answered` are applied; their values need not be kept."""

    answered: int


class Finish(Message, frozen=True, tag=8):
    """Client -> manager: the script has ended. Nothing follows."""

    cancel: bool  # also end the tasks that are still under way


class Checkpoint(Message, frozen=True, tag=9):
    """Client -> manager: put into the journal what has been answered so far, and say when that is done."""

    number: int


class Want(Message, frozen=True, tag=10):
    """Client -> manager: bring these stored values; each is answered by Brought."""

    names: list[str]
    here: bool = False  # into the store of rank 0's node, where the client maps them


class Release(Message, frozen=True, tag=11):
    """Client -> manager: it will not ask for these stored payloads any more, nor give them to a call."""

    names: list[str]


class Spread(Message, frozen=True, tag=12):
    """Client -> manager: every node will need this; the client has put it into the store of its own node."""

    payload: Payload


class Collected(Message, frozen=True, tag=14):
    """Client -> manager: of a client that may be found again: its program has looked at the results of these."""

    tasks: list[TaskId]


class Order(Message, frozen=True, tag=13):
    """Client -> manager: from the shell, of somebody who submits nothing. May be the first message; answered by Ordered."""

    version: str
    what: str  # clients, cancel or shutdown
    client: str = ""  # cancel: only tasks of the client of this name or number; "" for all
    tasks: list[TaskId] = []  # cancel: only these
    cancel: bool = False  # shutdown: do not wait for tasks


# ---- manager -> client ----------------------------------------------------------------------------------------


class Found(Struct, frozen=True, array_like=True):
    """A task that a detached client of this name has left, and whose result nobody has collected."""

    task: TaskId
    app: str
    tag: str


class ClientRow(Struct, frozen=True, array_like=True):
    """A client, for people."""

    number: int
    name: str
    title: str
    host: str
    pid: int
    attached: bool
    unfinished: int  # tasks
    uncollected: int  # results
    uncollected_bytes: int
    paused: bool  # its tasks wait until results are collected


class Welcome(Message, frozen=True, tag=20):
    """Manager -> client: answer to Attach."""

    version: str
    client: int
    manager_pid: int
    workers: int
    slots: int  # of all workers together
    run_dir: str  # where AUTO_LOGNAME files go
    nodes: list[NodeShape] = []  # all that there are, so that impossible calls fail at once
    store: str = ""  # directory of the store of rank 0's node, for a client that finds it there; "": none
    keep_bytes: int = 0  # arguments of at least so many bytes go into it; 0: none
    first: TaskId = 0  # the number from which on none was used: for the client's first task
    first_app: int = 0
    found: list[Found] = []
    journal: str = ""  # absolute path; "" if there is none


class Answer(Message, frozen=True, tag=21):
    """Manager -> client: outcomes."""

    sequence: int  # 1, 2, ... for each client
    tasks: list[TaskId]
    outcomes: bytes
    payloads: list[Payload]
    causes: dict[int, list[TaskId]]  # i -> the needs of tasks[i] that failed, for Outcome.NEED_FAILED
    started: list[TaskId]  # seen running for a while; not told of short tasks


class JobEnds(Message, frozen=True, tag=22):
    """Manager -> client: the job ends; nothing more will be answered."""

    reason: str


class Checkpointed(Message, frozen=True, tag=23):
    """Manager -> client: answer to Checkpoint."""

    number: int
    error: str  # why it is not in the journal; "" if it is


class Ordered(Message, frozen=True, tag=25):
    """Manager -> client: answer to Order."""

    error: str = ""  # why it is not done; "" if it is
    clients: list[ClientRow] = []
    cancelled: int = 0  # tasks


class Brought(Message, frozen=True, tag=24):
    """Manager -> client: answer to Want."""

    name: str
    outcome: int  # DONE, or FAILED: it is lost, and could not be made again
    payload: Payload  # its bytes; Stored if it is in the store of rank 0's node, where the client maps it; or the error


# ---- between any two ranks ------------------------------------------------------------------------------------


class Fetch(Message, frozen=True, tag=70):
    """Rank -> rank: send these stored payloads, as far as each is there.

    So that a slow rank is not flooded, no more than a window beyond `at` is sent before the next Fetch says how far it is.
    """

    names: list[str]
    at: int = 0  # so many bytes of each file have arrived; 0: begin
    store: str = ""  # of who asks, as in Hello: if it is one with the asked one's, the answer is Here


class Chunk(Message, frozen=True, tag=71):
    """Rank -> rank: a part of a stored payload, in answer to Fetch; in order, without gaps."""

    name: str
    at: int  # first byte in the file of the payload; see store/node_store
    data: Payload  # Large, of one frame


class Here(Message, frozen=True, tag=72):
    """Rank -> rank: answer to Fetch of a rank that has the same store: they are in it."""

    names: list[str]


class Absent(Message, frozen=True, tag=73):
    """Rank -> rank: answer to Fetch: they are not here and will not be.

    Worker -> manager: likewise to Copy, and when another rank has asked in vain. Manager -> worker: these will not come.
    """

    names: list[str]


# ---- both ways between worker and manager ---------------------------------------------------------------------


class Beat(Message, frozen=True, tag=30):
    """Worker <-> manager: nothing to say, but still here. Answered by the manager, with another or anything else."""


# ---- worker -> manager ----------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag=40):
    """Worker -> manager: this rank is up. Sent once, right after MPI_Init."""

    version: str
    python: str
    node: str
    pid: int
    slots: int
    error: str  # why this rank cannot work; "" if it can
    times_s: list[float]  # since the guard began: rank forked, mpi4py imported, MPI_Init done, template ready
    cores: list[int] = []  # CPU numbers to which its slots are bound, as many for each slot; empty: not bound
    memory_bytes: int = 0  # of its node; 0: not known
    gpus: list[str] = []  # names of the accelerators that it can use
    store: str = ""  # ranks for which this is the same have one store; "": this rank keeps no values


class Done(Message, frozen=True, tag=41):
    """Worker -> manager: these attempts ended."""

    tasks: list[TaskId]
    outcomes: bytes
    payloads: list[Payload]
    seconds: list[float]  # each attempt's own running time
    started: list[TaskId]  # seen running for a while, not yet ended
    slots: list[int] = []  # of the worker, in which each ran; -1: none; empty: it has only one
    peaks: dict[int, int] = {}  # i -> most bytes of memory that attempt i has used, where that was looked at


class Holds(Message, frozen=True, tag=45):
    """Worker -> manager: it now has these stored payloads as well: it needed them for a call, or was told by Copy."""

    names: list[str]


class Part(Message, frozen=True, tag=44):
    """Worker -> manager: this rank's part in a call on a communicator, to which it was called by Join, has ended.

    The lead, which has the call, says it by Done.
    """

    task: TaskId
    outcome: int  # CANCELLED if it was stopped, LOST if there was no communicator
    payload: Payload
    seconds: float


class Returned(Message, frozen=True, tag=81):
    """Worker -> manager: answer to Retract: these had not begun, and are not here any more. The others have begun, or ended."""

    tasks: list[TaskId]


class FromTasks(Message, frozen=True, tag=46):
    """Worker -> manager: what tasks say that are clients themselves, and which tasks wait for others."""

    processes: list[int]  # who says each message, as this worker numbers its task processes
    tasks: list[TaskId]  # that it ran then
    messages: list[Payload]  # of a client, encoded; of one that has several frames, Large
    gone: list[int] = []  # task processes that have ended: what they said is above
    waiting: list[TaskId] = []  # these have given their slots away until they are in `back`
    back: list[TaskId] = []  # these would go on: answered by ToTasks.seats


class Bye(Message, frozen=True, tag=42):
    """Worker -> manager: answer to Stop; all task processes are gone. Nothing follows but MPI_Finalize."""

    tasks_run: int


# ---- manager -> worker ----------------------------------------------------------------------------------------


class Assign(Message, frozen=True, tag=61):
    """Manager -> worker: queue these attempts in this order. One message refills one worker."""

    apps: list[AppSpec]  # not named to this worker before
    functions: dict[bytes, Payload]  # not sent to this worker before
    tasks: list[TaskId]
    calls: list[int]  # app of each; one element means the same for all
    payloads: list[Payload]
    values: dict[int, list[Payload]]  # i -> values of the needs of tasks[i], in their places
    attempts: dict[int, int]  # i -> number of the attempt where it is not the first
    grants: dict[int, Grant] = {}  # i -> what tasks[i] may use, where that is not just one slot
    sources: dict[str, Rank] = {}  # of each stored payload among payloads and values: a rank that has it, the nearest


class Drop(Message, frozen=True, tag=62):
    """Manager -> worker: forget these if queued, kill them if running. Each is still answered in a Done."""

    tasks: list[TaskId]


class Free(Message, frozen=True, tag=66):
    """Manager -> worker: nobody needs these stored payloads any more. Those that it does not have are passed over."""

    names: list[str]


class Copy(Message, frozen=True, tag=67):
    """Manager -> worker: get these from there, and answer Holds, or Absent.

    From itself: the rank that had them is lost, and they should still be in the store of this node.
    """

    payloads: list[Payload]  # Stored
    source: Rank


class ToTasks(Message, frozen=True, tag=68):
    """Manager -> worker: what it tells tasks that are clients, and which tasks may go on."""

    processes: list[int]  # to whom each message goes, as in FromTasks; for one that has ended it is thrown away
    messages: list[Payload]
    seats: list[TaskId] = []  # these have waited, and may have slots that are idle now or come free: none of them is lent


class Retract(Message, frozen=True, tag=80):
    """Manager -> worker: give back those of these that have not begun: others can run them sooner. Answered by one Returned."""

    tasks: list[TaskId]


class Join(Message, frozen=True, tag=65):
    """Manager -> worker: take part in a call on a communicator of these ranks, in this order. The lead has the call."""

    task: TaskId
    call: int  # number of this attempt, from 1, among all on communicators: by it a guard knows what it is to stop
    runs: list[int]  # of ranks: first and length of each; see protocol/runs
    after_loss: bool = False  # ranks of the world were lost before


class Stop(Message, frozen=True, tag=63):
    """Manager -> worker: end all task processes, answer Bye, wait for Leave."""

    reason: str  # "" for an orderly end


class Leave(Message, frozen=True, tag=64):
    """Manager -> worker: every worker has answered Stop, or will not. Nothing follows."""

    together: bool  # no rank is lost: leave by MPI_Finalize, which would else never return


FromClient = (
    Attach
    | Submit
    | Promise
    | Fulfil
    | Cancel
    | Verdict
    | Applied
    | Finish
    | Checkpoint
    | Want
    | Release
    | Spread
    | Collected
    | Order
)
FromWorker = Hello | Done | Part | Returned | FromTasks | Bye | Beat | Holds | Fetch | Chunk | Here | Absent
ToClient = Welcome | Answer | JobEnds | Checkpointed | Brought | Ordered
ToWorker = Assign | Drop | Retract | ToTasks | Join | Stop | Leave | Beat | Free | Copy | Fetch | Chunk | Here | Absent
AnyMessage = Any
