"""What is done about failed attempts where a retry handler decides, and where a join app's body fails. In the client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exex.client.futures import AppFuture
from exex.client.outcomes import Call

RetryHandler = Callable[[BaseException, dict[str, Any]], float]
"""Called with the error and the task's record, returns what the failure costs."""


class TaskRecord(dict[str, Any]):
    """What a retry handler is told of a task, under the names that Parsl uses.

    id, func_name, app_fu (the future), try_id (from 0), fail_count (failed attempts), fail_cost (what they have cost,
    without the one that is being judged), fail_history (their errors as text). Arguments are not kept in the client.
    """

    def __init__(self, future: AppFuture) -> None:
        super().__init__(
            id=future.tid,
            func_name=future.app_name,
            app_fu=future,
            try_id=0,
            fail_count=0,
            fail_cost=0,
            fail_history=[],
        )

    def judge(self, error: BaseException, call: Call) -> BaseException | None:
        """Decide about a failed attempt, as Parsl does: try again while what all have cost is at most `retries`.

        Returns:
            None to try again; else the error with which the task fails: that of the handler, if it raised one.
        """
        self["fail_count"] += 1
        self["fail_history"].append(repr(error))
        cost: float = 1
        if call.handler is not None:
            try:
                cost = call.handler(error, self)
                self["fail_cost"] += cost
            except Exception as failure:
                failure.__cause__ = failure.__cause__ or error
                return failure
        else:
            self["fail_cost"] += cost
        if self["fail_cost"] > call.retries:
            return error
        self["try_id"] += 1
        return None
