"""What each unit computes, as rows: the same numbers wherever the same function stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import array, feeds, model
from moments import normal, value_of

from onnxprune.base import Axis
from onnxprune.graph.groups import analyze
from onnxprune.graph.traces import trace
from onnxprune.ops.trace import Kind, Trace


def traced(network: ir.Model, name: str | None = None) -> Trace | None:
    """The trace of the group called `name`, of the only group by default."""
    analysis = analyze(network)
    group = analysis.groups[0] if name is None else analysis.group(name)
    assert name is not None or len(analysis.groups) == 1
    return trace(network, analysis, group)


def found(network: ir.Model, name: str | None = None) -> Trace:
    result = traced(network, name)
    assert result is not None
    return result


# --- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("trans", [0, 1])
def test_a_gemm_unit_is_its_column_and_its_bias(trans: int) -> None:
    shape = "4, 3" if trans else "3, 4"
    network = model(
        f"""(float[N, 3] x) => (float[N, 2] y) <float[{shape}] w, float[4] b, float[4, 2] v> {{
        h = Gemm <alpha = 0.5, beta = 2.0, transB = {trans}> (x, w, b)  y = MatMul(h, v) }}"""
    )
    w = array(network, "w") if trans else array(network, "w").T
    rows = np.column_stack([0.5 * w, 2 * array(network, "b")])
    result = found(network)
    np.testing.assert_allclose(result.rows, rows, rtol=1e-6)
    assert result.kind is Kind.LINEAR
    assert result.inputs == (Axis("x", 1),)


def test_a_convolution_unit_is_its_filter_and_its_bias() -> None:
    network = model(
        """(float[N, 2, 5, 5] x) => (float[N, 3, 1, 1] y)
        <float[4, 2, 3, 3] w, float[4] b, float[3, 4, 3, 3] v> {
        h = Conv(x, w, b)  y = Conv(h, v) }"""
    )
    rows = np.column_stack([array(network, "w").reshape(4, 18), array(network, "b")])
    result = found(network)
    np.testing.assert_allclose(result.rows, rows, rtol=1e-6)
    assert (result.kind, result.inputs) == (Kind.LINEAR, (Axis("x", 1),))


def test_batch_normalization_is_folded_into_the_rows() -> None:
    network = model(
        """(float[N, 2, 3, 3] x) => (float[N, 3, 1, 1] y)
        <float[4, 2, 1, 1] w, float[4] s, float[4] t, float[4] m, float[4] var,
         float[3, 4, 3, 3] v> {
        h = Conv(x, w)  n = BatchNormalization <epsilon = 0.01> (h, s, t, m, var)
        y = Conv(n, v) }"""
    )
    s, t, m, var = (array(network, name) for name in ("s", "t", "m", "var"))
    factor = s / np.sqrt(var + 0.01)
    rows = np.column_stack([array(network, "w").reshape(4, 2) * factor[:, None], t - m * factor])
    result = found(network)
    np.testing.assert_allclose(result.rows, rows, rtol=1e-5)
    assert result.kind is Kind.LINEAR


def test_constants_of_units_are_added_and_multiplied() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] w, float[1, 4] b, float[4] f, float[4] var_d, float[4, 2] v> {
        h = MatMul(x, w)  i = Add(b, h)  j = Mul(i, f)  k = Div(j, var_d)  l = Sub(k, b)
        y = MatMul(l, v) }"""
    )
    b, factor = array(network, "b")[0], array(network, "f") / array(network, "var_d")
    rows = np.column_stack([array(network, "w").T * factor[:, None], b * factor, -b])
    np.testing.assert_allclose(found(network).rows, rows, rtol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_a_residual_sum_puts_both_branches_side_by_side(relu: bool) -> None:
    end = "a = Relu(s)" if relu else "a = Identity(s)"
    network = model(
        f"""(float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] w, float[3, 4] u, float[4] b, float[4, 2] v> {{
        h = MatMul(x, w)  g = Gemm(x, u, b)  s = Add(h, g)  {end}  y = MatMul(a, v) }}"""
    )
    rows = np.column_stack([array(network, "w").T, array(network, "u").T, array(network, "b")])
    result = found(network)
    np.testing.assert_allclose(result.rows, rows, rtol=1e-6)
    assert result.kind is (Kind.HOMOGENEOUS if relu else Kind.LINEAR)
    assert result.inputs == (Axis("x", 1),)


def test_a_sum_behind_rectifiers_is_homogeneous_and_behind_tanh_only_equal() -> None:
    text = """(float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[3, 4] u, float[4, 2] v> {
        h = MatMul(x, w)  g = MatMul(x, u)  p = %s(h)  s = Add(p, g)  y = MatMul(s, v) }"""
    assert found(model(text % "Relu")).kind is Kind.HOMOGENEOUS
    assert found(model(text % "Tanh")).kind is Kind.EQUAL


def test_a_depthwise_unit_is_its_channel_and_its_kernel() -> None:
    network = model(
        """(float[N, 2, 4, 4] x) => (float[N, 1, 1, 1] y)
        <float[3, 2, 1, 1] w, float[3, 1, 3, 3] d, float[1, 3, 2, 2] v> {
        h = Conv(x, w)  g = Conv <group = 3> (h, d)  y = Conv(g, v) }"""
    )
    rows = np.column_stack([array(network, "w").reshape(3, 2), array(network, "d").reshape(3, 9)])
    result = found(network)
    np.testing.assert_allclose(result.rows, rows, rtol=1e-6)
    assert result.kind is Kind.EQUAL


def test_flatten_leaves_one_row_per_channel() -> None:
    network = model(
        """(float[N, 2, 4, 4] x) => (float[N, 2] y)
        <float[3, 2, 3, 3] w, float[3] b, float[3, 2] v> {
        c = Conv(x, w, b)  r = Relu(c)  p = MaxPool <kernel_shape = [2, 2]> (r)
        f = Flatten(p)  y = MatMul(f, v) }"""
    )
    result = found(network)
    assert result.rows.shape == (3, 19)
    assert result.kind is Kind.HOMOGENEOUS


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ("Relu", "Identity", Kind.HOMOGENEOUS),
        ("Identity", "Tanh", Kind.ODD),
        ("Tanh", "Tanh", Kind.ODD),
        ("Relu", "Tanh", Kind.EQUAL),  # tanh(-z) = -tanh(z), but relu(-z) is not -relu(z)
        ("Tanh", "Sigmoid", Kind.EQUAL),
        ("Identity", "Sigmoid", Kind.EQUAL),
    ],
)
def test_consumers_behind_different_activations_leave_what_holds_of_both(
    first: str, second: str, kind: Kind
) -> None:
    network = model(
        f"""(float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 2] v, float[4, 2] u> {{
        h = MatMul(x, w)  a = {first}(h)  t = {second}(h)  p = MatMul(a, v)  q = MatMul(t, u)
        y = Add(p, q) }}"""
    )
    assert found(network, "w").kind is kind


def test_nothing_is_claimed_behind_an_unknown_operator() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 2] v> {
        h = MatMul(x, w)  p = Pow(h, h)  y = MatMul(p, v) }"""
    )
    assert traced(network) is None


def test_nothing_is_claimed_of_a_bias_that_varies_by_position() -> None:
    network = model(
        """(float[N, 2, 3, 3] x) => (float[N, 1, 1, 1] y)
        <float[4, 2, 1, 1] w, float[1, 1, 3, 3] b, float[1, 4, 3, 3] v> {
        c = Conv(x, w)  h = Add(c, b)  y = Conv(h, v) }"""
    )
    assert traced(network) is None


# --- kinds -------------------------------------------------------------------------------------

KINDS = {
    "Identity(h)": Kind.LINEAR,
    "Neg(h)": Kind.LINEAR,
    "Relu(h)": Kind.HOMOGENEOUS,
    "Abs(h)": Kind.HOMOGENEOUS,
    "LeakyRelu <alpha = 0.2> (h)": Kind.HOMOGENEOUS,
    "LeakyRelu <alpha = 2.0> (h)": Kind.EQUAL,
    "Tanh(h)": Kind.ODD,
    "Sigmoid(h)": Kind.SIGMOID,
    "Elu(h)": Kind.SMOOTH,
    "Softplus(h)": Kind.SMOOTH,
    "HardSwish(h)": Kind.SMOOTH,
    "Gelu(h)": Kind.SMOOTH,
    "Mish(h)": Kind.SMOOTH,
    "ThresholdedRelu(h)": Kind.EQUAL,
    "Reciprocal(h)": Kind.EQUAL,
    "PRelu(h, slope)": Kind.HOMOGENEOUS,
    "PRelu(h, slopes)": Kind.EQUAL,
    "Mul(h, positive)": Kind.LINEAR,
    "Clip(h, low, high)": Kind.SMOOTH,
}


@pytest.mark.parametrize("call", KINDS)
def test_the_kind_follows_the_activation(call: str) -> None:
    network = model(
        f"""(float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] w, float[4] slopes, float[4, 2] v> {{
        h = MatMul(x, w)  a = {call}  y = MatMul(a, v) }}""",
        opset=20,
        slope=np.array([0.3], np.float32),
        positive=np.array([2.0], np.float32),
        low=np.array(-1, np.float32),
        high=np.array(1, np.float32),
    )
    assert found(network, "w").kind is KINDS[call]


CHAINS = {
    "r = Relu(h) a = Relu(r)": Kind.HOMOGENEOUS,
    "r = Tanh(h) a = Tanh(r)": Kind.EQUAL,
    "r = Relu(h) a = Add(r, b)": Kind.HOMOGENEOUS,
    "r = Tanh(h) a = Add(r, b)": Kind.EQUAL,
    "r = Relu(h) a = Mul(r, var_f)": Kind.HOMOGENEOUS,
    "r = Relu(h) a = Mul(r, b)": Kind.EQUAL,
    "r = Relu(h) a = Tanh(r)": Kind.EQUAL,
    "r = Neg(h) a = Sigmoid(r)": Kind.SIGMOID,
    "r = Sigmoid(h) a = Neg(r)": Kind.EQUAL,
    "r = Gelu(h) a = Gelu(r)": Kind.EQUAL,
    "r = Neg(h) a = Softplus(r)": Kind.SMOOTH,
}


@pytest.mark.parametrize("chain", CHAINS)
def test_the_kind_follows_the_chain(chain: str) -> None:
    network = model(
        f"""(float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] w, float[4] b, float[4] var_f, float[4, 2] v> {{
        h = MatMul(x, w)  {chain}  y = MatMul(a, v) }}""",
        opset=20,
        b=np.array([-1, 1, 2, -3], np.float32),
    )
    assert found(network, "w").kind is CHAINS[chain]


POOLS = {
    "MaxPool <kernel_shape = [2, 2]>": {
        "Identity": Kind.HOMOGENEOUS,
        "Relu": Kind.HOMOGENEOUS,
        "Tanh": Kind.EQUAL,
        "Sigmoid": Kind.EQUAL,
    },
    "AveragePool <kernel_shape = [2, 2]>": {
        "Identity": Kind.LINEAR,
        "Relu": Kind.HOMOGENEOUS,
        "Tanh": Kind.ODD,
        "Sigmoid": Kind.SIGMOID,
    },
    "AveragePool <kernel_shape = [2, 2], pads = [1, 1, 0, 0], count_include_pad = 1>": {
        "Tanh": Kind.ODD,
        "Sigmoid": Kind.EQUAL,
    },
    "GlobalAveragePool": {"Sigmoid": Kind.SIGMOID},
    "GlobalMaxPool": {"Identity": Kind.HOMOGENEOUS},
    "ReduceMean <axes = [2, 3]>": {"Tanh": Kind.ODD},
}


@pytest.mark.parametrize(
    ("pool", "activation"), [(pool, op) for pool, kinds in POOLS.items() for op in kinds]
)
def test_pooling_keeps_what_it_can(pool: str, activation: str) -> None:
    network = model(
        f"""(float[N, 1, 4, 4] x) => (float[N, 2, 1, 1] y)
        <float[3, 1, 1, 1] w, float[2, 3, 1, 1] v> {{
        h = Conv(x, w)  a = {activation}(h)  p = {pool}(a)  y = Conv(p, v) }}"""
    )
    assert found(network, "w").kind is POOLS[pool][activation]


@pytest.mark.ort
@pytest.mark.parametrize(
    "call",
    [
        "Atan(h)", "Asinh(h)", "Celu <alpha = 0.3> (h)", "Cos(h)", "Elu <alpha = 2.5> (h)",
        "Erf(h)", "Gelu(h)", 'Gelu <approximate = "tanh"> (h)', "HardSigmoid <alpha = 0.7> (h)",
        "HardSwish(h)", "Mish(h)", "Selu(h)", "Sin(h)", "Sigmoid(h)", "Softplus(h)", "Softsign(h)",
        "Tanh(h)",
    ],
)  # fmt: skip
def test_no_activation_is_steeper_than_said(call: str) -> None:
    network = model(
        f"""(float[N, 1] x) => (float[N, 2] y) <float[1, 3] w, float[3, 2] v> {{
        h = MatMul(x, w)  a = {call}  y = MatMul(a, v) }}""",
        opset=20,
        w=np.ones((1, 3), np.float32),
    )
    grid = np.linspace(-8, 8, 8001, dtype=np.float32)[:, None]
    values = value_of(network, "a", {"x": grid})[:, 0].astype(np.float64)
    steepest = np.abs(np.diff(values) / np.diff(grid[:, 0].astype(np.float64))).max()
    slope = found(network, "w").slope
    assert 0.98 * slope <= steepest <= slope * (1 + 2e-3)


# --- what the rows promise holds ---------------------------------------------------------------

PROMISES: dict[str, Any] = {
    "gemm": "h = Gemm(x, w, b)",
    "bias": "m = MatMul(x, w)  h = Add(m, b)",
    "residual": "m = MatMul(x, w)  g = Gemm(x, u, b)  h = Add(m, g)",
}


@pytest.mark.ort
@pytest.mark.parametrize("producer", PROMISES)
@pytest.mark.parametrize(
    ("activation", "scale", "offset"),
    [("Identity", -1.7, 0.0), ("Relu", 2.5, 0.0), ("Tanh", -1.0, 0.0), ("Sigmoid", -1.0, 1.0)],
)
def test_parallel_rows_have_proportional_values(
    producer: str, activation: str, scale: float, offset: float
) -> None:
    arrays = {"w": normal(3, 4), "u": normal(3, 4, seed=1), "b": normal(4, seed=2)}
    for values in arrays.values():
        values[..., 1] = np.float32(scale) * values[..., 0]
    network = model(
        f"""(float[N, 3] x) => (float[N, 2] y) <float[4, 2] v> {{
        {PROMISES[producer]}  a = {activation}(h)  y = MatMul(a, v) }}""",
        **arrays,
    )
    rows = found(network, "w").rows
    np.testing.assert_allclose(rows[1], scale * rows[0], rtol=1e-6)
    values = value_of(network, "a", feeds(network, batch=20))
    np.testing.assert_allclose(values[:, 1], scale * values[:, 0] + offset, rtol=1e-5, atol=1e-6)
