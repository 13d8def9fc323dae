"""What the stand-ins for launchers share: a fake allocation, ranks placed on its hosts, and their start by a real Hydra.

The hosts are this machine: each rank gets the host's name (a UTS namespace, if root), and `STANDIN_HOST`. Variables:

    STANDIN_DIR       directory of the allocation: running steps, and `log`, one line of JSON for each launch
    STANDIN_MPIEXEC   the real mpiexec, MPICH's
    STANDIN_CORES     cores of each host
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from options import Refused

_PR_SET_PDEATHSIG = 1
_KILL_WAIT_S = 2.0

FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Place(NamedTuple):
    """Where a rank goes."""

    rank: int
    host: str
    node: int  # index of the host in this launch
    local: int  # index of the rank on its host


class Rules(NamedTuple):
    """How a launcher ends.

    Attributes:
        ends_all: whether the end of a rank ends the others; by exit code, minus the number of a signal.
        says: what is printed on stderr about a rank that ended so; "" for nothing.
        after_first_s: how long the others may go on when one has ended; None for any time.
        limit_s: how long all may run; None for any time.
    """

    ends_all: Callable[[int], bool]
    says: Callable[[Place, int], str]
    after_first_s: float | None = None
    limit_s: float | None = None


class Ended(NamedTuple):
    """How a launch ended; codes are exit codes, or minus the number of a signal.

    Attributes:
        codes: of all ranks.
        cause: code of the rank that ended the others.
        late: what ran out: "limit", "after first".
    """

    codes: list[int]
    cause: int | None
    late: str

    def status(self) -> int:
        """That of the rank that ended the others, else the worst."""
        return shell_status(self.cause) if self.cause is not None else max(map(shell_status, self.codes))


def play(name: str, main: Callable[[list[str]], int]) -> NoReturn:
    """Run a stand-in; what it refuses is said as the real one would say it."""
    try:
        sys.exit(main(sys.argv[1:]))
    except Refused as refused:
        print(f"{name}: error: {refused}", file=sys.stderr)
        sys.exit(refused.status)


def numbers_in(text: str) -> list[int]:
    """`10-12,15` as 10, 11, 12, 15."""
    found: list[int] = []
    for part in text.split(","):
        if not re.fullmatch(r"\d+(-\d+)?", part):
            raise Refused(f"invalid list: {text!r}")
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def host_list(text: str) -> list[str]:
    """Slurm's and Flux's lists: `nid[00010-00012,00015],login1`."""
    found: list[str] = []
    for prefix, ranges in re.findall(r"([^,\[\]]+)(?:\[([\d,-]+)\])?,?", text):
        if not ranges:
            found.append(prefix)
        for part in filter(None, ranges.split(",")):
            first, _, last = part.partition("-")
            found += [f"{prefix}{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1)]
    return found


def cores_per_host() -> int:
    return int(os.environ["STANDIN_CORES"])


def compute_node() -> str | None:
    """The host on which this program was called; None if it was where the job script runs.

    It is told by the environment of the caller: what a launch helper starts has variables of a compute node, but is not there.
    """
    caller = Path(f"/proc/{os.getppid()}")
    if b"rank_parent.py" in (caller / "cmdline").read_bytes():  # we are a rank ourselves
        return os.environ["STANDIN_HOST"]
    variables = (caller / "environ").read_bytes().split(b"\0")
    return next((os.fsdecode(each[13:]) for each in variables if each.startswith(b"STANDIN_HOST=")), None)


def packed(ranks: int, per_node: int, hosts: list[str]) -> list[Place]:
    """Hosts filled one after the other."""
    return [Place(rank, hosts[rank // per_node], rank // per_node, rank % per_node) for rank in range(ranks)]


def spread(ranks: int, hosts: list[str]) -> list[Place]:
    """Every host about as many, in blocks."""
    share, more = divmod(ranks, len(hosts))
    counts = [share + (node < more) for node in range(len(hosts))]
    places = [(node, local) for node, count in enumerate(counts) for local in range(count)]
    return [Place(rank, hosts[node], node, local) for rank, (node, local) in enumerate(places)]


def only_in(hosts: list[str], allocation: list[str], message: str) -> None:
    """Refuse hosts outside the allocation, and a host twice."""
    strangers = [host for host in hosts if host not in allocation]
    if strangers or len(set(hosts)) != len(hosts):
        raise Refused(f"{message}: {','.join(strangers or hosts)}")


def counts(places: list[Place]) -> dict[str, int]:
    """Ranks on each host, in the order of hosts."""
    found: dict[str, int] = {}
    for place in places:
        found[place.host] = found.get(place.host, 0) + 1
    return found


# ---- what runs already ----


class Step(NamedTuple):
    """One launch.

    Attributes:
        number: of the step in its allocation, from 0.
    """

    number: int
    directory: Path
    places: list[Place]


Held = dict[str, int]
"""Cores of hosts."""


@contextlib.contextmanager
def claim(place: Callable[[Held], tuple[list[Place], Held]]) -> Iterator[Step]:
    """A step that holds cores of hosts while it runs.

    Args:
        place: from what other steps hold, where the ranks go and what this step holds. It refuses what does not fit. (The
            real ones wait for cores that are held, and for those of the world that would be for ever.)
    """
    top = Path(os.environ["STANDIN_DIR"])
    with open(top / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held: Held = {}
        for note in top.glob("step*/holds"):
            holder = json.loads(note.read_text())
            if os.path.exists(f"/proc/{holder['pid']}"):
                for host, count in holder["cores"].items():
                    held[host] = held.get(host, 0) + count
        places, cores = place(held)
        number = len(list(top.glob("step*")))
        step = Step(number, top / f"step{number}", places)
        step.directory.mkdir()
        (step.directory / "holds").write_text(json.dumps({"pid": os.getpid(), "cores": cores}))
        with open(top / "log", "a") as log:
            argv = [Path(sys.argv[0]).name, *sys.argv[1:]]
            entry = {"step": number, "argv": argv, "ranks": counts(places), "from": compute_node()}
            log.write(json.dumps(entry) + "\n")
    try:
        yield step
    finally:
        (step.directory / "holds").unlink()


# ---- ranks ----


def run(
    step: Step,
    program: list[str],
    variables: Callable[[Place], dict[str, str]],
    rules: Rules,
    *,
    remove: tuple[str, ...] = (),
    is_hydra: bool = False,
) -> Ended:
    """Start the ranks and wait for them.

    Args:
        variables: that the launcher sets for a rank.
        remove: variables that the launcher does not hand on.
        is_hydra: leave what Hydra sets.
    """
    return _Run(step, program, rules).run(variables, remove, is_hydra)


class _Run:
    def __init__(self, step: Step, program: list[str], rules: Rules) -> None:
        self.directory, self.places, self.program, self.rules = step.directory, step.places, program, rules
        self.pids: dict[int, tuple[int, int]] = {}
        self.codes: dict[int, int] = {}
        self.wanted: list[int] = []  # signals that came before the ranks
        self.deadline = float("inf")
        self.limit = float("inf") if rules.limit_s is None else time.monotonic() + rules.limit_s
        self.ending = False
        self.cause: int | None = None
        self.late = ""

    def run(self, variables: Callable[[Place], dict[str, str]], remove: tuple[str, ...], is_hydra: bool) -> Ended:
        reports_to = f"standin-{os.getpid()}-{time.monotonic_ns()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reports:
            reports.bind(f"\0{reports_to}")
            reports.setblocking(False)
            hosts = self.directory / "hosts"
            hosts.write_text(Path("/etc/hosts").read_text() + "".join(f"127.0.0.1 {host}\n" for host in counts(self.places)))
            ranks = [{"host": place.host, "env": variables(place)} for place in self.places]
            plan = {"ranks": ranks, "remove": remove, "is_hydra": is_hydra, "reports_to": reports_to, "hosts": str(hosts)}
            (self.directory / "plan").write_text(json.dumps(plan))
            self._start(str(self.directory / "plan"))
            self._watch(reports)
        return Ended([self.codes.get(place.rank, -signal.SIGKILL) for place in self.places], self.cause, self.late)

    def _start(self, plan: str) -> None:
        parent = os.getpid()

        def in_child() -> None:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        argv = [os.environ["STANDIN_MPIEXEC"], "-launcher", "fork", "-hosts", "localhost", "-bind-to", "none", "-disable-auto-cleanup"]
        parents = [sys.executable, "-I", "-S", str(Path(__file__).with_name("rank_parent.py")), plan]
        self.hydra = subprocess.Popen(
            [*argv, "-n", str(len(self.places)), *parents, *self.program], preexec_fn=in_child, start_new_session=True
        )

    def _watch(self, reports: socket.socket) -> None:
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (*FORWARDED, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wake_write)
        selector = selectors.DefaultSelector()
        selector.register(wake_read, selectors.EVENT_READ)
        selector.register(reports, selectors.EVENT_READ)
        while self.hydra.poll() is None:
            until = min(self.deadline, self.limit)
            for key, _ in selector.select(None if until == float("inf") else max(0.0, until - time.monotonic())):
                if key.fd == wake_read:
                    for number in os.read(wake_read, 512):
                        if number != signal.SIGCHLD:
                            self._signal(number)
                else:
                    self._take(reports)
            if time.monotonic() >= self.deadline:
                self.late = self.late or ("" if self.ending else "after first")
                self._end_all(signal.SIGKILL)
            elif time.monotonic() >= self.limit:
                self.late, self.limit = "limit", float("inf")
                self._end_all(signal.SIGTERM)
        with contextlib.suppress(BlockingIOError):
            self._take(reports)

    def _take(self, reports: socket.socket) -> None:
        while True:
            try:
                report = json.loads(reports.recv(4096))
            except BlockingIOError:
                return
            if "pid" in report:
                self.pids[report["rank"]] = (report["pid"], report["parent"])
                for number in self.wanted:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(report["pid"], number)
            else:
                self._on_end(self.places[report["rank"]], report["code"])

    def _on_end(self, place: Place, code: int) -> None:
        self.codes[place.rank] = code
        text = self.rules.says(place, code) if code else ""
        if text and not self.ending:
            print(text, file=sys.stderr, flush=True)
        if len(self.codes) == len(self.places) or self.ending:
            return
        if self.rules.ends_all(code):
            self.cause = code
            self._end_all(signal.SIGTERM)
        elif self.rules.after_first_s is not None:
            self.deadline = min(self.deadline, time.monotonic() + self.rules.after_first_s)

    def _signal(self, number: int) -> None:
        """To every rank, as the real ones do."""
        if len(self.pids) < len(self.places):
            self.wanted.append(number)
        for rank, (pid, _) in self.pids.items():
            if rank not in self.codes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _end_all(self, number: int) -> None:
        self.ending = True
        self._signal(number)
        if number == signal.SIGKILL:
            self.deadline = float("inf")
            if len(self.pids) < len(self.places):  # some have never come
                self.hydra.kill()
        else:
            self.deadline = time.monotonic() + _KILL_WAIT_S


def shell_status(code: int) -> int:
    """128 + n for signal n."""
    return code if code >= 0 else 128 - code
