"""Numbers as people read them. Pure."""

from __future__ import annotations

import math

_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800)


def duration(seconds: float) -> str:
    """Three digits at the most and a unit: "12.3 ms", "4:05 min", "2:03:10 h"."""
    if math.isnan(seconds):
        return "?"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 0.9995 or unit == "µs":
            if unit != "s" or seconds < 99.95:
                return f"{three(seconds * factor)} {unit}"
            break
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 360_000:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h"
    return f"{whole / 3600:,.0f} h"


def three(value: float) -> str:
    """Three digits that count: "0.52", "12.3", "4,510"."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    digits = 2 if abs(value) < 9.995 else 1
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def count(value: float) -> str:
    """A number of things: "950", "12.3 k", "2 M"."""
    for unit, size in ((" G", 1e9), (" M", 1e6), (" k", 1e4)):
        if abs(value) >= size:
            return f"{three(value / (1e3 if unit == ' k' else size))}{unit}"
    return f"{value:,.0f}" if value == int(value) else three(value)


def percent(part: float) -> str:
    """ "97 %", "0.4 %"."""
    return f"{100 * part:.0f} %" if part >= 0.0995 or part < 0.0005 else f"{100 * part:.1f} %"


def plural(number: int, what: str) -> str:
    """ "1 node", "8,192 nodes"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def size(number: float) -> str:
    """Bytes: "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024 or unit == "GiB":
            return f"{three(number)} {unit}"
        number /= 1024
    raise AssertionError


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    step = 10 ** math.floor(math.log10(raw))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def time_ticks(low_s: float, high_s: float, most: int = 9) -> list[tuple[float, str]]:
    """Round times and how they are written."""
    span_s = high_s - low_s
    step_s = next((step for step in _STEPS_S if span_s / step <= most), 86400 * math.ceil(span_s / 86400 / most))
    if span_s < most * 0.9:
        return [(at, f"{round(at, 9):g} s") for at in ticks(low_s, high_s, most)]
    found = []
    at = math.ceil(low_s / step_s - 1e-9) * step_s
    while at <= high_s:
        found.append((float(at), _clock(at, step_s)))
        at += step_s
    return found


def _clock(seconds: float, step_s: float) -> str:
    whole = round(seconds)
    if whole < 60 and step_s < 60:
        return f"{whole} s"
    if step_s >= 3600 and whole % 3600 == 0:
        return f"{whole // 3600} h"
    if whole < 3600 or step_s < 60:
        return f"{whole // 60}:{whole % 60:02d}" + (" min" if whole < 3600 else "")
    return f"{whole // 3600}:{whole // 60 % 60:02d} h"
