from __future__ import annotations

import numpy as np
import pytest
from graphs import coupled, model, straight, view

from onnxprune.base import Axis
from onnxprune.graph.groups import analyze
from onnxprune.graph.traces import trace
from onnxprune.ops.edit import Absorber
from onnxprune.ops.registry import ABSORBS, MACS
from onnxprune.ops.trace import Kind

GEMM = """(float[N, 4] x) => (float[N, 2] y) <float[%s] w, float[%s] c, float[3, 2] v> {
    h = Gemm<%s>(x, w, c)
    y = MatMul(h, v)
}"""


@pytest.mark.parametrize(
    ("shape", "inner", "outer", "attributes"),
    [("4, 3", "w[0]", "w[1]", "transB = 0"), ("3, 4", "w[1]", "w[0]", "transB = 1")],
)
def test_gemm_couples_rows_and_columns(shape: str, inner: str, outer: str, attributes: str) -> None:
    network = model(GEMM % (shape, "3", attributes))
    assert coupled(network, "x[1]", inner) == straight(4)
    assert coupled(network, "h[1]", outer) == straight(3)
    assert coupled(network, "h[1]", "c[0]") == straight(3)


def test_gemm_with_a_transposed_couples_its_columns_with_the_output() -> None:
    network = model("""(float[4, 5] x) => (float[5, 3] y) <float[4, 3] w> {
        a = Relu(x)
        y = Gemm<transA = 1>(a, w)
    }""")
    assert coupled(network, "a[0]", "w[0]") == straight(4)
    assert coupled(network, "a[1]", "y[0]") == straight(5)


def test_gemm_couples_the_last_axis_of_a_bias_row() -> None:
    network = model(GEMM % ("4, 3", "1, 3", "alpha = 2.0"))
    assert coupled(network, "c[1]", "h[1]") == straight(3)
    assert coupled(network, "c[0]", "h[0]") == []


@pytest.mark.parametrize("shape", ["1", "1, 1", ""])
def test_gemm_couples_nothing_with_a_scalar_bias(shape: str) -> None:
    network = model(GEMM % ("4, 3", shape, "beta = 0.5"))
    group = analyze(network).group("w")
    assert {str(member.axis) for member in group.members} == {"w[1]", "h[1]", "v[0]"}


def test_matmul_couples_batch_axes_by_broadcasting() -> None:
    network = model("""(float[2, 5, 4] x) => (float[2, 5, 3] y) <float[2, 4, 3] w> {
        y = MatMul(x, w)
    }""")
    assert coupled(network, "x[0]", "y[0]") == straight(2)
    assert coupled(network, "w[0]", "y[0]") == straight(2)
    assert coupled(network, "x[1]", "y[1]") == straight(5)
    assert coupled(network, "x[2]", "w[1]") == straight(4)
    assert coupled(network, "w[2]", "y[2]") == straight(3)


def test_matmul_with_vectors_has_no_rows_or_no_columns() -> None:
    left = model("(float[4] x) => (float[3] y) <float[4, 3] w> { y = MatMul(x, w) }")
    assert coupled(left, "x[0]", "w[0]") == straight(4)
    assert coupled(left, "w[1]", "y[0]") == straight(3)
    right = model("(float[5, 4] x) => (float[5] y) <float[4] w> { y = MatMul(x, w) }")
    assert coupled(right, "x[1]", "w[0]") == straight(4)
    assert coupled(right, "x[0]", "y[0]") == straight(5)


def test_matmul_of_a_shared_matrix_over_a_batch_couples_it_once() -> None:
    network = model("""(float[N, 5, 4] x) => (float[N, 5, 3] y) <float[4, 3] w> {
        y = MatMul(x, w)
    }""")
    assert coupled(network, "w[1]", "y[2]") == straight(3)
    assert coupled(network, "x[1]", "y[1]") == straight(5)


@pytest.mark.parametrize(
    ("attributes", "shape", "expected"),
    [
        ("transB = 0", "4, 3", Absorber(slot=1, in_axis=0, out_axis=1)),
        ("transB = 1", "3, 4", Absorber(slot=1, in_axis=1, out_axis=0)),
    ],
)
def test_gemm_absorbs_in_the_axis_that_meets_the_data(
    attributes: str, shape: str, expected: Absorber
) -> None:
    node = view(model(GEMM % (shape, "3", attributes)), "Gemm")
    rule = ABSORBS.find(node.node, node.opset)
    assert rule is not None
    assert rule(node, 0) == expected
    assert rule(node, 1) is None


def test_matmul_of_two_computed_values_absorbs_nothing() -> None:
    network = model("""(float[4, 4] x) => (float[4, 4] y) {
        a = Relu(x)
        y = MatMul(a, a)
    }""")
    node = view(network, "MatMul")
    rule = ABSORBS.find(node.node, node.opset)
    assert rule is not None
    assert rule(node, 0) is None


def test_macs_are_rows_times_inner_times_columns() -> None:
    network = model(GEMM % ("4, 3", "3", "alpha = 1.0"))
    gemm, matmul = view(network, "Gemm"), view(network, "MatMul")
    assert MACS.find(gemm.node, 17)(gemm) == 12  # type: ignore[misc]
    assert MACS.find(matmul.node, 17)(matmul) == 6  # type: ignore[misc]


def test_a_gemm_traces_its_columns_scaled_by_alpha_and_its_bias_by_beta() -> None:
    w = np.arange(12, dtype=np.float32).reshape(4, 3)
    c = np.array([1, 2, 3], np.float32)
    network = model(GEMM % ("4, 3", "3", "alpha = 2.0, beta = 3.0"), w=w, c=c)
    analysis = analyze(network)
    found = trace(network, analysis, analysis.group("w"))
    assert found is not None
    assert found.kind is Kind.LINEAR
    assert found.inputs == (Axis("x", 1),)
    np.testing.assert_array_equal(found.rows, np.column_stack([2 * w.T, 3 * c]))


def test_a_gemm_with_a_shared_bias_other_than_zero_traces_nothing() -> None:
    text = GEMM % ("4, 3", "1", "alpha = 1.0")
    for number, known in ((0.0, True), (0.5, False)):
        network = model(text, c=np.array([number], np.float32))
        analysis = analyze(network)
        assert (trace(network, analysis, analysis.group("w")) is not None) is known
