"""The manager's talk with its clients: who is attached, what they say, what they are told. Owned by the loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from exex.errors import ProtocolError
from exex.manager import from_clients, nesting, standstill, visitors
from exex.manager.door import Door
from exex.manager.inner import Inner
from exex.manager.memo import Journal
from exex.manager.settings import Settings
from exex.manager.state import ClientRecord, ManagerState
from exex.protocol import codec
from exex.protocol.messages import (
    Applied,
    Attach,
    Cancel,
    Checkpoint,
    Checkpointed,
    Collected,
    Finish,
    FromTasks,
    Fulfil,
    JobEnds,
    Order,
    Ordered,
    Promise,
    Rank,
    Release,
    Spread,
    Submit,
    Verdict,
    Want,
    Welcome,
)
from exex.protocol.payload import Large
from exex.record.recorder import Recorder
from exex.transport.base import GONE, SCRIPT, Server

MESSAGES_A_TURN = 256
_MOST_QUOTED = 500  # characters of what a refused client has made us say

ANSWER_S = 1e-3
"""How long values that other tasks have waited for, and their client perhaps not, may be held back from it: in a chain each
Answer would wake the client, and cost it more than its task costs anybody else."""

_HANDLERS: dict[type, Callable[[ManagerState, ClientRecord, Any], None]] = {
    Submit: from_clients.on_submit,
    Promise: from_clients.on_promise,
    Fulfil: from_clients.on_fulfil,
    Cancel: from_clients.on_cancel,
    Verdict: from_clients.on_verdict,
    Applied: from_clients.on_applied,
    Finish: from_clients.on_finish,
    Want: from_clients.on_want,
    Release: from_clients.on_release,
    Spread: from_clients.on_spread,
    Collected: from_clients.on_collected,
}


_ABOUT_TASKS = frozenset((Submit, Promise, Fulfil, Cancel, Verdict))


class Clients:
    """All clients of the job.

    Args:
        record: what is told of all that they say and are told; None for nothing.

    Attributes:
        link: by the link's own numbers; None until the loop listens.
        records: of those that are attached, by the link's number.
        waiting: those that attached before every worker was up.
        ordered: to end the job: "wait" for all tasks, or "cancel" them; "" if nobody has said so.
        door: to clients in task processes.
    """

    def __init__(
        self, settings: Settings, state: ManagerState, journal: Journal | None, record: Recorder | None = None
    ) -> None:
        self._record = record
        self.link: Server | None = None
        self.records: dict[int, ClientRecord] = {}
        self.waiting: list[tuple[int, Attach]] = []
        self.ordered = ""
        self.door = Door()
        self._refused: set[int] = set()  # they hear and say nothing any more
        self._is_open = False
        self._settings = settings
        self._state = state
        self._journal = journal
        self._encoder = codec.Encoder()
        self._decoder = codec.from_client()

    # ---- what they say ----

    def drain(self) -> bool:
        """Take what has arrived. True if that was anything."""
        if self.link is None:
            return False
        for count in range(MESSAGES_A_TURN):
            arrived = self.link.receive()
            if arrived is None:
                return count > 0
            number, frames = arrived
            if frames is GONE:
                self._on_gone(number)
            elif number not in self._refused:
                try:
                    self._on_message(number, self.records.get(number), self._decoder.decode(frames))
                except ProtocolError as error:
                    self._refuse(number, str(error))
        return True

    def from_tasks(self, rank: Rank, said: FromTasks) -> None:
        """What task processes say as clients."""
        for process, task, payload in zip(said.processes, said.tasks, said.messages):
            number = self.door.number(rank, process)
            if number in self._refused:
                continue
            try:
                message = self._decoder.decode(payload.frames if type(payload) is Large else [payload])
                client = self.door.records.get(number)
                if client is not None and type(message) in _ABOUT_TASKS and not nesting.on_said(self._state, client, task):
                    nesting.on_unwanted(self._state, client, message)
                else:
                    self._on_message(number, client, message)
                    if type(message) is Submit and client is not None and self._state.holdings:
                        first, count = client.base + message.first, len(message.payloads)
                        standstill.end_impossible(self._state, client, range(first, first + count))
            except ProtocolError as error:
                self._refuse(number, str(error))
        for process in said.gone:
            self._on_inner_gone(self.door.number(rank, process))

    def lose_rank(self, rank: Rank) -> None:
        """Its task processes are gone."""
        for number in self.door.all_of(rank):
            self._on_inner_gone(number)

    def _on_inner_gone(self, number: int) -> None:
        self._refused.discard(number)
        client = self.door.forget(number)
        if client is not None:
            self._finish(client, cancel=True)

    def open(self) -> None:
        """Every worker is up: clients are welcome."""
        self._is_open = True
        for number, attach in self.waiting:
            self._welcome(number, attach)
        self.waiting.clear()

    def _on_gone(self, number: int) -> None:
        self._forget_waiting(number)
        self._refused.discard(number)
        client = self.records.pop(number, None)
        if client is None:
            return
        if client.labels is None:
            self._finish(client, cancel=not self._settings.detach)
            return
        if client.labels.who.detach and not client.finished:
            visitors.on_left(self._state, client)
        if not client.labels.who.detach or not (client.unfinished or client.kept):
            self._finish(client, cancel=True)
        self._state.data.sweep(f"c{client.number}.")

    def _on_message(self, number: int, client: ClientRecord | None, message: Any) -> None:
        if type(message) is Attach:
            if client is not None or any(number == other for other, _ in self.waiting):
                self._refuse(number, "it has said Attach twice")
            elif message.version != self._settings.version:
                self._refuse(number, f"this is exex {self._settings.version}, the client is exex {message.version}")
            elif self._is_visitor(number) and (why := visitors.why_not(self._state, message, self._settings.python)):
                self._refuse(number, why)
            elif not self._is_open:
                self.waiting.append((number, message))
            else:
                self._welcome(number, message)
        elif type(message) is Order and self._is_visitor(number):
            self._on_order(number, message)
        elif client is None or type(message) is Order:
            self._refuse(number, "the first message must be Attach")
        elif type(message) is Checkpoint:
            self._on_checkpoint(number, message)
        elif not client.finished:
            if self._decoder.stored and type(message) in (Submit, Fulfil):
                from_clients.adopt(self._state, client, message)
            _HANDLERS[type(message)](self._state, client, message)
            self._note(client, message)

    def _note(self, client: ClientRecord, message: Any) -> None:
        """For the record: what was taken."""
        if self._record is None:
            return
        if client.inner is not None and type(message) is Submit:
            self._record.made(client.base + message.first, len(message.payloads), client.inner.parent)
        self._record.client_said(client.number, message, client.apps)

    def _finish(self, client: ClientRecord, cancel: bool) -> None:
        """As if the client had said so, unless it has."""
        if not client.finished:
            message = Finish(cancel=cancel)
            from_clients.on_finish(self._state, client, message)
            if self._record is not None:
                self._record.client_said(client.number, message, client.apps)

    def _on_checkpoint(self, number: int, message: Checkpoint) -> None:
        if self._journal is None:
            self.send(number, Checkpointed(number=message.number, error="the job has no journal"))
        else:
            self._journal.checkpoint((number, message.number))

    def _is_visitor(self, number: int) -> bool:
        """Whether it is not the job's own script."""
        return self._settings.listens and number > SCRIPT

    def _on_order(self, number: int, order: Order) -> None:
        count, error = 0, ""
        if order.version != self._settings.version:
            error = f"this is exex {self._settings.version}, and not {order.version}"
        elif order.what == "cancel":
            count, error = visitors.cancel(self._state, order.client, order.tasks)
        elif order.what == "shutdown" and self._settings.has_script:
            error = "the job runs a script, and ends with it"
        elif order.what == "shutdown":
            self.ordered = "cancel" if order.cancel else self.ordered or "wait"
        self.send(number, Ordered(error=error, clients=visitors.rows(self._state), cancelled=count))

    def _welcome(self, number: int, message: Attach) -> None:
        if self._is_visitor(number):
            client = visitors.on_attach(self._state, message, self._settings.client_bytes)
        else:
            inner = Inner(self.door.rank(number)) if number < 0 else None
            client = from_clients.on_attach(self._state, message, inner=inner)
        if number < 0:
            self.door.records[number] = client
            self.door.numbers[client.number] = number
        else:
            self.records[number] = client
        welcome = Welcome(
            version=self._settings.version,
            client=client.number,
            manager_pid=self._settings.pid,
            workers=len(self._state.workers),
            slots=self._state.slots(),
            run_dir=self._settings.run_dir,
            nodes=self._state.nodes.shapes(),
            store=self._settings.store if number >= 0 else "",
            keep_bytes=self._settings.keep_bytes if number >= 0 else 0,
            first=max(0, client.used.end() - client.base),
            first_app=max(client.apps, default=-1) + 1,
            found=visitors.found(self._state, client),
            journal=self._settings.journal,
        )
        self.send(number, welcome)

    def _refuse(self, number: int, reason: str) -> None:
        print(f"exex: client {number} is refused: {reason[:_MOST_QUOTED]}", file=sys.stderr, flush=True)
        self.send(number, JobEnds(reason=reason))
        self._refused.add(number)
        if number < 0:
            client = self.door.records.pop(number, None)
            if client is not None:
                del self.door.numbers[client.number]
        else:
            assert self.link is not None
            self.link.drop(number)
            self._forget_waiting(number)
            client = self.records.pop(number, None)
        if client is not None:
            self._finish(client, cancel=True)

    def _forget_waiting(self, number: int) -> None:
        self.waiting = [(other, attach) for other, attach in self.waiting if other != number]

    # ---- what they are told ----

    def send(self, number: int, message: object) -> None:
        """Queue a message for one of them."""
        if number < 0:
            self.door.send(number, self._encoder.encode(message))
            return
        assert self.link is not None
        try:
            self.link.send(number, self._encoder.encode(message))
        except ConnectionError:
            pass  # its GONE arrives, or its guard reports it

    def send_to_client(self, client: int, message: object) -> None:
        """Queue a message for the client with this number of the manager's, if it is still there."""
        if client in self.door.numbers:
            self.send(self.door.numbers[client], message)
            return
        for number, record in self.records.items():
            if record.number == client:
                self.send(number, message)

    def answer(self) -> bool:
        """Tell them of what has ended. True if there was anything."""
        traffic = False
        for number, client in self.records.items():
            if (client.tasks or client.started) and not self._is_held_back(client):
                self._answer(number, client)
                traffic = True
        for client in self._state.inner:
            number = self.door.numbers.get(client.number, 0)
            if number and (client.tasks or client.started):
                self._answer(number, client)
                traffic = True
        self._state.inner.clear()
        return traffic

    def _answer(self, number: int, client: ClientRecord) -> None:
        answer = client.take_answer()
        if self._record is not None:
            self._record.answer(client.number, answer)
        self.send(number, answer)

    def _is_held_back(self, client: ClientRecord) -> bool:
        """Whether an Answer can wait: it has only values that other tasks have waited for, and more will come."""
        if client.hurry or not self._state.assigned:
            return False
        if client.held_since_s < 0:
            client.held_since_s = self._state.now_s
        return self._state.now_s - client.held_since_s < ANSWER_S

    def hold_answers(self) -> bool:
        """Whether an Answer is held back."""
        return any(client.held_since_s >= 0 for client in self.records.values())

    def tell_of_end(self, reason: str) -> None:
        """The job ends."""
        for number in [*self.records, *(number for number, _ in self.waiting)]:
            self.send(number, JobEnds(reason=reason))

    def cancel_all(self) -> None:
        """They are gone: end their tasks."""
        for client in list(self._state.clients.values()):
            self._finish(client, cancel=True)
