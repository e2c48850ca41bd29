"""Schedules against their formulas."""

from __future__ import annotations

import math

import pytest

from onnxprune.errors import ConfigError
from onnxprune.schedules import SPARSITY, constant, cosine, one_cycle, step


def test_constant_is_one():
    assert [constant()(t) for t in (0, 7)] == [1.0, 1.0]


def test_cosine_goes_from_one_to_final_and_stays():
    schedule = cosine(10, final=0.1)
    assert schedule(0) == pytest.approx(1.0)
    assert schedule(5) == pytest.approx(0.55)
    assert schedule(10) == schedule(15) == pytest.approx(0.1)


def test_one_cycle_is_the_formula_of_optax():
    # optax.cosine_onecycle_schedule with peak 1 and T = 100: it rises from 1/25 until step 30, then
    # falls to 1/(25 * 1e4), each along half a cosine.
    schedule, v0, v2 = one_cycle(100), 1 / 25, 1 / 2.5e5
    for t in (0, 1, 15, 30):
        expected = (v0 + 1) / 2 + (v0 - 1) / 2 * math.cos(math.pi * t / 30)
        assert schedule(t) == pytest.approx(expected, rel=1e-12)
    for t in (31, 65, 100):
        expected = (1 + v2) / 2 + (1 - v2) / 2 * math.cos(math.pi * (t - 30) / 70)
        assert schedule(t) == pytest.approx(expected, rel=1e-12)
    assert schedule(0) == pytest.approx(v0)
    assert schedule(30) == pytest.approx(1.0)
    assert schedule(500) == pytest.approx(v2)


def test_step_multiplies_at_each_milestone():
    schedule = step([20, 10], factor=0.5)
    assert [schedule(t) for t in (9, 10, 19, 20)] == [1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("make", [lambda: cosine(0), lambda: one_cycle(0)])
def test_no_steps_are_refused(make):
    with pytest.raises(ConfigError, match="steps"):
        make()


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ConfigError, match="share"):
        one_cycle(10, warm=1.0)


@pytest.mark.parametrize("name", SPARSITY)
def test_sparsity_goes_from_nothing_to_everything_and_never_back(name):
    values = [SPARSITY[name](t / 50) for t in range(51)]
    assert values[0] == 0
    assert values[-1] == pytest.approx(1, abs=1e-12)
    assert values == sorted(values)


def test_sparsity_against_the_formulas():
    assert SPARSITY["cubic"](0.5) == pytest.approx(0.875)
    assert SPARSITY["one-cycle"](5 / 14) == pytest.approx((1 + math.exp(-9)) / 2)
    assert SPARSITY["one-shot"](0.01) == 1
