"""What the rank does: initialise MPI, then be a worker, or the manager, or (alone in the world) both in one loop."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import resource
import socket
import sys
import time
from collections.abc import Collection
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from exex.config import Config
from exex.errors import ExexError, StagingError, StartError
from exex.guard.roles import RankRole
from exex.launch import allocation, equipment
from exex.launch.job_dir import write_status
from exex.launch.leftovers import shared_memory
from exex.launch.together import wait_for_node
from exex.launch.world import ExpectedWorld, settling_s, singletons_message
from exex.protocol import codec
from exex.protocol.context import OfTasks
from exex.protocol.messages import Absent
from exex.rank_zero import RankZero
from exex.store.exchange import Exchange
from exex.store.holdings import Holdings
from exex.store.node_store import NodeStore
from exex.transport.alarm import Meeting, new_meeting
from exex.transport.base import Link, Ranks
from exex.transport.joined import OWN, JoinedRanks
from exex.transport.wait import Waiter
from exex.version import __version__
from exex.worker import loop as worker_loop
from exex.worker.context import Place
from exex.worker.processes import Template
from exex.worker.together import Together

if TYPE_CHECKING:
    from exex.launch.staging import Tree as StageTree
    from exex.store.task_output import TaskOutput
    from exex.transport.mpi import MpiLink

_RECORD_S = 60.0
"""What the run record's writer may need at the end."""

_LINGER_S = 0.1
"""What the last messages may need inside the MPI library where no MPI_Finalize sees to them."""


_FOR_NESTING = ("exex.client.apps",)
"""Modules that a task process needs to be a client."""


class SingletonsError(StartError):
    """The launcher and the MPI library do not know each other: every process is alone and thinks that it is rank 0."""


_SAID_ONCE = (SingletonsError, StagingError)  # all ranks know: the first one says it


class RankProcess:
    """One rank of the world.

    Args:
        expected: what the launcher's variables say of the world.
        began_s: when the guard began, by time.monotonic().
        is_staged: this node has what is to be staged.
    """

    def __init__(
        self, role: RankRole, config: Config, script: str, expected: ExpectedWorld, began_s: float, *, is_staged: bool
    ) -> None:
        self._is_staged = is_staged
        self._control = role.control
        self._template_socket = role.template
        self._alarm_port = role.alarm_port
        self._page = role.page
        self._config = config
        self._script = script
        self._expected = expected
        self._node = socket.gethostname()
        self._began_s = began_s
        self._times_s = [time.monotonic() - began_s]
        self._waiter = Waiter()
        _raise_descriptor_limit()
        self._stage_place: object = None  # held as long as this process lives
        self._store_place: object = None  # likewise
        self._data: worker_loop.DataPlane | None = None
        self._masks: list[set[int]] = []  # affinity of each rank on this node
        self._neighbours: dict[int, set[int]] = {}  # the same of those that have slots, by rank
        self._broken = False
        self._reassured_s = 0.0
        self._run_dir = ""
        self._zero = RankZero(
            config,
            script,
            expected,
            began_s=began_s,
            control=self._control,
            waiter=self._waiter,
            from_guard=self._from_guard,
            reassure_guard=self._reassure_guard,
            heartbeat_limit_s=self._heartbeat_limit_s(),
        )

    def main(self) -> int:
        """Returns the exit status of this process; the guard ends with what it was told by `status`."""
        try:
            return self._main()
        except ExexError as error:
            if not (self._expected.rank and isinstance(error, _SAID_ONCE)):
                print(f"exex: rank {self._expected.rank or 0} at {self._node}: {error}", file=sys.stderr, flush=True)
            if not self._expected.rank:
                write_status(os.environ, 1)
            self._control.send("status", status=1, others_wait=not isinstance(error, _SAID_ONCE))
            return 1
        finally:
            if self._broken or self._zero.broken:  # some will never come to MPI_Finalize
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(1)

    def _main(self) -> int:
        if not self._expected.rank:
            self._zero.prepare()
            self._run_dir = self._zero.run_dir
        if self._expected.launcher == "none":
            self._stage(None)
            return self._alone()
        try:
            from exex.transport import mpi
        except (ImportError, RuntimeError) as error:
            raise StartError(f"mpi4py cannot load an MPI library: {error}; try `exex doctor`") from error
        self._times_s.append(time.monotonic() - self._began_s)
        wait_for_node(self._expected, os.cpu_count() or 1)
        self._control.send("initialising")
        world = mpi.start()
        self._times_s.append(time.monotonic() - self._began_s)
        message = singletons_message(self._expected, mpi.library(), world.size)
        if message:
            raise SingletonsError(message)
        time.sleep(settling_s(self._expected, mpi.library()))
        self._stage(world)
        needs_masks = "auto" in (self._config.slots, self._config.manager_slots) or self._config.bind != "none"
        if needs_masks or self._config.keep_bytes:
            shared = mpi.share_on_node(world, (world.rank, os.sched_getaffinity(0)))
            self._masks = [mask for _, mask in shared]
            self._neighbours = {rank: mask for rank, mask in shared if rank or self._first_has_slots(world.rank, world.size)}
        mpi.prepare_teams(world)
        if world.size == 1:
            status = self._alone()
        elif world.rank == 0:
            meeting = new_meeting(self._alarm_port, world.size)
            self._watch_me(0, meeting)  # first: its guard must know before others sign on
            mpi.tell_all(world, (meeting, self._run_dir))
            others = mpi.MpiLink(world, world.size - 1)
            self._open_store(meeting.key, 0, others)
            status = self._lead(others, range(1, world.size), self._manager_slots())
        else:
            meeting, self._run_dir = mpi.tell_all(world, None)
            self._watch_me(world.rank, meeting)
            is_far = bool(self._config.keep_bytes) and len(self._masks) < world.size
            link = mpi.MpiLink(world, 1, is_far)
            self._open_store(meeting.key, world.rank, link)
            status = self._work(world.rank, link)
        self._control.send("status", status=status, orderly=True)
        if not (self._broken or self._zero.broken):
            mpi.finish()
        return 0

    def _stage(self, world: Any) -> None:
        """Give this node what is to be staged, and tell the guard, which starts the template from there. Collective."""
        config = self._config
        if self._is_staged or not (config.stage or config.stage_file):
            return
        from exex.launch.staging import Beat, Wanted, stage
        from exex.transport.broadcast import Alone, Tree

        beat = Beat(lambda: self._control.send("staging"))
        rank, tree = 0, cast("StageTree", Alone())
        if world is not None:
            from exex.transport.mpi import leaders_and_node

            rank, tree = world.rank, Tree(*leaders_and_node(world), beat)
        wanted = Wanted(config.stage, config.stage_file, config.stage_dir)
        try:
            found, self._stage_place = stage(wanted, tree, beat, os.environ, str(Place(rank, self._node)))
        except StagingError:
            if world is not None:
                from exex.transport.mpi import finish

                finish()  # all ranks know, and end alike
            raise
        if found.files:
            os.environ["EXEX_STAGED"] = found.files
        self._control.send("staged", staged=asdict(found))

    def _open_store(self, job_key: bytes, rank: int, link: MpiLink | None) -> None:
        """Find, or make, the store of this node.

        Raises:
            StartError: the directory that is set cannot be used.
        """
        config = self._config
        if not config.keep_bytes:
            return
        from exex.launch.store_place import find_place

        place = self._store_place = find_place(job_key, config.store_dir, config.store_bytes, os.environ)
        if place is None:
            return
        self._control.send("store", directories=place.directories())
        limit_bytes = place.limit_bytes // max(1, len(self._masks))
        holdings = Holdings(NodeStore.begin(place.directory, place.spill, limit_bytes), limit_bytes)
        encoder = codec.Encoder()

        def send(peer: int, message: object) -> None:
            if link is None:
                raise ConnectionError(f"there is no rank {peer}")
            link.send(peer, encoder.encode(message))

        def say_absent(names: list[str]) -> None:
            if rank:
                with contextlib.suppress(ConnectionError):  # its end is told otherwise
                    send(0, Absent(names=names))

        exchange = Exchange(rank, holdings, send, say_absent, link.let_go if link is not None else None)
        self._data = worker_loop.DataPlane(exchange, config.keep_bytes, limit_bytes, is_shared=not rank)

    def _watch_me(self, rank: int, meeting: Meeting) -> None:
        """Tell the guard how long this rank may hang, where the guards meet, and which shared memory is its."""
        self._control.send(
            "watch",
            rank=rank,
            limit_s=self._heartbeat_limit_s(),
            hosts=meeting.hosts,
            port=meeting.port,
            key=meeting.key.hex(),
            ranks=meeting.ranks,
            shared=shared_memory(),
        )

    def _heartbeat_limit_s(self) -> float:
        """0 where tasks run in the ranks: those say nothing for as long as a task takes."""
        return self._config.heartbeat_limit_s if self._config.isolation == "process" else 0.0

    def _beat_s(self) -> float:
        return min(self._config.heartbeat_s, self._heartbeat_limit_s() / 4)

    def _reassure_guard(self) -> None:
        """Tell the guard from time to time that this process turns."""
        now_s = time.monotonic()
        if self._beat_s() and now_s - self._reassured_s >= self._beat_s():
            self._reassured_s = now_s
            self._control.send("alive")

    # ---- the three ways to be a rank ----

    def _alone(self) -> int:
        """Be manager and only worker."""
        self._open_store(os.urandom(16), 0, None)
        status = self._lead(None, (), self._worker_slots())
        self._control.send("status", status=status)
        return status

    def _lead(self, others: Ranks | None, ranks: Collection[int], slots: int) -> int:
        """Be the manager of the `others`, and a worker in the same loop if there are slots for it. Returns the job's status."""
        exchange = self._data.exchange if self._data is not None else None
        if not slots:
            assert others is not None
            return self._zero.manage(others, frozenset(ranks), None, exchange)
        joined = JoinedRanks(others)
        inline = others is None and self._config.isolation == "none"  # else a task would stop the manager of all
        local = self._new_worker(OWN, joined.own, slots, inline)
        self._greet(local)
        return self._zero.manage(joined, frozenset((OWN, *ranks)), local, exchange)

    def _work(self, rank: int, link: Link) -> int:
        """Be a worker; returns 0 after an orderly end."""
        self._waiter.watch_link(link)
        loop = self._new_worker(rank, link, self._worker_slots(), self._config.isolation == "none")
        self._greet(loop)
        self._control.send("ready")
        self._waiter.watch(self._control.fileno())

        def guard_says(ready: list[int]) -> None:
            self._reassure_guard()
            self._from_guard(loop, ready)

        worker_loop.run(loop, self._waiter, guard_says, self._config.stop_timeout_s)
        self._broken = not loop.together
        return 0

    def _from_guard(self, worker: worker_loop.WorkerLoop | None, ready: list[int]) -> list[dict[str, Any]]:
        """Take what the guard has sent, if its descriptor is ready; returns the messages for the manager."""
        for_manager: list[dict[str, Any]] = []
        if self._control.fileno() not in ready:
            return for_manager
        while (message := self._control.receive()) is not None:
            if message["op"] in ("client-exited", "notice", "died", "here"):
                for_manager.append(message)
            elif message["op"] == "template":
                sock = socket.socket(fileno=message["fd"])
                if worker is None or worker.stopped:
                    sock.close()
                else:
                    print(f"exex: {worker.state.place()} starts another template", file=sys.stderr, flush=True)
                    worker.replace_template(self._begin(Template(sock), worker.state.rank))
            elif message["op"] == "gone":
                raise StartError("the guard is gone")
        return for_manager

    def _worker_slots(self) -> int:
        if isinstance(self._config.slots, int):
            return self._config.slots
        return allocation.auto_slots(os.sched_getaffinity(0), max(1, len(self._masks)), self._masks)

    def _first_has_slots(self, rank: int, size: int) -> bool:
        """Whether rank 0, if it is on the node of `rank`, runs tasks there."""
        if size == 1 or self._config.manager_slots != "auto":
            return size == 1 or self._config.manager_slots != 0
        return rank == 0 and self._manager_slots() > 0  # alone on its node

    def _manager_slots(self) -> int:
        config = self._config
        if isinstance(config.manager_slots, int):
            return config.manager_slots
        most = config.slots if isinstance(config.slots, int) else None
        return allocation.manager_slots(os.sched_getaffinity(0), len(self._masks), most)

    def _greet(self, worker: worker_loop.WorkerLoop) -> None:
        """Wait for the template, and say Hello."""
        error = worker.await_template(self._config.start_timeout_s)
        self._times_s.append(time.monotonic() - self._began_s)
        gc.freeze()
        gc.enable()  # a manager beside it will disable it again
        worker.hello(__version__, platform.python_version(), error, self._times_s)

    def _new_worker(self, rank: int, link: Link, slots: int, inline: bool) -> worker_loop.WorkerLoop:
        config = self._config
        found = self._equipment(rank, slots)
        template = self._begin(Template(self._template_socket), rank)
        place = Place(rank, self._node)
        beat_s, limit_s = (self._beat_s(), self._heartbeat_limit_s()) if rank != OWN else (0.0, 0.0)
        return worker_loop.WorkerLoop(
            place,
            slots,
            link,
            template,
            self._waiter,
            equipment=found,
            take_part=self._new_together if rank != OWN else None,
            grace_s=config.grace_s,
            inline=inline,
            tasks_per_process=config.tasks_per_process if isinstance(config.tasks_per_process, int) else 0,
            beat_s=beat_s,
            limit_s=limit_s,
            output=self._task_output(),
            data=self._data,
        )

    def _new_together(self) -> Together:
        """What runs functions on communicators in this rank."""
        from exex.transport import mpi

        place = Place(mpi.world_rank(), self._node)
        return Together(mpi.form, place, self._page, self._script, os.path.dirname(os.path.abspath(self._script)))

    def _task_output(self) -> TaskOutput | None:
        """Where what tasks print is kept; None: it is passed on."""
        if self._config.output == "inherit":
            return None
        from exex.store.task_output import TaskOutput

        return TaskOutput(self._run_dir, self._node, self._config.output_limit_bytes)

    def _equipment(self, rank: int, slots: int) -> worker_loop.Equipment:
        """What the tasks of this rank may use of its node."""
        config, cpus, memory = self._config, os.sched_getaffinity(0), equipment.read_memory(os.environ)
        is_granted = bool(allocation.find_allocation(os.environ).batch_system) or cpus < equipment.read_all_cpus()
        siblings = equipment.read_siblings(cpus)
        return worker_loop.Equipment(
            equipment.slot_cores(config.bind, slots, cpus, self._neighbours, rank, is_granted, siblings),
            memory,
            equipment.find_gpus(config.gpus, os.environ, equipment.nvidia_files()),
            equipment.most_parents(
                config.max_parents, slots, memory, len(self._neighbours), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            ),
        )

    def _begin(self, template: Template, rank: int) -> Template:
        template.begin(
            script_dir=os.path.dirname(os.path.abspath(self._script)),
            cwd=os.getcwd(),
            run_dir="",
            preload=self._config.preload,
            rank=rank,
            node=self._node,
            script=self._script,
            gpu_variable=equipment.find_gpu_variable(self._config.gpu_variable, os.environ),
            marks=self._config.output == "files",
            store=self._data.for_template() if self._data is not None else ("", 0, 0),
            of_tasks=OfTasks(self._config.retries, self._config.staging, self._config.fetch_to, _FOR_NESTING),
        )
        return template




def _raise_descriptor_limit() -> None:
    """A task process takes six descriptors; the usual soft limit of 1024 is for programs that use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))




