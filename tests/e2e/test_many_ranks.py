"""Many more ranks than cores: they come up, work, and end. `python -m benchmarks.many_ranks` goes up to 128."""

from __future__ import annotations

from tests.launch import Launch

SCRIPT = """
from exex import Executor
def noop(number): return number
with Executor() as executor:
    assert [future.result() for future in [executor.submit(noop, number) for number in range(10_000)]] == list(range(10_000))
    print(sum(1 for _ in executor.map(noop, range(100_000))))
"""


def test_twelve_ranks(launch: Launch) -> None:
    done = launch.workflow(12, SCRIPT, options=("--slots", "1"))
    assert (done.status, done.out, done.err) == (0, "100000\n", "")
