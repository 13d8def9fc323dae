"""What every transport must do, checked against peers that echo whatever they receive.

`Echo` is the other side; `check_*` are the contract. Each takes our end, the echoing peers' numbers, and `turn`, which
lets the other side run where it has no thread or process of its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from exex.transport.base import GONE, Link

END = b"end of echo"
LIMIT_S = 60.0


class Echo:
    """Sends every message back to its sender until it is told to end."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.ended = False

    def turn(self) -> None:
        while not self.ended and (arrived := self.link.receive()) is not None:
            sender, frames = arrived
            if frames is GONE or bytes(frames[0]) == END:
                self.ended = True
                return
            self.link.send(sender, frames)
        self.link.progress()

    def run(self) -> None:
        until = time.monotonic() + LIMIT_S * 3
        while not self.ended and time.monotonic() < until:
            self.turn()
            time.sleep(0.0001)
        self.link.close()


def collect(link: Link, count: int, turn: Callable[[], None]) -> list[tuple[int, list[bytes]]]:
    """The next `count` messages, within the time limit."""
    until = time.monotonic() + LIMIT_S
    arrived: list[tuple[int, list[bytes]]] = []
    while len(arrived) < count:
        assert time.monotonic() < until, f"{len(arrived)} of {count} messages arrived in {LIMIT_S} s"
        link.progress()
        turn()
        message = link.receive()
        if message is not None:
            assert message[1] is not GONE
            arrived.append((message[0], [bytes(frame) for frame in message[1]]))
    assert link.receive() is None, "more arrived than was sent"
    return arrived


def check_one_small_message(link: Link, peers: list[int], turn: Callable[[], None]) -> None:
    link.send(peers[0], [b"hello"])
    assert collect(link, 1, turn) == [(peers[0], [b"hello"])]


def check_sizes_around_every_threshold(link: Link, peers: list[int], turn: Callable[[], None]) -> None:
    rng = random.Random(0)
    for size in (1, 11, 12, 13, 4095, 65535, 65536, 65537, 262143, 262144, 262145, 5_000_000):
        data = rng.randbytes(size)
        link.send(peers[0], [data])
        assert collect(link, 1, turn) == [(peers[0], [data])]


def check_many_frames_of_any_size(link: Link, peers: list[int], turn: Callable[[], None]) -> None:
    rng = random.Random(1)
    for _ in range(30):
        frames = [b"head", *(rng.randbytes(rng.choice([0, 1, 8, 1000, 100_000])) for _ in range(rng.randrange(1, 40)))]
        link.send(peers[0], list(frames))
        assert collect(link, 1, turn) == [(peers[0], frames)]


def check_buffers_of_other_types(link: Link, peers: list[int], turn: Callable[[], None]) -> None:
    import numpy as np

    array = np.arange(10_000, dtype=np.float64)
    link.send(peers[0], [b"head", memoryview(array), bytearray(b"abc"), memoryview(b"xyz")[1:]])
    assert collect(link, 1, turn) == [(peers[0], [b"head", array.tobytes(), b"abc", b"yz"])]


def check_order_is_kept(link: Link, peers: list[int], turn: Callable[[], None]) -> None:
    rng = random.Random(2)
    sent: dict[int, list[list[bytes]]] = {peer: [] for peer in peers}
    for number in range(1500):
        peer = rng.choice(peers)
        frames = [b"%d" % number]
        if rng.random() < 0.05:
            frames += [rng.randbytes(rng.choice([10, 70_000, 300_000])) for _ in range(rng.randrange(3))]
        sent[peer].append(frames)
        link.send(peer, list(frames))
        if number % 100 == 0:
            link.progress()
            turn()
    arrived: dict[int, list[list[bytes]]] = {peer: [] for peer in peers}
    for sender, frames in collect(link, 1500, turn):
        arrived[sender].append(frames)
    assert arrived == sent


def check_send_never_blocks(link: Link, peers: list[int], turn: Callable[[], None]) -> None:
    data = bytes(8_000_000)
    began = time.monotonic()
    for _ in range(8):
        link.send(peers[0], [b"head", data])
    assert time.monotonic() - began < LIMIT_S / 2
    assert [len(frames[1]) for _, frames in collect(link, 8, turn)] == [len(data)] * 8


CHECKS = [
    check_one_small_message,
    check_sizes_around_every_threshold,
    check_many_frames_of_any_size,
    check_buffers_of_other_types,
    check_order_is_kept,
    check_send_never_blocks,
]
