"""Staging: an environment and files are read once, by rank 0, and unpacked on every node before tasks start.

Every rank takes part, between MPI_Init and the handshake. The lowest rank of each node is its leader: it receives, unpacks, and
tells the others of the node where. Either all nodes have everything, or the job does not start and rank 0 says why.

What only leaders need is in `stage_leader`: the others import little, from a file system that all share.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from exex.errors import StagingError

ENVIRONMENT, FILES, OWN, DEPS = "env", "files", "own", "deps"
"""What stands in a staged directory: the environment; the files; this exex; what it needs and the environment may lack."""

BASE = "base-python"
"""Where the interpreter of a virtual environment and its standard library stand in an archive."""

Chunk = tuple[int, Any]
"""A piece of the stream: its kind (`stage_source.Kind`), and bytes or a view of them, valid until the next one is asked for."""

_MORE = "more"
_BEAT_S = 1.0


@dataclass(frozen=True)
class Staged:
    """What a node has, once it is staged."""

    directory: str  # that holds all of it
    prefix: str = ""  # of the environment; "" if none is staged
    python: str = ""  # its interpreter; "" if it has none
    origin: str = ""  # where the environment stood that it was made of; "" if that is not known
    files: str = ""  # directory of the files; "" if none are staged


class Tree(Protocol):
    """How ranks reach each other: `exex.transport.broadcast`."""

    is_leader: bool
    is_first: bool
    nodes: int

    def chunks(self, source: Iterator[Chunk] | None) -> Iterator[Chunk]: ...  # noqa: D102
    def gather(self, word: str) -> list[str]: ...  # noqa: D102
    def tell_leaders(self, word: str) -> str: ...  # noqa: D102
    def tell_node(self, word: str) -> str: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Beat:
    """Tells from time to time that staging gets on: to this rank's guard, and on a leader to the ranks of its node."""

    def __init__(self, tell_guard: Callable[[], object]) -> None:
        self._tell_guard = tell_guard
        self._next_s = 0.0
        self.tree: Tree | None = None

    def __call__(self) -> None:
        """Something has arrived."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _BEAT_S
            self._tell_guard()
            if self.tree is not None and self.tree.is_leader:
                self.tree.tell_node(_MORE)


@dataclass(frozen=True)
class Wanted:
    """What is to be staged, and where; as in `Config`."""

    environment: str
    files: tuple[str, ...]
    directory: str
    key: str = ""  # see `stage_place.Place`


def stage(
    wanted: Wanted,
    tree: Tree,
    beat: Beat,
    env: Mapping[str, str],
    where: str,
    *,
    prepare: Callable[[Staged], None] = lambda staged: None,
) -> tuple[Staged, object]:
    """Stage. Collective.

    Args:
        where: "rank 3 at nid00012", for messages.
        prepare: called on each leader with what its node has. An OSError of it counts as one of staging.

    Returns:
        What this node has; and on a leader what holds it as long as this process lives.

    Raises:
        StagingError: some node could not be given everything; none has anything then.
    """
    beat.tree = tree
    place: object = None
    word = ""
    if tree.is_leader:
        from exex.launch.stage_leader import Taker, source

        began_s = time.monotonic()
        taker = Taker(wanted.directory, env, where, wanted.key)
        try:
            taker.take(tree.chunks(source(wanted) if tree.is_first else None))
            taker.finish(prepare)
            errors = [text for text in tree.gather(taker.error) if text]
            verdict = tree.tell_leaders(_verdict(errors, tree.nodes))
        except BaseException:  # it is interrupted
            taker.give_up()
            raise
        if verdict:
            taker.give_up()
        place = taker.place
        report = "" if verdict else taker.report(tree.nodes, time.monotonic() - began_s)
        word = json.dumps({"error": verdict, "staged": asdict(taker.staged), "report": report})
    while (told := tree.tell_node(word)) == _MORE:
        beat()
    tree.close()
    found = json.loads(told)
    if found["error"]:
        raise StagingError(found["error"])
    if tree.is_first and found["report"]:
        print(f"exex: {found['report']}", file=sys.stderr, flush=True)
    return Staged(**found["staged"]), place


def _verdict(errors: list[str], nodes: int) -> str:
    if not errors:
        return ""
    more = f" (and so on {len(errors) - 1} more of {nodes} nodes)" if len(errors) > 1 else ""
    return f"{errors[0]}{more}"
