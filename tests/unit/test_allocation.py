"""What batch systems say of an allocation, and what a rank may use of it.

The environments are those that real systems gave, as far as this module reads them: Slurm 22.05 (salloc of three nodes for five
tasks, and a step in it), OpenPBS 23.06 (three hosts, mpiprocs=2); Theta, Blue Waters and Summit as their guides show them.
"""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exex.errors import ConfigError
from exex.launch.allocation import Allocation, Node, auto_slots, find_allocation, manager_slots, usable_cores
from exex.launch.hostlist import MOST, expand_counts, expand_hosts, expand_nids

SALLOC = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOBID": "1",
    "SLURM_JOB_NODELIST": "node[1-3]",
    "SLURM_NODELIST": "node[1-3]",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_NNODES": "3",
    "SLURM_JOB_CPUS_PER_NODE": "3,1(x2)",
    "SLURM_TASKS_PER_NODE": "3,1(x2)",
    "SLURM_NTASKS": "5",
}
STEP = {
    **SALLOC,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_TASKS_PER_NODE": "2,1",
    "SLURM_NNODES": "2",
    "SLURM_CPUS_ON_NODE": "3",
}
THETA = {"COBALT_JOBID": "512001", "COBALT_JOBSIZE": "5", "COBALT_PARTNAME": "3834-3837,3840"}
NIDS = ("nid03834", "nid03835", "nid03836", "nid03837", "nid03840")


def nodes(names: tuple[str, ...] | list[str], cores: int | None = None, ranks: int | None = None) -> tuple[Node, ...]:
    return tuple(Node(name, cores, ranks) for name in names)


# ---- batch systems whose variables tell all ----


@pytest.mark.parametrize(
    "env, found",
    [
        (SALLOC, Allocation("Slurm", "1", (Node("node1", 3, 3), Node("node2", 1, 1), Node("node3", 1, 1)), 3)),
        (STEP, Allocation("Slurm", "1", (Node("node1", 3), Node("node2", 1), Node("node3", 1)), 3)),
        (
            {"SLURM_JOB_ID": "7", "SLURM_NODELIST": "nid[00012-00015,00020],login1"},
            Allocation("Slurm", "7", nodes(["nid00012", "nid00013", "nid00014", "nid00015", "nid00020", "login1"]), 6),
        ),
        (
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "b2,a[1-2]", "SLURM_JOB_CPUS_PER_NODE": "64,32(x2)"},
            Allocation("Slurm", "7", (Node("b2", 64), Node("a1", 32), Node("a2", 32)), 3),
        ),
        ({"SLURM_JOB_ID": "5", "SLURM_JOB_NUM_NODES": "2"}, Allocation("Slurm", "5", (), 2)),
        ({"SLURM_JOB_ID": "5", "SLURM_NNODES": "2"}, Allocation("Slurm", "5", (), 2)),
        ({"SLURM_JOB_ID": "5"}, Allocation("Slurm", "5", (), None)),
        (THETA, Allocation("Cobalt", "512001", nodes(NIDS), 5)),
        (
            {"COBALT_JOBID": "7", "COBALT_JOBSIZE": "512", "COBALT_PARTNAME": "MIR-00000-33331-512"},
            Allocation("Cobalt", "7", (), 512),
        ),
        ({"COBALT_JOBID": "7", "COBALT_JOBSIZE": "128"}, Allocation("Cobalt", "7", (), 128)),
        ({"PBS_JOBID": "9.s"}, Allocation("PBS", "9.s", (), None)),
        (
            {"LSB_JOBID": "3", "LSB_MCPU_HOSTS": "batch1 1 h41n01 42 h41n02 42"},
            Allocation("LSF", "3", nodes(["h41n01", "h41n02"], 42, 42), 2),
        ),
        ({"LSB_JOBID": "3", "LSB_HOSTS": "h1 h1 h2"}, Allocation("LSF", "3", (Node("h1", 2, 2), Node("h2", 1, 1)), 2)),
        ({"LSB_JOBID": "3"}, Allocation("LSF", "3", (), None)),
        ({"ALPS_APP_PE": "0", "ALPS_APP_ID": "4711"}, Allocation("ALPS", "4711", (), None)),
        ({"ALPS_APP_PE": "0", "COBALT_JOBID": "7", "COBALT_PARTNAME": "12"}, Allocation("Cobalt", "7", nodes(["nid00012"]), 1)),
    ],
)
def test_what_variables_tell(env: dict[str, str], found: Allocation) -> None:
    assert find_allocation(env) == found


def test_no_batch_system_is_this_machine() -> None:
    assert find_allocation({}) == Allocation("", "", (Node(socket.gethostname(), usable_cores()),), 1)


# ---- node files ----


@pytest.mark.parametrize(
    "variables, text, found",
    [
        ({"PBS_JOBID": "9.s"}, "h1\nh1\nh2\nh2\nh3\nh3\n", nodes(["h1", "h2", "h3"], None, 2)),
        ({"PBS_JOBID": "9.s"}, "x3005c0s13b0n0.hsn.site\nx3005c0s19b1n0.hsn.site\n\n", None),
        ({"PBS_JOBID": "9.s", "PBS_NUM_PPN": "4"}, "23480\n" * 4 + "23481\n" * 4, nodes(["nid23480", "nid23481"], 4, 4)),
        ({"PBS_JOBID": "9.s", "PBS_NUM_PPN": "4"}, "b\nb\nb\nb\na\na\n", (Node("b", 4, 4), Node("a", 2, 2))),
        ({"COBALT_JOBID": "1", "COBALT_PARTNAME": "7"}, "cc001\ncc002\n", nodes(["cc001", "cc002"])),
        ({"LSB_JOBID": "3", "LSB_HOSTS": "no"}, "batch1\n" + "c1\n" * 42 + "c2\n" * 42, nodes(["c1", "c2"], 42, 42)),
        ({"LSB_JOBID": "3"}, "c1\nc1\nc2\nc3\n", (Node("c1", 2, 2), Node("c2", 1, 1), Node("c3", 1, 1))),
        ({"LSB_JOBID": "3"}, "c1\nc2\nc3\n", nodes(["c1", "c2", "c3"], 1, 1)),
        ({"LSB_JOBID": "3"}, "c1\n", nodes(["c1"], 1, 1)),
    ],
)
def test_node_files(tmp_path: Path, variables: dict[str, str], text: str, found: tuple[Node, ...] | None) -> None:
    file = tmp_path / "nodes"
    file.write_text(text)
    names = {"PBS_JOBID": "PBS_NODEFILE", "COBALT_JOBID": "COBALT_NODEFILE", "LSB_JOBID": "LSB_DJOB_HOSTFILE"}
    variable = names[next(iter(variables))]
    allocation = find_allocation({**variables, variable: str(file)})
    if found is None:
        found = nodes(text.split(), None, 1)
    assert allocation.nodes == found and allocation.size == len(found)


# ---- what cannot be understood is named ----


@pytest.mark.parametrize(
    "env, words",
    [
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[3-1]"}, ["SLURM_JOB_NODELIST is 'n[3-1]'", "3-1"]),
        ({"SLURM_JOB_ID": "1", "SLURM_NODELIST": "n[1-2"}, ["SLURM_NODELIST is 'n[1-2'"]),
        ({**SALLOC, "SLURM_JOB_CPUS_PER_NODE": "4(x2"}, ["SLURM_JOB_CPUS_PER_NODE is '4(x2'", "'4(x2'"]),
        ({**SALLOC, "SLURM_JOB_CPUS_PER_NODE": "4(x2)"}, ["SLURM_JOB_CPUS_PER_NODE", "counts 2 nodes", "SLURM_JOB_NODELIST", "names 3"]),
        ({**SALLOC, "SLURM_TASKS_PER_NODE": "x"}, ["SLURM_TASKS_PER_NODE is 'x'"]),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "two"}, ["SLURM_JOB_NUM_NODES is 'two'"]),
        ({**THETA, "COBALT_JOBSIZE": "-"}, ["COBALT_JOBSIZE is '-'"]),
        ({**THETA, "COBALT_PARTNAME": "12-x"}, ["COBALT_PARTNAME is '12-x'"]),
        ({"LSB_JOBID": "3", "LSB_MCPU_HOSTS": "h1 4 h2"}, ["LSB_MCPU_HOSTS is 'h1 4 h2'"]),
        ({"PBS_JOBID": "9", "PBS_NODEFILE": "/no/such/file"}, ["/no/such/file", "PBS_NODEFILE", "No such file"]),
        ({"PBS_JOBID": "9", "PBS_NODEFILE": "/dev/null"}, ["/dev/null", "PBS_NODEFILE", "empty"]),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n" * 10_000 + "["}, ["SLURM_JOB_NODELIST is 'nnn"]),
    ],
)
def test_what_cannot_be_understood_is_named(env: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        find_allocation(env)
    assert all(word in str(error.value) for word in words) and len(str(error.value)) < 500


# ---- host lists ----


@pytest.mark.parametrize(
    "text, names",
    [
        ("node1", "node1"),
        ("rack[1-2]node[1-3]", "rack1node1 rack1node2 rack1node3 rack2node1 rack2node2 rack2node3"),
        ("n[9-11]", "n9 n10 n11"),
        ("n[09-11]", "n09 n10 n11"),
        ("n[1-003]", "n1 n2 n3"),
        ("x[1-2],x3,x[004-005]", "x1 x2 x3 x004 x005"),
        ("b1,a[1-3],b1", "b1 a1 a2 a3 b1"),
        ("a[1,3]-ib.site.org,login_2", "a1-ib.site.org a3-ib.site.org login_2"),
    ],
)
def test_host_lists(text: str, names: str) -> None:
    assert expand_hosts(text) == names.split()


@pytest.mark.parametrize("text", ["", ",", "a,", "n[]", "n[1", "n1]", "n[1-2]]", "n[[1]]", "n[1-2-3]", "n[a-b]", "n[-1]", "a b", "n[1,]", "ü1", "n[3-1]", "a\n"])
def test_what_is_no_host_list(text: str) -> None:
    with pytest.raises(ValueError):
        expand_hosts(text)


@pytest.mark.parametrize("text", [f"n[0-{MOST}]", "n[0-99999999999999999999]", "a[0-1999]b[0-1999]", f"n[0-{MOST - 1}],m"])
def test_a_slip_of_the_pen_does_not_fill_the_memory(text: str) -> None:
    with pytest.raises(ValueError, match="more than"):
        expand_hosts(text)


ranges = st.tuples(st.integers(0, 120), st.integers(0, 9), st.integers(1, 4)).map(
    lambda r: f"{r[0]:0{r[2]}d}-{r[0] + r[1]:0{r[2]}d}" if r[1] else f"{r[0]:0{r[2]}d}"
)
hosts = st.lists(
    st.one_of(
        st.sampled_from(["n", "nid", "rack7-", "x.y", "a_"]),
        st.lists(ranges, min_size=1, max_size=3).map(lambda texts: f"[{','.join(texts)}]"),
    ),
    min_size=1,
    max_size=4,
).filter(lambda parts: not parts[0].startswith("[") and all(not (a.startswith("[") and b.startswith("[")) for a, b in itertools.pairwise(parts)))


@given(st.lists(hosts, min_size=1, max_size=3))
def test_host_lists_mean_what_clustershell_makes_of_them(entries: list[list[str]]) -> None:
    """It is a set there, in an order of its own."""
    nodeset = pytest.importorskip("ClusterShell.NodeSet", reason="ClusterShell is in the extra `tests`")
    text = ",".join("".join(parts) for parts in entries)
    assert set(expand_hosts(text)) == set(nodeset.NodeSet(text, resolver=nodeset.RESOLVER_NOGROUP)), text


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 9)), min_size=1))
def test_counts(runs: list[tuple[int, int]]) -> None:
    text = ",".join(f"{count}(x{repeats})" if repeats > 1 else str(count) for count, repeats in runs)
    assert expand_counts(text) == [count for count, repeats in runs for _ in range(repeats)]


@pytest.mark.parametrize("text", ["", "4,", "4(x)", "x2", "4(x2", "-1", "4 (x2)", f"1(x{MOST + 1})", f"1(x{MOST}),1"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(ValueError):
        expand_counts(text)


def test_numbered_nodes() -> None:
    assert expand_nids("3834-3836,12,123456") == ["nid03834", "nid03835", "nid03836", "nid00012", "nid123456"]


# ---- cores and slots ----


def test_cores_of_an_allocation() -> None:
    assert find_allocation(SALLOC).cores() == 5
    assert find_allocation(THETA).cores() is None
    assert Allocation("Slurm", "1", (Node("a", 4), Node("b")), 2).cores() is None


@pytest.mark.parametrize(
    "affinity, ranks, masks, slots",
    [
        ({0}, 1, (), 1),
        (range(8), 1, (), 8),
        (range(8), 4, (), 2),
        (range(8), 3, (), 2),
        (range(2), 3, (), 1),
        ({5}, 64, (), 1),
        (range(8), 0, (), 8),
        (range(8), 4, [range(8)] * 4, 2),
        (range(8, 16), 4, [range(n, n + 8) for n in (0, 8, 16, 24)], 8),
        (range(8), 4, [range(8), range(8), range(8, 16), range(8, 16)], 4),
        (range(4), 2, [range(4), range(2, 6)], 3),
        ({0, 1}, 3, [{0, 1}] * 3, 1),
    ],
)
def test_auto_slots(affinity, ranks, masks, slots):  # type: ignore[no-untyped-def]
    assert auto_slots(affinity, ranks, masks) == slots


@pytest.mark.parametrize(
    "cores, ranks_on_node, most, slots",
    [
        (32, 1, None, 31),
        (32, 1, 8, 8),
        (32, 1, 32, 31),
        (32, 1, 100, 31),
        (1, 1, None, 0),
        (1, 1, 4, 0),
        (32, 2, None, 0),
        (32, 33, 1, 0),
    ],
)
def test_slots_beside_the_manager(cores: int, ranks_on_node: int, most: int | None, slots: int) -> None:
    assert manager_slots(range(cores), ranks_on_node, most) == slots
