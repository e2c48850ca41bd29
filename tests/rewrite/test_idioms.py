"""What exporters write, one awkward habit per graph: nothing breaks, and units still go.

Each graph names the groups it must have, by size, so that a habit that silently blocks removal
fails here. Habits with tests of their own (attention, quantization, recurrent nodes, control flow,
functions, shared vectors) are not repeated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from checks import agreeing
from graphs import model
from strategies import random_plan

from onnxprune.base import Plan
from onnxprune.graph.groups import analyze
from onnxprune.model import constant, constants, list_initializers, load, save
from onnxprune.rewrite.inline import inline
from onnxprune.rewrite.untie import untie

F32 = np.float32
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(F32)


IDIOMS: dict[str, tuple[str, list[int], dict[str, Any]]] = {
    "weights in Constant nodes": (
        """(float[N, 2] x) => (float[N, 2] y) {
            w = Constant<value = float[2, 3] {0.1, -0.2, 0.3, 0.4, 0.5, -0.6}>()
            b = Constant<value_floats = [0.1, 0.2, -0.3]>()
            v = Constant<value = float[3, 2] {0.1, -0.2, 0.3, 0.4, 0.5, -0.6}>()
            m = MatMul(x, w) h = Add(b, m) a = Relu(h) y = MatMul(a, v)
        }""",
        [3],
        {},
    ),
    "weights through Identity": (
        """(float[N, 4] x) => (float[N, 2] y) <float[4, 6] w, float[6] b, float[6, 2] v> {
            w_1 = Identity(w) w_2 = Identity(w_1) b_1 = Identity(b)
            m = MatMul(x, w_2) h = Add(m, b_1) a = Relu(h) i = Identity(a) y = MatMul(i, v)
        }""",
        [6],
        {},
    ),
    "transposed weights": (
        """(float[N, 4] x) => (float[N, 2] y) <float[6, 4] w, float[2, 6] v> {
            w_t = Transpose<perm = [1, 0]>(w) v_t = Transpose(v)
            h = MatMul(x, w_t) a = Relu(h) y = MatMul(a, v_t)
        }""",
        [6],
        {},
    ),
    "gates put into another order at run time": (
        """(float[T, N, 3] x) => (float[T, 1, N, 2] y)
        <float[1, 20, 3] w, float[20, 5] r, float[1, 40] b, float[5, 2] v> {
            r_i = Slice(r, n0, n5, n0) r_f = Slice(r, n5, n10, n0)
            r_g = Slice(r, n10, n15, n0) r_o = Slice(r, n15, n20, n0)
            r_c = Concat<axis = 0>(r_i, r_o, r_f, r_g)
            r_u = Unsqueeze(r_c, n0)
            h = LSTM<hidden_size = 5>(x, w, r_u, b) y = MatMul(h, v)
        }""",
        [5],
        {f"n{size}": [size] for size in (0, 5, 10, 15, 20)},
    ),
    "weight normalization": (
        """(float[N, 4] x) => (float[N, 2] y) <float[6, 4] v, float[6, 1] g, float[2, 6] u> {
            norm = ReduceL2<axes = [1], keepdims = 1>(v) f = Div(g, norm) w = Mul(v, f)
            h = Gemm<transB = 1>(x, w) a = Tanh(h) y = Gemm<transB = 1>(a, u)
        }""",
        [6],
        {},
    ),
    "standardized filters": (
        """(float[N, 2, 5, 5] x) => (float[N, 2, 3, 3] y)
        <float[6, 2, 3, 3] w, float[2, 6, 1, 1] v> {
            mean = ReduceMean<axes = [1, 2, 3], keepdims = 1>(w) d = Sub(w, mean)
            q = Mul(d, d) var = ReduceMean<axes = [1, 2, 3], keepdims = 1>(q)
            s = Sqrt(var) u = Div(d, s)
            h = Conv(x, u) a = Relu(h) y = Conv(a, v)
        }""",
        [6],
        {},
    ),
    "weights stored in a row": (
        """(float[N, 4] x) => (float[N, 2] y) <float[24] flat, float[6, 2] v> {
            w = Reshape(flat, shape) h = MatMul(x, w) a = Relu(h) y = MatMul(a, v)
        }""",
        [6],
        {"shape": [4, 6]},
    ),
    "weights in one array": (
        """(float[N, 4] x) => (float[N, 2] y) <float[12, 4] packed, float[6, 2] v> {
            q, k = Split<axis = 0>(packed, halves)
            q_t = Transpose(q) k_t = Transpose(k)
            a = MatMul(x, q_t) b = MatMul(x, k_t) m = Mul(a, b) y = MatMul(m, v)
        }""",
        [6],
        {"halves": [6, 6]},
    ),
    "parts of a weight put together": (
        """(float[N, 4] x) => (float[N, 2] y) <float[4, 2] p, float[4, 4] q, float[6, 2] v> {
            w = Concat<axis = 1>(p, q) h = MatMul(x, w) a = Relu(h) y = MatMul(a, v)
        }""",
        [2, 4],
        {},
    ),
    "a bias expanded to the size of the filters": (
        """(float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[6, 2, 1, 1] w, float[2, 6, 1, 1] v> {
            size = Shape<start = 0, end = 1>(w) b = Expand(nought, size)
            h = Conv(x, w, b) a = Relu(h) y = Conv(a, v)
        }""",
        [6],
        {"nought": F32([0])},
    ),
    "affine forms behind a convolution": (
        """(float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[6, 2, 1, 1] w, float[1, 6, 1, 1] m, float[6, 1, 1] b, float[6] s,
         float[2, 6, 1, 1] v> {
            h = Conv(x, w) i = Identity(h) p = Mul(i, m) q = Add(b, p)
            s_3 = Unsqueeze(s, last) r = Relu(q) t = PRelu(r, s_3) y = Conv(t, v)
        }""",
        [6],
        {"last": [1, 2]},
    ),
    "sizes baked into a reshape": (
        """(float[N, 3, 4] x) => (float[N, 3, 2] y) <float[4, 6] w, float[6] b, float[6, 2] v> {
            flat = Reshape(x, rows) g = Gemm(flat, w, b)
            size = Shape(x) first = Slice(size, n0, n2, n0) target = Concat<axis = 0>(first, six)
            h = Reshape(g, target) a = Relu(h) y = MatMul(a, v)
        }""",
        [6],
        {"rows": [-1, 4], "n0": [0], "n2": [2], "six": [6]},
    ),
    "sizes computed all the way": (
        """(float[N, 3, 4] x) => (float[N, 3, 2] y) <float[4, 6] w, float[6, 2] v> {
            h = MatMul(x, w) size = Shape(h)
            n = Gather(size, z) t = Gather(size, o) e = Gather(size, w2)
            half = Div(e, two) n_u = Unsqueeze(n, z1) t_u = Unsqueeze(t, z1)
            h_u = Unsqueeze(half, z1)
            target = Concat<axis = 0>(n_u, t_u, two_u, h_u)
            p = Reshape(h, target) q = ReduceMax<axes = [2], keepdims = 0>(p)
            r = Tanh(q) y = MatMul(r, u)
        }""".replace("float[6, 2] v", "float[3, 2] u"),
        [2],  # the outer of 2 x 3
        {"z": 0, "o": 1, "w2": 2, "two": 2, "z1": [0], "two_u": [2]},
    ),
    "halves at a midpoint found at run time": (
        """(float[N, 4] x) => (float[N, 2] y) <float[4, 6] w, float[3, 2] v> {
            h = MatMul(x, w) size = Shape(h) c = Gather(size, o) mid = Div(c, two)
            m = Unsqueeze(mid, z1) end = Mul(m, two)
            a = Slice(h, z1, m, o1) b = Slice(h, m, end, o1)
            s = Sigmoid(b) g = Mul(a, s) y = MatMul(g, v)
        }""",
        [3],
        {"o": 1, "two": 2, "z1": [0], "o1": [1]},
    ),
    "a scale from the size of what it scales": (
        """(float[N, 3, 4] x) => (float[N, 3, 3] y) <float[4, 6] q, float[4, 6] k> {
            a = MatMul(x, q) b = MatMul(x, k) size = Shape(a) d = Gather(size, two)
            f = Cast<to = 1>(d) r = Sqrt(f) b_t = Transpose<perm = [0, 2, 1]>(b)
            s = MatMul(a, b_t) t = Div(s, r) y = Softmax<axis = -1>(t)
        }""",
        [6],
        {"two": 2},
    ),
    "an integer constant with several meanings": (
        """(float[N, 4] x) => (float[N, 6, 2] y) <float[4, 6] w, float[8, 6] u, float[2, 6] v> {
            part = Slice(u, zero, six, zero) t = Transpose(part)
            h = MatMul(x, w) g = MatMul(h, t) all = Concat<axis = 0>(minus, six, one)
            r = Reshape(g, all) k = Transpose(v) first = Slice(k, zero, one, one)
            z = MatMul(r, row) y = Relu(z)
        }""".replace("float[2, 6] v", "float[1, 2] row, float[2, 6] v"),
        [2, 6, 6],  # 2 rows of u that nobody reads
        {"zero": [0], "six": [6], "one": [1], "minus": [-1]},
    ),
    "a shortcut that pads channels": (
        """(float[N, 3, 4, 4] x) => (float[N, 2, 2, 2] y)
        <float[4, 3, 1, 1] e, float[6, 4, 1, 1] w, float[2, 6, 1, 1] v> {
            h = Conv(x, e) r = Relu(h)
            a = Conv<strides = [2, 2]>(r, w)
            s = Slice(r, starts, ends, places, strides) p = Pad(s, pads)
            z = Add(a, p) t = Relu(z) y = Conv(t, v)
        }""",
        [4, 2],
        {
            "starts": [0, 0], "ends": [9, 9], "places": [2, 3], "strides": [2, 2],
            "pads": [0, 1, 0, 0, 0, 1, 0, 0],
        },
    ),
    "channels reversed and taken": (
        """(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[6, 3, 1, 1] w, float[2, 6, 1, 1] v> {
            h = Conv(x, w) g = Gather<axis = 1>(h, order) r = Relu(g)
            b = Slice(r, last, below, one, minus) y = Conv(b, v)
        }""",
        [6],
        {
            "order": [2, 0, 1, 5, 4, 3], "last": [-1], "below": [-(2**63)], "one": [1],
            "minus": [-1],
        },
    ),
    "a depthwise multiplier": (
        """(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[4, 3, 1, 1] w, float[8, 1, 1, 1] d, float[2, 8, 1, 1] v> {
            h = Conv(x, w) m = Conv<group = 4>(h, d) r = Relu(m) y = Conv(r, v)
        }""",
        [4],
        {},
    ),
    "squeeze and excitation by a reshape": (
        """(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[6, 3, 1, 1] w, float[6, 3] d, float[3, 6] u, float[2, 6, 1, 1] v> {
            h = Conv(x, w) p = GlobalAveragePool(h) f = Flatten(p)
            s_1 = MatMul(f, d) s_2 = Relu(s_1) s_3 = MatMul(s_2, u) s_4 = Sigmoid(s_3)
            size = Shape(p) s_5 = Reshape(s_4, size) m = Mul(h, s_5) y = Conv(m, v)
        }""",
        [6, 3],
        {},
    ),
    "channels last between transposes": (
        """(float[N, 4, 4, 3] x) => (float[N, 4, 4, 2] y)
        <float[6, 3, 1, 1] w, float[1, 1, 1, 6] b, float[6, 2] v> {
            x_c = Transpose<perm = [0, 3, 1, 2]>(x) h = Conv(x_c, w)
            h_l = Transpose<perm = [0, 2, 3, 1]>(h) s = Add(h_l, b) r = Relu(s)
            y = MatMul(r, v)
        }""",
        [6],
        {},
    ),
    "a flattened map, both ways round": (
        """(float[N, 3, 4, 4] x) => (float[N, 2] y)
        <float[6, 3, 1, 1] w, float[96, 2] u, float[96, 2] v> {
            h = Conv(x, w) r = Relu(h) f = Flatten(r) a = MatMul(f, u)
            l = Transpose<perm = [0, 2, 3, 1]>(r) g = Reshape(l, rows) b = MatMul(g, v)
            y = Add(a, b)
        }""",
        [6],
        {"rows": [-1, 96]},
    ),
    "activations that are graphs": (
        """(float[N, 4] x) => (float[N, 2] y) <float[4, 6] w, float[6, 2] v> {
            h = MatMul(x, w) s = Add(h, three) c = Clip(s, low, high) d = Div(c, six) a = Mul(h, d)
            e = Div(a, root) f = Erf(e) g = Add(f, one) i = Mul(a, g) j = Mul(i, half)
            k = Softplus(j) l = Tanh(k) m = Mul(j, l) n = Max(m, low) y = MatMul(n, v)
        }""",
        [6],
        {
            "three": F32(3), "low": F32(0), "high": F32(6), "six": F32(6), "root": F32(2**0.5),
            "one": F32(1), "half": F32(0.5),
        },
    ),
    "the mean over channels": (
        """(float[N, 3, 4, 4] x) => (float[N, 1, 4, 4] y) <float[6, 3, 1, 1] w> {
            h = Conv(x, w) r = Relu(h) y = ReduceMean<axes = [1]>(r)
        }""",
        [6],
        {},
    ),
    "normalization in parts, with the mean of squares": (
        """(float[N, 4] x) => (float[N, 2] y)
        <float[4, 6] w, float[6] g, float[6] b, float[6, 2] v> {
            h = MatMul(x, w) m = ReduceMean<axes = [-1]>(h) q = Mul(h, h)
            m_2 = ReduceMean<axes = [-1]>(q) k = Mul(m, m) var = Sub(m_2, k) safe = Max(var, eps)
            s = Sqrt(safe) i = Reciprocal(s) d = Sub(h, m) n = Mul(d, i) t = Mul(n, g)
            o = Neg(b) u = Sub(t, o) y = MatMul(u, v)
        }""",
        [6],
        {"eps": F32(1e-6)},
    ),
    "start states filled at run time": (
        """(float[T, N, 3] x) => (float[T, 1, N, 2] y)
        <float[1, 20, 3] w, float[1, 20, 5] r, float[1, 40] b, float[5, 2] v> {
            size = Shape(x) n = Slice(size, one, two, nil)
            full = Concat<axis = 0>(one, n, five) z = ConstantOfShape(full)
            h = LSTM<hidden_size = 5>(x, w, r, b, , z, z) y = MatMul(h, v)
        }""",
        [5],
        {"one": [1], "two": [2], "nil": [0], "five": [5]},
    ),
    "an inner value that is put out": (
        """(float[N, 4] x) => (float[N, 6] h, float[N, 2] y)
        <float[4, 6] w, float[6, 5] u, float[5, 2] v> {
            m = MatMul(x, w) h = Relu(m) g = MatMul(h, u) a = Relu(g) y = MatMul(a, v)
        }""",
        [5],
        {},
    ),
    "an embedding": (
        """(float[N, 4] x) => (float[N, 3, 2] y)
        <float[10, 6] table, float[4, 6] w, float[6, 2] v> {
            e = Gather(table, ids) m = MatMul(x, w) u = Unsqueeze(m, one) s = Add(e, u)
            t = Tanh(s) y = MatMul(t, v)
        }""",
        [6, 7],  # 7 rows that nobody reads
        {"ids": [3, 1, 7], "one": [1]},
    ),
    "tied tables": (
        """(float[N, 4] x) => (float[N, 3, 10] y) <float[10, 6] table, float[4, 6] w> {
            e = Gather(table, ids) m = MatMul(x, w) u = Unsqueeze(m, one) s = Add(e, u)
            t = Tanh(s) back = Transpose(table) y = MatMul(t, back)
        }""",
        [6],
        {"ids": [3, 1, 7], "one": [1]},
    ),
    "a token in front": (
        """(float[N, 3, 4] x) => (float[N, 4, 2] y)
        <float[4, 6] w, float[1, 1, 6] token, float[1, 4, 6] places, float[6, 2] v> {
            h = MatMul(x, w) size = Shape<start = 0, end = 1>(x)
            full = Concat<axis = 0>(size, rest) c = Expand(token, full)
            s = Concat<axis = 1>(c, h) p = Add(s, places) y = MatMul(p, v)
        }""",
        [6],
        {"rest": [1, 6]},
    ),
    "single numbers beside channels": (
        """(float[N, 4] x) => (float[N, 2] y)
        <float[4, 6] w, float[1] s, float[1] b, float[1, 1] t, float[6, 2] v> {
            h = MatMul(x, w) m = Mul(h, s) a = Add(m, b) c = Mul(t, a) r = Relu(c) y = MatMul(r, v)
        }""",
        [6],
        {},
    ),
}  # fmt: skip


@pytest.mark.ort
@pytest.mark.parametrize("name", IDIOMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_units_go_and_nothing_breaks(name: str, seed: int) -> None:
    text, sizes, constants = IDIOMS[name]
    network = untie(inline(model(text, seed=seed, **constants)))
    analysis = analyze(network)
    assert sorted(group.size for group in analysis.groups) == sorted(sizes)
    plan = random_plan(network, analysis, seed + 1)
    smaller = agreeing(network, analysis, plan, tolerance=1e-4)
    onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
    again = analyze(smaller)
    agreeing(smaller, again, random_plan(smaller, again, seed + 2), tolerance=1e-4)


OLD = """(float[N, 3, 6, 6] x) => (float[N, 2] y)
<float[6, 3, 3, 3] w, float[6] b, float[6] s, float[6] t, float[6] m, float[6] var,
 float[54, 4] u, float[4] c, float[4, 2] v> {
    h = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    n = BatchNormalization<spatial = 1>(h, s, t, m, var)
    r = Clip<min = 0.0, max = 6.0>(n)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
    d, mask = Dropout<ratio = 0.5>(p)
    k = Slice<axes = [2], starts = [0], ends = [9]>(d)
    f = Flatten(k)
    g = Gemm<transB = 0>(f, u, c)
    e = Unsqueeze<axes = [2]>(g)
    a = Squeeze<axes = [2]>(e)
    z = Relu(a)
    y = MatMul(z, v)
}"""


@pytest.mark.ort
@pytest.mark.parametrize("opset", [7, 8, 9])
@pytest.mark.parametrize("ir_version", [3, 4])
def test_files_of_old_opsets(tmp_path: Path, opset: int, ir_version: int) -> None:
    """IR 3: initializers are inputs, too, and keep being listed with the sizes they have."""
    text = OLD if opset < 9 else OLD.replace("<spatial = 1>", "")
    network = model(text, opset=opset, ir_version=ir_version)
    list_initializers(network)
    save(network, tmp_path / "old.onnx")
    network = load(tmp_path / "old.onnx")
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [6, 4]
    smaller = agreeing(network, analysis, random_plan(network, analysis, 1), tolerance=1e-4)
    save(smaller, tmp_path / "small.onnx")
    again = onnx.load(tmp_path / "small.onnx")
    onnx.checker.check_model(again)
    declared = {
        i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in again.graph.input
    }
    held = {i.name: list(i.dims) for i in again.graph.initializer}
    if ir_version == 3:
        assert {name: declared[name] for name in held} == held
    else:
        assert not declared.keys() & held.keys()


CLUTTERED = """(float[N, 4] x) => (float[N, 2] y)
<float[4, 6] w, float[6, 2] v, float[3, 3] unused> {
    h = MatMul(x, w) r = Relu(h) dead = Neg(r) y = MatMul(r, v)
}"""


def declare(info: onnx.ValueInfoProto, *sizes: int) -> None:
    info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for size in sizes:
        info.type.tensor_type.shape.dim.add(dim_value=size)


def clutter(proto: onnx.ModelProto, kind: str) -> None:
    """Add what is wrong, or superfluous, but accepted."""
    if kind == "stale sizes":
        declare(proto.graph.value_info.add(name="r"), 7, 77)
    elif kind == "many operator sets":
        for domain in ("com.microsoft", "ai.onnx.ml", "org.pytorch.aten", "my.own"):
            proto.opset_import.add(domain=domain, version=1)
    elif kind == "sizes as expressions":
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "floor(n/2 - 1/2) + 1"
    elif kind == "a default for an input":
        declare(proto.graph.input.add(name="w"), 4, 6)
    elif kind == "metadata":
        proto.graph.node[0].metadata_props.add(key="namespace", value="m: a/b")
        proto.metadata_props.add(key="author", value="somebody")


CLUTTER = (
    "stale sizes", "many operator sets", "sizes as expressions", "a default for an input",
    "metadata",
)  # fmt: skip


@pytest.mark.ort
@pytest.mark.parametrize("kind", CLUTTER)
def test_clutter_of_files(tmp_path: Path, kind: str) -> None:
    proto = ir.to_proto(model(CLUTTERED))
    clutter(proto, kind)
    onnx.save(proto, tmp_path / "cluttered.onnx")
    network = load(tmp_path / "cluttered.onnx")
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [6]
    keep = {analysis.groups[0].name: np.array([1, 0, 1, 1, 0, 1], np.bool_)}
    smaller = agreeing(network, analysis, Plan(keep=keep), tolerance=1e-5)
    save(smaller, tmp_path / "small.onnx")
    written = onnx.load(tmp_path / "small.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert [node.op_type for node in written.graph.node] == ["MatMul", "Relu", "Neg", "MatMul"]
    if kind == "a default for an input":
        sizes = written.graph.input[1].type.tensor_type.shape.dim
        assert [size.dim_value for size in sizes] == [4, 4]
    if kind == "metadata":
        assert written.graph.node[0].metadata_props[0].value == "m: a/b"
        assert written.metadata_props[0].value == "somebody"


@pytest.mark.ort
@pytest.mark.parametrize("place", ["initializer", "Constant"])
@pytest.mark.parametrize("rank", [1, 2])
def test_sparse_weights_are_read_and_pruned(tmp_path: Path, place: str, rank: int) -> None:
    proto = ir.to_proto(model(CLUTTERED))
    dense = next(item for item in proto.graph.initializer if item.name == "w")
    numbers = ir.from_proto(dense).numpy()
    proto.graph.initializer.remove(dense)
    where = np.argwhere(numbers > 0) if rank == 2 else np.flatnonzero(numbers > 0)
    sparse = onnx.SparseTensorProto(
        values=ir.to_proto(ir.tensor(numbers[numbers > 0], name="w")),
        indices=ir.to_proto(ir.tensor(where.astype(np.int64), name="places")),
        dims=numbers.shape,
    )
    if place == "initializer":
        proto.graph.sparse_initializer.append(sparse)
    else:
        node = onnx.NodeProto(op_type="Constant", output=["w"])
        kind = onnx.AttributeProto.SPARSE_TENSOR
        node.attribute.add(name="sparse_value", type=kind).sparse_tensor.CopyFrom(sparse)
        proto.graph.node.insert(0, node)
    onnx.save(proto, tmp_path / "sparse.onnx")
    network = load(tmp_path / "sparse.onnx")
    held = constant(constants(network)["w"])
    assert held is not None
    np.testing.assert_array_equal(held, np.maximum(numbers, 0))
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [6]
    agreeing(network, analysis, random_plan(network, analysis, 0), tolerance=1e-5)
