"""The results that the jobs of a campaign have left: read, and made comparable."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from exex.campaign.plan import RECORD, Campaign, Load, Point, Shape
from exex.campaign.workload import FORMAT
from exex.errors import ConfigError, RecordError

RUN_FIELDS = (
    "closed", "done", "failed", "lost_workers", "startup_s", "makespan_s", "rate_per_s", "utilisation", "tail_s",
    "tail_wasted_slot_s", "manager_busy",
)  # fmt: skip
"""Of `exex.record.summary.Summary`, what `collect` takes over."""


@dataclass(frozen=True)
class Size:
    """All repeats of one size: medians. Times in seconds; None where nothing is known.

    Attributes:
        slots: of all workers.
        startup_s: from the job script's first line until the script began.
        makespan_s: from the first call to the last result.
        tail_s: of it, how long fewer tasks were left than there are slots.
        utilisation: share of the slots' time in which functions ran, as the run records say.
        efficiency: share of the slots' time that is the tasks' own; of a script, against the smallest size.
    """

    shape: Shape
    load: Load
    nodes: int
    ranks: int
    slots: int
    tasks: int
    startup_s: float | None
    makespan_s: float
    tail_s: float | None
    repeats: int
    utilisation: float | None = None
    efficiency: float | None = None

    @property
    def rate(self) -> float | None:
        """Tasks per second."""
        return self.tasks / self.makespan_s if self.tasks else None


def collect(campaign: Campaign) -> list[dict[str, Any]]:
    """All results that there are, as they were left; also written to results.json of the campaign.

    Raises:
        ConfigError: a file that is no result.
    """
    found = [result for point in campaign.points() if (result := _read(campaign, point)) is not None]
    if found:
        path = campaign.directory / "results.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _read(campaign: Campaign, point: Point) -> dict[str, Any] | None:
    path = campaign.folder(point) / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}; remove it, and submit again") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT or result.get("point") != point.name:
        raise ConfigError(f"{path} is no result of {point.name}; remove it, and submit again")
    return {**result, "nodes": point.nodes, "run": _run(campaign, point)}


def _run(campaign: Campaign, point: Point) -> dict[str, Any] | None:
    """What the job's record says; None if there is none.

    Raises:
        ConfigError: it cannot be read.
    """
    path = campaign.folder(point) / RECORD
    if not path.exists():
        return None
    from exex.record.summary import summarize

    try:
        summary = summarize(str(path))
    except RecordError as error:
        raise ConfigError(f"{error}; remove it, and collect again") from error
    return {"record": str(path), **{name: getattr(summary, name) for name in RUN_FIELDS}}


def sizes(campaign: Campaign, results: Iterable[dict[str, Any]]) -> list[Size]:
    """Medians over repeats, by shape, workload and nodes."""
    by_point = {result["point"]: result for result in results}
    groups: dict[tuple[Shape, Load, int], list[dict[str, Any]]] = {}
    for point in campaign.points():
        if point.name in by_point:
            groups.setdefault((point.shape, point.load, point.nodes), []).append(by_point[point.name])
    found = [_size(*key, group) for key, group in groups.items()]
    found.sort(key=lambda size: (size.shape.name, size.load.length_s, size.load.name, size.nodes))
    return [_with_efficiency(campaign, size, found) for size in found]


def _size(shape: Shape, load: Load, nodes: int, group: list[dict[str, Any]]) -> Size:
    def median(name: str, part: Callable[[dict[str, Any]], dict[str, Any]] = lambda result: result) -> float | None:
        values = [value for result in group if (value := part(result).get(name)) is not None]
        return statistics.median(values) if values else None

    makespan_s = median("makespan_s")
    assert makespan_s is not None
    first = group[0]
    return Size(
        shape, load, nodes, first["workers"], first["slots"], first["tasks"], median("startup_s"), makespan_s, median("tail_s"),
        len(group), median("utilisation", lambda result: result["run"] or {}),
    )  # fmt: skip


def _with_efficiency(campaign: Campaign, size: Size, found: list[Size]) -> Size:
    if size.load.length_s:
        ideal_s = math.ceil(size.tasks / size.slots) * size.load.length_s
    elif size.load.script:
        smallest = next(other for other in found if (other.shape, other.load) == (size.shape, size.load))
        ideal_s = smallest.makespan_s * (smallest.slots / size.slots if campaign.scaling == "strong" else 1)
    else:
        return size
    return Size(**{**size.__dict__, "efficiency": ideal_s / size.makespan_s})
