"""Model selection on 1,797 images of handwritten digits: which classifier reads them best?

    exex run -n 4 examples/digits_model_selection.py [DIRECTORY]

    prepare ─► 5 fits per candidate ─► mean_accuracy of each ─► write_scores ─► leaderboard (bash) ────┐
          └───────────────────────────────────────────────── refit_best (join) ◄───────────────────────┘
                                                                   └─► write_report: Markdown and a picture

Every fit is a task on one core. The result is the same on any number of workers: all randomness is seeded.
Needs scikit-learn, which brings the images, and matplotlib.

Args:
    DIRECTORY: where the report and the data behind it go (default ./digits-report).
"""

import json
import math
import shlex
import statistics
import sys
import time
import warnings
from concurrent.futures import as_completed
from itertools import chain
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ParameterGrid, StratifiedKFold, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from exex import File, bash_app, join_app, python_app

SEED = 0
FOLDS = 5
HELD_OUT = 360  # images that no fit sees before the report

FAMILIES = {  # name: class, grid of parameters
    "logistic regression": (LogisticRegression, {"C": [0.1, 0.3, 1, 3, 10, 30], "max_iter": [1000]}),
    "neural network": (
        MLPClassifier,
        {"hidden_layer_sizes": [[64], [128]], "alpha": [1e-4, 1e-2, 1], "max_iter": [100]},
    ),
    "random forest": (RandomForestClassifier, {"max_features": [4, 8, 16], "min_samples_leaf": [1, 3]}),
    "extra trees": (ExtraTreesClassifier, {"max_features": [4, 8, 16], "min_samples_leaf": [1, 3]}),
    "k nearest neighbours": (
        KNeighborsClassifier,
        {"n_neighbors": [1, 3, 5, 7, 9], "weights": ["uniform", "distance"]},
    ),
    "quadratic discriminant": (QuadraticDiscriminantAnalysis, {"reg_param": [0.01, 0.03, 0.1, 0.3]}),
    "SVM, polynomial kernel": (SVC, {"kernel": ["poly"], "C": [1, 10], "degree": [2, 3, 4]}),
    "SVM, RBF kernel": (SVC, {"C": [1, 10, 100], "gamma": [0.01, 0.03, 0.1, 0.3]}),
}


def fitted(family, params, images, labels):
    """A trained model of the family."""
    model = FAMILIES[family][0](**params)
    if "random_state" in model.get_params():
        model.set_params(random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # max_iter is a budget here
        return model.fit(images, labels)


def text_of(params):
    return ", ".join(f"{name}={value}" for name, value in sorted(params.items()))


def read_leaders(path):
    """Rows of the leaderboard, best first: (mean accuracy, its deviation, family, parameters)."""
    rows = [line.split("\t") for line in Path(path).read_text().splitlines()[1:]]
    return [(float(row[0]), float(row[1]), row[2], json.loads(row[3])) for row in rows]


@python_app
def prepare(outputs=()):
    """Scale the pixels to 0..1, set a stratified test set aside, deal the rest into folds."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images / 16, labels, test_size=HELD_OUT, stratify=labels, random_state=SEED
    )
    fold = np.empty(len(train_labels), dtype=int)
    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(train_images, train_labels)
    for number, (_, members) in enumerate(splits):
        fold[members] = number
    np.savez(
        outputs[0].filepath,
        train_images=train_images,
        train_labels=train_labels,
        fold=fold,
        test_images=test_images,
        test_labels=test_labels,
    )


@python_app
def fit(family, params, number, inputs=()):
    """Accuracy on one fold of a model trained on the others."""
    with np.load(inputs[0].filepath) as data:
        images, labels, fold = data["train_images"], data["train_labels"], data["fold"]
    inside, outside = fold == number, fold != number
    with threadpool_limits(limits=1):  # a task has one core
        return fitted(family, params, images[outside], labels[outside]).score(images[inside], labels[inside])


@python_app
def mean_accuracy(family, params, accuracies):
    """One row of the score table: mean over the folds and standard deviation between them."""
    return statistics.mean(accuracies), statistics.stdev(accuracies), family, params


@python_app
def write_scores(rows, outputs=()):
    with open(outputs[0].filepath, "w") as f:
        print("mean", "deviation", "family", "parameters", sep="\t", file=f)
        for mean, deviation, family, params in rows:
            print(f"{mean:.6f}", f"{deviation:.6f}", family, json.dumps(params), sep="\t", file=f)


@bash_app
def leaderboard(inputs=(), outputs=()):
    """Best candidate of every family, best family first; of equals, the steadier one."""
    scores, leaders = shlex.quote(inputs[0].filepath), shlex.quote(outputs[0].filepath)
    return f"""
        set -eo pipefail
        export LC_ALL=C
        head -n 1 {scores} > {leaders}
        tail -n +2 {scores} | sort -t $'\\t' -k1,1nr -k2,2n -k3 | awk -F '\\t' '!seen[$3]++' >> {leaders}
    """


@python_app
def refit(family, params, data):
    """Train on all training images; digits read from the test images."""
    with np.load(data.filepath) as arrays, threadpool_limits(limits=1):
        model = fitted(family, params, arrays["train_images"], arrays["train_labels"])
        return model.predict(arrays["test_images"])


@join_app
def refit_best(data, leaders):
    """Which task comes next is known only now: the join app returns its future, and stands for it."""
    _, _, family, params = read_leaders(leaders.filepath)[0]
    return refit(family, params, data)


@python_app
def write_report(predicted, data, leaders, outputs=()):
    """Draw the picture, write the text; the number of misclassified test images."""
    with np.load(data.filepath) as arrays:
        images, true = arrays["test_images"].reshape(-1, 8, 8), arrays["test_labels"]
    leaders = read_leaders(leaders.filepath)
    report, picture = (Path(output.filepath) for output in outputs)
    draw(picture, images, true, predicted, leaders[0][2])
    report.write_text(summary(true, predicted, leaders, picture.name), encoding="utf-8")
    return int((true != predicted).sum())


def summary(true, predicted, leaders, picture):
    """The report in Markdown."""
    mean, deviation, family, params = leaders[0]
    wrong = np.flatnonzero(true != predicted)
    accuracy = 1 - len(wrong) / len(true)
    error = (accuracy * (1 - accuracy) / len(true)) ** 0.5
    lines = [
        "# Handwritten digits: model selection",
        "",
        f"* Best family: **{family}** ({text_of(params)})",
        f"* Cross-validated accuracy: **{mean:.4f}** ± {deviation:.4f} (deviation between {FOLDS} folds)",
        f"* Held-out test accuracy: **{accuracy:.4f}** ± {error:.4f} (binomial error, {len(true)} images)",
        f"* Misclassified: **{len(wrong)}** of {len(true)}",
        "",
        f"![Confusion matrix and misclassified images]({picture})",
        "",
        "## Best candidate of every family",
        "",
        "| family | parameters | CV accuracy | deviation |",
        "|---|---|---:|---:|",
        *(f"| {row[2]} | {text_of(row[3])} | {row[0]:.4f} | {row[1]:.4f} |" for row in leaders),
        "",
        "## Misclassified test images by digit",
        "",
        "| digit | images | misclassified | read as |",
        "|---:|---:|---:|---|",
    ]
    for digit in range(10):
        of_digit = wrong[true[wrong] == digit]
        read_as = ", ".join(str(value) for value in sorted(predicted[of_digit].tolist()))
        lines.append(f"| {digit} | {(true == digit).sum()} | {len(of_digit)} | {read_as} |")
    return "\n".join(lines) + "\n"


def draw(path, images, true, predicted, title):
    """Confusion matrix on the left, up to 16 misclassified images on the right."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (true, predicted), 1)
    wrong = np.flatnonzero(true != predicted)[:16]

    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[3, 2])
    left.suptitle(f"{title}: {np.trace(counts)} of {len(true)} test images read right")
    axes = left.subplots()
    axes.imshow(np.where(counts > 0, np.log1p(counts), np.nan), cmap="Blues", vmin=0, vmax=5)
    for row, column in np.argwhere(counts):
        color = "white" if row == column else "crimson"
        axes.text(column, row, counts[row, column], ha="center", va="center", color=color)
    axes.set(xlabel="read as", ylabel="digit", xticks=range(10), yticks=range(10))
    axes.set_xticks(np.arange(-0.5, 10), minor=True)
    axes.set_yticks(np.arange(-0.5, 10), minor=True)
    axes.grid(which="minor", color="0.9")
    axes.tick_params(which="minor", length=0)

    right.suptitle("misclassified: digit → read as")
    side = max(2, math.ceil(len(wrong) ** 0.5))
    for number, axes in enumerate(right.subplots(side, side).flat):
        axes.axis("off")
        if number < len(wrong):
            axes.imshow(images[wrong[number]], cmap="gray_r")
            axes.set_title(f"{true[wrong[number]]} → {predicted[wrong[number]]}", fontsize=10)
    figure.savefig(path, dpi=120)


def show_progress(grid, fits, started_s):
    """Print a line for every tenth of the fits, with the best of the candidates that have all theirs."""
    every_fit = list(chain.from_iterable(fits))
    for done, fit_done in enumerate(as_completed(every_fit), start=1):
        fit_done.result()  # raises the error of a fit that failed
        if done % max(1, len(every_fit) // 10) == 0:
            elapsed = f"{time.perf_counter() - started_s:.1f} s"
            print(f"{done:5}/{len(every_fit)} {elapsed:>8}  {best_so_far(grid, fits)}", flush=True)


def best_so_far(grid, fits):
    """Mean accuracy, family and parameters, as text; empty while no candidate has all its fits."""
    rows = [
        (statistics.mean(fold.result() for fold in folds), f"{family}: {text_of(params)}")
        for (family, params), folds in zip(grid, fits, strict=True)
        if all(fold.done() for fold in folds)
    ]
    return "{:.4f}  {}".format(*max(rows)) if rows else ""


def main():
    started_s = time.perf_counter()
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "digits-report")
    directory.mkdir(parents=True, exist_ok=True)
    names = ["digits.npz", "scores.tsv", "leaders.tsv", "report.md", "confusion.png"]
    data, scores, leaders, report, picture = (File(directory / name) for name in names)

    # The whole graph is submitted at once. Nothing waits here; the futures say what needs what.
    data = prepare(outputs=[data]).outputs[0]
    grid = [(family, params) for family, (_, grid) in FAMILIES.items() for params in ParameterGrid(grid)]
    fits = [[fit(family, params, fold, inputs=[data]) for fold in range(FOLDS)] for family, params in grid]
    candidates = [mean_accuracy(*candidate, folds) for candidate, folds in zip(grid, fits, strict=True)]
    scores = write_scores(candidates, outputs=[scores]).outputs[0]
    leaders = leaderboard(inputs=[scores], outputs=[leaders]).outputs[0]
    predicted = refit_best(data, leaders)
    misclassified = write_report(predicted, data, leaders, outputs=[report, picture])

    print(f"Handwritten digits: {len(grid)} candidates of {len(FAMILIES)} families, {FOLDS} folds each")
    print("\n     fits     time  best so far", flush=True)
    show_progress(grid, fits, started_s)

    wrong = misclassified.result()
    print(f"\n{'family':<24} {'CV accuracy':<17} parameters")
    for mean, deviation, family, params in read_leaders(leaders.filepath):
        print(f"{family:<24} {mean:.4f} ± {deviation:.4f}   {text_of(params)}")
    accuracy = 1 - wrong / HELD_OUT
    print(f"\nThe best one, refitted: {accuracy:.4f} on new images, {wrong} of {HELD_OUT} misclassified")
    print(f"{time.perf_counter() - started_s:.1f} s; report: {report.filepath}, picture: {picture.filepath}")


if __name__ == "__main__":
    main()
