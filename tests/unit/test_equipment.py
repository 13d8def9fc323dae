"""What a rank finds of its node: CPUs to bind slots to, memory, accelerators."""

from __future__ import annotations

import pytest

from exex.errors import ConfigError
from exex.launch import equipment
from exex.launch.equipment import cpu_numbers, find_gpu_variable, find_gpus, memory_bytes, slot_cores

NO_SIBLINGS: dict[int, int] = {}
MEMINFO = "MemTotal:       263850 kB\nMemFree:        1 kB\n"


def bound(bind="auto", slots=2, own=range(4), others=(), rank=1, is_granted=True, siblings=NO_SIBLINGS):
    neighbours = {rank: set(own), **{rank + 1 + i: set(other) for i, other in enumerate(others)}}
    return slot_cores(bind, slots, set(own), neighbours, rank, is_granted, siblings)


def test_slots_are_bound_where_the_rank_has_cpus_of_its_own():
    assert bound() == [[0, 1], [2, 3]]
    assert bound(others=[range(4, 8)]) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    "case",
    [
        {"bind": "none"},
        {"is_granted": False},  # all of a laptop
        {"others": [range(4)]},  # ranks share all cores
        {"others": [[3]]},
        {"slots": 5},  # more slots than CPUs
        {"bind": "none", "is_granted": True, "slots": 1},
    ],
)
def test_slots_are_not_bound_elsewhere(case):
    assert bound(**case) == []


def test_hardware_threads_of_a_core_go_to_one_slot():
    siblings = {cpu: cpu % 4 for cpu in range(8)}
    assert bound(slots=4, own=range(8), siblings=siblings) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert bound(slots=8, own=range(8), siblings=siblings) == [[0], [4], [1], [5], [2], [6], [3], [7]]


def test_cpus_that_are_left_over_serve_nobody():
    assert bound(slots=2, own=range(5)) == [[0, 1], [2, 3]]


def test_bind_cores_divides_what_ranks_share():
    everything = range(8)
    ranks = {1: set(everything), 2: set(everything), 4: set(everything)}
    found = [slot_cores("cores", 2, set(everything), ranks, rank, False, NO_SIBLINGS) for rank in ranks]
    assert found == [[[0], [1]], [[2], [3]], [[5], [6]]]


def test_bind_cores_says_what_it_lacks():
    with pytest.raises(ConfigError, match="--bind cores: rank 1 has 4 CPUs for itself, and 5 slots to bind to them"):
        bound(bind="cores", slots=5)


@pytest.mark.parametrize(("text", "numbers"), [("0", {0}), ("0-3\n", {0, 1, 2, 3}), ("0-1,4,6-7", {0, 1, 4, 6, 7})])
def test_lists_of_cpus(text, numbers):
    assert cpu_numbers(text) == numbers


def test_the_kernel_tells_of_this_machine():
    assert equipment.read_all_cpus()
    assert equipment.read_memory({}) > 1 << 20
    assert equipment.read_siblings([0]).get(0, 0) == 0


@pytest.mark.parametrize(
    ("env", "limits", "expected"),
    [
        ({}, [], 263850 * 1024),
        ({}, ["max", "9223372036854771712\n"], 263850 * 1024),
        ({}, ["max", "1000000\n"], 1000000),
        ({"SLURM_MEM_PER_NODE": "100"}, [], 100 * 1024**2),
        ({"SLURM_MEM_PER_NODE": "0"}, [], 263850 * 1024),  # Slurm's word for all of it
        ({"SLURM_MEM_PER_NODE": "100000"}, [], 263850 * 1024),
    ],
)
def test_memory_is_the_least_that_anybody_tells(env, limits, expected):
    assert memory_bytes(env, MEMINFO, limits) == expected


def test_memory_that_nobody_tells():
    assert memory_bytes({}, "", []) == 0


@pytest.mark.parametrize(
    ("setting", "env", "files", "expected"),
    [
        ("auto", {}, [], []),
        ("auto", {}, ["/dev/nvidia0", "/dev/nvidia1"], ["0", "1"]),
        ("auto", {"CUDA_VISIBLE_DEVICES": "2,3"}, ["/dev/nvidia0"] * 4, ["2", "3"]),
        ("auto", {"CUDA_VISIBLE_DEVICES": ""}, ["/dev/nvidia0"], []),
        ("auto", {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ["/dev/nvidia0"], []),
        ("auto", {"ROCR_VISIBLE_DEVICES": "0, 1"}, [], ["0", "1"]),
        ("auto", {"ZE_AFFINITY_MASK": "0.0,0.1"}, [], ["0.0", "0.1"]),
        ("none", {"CUDA_VISIBLE_DEVICES": "0"}, ["/dev/nvidia0"], []),
        ("GPU-1,GPU-2", {"CUDA_VISIBLE_DEVICES": "0"}, [], ["GPU-1", "GPU-2"]),
    ],
)
def test_accelerators(setting, env, files, expected):
    assert find_gpus(setting, env, files) == expected


def test_an_accelerator_that_is_named_twice():
    with pytest.raises(ConfigError, match="--gpus is '0,0': it names an accelerator twice"):
        find_gpus("0,0", {}, [])
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        find_gpus("auto", {"CUDA_VISIBLE_DEVICES": "1,1"}, [])


def test_the_variable_that_masks():
    assert find_gpu_variable("MY_DEVICES", {"CUDA_VISIBLE_DEVICES": "0"}) == "MY_DEVICES"
    assert find_gpu_variable("auto", {"ZE_AFFINITY_MASK": "0"}) == "ZE_AFFINITY_MASK"
    assert find_gpu_variable("auto", {}) in equipment.MASKS


@pytest.mark.parametrize(
    ("setting", "slots", "memory_bytes", "ranks", "descriptors", "expected"),
    [
        ("auto", 2, 16 << 30, 2, 1 << 20, 256),
        ("auto", 2, 16 << 30, 2, 1024, 126),  # 768 descriptors, six each, and two slots have a process anyway
        ("auto", 64, 512 << 30, 1, -1, 16384),
        ("auto", 1, 1 << 30, 128, 1 << 20, 16),
        ("auto", 1, 0, 1, 1 << 20, 16),
        (5, 2, 16 << 30, 1, 1 << 20, 5),
        (100_000, 2, 0, 0, 4096, 638),
        (5, 100, 0, 0, 100, 1),
    ],
)
def test_how_many_tasks_may_wait(setting, slots, memory_bytes, ranks, descriptors, expected):
    assert equipment.most_parents(setting, slots, memory_bytes, ranks, descriptors) == expected
