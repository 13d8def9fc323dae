"""The client's face towards the manager: takes what the script's threads want of it, and has a thread that sees to it.

One thread at a time listens to the manager: the proxy thread, or else a thread of the script that waits for a result,
which saves waking two threads for each answer. Callbacks are called by the proxy thread in any case.
"""

from __future__ import annotations

import itertools
import select
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED
from typing import Any, Literal

from exex.client.away import PATIENCE_S, away
from exex.client.bell import Bell
from exex.client.found import find_again
from exex.client.futures import AppFuture
from exex.client.inbox import CheckpointAnswer, Inbox, Lost
from exex.client.interrupts import NoShield, Shield
from exex.client.keys import KeyMaker
from exex.client.lazy import LazyFuture
from exex.client.numbers import numbers
from exex.client.outbox import Outbox, take_values
from exex.client.outcomes import Call, Failed
from exex.client.pressure import Pressure
from exex.client.promises import dump_call
from exex.client.settling import finish_all, settle
from exex.client.talk import LinkLost, Talk
from exex.client.values import Values
from exex.config import most_waiting
from exex.errors import ManagerLost, NoManagerError, ProtocolError, WorkerLost
from exex.protocol.messages import Attach, CacheKey, Finish, Outcome, TaskId, Verdict, Welcome
from exex.protocol.payload import Large, Payload, Stored
from exex.protocol.task_numbers import prefix_of
from exex.transport.base import Link

_IDLE_S = 1.0
_APPLIED_AFTER_S = 0.002
_PAUSE_S = 0.0001  # while the link cannot send
_POLLING_S = 0.001  # of a link without a descriptor
_STOP_TIMEOUT_S = 30.0
_TRIES = 5  # to map what was brought to this node, and may be lost again meanwhile


class Proxy:
    """One client of one manager.

    Args:
        has_shield: Ctrl-C may come; not so in a task process.

    Attributes:
        open: calls are accepted.
        asleep: nobody will notice that there is something to send unless the bell is rung.
        prefix: of the numbers of tasks, for people.
        welcome: what the manager said to our Attach.
        unfinished: futures that the manager was told of and has not answered, by task number.
        journal: path of the job's journal, for messages; "" if there is none.
        found: futures of the tasks that an earlier client of the same name has left.
    """

    def __init__(
        self,
        link: Link,
        most_tasks: int | Literal["auto"],
        most_bytes: int,
        ask: Callable[[AppFuture, Payload], None],
        has_shield: bool = True,
    ) -> None:
        self.open = False
        self.asleep = False
        self.welcome: Welcome
        self.prefix = ""
        self.found: list[AppFuture] = []
        self.journal = ""
        self.values = Values()
        self.outbox = Outbox(self.values)
        self.inbox = Inbox(self.outbox, ask)
        self._has_auto_limit = most_tasks == "auto"
        self.pressure = Pressure(0 if most_tasks == "auto" else most_tasks, most_bytes, self._count_unfinished)
        self.unfinished = self.outbox.unfinished
        self.seen = self.inbox.seen
        self.note_failure = self.inbox.note_failure
        self._calls = self.outbox.calls
        self._tids = numbers()
        self._checkpoint_numbers = itertools.count()
        self._talk = Talk(link, self.outbox, self.inbox, self.values)
        self._talker = 0  # the thread that has the turn
        self._thread = threading.Thread(target=self._run, name="exex-proxy", daemon=True)
        self._thread_id = 0  # -1 in a forked child
        self._closed_because = "the job has not begun"
        self._finish: Finish | None = None
        self._stays = False
        self._is_lost = False
        self._bell = Bell()
        self._ears = select.epoll()
        self._ears.register(self._bell, select.EPOLLIN)
        self._is_leading = threading.Lock()
        self._leader_bell = Bell()
        self._leader_ears = select.poll()
        self._leader_ears.register(self._leader_bell, select.POLLIN)
        self._shield = Shield(self._leader_bell.ring) if has_shield else NoShield()
        self._has_spoken = False  # by a submitting thread, since the proxy thread has slept or somebody has waited

    # ---- any thread --------------------------------------------------------------------------------------

    def submit(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AppFuture:
        """Make a task without options of its own. This is the fast path: what can be done in batches is done elsewhere.

        Raises:
            SerializationError: an argument cannot be pickled.
        """
        payload, needs = dump_call(args, kwargs, None)
        if type(payload) is Large:
            payload = self._admit(payload)
        tid = next(self._tids)
        future = AppFuture(call, tid, payload, take_values(needs) if needs else None)
        self._calls.append(future)
        if self.asleep:
            self._speak_up()
        if tid >= self.pressure.limit:
            self._hold_back(future)
        return future

    def submit_cached(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], maker: KeyMaker) -> AppFuture:
        """As `submit`, for a call of an app with cache=True.

        Raises:
            SerializationError: an argument cannot be pickled.
            CacheKeyError: no key can be made of an argument.
        """
        payload, needs = dump_call(args, kwargs, None)
        simple = None if needs else maker.simple(args, kwargs)
        key = maker.make(args, kwargs, needs) if simple is None else CacheKey(simple)
        future = self.new_future(call, payload, needs, None, key)
        self.send(future)
        return future

    def new_future(
        self,
        call: Call,
        payload: Payload,
        needs: Sequence[Any],
        tid: TaskId | None = None,
        key: CacheKey | None = None,
    ) -> AppFuture:
        """A future that is not submitted yet: `send` it.

        Args:
            tid: a number from `reserve`.
            key: of a call of a cached app.
        """
        if type(payload) is Large:
            payload = self._admit(payload)
        future = AppFuture(call, next(self._tids) if tid is None else tid, payload, take_values(needs) if needs else None)
        if key is not None:
            self.outbox.keys[future._tid] = key
        return future

    def reserve(self) -> TaskId:
        """A number for a task that needs it before its payload is made. Numbers may stay unused."""
        return next(self._tids)

    def send(self, future: AppFuture, later: bool = False) -> None:
        """Submit the task, or announce the promise.

        Args:
            later: the caller will `wake`, when it has more to send.
        """
        self._calls.append(future)
        if self.asleep and not later:
            self._speak_up()
        if future._tid >= self.pressure.limit:
            self._hold_back(future)

    def cancelled(self, future: Any) -> None:
        """The user has cancelled `future`."""
        self.outbox.cancel(future)
        self.wake()

    def fulfil(self, future: AppFuture, outcome: Outcome, raw: Any, payload: Payload) -> bool:
        """Give a promised future its outcome, `raw` here and `payload` at the manager. False if it has one already."""
        if outcome == Outcome.DONE:
            stored = self.values.put(payload)
            if stored is not payload:
                raw = payload = self.values.named(stored)
                if not settle(future, FINISHED, raw, self.outbox.ended):
                    self.values.remove(stored)
                    return False
                self.outbox.fulfil(future, outcome, payload)
                self.wake()
                return True
        if not settle(future, FINISHED, raw, self.outbox.ended):
            return False
        self.outbox.fulfil(future, outcome, payload)
        self.wake()
        return True

    def decide(self, future: AppFuture, verdict: Verdict) -> None:
        """The retry handler has decided; if it gives up, the future fails at once."""
        size_bytes = future._raw
        if not verdict.retry:
            self.note_failure(future, verdict.payload)
            if not settle(future, FINISHED, Failed(verdict.payload), self.outbox.ended):
                self.seen(future)  # it was cancelled
        self.outbox.decide(verdict, size_bytes)
        self.wake()

    def checkpoint(self) -> None:
        """Return when the results of all cached calls that have been answered are in the journal.

        Raises:
            JournalError: they could not be written.
            ManagerLost: the job has ended before that.
            RuntimeError: in a done-callback, where nobody could hear the answer.
        """
        if threading.get_ident() in (self._thread_id, self._talker):
            raise RuntimeError("exex.checkpoint() was called in a done-callback: the thread that runs it receives the answer")
        number = next(self._checkpoint_numbers)
        answer = self.inbox.checkpoints[number] = CheckpointAnswer()
        self.outbox.checkpoint(number)
        self.wake()
        if self._is_lost:
            self.inbox.lose_checkpoints(self._closed_because)
        with away():
            answer.done.wait()
        if answer.error is not None:
            raise answer.error

    def wake(self) -> None:
        """Let the proxy thread look at what there is to do."""
        self.asleep = False
        self._bell.ring()

    def check_open(self, what: str) -> None:
        """Raise unless calls are accepted.

        Raises:
            NoManagerError: the script has ended, or this is a forked process.
            ManagerLost: the manager has.
        """
        if not self.open:
            raise (ManagerLost if self._is_lost else NoManagerError)(f"{what} was called, but {self._closed_because}")

    def _admit(self, payload: Large) -> Payload:
        """Count a large payload, and copy what the script could change before it is sent: into the store, or here."""
        kept = self.values.put(payload)
        if kept is payload:
            first, *rest = payload.frames
            kept = Large([first, *(frame if memoryview(frame).readonly else bytes(frame) for frame in rest)])
        self.outbox.count_large(len(kept))
        self.pressure.look_at_bytes()
        return kept

    def _count_unfinished(self) -> tuple[int, int]:
        """Tasks without an answer, and the bytes of their payloads."""
        outbox = self.outbox
        return len(outbox), outbox.unfinished_bytes + outbox.unsent_large_bytes

    def _hold_back(self, future: AppFuture) -> None:
        if not self.open:
            future._settle(FINISHED, Lost(self._closed_because))
        elif threading.get_ident() != self._talker:
            self.pressure.hold_back(lambda: any(future._promised for future in list(self.unfinished.values())))

    def _speak_up(self) -> None:
        """Send a call when nobody else is awake: here, if it is the first for a while, since then it may be the only one."""
        if self._has_spoken or not self._shield.raise_():
            self.wake()
            return
        try:
            self._has_spoken = True
            if not self._talk.turn.acquire(blocking=False):
                self.wake()
                return
            try:
                self._take_turn(self._talk.say)
                if self._talk.is_stuck():
                    self.wake()
            finally:
                self._talk.turn.release()
        finally:
            self._shield.lower()

    # ---- turns: whoever takes one has `_talk.turn` -------------------------------------------------------

    def _take_turn(self, step: Callable[[], bool]) -> bool:
        """Talk with the manager. Returns whether there was anything to say or to hear. Never raises an Exception."""
        self._talker = threading.get_ident()
        busy = False
        try:
            if not self._is_lost:
                busy = step()
                self.pressure.update(self.outbox.taken - len(self.outbox.unfinished))
        except LinkLost as error:
            self._lose(str(error))
        except ConnectionError as error:
            self._lose(f"the link to the manager broke ({error})")
        except ProtocolError as error:
            self._lose(f"the manager and this client do not understand each other: {error}")
        except BaseException as error:
            self._lose(f"the client failed in the middle of a talk with the manager ({type(error).__name__}: {error})")
            if not isinstance(error, Exception):
                raise
        finally:
            self._talker = 0
        if self.outbox.ended and threading.get_ident() != self._thread_id:
            self.wake()
        return busy

    def _lose(self, reason: str) -> None:
        """Nothing will be answered any more: fail every future."""
        if self.journal:
            reason += f"; what was recorded until then is in the journal {self.journal}: run the same command with --resume"
        self._closed_because = reason
        self._is_lost = True
        self.open = False
        self.pressure.close()
        self.inbox.lose_checkpoints(reason)
        self.values.lose(reason)
        finish_all(self.outbox.open_futures(), itertools.repeat(Lost(reason)), self.outbox.ended)
        self.wake()

    # ---- waiting -----------------------------------------------------------------------------------------

    def before_waiting(self, future: Any) -> None:
        """See `Outlet.before_waiting`.

        Raises:
            RuntimeError: in the proxy thread, or in the middle of a turn, where nobody could end the wait.
            NoManagerError: in a process forked from the client.
        """
        if threading.get_ident() in (self._thread_id, self._talker):
            raise RuntimeError(
                f"a done-callback waits for {future._title()}: callbacks run in the thread that receives results, "
                "so it would wait for ever; start a task that needs it, or wait in a thread of your own"
            )
        if self._thread_id < 0:
            raise NoManagerError(f"{future._title()} belongs to the process from which this one was forked; wait for it there")

    def bring(self, stored: Stored) -> Payload:
        """The payload that is stored somewhere: mapped if it is on this node, or else fetched.

        Raises:
            WorkerLost: it is lost, and could not be made again.
            ManagerLost: the job has ended.
            RuntimeError: in the middle of a turn, where nobody could end the wait.
            NoManagerError: in a process forked from the client.
        """
        found: Payload = self.values.map(stored)
        for _ in range(_TRIES):
            if found is not None:
                return found
            found = self._fetch(stored.name)
            if isinstance(found, Stored):  # it is on this node now
                found = self.values.map(found)
        raise WorkerLost(f"the value {stored.name} was brought to this node {_TRIES} times, and was gone each time", -1, "")

    def _fetch(self, name: str) -> Payload:
        """Ask the manager for a value, and wait for it."""
        me = threading.get_ident()
        if me == self._talker:
            raise RuntimeError("a stored value cannot be fetched while answers are handled; ask for it in a thread of your own")
        if self._thread_id < 0:
            raise NoManagerError(f"the value {name} belongs to the process from which this one was forked; ask for it there")
        wanted, is_new = self.values.want(name)
        if is_new:
            self.outbox.want(name)
            self.wake()
        if self._is_lost or self._finish is not None:
            self.values.lose(self._closed_because)
        while me == self._thread_id and not wanted.done.is_set():  # in a callback: nobody else would listen
            with self._talk.turn:
                busy = self._take_turn(self._talk.take_turn)
            if not busy:
                self._ears.poll(_POLLING_S)
        if not wanted.done.wait(PATIENCE_S):
            with away():
                wanted.done.wait()
        return wanted.get()

    def lead(self, future: LazyFuture, timeout: float | None) -> bool:
        """Wait for `future` by listening to the manager here, so that no thread has to wake another.

        Returns:
            False if this thread cannot: another one does, or Ctrl-C could tear it out of the middle of a message.
        """
        self._has_spoken = False
        if self._talk.fileno() < 0 or not self._shield.raise_():
            return False
        try:
            if self._is_lost or not self._is_leading.acquire(blocking=False):
                return False
            try:
                self._listen_to_manager(False)
                if future._add_sleeper(self._leader_bell):
                    self._listen(future, None if timeout is None else time.monotonic() + timeout)
                    future._remove_sleeper(self._leader_bell)
            finally:
                self._listen_to_manager(True)
                self._is_leading.release()
        finally:
            self._shield.lower()
        return True

    def _listen_to_manager(self, listens: bool) -> None:
        """Whether the proxy thread wakes when something arrives."""
        try:
            self._ears.modify(self._talk.fileno(), select.EPOLLIN if listens else 0)
        except (OSError, ValueError):
            pass  # the link is closed

    def _listen(self, future: LazyFuture, end_s: float | None) -> None:
        """Take turns until `future` is done, or `end_s`, or Ctrl-C."""
        while True:
            with self._talk.turn:
                busy = self._take_turn(self._talk.take_turn)
                stuck = not self._is_lost and self._talk.is_stuck()
            if self._is_lost or self._shield.was_interrupted or future.done():
                break
            if busy:
                continue
            left_s = _IDLE_S if end_s is None else end_s - time.monotonic()
            if left_s <= 0:
                break
            pause_s = _PAUSE_S if stuck else _APPLIED_AFTER_S if self._talk.owes() else _IDLE_S
            events = self._leader_ears.poll(min(pause_s, left_s) * 1000)
            if not events and self._talk.owes():
                with self._talk.turn:
                    self._take_turn(self._talk.acknowledge)
            if any(fd == self._leader_bell.fileno() for fd, _ in events):
                self._leader_bell.clear()

    # ---- beginning and end -------------------------------------------------------------------------------

    def attach(self, attach: Attach, timeout_s: float) -> Welcome:
        """Shake hands with the manager, then start the thread.

        Raises:
            StartError: no answer within `timeout_s`, or a manager that cannot be used.
        """
        welcome = self.welcome = self._talk.attach(attach, timeout_s)
        if self._has_auto_limit:
            self.pressure.allow(most_waiting(welcome.slots))
        self.values.attach(welcome)
        self.prefix = prefix_of(welcome.client)
        self.outbox.collects = attach.detach
        if welcome.first or welcome.first_app:
            self._tids = numbers(welcome.first)
            self.outbox.go_on(welcome.first, welcome.first_app)
            self.found = find_again(self, welcome.found, self.outbox)
            self.pressure.update(welcome.first)
        if self._talk.fileno() >= 0:
            self._ears.register(self._talk.fileno(), select.EPOLLIN)
            self._leader_ears.register(self._talk.fileno(), select.POLLIN)
        self.open = True
        self._shield.install()
        self._thread.start()
        return self.welcome

    def lost_because(self) -> str:
        """Why the manager is lost; "" if it is not."""
        return self._closed_because if self._is_lost and self._finish is None else ""

    def is_quiet(self) -> bool:
        """Whether no task is left, and no callback that could start one."""
        with self._talk.turn:
            return not self.outbox.ended and not len(self.outbox) and self.outbox.is_empty()

    def stop(self, cancel: bool, stay: bool = False) -> None:
        """Send everything, say Finish, and end the thread. Nothing is accepted any more.

        Args:
            cancel: also cancel all tasks that are not done.
            stay: do not say Finish: the tasks go on, for a client of the same name.
        """
        self._stays = stay
        if self.open:
            self._closed_because = "the script has ended"
            self.open = False
        self.pressure.close()
        if cancel:
            for future in self.outbox.open_futures():
                future._settle(CANCELLED_AND_NOTIFIED, None)
        self._finish = Finish(cancel=cancel)
        self.wake()
        self._thread.join(_STOP_TIMEOUT_S)
        self._shield.remove()

    # ---- one task after the other, in a task process -----------------------------------------------------

    def begin_task(self) -> None:
        """Accept calls of another task, unless the manager is lost."""
        if self._thread_id >= 0 and not self._is_lost:
            self.open = True

    def end_task(self, title: str) -> None:
        """Accept none of this one any more, and send all that it wanted to be sent: the link says whose it is."""
        self.open = False
        self._closed_because = f"{title} has ended" if not self._is_lost else self._closed_because
        if self._thread_id < 0:
            return
        with self._talk.turn:
            while not self._is_lost and (not self.outbox.is_empty() or self._talk.is_stuck()):
                self._take_turn(self._talk.say)
                if self._talk.is_stuck():
                    time.sleep(_PAUSE_S)
        self.inbox.forget_failures()

    def forked(self) -> None:
        """This is a forked child: there is no thread here, and the link is the parent's."""
        self.open = False
        self._thread_id = -1
        self._closed_because = "this process was forked from the client, and only the client itself can start tasks"
        self.pressure.limit = 0
        self._shield.remove()

    # ---- the proxy thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        self._thread_id = threading.get_ident()
        self.pressure.exempt()
        try:
            while not self._is_lost and (self._finish is None or not self.outbox.is_empty()):
                with self._talk.turn:
                    busy = self._take_turn(self._talk.take_turn)
                    stuck = not busy and not self._is_lost and self._talk.is_stuck()
                self._call_back()
                if not busy:
                    self._sleep(stuck)
            with self._talk.turn:
                finish = self._finish
                if finish is not None and not self._is_lost:
                    stays = self._stays
                    self._take_turn(lambda: self._talk.leave(None if stays else finish, _STOP_TIMEOUT_S))
                    if stays:
                        self._lose("this client has left; exex.connect() with the same name finds its tasks again")
            self._call_back()
        except BaseException as error:
            with self._talk.turn:
                self._lose(f"the client's proxy thread failed ({type(error).__name__}: {error})")
            raise
        finally:
            with self._talk.turn:
                self._is_lost = True  # for whoever still waits: nothing more will be heard
                self._talk.close()

    def _call_back(self) -> None:
        ended = self.outbox.ended
        while ended:
            for future in ended[:]:
                future._call_back()
                del ended[0]  # not before: see `is_quiet`

    def _sleep(self, stuck: bool) -> None:
        """Wait for something to hear or to say."""
        if stuck:
            time.sleep(_PAUSE_S)
            return
        idle_s = _IDLE_S if self._talk.fileno() >= 0 else _POLLING_S
        self._has_spoken = False
        self.asleep = True
        if self.outbox.is_empty() and not self.outbox.ended and self._finish is None:  # from here on the bell is rung
            events = self._ears.poll(min(idle_s, _APPLIED_AFTER_S) if self._talk.owes() else idle_s)
            if not events and self._talk.owes():
                with self._talk.turn:
                    self._take_turn(self._talk.acknowledge)
            if any(fd == self._bell.fileno() for fd, _ in events):
                self._bell.clear()
        self.asleep = False
