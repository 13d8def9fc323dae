"""Kill a job at a random moment, and resume it: `python -m tests.faults.resume [--runs 50] [--seed N] [VICTIM...]`.

The workflow has cached Python calls, cached calls that need others, cached bash calls with output files, and calls that are not
cached. Each run of a task leaves a line in a file. After a kill the journal is read as it is on disk; the job is then started by the
same command, perhaps killed again, and at last runs to its end. Nothing that was recorded at a kill may run after it; every
result must be right; the journal must verify. CI makes a few runs (test_resume.py).
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import psutil

from exex.protocol import payload
from exex.store import inspection, journal_file
from tests.endurance import MARK, nobody_left, processes
from tests.launch import Launch

COUNT = 150
SHELLS = 12
LONGEST_S = 0.9
VICTIMS = ("manager", "client", "job")

WORKFLOW = """
import os, sys, time
import exex
from exex import File, bash_app, python_app

def note(line):
    with open("runs", "a") as file:  # O_APPEND, and one write
        file.write(line + "\\n")

@python_app(cache=True)
def first(number):
    note(f"first {{number}}")
    time.sleep(0.01)
    return "first", number

@python_app(cache=True)
def second(pair, many):
    note(f"second {{pair[1]}}")
    time.sleep(0.005)
    return "second", pair[1], [many] * 3, bytes(number := pair[1] * 300)

@bash_app(cache=True)
def shell(number, outputs=()):
    return f"echo shell {{number}} >> runs; echo {{number}} > {{outputs[0].filepath}}"

@python_app
def plain(value):
    return value[1] + len(value[3])

print("started", exex.manager_pid(), os.getpid(), flush=True)
ones = [first(i) for i in range({count})]
twos = [second(one, i % 7) for i, one in enumerate(ones)]
again = [first(i) for i in range(0, {count}, 3)]
shells = [shell(i, outputs=[File(f"out{{i}}")]) for i in range({shells})]
ends = [plain(two) for two in twos]
assert [one.result() for one in ones] == [("first", i) for i in range({count})]
assert [two.result()[:3] for two in twos] == [("second", i, [i % 7] * 3) for i in range({count})]
assert [end.result() for end in ends] == [i * 301 for i in range({count})]
assert [one.result() for one in again] == [("first", i) for i in range(0, {count}, 3)]
for i, one in enumerate(shells):
    one.result()
    assert open(f"out{{i}}").read() == f"{{i}}\\n"
print("all right", flush=True)
"""


class Snapshot:
    """What was there after a kill, when all processes had gone.

    Attributes:
        recorded: ("first", 3) and the like, in the journal.
        shells: how many bash calls are in it.
        runs: how often each task has run.
    """

    def __init__(self, directory: Path) -> None:
        self.runs = runs(directory)
        self.recorded: set[tuple[str, int]] = set()
        self.shells = 0
        if not (directory / "journal").exists():
            return
        copy = directory / "copy"
        shutil.copy(directory / "journal", copy)
        if (directory / "journal-journal").exists():
            shutil.copy(directory / "journal-journal", directory / "copy-journal")
        db = journal_file.open_checked(str(copy))
        for number, row in journal_file.read_rows(db):
            assert isinstance(row, journal_file.Row), f"row {number} is damaged"
            if row.app == "shell":
                self.shells += 1
            else:
                self.recorded.add(payload.load(row.value)[:2])
        db.close()


def runs(directory: Path) -> Counter[tuple[str, int]]:
    path = directory / "runs"
    words = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return Counter((name, int(number)) for name, number in words)


def start(launch: Launch, mark: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    path = launch.cwd / "workflow.py"
    path.write_text(WORKFLOW.format(count=COUNT, shells=SHELLS))
    words = ("-m", "exex.run", "--slots", "2", "--journal", "journal", "--resume", *options, str(path))
    return launch.start(launch.argv(3, *words), **{MARK: mark})


def kill(process: subprocess.Popen[str], victim: str, mark: str, rng: random.Random) -> None:
    """SIGKILL somebody at a moment after the script's first line; the whole job now and then while it starts."""
    wait_s = rng.uniform(0, LONGEST_S)
    if victim == "job":
        if rng.random() < 0.8:
            process.stdout.readline()
        time.sleep(wait_s)
        for one in [*processes(mark), *processes(mark)]:  # twice: some may just be starting others
            try:
                one.kill()
            except psutil.Error:
                pass
        return
    line = process.stdout.readline()
    if not line:
        return
    _, manager, client = line.split()
    time.sleep(wait_s)
    try:
        psutil.Process(int(manager if victim == "manager" else client)).kill()
    except psutil.Error:
        pass  # it has ended before


def run_once(victim: str, seed: int, directory: Path) -> str:
    """One story; a line about it."""
    rng = random.Random(f"{victim} {seed}")
    launch, mark = Launch(directory), uuid.uuid4().hex
    snapshots: list[Snapshot] = []
    for _ in range(rng.choice((1, 1, 2))):
        process = start(launch, mark)
        kill(process, victim, mark, rng)
        ended = launch.finish(process, 60)
        if "all right" not in ended.out:
            assert ended.status != 0, ended.err
        if victim == "manager" and re.search("was not answered|manager has ended", ended.err):
            assert f"in the journal {directory.resolve()}/journal" in ended.err, ended.err
        nobody_left(mark)
        snapshots.append(Snapshot(directory))
    ended = launch.finish(start(launch, mark), 60)
    assert ended.status == 0 and "all right" in ended.out, (ended.status, ended.out, ended.err)
    nobody_left(mark)
    final = runs(directory)
    for before in snapshots:
        again = [task for task in before.recorded if final[task] != before.runs[task]]
        assert not again, f"recorded, and run again: {again[:5]}"
    last = snapshots[-1]
    shells = [sum(count for (name, _), count in counts.items() if name == "shell") for counts in (last.runs, final)]
    assert shells[1] - shells[0] == SHELLS - last.shells, f"{last.shells} bash calls were recorded, {shells[1] - shells[0]} ran again"
    text, is_sound = inspection.verify(str(directory / "journal"))
    assert is_sound, text
    assert not list(directory.glob("journal.*")), "a lock is left"
    found = [len(snapshot.recorded) + snapshot.shells for snapshot in snapshots]
    return f"{found} of {2 * COUNT + SHELLS} recorded at the kills"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("victims", nargs="*", help=f"of {', '.join(VICTIMS)}; default: all in turn")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    victims = options.victims or VICTIMS
    failed = 0
    for seed in range(options.seed, options.seed + options.runs):
        victim = victims[seed % len(victims)]
        with tempfile.TemporaryDirectory() as directory:
            try:
                print(f"seed {seed} {victim}: {run_once(victim, seed, Path(directory))}", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"seed {seed} {victim}: FAILED: {error}", flush=True)
    print(f"resume: {options.runs - failed} of {options.runs} as they must be", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
