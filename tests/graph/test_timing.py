"""Latencies from a table of measured times: interpolation, and what remains under masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnxprune_models import builders

from onnxprune.graph import cost
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.graph.timing import Curve, Stretch, Timing, multiplies, rising, work

NETWORK = builders.mlp([10, 24, 16, 4])


def test_a_curve_is_straight_between_its_points_and_proportional_behind_them() -> None:
    curve = Curve(at=(10, 20, 40), value=(100, 300, 400))
    assert [curve(x) for x in (0, 10, 15, 20, 30, 40, 80)] == [100, 100, 200, 300, 350, 400, 800]


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 1000)), min_size=1, max_size=9),
    st.lists(st.integers(0, 150), min_size=2, max_size=9),
)
def test_more_work_never_takes_less_time(points: list[tuple[int, int]], xs: list[int]) -> None:
    curve = rising([x for x, _ in points], [float(y) for _, y in points])
    assert list(curve.at) == sorted({x for x, _ in points})
    found = [curve(x) for x in sorted(xs)]
    assert found == sorted(found)


def test_points_in_order_stay_as_they_are() -> None:
    assert rising([30, 10, 20], [9.0, 1.0, 4.0]) == Curve(at=(10, 20, 30), value=(1, 4, 9))
    assert rising([10, 20], [6.0, 4.0]) == Curve(at=(10, 20), value=(5, 5))


def timing(analysis: Analysis) -> Timing:
    """One stretch per layer that takes a nanosecond per unit of work, and 1,000 for the whole."""
    found = list(views(NETWORK, analysis.shapes, analysis.known))
    starts = [number for number, view in enumerate(found) if multiplies(view)]
    ends = [*starts[1:], len(found)]
    line = Curve(at=(0, 10_000), value=(0, 10_000))
    stretches = tuple(
        Stretch(nodes=tuple(view.key for view in found[a:b]), time=line)
        for a, b in zip(starts, ends, strict=True)
    )
    assert len(stretches) == 3
    whole = Curve(at=(0, 10_000), value=(1_000, 11_000))
    return Timing(stretches=stretches, whole=whole, examples=1)


def test_what_remains_follows_the_work_of_the_stretches() -> None:
    analysis = analyze(NETWORK)
    remaining = cost.Remaining(NETWORK, analysis, "latency", timing=timing(analysis))
    first, second = analysis.groups
    full = 10 * 24 + 24 * 16 + 16 * 4 + 2 * 24 + 2 * 16 + 4
    assert remaining({}) == 1_000 + full
    keep = {first.name: np.arange(24) < 6}
    assert remaining(keep) == 1_000 + full - 18 * (10 + 16 + 2)
    keep[second.name] = np.arange(16) < 8
    assert remaining(keep) == 1_000 + 10 * 6 + 6 * 8 + 8 * 4 + 2 * 6 + 2 * 8 + 4
    assert remaining({}) == 1_000 + full


def test_a_table_holds_for_the_model_when_it_has_become_smaller() -> None:
    small = builders.mlp([10, 6, 8, 4])
    analysis = analyze(small)
    remaining = cost.Remaining(small, analysis, "latency", timing=timing(analyze(NETWORK)))
    assert remaining({}) == 1_000 + 10 * 6 + 6 * 8 + 8 * 4 + 2 * 6 + 2 * 8 + 4


@pytest.mark.parametrize("network", [NETWORK, builders.vgg(((8,), (12,)), hidden=16, image=8)])
def test_work_counts_products_and_values(network: object) -> None:
    analysis = analyze(network)  # type: ignore[arg-type]
    found = list(views(network, analysis.shapes, analysis.known))  # type: ignore[arg-type]
    total = sum(work(view) for view in found)
    assert total > cost.macs(network, analysis)  # type: ignore[arg-type]
    assert sum(multiplies(view) for view in found) == (3 if network is NETWORK else 4)
