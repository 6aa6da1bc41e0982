"""Curves as geometry: ticks, running means and places worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from fmwiss.reporting.charts import (
    MOST_POINTS,
    Curve,
    direction,
    line_chart,
    number,
    per_cent,
    running_mean,
    signed,
    ticks,
)


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert ticks(0, 1) == [0, 0.5, 1]
    assert ticks(0, 0.38) == [0, 0.1, 0.2, 0.3, 0.4]
    assert ticks(0, 47.9) == [0, 20, 40, 60]
    assert ticks(-3, 7) == [-5, 0, 5, 10]
    assert ticks(0, 1e-4) == [0, 5e-5, 1e-4]
    assert ticks(5, 5) == [4, 6, 8, 10]
    assert ticks(0, 0) == [0, 0.5, 1]


@pytest.mark.parametrize("low", [0.0, -1.7, 3.2])
@pytest.mark.parametrize("span", [1e-9, 3e-5, 0.7, 9.99, 12345.0])
def test_ticks_of_any_range(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert found[0] <= low + 1e-6 * span + 1e-12 and found[-1] >= low + span * (1 - 1e-6) - 1e-12
    assert 2 <= len(found) <= 7
    steps = [b - a for a, b in pairwise(found)]
    assert all(step == pytest.approx(steps[0], rel=1e-3) for step in steps)


def test_running_mean_by_hand() -> None:
    points = [(float(x), float(y)) for x, y in enumerate([0, 3, 6, 9, 0])]
    assert running_mean(points) == [(0, 1.5), (1, 3), (2, 6), (3, 5), (4, 4.5)]


def test_numbers_are_short() -> None:
    shown = {0.0: "0", 0.5: "0.5", 60.0: "60", 1e-4: "1e−4", 2.5e-5: "2.5e−5", -3.0: "−3", 0.123456: "0.1235"}
    assert {value: number(value) for value in shown} == shown
    assert number(123456.0) == "1.235e5"


def test_differences_have_a_sign_where_one_decimal_shows_it() -> None:
    assert [signed(value) for value in (1.26, -1.26, 0.04, -0.04)] == ["+1.3", "−1.3", "0.0", "0.0"]
    assert [direction(value) for value in (0.06, -0.06, 0.04, None)] == ["up", "down", "", ""]
    assert (per_cent(None), per_cent(46.849)) == ("–", "46.8")


def test_places_by_hand() -> None:
    chart = line_chart("loss", [Curve("a", "run-1", [(0, 0.4), (5, 0.2), (10, 0.0)])], (0.0, 10.0), dots=True)
    assert chart is not None
    assert [(tick.place, tick.text) for tick in chart.y_ticks] == [
        (100, "0"), (75, "0.1"), (50, "0.2"), (25, "0.3"), (0, "0.4")
    ]  # fmt: skip
    assert [(tick.place, tick.text) for tick in chart.x_ticks] == [
        (0, "0"), (20, "2"), (40, "4"), (60, "6"), (80, "8"), (100, "10")
    ]  # fmt: skip
    (line,) = chart.lines
    assert line.logged == "M0.0 0.0L500.0 500.0L1000.0 1000.0"
    assert (line.mean, line.dots, line.last) == ("", [(0, 0), (50, 50), (100, 100)], "0")
    assert chart.summary == "loss: from 0.4 to 0, lowest 0"


def test_negative_values_lower_the_axis() -> None:
    chart = line_chart("loss", [Curve("a", "run-1", [(0, -2.0), (1, 4.0)])], (0.0, 1.0))
    assert chart is not None
    assert [tick.text for tick in chart.y_ticks] == ["−2", "0", "2", "4"]


def test_values_that_are_not_finite_are_left_out() -> None:
    curve = Curve("a", "run-1", [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)])
    chart = line_chart("loss", [curve, Curve("b", "run-2", [(0, math.nan)])], (0.0, 3.0))
    assert chart is not None
    assert [line.points for line in chart.lines] == [[(0, 1.0), (3, 2.0)]]
    assert line_chart("loss", [Curve("b", "run-2", [(0, math.nan)])], (0.0, 3.0)) is None
    assert line_chart("loss", [], (0.0, 3.0)) is None


def test_a_single_point_and_an_axis_without_length() -> None:
    chart = line_chart("mIoU", [Curve("old", "run-1", [(0, 50.0)])], (0.0, 0.0), dots=True)
    assert chart is not None
    assert chart.lines[0].dots == [(0, pytest.approx(100 / 6, abs=0.01))] or chart.lines[0].dots == [(0, 0)]
    assert chart.summary == "mIoU: 50"


def test_long_curves_are_thinned_out_and_keep_their_ends() -> None:
    points = [(float(x), math.sin(x)) for x in range(10007)]
    chart = line_chart("loss", [Curve("a", "run-1", points)], (0.0, 10006.0), mean=True)
    assert chart is not None
    (line,) = chart.lines
    assert len(line.points) <= MOST_POINTS + 1
    assert (line.points[0], line.points[-1]) == (points[0], points[-1])
    assert line.logged.count("L") == len(line.points) - 1 == line.mean.count("L")


def test_only_long_curves_have_a_running_mean() -> None:
    def mean(n: int) -> str:
        chart = line_chart("loss", [Curve("a", "run-1", [(x, 1.0) for x in range(n)])], (0.0, n), mean=True)
        assert chart is not None
        return chart.lines[0].mean

    assert mean(14) == "" and mean(15) != ""
