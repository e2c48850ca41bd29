"""ONNX's shape inference without weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from graphs import model

from onnxprune.inference import Skeleton


def test_large_constants_are_known_by_type_and_sizes_only() -> None:
    network = model(
        "(float[N, 6] x) => (float[N, K] y) <float[6, 4000] w> { h = MatMul(x, w) y = Relu(h) }"
    )
    found = Skeleton(network).infer()
    assert found["w"] == (ir.DataType.FLOAT, (6, 4000))
    assert found["h"] == (ir.DataType.FLOAT, (None, 4000))


def test_numbers_for_open_sizes_reach_the_outputs() -> None:
    network = model("(float[N, 6] x) => (float[N, 6] y) { y = Relu(x) }")
    skeleton = Skeleton(network)
    assert skeleton.infer({"x": (5, None)})["y"].sizes == (5, 6)
    assert skeleton.infer()["y"].sizes == (None, 6)


def test_readers_of_a_known_value_see_its_numbers() -> None:
    network = model(
        "(float[N, 6] x, int64[2] given) => (float[A, B] y) { s = Neg(given) y = Reshape(x, s) }"
    )
    skeleton = Skeleton(network)
    assert skeleton.infer()["y"].sizes == (None, None)
    found = skeleton.infer({"x": (4, None)}, {"s": np.array([3, 8], np.int64)})
    assert found["y"].sizes == (3, 8)
    assert found["s"] == (ir.DataType.INT64, (2,))
    assert set(found) == {"x", "given", "s", "y"}


def test_a_known_value_has_its_sizes_where_the_file_claims_none() -> None:
    network = model("(float[N, 6] x) => (float[A, B] y) { s = Shape(x) y = Reshape(x, s) }")
    claimed = network.graph[0].outputs[0]
    claimed.type, claimed.shape = ir.TensorType(ir.DataType.INT64), None
    found = Skeleton(network).infer(known={"s": np.array([4, 6], np.int64)})
    assert found["s"] == (ir.DataType.INT64, (2,))


def test_what_the_file_claims_inside_is_not_believed() -> None:
    network = model("(float[2, 6] x) => (float[9, 9] y) { h = Relu(x) y = Relu(h) }")
    network.graph[0].outputs[0].shape = ir.Shape([7, 7])
    found = Skeleton(network).infer()
    assert (found["h"].sizes, found["y"].sizes) == ((2, 6), (2, 6))
