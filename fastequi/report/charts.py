"""Charts as inline SVG: curves of several runs, and bars with intervals. Colours are the page's.

Every chart is 360 units wide, so that on a phone and as one of three columns its text is readable
alike; a chart says in its label what it shows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from fastequi.report.markup import number, tag, text

_WIDTH, _HEIGHT = 360, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 26, 10, 38
_POINTS = 240  # of a curve at most: more than there are pixels on a phone
_ROW = 40  # height of a bar with its label
_LABEL = 48  # letters

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One run's values of a metric.

    Attributes:
        letter: label at its end.
        color: index into the page's palette.
        points: (step, value), finite, by step.
    """

    letter: str
    color: int
    points: Points


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A value with its interval, or None without one; a baseline is drawn hollow."""

    label: str
    value: float
    interval: tuple[float, float] | None
    is_baseline: bool = False
    color: int = 0


def curves(
    curves: Sequence[Curve],
    title: str,
    percent: bool = False,
    exact: bool = False,
    over: str = "steps",
) -> str:
    """The curves of a metric over steps: raw in thin lines, their running mean in thick ones.

    `exact` leaves out the mean, for what has no noise. `over` says what is counted instead of steps
    ("blocks"), of which only whole numbers are marked.
    The axis is logarithmic where positive values over steps reach over 30 times their median.
    """
    values = [y * (100 if percent else 1) for curve in curves for _, y in curve.points]
    last = max(x for curve in curves for x, _ in curve.points)
    log = not percent and over == "steps" and min(values) > 0
    log = log and max(values) > 30 * median(values)
    low, high, ticks = _log_axis(values) if log else _axis(values, percent)
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at_x(x: float) -> float:
        return _LEFT + plot_width * x / max(last, 1)

    def at_y(y: float) -> float:
        y = y * (100 if percent else 1)
        share = math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)
        return _TOP + plot_height * (1 - share)

    parts = []
    for tick in ticks:
        y = at_y(tick / 100 if percent else tick)
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=_f(y), y2=_f(y), class_="grid"))
        shown = number(tick) + (" %" if percent else "")
        parts.append(_text(shown, _LEFT - 6, y + 4, "end"))
    bottom = _TOP + plot_height
    for tick in _ticks(0, last, 4):
        if tick % 1 and over != "steps":
            continue
        parts.append(tag("line", x1=_f(at_x(tick)), x2=_f(at_x(tick)), y1=bottom, y2=bottom + 4))
        parts.append(_text(number(tick), at_x(tick), bottom + 17, "middle"))
    parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=bottom, y2=bottom, class_="axis"))
    parts.append(_text(over, _WIDTH - _RIGHT, bottom + 33, "end"))
    ends, said = [], []
    for curve in curves:
        smooth = curve.points if exact else _running_mean(curve.points)
        for kind, points in (("raw", curve.points), ("smooth", smooth)):
            where = " ".join(f"{_f(at_x(x))},{_f(at_y(y))}" for x, y in _thin(points))
            parts.append(tag("polyline", points=where, class_=f"{kind} c{curve.color}"))
        x, y = smooth[-1]
        parts.append(
            tag("circle", cx=_f(at_x(x)), cy=_f(at_y(y)), r=3, class_=f"dot c{curve.color}")
        )
        ends.append((at_y(y), at_x(x), curve))
        said.append(f"{curve.letter} from {number(curve.points[0][1])} to {number(y)}")
    if len(curves) > 1:
        for y, x, curve in _apart(ends):
            parts.append(_text(curve.letter, x + 7, y + 4.5, "start", kind=f"end c{curve.color}"))
    return _svg(f"{title} over {number(last)} {over}: {'; '.join(said)}", _HEIGHT, parts)


def bars(rows: Sequence[Bar], title: str, digits: int = 2) -> str:
    """Horizontal bars from 0 with whiskers, and a line at the largest baseline.

    Args:
        rows: shares or R²; the axis is 0..1 and grows where values lie outside, not below -0.5.
        digits: decimals of the figures.
    """
    ends = [end for row in rows for end in (row.value, *(row.interval or ()))]
    low, high = max(min([0.0, *ends]), -0.5), max([1.0, *ends])
    left, right, top = 4, 54, 24
    height = top + _ROW * len(rows) + 26

    def at(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return left + (_WIDTH - left - right) * share

    bottom = top + _ROW * len(rows)
    under, over = [], []  # labels and whiskers lie over the lines that cross the chart
    for tick in _ticks(low, high, 4):
        under.append(_upright(at(tick), top, bottom, "grid"))
        over.append(_text(number(tick), at(tick), bottom + 17, "middle"))
    for i, row in enumerate(rows):
        y = top + i * _ROW
        start, end = sorted((at(0), at(row.value)))
        box = {"x": _f(start), "y": y + 20, "width": _f(max(end - start, 1)), "height": 13}
        under.append(
            tag("rect", **box, class_="baseline" if row.is_baseline else f"bar c{row.color}")
        )
        if row.interval:
            (a, b), middle = map(at, row.interval), y + 26.5
            over.append(tag("line", x1=_f(a), x2=_f(b), y1=middle, y2=middle, class_="whisker"))
            over += [_upright(x, middle - 4, middle + 4, "whisker") for x in (a, b)]
        over.append(_text(_cut(row.label), left, y + 14, "start", kind="label"))
        over.append(_text(_decimals(row.value, digits), _WIDTH - 4, y + 31, "end", kind="value"))
    under.append(_upright(at(0), top, bottom, "axis"))
    baselines = [row.value for row in rows if row.is_baseline]
    if baselines:
        x = at(max(baselines))
        under.append(_upright(x, top - 6, bottom, "best"))
        side = "end" if x > _WIDTH / 2 else "start"
        over.append(_text("strongest baseline", x, top - 11, side, kind="best"))
    said = "; ".join(map(_said, rows))
    return _svg(f"{title}: {said}", height, under + over)


def _said(row: Bar) -> str:
    """A bar in words."""
    value = f"{row.label}{' (baseline)' if row.is_baseline else ''} {row.value:.2f}"
    if row.interval is None:
        return value
    return f"{value}, 95 % {row.interval[0]:.2f} to {row.interval[1]:.2f}"


def gains(rows: Sequence[tuple[str, float]], title: str, unit: str) -> str:
    """Horizontal bars to the left and right of 0, one for each (label, value)."""
    low = min(0.0, *(value for _, value in rows))
    high = max(0.0, *(value for _, value in rows))
    left, right, top, each = 118, 58, 8, 24
    bottom = top + each * len(rows)

    def at(value: float) -> float:
        share = (value - low) / max(high - low, 1e-9)
        return left + (_WIDTH - left - right) * share

    parts = []
    for tick in _ticks(low, high, 4):
        parts.append(_upright(at(tick), top, bottom, "grid"))
        parts.append(_text(number(tick), at(tick), bottom + 17, "middle"))
    for i, (label, value) in enumerate(rows):
        y = top + each * i
        start, end = sorted((at(0), at(value)))
        box = {"x": _f(start), "y": y + 5, "width": _f(max(end - start, 1)), "height": 13}
        parts.append(tag("rect", **box, class_="bar c0"))
        parts.append(_text(label, left - 8, y + 16, "end", kind="label"))
        shown = f"{value:+.1f}".replace("-", "−")
        parts.append(_text(shown, _WIDTH - 4, y + 16, "end", kind="value"))
    parts.append(_upright(at(0), top, bottom, "axis"))
    said = "; ".join(f"{label} {value:+.1f}" for label, value in rows)
    return _svg(f"{title}, {unit}: {said}", bottom + 26, parts)


def standalone(panels: Sequence[tuple[str, str]], style: str) -> str:
    """An SVG file of charts below each other, each under a line of text.

    Args:
        panels: (text, chart) of :func:`curves` or the like.
        style: the page's CSS, whose colours they have.
    """
    drawn, top = [], 0.0
    for heading, chart in panels:
        found = re.fullmatch(r'<svg viewBox="0 0 \S+ (\S+)".*?>(.*)</svg>', chart, re.S)
        assert found
        line = _text(heading, 4, 16, "start", kind="label")
        inner = tag("g", found[2], transform="translate(0 22)")
        drawn.append(tag("g", line, inner, transform=f"translate(0 {_f(top)})", class_="chart"))
        top += 30 + float(found[1])
    ground = tag("rect", width=_WIDTH, height=_f(top), style="fill: var(--paper)")
    return tag(
        "svg",
        tag("style", style),
        ground,
        *drawn,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {_f(top)}",
        role="img",
        aria_label="; ".join(heading for heading, _ in panels),
    )


def _upright(x: float, top: float, bottom: float, kind: str) -> str:
    return tag("line", x1=_f(x), x2=_f(x), y1=_f(top), y2=_f(bottom), class_=kind)


def _cut(label: str) -> str:
    """What fits above a bar; the chart's description has all of it."""
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1].rstrip()}…"


def _decimals(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _svg(label: str, height: float, parts: Sequence[str]) -> str:
    box = f"0 0 {_WIDTH} {_f(height)}"
    return tag("svg", *parts, viewBox=box, role="img", aria_label=label, class_="chart")


def _text(shown: str, x: float, y: float, anchor: str, *, kind: str | None = None) -> str:
    return tag("text", text(shown), x=_f(x), y=_f(y), text_anchor=anchor, class_=kind)


def _f(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _axis(values: Sequence[float], percent: bool) -> tuple[float, float, list[float]]:
    """Ends and ticks; from 0 where 0 is near, without a single spike that hides the rest."""
    low, high = min(values), max(values)
    if low >= 0 and (low < 0.5 * high or percent):
        low = 0.0
    if high == low:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    ticks = _ticks(low, high, 4)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return low, high, _ticks(low, high, 4)


def _log_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    low, high = min(values), max(values)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) < 4 else (1,)
    ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
    every = -(-len(ticks) // 5)
    return low, high, ticks[::every] or [low, high]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between the ends."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + i) * step, 12) for i in range(count)]


def _running_mean(points: Points) -> list[tuple[float, float]]:
    """The mean of the points around, about a tenth of them; fewer towards the ends."""
    half = len(points) // 20
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    smooth = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        first, stop = i - reach, i + reach + 1
        smooth.append((x, (sums[stop] - sums[first]) / (stop - first)))
    return smooth


def _thin(points: Points) -> list[tuple[float, float]]:
    """At most about 240 points: the least and the largest of every stretch, in their order."""
    if len(points) <= _POINTS:
        return list(points)
    stretch = -(-2 * len(points) // _POINTS)
    kept = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return [points[0], *kept, points[-1]]


def _apart(ends: list[tuple[float, float, Curve]]) -> list[tuple[float, float, Curve]]:
    """Labels at the curves' ends, pushed down where they would lie on each other."""
    placed: list[tuple[float, float, Curve]] = []
    for y, x, curve in sorted(ends, key=lambda end: end[0]):
        crowded = bool(placed) and abs(placed[-1][1] - x) < 16
        placed.append((max(y, placed[-1][0] + 13) if crowded else y, x, curve))
    return placed
