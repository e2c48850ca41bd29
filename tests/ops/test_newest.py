"""Operators of the newest opsets, and those few models contain: compared with ONNX's definition."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import feeds, frozen, members, model
from onnx.reference import ReferenceEvaluator
from strategies import random_plan

from onnxprune.base import Array, Axis, Choice, Plan, Reason
from onnxprune.graph.cost import macs
from onnxprune.graph.couplings import facts
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.graph.shapes import settle
from onnxprune.ops.attention import D
from onnxprune.ops.registry import COUPLES
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.verify import agreement


def computed(network: ir.Model, data: dict[str, Array]) -> dict[str, Array]:
    """The outputs by ONNX's reference implementation."""
    names = [value.name or "" for value in network.graph.outputs]
    return dict(zip(names, ReferenceEvaluator(ir.to_proto(network)).run(names, data), strict=True))


def agreeing(network: ir.Model, analysis: Analysis, plan: Plan, *, tolerance: float) -> ir.Model:
    smaller = prune(network, analysis, plan).model
    data = feeds(network)
    expected = computed(reference(network, analysis, plan), data)
    result = agreement(expected, computed(smaller, data), tolerance=tolerance)
    assert result.holds, f"pruned and reference differ by {result.relative:.2e}"
    assert not agreement(computed(network, data), expected, tolerance=1e-3).holds
    return smaller


CAUSAL = """(float[N, 7, 4] x{inputs}) => (float[N, 7, 2] y)
<float[4, 6] e, float[6, 1, 3] w, float[6] b, float[6, 2] v> {{
    u = MatMul(x, e)
    t = Transpose<perm = [0, 2, 1]>(u)
    c, state = CausalConvWithState<activation = "silu">(t, w{more})
    r = Transpose<perm = [0, 2, 1]>(c)
    y = MatMul(r, v)
}}"""


@pytest.mark.parametrize("more", ["", ", b"])
def test_causal_convolutions_lose_channels(more: str) -> None:
    network = model(CAUSAL.format(inputs="", more=more), opset=27, ir_version=13)
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [6]
    expected = {"e[1]", "t[1]", "w[0]", "c[1]", "state[1]", "v[0]"} | ({"b[0]"} if more else set())
    assert expected <= members(analysis.groups[0]).keys()
    agreeing(network, analysis, random_plan(network, analysis, 0), tolerance=1e-5)


def test_a_given_state_keeps_its_channels() -> None:
    text = CAUSAL.format(inputs=", float[N, 6, 2] past", more=", b, past")
    network = model(text, opset=27, ir_version=13)
    assert analyze(network).groups == ()


LINEAR = """(float[N, 5, 8] x) => (float[N, 5, 2] y)
<float[8, 12] q, float[8, 6] k, float[8, 4] v, float[8, {g}] d, float[8, 2] b, float[8, 2] o> {{
    a = MatMul(x, q)
    c_0 = MatMul(x, k)
    c = Tanh(c_0)
    e = MatMul(x, v)
    g_0 = MatMul(x, d)
    g_1 = Sigmoid(g_0)
    g = Neg(g_1)
    s_0 = MatMul(x, b)
    s = Sigmoid(s_0)
    h, state = LinearAttention<q_num_heads = 4, kv_num_heads = 2, update_rule = "{rule}">(
        a, c, e{gates})
    y = MatMul(h, o)
}}"""
RULES = [
    ("linear", "", 2),
    ("gated", ", , g", 2),
    ("gated", ", , g", 6),
    ("gated_delta", ", , g, s", 2),
]


@pytest.mark.parametrize(("rule", "gates", "width"), RULES)
@pytest.mark.parametrize("seed", [0, 1])
def test_linear_attention_loses_key_heads(rule: str, gates: str, width: int, seed: int) -> None:
    text = LINEAR.format(rule=rule, gates=gates, g=width)
    network = model(text, opset=27, ir_version=13, seed=seed)
    analysis = analyze(network)
    heads = next(group for group in analysis.groups if group.size == 2)
    assert heads.member(Axis("q", 1)).index[1].tolist() == list(range(6, 12))
    assert heads.member(Axis("o", 0)).index[1].tolist() == list(range(4, 8))
    plan = Plan(keep={heads.name: np.array([seed == 0, seed == 1])})
    smaller = agreeing(network, analysis, plan, tolerance=1e-5)
    (node,) = [node for node in smaller.graph if node.op_type == "LinearAttention"]
    assert [node.attributes[n].value for n in ("q_num_heads", "kv_num_heads")] == [2, 1]


@pytest.mark.parametrize(("more", "whole"), [("", frozenset()), ("state", {D})])
def test_keys_keep_their_head_size_where_the_state_is_read(more: str, whole: set[int]) -> None:
    outputs = "(float[N, 5, 2] y, float[N, 2, 3, 2] state)" if more else "(float[N, 5, 2] y)"
    text = LINEAR.format(rule="linear", gates="", g=2).replace("(float[N, 5, 2] y)", outputs)
    network = model(text, opset=27, ir_version=13)
    choices = [fact for _, fact in facts(network, *settle(network)) if isinstance(fact, Choice)]
    assert [fact.whole for fact in choices] == [whole]
    assert macs(network, analyze(network)) > 5 * 2 * 3 * 3 * 2


@pytest.mark.parametrize("groups", [1, 2])
def test_deformed_convolutions_lose_channels(groups: int) -> None:
    network = model(
        f"""(float[N, 3, 5, 5] x) => (float[N, 2, 3, 3] y)
        <float[4, 3, 1, 1] e, float[{18 * groups}, 3, 3, 3] p, float[6, 4, 3, 3] w, float[6] b,
         float[2, 6, 1, 1] v> {{
            h = Conv(x, e)
            offset = Conv(x, p)
            d = DeformConv<kernel_shape = [3, 3], offset_group = {groups}>(h, w, offset, b)
            y = Conv(d, v)
        }}""",
        opset=22,
        ir_version=10,
    )
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == ([4, 6] if groups == 1 else [6])
    assert Reason.POSITIONS in frozen(network, "offset[1]")
    agreeing(network, analysis, random_plan(network, analysis, 0), tolerance=1e-4)


def test_gated_activation_of_two_inputs() -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 2] y) <float[4, 6] a, float[4, 6] b, float[6, 2] v> {
            g = MatMul(x, a) u = MatMul(x, b) h = SwiGLU(g, u) y = MatMul(h, v) }""",
        opset=28,
        ir_version=13,
    )
    analysis = analyze(network)
    assert {"a[1]", "b[1]", "v[0]"} <= members(analysis.groups[0]).keys()
    agreeing(network, analysis, random_plan(network, analysis, 0), tolerance=1e-5)


KEEPING = [
    ("CumProd(h, one)", 26, {"one": 1}),
    ("Bernoulli(h)", 17, {}),
    ("RandomNormalLike(h)", 17, {}),
]


@pytest.mark.parametrize(("text", "opset", "constants"), KEEPING)
def test_what_must_keep_its_size(text: str, opset: int, constants: dict[str, int]) -> None:
    network = model(
        f"""(float[N, 4] x) => (float[N, 2] y) <float[4, 6] w, float[6, 2] v> {{
            h = MatMul(x, w) a = {text} y = MatMul(a, v) }}""",
        opset=opset,
        ir_version=10,
        **constants,
    )
    assert analyze(network).groups == ()
    assert Reason.POSITIONS in frozen(network, "h[1]")


def test_the_transform_of_a_signal_lets_channels_go() -> None:
    network = model(
        """(float[N, 4, 8, 1] x) => (float[N, 8, 2, 3] y) <float[4, 6] w, float[6, 3] v> {
            t = Transpose<perm = [0, 2, 3, 1]>(x)
            h = MatMul(t, w)
            s = Transpose<perm = [0, 3, 1, 2]>(h)
            f = DFT(s, , axis)
            r = Transpose<perm = [0, 2, 3, 1]>(f)
            y = MatMul(r, v)
        }""",
        opset=20,
        ir_version=10,
        axis=2,
    )
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [6]
    assert Reason.POSITIONS in frozen(network, "f[2]")
    agreeing(network, analysis, random_plan(network, analysis, 0), tolerance=1e-5)


FROZEN = {
    "sequences and optional values": {
        "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt",
        "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
        "SequenceMap", "SplitToSequence",
    },
    "text and files": {
        "ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit",
        "TfIdfVectorizer",
    },
}  # fmt: skip


def test_every_operator_has_a_rule_or_a_reason() -> None:
    """Of the standard domain, in any version that a file can declare."""
    known = {op_type for domain, op_type, *_ in COUPLES.rows() if not domain}
    defined = {s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain}
    reasons = {op_type for op_types in FROZEN.values() for op_type in op_types}
    assert defined - known == reasons
    assert not reasons & known
