from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from checks import DEVICE, agreeing, changed
from graphs import array, coupled, model, straight
from strategies import random_plan

from onnxprune.base import Axis, Fold, Plan
from onnxprune.graph.cost import macs
from onnxprune.graph.groups import analyze
from onnxprune.graph.shapes import infer
from onnxprune.graph.traces import trace
from onnxprune.ops.trace import Kind
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.verify import compare


def fused(text: str, **constants: object) -> ir.Model:
    """A model that uses ONNX Runtime's own operators."""
    network = model(text, opset=17, **constants)
    network.graph.opset_imports["com.microsoft"] = 1
    return network


GEMM = """(float[N, 4] x) => (float[N, 2] y)
<float[6, 4] e, float[6] a, float[6, 5] w, float[5] c, float[5, 2] v> {{
    u = com.microsoft.FusedGemm<transB = 1, activation = "Tanh">(x, e, a)
    h = com.microsoft.FusedGemm<activation = "{activation}", alpha = 1.5, beta = 0.5>(u, w{bias})
    y = MatMul(h, v)
}}"""


@pytest.mark.ort
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bias", [", c", ""])
def test_a_gemm_with_its_activation(bias: str, seed: int) -> None:
    network = fused(GEMM.format(activation="Relu", bias=bias))
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [6, 5]
    plan = random_plan(network, analysis, seed)
    agreeing(network, analysis, plan, tolerance=1e-5)
    assert changed(network, reference(network, analysis, plan))


@pytest.mark.parametrize(
    ("activation", "kind"), [("Relu", Kind.HOMOGENEOUS), ("Tanh", Kind.ODD), ("Elu", Kind.EQUAL)]
)
def test_a_gemm_is_traced_through_its_activation(activation: str, kind: Kind) -> None:
    network = fused(GEMM.format(activation=activation, bias=", c"))
    analysis = analyze(network)
    found = trace(network, analysis, analysis.group("w"))
    assert found is not None
    assert found.kind is kind


CONV = """(float[N, 3, 8, 8] x) => (float[N, 2, 1, 1] y)
<float[6, 3, 3, 3] w, float[6] b, float[6, 6, 3, 3] k, float[6] c, float[2, 6, 1, 1] v> {
    h = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    g = com.microsoft.FusedConv<pads = [1, 1, 1, 1], activation = "Relu">(h, k, c)
    r = com.microsoft.FusedConv<pads = [1, 1, 1, 1], activation = "Relu">(g, k, c, h)
    p = GlobalAveragePool(r)
    y = Conv(p, v)
}"""


@pytest.mark.ort
@pytest.mark.parametrize("seed", range(3))
def test_a_convolution_with_its_residual_and_activation(seed: int) -> None:
    network = fused(CONV)
    assert coupled(network, "h[1]", "r[1]") == straight(6)
    analysis = analyze(network)
    plan = random_plan(network, analysis, seed, exchange=False)
    agreeing(network, analysis, plan, tolerance=1e-5)
    assert changed(network, reference(network, analysis, plan))


@pytest.mark.ort
def test_constants_go_into_the_bias_of_a_fused_convolution_in_front_of_its_activation() -> None:
    network = fused("""(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
    <float[4, 3, 1, 1] w, float[2, 4, 1, 1] k, float[2] c> {
        h = Conv(x, w)
        y = com.microsoft.FusedConv<activation = "Relu">(h, k, c)
    }""")
    analysis = analyze(network)
    keep = {"w": np.array([False, True, True, True])}
    fold = Fold(group="w", unit=0, values={Axis("h", 1): np.array([1.5])})
    smaller = agreeing(network, analysis, Plan(keep=keep, folds=(fold,)), tolerance=1e-5)
    assert not np.array_equal(array(smaller, "c"), array(network, "c"))


MATMUL = """(float[N, 6, 4] x) => (float[{output}] y) <float[{left}] e, float[{shape}] w> {{
    u = MatMul(x, e)
    y = com.microsoft.FusedMatMul<alpha = 0.7{attributes}>({operands})
}}"""


@pytest.mark.ort
@pytest.mark.parametrize(
    ("attributes", "operands", "shape", "output"),
    [
        ("", "u, w", "5, 2", "N, 6, 2"),
        (", transB = 1", "u, w", "2, 5", "N, 6, 2"),
        (", transA = 1", "w, u", "6, 2", "N, 2, 5"),
        (", transA = 1", "u, u", "6, 2", "N, 5, 5"),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_a_product_with_transposed_operands(
    attributes: str, operands: str, shape: str, output: str, seed: int
) -> None:
    text = MATMUL.format(
        attributes=attributes, operands=operands, shape=shape, output=output, left="4, 5"
    )
    network = fused(text)
    assert infer(network)["y"][1:] == tuple(int(size) for size in output.split(", ")[1:])
    analysis = analyze(network)
    if output.endswith("5"):  # the columns of u are put out
        assert analysis.groups == ()
        return
    plan = random_plan(network, analysis, seed + 1)
    agreeing(network, analysis, plan, tolerance=1e-5)
    assert changed(network, reference(network, analysis, plan))


def test_batch_axes_may_stand_between_rows_and_columns() -> None:
    network = fused("""(float[3, 2, 4] a, float[4, 2, 5] b) => (float[2, 3, 5] y) {
        y = com.microsoft.FusedMatMul<transBatchA = 1, transBatchB = 1>(a, b)
    }""")
    assert infer(network)["y"] == (2, 3, 5)
    assert coupled(network, "a[1]", "y[0]") == straight(2)
    assert coupled(network, "a[0]", "y[1]") == straight(3)
    assert coupled(network, "a[2]", "b[0]") == straight(4)
    assert coupled(network, "b[2]", "y[2]") == straight(5)
    assert macs(network, analyze(network)) == 2 * 3 * 4 * 5


ACTIVATIONS = """(float[N, 4] x) => (float[N, 2] y)
<float[4, 5] w, float[5] b, float[5, 2] v> {{
    h = MatMul(x, w)
    g = com.microsoft.{op}(h{bias})
    y = MatMul(g, v)
}}"""


@pytest.mark.ort
@pytest.mark.parametrize(
    ("op", "bias"),
    [("BiasGelu", ", b"), ("FastGelu", ", b"), ("FastGelu", ""), ("QuickGelu", ""), ("Gelu", "")],
)
def test_activations_with_a_bias(op: str, bias: str) -> None:
    network = fused(ACTIVATIONS.format(op=op, bias=bias))
    analysis = analyze(network)
    (group,) = analysis.groups
    assert (Axis("b", 0) in {member.axis for member in group.members}) == bool(bias)
    plan = random_plan(network, analysis, 1)
    agreeing(network, analysis, plan, tolerance=1e-5)
    assert changed(network, reference(network, analysis, plan))
    found = trace(network, analysis, group)
    assert found is not None
    assert found.kind is Kind.SMOOTH
    assert found.rows.shape == (5, 5 if bias else 4)


@pytest.mark.ort
def test_an_embedding_with_its_normalization() -> None:
    network = fused("""(int32[N, 5] ids, int32[N, 5] segments) => (float[N, 5, 2] y)
    <float[9, 6] words, float[5, 6] positions, float[2, 6] kinds, float[6] scale, float[6] shift,
     float[6, 2] v> {
        e, m = com.microsoft.EmbedLayerNormalization(
            ids, segments, words, positions, kinds, scale, shift)
        y = MatMul(e, v)
    }""")
    analysis = analyze(network)
    (group,) = analysis.groups
    assert group.size == 6
    assert not group.exact
    keep = {"words": np.array([True, False, True, True, False, True])}
    plan = Plan(keep=keep)
    smaller, expected = prune(network, analysis, plan).model, reference(network, analysis, plan)
    rng = np.random.default_rng(0)
    data = {
        "ids": rng.integers(0, 9, (3, 5), dtype=np.int32),
        "segments": rng.integers(0, 2, (3, 5), dtype=np.int32),
    }
    assert compare(expected, smaller, data, device=DEVICE, tolerance=1e-5).holds
    assert not compare(network, smaller, data, device=DEVICE, tolerance=1e-2).holds
    assert array(smaller, "kinds").shape == (2, 4)
