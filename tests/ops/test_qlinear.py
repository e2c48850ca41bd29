from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checks import agreeing, changed
from graphs import frozen, group_members, members, model
from strategies import random_plan

from onnxprune.base import Plan, Reason
from onnxprune.graph.cost import macs
from onnxprune.graph.groups import analyze
from onnxprune.graph.shapes import settle


def integers(*shape: int, seed: int = 0, low: int = -100) -> np.ndarray:
    """Weights of 8 bits: unsigned where `low` is 0."""
    dtype = np.int8 if low < 0 else np.uint8
    return np.random.default_rng(seed).integers(low, low + 200, size=shape).astype(dtype)


def quantized(text: str, **constants: Any) -> ir.Model:
    """A network with scale 0.1 and zero point 128 at hand for every value inside."""
    scale, zero = np.float32(0.1), np.uint8(128)
    return model(text, vendor=True, scale=scale, zero=zero, **constants)


GEMM = """(float[N, 4] x) => (float[N, 3] y) {{
    q = QuantizeLinear(x, scale, zero)
    h = com.microsoft.QGemm<transB = 1>(q, scale, zero, w, w_scale, w_zero, w_bias, scale, zero)
    {between}
    z = com.microsoft.QGemm(r, scale, zero, v, v_scale, w_one, , scale, zero)
    y = DequantizeLinear(z, scale, zero)
}}"""
BETWEEN = [
    "r = com.microsoft.QLinearLeakyRelu<alpha = 0.1>(h, scale, zero, scale, zero)",
    "r = com.microsoft.QLinearSigmoid(h, scale, zero, scale, zero)",
    "r = com.microsoft.QLinearAdd(h, scale, zero, h, scale, zero, scale, zero)",
    "r = com.microsoft.QLinearMul(h, scale, zero, s, scale, zero, scale, zero)",
    "r = com.microsoft.QLinearSoftmax<axis = -1, opset = 13>(h, scale, zero, scale, zero)",
    "r = com.microsoft.QLinearWhere(c, h, scale, zero, s, scale, zero, scale, zero)",
    """f = com.microsoft.DequantizeLinear(h, scale, zero)
    t = Tanh(f)
    r = com.microsoft.QuantizeLinear(t, scale, zero)""",
]


def gemms(between: str) -> ir.Model:
    optional: dict[str, Any] = {}
    if " s, " in between:
        optional["s"] = integers(6, low=0, seed=3)
    if "(c, " in between:
        optional["c"] = np.array([True, False, True, True, False, True])
    return quantized(
        GEMM.format(between=between),
        w=integers(6, 4),
        w_scale=np.linspace(0.01, 0.02, 6, dtype=np.float32),
        w_zero=np.zeros(6, np.int8),
        w_bias=np.arange(6, dtype=np.int32) * 10,
        v=integers(6, 3, seed=1),
        v_scale=np.float32(0.01),
        w_one=np.int8(0),
        **optional,
    )


@pytest.mark.ort
@pytest.mark.parametrize("between", BETWEEN)
def test_units_between_two_quantized_products(between: str) -> None:
    network = gemms(between)
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [6]
    found = members(analysis.groups[0])
    alone = [[index] for index in range(6)]
    for name in ("w[0]", "w_scale[0]", "w_zero[0]", "w_bias[0]", "h[1]", "r[1]", "v[0]"):
        assert found[name] == alone
    assert analysis.groups[0].exact is ("Softmax" not in between)
    plan = Plan(keep={analysis.groups[0].name: np.array([1, 0, 1, 1, 0, 1], np.bool_)})
    smaller = agreeing(network, analysis, plan, tolerance=1e-6)
    assert changed(network, smaller)


def test_the_products_are_counted() -> None:
    network = gemms(BETWEEN[0])
    assert macs(network, analyze(network)) == 4 * 6 + 6 * 3


@pytest.mark.ort
@pytest.mark.parametrize("seed", [0, 1])
def test_images_concatenated_and_pooled(seed: int) -> None:
    network = quantized(
        """(float[N, 2, 6, 6] x) => (float[N, 2] y) {
            q = QuantizeLinear(x, scale, zero)
            a = QLinearConv(q, scale, zero, w, wide, none, scale, zero)
            b = QLinearConv(q, scale, zero, v, wide, none, scale, zero)
            c = com.microsoft.QLinearConcat<axis = 1>(
                scale, zero, a, scale, zero, b, scale, zero)
            p = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2]>(c, scale, zero, scale, zero)
            g = com.microsoft.QLinearGlobalAveragePool(p, scale, zero, scale, zero)
            f = Flatten(g)
            z = QLinearMatMul(f, scale, zero, u, wide, none, scale, zero)
            y = DequantizeLinear(z, scale, zero)
        }""",
        w=integers(4, 2, 3, 3, low=0),
        v=integers(3, 2, 3, 3, low=0, seed=1),
        u=integers(7, 2, low=0, seed=2),
        wide=np.float32(0.01),
        none=np.uint8(100),
    )
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [4, 3]
    plan = random_plan(network, analysis, seed)
    agreeing(network, analysis, plan, tolerance=1e-6)


@pytest.mark.ort
@pytest.mark.parametrize("more", ["", ", b"])
def test_products_that_quantize_what_comes_in(more: str) -> None:
    """The range of the data is a property of all units at once."""
    network = quantized(
        f"""(float[N, 4] x) => (float[N, 3] y) <float[4, 6] e, float[5, 3] v> {{
            h = MatMul(x, e)
            t = Tanh(h)
            d = com.microsoft.DynamicQuantizeMatMul(t, w, w_scale, w_zero{more})
            r = Relu(d)
            y = MatMul(r, v)
        }}""",
        w=integers(6, 5),
        w_scale=np.linspace(0.01, 0.02, 5, dtype=np.float32),
        w_zero=np.zeros(5, np.int8),
        **({"b": np.ones(5, np.float32)} if more else {}),
    )
    analysis = analyze(network)
    assert [(group.size, group.exact) for group in analysis.groups] == [(6, False), (5, True)]
    plan = random_plan(network, analysis, 2)
    smaller = agreeing(network, analysis, plan, tolerance=1e-5)
    assert changed(network, smaller)


@pytest.mark.ort
def test_a_product_of_integers_in_floats() -> None:
    network = quantized(
        """(float[N, 4] x) => (float[N, 3] y) <float[5, 3] v> {
            q, s, z = DynamicQuantizeLinear(x)
            d = com.microsoft.MatMulIntegerToFloat(q, w, s, w_scale, z, w_zero, b)
            r = Relu(d)
            y = MatMul(r, v)
        }""",
        w=integers(4, 5),
        w_scale=np.linspace(0.01, 0.02, 5, dtype=np.float32),
        w_zero=np.zeros(5, np.int8),
        b=np.ones(5, np.float32),
    )
    (found,) = group_members(network)
    assert {"w[1]", "w_scale[0]", "w_zero[0]", "b[0]", "v[0]"} <= found.keys()
    analysis = analyze(network)
    plan = random_plan(network, analysis, 1)
    agreeing(network, analysis, plan, tolerance=1e-5)


LSTM = """(float[T, N, 3] x) => (float[T, 1, N, 2] y)
<float[3, 4] e, float[1, 40] b, float[5, 2] v> {
    u = MatMul(x, e)
    h = com.microsoft.DynamicQuantizeLSTM<hidden_size = 5>(
        u, w, r, b, , , , , w_scale, w_zero, r_scale, r_zero)
    t = Tanh(h)
    y = MatMul(t, v)
}"""


@pytest.mark.ort
@pytest.mark.parametrize("per_row", [False, True])
def test_a_quantized_lstm_loses_units(per_row: bool) -> None:
    shape = (1, 20) if per_row else (1,)
    scales = {name: np.full(shape, 0.01, np.float32) for name in ("w_scale", "r_scale")}
    zeros = {name: np.zeros(shape, np.int8) for name in ("w_zero", "r_zero")}
    network = quantized(LSTM, w=integers(1, 4, 20), r=integers(1, 5, 20, seed=1), **scales, **zeros)
    analysis = analyze(network)
    assert [(group.size, group.exact) for group in analysis.groups] == [(4, False), (5, False)]
    assert settle(network)[0]["h"] == (None, 1, None, 5)
    assert frozen(network, "h[1]") >= {Reason.POSITIONS}
    plan = random_plan(network, analysis, 5)
    smaller = agreeing(network, analysis, plan, tolerance=1e-5)
    (node,) = [node for node in smaller.graph if node.op_type == "DynamicQuantizeLSTM"]
    kept = [int(mask.sum()) for mask in plan.keep.values() if len(mask) == 5]
    assert node.attributes["hidden_size"].value == (kept[0] if kept else 5)
