from __future__ import annotations

import numpy as np
import pytest
from graphs import coupled, ended, frozen, group_members, model, rows, straight

from onnxprune.base import Reason
from onnxprune.graph.groups import analyze
from onnxprune.graph.traces import trace
from onnxprune.ops.trace import Kind, Trace

FRAME = """(float[N, 3] x) => (float[N, 2] y)
<float[3, 4] w, float[%s] c, float[4, 2] v> {
    h = MatMul(x, w)
    %s
    y = MatMul(a, v)
}"""


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum"])
def test_aligned_axes_are_coupled_one_to_one(op_type: str) -> None:
    network = model(FRAME % ("4", f"a = {op_type}(h, c)"))
    assert coupled(network, "h[1]", "a[1]") == straight(4)
    assert coupled(network, "c[0]", "a[1]") == straight(4)


def test_broadcasting_counts_from_the_last_axis() -> None:
    network = model("""(float[N, 3, 5, 5] x) => (float[N, 3, 5, 5] y) <float[3, 1, 1] c> {
        y = Mul(c, x)
    }""")
    assert coupled(network, "c[0]", "y[1]") == straight(3)
    assert coupled(network, "c[1]", "y[2]") == []


def test_an_axis_that_every_input_repeats_has_nothing_to_follow() -> None:
    network = model("""(float[4, 1] x) => (float[4, 5] y) <float[1, 5] c> {
        a = Relu(x)
        y = Add(a, c)
    }""")
    assert coupled(network, "c[1]", "y[1]") == straight(5)
    assert Reason.GRAPH_OUTPUT in frozen(network, "y[1]")


def test_where_couples_all_three_inputs() -> None:
    network = model(FRAME % ("4", "m = Greater(h, c) a = Where(m, h, c)"))
    for name in ("m[1]", "h[1]", "c[0]"):
        assert coupled(network, name, "a[1]") == straight(4)


def test_legacy_broadcasting_is_refused() -> None:
    network = model(
        """(float[4, 3] x) => (float[4, 3] y) <float[3] c> {
            y = Add<axis = 1, broadcast = 1>(x, c)
        }""",
        opset=6,
    )
    assert Reason.NO_RULE in frozen(network, "c[0]")


def test_a_residual_sum_ties_both_branches() -> None:
    network = model("""(float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] w, float[4, 4] u, float[4, 2] v> {
        h = MatMul(x, w)
        r = MatMul(h, u)
        a = Add(h, r)
        y = MatMul(a, v)
    }""")
    (group,) = group_members(network)
    assert set(group) == {"w[1]", "h[1]", "u[0]", "u[1]", "r[1]", "a[1]", "v[0]"}
    assert all(index == rows(4) for index in group.values())


def traced(body: str, shape: str, **constants: object) -> Trace:
    network = model(FRAME % (shape, body), **constants)
    analysis = analyze(network)
    found = trace(network, analysis, analysis.groups[0])
    assert found is not None
    return found


def test_constants_extend_and_scale_the_rows_of_a_trace() -> None:
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    c = np.array([1, 2, -3, 4], np.float32)
    added = traced("a = Add(c, h)", "4", w=w, c=c)
    np.testing.assert_array_equal(added.rows, np.column_stack([w.T, c]))
    less = traced("a = Sub(h, c)", "4", w=w, c=c)
    np.testing.assert_array_equal(less.rows, np.column_stack([w.T, -c]))
    scaled = traced("a = Mul(h, c)", "4", w=w, c=c)
    np.testing.assert_array_equal(scaled.rows, w.T * c[:, None])
    divided = traced("a = Div(h, c)", "4", w=w, c=c)
    np.testing.assert_allclose(divided.rows, w.T / c[:, None], rtol=1e-6, atol=0)
    assert {added.kind, less.kind, scaled.kind, divided.kind} == {Kind.LINEAR}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("a = Relu(h)", Kind.HOMOGENEOUS),
        ("a = Tanh(h)", Kind.ODD),
        ("a = Sigmoid(h)", Kind.SIGMOID),
        ("a = Neg(h)", Kind.LINEAR),
        ("r = Relu(h) a = Neg(r)", Kind.EQUAL),
        ("a = Softplus(h)", Kind.SMOOTH),
        ("a = LeakyRelu<alpha = 0.5>(h)", Kind.HOMOGENEOUS),
        ("a = LeakyRelu<alpha = 2.0>(h)", Kind.EQUAL),
        ("r = Relu(h) a = Tanh(r)", Kind.EQUAL),
        ("t = Tanh(h) a = Mul(t, c)", Kind.EQUAL),
        ("r = Relu(h) a = LeakyRelu(r)", Kind.HOMOGENEOUS),
        ("i = Identity(h) a = Tanh(i)", Kind.ODD),
    ],
)
def test_activations_say_what_remains_known(body: str, kind: Kind) -> None:
    assert traced(body, "4").kind is kind


def test_a_slope_per_unit_is_part_of_what_makes_units_equal() -> None:
    w = np.ones((3, 4), np.float32)
    c = np.array([0.1, 0.1, 0.5, 0.1], np.float32)
    found = traced("a = PRelu(h, c)", "4", w=w, c=c)
    assert found.kind is Kind.EQUAL
    np.testing.assert_array_equal(found.rows[0], found.rows[1])
    assert (found.rows[0] != found.rows[2]).any()


def test_a_product_of_two_values_of_a_unit_keeps_only_equality() -> None:
    w = np.ones((3, 4), np.float32)
    found = traced("s = Sigmoid(h) a = Mul(h, s)", "4", w=w)
    assert found.kind is Kind.EQUAL
    np.testing.assert_array_equal(found.rows[0], found.rows[1])


@pytest.mark.parametrize("op", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bitwise_operators_couple_aligned_axes(op: str) -> None:
    network = model(
        f"(int64[N, 3] x) => (int64[N, 3] y) {{ y = {op}(x, mask) }}", opset=18, mask=[1, 2, 3]
    )
    assert coupled(network, "mask[0]", "y[1]") == straight(3)


def test_cast_like_reads_only_the_type_of_its_second_input() -> None:
    network = model("""(float[N, 3] x, double[2, 7] like) => (double[N, 3] y) {
        y = CastLike(x, like)
    }""")
    assert coupled(network, "x[1]", "y[1]") == straight(3)
    assert "like[1]" in ended(network)


def test_slopes_of_opset_6_are_not_guessed() -> None:
    network = model(
        "(float[N, 3, 3] x) => (float[N, 3, 3] y) <float[3] s> { y = PRelu(x, s) }", opset=6
    )
    assert Reason.NO_RULE in frozen(network, "s[0]")


def test_the_mask_of_an_old_dropout_has_sizes() -> None:
    network = model("(float[N, 3] x) => (float[N, 3] y) { y, mask = Dropout(x) }", opset=9)
    assert coupled(network, "x[1]", "mask[1]") == straight(3)
