from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from frames import frame, prunes
from graphs import array, coupled, frozen, model, straight

from onnxprune.base import Reason
from onnxprune.graph.groups import analyze

F32, I8, U8 = np.float32, np.int8, np.uint8
RNG = np.random.default_rng(0)


def bytes_(*shape: int, signed: bool = True) -> np.ndarray:
    return RNG.integers(-100, 100, shape).astype(I8) if signed else RNG.integers(0, 200, shape, U8)


@pytest.mark.ort
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_behind_dequantize_linear_lose_scales_and_zero_points(per_channel: bool) -> None:
    size = (6,) if per_channel else ()
    network = model(
        """(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[6] b, float[2, 6, 1, 1] v> {
            w = DequantizeLinear<axis = 0>(q, s, z)
            h = Conv(x, w, b)
            r = Relu(h)
            y = Conv(r, v)
        }""",
        q=bytes_(6, 3, 3, 3)[:, :, :1, :1],
        s=RNG.uniform(0.01, 0.02, size).astype(F32),
        z=bytes_(*size) if size else np.array(3, I8),
    )
    if per_channel:
        assert coupled(network, "s[0]", "q[0]") == straight(6)
        assert coupled(network, "z[0]", "q[0]") == straight(6)
    smaller = prunes(network)
    if per_channel:
        assert array(smaller, "s").shape == array(smaller, "q").shape[:1]


@pytest.mark.ort
def test_activations_through_quantize_and_dequantize_stay_with_their_channels() -> None:
    body = """q = QuantizeLinear(h, s, z)
    d = DequantizeLinear(q, s, z)
    a = Relu(d)"""
    network = frame(body, s=F32(0.05), z=U8(120))
    assert coupled(network, "h[1]", "q[1]") == straight(6)
    prunes(network)
    per_axis = frame(body, s=RNG.uniform(0.02, 0.05, 6).astype(F32), z=np.full(6, 120, U8))
    assert coupled(per_axis, "h[1]", "s[0]") == straight(6)
    prunes(per_axis)


@pytest.mark.ort
def test_blocks_keep_the_axis_they_divide() -> None:
    network = model(
        """(float[N, 8] x) => (float[N, 2] y) <float[6, 2] v> {
            w = DequantizeLinear<axis = 0, block_size = 4>(q, s)
            h = MatMul(x, w)
            y = MatMul(h, v)
        }""",
        opset=21,
        ir_version=10,
        q=bytes_(8, 6),
        s=RNG.uniform(0.01, 0.02, (2, 6)).astype(F32),
    )
    assert coupled(network, "s[1]", "q[1]") == straight(6)
    assert Reason.POSITIONS in frozen(network, "q[0]")
    smaller = prunes(network)
    assert array(smaller, "s").shape == (2, array(smaller, "v").shape[0])


DYNAMIC = """(float[N, 4] x) => (float[N, 3] y) <float[4, 6] w, float[6] b> {
    m = MatMul(x, w)
    h = Add(m, b)
    r = Relu(h)
    q, s, z = DynamicQuantizeLinear(r)
    p = MatMulInteger(q, v%s)
    f = Cast<to = 1>(p)
    k = Mul(s, c)
    y = Mul(f, k)
}"""


@pytest.mark.ort
@pytest.mark.parametrize("scales", ["per column", "one"])
def test_integer_products_see_the_zero_point_where_units_go(scales: str) -> None:
    shape = (3,) if scales == "per column" else (1,)
    network = model(
        DYNAMIC % ", z, vz",
        v=bytes_(6, 3),
        vz=bytes_(*shape) if scales == "per column" else np.array(5, I8),
        c=RNG.uniform(0.01, 0.02, shape).astype(F32),
    )
    assert coupled(network, "q[1]", "v[0]") == straight(6)
    assert not analyze(network).groups[0].exact
    prunes(network)


@pytest.mark.ort
def test_columns_of_an_integer_product_take_their_zero_points_along() -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 2] y) <float[5, 2] u> {
            q, s, z = DynamicQuantizeLinear(x)
            p = MatMulInteger(q, w, z, wz)
            f = Cast<to = 1>(p)
            k = Mul(s, c)
            h = Mul(f, k)
            y = MatMul(h, u)
        }""",
        w=bytes_(4, 5),
        wz=bytes_(5),
        c=RNG.uniform(0.01, 0.02, 5).astype(F32),
    )
    assert coupled(network, "wz[0]", "w[1]") == straight(5)
    smaller = prunes(network)
    assert array(smaller, "wz").shape == array(smaller, "c").shape == array(smaller, "u").shape[:1]


@pytest.mark.ort
@pytest.mark.parametrize("group", [1, 6])
def test_integer_convolutions_couple_as_convolutions_do(group: int) -> None:
    network = frame(
        f"""q = QuantizeLinear(h, s, z)
        p = ConvInteger<group = {group}>(q, k, z)
        f = Cast<to = 1>(p)
        a = Mul(f, s)""",
        s=F32(0.05),
        z=U8(100),
        k=bytes_(6, 6 // group, 1, 1, signed=False),
    )
    assert array(network, "k").shape[1] == 6 // group
    smaller = prunes(network)
    conv = next(node for node in smaller.graph if node.op_type == "ConvInteger")
    assert conv.attributes["group"].as_int() == (1 if group == 1 else array(smaller, "k").shape[0])


@pytest.mark.ort
@pytest.mark.parametrize("per_channel", [True, False])
def test_qlinear_convolutions_prune_scales_and_bias(per_channel: bool) -> None:
    count = 6 if per_channel else 1
    network = frame(
        """q = QuantizeLinear(h, s, z)
        p = QLinearConv(q, s, z, k, ks, kz, t, z, kb)
        g = QLinearConv(p, t, z, m, s, kz0, t, z)
        a = DequantizeLinear(g, t, z)""",
        s=F32(0.05),
        t=F32(0.5),
        z=U8(100),
        k=bytes_(6, 6, 1, 1),
        ks=RNG.uniform(0.01, 0.02, count).astype(F32),
        kz=np.zeros(count, I8),
        kz0=np.array(0, I8),
        kb=RNG.integers(-500, 500, 6).astype(np.int32),
        m=bytes_(6, 6, 1, 1),
    )
    assert coupled(network, "kb[0]", "p[1]") == straight(6)
    smaller = prunes(network)
    assert array(smaller, "kb").shape == array(smaller, "k").shape[:1]


@pytest.mark.ort
def test_qlinear_products_couple_as_products_do() -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 3] y) <float[4, 6] w> {
            h = MatMul(x, w)
            q = QuantizeLinear(h, s, z)
            p = QLinearMatMul(q, s, z, v, vs, vz, t, z)
            g = QLinearMatMul(p, t, z, u, us, uz, t, z)
            y = DequantizeLinear(g, t, z)
        }""",
        s=F32(0.05),
        t=F32(0.5),
        z=U8(100),
        v=bytes_(6, 5, signed=False),
        vs=F32(0.02),
        vz=U8(90),
        u=bytes_(5, 3, signed=False),
        us=F32(0.02),
        uz=U8(110),
    )
    assert coupled(network, "v[1]", "p[1]") == straight(5)
    prunes(network)


@pytest.mark.ort
@pytest.mark.parametrize("flat", [True, False])
def test_packed_weights_keep_k_and_lose_columns(flat: bool) -> None:
    count, inner, block = 6, 32, 16
    blocks = inner // block
    network = model(
        """(float[N, 32] x) => (float[N, 2] y) <float[6, 2] v> {
            h = MatMul(x, first)
            y = MatMul(h, v)
        }""",
        first=np.zeros((inner, count), F32),
    )
    node = network.graph.node(0)
    given = {
        "packed": bytes_(count, blocks, block // 2, signed=False),
        "scales": RNG.uniform(0.01, 0.02, count * blocks if flat else (count, blocks)).astype(F32),
        "zeros": bytes_(count, signed=False) if flat else bytes_(count, 1, signed=False),
    }
    values = [ir.Value(name=name, const_value=ir.tensor(given[name], name=name)) for name in given]
    for value in values:
        network.graph.register_initializer(value)
    attributes = {"K": inner, "N": count, "bits": 4, "block_size": block}
    packed = ir.node(
        "MatMulNBits", [node.inputs[0], *values], attributes, domain="com.microsoft", num_outputs=1
    )
    packed.outputs[0].type, packed.outputs[0].shape = (
        ir.TensorType(ir.DataType.FLOAT),
        ir.Shape(["N", count]),
    )
    network.graph.insert_before(node, packed)
    node.outputs[0].replace_all_uses_with(packed.outputs[0])
    node.outputs[0].name = "gone"
    packed.outputs[0].name = "h"
    network.graph.remove(node, safe=True)
    network.graph.initializers.pop("first")
    network.graph.opset_imports["com.microsoft"] = 1
    smaller = prunes(network)
    assert array(smaller, "packed").shape[0] == array(smaller, "v").shape[0]


@pytest.mark.ort
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE])
def test_weights_of_other_widths_keep_their_type(dtype: ir.DataType) -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y) <float[6, 2] v> {
            w = Cast<to = 1>(stored)
            b = Cast<to = 1>(bias)
            m = MatMul(x, w)
            h = Add(m, b)
            y = MatMul(h, v)
        }""",
        stored=RNG.normal(size=(3, 6)).astype(dtype.numpy()),
        bias=RNG.normal(size=6).astype(dtype.numpy()),
    )
    smaller = prunes(network)
    for name in ("stored", "bias"):
        value = smaller.graph.initializers[name]
        assert value.dtype == dtype
        assert value.const_value is not None
        assert value.const_value.shape[-1] == array(smaller, "v").shape[0]


@pytest.mark.ort
@pytest.mark.parametrize("kind", [10, 11])
def test_networks_of_another_width_prune_throughout(kind: int) -> None:
    dtype = ir.DataType(kind).numpy()
    network = model(
        f"""(float[N, 3] x) => (float[N, 2] y) {{
            c = Cast<to = {kind}>(x)
            h = Gemm(c, w, b)
            r = Relu(h)
            m = MatMul(r, v)
            y = Cast<to = 1>(m)
        }}""",
        w=RNG.normal(size=(3, 6)).astype(dtype),
        b=RNG.normal(size=6).astype(dtype),
        v=RNG.normal(size=(6, 2)).astype(dtype),
    )
    smaller = prunes(network, tolerance=5e-3 if kind == 10 else 1e-5)
    assert array(smaller, "w").dtype == dtype


@pytest.mark.ort
def test_weights_of_four_bits_stay_so() -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 2] y) <float[6, 2] v> {
            w = DequantizeLinear<axis = 1>(q, s)
            h = MatMul(x, w)
            y = MatMul(h, v)
        }""",
        opset=21,
        ir_version=10,
        q=RNG.integers(-8, 8, (4, 6)).astype(ir.DataType.INT4.numpy()),
        s=RNG.uniform(0.01, 0.02, 6).astype(F32),
    )
    smaller = prunes(network)
    packed = smaller.graph.initializers["q"]
    assert packed.dtype == ir.DataType.INT4
    assert packed.const_value is not None
    assert packed.const_value.shape == (4, array(smaller, "v").shape[0])
