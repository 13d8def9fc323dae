"""What the manager's loop needs to know of the configuration."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from exex.manager.labels import MOST_BYTES
from exex.manager.memo import MEMORY_BYTES
from exex.protocol.messages import Rank


@dataclass(frozen=True)
class Settings:
    """What the manager's loop needs to know of the configuration.

    Attributes:
        workers: ranks that must say Hello.
        run_dir: told to the clients.
        heartbeat_limit_s: silence after which a worker is given up; 0 for never.
        own: the worker that this process turns itself, and that is never given up for its silence; None if there is none.
        detach: tasks of a client that is gone are finished, not cancelled.
        memory_bytes: for results of cached calls.
        store: directory of the store of this node, for clients; "" if there is none.
        store_key: rank 0's `Hello.store`; "" if it has no store.
        keep_bytes: arguments of at least so many bytes are to be put there by clients; 0 for none.
        listens: clients other than the job's own script may come.
        has_script: there is such a script, and the job ends with it.
        client_bytes: of results that may wait for a client that comes over the network.
        journal: absolute path; "" if there is none.
        grace_s: between telling a function on a communicator to stop and killing its ranks.
    """

    version: str
    python: str
    pid: int
    workers: Collection[Rank]
    run_dir: str
    start_timeout_s: float
    stop_timeout_s: float
    prefetch_s: float
    heartbeat_limit_s: float = 0.0
    own: Rank | None = None
    detach: bool = False
    memory_bytes: int = MEMORY_BYTES
    grace_s: float = 2.0
    store: str = ""
    store_key: str = ""
    keep_bytes: int = 0
    listens: bool = False
    has_script: bool = True
    client_bytes: int = MOST_BYTES
    journal: str = ""
