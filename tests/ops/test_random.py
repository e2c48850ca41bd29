"""Which nodes may give something else each time."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import array, model

from onnxprune.model import set_constant
from onnxprune.ops.random import draws
from onnxprune.runtime.session import Runner
from onnxprune.runtime.verify import compare, is_random, stilled


@pytest.mark.parametrize(
    ("text", "random"),
    [
        ("y = RandomNormalLike (x)", True),
        ("y = Bernoulli (x)", True),
        ("y = Dropout (x, ratio)", False),
        ("y, m = Dropout (x, ratio, on)", True),
        ("y, m = Dropout (x, ratio, off)", False),
        ("o = Cast <to = 9> (x)  y, m = Dropout (x, ratio, o)", True),
        ("y = Relu (x)", False),
    ],
)
def test_only_what_draws_now_counts(text: str, random: bool) -> None:
    source = model(
        "(float[N, 3] x) => (float[N, 3] y) "
        "<float ratio = {0.5}, bool on = {1}, bool off = {0}> { " + text + " }"
    )
    assert any(map(draws, source.graph)) == random


X = np.array([[0.25, 0.75, 0.5], [0.125, 1.0, 0.875]], np.float32)


@pytest.mark.ort
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("y = RandomNormalLike<mean = 3.0, scale = 2.0>(x)", np.full((2, 3), 4.0)),
        ("y = RandomUniformLike<low = -1.0, high = 3.0>(x)", np.full((2, 3), 2.0)),
        ("y = RandomNormal<shape = [2, 3]>()", np.full((2, 3), 0.5)),
        ("y = RandomUniform<shape = [2, 3]>()", np.full((2, 3), 0.75)),
        ("y = Bernoulli(x)", X),
        ("b = Bernoulli<dtype = 9>(x)  y = Cast<to = 1>(b)", X > 0.5),
        ("m = Multinomial<sample_size = 3>(x)  y = Cast<to = 1>(m)", [[1] * 3] * 2),
        ("y, m = Dropout(x, ratio, on)", X),
        ("z, m = Dropout(x, ratio, on)  y = Cast<to = 1>(m)", np.ones((2, 3))),
        ("r = RandomNormalLike<dtype = 11>(x)  y = Cast<to = 1>(r)", np.full((2, 3), 0.5)),
    ],
)
def test_stilled_models_have_typical_numbers_in_the_place_of_random_ones(
    text: str, says: np.ndarray
) -> None:
    source = model(
        "(float[N, 3] x) => (float[N, 3] y) <float ratio = {0.5}, bool on = {1}> { " + text + " }"
    )
    assert is_random(source)
    still = stilled(source)
    assert not is_random(still)
    (value,) = still.graph.outputs
    assert (value.name, is_random(source)) == ("y", True)
    found = Runner(still, optimize=False).run({"x": X})["y"]
    np.testing.assert_allclose(found, says, rtol=1e-6, atol=0.0)


def test_models_that_draw_nothing_are_left_as_they_are() -> None:
    source = model("(float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }")
    assert stilled(source) is source


@pytest.mark.ort
def test_draws_inside_bodies_are_stilled() -> None:
    source = model(
        """(float[N, 3] x, bool c) => (float[N, 3] y) {
        y = If (c) <
            then_branch = one () => (float[N, 3] a) { a = RandomNormalLike(x) },
            else_branch = two () => (float[N, 3] b) { b = Identity(x) }> }"""
    )
    assert is_random(source)
    runner = Runner(stilled(source), optimize=False)
    for c, expected in ((True, np.full_like(X, 0.5)), (False, X)):
        np.testing.assert_array_equal(runner.run({"x": X, "c": np.array(c)})["y"], expected)


@pytest.mark.ort
def test_models_that_draw_are_compared_by_everything_else() -> None:
    text = """(float[N, 3] x) => (float[N, 2] y) <float[3, 2] w> {
        r = RandomNormalLike(x)  s = Mul(x, r)  y = MatMul(s, w) }"""
    source = model(text)
    assert compare(source, source.clone(), {"x": X}, tolerance=1e-6).holds
    other = source.clone()
    set_constant(other.graph.initializers["w"], -array(source, "w"))
    assert not compare(source, other, {"x": X}, tolerance=1e-2).holds
