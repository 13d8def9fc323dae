"""What the script's threads leave for the manager, and how it becomes messages. Runs in the client; no I/O.

Any thread appends to the lists, and only the one that has the turn to talk takes from them. Appending and slicing are
atomic, so that needs no lock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures._base import FINISHED
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import msgspec

from exex.client.futures import AppFuture, DataFuture
from exex.client.lazy import LazyFuture
from exex.client.outcomes import Failed, FailedHere, NeedFailed
from exex.client.settling import settle
from exex.client.values import Values
from exex.errors import SerializationError
from exex.protocol import payload as payloads
from exex.protocol.messages import (
    Applied,
    AppSpec,
    CacheKey,
    Cancel,
    Checkpoint,
    Collected,
    Fulfil,
    Message,
    Outcome,
    Promise,
    Release,
    Spread,
    Submit,
    TaskId,
    Verdict,
    Want,
)
from exex.protocol.payload import Payload, Stored

_MOST_CALLS = 8192
"""Calls in one Submit."""

_HELD_FAILURES = 1000
"""Failed futures that are held, though the script may have dropped them, for the messages of their dependents."""

_NOTHING = payloads.dump(None)
_ONLY_BYTES = {bytes}
_T = TypeVar("_T")


class Given(NamedTuple):
    """The value of a need that is done, in its place among the needs of a call.

    Attributes:
        proxy: of a value that was broadcast, and that the client may have to open; else None.
        task: whose value it is; -1 if it is nobody's.
    """

    payload: Payload
    proxy: Any = None
    task: TaskId = -1


class Fulfilled(NamedTuple):
    """A promise that the client has kept or broken."""

    future: AppFuture
    outcome: Outcome
    payload: Payload


class Run(NamedTuple):
    """Calls, or promises, with consecutive numbers: one message."""

    promised: bool
    futures: list[AppFuture]


class Outbox:
    """The way of calls, cancellations and fulfilled promises to the manager.

    Attributes:
        calls: futures of calls and promises that are not sent yet, in the order in which they were made.
        unfinished: futures that the manager was told of and has not answered, by number; they are kept alive here.
        failed: futures that have failed or were cancelled, by number, as long as somebody holds them; the latest are held.
        ended: futures whose callbacks are to be called.
        taken: number of calls and promises that have left `calls` so far.
        unfinished_bytes: of the payloads of all calls that were sent and not answered.
        keys: of calls of cached apps that are not sent yet, by task number.
        affinity: of calls that are not sent yet, the task near which they would like to run; `tags`: what the user calls them.
        collects: the manager is told at which results the program has looked: this client may be found again.
        unsent_large_bytes: of large payloads not sent yet, which are counted at once; the others are small.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._wants: list[str] = []
        self._spreads: list[Stored] = []
        self.calls: list[AppFuture] = []
        self.unfinished: dict[TaskId, AppFuture] = {}
        self.failed: WeakValueDictionary[TaskId, AppFuture] = WeakValueDictionary()
        self._lately_failed: deque[AppFuture] = deque(maxlen=_HELD_FAILURES)
        self.ended: list[LazyFuture] = []
        self.taken = 0
        self.unfinished_bytes = 0
        self.unsent_large_bytes = 0
        self._cancelled: list[AppFuture] = []
        self._fulfilled: list[Fulfilled] = []
        self._verdicts: list[tuple[Verdict, int]] = []
        self.keys: dict[TaskId, CacheKey] = {}
        self.affinity: dict[TaskId, TaskId] = {}
        self.tags: dict[TaskId, str] = {}
        self.collects = False
        self._collected: list[TaskId] = []
        self._first_app = 0
        self._checkpoints: list[int] = []
        self._given: dict[TaskId, dict[int, Payload]] = {}
        self._lock = threading.Lock()
        self._numbers: dict[AppSpec, int] = {}
        self._digests: set[bytes] = set()
        self._new_apps: list[AppSpec] = []
        self._new_functions: dict[bytes, Payload] = {}

    # ---- any thread --------------------------------------------------------------------------------------

    def register(self, spec: AppSpec, function: Payload) -> int:
        """The number of an app, given as a spec with the number 0. A new one is announced with the next Submit."""
        with self._lock:
            number = self._numbers.get(spec)
            if number is not None:
                return number
            number = self._numbers[spec] = self._first_app + len(self._numbers)
            if spec.function not in self._digests:
                self._digests.add(spec.function)
                self._new_functions[spec.function] = function
            self._new_apps.append(msgspec.structs.replace(spec, app=number))
            return number

    def go_on(self, first: TaskId, first_app: int) -> None:
        """Before anything else: an earlier client of this name has used the numbers below these."""
        self.taken, self._first_app = first, first_app

    def count_large(self, size_bytes: int) -> None:
        """A large payload of this size, stored or not, is being submitted."""
        with self._lock:
            self.unsent_large_bytes += size_bytes

    def cancel(self, future: AppFuture) -> None:
        """The future is cancelled; the manager must hear of it."""
        self._cancelled.append(future)

    def fulfil(self, future: AppFuture, outcome: Outcome, payload: Payload) -> None:
        """The promised future has its outcome; so must the manager's task."""
        self._fulfilled.append(Fulfilled(future, outcome, payload))

    def decide(self, verdict: Verdict, size_bytes: int) -> None:
        """What the retry handler says. If it gives up, the caller fails the future, whose call had this size."""
        self._verdicts.append((verdict, size_bytes))

    def checkpoint(self, number: int) -> None:
        """What has been answered so far is to be on disk."""
        self._checkpoints.append(number)

    def want(self, name: str) -> None:
        """Somebody waits for a stored value."""
        self._wants.append(name)

    def note_collected(self, task: TaskId) -> None:
        """The program has looked at a result, or nobody will."""
        if self.collects:
            self._collected.append(task)

    def spread(self, stored: Stored) -> None:
        """Every node will need this."""
        self._spreads.append(stored)

    def open_futures(self) -> list[AppFuture]:
        """Futures of all tasks that have no outcome yet, oldest first."""
        unsent = self.calls[:]  # first: what leaves this list meanwhile is in `unfinished` then
        known = dict.fromkeys(list(self.unfinished.values()))
        known.update(dict.fromkeys(unsent))
        return [future for future in known if not future.done()]

    def newest(self) -> TaskId:
        """The highest number of a task without an answer; -1 if there is none."""
        return max((*[future._tid for future in self.calls[:]], *list(self.unfinished)), default=-1)

    def __len__(self) -> int:
        """Number of tasks without an answer."""
        return len(self.calls) + len(self.unfinished)

    def is_empty(self) -> bool:
        """Whether nothing waits to be sent."""
        calls_or_ends = self.calls or self._cancelled or self._fulfilled or self._verdicts or self._checkpoints
        return not (calls_or_ends or self._values.released or self._wants or self._spreads or self._collected)

    # ---- who has the turn --------------------------------------------------------------------------------

    def note_failed(self, future: AppFuture) -> None:
        """Dependents will ask for this future by its number, perhaps after the script has dropped it."""
        self.failed[future._tid] = future
        self._lately_failed.append(future)

    def take(self, answered: int) -> list[Message]:
        """Messages for all that waits, in the order in which they must be sent.

        What refers to a task is taken first, so that the task itself is on its way before it.

        Args:
            answered: number of the last Answer that was applied.
        """
        cancelled = _take(self._cancelled) if self._cancelled else []
        fulfilled = _take(self._fulfilled) if self._fulfilled else []
        verdicts = _take(self._verdicts) if self._verdicts else []
        messages: list[Message] = [Spread(payload=stored) for stored in _take(self._spreads)] if self._spreads else []
        wants = _take(self._wants) if self._wants else []
        released = _take(self._values.released) if self._values.released else []
        if self.calls:
            for promised, futures in self._take_runs(fulfilled):
                messages.append(_promise(futures) if promised else self._submit(futures, answered))
        if fulfilled:
            messages.append(self._fulfil(fulfilled))
        for verdict, size_bytes in verdicts:
            if verdict.task in self.unfinished:
                messages.append(verdict)
                if not verdict.retry:
                    del self.unfinished[verdict.task]
                    self.unfinished_bytes -= size_bytes
        messages += self._of_results(answered, wants, released)
        if self._checkpoints:
            messages += [Checkpoint(number=number) for number in _take(self._checkpoints)]
        if not cancelled:
            return messages
        known = [future for future in cancelled if self.unfinished.pop(future._tid, None) is not None]
        if known:
            self.unfinished_bytes -= sum(future._raw for future in known if type(future._raw) is int)
            for future in known:
                self.note_failed(future)
            messages.append(Cancel(tasks=[future._tid for future in known]))
        return messages

    def _of_results(self, answered: int, wants: list[str], released: list[str]) -> list[Message]:
        messages: list[Message] = [Want(names=wants, here=self._values.maps)] if wants else []
        if self._collected:
            messages += [Applied(answered=answered), Collected(tasks=_take(self._collected))]  # it must know that they are here
        if released:  # last: who named them is on its way
            messages.append(Release(names=released))
        return messages

    def _take_runs(self, fulfilled: list[Fulfilled]) -> list[Run]:
        """Take the new calls. One with a need that has failed becomes a promise, broken at once."""
        batch = self.calls[:]
        tids = [future._tid for future in batch]
        self.unfinished.update(zip(tids, batch))
        del self.calls[: len(batch)]
        self.taken += len(batch)
        without_needs = [future._needs for future in batch].count(None)  # promises are made with needs == ()
        if without_needs == len(batch) and tids[-1] - tids[0] == len(tids) - 1 and tids == sorted(tids):
            return [Run(False, batch[i : i + _MOST_CALLS]) for i in range(0, len(batch), _MOST_CALLS)]
        runs: list[Run] = []
        following = (-1, False)
        for future in batch:
            promised, raw = future._promised, future._raw
            if not promised and future._needs and not self._resolve_needs(future):
                promised = True
                self.keys.pop(future._tid, None)
                self.affinity.pop(future._tid, None)
                self.tags.pop(future._tid, None)
                if type(raw) is not bytes:
                    self.count_large(-len(raw))
                    self._values.remove(raw)
                fulfilled.append(Fulfilled(future, Outcome.FAILED, b""))  # b"": its dependents are failed here as well
            if (future._tid, promised) != following or len(runs[-1].futures) == _MOST_CALLS:
                runs.append(Run(promised, []))
            runs[-1].futures.append(future)
            following = (future._tid + 1, promised)
        return runs

    def _resolve_needs(self, future: AppFuture) -> bool:
        """Replace the needs by their task numbers, as `Submit.needs` has them. False: the future has failed."""
        ids: list[TaskId] = []
        given: dict[int, Payload] = {}
        failed: list[LazyFuture] = []
        try:
            needs = take_values(future._needs or ())
        except SerializationError as error:
            return self._fail(future, FailedHere(error), str(error))
        for place, need in enumerate(needs):
            owner = need.app_future if isinstance(need, DataFuture) else need
            if type(need) is Given:
                given[place] = need.payload
                ids.append(-1 if need.task < 0 else -2 - need.task)
            elif owner._has_failed() or owner.cancelled():
                failed.append(owner)
            else:  # open, or a promise of whose end the manager is told after this
                ids.append(owner._tid)
        if failed:
            for payload in given.values():
                self._values.remove(payload)
            for owner in failed:
                owner._call.proxy.seen(owner)
            return self._fail(future, NeedFailed(failed), "a need of it failed")
        future._needs = ids
        if given:
            self._given[future._tid] = given
        return True

    def _fail(self, future: AppFuture, raw: Failed, text: str) -> bool:
        future._call.proxy.note_failure(future, text)
        if not settle(future, FINISHED, raw, self.ended):
            future._call.proxy.seen(future)  # it was cancelled
        return False

    def _submit(self, run: list[AppFuture], answered: int) -> Submit:
        with self._lock:
            apps, self._new_apps = self._new_apps, []
            functions, self._new_functions = self._new_functions, {}
        numbers = [future._call.number for future in run]
        raws = [future._raw for future in run]
        sizes = list(map(len, raws))
        now_s = time.monotonic()
        for future, size in zip(run, sizes):
            future._raw = size
            future._sent_s = now_s
        self.unfinished_bytes += sum(sizes)
        if set(map(type, raws)) != _ONLY_BYTES:
            self.count_large(-sum(size for raw, size in zip(raws, sizes) if type(raw) is not bytes))
        first = run[0]._tid
        needs = {i: future._needs for i, future in enumerate(run) if future._needs}
        keys: dict[int, CacheKey] = {}
        if self.keys:
            found = [self.keys.pop(future._tid, None) for future in run]
            keys = {i: key for i, key in enumerate(found) if key is not None}
        affinity: dict[int, TaskId] = {}
        if self.affinity:
            affinity = {i: self.affinity.pop(future._tid) for i, future in enumerate(run) if future._tid in self.affinity}
        tags: dict[int, str] = {}
        if self.tags:
            tags = {i: self.tags.pop(future._tid) for i, future in enumerate(run) if future._tid in self.tags}
        return Submit(
            first=first,
            apps=apps,
            functions=functions,
            calls=numbers if numbers.count(numbers[0]) != len(numbers) else numbers[:1],
            payloads=raws,
            needs=needs,  # type: ignore[arg-type]  # numbers by now
            given={i: self._given.pop(first + i) for i in needs if first + i in self._given},
            answered=answered,
            keys=keys,
            affinity=affinity,
            tags=tags,
        )

    def _fulfil(self, fulfilled: list[Fulfilled]) -> Fulfil:
        for item in fulfilled:
            self.unfinished.pop(item.future._tid, None)
            if item.future._promised:
                item.future._outcome_sent = True
            if item.outcome != Outcome.DONE:
                self.note_failed(item.future)
        return Fulfil(
            tasks=[item.future._tid for item in fulfilled],
            outcomes=bytes([item.outcome for item in fulfilled]),
            payloads=[item.payload for item in fulfilled],
        )


def take_values(needs: Sequence[Any]) -> list[Any]:
    """Put `Given` in the place of each need that has succeeded. What the script does to the value later has no effect.

    A promise of whose value the manager has not been told yet stays, so that the value goes there once.

    Raises:
        SerializationError: a value was unpickled here, and cannot be pickled again.
    """
    taken = []
    for need in needs:
        owner = need.app_future if isinstance(need, DataFuture) else need
        if type(need) is not Given and owner._state == FINISHED and not owner._has_failed() and owner._outcome_sent:
            try:
                value = owner._call.proxy.values.put(owner._payload()) if owner is need else _NOTHING
                need = Given(value, task=owner._tid)  # noqa: PLW2901
            except SerializationError as error:
                raise SerializationError(f"the value of {owner._title()} cannot be pickled again ({error})") from error
        taken.append(need)
    return taken


def _take(waiting: list[_T]) -> list[_T]:
    """Take all that is in a list to which other threads append."""
    taken = waiting[:]
    del waiting[: len(taken)]
    return taken


def _promise(run: list[AppFuture]) -> Promise:
    return Promise(first=run[0]._tid, count=len(run))
