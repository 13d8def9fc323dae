"""What a campaign has shown, beside the model and what was published of EXEX: a table, and a picture if matplotlib is there."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exex.campaign import published
from exex.campaign.model import Costs, Simulation
from exex.campaign.plan import Campaign, design_of
from exex.campaign.published import Curve
from exex.campaign.results import Size
from exex.errors import ConfigError


def read_costs(campaign: Campaign) -> Costs:
    """What the model takes: of the campaign's file of costs, as `benchmarks.manager_scale --json` writes it, or its own.

    Raises:
        ConfigError: there is no such file, or it has no costs.
    """
    if not campaign.costs:
        return Costs()
    path = campaign.directory.parent / campaign.costs
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["costs"]
        return Costs(**{name: float(value) for name, value in found.items()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"costs: {path} cannot be used: {error!r}") from error


def model_s(campaign: Campaign, size: Size, costs: Costs) -> float | None:
    """How long the model takes for a size; None for a script."""
    if size.load.script:
        return None
    return Simulation(design_of(campaign, size.load, size.ranks, size.slots), costs).run().ends_s


def published_curve(campaign: Campaign, length_s: float) -> Curve | None:
    """EXEX under the same design; None if it was not published."""
    if campaign.scaling == "weak":
        return published.WEAK if campaign.tasks == published.WEAK_EACH else None
    is_same = (campaign.tasks, length_s) == (published.STRONG_TASKS, published.STRONG_LENGTH_S)
    return published.STRONG if is_same else None


def at(curve: Curve | None, workers: int) -> float | None:
    """A curve between its points, straight on logarithmic axes; None outside of them."""
    if curve is None:
        return None
    for (left, left_s), (right, right_s) in zip(curve.points, curve.points[1:]):
        if left <= workers <= right:
            share = math.log(workers / left) / math.log(right / left)
            return float(left_s * (right_s / left_s) ** share)
    return None


def table(campaign: Campaign, sizes: Sequence[Size], costs: Costs) -> str:
    """For people; one line for each size."""
    rows: list[tuple[str, ...]] = [
        (
            "shape", "each", "nodes", "slots", "tasks", "start-up", "makespan", "model", "EXEX", "efficiency", "busy", "tasks/s",
            "tail",
        )
    ]  # fmt: skip
    for size in sizes:
        curve = published_curve(campaign, size.load.length_s)
        rows.append(
            (
                size.shape.name, size.load.name, f"{size.nodes:,}", f"{size.slots:,}", f"{size.tasks:,}" if size.tasks else "-",
                _seconds(size.startup_s), _seconds(size.makespan_s), _seconds(model_s(campaign, size, costs)),
                _seconds(at(curve, size.slots)), _share(size.efficiency),
                _share(size.utilisation), "-" if size.rate is None else f"{size.rate:,.0f}", _seconds(size.tail_s),
            )
        )  # fmt: skip
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths)) for row in rows]
    notes = ["Times in seconds. model: a simulation, not a measurement. EXEX: read off the figures of HPDC'19, Blue Waters."]
    return "\n".join([*lines, *notes])


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1000:,.1f} ms"


def picture(campaign: Campaign, sizes: Sequence[Size], costs: Costs, path: Path) -> bool:
    """Four panels over the number of slots; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((time_axes, part_axes), (rate_axes, start_axes)) = pyplot.subplots(2, 2, figsize=(11, 8))
    curves: dict[str, Curve] = {}
    for number, group in enumerate(_groups(sizes)):
        color = f"C{number % 10}"
        slots = [size.slots for size in group]
        label = f"{group[0].load.name}, {group[0].shape.name}"
        time_axes.plot(slots, [size.makespan_s for size in group], "o-", color=color, label=label)
        modelled = [model_s(campaign, size, costs) for size in group]
        if None not in modelled:
            time_axes.plot(slots, modelled, "--", color=color, alpha=0.7)
            rate_axes.plot(slots, [size.tasks / (found or math.inf) for size, found in zip(group, modelled)], "--", color=color)
        if all(size.efficiency is not None for size in group):
            part_axes.plot(slots, [size.efficiency for size in group], "o-", color=color)
        if all(size.rate for size in group):
            rate_axes.plot(slots, [size.rate for size in group], "o-", color=color)
        _plot_known(start_axes, slots, [size.startup_s for size in group], "o-", color)
        _plot_known(start_axes, slots, [size.tail_s for size in group], "x:", color)
        curve = published_curve(campaign, group[0].load.length_s)
        if curve is not None:
            curves[curve.title] = curve
    for title, curve in curves.items():
        time_axes.plot(*zip(*curve.points), "s-", color="black", markersize=4, label=title)
    time_axes.plot([], [], "--", color="grey", label="model")
    _dress(time_axes, "makespan (s)", logarithmic=True)
    _dress(part_axes, "efficiency", logarithmic=False)
    part_axes.set_ylim(0, 1.05)
    _dress(rate_axes, "tasks/s (dashed: model)", logarithmic=True)
    _dress(start_axes, "start-up (o) and tail (x), s", logarithmic=True)
    figure.suptitle(f"{campaign.name}: {campaign.scaling} scaling on {campaign.machine}")
    handles, labels = time_axes.get_legend_handles_labels()
    rows = -(-len(labels) // 3)
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=8)
    figure.tight_layout(rect=(0, 0.01 + 0.025 * rows, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _groups(sizes: Sequence[Size]) -> list[list[Size]]:
    groups: dict[tuple[str, str], list[Size]] = {}
    for size in sizes:
        groups.setdefault((size.shape.name, size.load.name), []).append(size)
    return list(groups.values())


def _plot_known(axes: Any, slots: list[int], values: list[float | None], style: str, color: str) -> None:
    known = [(count, value) for count, value in zip(slots, values) if value]
    if known:
        axes.plot(*zip(*known), style, color=color)


def _dress(axes: Any, label: str, *, logarithmic: bool) -> None:
    axes.set_xscale("log", base=2)
    if logarithmic:
        axes.set_yscale("log")
    axes.set_xlabel("slots")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
