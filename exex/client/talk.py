"""The talk with the manager: what is sent, and what is done with what arrives. Runs in the client.

THE ORDER RULE. The manager keeps the value of a finished task until the client has applied the Answer that carries it
(`Submit.answered`, `Applied`). Answers are applied and calls are sent in turns, one at a time. So when a call is sent,
each of its needs is either unfinished as far as the client knows, and then the manager still knows it; or it is finished,
and then its value goes with the call, or its failure fails the call here.
"""

from __future__ import annotations

import select
import threading
import time

from exex.client.inbox import Inbox
from exex.client.outbox import Outbox
from exex.client.values import Values
from exex.errors import ManagerLost, ProtocolError, StartError
from exex.protocol import codec
from exex.protocol.messages import Answer, Applied, Attach, Brought, Checkpointed, Finish, JobEnds, Message, Submit, Welcome
from exex.transport.base import GONE, Link
from exex.version import __version__

_APPLIED_AFTER_TASKS = 256
_MOST_AT_ONCE = 100
_PAUSE_S = 0.0001  # while the link cannot send


class LinkLost(ConnectionError):
    """Nothing more will be heard; the text says why."""


class Talk:
    """Both directions of the link.

    Args:
        link: to the manager, which is its peer 0.

    Attributes:
        turn: to be held by whoever calls a method.
    """

    def __init__(self, link: Link, outbox: Outbox, inbox: Inbox, values: Values) -> None:
        self._values = values
        self.turn = threading.Lock()
        self._link = link
        self._outbox = outbox
        self._inbox = inbox
        self._encoder = codec.Encoder()
        self._decoder = codec.to_client()
        self._told = 0  # number of the last Answer that the manager knows to be applied
        self._owed_tasks = 0  # that were answered after it

    def fileno(self) -> int:
        """Of the link; -1 if it must be polled."""
        return self._link.fileno()

    def attach(self, attach: Attach, timeout_s: float) -> Welcome:
        """Shake hands with the manager.

        Raises:
            StartError: no answer within `timeout_s`, or a manager that cannot be used.
            ManagerLost: the job has ended.
        """
        give_up_s = time.monotonic() + timeout_s
        try:
            self._send(attach)
        except ConnectionError as error:
            raise ManagerLost(f"there is no manager at the other end ({error}); see what rank 0 printed") from error
        while (received := self._link.receive()) is None:
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                raise StartError(f"the manager did not answer within {timeout_s:g} s; see what rank 0 printed")
            can_wait = self._link.fileno() >= 0 and not self._link.progress()
            select.select([self._link] if can_wait else [], [], [], min(left_s, 1.0) if can_wait else 0.001)
        if received[1] is GONE:
            raise ManagerLost("the manager ended before it had answered; see what rank 0 printed")
        message = self._decoder.decode(received[1])
        if isinstance(message, JobEnds):
            raise ManagerLost(f"the manager takes no client: {message.reason}")
        if not isinstance(message, Welcome):
            raise StartError(f"the manager answered with {type(message).__name__} instead of Welcome")
        if message.version != __version__:
            raise StartError(f"the manager runs exex {message.version}, this client runs {__version__}: install the same one")
        return message

    def take_turn(self) -> bool:
        """Send what there is to send, and apply what has arrived. Returns whether there was anything.

        Raises:
            LinkLost: the job has ended.
            ConnectionError: the link is broken.
            ProtocolError: the manager says what it may not say.
        """
        said = self.say()  # first: calls should find their needs as they were when the script made them
        return self._hear() or said

    def say(self) -> bool:
        """The first half of a turn."""
        messages = [] if self._outbox.is_empty() else self._outbox.take(self._inbox.answered)
        for message in messages:
            self._send(message)
            if type(message) is Submit:
                self._told = self._inbox.answered
                self._owed_tasks = 0
        if self._owed_tasks >= _APPLIED_AFTER_TASKS:
            self.acknowledge()
        return bool(messages)

    def _hear(self) -> bool:
        for heard in range(_MOST_AT_ONCE):
            received = self._link.receive()
            if received is None:
                return heard > 0
            if received[1] is GONE:
                raise LinkLost(getattr(self._link, "error", "") or "the manager has ended")
            message = self._decoder.decode(received[1])
            if isinstance(message, Answer):
                if self._decoder.stored:
                    self._values.name_all(message.payloads)
                self._inbox.apply(message)
                self._owed_tasks += len(message.tasks) if len(received[1]) == 1 else _APPLIED_AFTER_TASKS
            elif isinstance(message, Checkpointed):
                self._inbox.checkpointed(message)
            elif isinstance(message, Brought):
                self._values.brought(message)
            elif isinstance(message, JobEnds):
                raise LinkLost(message.reason or "the job ends")
            else:
                raise ProtocolError(f"a second {type(message).__name__}")
        return True

    def owes(self) -> bool:
        """Whether the manager keeps values that it need not keep."""
        return self._told < self._inbox.answered

    def acknowledge(self) -> bool:
        """Tell the manager which answers are applied. Returns True, as the other parts of a turn do if they talk."""
        if self.owes():
            self._send(Applied(answered=self._inbox.answered))
            self._told = self._inbox.answered
        self._owed_tasks = 0
        return True

    def is_stuck(self) -> bool:
        """Push what has not left yet. Whether some still has not."""
        try:
            return self._link.progress()
        except ConnectionError:
            return False  # what is received next says so

    def leave(self, finish: Finish | None, timeout_s: float) -> bool:
        """Say Finish, if that is to be said, and stay until all has left, for `timeout_s` at most."""
        if finish is not None:
            self._send(finish)
        else:
            self.acknowledge()  # what has come is collected
        give_up_s = time.monotonic() + timeout_s
        while (self._link.progress() or self._link.transferring()) and time.monotonic() < give_up_s:
            time.sleep(_PAUSE_S)
        return True

    def close(self) -> None:
        """Close the link."""
        self._link.close()

    def _send(self, message: Message) -> None:
        self._link.send(0, self._encoder.encode(message))
