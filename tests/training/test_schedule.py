"""poly_factor: numbers by hand."""

from __future__ import annotations

import pytest

from fmwiss.training.schedule import poly_factor


def test_by_hand() -> None:
    assert [poly_factor(i, 0, 4, 1.0) for i in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert poly_factor(3, 0, 4, 0.9) == pytest.approx(0.25**0.9) == pytest.approx(0.2871745887)
    assert poly_factor(50, 0, 100, 0.9) == pytest.approx(0.5358867313)
    assert [poly_factor(i, 0, 4, 0.0) for i in range(4)] == [1.0] * 4


def test_what_stays_constant_drops_to_where_the_polynomial_is() -> None:
    assert [poly_factor(i, 0, 5, 1.0, 2) for i in range(5)] == pytest.approx([1.0, 1.0, 0.6, 0.4, 0.2])
    assert [poly_factor(i, 1, 6, 1.0, 2) for i in range(6)] == pytest.approx([1.0, 1.0, 1.0, 0.6, 0.4, 0.2])


def test_constant_while_warming_up_then_over_the_rest() -> None:
    factors = [poly_factor(i, 3, 7, 1.0) for i in range(7)]
    assert factors == [1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert [poly_factor(i, 3, 7, 0.9) for i in range(3, 7)] == [poly_factor(i, 0, 4, 0.9) for i in range(4)]
