"""What a hostile peer may send: damaged bytes of valid messages, and well-formed messages that lie."""

from __future__ import annotations

import pickle
import random
import struct
from pathlib import Path
from typing import Any

import msgspec

from exex.protocol import codec
from exex.protocol.messages import (
    Absent,
    Answer,
    Applied,
    AppSpec,
    Assign,
    Attach,
    Brought,
    Bye,
    Cancel,
    Chunk,
    Collected,
    Copy,
    Done,
    Drop,
    Fetch,
    Finish,
    Free,
    FromTasks,
    Fulfil,
    Grant,
    Hello,
    Here,
    Holds,
    JobEnds,
    Join,
    Kind,
    NodeShape,
    Part,
    Promise,
    Release,
    Retract,
    Returned,
    Share,
    Spread,
    Stop,
    Submit,
    ToTasks,
    Verdict,
    Want,
    Welcome,
)
from exex.protocol.payload import Large, Stored

FUNCTION = b"f" * 16
SPEC = AppSpec(app=0, name="f", function=FUNCTION)
Frames = list[bytes]


class Bomb:
    """Whoever opens the pickle of this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def corpus(bomb: Path) -> list[Frames]:
    """Valid messages of every kind, whose payloads are bombs."""
    small = pickle.dumps(Bomb(bomb), 5)
    large = Large([small, small * 50, b"tail"])
    both = [small, large]
    encode = codec.Encoder().encode
    messages: list[object] = [
        Attach(version="1", pid=1, title="t"),
        Submit(0, [SPEC], {FUNCTION: small}, [0], [small] * 3, {}, {}, 0),
        Submit(3, [], {}, [0, 0], both, {1: [0, 3, -1]}, {1: {2: large}}, 0),
        Submit(0, [SPEC], {FUNCTION: large}, [0], both, {1: [0]}, {}, 0),
        Promise(9, 3),
        Fulfil([9, 10], bytes(2), both),
        Cancel([0, 1, 2]),
        Verdict(1, False, small),
        Applied(0),
        Finish(False),
        Welcome("1", 0, 1, 2, 4, "run"),
        Welcome("1", 0, 1, 2, 4, "run", [NodeShape(2, 4, 1 << 30, 1)]),
        Answer(1, [0, 1], b"\0\1", both, {1: [0]}, [2]),
        JobEnds("why"),
        Submit(6, [msgspec.structs.replace(SPEC, app=1, cores=2, gpus=1, nodes=2)], {}, [1], [small] * 2, {}, {}, 0, {}, {1: 0}),
        Hello("1", "3.11.0", "node", 7, 2, "", [0.1, 0.2]),
        Hello("1", "3.11.0", "node", 7, 2, "", [0.1], [0, 1, 2, 3], 1 << 30, ["0", "1"]),
        Done([0, 1], b"\0\1", both, [0.1, 0.2], [2]),
        Bye(3),
        Assign([SPEC], {FUNCTION: small}, [0, 1], [0], both, {1: [large]}, {0: 2}),
        Assign([], {}, [0, 1], [0], both, {}, {}, {1: Grant(1, [2, 3], [Share("n", 2, ["0"], [1, 2]), Share("m", 2, [], [3])])}),
        Assign([], {}, [4], [0], [small], {}, {}, {0: Grant(1, [], [Share("n", 2, [], [1, 2])])}),
        Submit(8, [msgspec.structs.replace(SPEC, app=2, kind=Kind.TOGETHER, ranks=2, every_rank=True)], {}, [2], [small], {}, {}, 0),
        Join(4, 1, [1, 2], True),
        Part(4, 0, large, 0.1),
        Part(4, 1, small, 0.1),
        Drop([1]),
        Retract([1, 2]),
        Returned([2]),
        FromTasks([1], [0], [encode(Attach("1", 7, "task"))[0]]),
        FromTasks([1], [0], [encode(Submit(0, [SPEC], {FUNCTION: small}, [0], [small] * 2, {}, {}, 0))[0]]),
        FromTasks([1, 2], [0, 0], [large, small], [2], [0], [1]),
        ToTasks([1], [large], [0]),
        Stop(""),
        Submit(9, [], {}, [0], [Stored("c1.1", [10, 20])], {0: [-1]}, {0: {0: Stored("c1.2", [5])}}, 0),
        Spread(Stored("c1.3", [1 << 20])),
        Want(["t0.1", "c1.1"], True),
        Release(["t0.1"]),
        Collected([0, 1]),
        Brought("t0.1", 0, large),
        Brought("t0.1", 0, Stored("t0.2", [100])),
        Done([0], b"\0", [Stored("t0.1", [100, 50_000])], [0.1], []),
        Holds(["t0.1"]),
        Assign([], {}, [5], [0], [Stored("c1.1", [10, 20])], {0: [Stored("t0.1", [100])]}, {}, {}, {"c1.1": 0, "t0.1": 2}),
        Copy([Stored("c1.3", [1 << 20])], 0),
        Free(["c1.3"]),
        Fetch(["t0.1"]),
        Chunk("t0.1", 0, Large([small])),
        Here(["t0.1"]),
        Absent(["t0.1"]),
    ]
    return [[bytes(frame) for frame in encode(message)] for message in messages]


ODD_NUMBERS = [-(2**63), -(2**40), -2, -1, 0, 1, 2, 3, 7, 255, 2**16, 2**31, 2**32, 10**12, 2**40 - 1, 2**40, 2**41 + 1, 2**63, 2**64 - 1]
ODD_BYTES = [0x00, 0x7F, 0x80, 0x90, 0x9F, 0xC0, 0xC4, 0xC6, 0xC7, 0xC9, 0xCB, 0xD4, 0xD7, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xFF]


def damage(rng: random.Random, frames: Frames, others: list[Frames]) -> Frames:
    """A copy of `frames` with one to four wounds."""
    frames = list(frames)
    for _ in range(rng.randint(1, 4)):
        if not frames:
            return frames
        at = 0 if rng.random() < 0.8 else rng.randrange(len(frames))
        data = bytearray(frames[at])
        kind = rng.randrange(12)
        spot = rng.randrange(len(data)) if data else 0
        if kind == 0 and data:
            data[spot] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[spot] = rng.choice(ODD_BYTES)
        elif kind == 2:
            del data[spot:]
        elif kind == 3:
            data[spot:spot] = rng.randbytes(rng.randint(1, 9))
        elif kind == 4:
            del data[spot : spot + rng.randint(1, 9)]
        elif kind == 5:
            other = rng.choice(rng.choice(others))
            cut = rng.randrange(len(other)) if other else 0
            data[spot:] = other[cut:]
        elif kind == 6:
            data[spot : spot + 5] = rng.choice(b"\xc6\xdb\xdd\xdf\xce").to_bytes(1, "big") + rng.choice(ODD_NUMBERS[4:13]).to_bytes(8, "big")[-4:]
        elif kind == 7:
            data[spot : spot + 9] = struct.pack(">BQ", 0xCF, rng.choice(ODD_NUMBERS) % 2**64)
        elif kind == 8:
            data[spot:spot] = rng.choice(b"\x91\x81\xdc").to_bytes(1, "big") * rng.choice([3, 100, 5000])
        elif kind == 9:  # an extension that claims frames
            data[spot:spot] = b"\xd7\x01" + struct.pack("<II", rng.choice([0, 1, 2, 3, 2**32 - 1]), rng.choice([0, 1, 2, 2**32 - 1]))
        elif kind == 10:
            frames.insert(rng.randint(0, len(frames)), rng.choice(rng.choice(others)))
        else:
            del frames[at]
            continue
        frames[at] = bytes(data)
    return frames


class Liar:
    """Well-formed messages whose fields are any mixture of right and absurd."""

    def __init__(self, rng: random.Random, bomb: Path) -> None:
        self.rng = rng
        self.small = pickle.dumps(Bomb(bomb), 5)
        self._encode = codec.Encoder().encode

    def _number(self) -> int:
        rng = self.rng
        return rng.randrange(12) if rng.random() < 0.85 else rng.choice(ODD_NUMBERS)

    def _numbers(self, most: int = 5) -> list[int]:
        return [self._number() for _ in range(self.rng.randint(0, most))]

    def _payload(self) -> Any:
        choice = self.rng.random()
        if choice < 0.75:
            return self.small
        if choice < 0.85:
            return self._stored()
        if choice < 0.95:
            return Large([self.small, b"x" * self.rng.choice([0, 1, 40_000])])
        return self.rng.choice([None, 3, "text", [b"", [b""]], {1: b""}, 1.5, msgspec.msgpack.Ext(5, b"??")])

    def _stored(self) -> Stored:
        """A name that there may be, or not."""
        sizes = self.rng.choice([[1], [40_000], [3, 4], [0], [], [2**44], [2**63], [1] * 70_000])
        return Stored(self._name(), sizes)

    def _name(self) -> str:
        rng = self.rng
        if rng.random() < 0.05:
            return rng.choice(["", "../x", "t1", "c1.", "t1.1/", "t" + "1" * 100 + ".1", "\0", "spill"])
        return f"{rng.choice('ct')}{rng.randrange(4)}.{rng.randint(0, 3)}"

    def _names(self) -> list[str]:
        return [self._name() for _ in range(self.rng.randint(0, 4))]

    def _payloads(self, count: int) -> list[Any]:
        if self.rng.random() < 0.03:
            count += self.rng.choice([-1, 1])
        return [self._payload() for _ in range(count)]

    def _spec(self) -> AppSpec:
        rng = self.rng
        return AppSpec(
            app=rng.choice([0, 0, 1, self._number()]),
            name=rng.choice(["f", "", "n" * 5000]) if rng.random() < 0.1 else "f",
            function=rng.choice([FUNCTION] * 6 + [b"", b"unknown", b"x" * 100]),
            priority=rng.choice([0, 0, self._number() % 2**63]),
            retries=rng.choice([0, 0, 2, -1, 2**62]),
            asks=rng.random() < 0.2,
            walltime_s=rng.choice([None, None, 1.0, -1.0, float("nan"), float("inf")]),
            **{"kind": rng.choice([0, 0, 0, 1, 2, 3, -1])} | self._request(),
            every_rank=rng.random() < 0.2,
            own_world=rng.random() < 0.2,
        )

    def _request(self) -> dict[str, Any]:
        """What a call asks for: mostly nothing, sometimes something that can be met, sometimes nonsense."""
        rng = self.rng
        if rng.random() < 0.5:
            return {}
        if rng.random() < 0.3:
            return {"kind": Kind.TOGETHER, "ranks": rng.choice([1, 2, 2, 3, 9, self._number()]), "gpus": rng.choice([0, 0, 1])}
        return {
            "cores": rng.choice([0, 1, 2, 2, 6, 7, self._number()]),
            "gpus": rng.choice([0, 0, 1, 2, self._number()]),
            "nodes": rng.choice([0, 0, 1, 1, 2, self._number()]),
            "memory_bytes": rng.choice([None, None, 1, 1000, 1001, self._number()]),
            "exclusive": rng.random() < 0.1,
        }

    def of_client(self, first: int = 0) -> Frames:
        """From a client whose next task is `first`, if it tells the truth."""
        rng, kind = self.rng, self.rng.randrange(11)
        count = rng.randint(1, 4)
        start = first if rng.random() < 0.8 else self._number() % 2**64
        message: object
        if kind < 4:
            needs = {i % 2**63: [need % 2**63 for need in self._numbers(3)] for i in range(count) if rng.random() < 0.4}
            if rng.random() < 0.1:
                needs[self._number() % 2**63] = [-1]
            given = {i: {p: self._payload() for p in range(2) if rng.random() < 0.5} for i in needs if rng.random() < 0.2}
            for i, values in given.items():
                if rng.random() < 0.8:
                    needs[i] = [-1 if place in values else need for place, need in enumerate([*needs[i], 0, 0])]
            calls = [rng.randrange(2) for _ in range(rng.choice([1, 1, count, 0, 5]))]
            message = Submit(
                start, [self._spec() for _ in range(rng.choice([0, 0, 1, 2]))], {FUNCTION: self.small} if rng.random() < 0.5 else {},
                calls, self._payloads(count), needs, given, rng.choice([0, 0, 0, self._number() % 2**63]), {},
                {rng.randrange(-1, count + 1): self._number() for _ in range(rng.choice([0, 0, 0, 1, 3]))},
            )  # fmt: skip
        elif kind == 4:
            message = Promise(start, rng.choice([1, 2, 3, self._number() % 2**63]))
        elif kind == 5:
            tasks = self._numbers()
            message = Fulfil(tasks, bytes(rng.choice([0, 0, 0, 1, 9]) for _ in tasks), self._payloads(len(tasks)))
        elif kind == 6:
            message = Cancel(self._numbers())
        elif kind == 7:
            message = Verdict(self._number(), rng.random() < 0.5, self._payload())
        elif kind == 10:
            message = rng.choice([Want(self._names(), rng.random() < 0.5), Release(self._names()), Spread(self._payload())])
        elif kind == 8:
            message = Applied(rng.choice([0, self._number()]))
        else:
            message = rng.choice([Attach("1", 1, "t"), Attach("0", 1, "t"), Finish(True), Finish(False), Applied(0)])
        return self._frames(message)

    def of_worker(self, held: list[int]) -> Frames:
        """From a worker that holds these tasks."""
        rng = self.rng
        tasks = [rng.choice(held) if held and rng.random() < 0.9 else self._number() for _ in range(rng.randint(0, 3))]
        seconds = [rng.choice([0.0, 1e-6, 1.0, -1.0, float("nan"), float("inf"), 1e308]) if rng.random() < 0.1 else 1e-5 for _ in tasks]
        outcomes = bytes(rng.choice([0, 0, 0, 0, 1, 4, 6]) for _ in tasks)
        payloads = [Stored(f"t{task}.{rng.randint(1, 3)}", [40_000]) if rng.random() < 0.3 else payload for task, payload in zip(tasks, self._payloads(len(tasks)))]
        message: object = Done(tasks, outcomes, payloads, seconds, self._numbers(2))
        if rng.random() < 0.3:
            names = [f"t{task}.{rng.randint(1, 3)}" for task in held[-4:]] if rng.random() < 0.7 else self._names()
            of_names = rng.choice([Holds, Absent, Fetch, Here])
            return self._frames(of_names(names) if rng.random() < 0.9 else Chunk(self._name(), self._number() % 2**63, self._payload()))
        if rng.random() < 0.3:
            task = rng.choice(held) if held and rng.random() < 0.9 else self._number()
            message = Part(task, rng.choice([0, 0, 1, 2, 4, 5, 9]), self._payload(), rng.choice([1e-5, 1e-5, -1.0, float("nan")]))
        if rng.random() < 0.15:
            message = self._from_tasks(tasks, held)
        if rng.random() < 0.1:
            message = Returned(rng.choice([tasks, tasks * 2, held]))
        if rng.random() < 0.1:
            message = rng.choice([Bye(1), Hello("1", "3.11.0", "n", 1, self._number() % 2**63, "", [], self._numbers(), self._number(), ["0"] * rng.randrange(3))])
        return self._frames(message)

    def _from_tasks(self, tasks: list[int], held: list[int]) -> FromTasks:
        """Of task processes that lie as clients do, and a worker that lies about them."""
        rng = self.rng
        said = [Large(frames) if len(frames) > 1 else frames[0] for frames in (self.of_client() for _ in tasks) if frames]
        processes = [rng.randrange(3) for _ in said]
        moves = [rng.sample(held, min(len(held), rng.randrange(3))) if rng.random() < 0.3 else [] for _ in range(2)]
        gone = [rng.randrange(3)] if rng.random() < 0.1 else []
        return FromTasks(processes, tasks[: len(said)], said, gone, *moves)

    def _frames(self, message: object) -> Frames:
        try:
            return [bytes(frame) for frame in self._encode(message)]
        except (TypeError, OverflowError):  # what not even msgspec can write
            return [self.rng.randbytes(self.rng.randint(0, 40))]


def on_the_wire(rng: random.Random, frames: Frames) -> bytes:
    """Bytes of a message on a stream, whose header may lie as well."""
    lengths = [len(frame) for frame in frames]
    count = len(frames)
    if rng.random() < 0.2 and lengths:
        lengths[rng.randrange(len(lengths))] = rng.choice(ODD_NUMBERS) % 2**64
    if rng.random() < 0.1:
        count = rng.choice(ODD_NUMBERS) % 2**32
    data = struct.pack(f"<I{len(lengths)}Q", count, *lengths) + b"".join(frames)
    return data if rng.random() < 0.9 else data[: rng.randint(0, len(data))]
