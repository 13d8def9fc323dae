"""Strong and weak scaling to 262,144 workers, as a model: `python -m benchmarks.campaign` (see exex/campaign/model.py).

The designs are those of Parsl's HPDC'19 paper. The manager's costs are measured in the same run (or given: `--costs`, a file that
`benchmarks.manager_scale --json` has written), the network is LogGP. The model is compared with what really runs here: worlds
of `exex run` on this machine, and the real manager with simulated ranks at every size. Draws docs/campaign.png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import harness, manager_scale
from benchmarks import played_world as played
from exex.campaign import published
from exex.campaign.model import Costs, Design, Network, Simulation, strong, weak
from exex.campaign.plan import WORKLOAD
from exex.campaign.report import at

STRONG_SIZES = tuple(2**power for power in range(9, 19))
WEAK_SIZES = STRONG_SIZES
WEAK_LENGTHS_S = (0.0, 0.01, 0.1, 1.0)
REAL = (
    (1, 2, 200, 0.01), (1, 8, 400, 0.01), (2, 8, 800, 0.01), (4, 8, 1600, 0.01), (1, 8, 80, 0.1), (2, 8, 160, 0.1),
    (4, 8, 320, 0.1), (4, 16, 640, 0.1), (8, 16, 1280, 0.1), (2, 8, 32, 1.0), (8, 16, 256, 1.0), (8, 16, 100, 1.0),
)  # fmt: skip
"""Worlds that really run here: workers, slots of each, tasks, seconds of each."""

CALIBRATED = (1, 1, 100, 0.01)
"""From this one the comparison takes what a task costs that travels alone, on this machine at this hour."""


def measured_costs() -> Costs:
    """The manager's, with 262,144 ranks, and the link's."""
    values = manager_scale.measure(manager_scale.SHAPES[-1], 300_000)
    return Costs(**manager_scale.costs_of(values, manager_scale.link_cost()))


def real_s(workers: int, slots: int, tasks: int, length_s: float, repeats: int) -> float:
    """The median makespan of worlds on this machine."""
    found = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="exex-bench-") as folder:
            out = Path(folder, "result.json")
            argv = [
                harness.mpiexec(), "-n", str(workers + 1), sys.executable, "-m", "exex.run", "--slots", str(slots),
                "--manager-slots", "0", str(WORKLOAD), "--out", str(out), "--tasks", str(tasks), "--length", str(length_s),
            ]  # fmt: skip
            search = os.pathsep.join(filter(None, [str(harness.ROOT), os.environ.get("PYTHONPATH")]))
            subprocess.run(argv, cwd=folder, check=True, timeout=300, env={**os.environ, "PYTHONPATH": search})
            found.append(float(json.loads(out.read_text())["makespan_s"]))
    return statistics.median(found)


def calibrate(costs: Costs, repeats: int) -> Costs:
    """What a task costs that travels alone, from one slot."""
    workers, slots, tasks, length_s = CALIBRATED
    took_s = real_s(workers, slots, tasks, length_s, repeats)
    design = Design(workers, slots, tasks, length_s, one_node=True)
    without_s = Simulation(design, replace(costs, alone_s=0.0)).run().ends_s
    return replace(costs, alone_s=max(0.0, (took_s - without_s) / tasks))


def compare_real(costs: Costs, repeats: int) -> list[str]:
    """Model against worlds that really run here."""
    lines = ["", "| world on this machine | tasks | measured, s | model, s | model/measured |", "|---|---:|---:|---:|---:|"]
    for workers, slots, tasks, length_s in REAL:
        measured_s = real_s(workers, slots, tasks, length_s, repeats)
        modelled_s = Simulation(Design(workers, workers * slots, tasks, length_s, one_node=True), costs).run().ends_s
        lines.append(
            f"| {workers} x {slots} slots | {tasks:,} x {length_s * 1000:g} ms | {measured_s:.3f} | {modelled_s:.3f} "
            f"| {modelled_s / measured_s:.0%} |"
        )
    return lines


def compare_manager(costs: Costs) -> list[str]:
    """Model against the real manager with played ranks: the same network and workers, no MPI at either."""
    bare = replace(costs, link_send_s=0.0, link_receive_s=0.0, submit_s=0.0)
    way_s = Network().way_s(Design(1, 1, 1, 1.0).payload_bytes)
    lines = ["", "| real manager, simulated ranks | 5,000 x 1 s, s | model, s | no-ops/s | model, no-ops/s |"]
    lines.append("|---|---:|---:|---:|---:|")
    for shape in (played.Shape(512, 1, 32), *manager_scale.SHAPES):
        world = played.World(shape, played.Costs(way_s, costs.alone_s))
        world.register()
        world.run(played.calls(0, 100, played.app(0, "first")), lambda task: 1.0)
        took_s = world.run(played.calls(100, 5000, played.app(1, "second"), 1), lambda task: 1.0)
        world.costs = played.Costs(way_s, costs.slot_s)
        world.run(played.calls(5100, 1000, played.app(2, "warm"), 2))
        noops = 300_000
        noops_s = world.run(played.calls(6100, noops, None, 2))
        workers = shape.ranks * shape.slots
        modelled = Simulation(replace(strong(workers, shape.slots), one_node=True), bare).run().ends_s
        rate = noops / Simulation(Design(shape.ranks, workers, noops, 0.0, one_node=True), bare).run().ends_s
        lines.append(f"| {shape.text()} | {took_s:.3f} | {modelled:.3f} | {noops / noops_s:,.0f} | {rate:,.0f} |")
    return lines


def play(designs: Sequence[Design], costs: Costs) -> list[float]:
    """Makespans."""
    return [Simulation(design, costs).run().ends_s for design in designs]


def strong_table(costs: Costs) -> tuple[list[str], dict[str, list[float]]]:
    """5,000 tasks of 1 s."""
    curves = {
        "exex, rank per node": play([strong(size) for size in STRONG_SIZES], costs),
        "exex, rank per core": play([strong(size, 1) for size in STRONG_SIZES], costs),
        "ideal": [strong(size).ideal_s for size in STRONG_SIZES],
    }
    lines = ["", "| workers | exex, rank per node, s | exex, rank per core, s | ideal, s | EXEX, s |"]
    lines.append("|---:|---:|---:|---:|---:|")
    for place, size in enumerate(STRONG_SIZES):
        values = " | ".join(f"{curve[place]:.3f}" for curve in curves.values())
        lines.append(f"| {size:,} | {values} | {_known(at(published.STRONG, size))} |")
    return lines, curves


def weak_table(costs: Costs) -> tuple[list[str], dict[str, list[float]]]:
    """10 tasks for each worker."""
    curves = {
        _length(length_s): play([weak(size, length_s) for size in WEAK_SIZES], costs) for length_s in WEAK_LENGTHS_S
    }
    lines = ["", "| workers | tasks | " + " | ".join(f"{name}, s" for name in curves) + " | EXEX, s |"]
    lines.append("|---:|---:|" + "---:|" * (len(curves) + 1))
    for place, size in enumerate(WEAK_SIZES):
        values = " | ".join(f"{curve[place]:.3f}" for curve in curves.values())
        lines.append(f"| {size:,} | {10 * size:,} | {values} | {_known(at(published.WEAK, size))} |")
    return lines, curves


def _length(length_s: float) -> str:
    return f"{length_s * 1000:,.0f} ms" if length_s else "no-op"


def _known(value: float | None) -> str:
    return "-" if value is None else f"~{value:.3g}"


def draw(path: str, strong_curves: dict[str, list[float]], weak_curves: dict[str, list[float]]) -> bool:
    """Both designs side by side; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5))
    for name, curve in strong_curves.items():
        is_ideal = name == "ideal"
        label = name if is_ideal else f"{name} (model)"
        left.plot(STRONG_SIZES, curve, ":" if is_ideal else "o-", markersize=4, label=label)
    left.plot(*zip(*published.STRONG.points), "s-", color="black", markersize=4, label="EXEX, Blue Waters (read off the figure)")
    _dress(left, "5,000 tasks of 1 s")
    for number, (name, curve) in enumerate(weak_curves.items()):
        right.plot(WEAK_SIZES, curve, "o-", color=f"C{number}", markersize=4, label=f"{name} (model)")
        if WEAK_LENGTHS_S[number]:
            right.plot(WEAK_SIZES, [10 * WEAK_LENGTHS_S[number]] * len(WEAK_SIZES), ":", color=f"C{number}", alpha=0.7)
    right.plot(*zip(*published.WEAK.points), "s-", color="black", markersize=4, label="EXEX, length not stated (read off)")
    _dress(right, "10 tasks for each worker (dotted: ideal)")
    right.set_ylim(top=1e5)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    return True


def _dress(axes: Any, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("workers")
    axes.set_ylabel("seconds")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper right" if "each" in title else "center right")


def main() -> int:
    """Print tables and draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaign", description=__doc__)
    parser.add_argument("--costs", metavar="FILE", help="of benchmarks.manager_scale --json; else they are measured")
    parser.add_argument("--repeats", type=int, default=3, help="of each real world; 0 for none")
    parser.add_argument("--picture", default="docs/campaign.png")
    args = parser.parse_args()
    costs = Costs(**json.loads(Path(args.costs).read_text())["costs"]) if args.costs else measured_costs()
    print("costs: " + ", ".join(f"{name} {value * 1e6:.2f} us" for name, value in vars(costs).items()))
    print(f"network: {Network()}")
    if args.repeats:
        here = calibrate(costs, args.repeats)
        print(f"\nhere a task that travels alone costs {here.alone_s * 1e6:,.0f} us")
        print("\n".join(compare_real(here, args.repeats)), flush=True)
    print("\n".join(compare_manager(costs)), flush=True)
    lines, strong_curves = strong_table(costs)
    print("\n".join(lines), flush=True)
    lines, weak_curves = weak_table(costs)
    print("\n".join(lines), flush=True)
    print(f"drawn: {args.picture}" if draw(args.picture, strong_curves, weak_curves) else "no picture: no matplotlib")
    return 0


if __name__ == "__main__":
    sys.exit(main())
