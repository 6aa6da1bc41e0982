"""Curves as geometry for SVG: ticks, paths and what is read off them. Every length is in per cent or per mille of the
plot, so that a chart is as wide as its place and its text stays as large as the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

MOST_POINTS = 300
"""Points drawn of a curve; longer ones are thinned out, their running mean is taken before that."""
FEWEST_FOR_MEAN = 15
"""Curves of fewer points have no running mean."""
MEAN_WINDOW = 0.05
"""Half the window of the running mean, as a share of the curve's points."""


@dataclass(frozen=True)
class Curve:
    """What is to be drawn: values over an axis, in a colour of the page's (``run-1``)."""

    label: str
    colour: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Line:
    """A curve as the template draws it, in per mille of the plot from its upper left corner."""

    label: str
    colour: str
    logged: str
    """Path of the values."""
    mean: str
    """Path of the running mean, or empty."""
    dots: list[Point]
    """Where values are marked, in per cent."""
    points: list[Point]
    """The values drawn, as they were."""
    last: str


@dataclass(frozen=True)
class Tick:
    """A number at its place along an axis, in per cent."""

    place: float
    text: str


@dataclass(frozen=True)
class LineChart:
    """A chart of one or several curves."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_range: Point
    summary: str
    """The chart in words, for those who do not see it."""


def line_chart(
    title: str, curves: Sequence[Curve], x_range: Point, dots: bool = False, mean: bool = False
) -> LineChart | None:
    """Lay out curves over a common axis; None where no curve has a finite value.

    Args:
        title: what the values are.
        curves: the curves; values that are not finite are left out.
        x_range: ends of the horizontal axis. The vertical one goes from 0, or the least value below it, to a round
            number.
        dots: mark every value of the curves; they are few.
        mean: draw a running mean over curves that are long enough.
    """
    finite = [
        Curve(curve.label, curve.colour, [p for p in curve.points if all(map(math.isfinite, p))]) for curve in curves
    ]
    finite = [curve for curve in finite if curve.points]
    if not finite:
        return None
    values = [y for curve in finite for _, y in curve.points]
    y_ticks = ticks(min(0.0, *values), max(0.0, *values))
    low, high = y_ticks[0], y_ticks[-1]
    left, right = x_range if x_range[1] > x_range[0] else (x_range[0], x_range[0] + 1.0)

    def place(point: Point) -> Point:
        return (point[0] - left) / (right - left), 1 - (point[1] - low) / (high - low)

    lines = []
    for curve in finite:
        drawn = _thinned(curve.points)
        averaged = mean and len(curve.points) >= FEWEST_FOR_MEAN
        lines.append(
            Line(
                label=curve.label,
                colour=curve.colour,
                logged=_path([place(point) for point in drawn]),
                mean=_path([place(point) for point in _thinned(running_mean(curve.points))]) if averaged else "",
                dots=[(round(100 * x, 2), round(100 * y, 2)) for x, y in map(place, drawn)] if dots else [],
                points=drawn,
                last=number(drawn[-1][1]),
            )
        )
    x_numbers = [tick for tick in ticks(left, right, most=6) if left <= tick <= right]
    return LineChart(
        title=title,
        lines=lines,
        x_ticks=[Tick(round(100 * (tick - left) / (right - left), 2), number(tick)) for tick in x_numbers],
        y_ticks=[Tick(round(100 * (1 - (tick - low) / (high - low)), 2), number(tick)) for tick in y_ticks],
        x_range=(left, right),
        summary=f"{title}: " + "; ".join(_in_words(curve, len(finite) > 1) for curve in finite),
    )


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, some ``most`` of them, a step of 1, 2 or 5 apart."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max(1, most - 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def running_mean(points: Sequence[Point]) -> list[Point]:
    """Each value's mean with its neighbours on either side, as far as ``MEAN_WINDOW`` of all points and the ends go."""
    half = max(1, round(MEAN_WINDOW * len(points)))
    means = []
    for index, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, index - half) : index + half + 1]]
        means.append((x, sum(window) / len(window)))
    return means


def number(value: float) -> str:
    """A number with at most four significant digits, as short as can be."""
    text = f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{float(f'{value:.4g}'):e}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return text.replace("-", "−")


def per_cent(value: float | None) -> str:
    """One decimal, as the field's tables have it; a dash where there is nothing."""
    return "–" if value is None else f"{value:.1f}"


def signed(value: float) -> str:
    """A difference with one decimal and its sign; none before a zero."""
    sign = {"up": "+", "down": "−", "": ""}[direction(value)]
    return f"{sign}{abs(value):.1f}"


def direction(value: float | None) -> str:
    """``up`` or ``down``, or nothing where one decimal shows no difference."""
    if value is None or f"{abs(value):.1f}" == "0.0":
        return ""
    return "up" if value > 0 else "down"


def _thinned(points: Sequence[Point]) -> list[Point]:
    every = math.ceil(len(points) / MOST_POINTS)
    kept = list(points[::every])
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def _path(places: Sequence[Point]) -> str:
    """An SVG path through places given as shares of the plot."""
    return "".join(f"{'L' if index else 'M'}{1000 * x:.1f} {1000 * y:.1f}" for index, (x, y) in enumerate(places))


def _in_words(curve: Curve, named: bool) -> str:
    name = f"{curve.label} " if named else ""
    values = [y for _, y in curve.points]
    if len(values) == 1:
        return f"{name}{number(values[0])}"
    return f"{name}from {number(values[0])} to {number(values[-1])}, lowest {number(min(values))}"
