"""Started in the place of `python -m exex.run`: prints to stderr how many bytes went through rank 0, to and from whom."""

from __future__ import annotations

import json
import sys
from typing import Any


def count(cls: Any, counts: dict[str, int], name: str) -> None:
    """Count what the links of a class send and receive."""
    send, receive = cls.send, cls.receive

    def counted_send(self: Any, peer: int, frames: Any) -> None:
        counts[f"to {name}"] = counts.get(f"to {name}", 0) + sum(memoryview(frame).nbytes for frame in frames)
        send(self, peer, frames)

    def counted_receive(self: Any) -> Any:
        arrived = receive(self)
        if arrived is not None:
            size = sum(memoryview(frame).nbytes for frame in arrived[1])
            counts[f"from {name}"] = counts.get(f"from {name}", 0) + size
        return arrived

    cls.send, cls.receive = counted_send, counted_receive


def main() -> int:
    """Run the job."""
    from exex.rank import RankProcess  # in the guard: mpi4py is not imported by it

    lead = RankProcess._lead

    def counted_lead(self: Any, *args: Any) -> Any:
        from exex.transport import mpi
        from exex.transport.stream import StreamLink

        counts: dict[str, int] = {}
        count(mpi.MpiLink, counts, "ranks")
        count(StreamLink, counts, "client")
        try:
            return lead(self, *args)
        finally:
            print("counted " + json.dumps(counts), file=sys.stderr, flush=True)

    RankProcess._lead = counted_lead  # type: ignore[method-assign]
    from exex import run

    return run.main()


if __name__ == "__main__":
    sys.exit(main())
