"""Libraries that know nothing of exex, used for real: the same answers as without it, and the work was done by the workers."""

from __future__ import annotations

import pytest

from tests.e2e.test_docs import check, whole
from tests.launch import ROOT, Launch


def fine(launch: Launch, script: str, preload: str) -> None:
    options = ("--slots", "2", "--preload", preload)  # imported once for both task processes
    done = launch.workflow(2, script, options=options, OMP_NUM_THREADS="1")
    assert (done.status, done.err, done.out.splitlines()[-1:]) == (0, "", ["fine"]), (done.status, done.out, done.err)


def test_grid_search_by_joblib(launch: Launch) -> None:
    pytest.importorskip("sklearn")
    fine(
        launch,
        """
import os
import joblib
import exex.integrations.joblib
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

def where(x):
    return os.getpid()

def several(n):
    return joblib.Parallel(n_jobs=2)(joblib.delayed(pow)(i, 2) for i in range(n))

images, labels = load_digits(return_X_y=True)
images, labels = images[:400], labels[:400]
search = GridSearchCV(SVC(), {"C": [1, 10], "gamma": [0.0001, 0.001, 0.01]}, cv=3)
alone = search.fit(images, labels).cv_results_["mean_test_score"].tolist()
with joblib.parallel_config("exex"):
    assert search.fit(images, labels).cv_results_["mean_test_score"].tolist() == alone
    assert os.getpid() not in joblib.Parallel()(joblib.delayed(where)(i) for i in range(20))
    assert joblib.Parallel()([joblib.delayed(several)(3)]) == [[0, 1, 4]]
    try:
        joblib.Parallel()(joblib.delayed(divmod)(7, i) for i in (2, 1, 0))
    except ZeroDivisionError:
        print("fine")
""",
        preload="sklearn.svm,sklearn.model_selection",
    )


def test_arrays_and_graphs_of_dask(launch: Launch) -> None:
    pytest.importorskip("dask.array")
    fine(
        launch,
        """
import os
import sys
import dask
import dask.array as da
import dask.bag as db
import numpy as np
from dask.diagnostics import ProgressBar
from exex.integrations.dask import get

numbers = da.random.RandomState(7).random_sample((600, 600), chunks=(200, 200))
wanted = [(numbers @ numbers.T).sum(axis=0), numbers.std(), da.linalg.svd(numbers.rechunk((200, 600)))[1]]
for ours, theirs in zip(dask.compute(*wanted, scheduler=get), dask.compute(*wanted, scheduler="sync")):
    assert (ours == theirs).all()

@dask.delayed
def where(x):
    return os.getpid()

@dask.delayed
def divide(a, b):
    return a / b

with dask.config.set(scheduler=get):
    with ProgressBar(out=open("bar.txt", "w"), dt=0.01):
        assert os.getpid() not in dask.compute(*[where(i) for i in range(20)])
    assert db.from_sequence(range(100), npartitions=5).map(lambda x: x * x).filter(lambda x: x % 2).sum().compute() == 166650
    try:
        dask.delayed(sum)([divide(1, i) for i in (2, 1, 0)]).compute()
    except ZeroDivisionError:
        pass
assert "100% Completed" in open("bar.txt").read()
print("fine")
""",
        preload="dask.array",
    )


def test_walkers_of_emcee_and_optimizers_of_scipy(launch: Launch) -> None:
    pytest.importorskip("emcee")
    fine(
        launch,
        """
import os
import emcee
import numpy as np
from scipy.optimize import brute, differential_evolution, minimize, rosen
from exex.integrations.pool import Pool

def log_probability(x, inverse_variance):
    assert os.getpid() != script or not parallel
    return -0.5 * np.sum(inverse_variance * x**2)

def chain(pool):
    sampler = emcee.EnsembleSampler(8, 3, log_probability, args=[1 / np.arange(1.0, 4.0)], pool=pool)
    sampler.random_state = np.random.RandomState(3).get_state()
    sampler.run_mcmc(np.random.RandomState(1).randn(8, 3), 30)
    return sampler.get_chain()

def both(function, *args, **options):
    return function(*args, **options, workers=1), function(*args, **options, workers=pool.map)

script, parallel = os.getpid(), False
with Pool() as pool:
    alone = chain(None)
    parallel = True
    assert (chain(pool) == alone).all()
    bounds = [(0, 2)] * 3
    one, other = both(differential_evolution, rosen, bounds, seed=1, updating="deferred", maxiter=10, polish=False)
    assert (one.x == other.x).all() and one.nfev == other.nfev
    one, other = both(brute, rosen, (slice(0, 2, 0.25), slice(0, 2, 0.25)), finish=None)
    assert (one == other).all()
print("fine")
""",
        preload="emcee,scipy.optimize",
    )


def test_learners_of_adaptive(launch: Launch) -> None:
    pytest.importorskip("adaptive")
    fine(
        launch,
        """
import asyncio
import os
import adaptive
from exex import Executor

def peak(x):
    return x + 1e-4 / (1e-4 + x**2), os.getpid()

def value(x):
    return peak(x)[0]

def learner(function):
    return adaptive.Learner1D(function, bounds=(-1, 1))

with Executor() as executor:
    blocking = learner(value)
    adaptive.BlockingRunner(blocking, npoints_goal=60, executor=executor, ntasks=executor.slots)
    assert blocking.npoints >= 60 and all(blocking.data[x] == value(x) for x in blocking.data)

    async def main():
        there = learner(value)
        await adaptive.AsyncRunner(there, npoints_goal=40, executor=executor, ntasks=executor.slots).task
        assert there.npoints >= 40 and all(there.data[x] == value(x) for x in there.data)

    asyncio.run(main())
    assert executor.submit(peak, 0.5).result()[1] != os.getpid()
print("fine")
""",
        preload="adaptive",
    )


PRIMES = """
import math
{imports}

PRIMES = [112272535095293, 112582705942171, 115280095190773, 115797848077099, 1099726899285419, 117]

def is_prime(n):
    return all(n % i for i in range(3, min(math.isqrt(n), 20000) + 1, 2)) and n % 2 == 1

def start(step):
    global STEP
    STEP = step

def stepped(n):
    return n + STEP

if __name__ == "__main__":
    with MPIPoolExecutor(initializer=start, initargs=(5,)) as executor:
        executor.bootup()
        print(executor.num_workers, [is_it for is_it in executor.map(is_prime, PRIMES)])
        print(list(executor.starmap(pow, [(2, 3), (3, 2)])), sorted(executor.map(stepped, range(5), unordered=True)))
        futures = [executor.submit(stepped, i) for i in range(3)]
        print([future.result() for future in futures], all(future.done() for future in futures))
"""


def test_a_program_for_mpi4py_futures_needs_another_import(launch: Launch) -> None:
    theirs = launch.cwd / "theirs.py"
    theirs.write_text(PRIMES.format(imports="from mpi4py.futures import MPIPoolExecutor"))
    one = launch.finish(launch.start(launch.argv(3, "-m", "mpi4py.futures", str(theirs))))
    other = launch.workflow(3, PRIMES.format(imports="from exex.integrations.mpi4py_futures import MPIPoolExecutor"))
    assert (one.status, other.status, other.err) == (0, 0, ""), (one.err, other.err)
    assert other.out == one.out
    assert other.out.splitlines()[-1] == "[5, 6, 7] True"


def test_the_page_about_them(launch: Launch) -> None:
    for name in ("sklearn", "dask.array", "emcee", "adaptive"):
        pytest.importorskip(name)
    check(launch, whole(ROOT / "docs/integrations.md"), OMP_NUM_THREADS="1")
