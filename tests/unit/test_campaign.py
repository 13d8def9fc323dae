"""Campaigns: the file, the jobs and how they are submitted, results, the table; and the model that they are compared with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exex.campaign import plan, published, report, results
from exex.campaign.jobs import Jobs, State, status_text
from exex.campaign.model import Costs, Design, Simulation, strong, weak
from exex.errors import ConfigError
from exex.launch.submit import Answer

FILE = """
machine = "slurm"
scaling = "strong"
nodes = [1, 2, 4]
walltime = "30:00"
at_once = 2

[shapes.node]
slots = 8

[workload]
tasks = 5000
lengths_s = [0, 1]
"""


def campaign(folder: Path, text: str = FILE) -> plan.Campaign:
    (folder / "c.toml").write_text(text)
    return plan.read_campaign(str(folder / "c.toml"))


class Batch:
    """A Slurm: jobs are under way until they are ended."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        (self.bin / "sbatch").write_text("#!/bin/sh\n")
        (self.bin / "sbatch").chmod(0o755)
        self.jobs: dict[str, str] = {}  # directory by id
        self.under_way: set[str] = set()

    def ask(self, argv: list[str], directory: str) -> Answer:
        if argv[0] == "sbatch":
            number = str(100 + len(self.jobs))
            self.jobs[number] = directory
            self.under_way.add(number)
            return Answer(0, f"Submitted batch job {number}\n", "")
        number = argv[-1].removeprefix("--jobs=")
        return Answer(0, f"{number}\n", "") if number in self.under_way else Answer(1, "", "slurm_load_jobs error: Invalid job id")

    def end(self, number: str, result: bool = True, **values: object) -> None:
        self.under_way.discard(number)
        if result:
            folder = Path(self.jobs[number])
            (folder / "result.json").write_text(json.dumps({"format": 1, "point": folder.name, **RESULT, **values}))


RESULT = {"workers": 1, "slots": 8, "tasks": 5000, "length_s": 1.0, "startup_s": 2.0, "makespan_s": 700.0, "tail_s": 1.5}


@pytest.fixture
def jobs(tmp_path: Path) -> tuple[Jobs, Batch]:
    batch = Batch(tmp_path)
    return Jobs(campaign(tmp_path), {"PATH": str(batch.bin), "HOME": str(tmp_path)}, batch.ask), batch


def test_there_is_a_job_for_each_size_and_length(tmp_path: Path) -> None:
    names = [point.name for point in campaign(tmp_path).points()]
    assert names[:2] == ["node-noop-n00001-r1", "node-1s-n00001-r1"] and len(names) == 6


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("nodes = [1, 2, 4]", "nodes = [4, 2]", "larger than the one before"),
        ("nodes = [1, 2, 4]", "nodes = [0]", "at least 1"),
        ("at_once", "at_wonce", "unknown key 'at_wonce'; the nearest is 'at_once'"),
        ('"strong"', '"weak"', "'workload.tasks_per_slot' is missing"),
        ("slots = 8", "slots = 0", "shapes.node.slots is 0"),
        ("lengths_s = [0, 1]", "lengths_s = [-1]", "workload.lengths_s"),
        ("tasks = 5000", 'script = "none.py"', "there is no such file"),
        ("[shapes.node]", '[shapes."../x"]', "no name of a shape"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        campaign(tmp_path, FILE.replace(old, new))
    assert says in str(error.value) and "c.toml" in str(error.value)


def test_the_plan_counts_node_hours_and_writes_scripts(jobs: tuple[Jobs, Batch]) -> None:
    text = jobs[0].plan()
    assert "7.00 node-hours at most" in text
    script = (jobs[0].campaign.directory / "node-1s-n00004-r1" / "node-1s-n00004-r1.sh").read_text()
    assert "#SBATCH --nodes=4" in script and "CAMPAIGN_BEGAN=$(date +%s.%N)" in script
    assert "--tasks 5000" in script and "--length 1" in script and "--slots 8" in script and "--max-waiting" not in script


def test_a_job_with_very_many_slots_gets_time_to_start_and_as_many_tasks_as_it_likes(tmp_path: Path) -> None:
    read = campaign(tmp_path, FILE.replace("[1, 2, 4]", "[8192]").replace("slots = 8", "slots = 32"))
    job = plan.make_job(read, read.points()[0], {"HOME": str(tmp_path)})
    assert "--max-waiting" not in job.exex_args  # left to itself it is four for each slot
    assert "--start-timeout-s" in job.exex_args


def test_a_script_gets_its_size(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    text = FILE.replace("tasks = 5000\nlengths_s = [0, 1]", 'script = "mine.py"\nargs = ["--n", "{slots}"]')
    read = campaign(tmp_path, text)
    job = plan.make_job(read, read.points()[-1], {"HOME": str(tmp_path)})
    assert job.script_args[-4:] == ("--", str(tmp_path / "mine.py"), "--n", "32")


def test_no_more_jobs_than_allowed_are_there_at_once(jobs: tuple[Jobs, Batch]) -> None:
    all_jobs, batch = jobs
    said: list[str] = []
    assert all_jobs.submit(said.append) == 4 and len(batch.jobs) == 2
    assert all_jobs.submit(said.append) == 4 and len(batch.jobs) == 2
    batch.end("100")
    assert all_jobs.submit(said.append) == 3 and len(batch.jobs) == 3
    assert said[0] == "node-noop-n00001-r1: job 100"


def test_what_has_failed_is_submitted_again_alone(jobs: tuple[Jobs, Batch]) -> None:
    all_jobs, batch = jobs
    said: list[str] = []
    while all_jobs.submit(said.append):
        for number in sorted(batch.under_way):
            batch.end(number, result=number != "101")
    for number in sorted(batch.under_way):
        batch.end(number)
    states = {standing.point.name: standing.state for standing in all_jobs.standings()}
    again = [line for line in said if "(try 2)" in line]
    assert again == ["node-1s-n00001-r1: job 102 (try 2)"] and set(states.values()) == {State.DONE}
    assert status_text(all_jobs.standings()) == "6 jobs: 6 done"


def test_waiting_for_all_gives_each_job_one_try(jobs: tuple[Jobs, Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    all_jobs, batch = jobs
    monkeypatch.setattr("time.sleep", lambda seconds: [batch.end(number, result=number != "103") for number in list(batch.under_way)])
    all_jobs.submit_all(lambda line: None)
    states = [standing.state for standing in all_jobs.standings()]
    assert len(batch.jobs) == 6 and states.count(State.FAILED) == 1 and states.count(State.DONE) == 5


def test_the_report_has_each_size_beside_model_and_published_curve(jobs: tuple[Jobs, Batch]) -> None:
    all_jobs, batch = jobs
    read = all_jobs.campaign
    while all_jobs.submit(lambda line: None) or batch.under_way:
        for number in sorted(batch.under_way):
            one_second = "-1s-" in batch.jobs[number]
            slots = 512 * int(batch.jobs[number].rsplit("-n", 1)[1][:5])
            makespan_s = (10.5 * 512 / slots) if one_second else 0.02
            batch.end(number, slots=slots, makespan_s=makespan_s, length_s=float(one_second))
    found = results.sizes(read, results.collect(read))
    long = [size for size in found if size.load.length_s]
    assert [size.slots for size in long] == [512, 1024, 2048]
    assert long[0].efficiency == pytest.approx(10 / 10.5) and long[0].rate == pytest.approx(5000 / 10.5)
    table = report.table(read, found, Costs())
    first = next(line for line in table.splitlines() if " 1s " in line)
    assert "10.50 s" in first and "95.2%" in first and "14.50 s" in first  # measured, efficiency, EXEX
    assert len(json.loads((read.directory / "results.json").read_text())) == 6


def test_a_damaged_result_is_named(jobs: tuple[Jobs, Batch]) -> None:
    all_jobs, batch = jobs
    all_jobs.submit(lambda line: None)
    (Path(batch.jobs["100"]) / "result.json").write_text("{")
    with pytest.raises(ConfigError, match=r"result\.json is damaged"):
        results.collect(all_jobs.campaign)


def test_the_file_is_toml_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "c").write_text(FILE)
    with pytest.raises(ConfigError, match=r"is no \.toml file"):
        plan.read_campaign(str(tmp_path / "c"))


def test_the_picture_is_drawn(jobs: tuple[Jobs, Batch], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    all_jobs, batch = jobs
    all_jobs.submit(lambda line: None)
    for number in sorted(batch.under_way):
        batch.end(number, length_s=1.0)
    read = all_jobs.campaign
    path = tmp_path / "p.png"
    assert report.picture(read, results.sizes(read, results.collect(read)), Costs(), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_published_curve_ends_where_it_ends() -> None:
    assert report.at(published.STRONG, 512) == 14.5 and report.at(published.STRONG, 256) is None
    assert 100 < (report.at(published.WEAK, 6000) or 0) < 250
    assert report.at(None, 512) is None


# ---- the model ----


def test_strong_scaling_ends_in_time_at_full_size() -> None:
    run = Simulation(strong(262_144)).run()
    assert 1.0 < run.ends_s <= 1.5 and run.messages == 10_000


@pytest.mark.parametrize("design", [strong(512), strong(512, 1), weak(2048, 0.0), weak(2048, 0.1), Design(2, 9, 100, 0.01)])
def test_the_model_is_never_faster_than_an_ideal(design: Design) -> None:
    run = Simulation(design).run()
    assert design.ideal_s <= run.ends_s and 0 < run.manager_s <= run.ends_s
    assert Simulation(design).run() == run  # the same seed


def test_the_price_of_a_task_bounds_the_rate() -> None:
    design = weak(4096, 0.0)
    slow = Simulation(design, Costs(task_s=1e-4)).run()
    assert slow.ends_s == pytest.approx(design.tasks * 1e-4, rel=0.1)
