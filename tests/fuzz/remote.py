"""The launch helper's listening end, and both ends of a launch, under strangers and under liars who know the key."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

from exex.reaper import Reaper
from exex.remote import wire
from exex.remote.flows import Inflow, Outflow
from exex.remote.helper import Helper, Options
from exex.remote.wire import STDOUT, Broken, Wire


class _Tag(Reaper):
    """No process."""

    def __init__(self) -> None:
        self.tag = "fuzz"


class _NeverWaits(Helper):
    """Turns that look once; nothing may be launched."""

    def _timeout_ms(self, now_s: float) -> float | None:
        return 0.0

    def _fork(self, guest: object) -> int:
        raise AssertionError("a launch")

    def turns(self, count: int) -> None:
        for _ in range(count):
            self._turn()

    def guests(self) -> int:
        assert not self._waiting
        return len(self._strangers)

    def address(self) -> tuple[str, int]:
        name: tuple[str, int] = self._listener.getsockname()
        return name

    def key(self) -> bytes:
        return self._key

    def close(self) -> None:
        for guest in self._strangers.values():
            guest.link.close()
        self._listener.close()
        for fd in (self._wake, self._wake_write, self._told, self._tell_ending):
            os.close(fd)


class LaunchHelperTarget:
    """A helper to which anything is said, before the proof and behind it; and streams that get any frames."""

    def __init__(self, rng: random.Random, bomb: Path) -> None:
        self.rng, self.bomb = rng, bomb
        self.helper = _NeverWaits(Options("", frozenset({"aprun"}), 8, 1.0, False), _Tag(), "127.0.0.1")
        self.strangers = self.insiders = self.broken = 0

    def fire(self) -> None:
        """One connection, or some frames to streams."""
        if self.rng.random() < 0.4:
            self._streams()
            return
        with socket.create_connection(self.helper.address()) as sock:
            link = Wire(sock, (wire.HELLO, wire.PROOF, wire.REFUSED))
            self._until(link, wire.HELLO)
            if self.rng.random() < 0.4:
                self.strangers += 1
                link.socket.send(self._bytes())
            else:
                self._insider(link)
            self.helper.turns(3)
        self.helper.turns(3)
        assert self.helper.guests() == 0, "a guest that nobody has sent away"

    def _insider(self, link: Wire) -> None:
        """One who knows the key, and then asks for what it must not have, or for nonsense."""
        self.insiders += 1
        key, ours = self.helper.key(), wire.new_number()
        theirs = self.hello[len(wire.MAGIC) :]
        link.send(wire.PROOF, ours, wire.proof(key, b"task", theirs, ours))
        self._until(link, wire.PROOF)
        words = [self.rng.choice([b"touch", b"env", b"sh", b"", b"/bin/touch", b"\xff"]), os.fsencode(self.bomb)]
        text = wire.pack_request(b"/", words, {b"A": b"1"})
        if self.rng.random() < 0.7:
            text = self._damaged(text)
        signature = wire.proof(key, b"request", theirs, ours, text)
        if self.rng.random() < 0.2:
            text = wire.pack_request(b"/", [b"aprun", *words], {})  # right, but not what was signed
        data = wire._HEADER.pack(wire.REQUEST, len(signature + text)) + signature + text
        link.socket.send(data if self.rng.random() < 0.8 else self._damaged(data))

    def _until(self, link: Wire, kind: int) -> None:
        for _ in range(1000):
            self.helper.turns(1)
            link.flush()
            link.read()
            if found := link.frame():
                assert found[0] == kind
                self.hello = found[1] if kind == wire.HELLO else self.hello
                return
        raise AssertionError("it does not answer")

    def _bytes(self) -> bytes:
        head = wire._HEADER.pack(self.rng.randint(0, 12), self.rng.choice([0, 1, 64, 65, 2**31, self.rng.randint(0, 300)]))
        return self.rng.choice([b"", head]) + self.rng.randbytes(self.rng.choice([0, 1, 5, 64, 200]))

    def _damaged(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        for _ in range(self.rng.randint(1, 4)):
            at = self.rng.randrange(len(damaged))
            choice = self.rng.random()
            if choice < 0.6:
                damaged[at] = self.rng.randrange(256)
            elif choice < 0.8:
                del damaged[at : at + self.rng.randint(1, 8)]
            else:
                damaged[at:at] = self.rng.randbytes(self.rng.randint(1, 8))
            if not damaged:
                break
        return bytes(damaged)

    def _streams(self) -> None:
        """Frames of DATA, CREDIT and CLOSED with any contents: nothing grows beyond its window."""
        ours, theirs = socket.socketpair()
        link, peer = (Wire(sock, (wire.DATA, wire.CREDIT, wire.CLOSED)) for sock in (ours, theirs))
        into = Inflow(os.open(os.devnull, os.O_WRONLY), STDOUT, link)
        out = Outflow(os.open("/dev/zero", os.O_RDONLY), STDOUT, link)
        try:
            for _ in range(self.rng.randint(1, 12)):
                self._say(peer)
                link.read()
                while (frame := link.frame()) is not None:
                    if frame[0] == wire.DATA:
                        into.take(frame[1][1:])
                    elif frame[0] == wire.CREDIT:
                        out.add_credit(wire.unpack_credit(frame[1])[1])
                    else:
                        out.close()
                if self.rng.random() < 0.5 and into.wants():
                    into.move()
                if self.rng.random() < 0.5 and out.wants():
                    out.move()
                assert len(into._buffer) <= wire.WINDOW_BYTES and link.waiting_bytes < 2 * wire.WINDOW_BYTES
        except Broken:
            self.broken += 1
        finally:
            for each in (into, out, link, peer):
                each.close()

    def _say(self, peer: Wire) -> None:
        kind = self.rng.choice([wire.DATA, wire.DATA, wire.DATA, wire.CREDIT, wire.CLOSED, self.rng.randint(0, 11)])
        data = bytes([STDOUT]) + bytes(self.rng.choice([0, 4, 5, 1000, wire.PIECE_BYTES]))
        if kind == wire.CREDIT:
            data = wire.pack_credit(STDOUT, self.rng.choice([0, 1, wire.PIECE_BYTES, 2**32 - 1]))
        peer.send(kind, data)
        peer.flush()
        if self.rng.random() < 0.1:
            peer.socket.send(self.rng.randbytes(9))

    def close(self) -> None:
        """The helper."""
        self.helper.close()
