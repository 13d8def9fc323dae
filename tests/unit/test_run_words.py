"""The quick reader of the command line agrees with click, or leaves the words to it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exex import cli
from exex.config import Config
from exex.launch.run_words import read_command

SCRIPT = __file__
PLAIN = [
    [],
    ["--slots", "3"],
    ["--slots=3", "--slots", "4"],
    ["--progress", "--no-progress"],
    ["--preload", "a,b", "--preload=c"],
    ["--stage-file", "/a:b", "--stage-file", "c"],
    ["--run-dir", "--odd"],
    ["--run-dir="],
    ["--journal", "x", "--resume"],
]


@pytest.mark.parametrize("options", PLAIN, ids=" ".join)
@pytest.mark.parametrize("rest", [[SCRIPT], [SCRIPT, "--slots", "x", "-n", "--", "a b"], ["--", SCRIPT, "--", "x"]])
def test_it_reads_what_click_reads(options: list[str], rest: list[str]) -> None:
    found = read_command([*options, *rest], {"EXEX_RETRIES": "2"})
    if options == ["--run-dir="]:
        assert found is None
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXEX_RETRIES", "2")
        assert found == cli.parse_run_args([*options, *rest])


@pytest.mark.parametrize(
    "words",
    [[], ["--"], ["--slots"], ["--slots", "0", SCRIPT], ["--slot", "3", SCRIPT], ["-h"], ["--help"], ["--progress=1", SCRIPT], ["no.py"]],
)
def test_what_is_not_plain_is_left_to_click(words: list[str]) -> None:
    assert read_command(words, {}) is None


WORDS = [word for field in Config.fields_help() for word in (field.option, f"--no-{field.name}", f"{field.option}=2")]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([*WORDS, "2", "auto", "--", "-n", "", SCRIPT, "x:y"]), max_size=6))
def test_it_never_reads_what_click_refuses(words: list[str]) -> None:
    found = read_command(words, {})
    if found is not None:
        assert found == cli.parse_run_args(words)


def test_a_rank_imports_neither_click_nor_the_manager() -> None:
    """What is imported on each of thousands of ranks, and what is not."""
    code = (
        f"NEEDED = {[f'exex.store.{name}' for name in ('exchange', 'holdings', 'mapping', 'node_store', 'recycling')]}\n"
        "import sys\nfrom exex import run\nfrom exex.launch.run_words import read_command\n"
        f"assert read_command([{SCRIPT!r}], {{}})\nimport exex.guard.loop\n"
        "import exex.rank, exex.transport.mpi\n"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in ('click', 'numpy', 'zmq', 'h5py', 'sqlite3')"
        " or name.startswith(('exex.manager', 'exex.client', 'exex.store.', 'exex.launch.stag', 'exex.launch.store')) and name not in NEEDED))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
