from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from checks import DEVICE
from graphs import array, coupled, feeds, model, straight, view
from onnx.reference import ReferenceEvaluator
from strategies import random_plan

from onnxprune.base import Array, Axis, Plan
from onnxprune.graph.cost import macs
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.model import constant
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.verify import agreement, compare

VENDOR = "com.microsoft"


def fused(text: str, **constants: object) -> ir.Model:
    """A model that uses ONNX Runtime's own operators."""
    network = model(text, opset=17, **constants)
    network.graph.opset_imports[VENDOR] = 1
    return network


def computed(network: ir.Model, data: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs by ONNX's reference implementation, which knows operators of any opset."""
    names = [value.name or "" for value in network.graph.outputs]
    return dict(zip(names, ReferenceEvaluator(ir.to_proto(network)).run(names, data), strict=True))


def agreeing_by_reference(network: ir.Model, analysis: Analysis, plan: Plan) -> ir.Model:
    smaller = prune(network, analysis, plan).model
    expected = reference(network, analysis, plan)
    data = feeds(network)
    wanted = computed(expected, data)
    assert agreement(wanted, computed(smaller, data), tolerance=1e-5).holds
    assert not agreement(computed(network, data), wanted, tolerance=1e-3).holds
    return smaller


def agreeing_and_changed(
    network: ir.Model, analysis: Analysis, plan: Plan, data: Mapping[str, Array]
) -> ir.Model:
    smaller = prune(network, analysis, plan).model
    expected = reference(network, analysis, plan)
    found = compare(expected, smaller, data, device=DEVICE, tolerance=1e-5)
    assert found.holds, f"differ by {found.relative:.2e}"
    assert not compare(network, expected, data, device=DEVICE, tolerance=1e-3).holds
    return smaller


def chosen(analysis: Analysis, *kept: int) -> Plan:
    """Keep these units of the first group."""
    group = analysis.groups[0]
    return Plan(keep={group.name: np.isin(np.arange(group.size), kept)})


# ONNX's Attention: 6 query heads of size 4 on 2 or 6 key heads, values of size 3.
FLAT = """(float[N, 5, 8] x{inputs}) => (float[N, 5, 2] y)
<float[8, 24] q, float[8, {keys}] k, float[8, {values}] v, float[18, 2] o> {{
    a = MatMul(x, q)
    b = MatMul(x, k)
    c = MatMul(x, v)
    h = Attention<q_num_heads = 6, kv_num_heads = {heads}{more}>(a, b, c{slots})
    y = MatMul(h, o)
}}"""


def flat(heads: int, *, inputs: str = "", more: str = "", slots: str = "") -> ir.Model:
    sizes = {"keys": 4 * heads, "values": 3 * heads}
    text = FLAT.format(heads=heads, inputs=inputs, more=more, slots=slots, **sizes)
    return model(text, opset=23, ir_version=10)


def test_a_head_goes_with_its_queries_keys_and_values() -> None:
    analysis = analyze(flat(6))
    (group,) = analysis.groups
    members = {str(member.axis): member.index.shape for member in group.members}
    assert members["q[1]"] == members["k[1]"] == (6, 4)
    assert members["v[1]"] == members["o[0]"] == (6, 3)
    assert [consumer.node for consumer in group.consumers] == ["y"]
    assert group.exact


def test_a_key_head_goes_with_all_query_heads_that_read_it() -> None:
    (group,) = analyze(flat(2)).groups
    members = {str(member.axis): member.index.shape for member in group.members}
    assert members["q[1]"] == (2, 12)
    assert members["k[1]"] == (2, 4)
    assert group.members[0].index[1].tolist() == list(range(12, 24))


@pytest.mark.parametrize("heads", [2, 6, 1, 3])
@pytest.mark.parametrize("more", ["", ", is_causal = 1", ", scale = 0.3, softcap = 2.0"])
def test_heads_of_attention(heads: int, more: str) -> None:
    network = flat(heads, more=more)
    analysis = analyze(network)
    kept = {1: (0, 5), 2: (1,), 3: (0, 2), 6: (0, 4)}[heads]
    smaller = agreeing_by_reference(network, analysis, chosen(analysis, *kept))
    node = view(smaller, "Attention").node
    expected = {1: (2, 1), 2: (3, 1), 3: (4, 2), 6: (2, 2)}[heads]
    assert node.attributes["q_num_heads"].value == expected[0]
    assert node.attributes["kv_num_heads"].value == expected[1]
    assert ("scale" in node.attributes) == ("scale" in more)


@pytest.mark.parametrize("heads", [2, 6, 1])
def test_where_heads_must_stay_their_sizes_shrink_and_the_scale_is_written_out(heads: int) -> None:
    network = flat(heads, inputs=", float[1, 6, 5, 5] mask", slots=", mask")
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [4, 3]
    plan = Plan(
        keep={
            "q": np.array([True, False, True, False]),
            "v": np.array([False, True, True]),
        }
    )
    smaller = agreeing_by_reference(network, analysis, plan)
    node = view(smaller, "Attention").node
    assert node.attributes["scale"].value == pytest.approx(1 / math.sqrt(4))
    assert node.attributes["q_num_heads"].value == 6
    assert array(smaller, "q").shape == (8, 12)


def test_a_mask_with_heads_loses_theirs() -> None:
    network = model(
        """(float[N, 5, 8] x) => (float[N, 5, 2] y)
        <float[8, 12] q, float[8, 12] k, float[8, 12] v, float[3, 5, 5] mask, float[12, 2] o> {
            a = MatMul(x, q)
            b = MatMul(x, k)
            c = MatMul(x, v)
            h = Attention<q_num_heads = 3, kv_num_heads = 3>(a, b, c, mask)
            y = MatMul(h, o)
        }""",
        opset=23,
        ir_version=10,
    )
    analysis = analyze(network)
    smaller = agreeing_by_reference(network, analysis, chosen(analysis, 0, 2))
    assert array(smaller, "mask").shape == (2, 5, 5)


SPLIT = """(float[N, 5, 8] x) => (float[N, 5, 2] y)
<float[8, 12] q, float[8, {width}] k, float[8, {width}] v, float[7, 2] cos, float[7, 2] sin,
 float[12, 2] o> {{
    a = MatMul(x, q)
    a4 = Reshape(a, to_queries)
    at = Transpose<perm = [0, 2, 1, 3]>(a4)
    ar = RotaryEmbedding{rotary}(at, cos, sin, at_positions)
    b = MatMul(x, k)
    b4 = Reshape(b, to_keys)
    bt = Transpose<perm = [0, 2, 1, 3]>(b4)
    br = RotaryEmbedding{rotary}(bt, cos, sin, at_positions)
    c = MatMul(x, v)
    c4 = Reshape(c, to_keys)
    ct = Transpose<perm = [0, 2, 1, 3]>(c4)
    h = Attention(ar, br, ct)
    ht = Transpose<perm = [0, 2, 1, 3]>(h)
    hf = Reshape(ht, flat)
    y = MatMul(hf, o)
}}"""


def rotated(heads: int, rotary: str = "") -> ir.Model:
    return model(
        SPLIT.format(width=4 * heads, rotary=rotary),
        opset=23,
        ir_version=10,
        to_queries=[0, 5, 3, 4],
        to_keys=[0, 5, heads, 4],
        flat=[0, 5, 12],
        at_positions=np.tile(np.arange(5), (5, 1)),
    )


@pytest.mark.parametrize("rotary", ["", "<interleaved = 1>"])
def test_heads_of_rotated_queries_and_keys(rotary: str) -> None:
    network = rotated(3, rotary)
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [3]
    agreeing_by_reference(network, analysis, chosen(analysis, 1, 2))


@pytest.mark.parametrize("rotary", ["", "<interleaved = 1>"])
def test_with_one_key_head_query_heads_go_and_the_rotated_pairs_stay(rotary: str) -> None:
    network = rotated(1, rotary)
    analysis = analyze(network)
    assert analysis.groups[0].size == 3
    agreeing_by_reference(network, analysis, chosen(analysis, 0, 2))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("num_heads = 1", [[0, 3], [1, 4], [2, 5]]),
        ("num_heads = 1, interleaved = 1", [[0, 1], [2, 3], [4, 5]]),
        ("num_heads = 1, rotary_embedding_dim = 6", [[0, 3], [1, 4], [2, 5]]),
    ],
)
def test_pairs_that_are_rotated_together_go_together(
    attributes: str, expected: list[list[int]]
) -> None:
    network = model(
        f"""(float[N, 5, 4] x) => (float[N, 5, 2] y)
        <float[4, 6] w, float[9, 3] cos, float[9, 3] sin, float[6, 2] v> {{
            h = MatMul(x, w)
            r = RotaryEmbedding<{attributes}>(h, cos, sin, at_positions)
            y = MatMul(r, v)
        }}""",
        opset=23,
        ir_version=10,
        at_positions=np.tile(np.arange(5), (5, 1)),
    )
    analysis = analyze(network)
    (group,) = analysis.groups
    assert group.members[0].index.tolist() == expected
    smaller = agreeing_by_reference(network, analysis, chosen(analysis, 0, 2))
    assert array(smaller, "cos").shape == (9, 2)


def test_a_head_that_is_rotated_in_part_keeps_its_size() -> None:
    network = model(
        """(float[N, 5, 4] x) => (float[N, 5, 2] y)
        <float[4, 12] w, float[9, 2] cos, float[9, 2] sin, float[12, 2] v> {
            h = MatMul(x, w)
            r = RotaryEmbedding<num_heads = 2, rotary_embedding_dim = 4>(h, cos, sin, at_positions)
            y = MatMul(r, v)
        }""",
        opset=23,
        ir_version=10,
        at_positions=np.tile(np.arange(5), (5, 1)),
    )
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [2]
    agreeing_by_reference(network, analysis, chosen(analysis, 1))


def test_caches_of_the_graph_keep_the_heads() -> None:
    network = model(
        """(float[N, 5, 8] x, float[N, 2, P, 4] pk, float[N, 2, P, 4] pv)
        => (float[N, 5, 2] y, float[N, 2, S, 4] nk, float[N, 2, S, 4] nv)
        <float[8, 16] q, float[8, 8] k, float[8, 8] v, float[16, 2] o> {
            a = MatMul(x, q)
            b = MatMul(x, k)
            c = MatMul(x, v)
            h, nk, nv = Attention<q_num_heads = 4, kv_num_heads = 2>(a, b, c, , pk, pv)
            y = MatMul(h, o)
        }""",
        opset=23,
        ir_version=10,
    )
    analysis = analyze(network)
    (group,) = analysis.groups  # the query heads of every key head: one each
    assert group.size == 2
    assert group.members[0].index.tolist() == [
        [0, 1, 2, 3, 8, 9, 10, 11],
        [4, 5, 6, 7, 12, 13, 14, 15],
    ]
    smaller = agreeing_by_reference(network, analysis, chosen(analysis, 1))
    assert view(smaller, "Attention").node.attributes["q_num_heads"].value == 2
    assert view(smaller, "Attention").node.attributes["kv_num_heads"].value == 2


def test_macs_of_attention_are_heads_times_positions_times_sizes() -> None:
    network = flat(2)
    projections = 5 * 8 * (24 + 8 + 6) + 5 * 18 * 2
    assert macs(network, analyze(network)) == projections + 5 * 5 * 6 * (4 + 3)


PACKED = """(float[N, 5, 8] x{inputs}) => (float[N, 5, 2] y)
<float[8, 6] e, float[6, {width}] w, float[{width}] b, float[{last}, 2] o> {{
    u = MatMul(x, e)
    h = com.microsoft.Attention<num_heads = 3{more}>(u, w, b{slots})
    y = MatMul(h, o)
}}"""


@pytest.mark.ort
@pytest.mark.parametrize(
    ("width", "last", "more"),
    [(36, 12, ""), (30, 6, ", qkv_hidden_sizes = [12, 12, 6]"), (36, 12, ", unidirectional = 1")],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_packed_attention(width: int, last: int, more: str, seed: int) -> None:
    network = fused(PACKED.format(width=width, last=last, more=more, inputs="", slots=""))
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [6, 3]
    plan = random_plan(network, analysis, seed)
    if not plan.removed():
        plan = chosen(analysis, 0, 1)
    agreeing_and_changed(network, analysis, plan, feeds(network))


@pytest.mark.ort
def test_head_sizes_of_packed_attention() -> None:
    inputs, slots = ", float[N, 3, 5, 5] bias", ", , , bias"
    network = fused(PACKED.format(width=36, last=12, more="", inputs=inputs, slots=slots))
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [6, 4, 4]
    keep = {
        "w": np.array([True, False, True, True]),
        "w#2": np.array([False, True, True, False]),
    }
    smaller = agreeing_and_changed(network, analysis, Plan(keep=keep), feeds(network))
    node = view(smaller, "Attention").node
    assert list(node.attributes["qkv_hidden_sizes"].value) == [9, 9, 6]
    assert node.attributes["scale"].value == pytest.approx(0.5)


MULTI = """(float[N, 5, 8] x{inputs}) => (float[N, 5, 2] y)
<float[8, 12] q, float[8, 12] k, float[8, 9] v, float[33] b, float[9, 2] o> {{
    a = MatMul(x, q)
    c = MatMul(x, k)
    d = MatMul(x, v)
    h = com.microsoft.MultiHeadAttention<num_heads = 3>(a, c, d{slots})
    y = MatMul(h, o)
}}"""


@pytest.mark.ort
@pytest.mark.parametrize("slots", ["", ", b"])
def test_multi_head_attention(slots: str) -> None:
    network = fused(MULTI.format(inputs="", slots=slots))
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [3]
    smaller = agreeing_and_changed(network, analysis, chosen(analysis, 0, 2), feeds(network))
    assert view(smaller, "MultiHeadAttention").node.attributes["num_heads"].value == 2


@pytest.mark.ort
@pytest.mark.parametrize("slots", [", , , bias", ", b, , bias"])
def test_head_sizes_of_multi_head_attention(slots: str) -> None:
    network = fused(MULTI.format(inputs=", float[N, 3, 5, 5] bias", slots=slots))
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [4, 3]
    keep = {
        "q": np.array([True, False, True, False]),
        "v": np.array([True, False, True]),
    }
    agreeing_and_changed(network, analysis, Plan(keep=keep), feeds(network))


SHARED = """(float[N, 5, 8] x, int32[N] lengths, int32[1] total) => ({outputs})
<float[8, 64] q, float[8, 32] k, float[8, 32] v, float[64, 2] o> {{
    a = MatMul(x, q)
    b = MatMul(x, k)
    c = MatMul(x, v)
    h, nk, nv = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(
        a, b, c, , , lengths, total)
    y = MatMul(h, o)
}}"""


@pytest.mark.ort
@pytest.mark.parametrize(
    ("outputs", "first"),
    [
        ("float[N, 5, 2] y", list(range(32))),
        (
            "float[N, 5, 2] y, float[N, 2, 5, 16] nk, float[N, 2, 5, 16] nv",
            [*range(16), *range(32, 48)],
        ),
    ],
)
def test_group_query_attention(outputs: str, first: list[int]) -> None:
    network = fused(SHARED.format(outputs=outputs))
    analysis = analyze(network)
    (group,) = analysis.groups
    assert group.members[0].index[0].tolist() == first
    data = feeds(network, batch=3)
    data |= {"lengths": np.full(3, 4, np.int32), "total": np.array([5], np.int32)}
    agreeing_and_changed(network, analysis, chosen(analysis, 0), data)


@pytest.mark.ort
def test_rotation_by_the_runtime() -> None:
    network = fused(
        """(float[N, 5, 8] x) => (float[N, 5, 2] y)
        <float[8, 12] w, float[9, 2] cos, float[9, 2] sin, float[12, 2] v> {
            h = MatMul(x, w)
            r = com.microsoft.RotaryEmbedding<num_heads = 3>(h, at0, cos, sin)
            t = Tanh(r)
            y = MatMul(t, v)
        }""",
        at0=[0],
    )
    assert coupled(network, "x[2]", "w[0]") == straight(8)
    analysis = analyze(network)
    (group,) = analysis.groups
    assert group.size == 3
    smaller = agreeing_and_changed(network, analysis, chosen(analysis, 0, 2), feeds(network))
    assert view(smaller, "RotaryEmbedding").node.attributes["num_heads"].value == 2


@pytest.mark.ort
def test_a_scale_computed_from_the_head_size_stays() -> None:
    network = model(
        """(float[N, 5, 8] x, float[1, 3, 5, 5] mask) => (float[N, 5, 2] y)
        <float[8, 12] q, float[8, 12] k, float[8, 12] v, float[12, 2] o> {
            a = MatMul(x, q)
            a4 = Reshape(a, parted)
            at = Transpose<perm = [0, 2, 1, 3]>(a4)
            b = MatMul(x, k)
            b4 = Reshape(b, parted)
            bt = Transpose<perm = [0, 2, 3, 1]>(b4)
            c = MatMul(x, v)
            c4 = Reshape(c, parted)
            ct = Transpose<perm = [0, 2, 1, 3]>(c4)
            s = Shape(at)
            d = Gather(s, last)
            f = Cast<to = 1>(d)
            root = Sqrt(f)
            scores = MatMul(at, bt)
            scaled = Div(scores, root)
            masked = Add(scaled, mask)
            p = Softmax<axis = -1>(masked)
            h = MatMul(p, ct)
            ht = Transpose<perm = [0, 2, 1, 3]>(h)
            hf = Reshape(ht, flat)
            y = MatMul(hf, o)
        }""",
        parted=[0, 5, 3, 4],
        flat=[0, 5, 12],
        last=3,
    )
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [12, 12]
    keep = {
        "q": np.array([1, 0, 0, 1] * 2 + [0, 1, 0, 1]) > 0,
        "v": np.array([0, 1, 1, 0] * 2 + [1, 0, 0, 1]) > 0,
    }
    agreeing_and_changed(network, analysis, Plan(keep=keep), feeds(network))


PACKED_SHARED = """(float[N, 5, 8] x, int32[N] lengths, int32[1] total) => ({outputs})
<float[8, 128] w, float[64, 2] o> {{
    a = MatMul(x, w)
    h, nk, nv = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(
        a, , , , , lengths, total)
    y = MatMul(h, o)
}}"""


@pytest.mark.ort
@pytest.mark.parametrize("outputs", ["float[N, 5, 2] y"])
def test_packed_group_query_attention_loses_key_heads(outputs: str) -> None:
    """Queries of 4 heads, keys and values of 2, all of size 16, in one value."""
    network = fused(PACKED_SHARED.format(outputs=outputs))
    analysis = analyze(network)
    (group,) = analysis.groups
    assert group.size == 2
    first = [*range(32), *range(64, 80), *range(96, 112)]
    assert group.member(Axis("w", 1)).index[0].tolist() == first
    assert group.member(Axis("o", 0)).index[1].tolist() == list(range(32, 64))
    data = feeds(network, batch=3)
    data |= {"lengths": np.full(3, 4, np.int32), "total": np.array([5], np.int32)}
    smaller = agreeing_and_changed(network, analysis, chosen(analysis, 0), data)
    node = view(smaller, "GroupQueryAttention").node
    assert [node.attributes[n].value for n in ("num_heads", "kv_num_heads")] == [2, 1]


TOGETHER = """(float[N, 4, 6] x) => (float[N, 4, 2] y) <float[6, 36] w, float[12, 2] o> {
    a = MatMul(x, w)
    p = Reshape(a, five)
    h = com.microsoft.MultiHeadAttention<num_heads = 3>(p)
    y = MatMul(h, o)
}"""
PAIRS = """(float[N, 4, 6] x) => (float[N, 4, 2] y)
<float[6, 12] u, float[6, 24] w, float[12, 2] o> {
    q = MatMul(x, u)
    a = MatMul(x, w)
    p = Reshape(a, five)
    h = com.microsoft.MultiHeadAttention<num_heads = 3>(q, p)
    y = MatMul(h, o)
}"""


@pytest.mark.parametrize(("text", "count"), [(TOGETHER, 3), (PAIRS, 2)])
def test_packed_multi_head_attention_loses_heads(text: str, count: int) -> None:
    """(B, S, heads, which, head size): a fifth axis tells queries, keys and values apart."""
    network = model(text, vendor=True, five=[0, 0, 3, count, 4])
    analysis = analyze(network)
    (group,) = analysis.groups
    assert group.size == 3
    width = 4 * count
    assert group.member(Axis("w", 1)).index[1].tolist() == list(range(width, 2 * width))
    assert group.member(Axis("o", 0)).index[1].tolist() == list(range(4, 8))
    plan = Plan(keep={group.name: np.array([True, False, True])})
    smaller = prune(network, analysis, plan).model
    assert view(smaller, "MultiHeadAttention").node.attributes["num_heads"].value == 2
    assert array(smaller, "o").shape == (8, 2)
    (reshaped,) = [node for node in smaller.graph if node.op_type == "Reshape"]
    target = constant(reshaped.inputs[1])
    assert target is not None
    assert target.tolist() == [0, 0, 2, count, 4]
