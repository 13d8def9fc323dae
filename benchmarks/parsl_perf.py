"""Parsl's own benchmark, `parsl-perf`, with EXEX, with HTEX, and with an executor that does nothing, in turns.

`python -m benchmarks.parsl_perf [--turns 3] [--tasks 10000] [--workers 2]` needs Parsl. The executor that does nothing answers
at once, in a thread of its own: what remains is Parsl's data-flow kernel, in the same process, under the same interpreter lock.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HEAD = """
import queue, threading
from concurrent.futures import Future
from parsl.config import Config
"""
EXECUTORS = {
    "exex": """
from exex.integrations.parsl import ExtremeScaleExecutor
executor = ExtremeScaleExecutor(workers={workers}, settings=dict(slots=1))
""",
    "htex": """
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
provider = LocalProvider(init_blocks=1, max_blocks=1)
executor = HighThroughputExecutor(address="127.0.0.1", max_workers_per_node={workers}, provider=provider)
""",
    "nothing": """
from parsl.executors.base import ParslExecutor
class Nothing(ParslExecutor):
    label = "nothing"
    def start(self):
        self.calls = queue.SimpleQueue()
        threading.Thread(target=self.answer, daemon=True).start()
    def answer(self):
        while future := self.calls.get():
            future.set_result(7)
    def submit(self, func, resource_specification, *args, **kwargs):
        future = Future()
        self.calls.put(future)
        return future
    def shutdown(self):
        self.calls.put(None)
executor = Nothing()
""",
}
TAIL = """
def fresh_config():
    return Config(executors=[executor], strategy="none", initialize_logging={logs})
"""


def measure(name: str, workers: int, tasks: int, logs: bool, directory: Path) -> list[float]:
    """Tasks per second of each large iteration."""
    config = directory / f"config_{name}.py"
    config.write_text(HEAD + EXECUTORS[name].format(workers=workers) + TAIL.format(logs=logs))
    words = [sys.executable, "-m", "parsl.benchmark.perf", "--config", str(config), "--iterate", f"10,{tasks},{tasks}"]
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=directory, env=env, capture_output=True, text=True, check=False)
    rates = [float(rate) for rate in re.findall(r"Tasks per second: ([\d.]+)", done.stdout)]
    if done.returncode or len(rates) != 3:
        sys.exit(f"parsl-perf with {name} failed:\n{done.stdout}{done.stderr}")
    return rates[1:]


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=10000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=sorted(EXECUTORS), action="append", help="this executor; may be given several times")
    parser.add_argument("--no-logs", action="store_true", help="without Parsl's log, which takes a good part of its time")
    options = parser.parse_args()
    names = options.only or list(EXECUTORS)
    rates: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as directory:
        for turn in range(options.turns):
            for name in names:
                found = measure(name, options.workers, options.tasks, not options.no_logs, Path(directory))
                rates[name] += found
                print(f"turn {turn + 1}, {name}: {', '.join(f'{rate:,.0f}' for rate in found)} tasks/s", flush=True)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in middle.items():
        beside = f", {rate / middle['htex']:.2f} x htex" if "htex" in middle else ""
        found = rates[name]
        print(f"{name}: {rate:,.0f} tasks/s{beside} (median of {len(found)}, {min(found):,.0f} to {max(found):,.0f})")


if __name__ == "__main__":
    main()
