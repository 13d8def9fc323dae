"""Libraries on exex, beside the same libraries alone and on their own backends.

`python -m benchmarks.integrations [--repeats 5] [--only grid,emcee]` starts one job with two one-slot workers, and runs each case
in turns: alone, on its own backend with two processes, on exex. All must give the same answer. The first round, in which all
libraries are imported, does not count; the median of the others does.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

WORKERS = 2


class Case(NamedTuple):
    """The same work in three ways. Each returns an answer that can be compared."""

    what: str
    own: str  # backend
    ways: tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]  # alone, on its own backend, on exex


# ---- what is computed ----------------------------------------------------------------------------------------------


def work(seconds: float) -> None:
    """Keep a core busy."""
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        pass


def nothing(x: int) -> int:
    """The shortest of all calls."""
    return x


def log_probability(x: Any, variances: Any) -> float:
    """Of a model that takes a millisecond."""
    work(0.001)
    return float(-0.5 * (x**2 / variances).sum())


def valley(x: Any) -> float:
    """Rosenbrock's function in a millisecond."""
    from scipy.optimize import rosen

    work(0.001)
    return float(rosen(x))


def peak(x: float) -> float:
    """A curve that is sampled where it bends."""
    work(0.005)
    return x + 1e-4 / (1e-4 + x**2)


# ---- cases ---------------------------------------------------------------------------------------------------------


def grid() -> Case:
    """scikit-learn's search for parameters."""
    import joblib
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    import exex.integrations.joblib  # noqa: F401

    images, labels = load_digits(return_X_y=True)

    def search(backend: str, jobs: int) -> list[float]:
        with joblib.parallel_config(backend, n_jobs=jobs):
            found = GridSearchCV(SVC(), {"C": [1, 10], "gamma": [1e-4, 1e-3]}, cv=5).fit(images, labels)
        return list(found.cv_results_["mean_test_score"])

    ways = (lambda: search("sequential", 1), lambda: search("loky", WORKERS), lambda: search("exex", -1))
    return Case("GridSearchCV: 20 fits of an SVC", "loky", ways)


def calls() -> Case:
    """Calls of joblib's that take no time."""
    import joblib

    import exex.integrations.joblib  # noqa: F401

    def run(backend: str, jobs: int) -> list[int]:
        with joblib.parallel_config(backend, n_jobs=jobs):
            return list(joblib.Parallel()(joblib.delayed(nothing)(i) for i in range(5000)))

    ways = (lambda: run("sequential", 1), lambda: run("loky", WORKERS), lambda: run("exex", -1))
    return Case("joblib.Parallel: 5,000 no-ops", "loky", ways)


def array() -> Case:
    """Products and sums of blocks."""
    import dask.array as da

    from exex.integrations.dask import get

    numbers = da.random.RandomState(7).random_sample((2000, 2000), chunks=(500, 500))
    wanted = ((numbers @ numbers.T) ** 2).std(axis=0)
    ways = (
        lambda: wanted.compute(scheduler="sync").tolist(),
        lambda: wanted.compute(scheduler="processes", num_workers=WORKERS).tolist(),
        lambda: wanted.compute(scheduler=get).tolist(),
    )
    return Case("Dask array: 2,000 by 2,000, blocks of 2 MB", "processes", ways)


def graph() -> Case:
    """A graph of calls that take no time."""
    import dask

    from exex.integrations.dask import get

    call = dask.delayed(nothing, pure=False)
    total = dask.delayed(sum)([call(call(i)) for i in range(1000)])
    ways = (
        lambda: total.compute(scheduler="sync"),
        lambda: total.compute(scheduler="processes", num_workers=WORKERS, optimize_graph=False),
        lambda: total.compute(scheduler=get),
    )
    return Case("dask.delayed: 2,001 no-ops", "processes", ways)


def emcee() -> Case:
    """A chain of a sampler."""
    import emcee
    import numpy as np

    from exex.integrations.pool import Pool

    def chain(pool: Any) -> Any:
        sampler = emcee.EnsembleSampler(32, 3, log_probability, args=[np.arange(1.0, 4.0)], pool=pool)
        sampler.random_state = np.random.RandomState(3).get_state()
        sampler.run_mcmc(np.random.RandomState(1).randn(32, 3), 20)
        return sampler.get_chain().tolist()

    return Case("emcee: 32 walkers, 20 steps, 1 ms", "multiprocessing", _with_pools(chain, Pool))


def evolution() -> Case:
    """scipy's differential evolution."""
    from scipy.optimize import differential_evolution

    from exex.integrations.pool import Pool

    def minimum(pool: Any) -> Any:
        options = {"seed": 1, "updating": "deferred", "maxiter": 10, "polish": False}
        return differential_evolution(valley, [(0, 2)] * 3, workers=map if pool is None else pool.map, **options).x.tolist()

    return Case("differential_evolution: 495 calls of 1 ms", "multiprocessing", _with_pools(minimum, Pool))


def learner() -> Case:
    """A learner of adaptive's. Which points it chooses depends on the order in which values come: their values are compared."""
    from concurrent.futures import ProcessPoolExecutor

    import adaptive

    from exex import Executor

    def learn(make: Callable[[], Any]) -> int:
        there = adaptive.Learner1D(peak, bounds=(-1, 1))
        with make() as executor:
            adaptive.BlockingRunner(there, npoints_goal=200, executor=executor, ntasks=WORKERS)
        assert all(abs(there.data[x] - (x + 1e-4 / (1e-4 + x**2))) < 1e-12 for x in there.data)
        return int(there.npoints >= 200)

    def alone() -> int:
        there = adaptive.Learner1D(peak, bounds=(-1, 1))
        adaptive.runner.simple(there, npoints_goal=200)
        return int(there.npoints >= 200)

    ways = (alone, lambda: learn(lambda: ProcessPoolExecutor(WORKERS)), lambda: learn(Executor))
    return Case("adaptive: 200 points of 5 ms", "ProcessPoolExecutor", ways)


def _with_pools(run: Callable[[Any], Any], ours: Callable[[], Any]) -> Any:
    import multiprocessing

    def in_pool(make: Callable[[], Any]) -> Any:
        with make() as pool:
            return run(pool)

    return lambda: run(None), functools.partial(in_pool, lambda: multiprocessing.Pool(WORKERS)), functools.partial(in_pool, ours)


CASES = {make.__name__: make for make in (grid, calls, array, graph, emcee, evolution, learner)}


# ---- the job -------------------------------------------------------------------------------------------------------


def workflow(repeats: int, only: list[str]) -> None:
    """Runs in the job. Prints a table."""
    print(f"| seconds, median of {repeats} | alone | own backend | exex |\n|---|---:|---:|---:|")
    for make in (CASES[name] for name in only or CASES):
        case = make()
        seconds: list[list[float]] = [[], [], []]
        for repeat in range(repeats + 1):
            answers = []
            for way in sorted(range(3), key=lambda way: (way + repeat) % 3):
                began_s = time.perf_counter()
                answers.append(case.ways[way]())
                if repeat:
                    seconds[way].append(time.perf_counter() - began_s)
            assert answers[0] == answers[1] == answers[2], f"{case.what}: the answers differ"
        cells = [f"{statistics.median(s):.2f} ({min(s):.2f} to {max(s):.2f})" for s in seconds]
        print(f"| {case.what} | {cells[0]} | {case.own} {cells[1]} | {cells[2]} |", flush=True)
    print(f"load of the machine: {os.getloadavg()[0]:.1f}", file=sys.stderr)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help=f"of {', '.join(CASES)}, with commas")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        workflow(args.repeats, list(filter(None, args.only.split(","))))
        return
    job = ["-m", "exex", "run", "--workers", str(WORKERS), "--slots", "1", "--preload", "numpy", __file__]
    words = [sys.executable, *job, "--inside", "--repeats", str(args.repeats), "--only", args.only]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # two processes on two cores
    sys.exit(subprocess.run(words, env=env, check=False).returncode)


if __name__ == "__main__":
    main()
