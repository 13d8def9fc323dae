"""Ends of jobs, again and again: `python -m tests.endurance [--runs 100] [--seed N] [SCENARIO...]`.

Each run starts a job through `exex run`, does something rude at a random moment, and checks the exit status, what was
printed, and that no process is left. CI makes a few runs of each (tests/e2e/test_endurance.py).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.launch import Ended, Launch

MARK = "MARK_OF_THIS_RUN"
RUN = [sys.executable, "-c", "from exex.cli import main; main()", "run", "-n", "2"]

STEADY = """
import sys
from exex import python_app, bash_app

@python_app(retries={retries})
def work(x):
    import os, time
    time.sleep(0.002)
    return x, os.getpid()

@bash_app
def shell():
    return "sleep 300 & sleep {nap}"

shells = [shell() for _ in range(2)]
futures = [work(i) for i in range(600)]
print("started", flush=True)
results = [f.result()[0] for f in futures]
assert results == list(range(600))
[s.result() for s in shells]
print("all right", flush=True)
"""

RAISES = """
from exex import python_app

@python_app
def work(x):
    return x

futures = [work(i) for i in range(100_000)]
futures[{asked}].result()
raise RuntimeError("in the middle")
"""


def processes(mark: str) -> list[psutil.Process]:
    """Live processes that carry the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def nobody_left(mark: str, most_s: float = 10.0) -> None:
    until = time.monotonic() + most_s
    while left := processes(mark):
        assert time.monotonic() < until, f"left behind: {[(p.pid, p.status(), p.cmdline()[:4]) for p in left]}"
        time.sleep(0.01)


def task_processes(mark: str) -> list[psutil.Process]:
    """Processes whose parent leads no session but that lead one: that is how a task process looks."""
    found = []
    for process in processes(mark):
        try:
            if os.getsid(process.pid) == process.pid and "python" in process.name() and process.ppid() != 1:
                parent = process.parent()
                if parent is not None and parent.environ().get(MARK) == mark and os.getsid(parent.pid) != parent.pid:
                    found.append(process)
        except (psutil.Error, OSError):
            pass
    return found


def start(launch: Launch, script: str, mark: str):  # type: ignore[no-untyped-def]
    path = launch.cwd / "workflow.py"
    path.write_text(script)
    return launch.start([*RUN, str(path)], **{MARK: mark})


def segv(launch: Launch, mark: str, rng: random.Random) -> Ended:
    """A task process gets SIGSEGV: its attempt is retried, all results are right."""
    process = start(launch, STEADY.format(retries=3, nap=0.3), mark)
    assert process.stdout.readline() == "started\n"
    for _ in range(3):
        time.sleep(rng.uniform(0, 0.15))
        victims = task_processes(mark)
        if victims:
            try:
                rng.choice(victims).send_signal(signal.SIGSEGV)
            except psutil.Error:
                pass
    done = launch.finish(process, 60)
    shells_hit = "TaskProcessDied" in done.err
    assert done.status == 0 or (done.status == 1 and shells_hit), (done.status, done.err)
    assert shells_hit or done.out == "all right\n", (done.out, done.err)
    return done


def interrupt(launch: Launch, mark: str, rng: random.Random) -> Ended:
    """Ctrl-C at any moment, start-up included."""
    process = start(launch, STEADY.format(retries=0, nap=300), mark)
    time.sleep(rng.uniform(0, 2.5))
    process.send_signal(signal.SIGINT)
    done = launch.finish(process, 60)
    interrupted = (130, -signal.SIGINT)  # the latter before exex itself has begun: Python's own end, 130 to a shell
    before_site = done.status == 1 and "Fatal Python error: init_import_site" in done.err  # and before that
    assert done.status in interrupted or before_site, (done.status, done.out, done.err)
    assert "all right" not in done.out
    return done


def raises(launch: Launch, mark: str, rng: random.Random) -> Ended:
    """The script raises in the middle of 100,000 tasks."""
    done = launch.finish(start(launch, RAISES.format(asked=rng.randrange(50_000)), mark), 60)
    assert done.status == 1, (done.status, done.err)
    assert done.err.count("RuntimeError: in the middle") == 1, done.err
    return done


SCENARIOS: dict[str, Callable[[Launch, str, random.Random], Ended]] = {"segv": segv, "interrupt": interrupt, "raises": raises}


def run_once(scenario: str, seed: int, directory: Path) -> float:
    """One run; how long it took, in seconds."""
    mark = uuid.uuid4().hex
    done = SCENARIOS[scenario](Launch(directory), mark, random.Random(seed))
    nobody_left(mark)
    return done.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for scenario in options.scenarios or SCENARIOS:
        failures = []
        for seed in range(options.seed, options.seed + options.runs):
            with tempfile.TemporaryDirectory() as directory:
                try:
                    run_once(scenario, seed, Path(directory))
                except AssertionError as error:
                    failures.append(seed)
                    print(f"{scenario} seed {seed}: {error}", flush=True)
        print(f"{scenario}: {options.runs - len(failures)} of {options.runs} ended as they must", flush=True)


if __name__ == "__main__":
    main()
