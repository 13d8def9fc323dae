"""A rank that dies, and one that does not look, while rank 0 sends: `python -m tests.mpi.dying DIR`, three ranks.

They talk as if each were on a node of its own. Rank 1 is killed; rank 2 looks at nothing until it has read `look` in DIR.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from exex.transport import mpi

LIMIT_S = 60.0
LONGEST_SEND_S = 5.0  # on a machine that is busy; a send that hangs does so for ever


def _until(done: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < give_up_s
        time.sleep(0.001)


def _lead(link: mpi.MpiLink, pids: list[int], directory: Path) -> None:
    for number in range(50):
        link.send(2, [b"early", b"%d" % number])  # the first that it ever gets, and it does not look
    print("sent to who does not look", flush=True)
    (directory / "look").touch()
    heard: list[bytes] = []

    def echoed(count: int) -> bool:
        link.progress()
        while (arrived := link.receive()) is not None:
            heard.append(bytes(arrived[1][-1]))
        return len(heard) == count

    _until(lambda: echoed(50))
    assert heard == [b"%d" % number for number in range(50)], heard
    link.send(1, [b"hello"])
    _until(lambda: echoed(51))
    os.kill(pids[1], signal.SIGKILL)
    longest_s = 0.0
    for _ in range(500):
        began_s = time.monotonic()
        link.send(1, [b"x" * 5000])
        unsent = link.progress()
        assert link.receive() is None
        longest_s = max(longest_s, time.monotonic() - began_s)
        time.sleep(0.001)
    assert longest_s < LONGEST_SEND_S, longest_s
    assert unsent  # it was noticed
    print("sent to a dead rank", flush=True)
    link.forget(1)
    _until(lambda: not link.progress())
    heard.clear()
    for number in range(50):
        link.send(2, [b"late", b"%d" % number])
    _until(lambda: echoed(50))
    print("the other one answers", flush=True)


def _echo(link: mpi.MpiLink, directory: Path) -> None:
    _until((directory / "look").exists)
    while True:
        while (arrived := link.receive()) is not None:
            link.send(0, [bytes(arrived[1][-1])])
        link.progress()


def main() -> None:
    directory = Path(sys.argv[1])
    world = mpi.start()
    pids = mpi.gather(world, os.getpid())
    link = mpi.MpiLink(world, 1, is_far=True)
    if world.rank:
        _echo(link, directory)
    try:
        _lead(link, pids, directory)
    finally:
        os.kill(pids[2], signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
