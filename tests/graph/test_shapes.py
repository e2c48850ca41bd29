from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import model

from onnxprune.base import Axis
from onnxprune.errors import ConfigError
from onnxprune.graph.shapes import (
    dtypes,
    infer,
    parse_input_shape,
    settle,
    unresolved,
    with_input_shapes,
)
from onnxprune.ops.registry import Shapes

FLATTENED = """(float[%s, 3, 4, 4] x) => (float[N, 2] y) <float[5, 3, 1, 1] w, float[80, 2] v> {
    h = Conv(x, w)
    s = Shape(h)
    n = Gather(s, zero)
    u = Unsqueeze(n, axes)
    t = Concat<axis = 0>(u, rest)
    f = Reshape(h, t)
    y = MatMul(f, v)
}"""


@pytest.mark.parametrize("batch", ["N", "7"])
def test_settle_finds_the_size_behind_a_computed_reshape(batch: str) -> None:
    network = model(FLATTENED % batch, zero=0, axes=[0], rest=[-1])
    shapes, known = settle(network)
    assert shapes["h"] == (None if batch == "N" else 7, 5, 4, 4)
    assert shapes["f"][1] == 80
    assert ("t" in known) is (batch == "7")


def test_inference_alone_leaves_that_size_open() -> None:
    network = model(FLATTENED % "N", zero=0, axes=[0], rest=[-1])
    assert None in infer(network)["f"]


def test_arithmetic_on_static_sizes_is_known() -> None:
    network = model(
        """(float[N, 6] x) => (float[N, 3] y) {
            s = Shape(x)
            c = Gather(s, one)
            e = Div(c, two)
            y = Slice(x, zero, e, one)
        }""",
        one=[1],
        two=[2],
        zero=[0],
    )
    shapes, known = settle(network)
    np.testing.assert_array_equal(known["e"], [3])
    assert shapes["y"] == (None, 3)


def test_sizes_of_one_name_are_equal_and_stay_dynamic() -> None:
    network = model("(float[B, T, 4] x, float[B, T, 4] z) => (float[B, T, 4] y) { y = Add(x, z) }")
    assert settle(network)[0]["y"] == (None, None, 4)


def test_claims_of_the_file_about_its_inside_are_not_trusted() -> None:
    network = model("(float[N, 4] x) => (float[N, 4] y) { h = Relu(x) y = Relu(h) }")
    network.graph.node(0).outputs[0].shape = ir.Shape([9, 9])
    assert settle(network)[0]["h"] == (None, 4)


def test_unknown_ranks_are_unresolved() -> None:
    network = model("""(float[N, 4] x, int64[R] t) => (float[A, B] y) {
        h = Reshape(x, t)
        y = Flatten(h)
    }""")
    assert "h" in unresolved(network, infer(network))


def test_input_shapes_can_be_given() -> None:
    network = model("(float[N, C, H, W] x) => (float[N, C, H, W] y) { y = Relu(x) }")
    given = with_input_shapes(network, {"x": (1, 3, 8, 8)})
    assert settle(given)[0]["y"] == (1, 3, 8, 8)
    assert settle(network)[0]["y"] == (None,) * 4


def test_a_size_that_an_input_shape_cannot_have_is_refused() -> None:
    network = model("(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    with pytest.raises(ConfigError, match="no such input; the model has x"):
        with_input_shapes(network, {"z": (1, 4)})
    with pytest.raises(ConfigError, match="3 sizes, the model has"):
        with_input_shapes(network, {"x": (1, 4, 4)})


def test_an_input_shape_is_parsed_from_its_last_colon() -> None:
    assert parse_input_shape("serving:0:1,3,8") == ("serving:0", (1, 3, 8))
    with pytest.raises(ConfigError, match="expected name:1,3,224,224"):
        parse_input_shape("x=1,2")


def test_dtypes_are_inferred() -> None:
    network = model("(float[N, 4] x) => (int64[N] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }")
    assert str(dtypes(network)["y"]) == "INT64"


def test_heights_that_the_model_does_not_take_are_not_believed() -> None:
    """Concat asks for a height of 1 after the pooling: 48 and 64 give it, 128 does not."""
    network = model(
        """(float[N, 3, H, 8] x) => (float[N, 2, 1, 8] y) <float[2, 6, 1, 1] w> {
            p = AveragePool <kernel_shape = [48, 1], strides = [48, 1]> (x)
            m = ReduceMean <axes = [2]> (x)
            c = Concat <axis = 1> (p, m)
            y = Conv(c, w)
        }"""
    )
    shapes, _ = settle(network)
    assert shapes["c"] == (None, 6, 1, 8)
    assert shapes["x"] == (None, 3, None, 8)


def test_sizes_without_a_name_are_not_all_the_same() -> None:
    """A batch is small, an image is large enough for what pools it."""
    network = model("""(float[?, 3, ?, ?] x) => (float[N, 2] y)
    <float[5, 3, 1, 1] w, float[5, 2] v> {
        h = Conv(x, w)
        p = MaxPool<kernel_shape = [16, 16], strides = [16, 16]>(h)
        g = GlobalAveragePool(p)
        f = Flatten(g)
        y = MatMul(f, v)
    }""")
    shapes, _ = settle(network)
    assert shapes["p"] == (None, 5, None, None)
    assert isinstance(shapes, Shapes)
    assert not shapes.agree(Axis("x", 0), Axis("x", 2))
