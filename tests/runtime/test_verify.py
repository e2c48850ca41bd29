from __future__ import annotations

import numpy as np
import pytest
from graphs import array, feeds, model

from onnxprune.errors import ModelError
from onnxprune.runtime.verify import agreement, compare

TEXT = "(float[N, 3] x) => (float[N, 2] y) <float[3, 2] w> { y = MatMul(x, w) }"


def test_equal_outputs_agree_without_error() -> None:
    y = {"y": np.array([1.0, -2.0])}
    found = agreement(y, {"y": y["y"].copy()}, tolerance=0.0)
    assert (found.error, found.relative) == (0.0, 0.0)
    assert found.holds


def test_the_error_is_relative_to_the_largest_magnitude() -> None:
    found = agreement({"y": np.array([1.0, -4.0])}, {"y": np.array([1.2, -4.0])}, tolerance=0.05)
    assert found.error == pytest.approx(0.2, rel=1e-12)
    assert found.relative == pytest.approx(0.05, rel=1e-12)


def test_the_worst_output_counts() -> None:
    expected = {"big": np.array([1000.0]), "small": np.array([0.1])}
    actual = {"big": np.array([1001.0]), "small": np.array([0.2])}
    found = agreement(expected, actual, tolerance=0.5)
    assert found.error == pytest.approx(1.0, rel=1e-12)
    assert found.relative == pytest.approx(1.0, rel=1e-12)
    assert not found.holds


@pytest.mark.parametrize(
    "other",
    [{}, {"y": np.zeros((2, 1))}, {"y": np.array([np.nan, 0.0])}, {"y": np.array([np.inf, 0.0])}],
    ids=["absent", "shape", "nan", "inf"],
)
def test_what_cannot_be_compared_is_infinitely_far(other: dict[str, np.ndarray]) -> None:
    found = agreement({"y": np.zeros(2)}, other, tolerance=1.0)
    assert found.relative == float("inf")
    assert not found.holds


def test_nan_and_inf_may_stand_in_the_same_places() -> None:
    y = np.array([np.nan, np.inf, -np.inf, 1.0])
    assert agreement({"y": y}, {"y": y.copy()}, tolerance=0.0).holds
    assert not agreement({"y": y}, {"y": y[[1, 0, 2, 3]]}, tolerance=1.0).holds
    assert not agreement({"y": y}, {"y": y[[0, 2, 1, 3]]}, tolerance=1.0).holds
    nothing = np.full(2, np.nan)
    assert agreement({"y": nothing}, {"y": nothing.copy()}, tolerance=0.0).holds


def test_labels_are_not_compared_beside_real_numbers() -> None:
    y = np.array([0.5])
    one, other = ({"label": np.array([label]), "y": y} for label in (1, 2))
    assert agreement(one, other, tolerance=0.0).holds


def test_labels_alone_are_compared() -> None:
    labels = np.arange(8)
    assert agreement({"label": labels}, {"label": labels.copy()}, tolerance=0.0).holds
    found = agreement({"label": labels}, {"label": labels % 7}, tolerance=0.1)
    assert (found.relative, found.holds) == (0.125, False)
    assert not agreement({"label": labels}, {"label": labels[:1]}, tolerance=1.0).holds


def test_bytes_may_be_rounded_otherwise() -> None:
    y = np.array([0, 1, 255], np.uint8)
    assert agreement({"y": y}, {"y": np.array([1, 0, 254], np.uint8)}, tolerance=0.0).holds
    assert not agreement({"y": y}, {"y": np.array([2, 1, 255], np.uint8)}, tolerance=0.1).holds


@pytest.mark.ort
def test_compare_runs_both_models() -> None:
    one, same, other = model(TEXT), model(TEXT), model(TEXT, seed=1)
    data = feeds(one)
    assert compare(one, same, data, tolerance=0.0).holds
    found = compare(one, other, data, tolerance=1e-4)
    expected = np.abs(data["x"] @ (array(one, "w") - array(other, "w"))).max()
    assert found.error == pytest.approx(expected, rel=1e-5)
    assert not found.holds


@pytest.mark.ort
def test_a_model_that_does_not_run_is_named() -> None:
    broken = model(TEXT.replace("float[3, 2] w", "float[4, 2] w"))
    with pytest.raises(ModelError, match="the runtime refuses the model"):
        compare(model(TEXT), broken, feeds(broken), tolerance=1e-4)


def test_saturated_outputs_are_compared_before_their_sigmoid() -> None:
    text = """(float[N, 3] x) => (float[N, 2] p) <float[3, 2] w, float[2] b>
    { h = MatMul(x, w) z = Add(h, b) p = Sigmoid(z) }"""
    low, lower = (model(text, b=np.full(2, b, np.float32)) for b in (-60.0, -50.0))
    assert compare(low, low, feeds(low)).error == 0.0
    found = compare(low, lower, feeds(low))
    assert not found.holds
    assert found.error == pytest.approx(10, rel=1e-5)


def test_two_outputs_of_one_sigmoid_input_keep_their_names() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] p, float[N, 2] q) <float[3, 2] w>
        { z = MatMul(x, w) p = Sigmoid(z) q = Sigmoid(z) }"""
    )
    found = compare(network, network, feeds(network))
    assert (found.error, found.holds) == (0.0, True)
