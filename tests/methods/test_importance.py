from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph.test_balance import bidirectional
from graphs import array, model

from onnxprune.base import Axis, Group, Observable, Window
from onnxprune.errors import ConfigError
from onnxprune.graph.groups import analyze
from onnxprune.graph.weights import weights
from onnxprune.methods.importance import (
    IMPORTANCES,
    apoz,
    dormancy,
    fpgm,
    importance,
    magnitude,
    mean_activation,
    random,
    scale,
    snap,
    snip,
    taylor,
    taylor_output,
    taylor_weight,
    utility,
    variance,
)

W = np.array([[1, 3, 0, -4], [2, 0, 0, 3]], np.float32)
MLP = model(
    """(float[N, 2] x) => (float[N, 3] y) <float[2, 4] w, float[4] b, float[4, 3] v>
    { h = MatMul(x, w) hb = Add(h, b) a = Relu(hb) y = MatMul(a, v) }""",
    w=W,
)
CONV = model(
    """(float[N, 1, 4, 4] x) => (float[N, 2, 4, 4] y)
    <float[3, 1, 1, 1] w, float[3] s, float[3] t, float[3] m, float[3] var, float[2, 3, 1, 1] v>
    { h = Conv(x, w) n = BatchNormalization(h, s, t, m, var) a = Relu(n) y = Conv(a, v) }""",
    w=np.array([1, -2, 3], np.float32).reshape(3, 1, 1, 1),
    s=np.array([-5, 1, 2], np.float32),
)
RESIDUAL = model(
    """(float[N, 2] x) => (float[N, 2] y)
    <float[2, 3] w, float[3, 3] r, float[3, 2] v>
    { h = MatMul(x, w) k = MatMul(h, r) s = Add(h, k) y = MatMul(s, v) }""",
    w=np.array([[1, 0, 0], [0, 2, 0]], np.float32),
    r=np.array([[0, 0, 3], [0, 0, 0], [0, 0, 4]], np.float32),
)


def only_group(network: ir.Model) -> Group:
    (group,) = analyze(network).groups
    return group


def scores(network: ir.Model, criterion: object) -> list[float] | None:
    found = criterion.score(  # type: ignore[attr-defined]
        only_group(network), weights(network, analyze(network)), {}
    )
    return None if found is None else found.tolist()


def seen(**fields: list[float]) -> dict[Axis, Window]:
    """Statistics of the Relu of MLP, and of the weight before it, over 10 values."""
    arrays = {name: np.array(values, np.float64) for name, values in fields.items()}
    window = Window(count=10, batches=2, **arrays)
    return {Axis("a", 1): window, Axis("w", 1): window}


def test_magnitude_is_the_norm_of_what_makes_the_unit() -> None:
    assert scores(MLP, magnitude(order=1)) == [3, 3, 0, 7]
    assert scores(MLP, magnitude()) == pytest.approx([5**0.5, 3, 0, 5], abs=1e-12)


def test_magnitude_of_a_filter_leaves_normalization_out() -> None:
    assert scores(CONV, magnitude()) == [1, 2, 3]


def test_magnitude_adds_all_producers_of_a_residual_sum_and_no_reader() -> None:
    """r makes units by its columns and reads them by its rows."""
    assert scores(RESIDUAL, magnitude(order=1)) == [1, 2, 7]


def test_magnitude_sees_weights_as_they_are_used() -> None:
    turned = model(
        """(float[N, 2] x) => (float[N, 3] y) <float[4, 2] w, float[4, 3] v>
        { t = Transpose(w) h = MatMul(x, t) a = Relu(h) y = MatMul(a, v) }""",
        w=W.T,
    )
    assert scores(turned, magnitude(order=1)) == [3, 3, 0, 7]


def test_magnitude_of_other_orders_is_refused() -> None:
    with pytest.raises(ConfigError, match="order 3"):
        magnitude(order=3)


def test_fpgm_is_the_sum_of_distances_in_the_group() -> None:
    rows = W.T.astype(float)
    expected = [sum(float(np.linalg.norm(row - other)) for other in rows) for row in rows]
    assert scores(MLP, fpgm()) == pytest.approx(expected, rel=1e-12)


def test_the_scale_of_a_normalization_is_its_magnitude_and_says_nothing_without_one() -> None:
    assert scores(CONV, scale()) == [5, 1, 2]
    assert scores(MLP, scale()) is None


def test_weights_that_overflowed_say_nothing() -> None:
    broken = model(
        """(float[N, 2] x) => (float[N, 3] y) <float[2, 4] w, float[4, 3] v>
        { h = MatMul(x, w) y = MatMul(h, v) }""",
        w=np.full((2, 4), np.nan, np.float32),
    )
    assert scores(broken, magnitude()) is None


@pytest.mark.parametrize(
    ("criterion", "observed", "expected"),
    [
        (apoz(), seen(active=[10, 5, 0, 1]), [1, 0.5, 0, 0.1]),
        (mean_activation(), seen(absolute=[10, 5, 0, 1]), [1, 0.5, 0, 0.1]),
        (variance(), seen(total=[10, 0, 5, 0], square=[10, 10, 5, 0]), [0, 1, 0.25, 0]),
        (dormancy(), seen(absolute=[10, 5, 0, 1]), [2.5, 1.25, 0, 0.25]),
        (taylor(), seen(gate_square=[4, 1, 0, 2]), [2, 0.5, 0, 1]),
        (snap(), seen(gate=[-4, 1, 0, 2]), [4, 1, 0, 2]),
        (taylor_output(), seen(gate=[-4, 0, 0, 3]), [0.8, 0, 0, 0.6]),
    ],
    ids=["apoz", "mean-activation", "variance", "dormancy", "taylor", "snap", "taylor-output"],
)
def test_activations_at_the_consumers(
    criterion: object, observed: dict[Axis, Window], expected: list[float]
) -> None:
    score = criterion.score  # type: ignore[attr-defined]
    assert score(only_group(MLP), {}, observed).tolist() == pytest.approx(expected, abs=1e-8)
    assert score(only_group(MLP), {}, {}) is None


@pytest.mark.parametrize(
    ("criterion", "field"), [(snip(), "saliency"), (taylor_weight(), "saliency_square")]
)
def test_sensitivity_of_the_weights_that_make_a_unit(criterion: object, field: str) -> None:
    score, held = criterion.score, weights(MLP, analyze(MLP))  # type: ignore[attr-defined]
    observed = seen(**{field: [4, 1, 0, 2]})
    assert score(only_group(MLP), held, observed).tolist() == [2, 0.5, 0, 1]
    assert score(only_group(MLP), held, {}) is None


def test_utility_weighs_how_a_unit_moves_by_what_reads_and_makes_it() -> None:
    network = model(
        """(float[N, 2] x) => (float[N, 1] y) <float[2, 4] w, float[4, 1] v>
        { h = MatMul(x, w) a = Relu(h) y = MatMul(a, v) }""",
        w=W,
        v=np.array([[1], [-2], [3], [7]], np.float32),
    )
    observed = seen(total=[0, 0, 0, 10], square=[90, 40, 0, 10])
    held = weights(network, analyze(network))
    found = utility().score(only_group(network), held, observed)
    assert found is not None
    assert found.tolist() == pytest.approx([3 * 1 / 3, 2 * 2 / 3, 0, 0], abs=1e-9)


def test_random_scores_repeat_by_seed_and_differ_by_group() -> None:
    group = only_group(MLP)
    first = random(seed=1).score(group, {}, {})
    again = random(seed=1).score(group, {}, {})
    other = random(seed=2).score(group, {}, {})
    assert first is not None
    assert again is not None
    assert other is not None
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", IMPORTANCES)
def test_every_importance_asks_for_what_it_uses_and_changes_nothing(name: str) -> None:
    criterion = importance(name, seed=3)
    wanted = {
        Observable.ACTIVE: {"active": [1.0, 2, 3, 4]},
        Observable.ABSOLUTE: {"absolute": [1.0, 2, 3, 4]},
        Observable.MEAN: {"total": [1.0, 2, 3, 4]},
        Observable.VARIANCE: {"square": [9.0, 9, 9, 9]},
        Observable.GATE: {"gate": [1.0, 2, 3, 4], "gate_square": [1.0, 2, 3, 4]},
        Observable.SALIENCY: {"saliency": [1.0, 2, 3, 4], "saliency_square": [1.0, 2, 3, 4]},
    }
    fields = {k: v for each in criterion.requires for k, v in wanted[each].items()}
    network = CONV if name == "scale" else MLP
    group, held = only_group(network), weights(network, analyze(network))
    before = {axis: weight.array.copy() for axis, weight in held.items()}
    found = criterion.score(group, held, seen(**fields) if fields else {})
    assert found is not None
    assert found.shape == (group.size,)
    assert np.isfinite(found).all()
    assert all(np.array_equal(before[axis], weight.array) for axis, weight in held.items())


def test_an_unknown_importance_is_refused() -> None:
    with pytest.raises(ConfigError, match="magic: expected one of magnitude"):
        importance("magic")


def test_weights_tell_what_makes_a_unit_from_what_reads_it() -> None:
    held = weights(RESIDUAL, analyze(RESIDUAL))
    incoming = {str(axis): weight.incoming for axis, weight in held.items()}
    assert incoming == {"w[1]": True, "r[0]": False, "r[1]": True, "v[0]": False}


def test_directions_are_scored_by_their_own_weights() -> None:
    network = bidirectional()
    analysis = analyze(network)
    found = magnitude().score(analysis.group("w"), weights(network, analysis), {})
    w, r = array(network, "w"), array(network, "r")
    expected = []
    for direction in range(2):
        for unit in range(5):
            gates = np.arange(4) * 5 + unit
            parts = w[direction, gates], r[direction, gates], r[direction, :, unit]
            expected.append(np.sqrt(sum((part**2).sum() for part in parts)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
