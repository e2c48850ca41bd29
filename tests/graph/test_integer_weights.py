"""Weights of integers that operators read as they are: what they stand for, and their scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import array, model

from onnxprune.base import Array, Axis
from onnxprune.graph.groups import analyze
from onnxprune.graph.weights import Weight, weights
from onnxprune.methods.importance import magnitude
from onnxprune.ops.registry import Role
from onnxprune.runtime.session import Device, Runner

RNG = np.random.default_rng(0)
HEAD = "(float[N, 4] x) => (float[N, 2] y) <float[6, 2] v>"
SCALES = np.linspace(0.1, 0.6, 6, dtype=np.float32)
WORDS: dict[str, tuple[str, bool]] = {  # the operator, and whether it knows the scale
    "MatMulInteger": ("p = MatMulInteger(q, w, z, w_zero) h = Cast<to = 1>(p)", False),
    "QLinearMatMul": (
        "p = QLinearMatMul(q, s, z, w, w_scale, w_zero, s, z) h = DequantizeLinear(p, s, z)",
        True,
    ),
    "QGemm": ("h = com.microsoft.QGemm(q, s, z, w, w_scale, w_zero)", True),
    "MatMulIntegerToFloat": (
        "h = com.microsoft.MatMulIntegerToFloat(q, w, s, w_scale, z, w_zero)",
        True,
    ),
    "DynamicQuantizeMatMul": (
        "h = com.microsoft.DynamicQuantizeMatMul(x, w, w_scale, w_zero)",
        True,
    ),
}


def network(body: str, dtype: type[np.generic], **more: Any) -> ir.Model:
    low = 0 if dtype is np.uint8 else -100
    return model(
        f"{HEAD} {{ q, s, z = DynamicQuantizeLinear(x) {body} r = Relu(h) y = MatMul(r, v) }}",
        vendor=True,
        w=RNG.integers(low, low + 200, (4, 6)).astype(dtype),
        w_zero=(np.arange(6) + (120 if low == 0 else -3)).astype(dtype),
        **more,
    )


def maker(found: ir.Model, name: str, axis: int) -> Weight:
    return weights(found, analyze(found))[Axis(name, axis)]


@pytest.mark.parametrize("op_type", WORDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_products_of_integers_are_scored_by_what_they_stand_for(
    op_type: str, dtype: type[np.generic]
) -> None:
    body, scaled = WORDS[op_type]
    found = network(body, dtype, **({"w_scale": SCALES} if scaled else {}))
    weight = maker(found, "w", 1)
    real = array(found, "w").astype(np.float64) - array(found, "w_zero").astype(np.float64)
    real = real * SCALES.astype(np.float64) if scaled else real
    assert (weight.op_type, weight.role, weight.incoming) == (op_type, Role.WEIGHT, True)
    np.testing.assert_allclose(weight.array, real, rtol=1e-7)
    (group,) = analyze(found).groups
    scores = magnitude().score(group, weights(found, analyze(found)), {})
    np.testing.assert_allclose(scores, np.linalg.norm(real, axis=0), rtol=1e-7)


@pytest.mark.parametrize("op_type", ["QLinearConv", "ConvInteger"])
def test_filters_of_integers(op_type: str) -> None:
    body = {
        "QLinearConv": """p = QLinearConv(q, s, z, w, w_scale, w_zero, s, z)
            h = DequantizeLinear(p, s, z)""",
        "ConvInteger": "p = ConvInteger(q, w, z, w_zero) h = Cast<to = 1>(p)",
    }[op_type]
    scaled = op_type == "QLinearConv"
    found = model(
        f"""(float[N, 2, 5, 5] x) => (float[N, 2, 3, 3] y) <float[2, 6, 1, 1] v> {{
            q = QuantizeLinear(x, s, z) {body} r = Relu(h) y = Conv(r, v) }}""",
        s=np.float32(0.1),
        z=np.uint8(128),
        w=RNG.integers(0, 200, (6, 2, 3, 3)).astype(np.uint8),
        w_zero=np.arange(6, dtype=np.uint8) + 100,
        **({"w_scale": SCALES} if scaled else {}),
    )
    wide = (6, 1, 1, 1)
    real = array(found, "w").astype(np.float64)
    real -= array(found, "w_zero").astype(np.float64).reshape(wide)
    real *= SCALES.astype(np.float64).reshape(wide) if scaled else 1.0
    np.testing.assert_allclose(maker(found, "w", 0).array, real, rtol=1e-7)


def packed(zeros: Array | None) -> ir.Model:
    more = {} if zeros is None else {"zeros": zeros}
    return model(
        f"""(float[N, 32] x) => (float[N, 2] y) <float[6, 2] v> {{
            h = com.microsoft.MatMulNBits<K = 32, N = 6, bits = 4, block_size = 16>(
                x, w, scales{", zeros" if more else ""})
            t = Tanh(h) y = MatMul(t, v) }}""",
        vendor=True,
        w=RNG.integers(0, 256, (6, 2, 8)).astype(np.uint8),
        scales=RNG.uniform(0.1, 0.5, 12).astype(np.float32),
        **more,
    )


@pytest.mark.ort
@pytest.mark.parametrize("zeros", [None, RNG.integers(0, 256, 6).astype(np.uint8)])
def test_packed_weights_are_those_the_runtime_multiplies_with(zeros: Array | None) -> None:
    found = packed(zeros)
    real = maker(found, "w", 0).array
    exposed = found.clone()
    (h,) = [value for node in exposed.graph for value in node.outputs if value.name == "h"]
    exposed.graph.outputs[:] = [h]
    h.type, h.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 6])
    rows = Runner(exposed, Device(threads=1)).run({"x": np.eye(32, dtype=np.float32)})["h"]
    np.testing.assert_allclose(real.reshape(6, 32), rows.T, rtol=1e-5, atol=1e-6)
