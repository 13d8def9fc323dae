"""Finds and ends the processes of one benchmark run by a mark in their environment.

A walk down from the launcher is not enough: some systems start their workers through a shell that goes away.
"""

# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call"

from __future__ import annotations

import os

import psutil

RUN_MARK = "BENCHMARK_RUN"  # the harness sets it to a name that is unique to one run of one driver
LAUNCHERS = ("mpiexec", "mpiexec.hydra", "hydra_pmi_proxy", "mpirun", "prterun", "prted", "orterun", "orted")


def marked(mark: str) -> list[psutil.Process]:
    """Processes of this machine whose environment carries `mark`, this one and launchers included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def cpu_seconds() -> dict[int, float]:
    """CPU seconds (user + system) so far of every process of this run but the launcher's, by process id."""
    used = {}
    for process in marked(os.environ[RUN_MARK]):
        try:
            if process.name() not in LAUNCHERS:
                times = process.cpu_times()
                used[process.pid] = times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return used


def end(mark: str, grace_s: float) -> int:
    """Terminate, after `grace_s` seconds kill, all processes that carry `mark`; returns their number."""
    processes = marked(mark)
    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return len(processes)
