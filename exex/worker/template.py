"""The template: imports what tasks need, then forks, signals and reaps task processes. It never sees MPI.

It is forked from the guard before anything touches MPI, does nothing on its own, and has no threads of its own. The
kernel kills it with its guard, and its task processes with it. It ends when its rank says so or is gone, and then
leaves no descendant behind.

Each task process has a keeper of its own between itself and the template. Orphans come to the template only from below
a keeper that was killed, so whatever is its child and no keeper has lost its task and is killed.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from functools import partial

from exex.files import arrivals
from exex.launch.notices import NOTICES
from exex.protocol.context import NOTHING_SET
from exex.worker import families, granted, keeper, processes
from exex.worker.context import STOP_SIGNAL, Place
from exex.worker.processes import Died, End, Failed, Fork, Forked, Kill, Measure, Measured, Nest, Prepare, Ready
from exex.worker.stored import StoredValues
from exex.worker.task_process import Descriptors, die_with_parent, run_task_process

END_S = 5.0
"""How long killed processes may take to end; some cannot while a file system does not answer."""

_PR_SET_CHILD_SUBREAPER = 36
_OFTEN_NEEDED = ("cloudpickle",)
_IGNORED = (signal.SIGINT, *NOTICES)


def template_main(sock: socket.socket, environment: Mapping[str, str]) -> None:
    """Run the template in this process, a fresh fork of the guard. Does not return.

    Args:
        sock: to the rank, of type SOCK_SEQPACKET.
        environment: for task processes: that from before the launcher, without its variables.
    """
    status = 1
    try:
        die_with_parent(os.getppid())
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        _close_others(sock.fileno())
        os.environ.clear()
        os.environ.update(environment)
        template = _Template(sock)
        try:
            template.serve()
        finally:
            template.end()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _close_others(keep: int) -> None:
    """Close what the guard, and the launcher before it, has left open; PMI's socket above all. stdin becomes empty."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd != keep:
            try:
                os.close(fd)
            except OSError:
                pass  # the one that listed the directory


class _Template:
    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._keepers: dict[int, int] = {}  # of each slot
        self._place = Place(-1, "")
        self._run_dir = ""
        self._marks = False
        self._stored: StoredValues | None = None
        self._of_tasks = NOTHING_SET
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing is written to the pipe
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    # ---- the loop ----

    def serve(self) -> None:
        """Do what the rank says until it says End or is gone."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._wake_read in ready:
                self._clear_wakeup()
                self._reap()
            if self._socket.fileno() in ready and not self._on_packet():
                return

    def _clear_wakeup(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass

    def _on_packet(self) -> bool:
        """Handle the next packet; False at the end."""
        try:
            most_fds = len(Descriptors._fields)
            data, fds, _, _ = socket.recv_fds(self._socket, processes.MESSAGE_BYTES, most_fds, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return False
        if not data:
            return False
        message = processes.decode_for_template(data)
        if isinstance(message, Fork):
            self._fork(message, fds)
        elif isinstance(message, Kill):
            self._kill(message)
        elif isinstance(message, Measure):
            self._measure(message)
        elif isinstance(message, Nest):
            self._nest()
        elif isinstance(message, Prepare):
            self._prepare(message)
        return not isinstance(message, End)

    def _say(self, event: processes.Event) -> None:
        try:
            self._socket.send(processes.encode(event))
        except ConnectionError:
            pass  # the next packet is the end

    # ---- start ----

    def _prepare(self, message: Prepare) -> None:
        self._place = Place(message.rank, message.node)
        self._run_dir = message.run_dir
        self._marks = message.marks
        self._of_tasks = message.of_tasks
        if message.store:
            self._stored = StoredValues(message.store, message.keep_bytes, message.store_bytes)
            arrivals.directory = self._stored.files_directory()
        granted.gpu_variable = message.gpu_variable
        sys.argv = [message.script]
        try:
            os.chdir(message.cwd)
        except OSError as error:
            self._say(Failed(f"cannot enter the job's directory {message.cwd}: {error.strerror}"))
            return
        if message.script_dir not in sys.path[:1]:
            sys.path.insert(0, message.script_dir)
        for name in (*_OFTEN_NEEDED, *message.preload):
            try:
                importlib.import_module(name)
            except BaseException as error:  # also a sys.exit() at import
                text = f"cannot import {name} (a module to preload): {type(error).__name__}: {error}"
                self._say(Failed(text[: processes.MESSAGE_BYTES // 8]))
                return
        if message.preload:
            gc.collect()  # what modules of others leave behind; ours leave nothing worth a look at every object
        gc.enable()
        gc.freeze()  # a collection in a task process must not touch, and so copy, the pages that all share
        self._say(Ready(os.getpid()))

    def _nest(self) -> None:
        """Import what tasks that make tasks need; what cannot be imported, they will say."""
        for name in self._of_tasks.modules:
            try:
                importlib.import_module(name)
            except Exception:
                return
        gc.freeze()

    # ---- task processes ----

    def _fork(self, message: Fork, fds: list[int]) -> None:
        parent, slot = os.getpid(), message.slot
        signal.pthread_sigmask(signal.SIG_BLOCK, (STOP_SIGNAL,))  # the keeper lets it through when it can pass it on
        try:
            pid = os.fork()
        except OSError as error:
            self._say(Died(slot, 0, os.EX_OSERR, f"cannot fork a task process: {error.strerror}"))
        else:
            if pid == 0:
                try:
                    self._become_child(parent)
                    about = (self._place, self._run_dir, message.cores, self._marks, self._stored, self._of_tasks)
                    run = partial(run_task_process, Descriptors(*fds), *about)
                    keeper.keep(run, fds)
                finally:
                    os._exit(os.EX_SOFTWARE)
            self._keepers[slot] = pid
            self._say(Forked(slot, pid))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (STOP_SIGNAL,))
        for fd in fds:
            os.close(fd)

    def _become_child(self, parent: int) -> None:
        """Undo, in a new keeper, what makes this process the template."""
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._socket.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _kill(self, message: Kill) -> None:
        """Signal a task process, unless its keeper has been reaped: until then its pid cannot be another process's."""
        pid = self._keepers.get(message.slot)
        if pid is None or message.pid not in (0, pid):
            return
        if message.signal == signal.SIGKILL:
            families.kill_family({pid})
        else:
            families.send({pid}, STOP_SIGNAL)

    def _measure(self, message: Measure) -> None:
        pid = self._keepers.get(message.slot)
        if pid is None or message.pid not in (0, pid):
            return
        began_s = time.monotonic()
        used_bytes = families.used_bytes(families.family(families.children(pid)), message.limit_bytes, os.getpid())
        self._say(Measured(message.slot, pid, used_bytes, time.monotonic() - began_s))

    def _reap(self) -> bool:
        """Reap all children that have ended; False if there are no children at all."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return False
            if ended is None:
                return True
            for slot, pid in self._keepers.items():
                if pid == ended.si_pid:
                    del self._keepers[slot]
                    self._kill_lost(pid)
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    self._say(Died(slot, pid, status))
                    break
            else:
                os.waitpid(ended.si_pid, 0)
                self._kill_lost(ended.si_pid)

    def _kill_lost(self, ended: int) -> None:
        """Kill what has come from below a keeper that was killed.

        The children of a process come here before it can be reaped. So what was not here yet at one death is at the next.
        """
        families.kill_family(families.children(os.getpid()) - set(self._keepers.values()) - {ended})

    def end(self) -> None:
        """SIGKILL every descendant, until there are none or it takes too long."""
        until_s = time.monotonic() + END_S
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        while self._reap() and time.monotonic() < until_s:
            families.kill_family(families.children(os.getpid()))
            poll.poll(50)  # as subreaper this process gets all orphans, so no children means no descendants
            self._clear_wakeup()
