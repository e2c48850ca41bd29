"""Removals across operators that see all units at once: pruned and reference agree all the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import pytest
from checks import agreeing, changed
from graphs import array, feeds, model
from onnx.reference import ReferenceEvaluator
from strategies import random_plan

from onnxprune.base import Plan, Window
from onnxprune.graph.consumers import absorber
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.methods.candidates import readers
from onnxprune.model import set_constant
from onnxprune.rewrite.checked import checked_prune
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.verify import compare

ROW = """(float[N, 3, 4] x) => (float[N, 3, 2] y)
<float[4, 6] w, float[6] s, float[6] b, float[6, 2] v> {
    h = MatMul(x, w)
    %s
    y = MatMul(n, v)
}"""
MAP = """(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
<float[6, 3, 1, 1] w, float[6] s, float[6] b, float[2, 6, 1, 1] v> {
    h = Conv(x, w)
    %s
    y = Conv(n, v)
}"""
MEANS = """
    m = ReduceMean<axes = [-1]>(h)
    c = Sub(h, m)
    q = %s
    a = ReduceMean<axes = [-1]>(q)
    e = Add(a, epsilon)
    d = Sqrt(e)
    %s
    k = Mul(z, s)
    n = Add(k, b)
"""
GATED = "r = %s(h) t = Mul(r, h) n = Add(t, h)"


@dataclass(frozen=True)
class Case:
    """A graph with the oldest and newest opset it is written for, and constants of it."""

    text: str
    opsets: tuple[int, ...]
    exact: bool = False
    constants: Mapping[str, object] | None = None

    def build(self, opset: int) -> ir.Model:
        vendor = "com.microsoft" in self.text
        return model(self.text, opset=opset, vendor=vendor, **(self.constants or {}))


SMALL = {"epsilon": np.float32(1e-5), "two": np.float32(2), "half": np.float32(0.5)}
CASES = {
    "layer norm": Case(ROW % "n = LayerNormalization(h, s, b)", (17, 21)),
    "layer norm, unscaled": Case(ROW % "n = LayerNormalization<epsilon = 0.1>(h, s)", (17,)),
    "mean, pow, sqrt, div": Case(
        ROW % MEANS % ("Pow(c, two)", "z = Div(c, d)"), (7, 9, 11, 13, 17), constants=SMALL
    ),
    "mean, mul, reciprocal": Case(
        ROW % MEANS % ("Mul(c, c)", "i = Reciprocal(d) z = Mul(c, i)"), (7, 17), constants=SMALL
    ),
    "axes as an input": Case(
        ROW
        % re.sub(r"<axes = \[-1\]>\((\w)\)", r"(\1, last)", MEANS)
        % ("Pow(c, two)", "z = Div(c, d)"),
        (18, 20),
        constants={**SMALL, "last": [-1]},
    ),
    "mean of squares less square of mean": Case(
        ROW
        % """m = ReduceMean<axes = [2]>(h)
        g = Mul(h, h) a = ReduceMean<axes = [2]>(g) u = Mul(m, m) o = Sub(a, u)
        p = Max(o, epsilon) d = Sqrt(p) c = Sub(h, m) n = Div(c, d)""",
        (8, 17),
        constants=SMALL,
    ),
    "rms in primitives": Case(
        ROW
        % """q = Pow(h, two) a = ReduceMean<axes = [-1]>(q) e = Add(a, epsilon)
        p = Pow(e, half) z = Div(h, p) n = Mul(z, s)""",
        (7, 17),
        constants=SMALL,
    ),
    "softmax": Case(ROW % "n = Softmax<axis = 2>(h)", (7, 11, 13, 20)),
    "softmax over two axes": Case(ROW % "n = Softmax(h)", (7, 11)),
    "log softmax": Case(ROW % "n = LogSoftmax<axis = -1>(h)", (11, 13)),
    "softmax in primitives": Case(
        ROW
        % """m = ReduceMax<axes = [-1]>(h) c = Sub(h, m) e = Exp(c)
        t = ReduceLogSumExp<axes = [-1]>(c) l = Exp(t) n = Div(e, l)""",
        (11, 17),
    ),
    "hardmax": Case(ROW % "n = Hardmax<axis = -1>(h)", (13,)),
    "lp norm": Case(ROW % "n = LpNormalization<axis = -1>(h)", (7, 17)),
    "channel layer norm": Case(
        MAP
        % """t = Transpose<perm = [0, 2, 3, 1]>(h) l = LayerNormalization(t, s, b)
        n = Transpose<perm = [0, 3, 1, 2]>(l)""",
        (17,),
    ),
    "lrn": Case(MAP % "n = LRN<size = 3, alpha = 0.8, bias = 0.5>(h)", (7, 13)),
    "lrn over nearly all": Case(MAP % "n = LRN<size = 5, alpha = 0.8>(h)", (13,)),
    "mvn over channels": Case(MAP % "n = MeanVarianceNormalization<axes = [1, 2]>(h)", (9, 13)),
    "mvn over positions": Case(MAP % "n = MeanVarianceNormalization(h)", (9, 13), exact=True),
    "instance norm": Case(MAP % "n = InstanceNormalization(h, s, b)", (7, 17), exact=True),
    "group norm": Case(
        MAP % "n = GroupNormalization<num_groups = 3>(h, s, b)", (21,), exact=True
    ),
    "group norm of single channels": Case(
        MAP % "n = GroupNormalization<num_groups = 6>(h, s, b)", (21,), exact=True
    ),
    "group norm of all": Case(MAP % "n = GroupNormalization<num_groups = 1>(h, s, b)", (21,)),
    "group norm of a number per group": Case(
        MAP.replace("float[6] s, float[6] b", "float[3] s, float[3] b")
        % "n = GroupNormalization<num_groups = 3>(h, s, b)",
        (18, 20),
        exact=True,
    ),
    "group norm in primitives": Case(
        MAP.replace("float[6] s, float[6] b", "float[3] s, float[3] b")
        % """r = Reshape(h, grouped) i = InstanceNormalization(r, s, b) n = Reshape(i, back)""",
        (7, 17),
        exact=True,
        constants={"grouped": [0, 3, -1], "back": [0, 6, 4, 4]},
    ),
    "group norm by stripes": Case(
        MAP.replace("(float[N, 3, 4, 4] x)", "(float[N, 3, 4, 4] x, float[3] s, float[3] b)")
        .replace("float[6] s, float[6] b,", "")
        % "n = GroupNormalization<num_groups = 3>(h, s, b)",
        (18,),
    ),
    **{
        op: Case(ROW % GATED % f"{op}<axes = [2]>", (7, 13), exact=op in ("ReduceL1", "ReduceL2"))
        for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2")
    },
    "sum": Case(ROW % GATED % "ReduceSum<axes = [2]>", (7, 12), exact=True),
    "mean of everything": Case(ROW % "r = ReduceMean(h) n = Sub(h, r)", (7, 13)),
    "means and maxima as maps": Case(
        """(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[6, 3, 1, 1] w, float[1, 2, 1, 1] g, float[2, 6, 1, 1] v> {
            h = Conv(x, w)
            m = ReduceMean<axes = [1], keepdims = 1>(h)
            p = ReduceMax<axes = [1], keepdims = 1>(h)
            c = Concat<axis = 1>(m, p)
            a = Conv(c, g)
            t = Sigmoid(a)
            n = Mul(h, t)
            y = Conv(n, v)
        }""",
        (11, 17),
    ),
    "a mean that is the end": Case(
        """(float[N, 3, 4] x) => (float[N, 3] y) <float[4, 6] w> {
            h = MatMul(x, w)
            t = Tanh(h)
            y = ReduceMean<axes = [2], keepdims = 0>(t)
        }""",
        (11,),
    ),
    "two axes at once": Case(
        """(float[N, 4] x) => (float[N, 2] y)
        <float[4, 15] w, float[3, 5] s, float[5, 6] u, float[18, 2] v> {
            h = Gemm(x, w)
            r = Reshape(h, split)
            n = LayerNormalization<axis = 1>(r, s)
            m = MatMul(n, u)
            f = Flatten(m)
            y = Gemm(f, v)
        }""",
        (17,),
        constants={"split": [-1, 3, 5]},
    ),
    "standardized weights": Case(
        """(float[N, 3, 4] x) => (float[N, 3, 2] y) <float[4, 6] w, float[6, 5] u, float[5, 2] v> {
            h = MatMul(x, w)
            m = ReduceMean<axes = [0], keepdims = 1>(u)
            c = Sub(u, m)
            q = ReduceL2<axes = [0], keepdims = 1>(c)
            z = Div(c, q)
            n = MatMul(h, z)
            y = MatMul(n, v)
        }""",
        (11, 17),
    ),
    "weights of length one": Case(
        """(float[N, 3, 4] x) => (float[N, 3, 2] y) <float[4, 6] w, float[6, 2] v> {
            h = MatMul(x, w)
            q = ReduceL2<axes = [0], keepdims = 1>(v)
            z = Div(v, q)
            y = MatMul(h, z)
        }""",
        (11, 17),
    ),
    "fused residual normalizations": Case(
        """(float[N, 3, 4] x) => (float[N, 3, 2] y)
        <float[4, 6] w, float[6] s, float[6] b, float[6] c, float[6, 6] u, float[6, 2] v> {
            h = MatMul(x, w)
            l, , , t = com.microsoft.SkipLayerNormalization(h, h, s, b, c)
            m = MatMul(l, u)
            g = com.microsoft.SkipSimplifiedLayerNormalization(m, t, s)
            r, , , n = com.microsoft.SkipLayerNormalization(g, m, s, b)
            a = Add(r, n)
            y = MatMul(a, v)
        }""",
        (17,),
    ),
    "a residual stream": Case(
        """(float[N, 3, 4] x) => (float[N, 3, 2] y)
        <float[4, 6] w, float[6] s, float[6] b, float[6, 8] u, float[8, 6] d, float[6] t,
         float[6] c, float[6, 2] v> {
            h = MatMul(x, w)
            l = LayerNormalization(h, s, b)
            m = MatMul(l, u)
            g = Relu(m)
            o = MatMul(g, d)
            r = Add(h, o)
            n = LayerNormalization(r, t, c)
            y = MatMul(n, v)
        }""",
        (17,),
    ),
}  # fmt: skip
WRITTEN = [
    pytest.param(name, opset, id=f"{name}, opset {opset}")
    for name, case in CASES.items()
    for opset in case.opsets
]


@pytest.mark.ort
@pytest.mark.parametrize(("name", "opset"), WRITTEN)
def test_a_removal_agrees_with_the_reference(name: str, opset: int) -> None:
    network = CASES[name].build(opset)
    analysis = analyze(network)
    different = []
    for seed in range(4):
        plan = random_plan(network, analysis, seed)
        if plan.removed():
            agreeing(network, analysis, plan, tolerance=1e-5)
            different.append(changed(network, reference(network, analysis, plan)))
    assert any(different)


@pytest.mark.ort
@pytest.mark.parametrize(("name", "opset"), WRITTEN)
def test_two_removals_one_after_the_other_agree_each(name: str, opset: int) -> None:
    network = CASES[name].build(opset)
    for seed in range(2):
        analysis = analyze(network)
        plan = random_plan(network, analysis, seed + 1, exchange=False)
        network = agreeing(network, analysis, plan, tolerance=1e-5, batch=2 + seed)


@pytest.mark.parametrize("name", CASES)
def test_what_sees_all_units_makes_their_group_inexact(name: str) -> None:
    first = analyze(CASES[name].build(CASES[name].opsets[-1])).groups[0]
    assert first.exact == CASES[name].exact


@pytest.mark.ort
@pytest.mark.parametrize(
    "name",
    # The runtime divides by a deviation of 0 there.
    [name for name, case in CASES.items() if case.exact and name != "mvn over positions"],
)
def test_a_unit_that_is_zero_leaves_an_exact_group_unnoticed(name: str) -> None:
    network = CASES[name].build(CASES[name].opsets[-1])
    analysis = analyze(network)
    gone = analysis.groups[0].size - 1
    for member in analysis.groups[0].members:
        if member.axis.value in ("w", "b"):
            weight = np.moveaxis(array(network, member.axis.value).copy(), member.axis.position, 0)
            weight[member.index[gone]] = 0
            weight = np.moveaxis(weight, 0, member.axis.position)
            set_constant(network.graph.initializers[member.axis.value], weight)
    smaller = prune(network, analysis, without_last(analysis)).model
    assert compare(network, smaller, feeds(network), tolerance=1e-5).holds


def without_last(analysis: Analysis) -> Plan:
    """The last unit of the first group goes."""
    group = analysis.groups[0]
    return Plan(keep={group.name: np.arange(group.size) < group.size - 1})


@pytest.mark.ort
def test_a_dead_unit_across_a_normalization_is_never_called_exact() -> None:
    network = CASES["layer norm"].build(17)
    w, v = array(network, "w").copy(), array(network, "v").copy()
    w[:, -1] = v[-1] = 0
    set_constant(network.graph.initializers["w"], w)
    set_constant(network.graph.initializers["v"], v)
    analysis = analyze(network)
    plan = without_last(analysis)
    called = Plan(keep=plan.keep, exact={name: ~mask for name, mask in plan.keep.items()})
    outcome = checked_prune(network, analysis, called, feeds(network), tolerance=1e-5)
    assert outcome.plan.removed() == 1
    assert (outcome.exact, outcome.rolled_back) == (0, ())


def test_nothing_takes_over_for_a_unit_that_a_normalization_sees() -> None:
    network = CASES["layer norm"].build(17)
    analysis = analyze(network)
    (group,) = analysis.groups
    by_key = {view.key: view for view in views(network, analysis.shapes, analysis.known)}
    assert absorber(by_key["y"], group.consumers[0]) is not None
    ones = np.ones(group.size)
    window = Window(count=1, batches=1, total=ones, square=ones, low=ones, high=ones)
    seen = {consumer.axis: window for consumer in group.consumers}
    assert readers(group, by_key, analysis, seen) is None
    assert readers(replace(group, exact=True), by_key, analysis, seen) is not None


def evaluated(network: ir.Model) -> np.ndarray:
    """Output y by ONNX's own implementation, for opsets the runtime does not read."""
    inputs = feeds(network)
    (result,) = ReferenceEvaluator(ir.to_proto(network)).run(["y"], inputs)
    return np.asarray(result)


@pytest.mark.parametrize(
    "text",
    [
        ROW % "n = RMSNormalization(h, s)",
        ROW % "n = RMSNormalization<axis = -1, epsilon = 0.1>(h, s)",
        ROW % "n = LayerNormalization(h, s, b)",
        MAP % "n = GroupNormalization<num_groups = 2>(h, s, b)",
        MAP % "n = InstanceNormalization(h, s, b)",
        ROW % "n = Softmax(h)",
    ],
    ids=["rms", "rms with epsilon", "layer norm", "group norm", "instance norm", "softmax"],
)
def test_opset_23_agrees_by_the_reference_implementation(text: str) -> None:
    network = model(text, opset=23, ir_version=10)
    analysis = analyze(network)
    for plan in [random_plan(network, analysis, seed) for seed in range(4)]:
        if plan.removed():
            expected = evaluated(reference(network, analysis, plan))
            smaller = evaluated(prune(network, analysis, plan).model)
            np.testing.assert_allclose(smaller, expected, rtol=1e-4, atol=1e-5)
            assert not np.allclose(expected, evaluated(network), rtol=1e-3, atol=1e-4)
