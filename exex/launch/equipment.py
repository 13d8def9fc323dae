"""What a node has for tasks beside slots: CPUs to bind them to, memory, accelerators. Reads the node; the rest is pure."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from exex.errors import ConfigError

MASKS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
"""Variables that mask accelerators: NVIDIA's, AMD's, Intel's."""

PARENT_BYTES = 16 * 1024**2
"""Memory for a task that waits, more than its two processes take of themselves."""

DESCRIPTORS_OF_A_TASK = 6
_OTHER_DESCRIPTORS = 256
_LEAST_PARENTS = 16
_MANY = 1 << 20

_NO_DEVICE = ("", "-1", "NoDevFiles", "none")


# ---- CPUs -----------------------------------------------------------------------------------------------------


def slot_cores(  # noqa: PLR0917
    bind: str,
    slots: int,
    affinity: Collection[int],
    neighbours: Mapping[int, Collection[int]],
    rank: int,
    is_granted: bool,
    siblings: Mapping[int, int],
) -> list[list[int]]:
    """CPU numbers to which each slot of a rank is bound; empty if they are not. Pure.

    Args:
        bind: as in `Config`.
        affinity: CPUs that the rank may use.
        neighbours: the same of each rank with slots on its node, its own included.
        is_granted: it is in an allocation, or the launcher has left it less than all CPUs.
        siblings: of each CPU the lowest one of its core: those of one core go to one slot.

    Raises:
        ConfigError: they must be bound, and there are fewer CPUs than slots.
    """
    own = sorted(affinity, key=lambda cpu: (siblings.get(cpu, cpu), cpu))
    sharing = sorted(other for other, cpus in neighbours.items() if other != rank and not set(cpus).isdisjoint(affinity))
    if bind == "none" or (bind == "auto" and (sharing or not is_granted)):
        return []
    if sharing:
        place, parts = sorted([*sharing, rank]).index(rank), len(sharing) + 1
        own = own[len(own) * place // parts : len(own) * (place + 1) // parts]
    each = len(own) // slots
    if not each:
        if bind == "auto":
            return []
        raise ConfigError(
            f"--bind cores: rank {rank} has {len(own)} CPUs for itself, and {slots} slots to bind to them; "
            "give it fewer slots (--slots) or more CPUs, or choose --bind auto"
        )
    return [own[i * each : (i + 1) * each] for i in range(slots)]


def read_siblings(cpus: Collection[int]) -> dict[int, int]:
    """The lowest CPU of the core that each CPU belongs to, as far as the kernel tells."""
    found = {}
    for cpu in cpus:
        try:
            text = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            continue
        found[cpu] = int(re.split(r"[-,\s]", text)[0])
    return found


_CPU_LISTS = (
    *("/sys/fs/cgroup/cpuset.cpus.effective", "/sys/fs/cgroup/cpuset/cpuset.effective_cpus"),
    "/sys/devices/system/cpu/online",
)


def read_all_cpus() -> set[int]:
    """CPUs that a process here may use unless it is bound to some of them: of the container, or of the machine."""
    for path in _CPU_LISTS:
        try:
            return cpu_numbers(Path(path).read_text())
        except (OSError, ValueError):
            continue
    return set(range(os.cpu_count() or 1))


def cpu_numbers(text: str) -> set[int]:
    """The numbers in "0-3,8": how the kernel writes lists.

    Raises:
        ValueError: anything else.
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


# ---- memory ---------------------------------------------------------------------------------------------------


def memory_bytes(env: Mapping[str, str], meminfo: str, limits: Sequence[str]) -> int:
    """Memory of the node that the job may use; 0 if nobody tells. Pure.

    Args:
        env: of the rank; Slurm tells what it has granted, in MB.
        meminfo: text of /proc/meminfo.
        limits: texts of cgroup limits above this process; "max", or a number so large that it means none.
    """
    found = [int(size) * 1024 for size in re.findall(r"^MemTotal:\s*(\d+) kB", meminfo, re.MULTILINE)]
    found += [int(text) for text in limits if text.strip().isdecimal() and int(text) < 1 << 60]
    if env.get("SLURM_MEM_PER_NODE", "").isdecimal() and int(env["SLURM_MEM_PER_NODE"]):
        found.append(int(env["SLURM_MEM_PER_NODE"]) * 1024**2)
    return min(found, default=0)


def most_parents(setting: int | Literal["auto"], slots: int, memory_bytes: int, ranks: int, descriptors: int) -> int:
    """Tasks of a rank that may wait for tasks of their own: see the setting of that name.

    Args:
        memory_bytes: of the node, 0 for unknown.
        ranks: of that node.
        descriptors: that the rank may have open; negative for any number.
    """
    fit = (descriptors - _OTHER_DESCRIPTORS) // DESCRIPTORS_OF_A_TASK - slots if descriptors >= 0 else _MANY
    by_memory = max(_LEAST_PARENTS, memory_bytes // 2 // max(1, ranks) // PARENT_BYTES)
    return max(1, min(by_memory if setting == "auto" else setting, fit))


def read_memory(env: Mapping[str, str]) -> int:
    """`memory_bytes` of this process's node."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        meminfo = ""
    return memory_bytes(env, meminfo, _read_limits())


def _read_limits() -> list[str]:
    """What the memory controllers of cgroups above this process allow, version 2 or 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        below = Path(path.lstrip("/"))
        for directory in [top / below, *[top / parent for parent in below.parents], top]:
            try:
                found.append((directory / name).read_text())
            except OSError:
                continue
    return found


# ---- accelerators ---------------------------------------------------------------------------------------------


def find_gpus(setting: str, env: Mapping[str, str], nvidia_files: Collection[str]) -> list[str]:
    """Names of the accelerators that a rank can use. Pure.

    Args:
        setting: `Config.gpus`.
        env: of the rank: what masks them now.
        nvidia_files: /dev/nvidia0 and so on.

    Raises:
        ConfigError: a name twice.
    """
    if setting == "none":
        return []
    if setting != "auto":
        return _names("--gpus", setting)
    for variable in MASKS:
        if variable in env:
            return [] if env[variable] in _NO_DEVICE else _names(variable, env[variable])
    return [str(number) for number, _ in enumerate(nvidia_files)]


def _names(source: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(set(names)) < len(names):
        raise ConfigError(f"{source} is {text!r}: it names an accelerator twice")
    return names


def nvidia_files() -> list[str]:
    """Device files of NVIDIA's accelerators."""
    return sorted(path for path in glob.glob("/dev/nvidia*") if re.fullmatch(r"/dev/nvidia\d+", path))


def find_gpu_variable(setting: str, env: Mapping[str, str]) -> str:
    """The variable that masks accelerators for a task."""
    if setting != "auto":
        return setting
    for variable in MASKS:
        if variable in env:
            return variable
    return "ROCR_VISIBLE_DEVICES" if os.path.exists("/dev/kfd") else MASKS[0]
