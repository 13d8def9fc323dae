"""Every script of examples/ as a user starts it, in a real MPI job of one manager and two workers."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch import ROOT, Launch

pytestmark = pytest.mark.one_library

EXAMPLES = ROOT / "examples"
PARTS_OF_EXAMPLES = {"calc_sum.py"}  # run by other scripts

Run = Callable[..., list[str]]


@pytest.fixture
def run_example(launch: Launch) -> Run:
    """`run_example(name, *args, ranks=3)` runs an example in `tmp_path`; the lines that it printed."""

    def run(name: str, *args: str, ranks: int = 3) -> list[str]:
        ended = launch.module(ranks, "exex.run", str(EXAMPLES / name), *args, limit_s=180, PYTHONUTF8="1")
        assert ended.status == 0, f"{name} ended with {ended.status}\n{ended.out}\n{ended.err}"
        return ended.out.splitlines()

    return run


def test_hello(run_example: Run) -> None:
    assert run_example("hello.py") == ["Hello World!"]


def test_bash_hello_prints_and_keeps_its_file(run_example: Run, tmp_path: Path) -> None:
    for _ in range(2):  # a second run replaces the file
        assert run_example("bash_hello.py") == ["Hello World!"]
    assert (tmp_path / "echo-hello.stdout").read_text() == "Hello World!\n"


def test_done_polling(run_example: Run) -> None:
    assert run_example("done_polling.py") == ["Done: False", "Result: Hello World!", "Done: True"]


def test_random_multiply_feeds_echo(run_example: Run, tmp_path: Path) -> None:
    product, echoed = run_example("random_multiply.py")
    value = product.removeprefix("random_multiply(10) = ")
    assert 0 <= float(value) < 10
    assert echoed == f"std.out: {value}"
    assert (tmp_path / "std.out").read_text() == f"{value}\n"
    assert (tmp_path / "std.err").exists()


def test_sort_numbers_makes_its_input(run_example: Run, tmp_path: Path) -> None:
    (line,) = run_example("sort_numbers.py")
    made = [int(number) for number in (tmp_path / "unsorted_numbers.txt").read_text().split()]
    assert len(made) == 100
    assert made != sorted(made)
    assert [int(number) for number in line.split()] == sorted(made)


def test_sort_numbers_sorts_a_given_file_by_value(run_example: Run, tmp_path: Path) -> None:
    (tmp_path / "given file.txt").write_text("10\n9\n-3\n100\n")
    assert run_example("sort_numbers.py", "given file.txt") == ["-3 9 10 100"]


def test_monte_carlo_is_right_and_the_same_on_any_number_of_workers(run_example: Run) -> None:
    lines = run_example("monte_carlo.py")
    assert lines[0] == "draws:    4,000,000 in 200 tasks"
    estimate, error = map(float, re.fullmatch(r"integral: ([\d.]+) ± ([\d.]+)", lines[1]).groups())
    assert 0.00008 < error < 0.0001  # the integrand's deviation, 0.19, by the root of the number of draws
    assert abs(estimate - 0.36358) < 5 * error
    sigmas = float(re.fullmatch(r"truth:    0.36358, ([\d.]+) sigma away", lines[2]).group(1))
    assert sigmas == pytest.approx(abs(estimate - 0.36358) / error, rel=0.2)

    few = ["monte_carlo.py", "--tasks", "10", "--draws", "100"]
    assert run_example(*few) == run_example(*few, ranks=2) != run_example(*few, "--seed", "1")


def test_simulate_analyze_merge_finds_the_onset_of_chaos(run_example: Run, tmp_path: Path) -> None:
    lines = run_example("simulate_analyze_merge.py", "--sims", "7", "--output", "a directory")
    assert lines[0] == "2000 points from 7 simulations in a directory/all.txt"
    onset = float(re.match(r"chaos begins at r = ([\d.]+)", lines[1]).group(1))
    assert onset == pytest.approx(3.56995, abs=0.001)
    last = float(re.match(r"exponent at r = 4: ([\d.]+)", lines[2]).group(1))
    assert last == pytest.approx(math.log(2), abs=0.01)

    assert len(list((tmp_path / "a directory").glob("sim-*.txt"))) == 7
    rows = [line.split() for line in (tmp_path / "a directory" / "all.txt").read_text().splitlines()]
    exponents = {float(r): float(exponent) for r, exponent in rows}
    assert list(exponents) == sorted(exponents)
    assert len(exponents) == 2000
    assert exponents[3.84] < 0  # the window of period three


def test_nersc_sum_gives_the_same_sums_both_ways(run_example: Run, tmp_path: Path) -> None:
    lines = run_example("nersc_sum.py")
    sums = [f"sum is {n}" for n in (0, 1, 1, 2, 1, 2, 2, 3)]
    assert lines[:8] == sums
    paths, printed = zip(*(line.rsplit(": ", 1) for line in lines[8:]), strict=True)
    assert list(printed) == sums
    assert len(set(paths)) == 8
    assert [(tmp_path / path).read_text() for path in paths] == [f"{line}\n" for line in sums]


def test_platform_info_is_of_this_node(run_example: Run) -> None:
    calls, *results = run_example("platform_info.py")
    assert calls.startswith("[")
    assert calls.count("AppFuture") >= 4
    assert len(results) == 4
    for result in results:
        assert result.startswith("Got result: uname_result(")
        assert f"node='{platform.node()}'" in result


@pytest.mark.timeout(200)  # one core-minute; other tests may run beside it
def test_digits_report(run_example: Run, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    image = pytest.importorskip("matplotlib.image")
    printed = "\n".join(run_example("digits_model_selection.py", "a report"))

    report = (tmp_path / "a report" / "report.md").read_text(encoding="utf-8")
    best = re.search(r"Best family: \*\*(.+)\*\* \(", report).group(1)
    cross_validated = float(re.search(r"Cross-validated accuracy: \*\*([\d.]+)\*\*", report).group(1))
    held_out = float(re.search(r"Held-out test accuracy: \*\*([\d.]+)\*\*", report).group(1))
    wrong, total = map(int, re.search(r"Misclassified: \*\*(\d+)\*\* of (\d+)", report).groups())
    assert 0.97 < cross_validated < 1
    assert held_out > 0.95
    assert held_out == pytest.approx(1 - wrong / total, abs=1e-4)
    assert f"{held_out:.4f} on new images, {wrong} of {total} misclassified" in printed
    assert "280/280" in printed

    by_digit = re.findall(r"^\| (\d) \| (\d+) \| (\d+) \|", report, re.MULTILINE)
    assert [int(row[0]) for row in by_digit] == list(range(10))
    assert sum(int(row[1]) for row in by_digit) == total == 360
    assert sum(int(row[2]) for row in by_digit) == wrong

    # The leaderboard, made by sort and awk, against the score table.
    scores, leaders = (_rows(tmp_path / "a report" / name) for name in ("scores.tsv", "leaders.tsv"))
    assert len(scores) == 56
    assert leaders[0][2] == best
    assert {row[2] for row in leaders} == {row[2] for row in scores}
    assert [row[0] for row in leaders] == sorted((row[0] for row in leaders), reverse=True)
    for mean, _, family, params in leaders:
        assert [mean, family, params] in [[row[0], *row[2:]] for row in scores]
        assert mean == max(row[0] for row in scores if row[2] == family)
        assert f"| {family} |" in report
        assert family in printed

    picture = image.imread(tmp_path / "a report" / "confusion.png")
    assert picture.shape == (600, 1200, 4)
    assert picture[..., :3].std() > 0.05  # not one colour

    _assert_that_scikit_learn_alone_agrees(leaders[0], wrong)


def _rows(path: Path) -> list[list]:
    header, *rows = (line.split("\t") for line in path.read_text().splitlines())
    assert header == ["mean", "deviation", "family", "parameters"]
    return [[float(row[0]), float(row[1]), row[2], json.loads(row[3])] for row in rows]


def _assert_that_scikit_learn_alone_agrees(leader: list, wrong: int) -> None:
    """Repeats the winner's numbers in this process, by scikit-learn's own cross-validation."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split
    from sklearn.svm import SVC

    mean, _, family, params = leader
    assert family.startswith("SVM")
    images, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        images / 16, labels, test_size=360, stratify=labels, random_state=0
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    accuracies = cross_val_score(SVC(**params), train, train_labels, cv=folds)
    assert accuracies.mean() == pytest.approx(mean, abs=1e-6)
    assert (SVC(**params).fit(train, train_labels).predict(test) != test_labels).sum() == wrong


def test_every_example_is_tested_and_described() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    here = Path(__file__).read_text(encoding="utf-8")
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert not [name for name in scripts - PARTS_OF_EXAMPLES if f'"{name}"' not in here]
    assert not [name for name in scripts if name not in readme]
