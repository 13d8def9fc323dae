"""What a task finds of its grant, and that nothing of it is left afterwards."""

from __future__ import annotations

import os

import pytest

from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Grant, Outcome, Share
from exex.worker import granted
from exex.worker.context import Place
from exex.worker.execute import execute, thread_counts


def grant(cores=(), gpus=("1", "3"), slots=3):
    return Grant(slots, list(cores), [Share("n1", slots, list(gpus), [1]), Share("n2", slots, ["0"], [2])])


def test_variables_of_a_task_with_cores():
    found = granted.variables(grant([4, 5, 12, 13]), is_gang=False)
    assert found["EXEX_GRANTED_CORES"] == found["OMP_NUM_THREADS"] == found["OPENBLAS_NUM_THREADS"] == "3"
    assert found["EXEX_GRANTED_GPUS"] == "1,3" and found["EXEX_GRANTED_NODES"] == "n1,n2"
    assert found["GOMP_CPU_AFFINITY"] == "4 5 12 13"
    assert found["KMP_AFFINITY"] == "granularity=fine,explicit,proclist=[4,5,12,13]"


def test_processes_of_a_gang_are_not_told_to_start_all_threads_on_the_same_cpus():
    found = granted.variables(grant([4, 5]), is_gang=True)
    assert found.keys() == {"EXEX_GRANTED_CORES", "EXEX_GRANTED_GPUS", "EXEX_GRANTED_NODES"}


def test_unbound_tasks_are_told_how_many_threads_only():
    assert "GOMP_CPU_AFFINITY" not in granted.variables(grant(), is_gang=False)


@pytest.mark.parametrize("gpus", [("1", "3"), ()])
def test_accelerators_are_masked_if_some_were_granted(monkeypatch, gpus):
    monkeypatch.setattr(granted, "gpu_variable", "ROCR_VISIBLE_DEVICES")
    assert granted.variables(grant(gpus=gpus), is_gang=True).get("ROCR_VISIBLE_DEVICES") == (",".join(gpus) or None)


def look() -> tuple[set[int], dict[str, str], object]:
    return os.sched_getaffinity(0), dict(os.environ), granted.current


def run(function, spec, *options):
    payload, _ = payloads.dump_call((), {}, options[0] if options else None)
    outcome, value, _ = granted.execute_with(grant([min(os.sched_getaffinity(0))]))(
        spec, function, payload, None, 1, 1, Place(1, "n1")
    )
    return outcome, payloads.load(value)


def test_a_task_is_bound_and_everything_is_undone_afterwards():
    before = look()
    outcome, (cpus, variables, current) = run(look, AppSpec(app=0, name="f", function=b"f", cores=3))
    assert outcome == Outcome.DONE
    assert cpus == {min(before[0])} and variables["OMP_NUM_THREADS"] == "3" and current is not None
    assert look() == before


def test_a_task_that_fails_leaves_nothing_either():
    before = look()
    outcome, error = run(lambda: 1 / 0, AppSpec(app=0, name="f", function=b"f", cores=3))
    assert outcome == Outcome.FAILED and isinstance(error, ZeroDivisionError)
    assert look() == before


def test_what_the_user_sets_goes_before_the_grant():
    spec = AppSpec(app=0, name="f", function=b"f", cores=3)
    _, (_, variables, _) = run(look, spec, {"env": {"OMP_NUM_THREADS": "7"}})
    assert variables["OMP_NUM_THREADS"] == "7" and variables["MKL_NUM_THREADS"] == "3"


def test_one_core_is_one_thread():
    payload, _ = payloads.dump_call((), {}, {"threads": 1})
    _, value, _ = execute(AppSpec(app=0, name="f", function=b"f", cores=1), look, payload, None, 1, 1, Place(1, "n1"))
    assert thread_counts(1).items() <= payloads.load(value)[1].items()
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] != "1"


def test_a_cpu_that_is_not_there_is_no_reason_not_to_run():
    before = os.sched_getaffinity(0)
    granted.bind([4095])
    assert os.sched_getaffinity(0) == before
