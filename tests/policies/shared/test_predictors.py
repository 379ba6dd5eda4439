"""Predictors against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetcache_core.errors import ConfigError
from hetcache_core.policy.pieces import Hold, Predictor
from hetcache_core.store import Stored
from hetcache_policies.shared.predictors import (
    Blend,
    Chebyshev,
    Exponentials,
    Foca,
    Hermite,
    Linear,
    Taylor,
)

ALL = [Hold(), Linear(), Taylor(), Taylor(2), Taylor(4), Foca(), Chebyshev(3, 2, 0.0)]
EVERY = [*ALL, Hermite(), Blend(), Chebyshev(), Exponentials()]


def kept(of: Callable[[float], float], steps: list[int]) -> list[Stored]:
    return [Stored(torch.tensor([of(step), -of(step)]), step) for step in steps]


def predicted(predictor: Predictor, values: list[Stored], step: int) -> float:
    found = predictor.predict(values, step=step, gain=None)
    assert found[1] == -found[0]
    return float(found[0])


@st.composite
def computed_steps(draw: st.DrawFn, most: int = 5) -> list[int]:
    return sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=most)))


@given(computed_steps(), st.integers(1, 10))
def test_a_constant_is_predicted_by_all(steps: list[int], ahead: int) -> None:
    for predictor in EVERY:
        values = kept(lambda _: 3.0, steps)[-predictor.history :]
        assert predicted(predictor, values, steps[-1] + ahead) == pytest.approx(3.0)


@given(computed_steps(), st.integers(1, 10))
def test_a_straight_line_is_predicted_by_all_but_hold(steps: list[int], ahead: int) -> None:
    for predictor in ALL[1:]:
        values = kept(lambda s: 2.0 * s - 5, steps)[-predictor.history :]
        target = steps[-1] + ahead if len(values) > 1 else steps[-1]
        expected = 2.0 * target - 5
        assert predicted(predictor, values, steps[-1] + ahead) == pytest.approx(expected, abs=1e-3)


def test_hold_takes_the_newest_value() -> None:
    assert predicted(Hold(), kept(float, [1, 4]), 6) == 4


def test_linear_goes_as_far_along_the_line_as_the_gain_says() -> None:
    values = [Stored(torch.tensor([1.0]), 3), Stored(torch.tensor([3.0]), 5)]
    for gain, expected in ((0.0, 1.0), (1.0, 3.0), (1.5, 4.0), (2.0, 5.0)):
        assert float(Linear().predict(values, step=9, gain=gain)) == pytest.approx(expected)


def test_a_line_through_narrow_values_is_computed_in_fp32_and_rounded_once() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        older, newest = (
            torch.randn(4096, generator=torch.Generator().manual_seed(seed)).to(dtype)
            for seed in (0, 1)
        )
        for gain in (-0.3, 0.25, 0.5, 1.0, 1 + 1 / 3, 2.75):
            found = Linear().predict([Stored(older, 3), Stored(newest, 5)], step=9, gain=gain)
            assert torch.equal(found, older.float().lerp(newest.float(), gain).to(dtype))


def test_a_blend_goes_as_far_beyond_the_last_value_as_the_gain_says() -> None:
    values = [Stored(torch.tensor([1.0]), 3), Stored(torch.tensor([3.0]), 5)]
    for gain, expected in ((0.0, 3.0), (1.0, 7.0), (0.25, 4.0), (None, 5.0)):
        assert float(Blend().predict(values, step=9, gain=gain)) == pytest.approx(expected)
    assert Blend(most=0.3).measured.first == pytest.approx(0.3)


def test_the_second_order_of_a_square_by_hand() -> None:
    """s**2 at 0, 1, 2: differences 3 and 2, so that u later it is 4 + 3 u + 2 u**2 / 2."""
    values = kept(lambda s: s**2, [0, 1, 2])
    for u in (1, 2, 3):
        assert predicted(Taylor(2), values, 2 + u) == pytest.approx(4 + 3 * u + u**2)


def test_uneven_gaps_by_hand() -> None:
    """0, 2, 3 at 1, 3, 4: slopes 1 and 1; then 7 at 6: slope 2, second (2 - 1) / 2."""
    points = {1: 0.0, 3: 2.0, 4: 3.0, 6: 7.0}
    values = kept(lambda s: points[int(s)], [1, 3, 4, 6])
    assert predicted(Taylor(2), values[1:], 8) == pytest.approx(7 + 2 * 2 + 0.5 * 2**2 / 2)
    # The third: second differences are 0 at step 4 and 1/2 at step 6, so 1/4 a step.
    assert predicted(Taylor(3), values, 8) == pytest.approx(7 + 4 + 1 + 0.25 * 2**3 / 6)


def test_the_hermite_series_of_a_square_by_hand() -> None:
    """As above with 0.5 H_1(u / 2) = u / 2 for u and 0.25 H_2(u / 2) = u**2 / 4 - 1 / 2 for its square."""
    values = kept(lambda s: float(s**2), [0, 1, 2])
    for u in (1, 2, 3):
        expected = 4 + 3 * u / 2 + 2 * (u**2 / 4 - 1 / 2) / 2
        assert predicted(Hermite(2, 0.5), values, 2 + u) == pytest.approx(expected)


def test_foca_by_hand() -> None:
    """1, 3, 8 at 0, 2, 4: slope 2.5; a line had 4 at 3, so the jump is 4; then 2.5 and 4 by halves."""
    points = {0: 1.0, 2: 3.0, 4: 8.0}
    values = kept(lambda s: points[int(s)], [0, 2, 4])
    first = 8 + (2.5 + 4) / 2
    assert predicted(Foca(), values, 5) == pytest.approx(first)
    assert predicted(Foca(), values, 6) == pytest.approx(8 + 2.5 + (first - 8))


@given(st.integers(1, 6))
def test_a_parabola_is_fitted_without_a_ridge(u: int) -> None:
    values = kept(lambda s: 0.5 * s**2 - 3 * s + 1, [1, 2, 5])
    s = 5 + u
    expected = 0.5 * s**2 - 3 * s + 1
    assert predicted(Chebyshev(3, 2, 0.0), values, s) == pytest.approx(expected, rel=1e-4, abs=1e-3)
    held = predicted(Chebyshev(3, 2, 1e9), values, s)
    assert held == pytest.approx(-1.5, abs=1e-3)


def test_exponentials_are_followed() -> None:
    """Two of them, 0.5**s and 0.8**s, in two directions, and a third that swings."""
    turn = math.pi / 5

    def value(s: float) -> torch.Tensor:
        swing = [math.cos(turn * s), math.sin(turn * s)]
        return torch.tensor([2 * 0.9**s, 0.7**s, *swing], dtype=torch.float64)

    values = [Stored(value(s), s) for s in range(6)]
    for step in (6, 7, 9):
        found = Exponentials(6).predict(values, step=step, gain=None)
        torch.testing.assert_close(found, value(step), rtol=2e-2, atol=2e-2)


@given(st.integers(1, 5), st.floats(0.5, 1.5), st.integers(1, 4))
def test_a_geometric_series_by_its_closed_form(order: int, base: float, u: int) -> None:
    """The j-th backward difference of b**s is b**s * (1 - 1 / b)**j."""
    last = order + 1
    expected = term = base**last
    for j in range(1, order + 1):
        term *= (1 - 1 / base) * u / j
        expected += term
    values = kept(lambda s: base**s, list(range(1, last + 1)))
    assert predicted(Taylor(order), values, last + u) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("predictor", EVERY, ids=str)
def test_values_are_not_written_to_and_the_type_is_theirs(predictor: Predictor) -> None:
    values = [Stored(torch.randn(3).bfloat16(), step) for step in range(predictor.history)]
    before = [value.value.clone() for value in values]
    found = predictor.predict(values, step=9, gain=None)
    assert found.dtype == torch.bfloat16
    assert all(torch.equal(value.value, old) for value, old in zip(values, before, strict=True))


def test_as_many_values_are_kept_as_are_looked_at() -> None:
    assert [predictor.history for predictor in EVERY] == [1, 2, 2, 3, 5, 3, 3, 3, 2, 6, 5]


def test_an_order_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="order"):
        Taylor(0)
