from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from checks import agreeing, changed
from graphs import array, coupled, ended, frozen, group_members, members, model, rows, straight

from onnxprune.base import Axis, Inexact, Plan, Reason
from onnxprune.graph.couplings import facts
from onnxprune.graph.groups import analyze
from onnxprune.graph.parameters import trained
from onnxprune.graph.shapes import infer, settle
from onnxprune.graph.traces import trace
from onnxprune.ops.trace import Kind


def inexact(network: ir.Model) -> set[str]:
    """Axes along which rules say that a removal changes the rest."""
    found = facts(network, *settle(network))
    return {str(fact.axis) for _, fact in found if isinstance(fact, Inexact)}


def test_layer_normalization_couples_scale_and_shift_along_its_axes() -> None:
    network = model("""(float[N, 3, 4] x) => (float[N, 3, 4] y) <float[3, 4] s, float[4] b> {
        y = LayerNormalization<axis = 1>(x, s, b)
    }""")
    assert coupled(network, "x[1]", "y[1]") == coupled(network, "s[0]", "y[1]") == straight(3)
    assert coupled(network, "s[1]", "y[2]") == coupled(network, "b[0]", "y[2]") == straight(4)
    assert inexact(network) == {"x[1]", "x[2]"}


def test_the_statistics_that_layer_normalization_puts_out_keep_the_axes_before() -> None:
    network = model("""(float[2, 3, 4] x) => (float[2, 3, 4] y, float[2, 3, 1] m, float[2, 3, 1] d)
    <float[4] s, float[4] b> {
        y, m, d = LayerNormalization(x, s, b)
    }""")
    assert coupled(network, "m[1]", "y[1]") == coupled(network, "d[1]", "y[1]") == straight(3)
    assert coupled(network, "d[0]", "y[0]") == straight(2)


def test_rms_normalization_couples_its_scale() -> None:
    network = model(
        "(float[N, 4] x) => (float[N, 4] y) <float[4] s> { y = RMSNormalization(x, s) }", opset=23
    )
    assert coupled(network, "s[0]", "y[1]") == coupled(network, "x[1]", "y[1]") == straight(4)
    assert inexact(network) == {"x[1]"}


def test_a_unit_of_a_residual_stream_goes_with_all_normalizations_on_it() -> None:
    network = model("""(float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] w, float[4] s, float[4] b, float[4, 6] u, float[6, 4] d, float[4, 2] v> {
        h = MatMul(x, w)
        n = LayerNormalization(h, s, b)
        m = MatMul(n, u)
        r = MatMul(m, d)
        z = Add(h, r)
        y = MatMul(z, v)
    }""")
    stream, inner = analyze(network).groups
    assert (stream.name, stream.size, stream.exact) == ("w", 4, False)
    assert (inner.name, inner.size, inner.exact) == ("u", 6, True)
    assert {str(consumer.axis) for consumer in stream.consumers} == {"n[1]", "z[1]"}


@pytest.mark.parametrize("skip", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_a_fused_residual_normalization_couples_both_summands_and_the_sum(skip: str) -> None:
    vectors = "s, b, c" if skip == "SkipLayerNormalization" else "s, b"
    network = model(
        f"""(float[N, 5, 4] x, float[N, 5, 4] r) => (float[N, 5, 4] y, float[N, 5, 4] t)
        <float[4] s, float[4] b, float[4] c> {{
            y, , , t = com.microsoft.{skip}(x, r, {vectors})
        }}""",
        vendor=True,
    )
    for name in ("x[2]", "r[2]", "t[2]", *(f"{vector}[0]" for vector in vectors.split(", "))):
        assert coupled(network, name, "y[2]") == straight(4)
    assert coupled(network, "r[1]", "y[1]") == straight(5)
    assert inexact(network) == {"x[2]"}


def test_fused_operators_that_inference_does_not_know_have_sizes() -> None:
    network = model(
        """(int32[N, 5] ids) => (float[N, 5, 3] y)
        <float[11, 8] words, float[6, 8] places, float[8] g, float[8] b, float[8, 3] v> {
            e, k, s = com.microsoft.EmbedLayerNormalization(ids, , words, places, , g, b)
            n = com.microsoft.SimplifiedLayerNormalization(e, g)
            z, , , t = com.microsoft.SkipSimplifiedLayerNormalization(n, s, g)
            r = Add(z, t)
            y = MatMul(r, v)
        }""",
        vendor=True,
    )
    shapes = infer(network)
    assert {name: shapes[name] for name in "ekst"} == {
        "e": (None, 5, 8), "k": (None,), "s": (None, 5, 8), "t": (None, 5, 8),
    }  # fmt: skip
    (group,) = analyze(network).groups
    assert (group.size, group.exact) == (8, False)
    assert {"words[1]", "places[1]", "g[0]", "b[0]", "v[0]"} <= {str(m.axis) for m in group.members}
    assert Reason.POSITIONS in frozen(network, "words[0]")


def test_instance_normalization_works_on_each_channel_alone() -> None:
    network = model("""(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
    <float[5, 3, 1, 1] w, float[5] s, float[5] b, float[2, 5, 1, 1] v> {
        h = Conv(x, w)
        n = InstanceNormalization(h, s, b)
        y = Conv(n, v)
    }""")
    assert inexact(network) == {"h[2]", "h[3]"}
    analysis = analyze(network)
    (group,) = analysis.groups
    assert group.exact
    found = trace(network, analysis, group)
    assert found is not None
    assert found.kind is Kind.EQUAL
    assert found.rows.shape == (5, 3 + 2)


GROUPED = """(float[N, 3, 4, 4] x%s) => (float[N, 2, 4, 4] y)
<float[6, 3, 1, 1] w, %s float[%s] b, float[2, 6, 1, 1] v> {
    h = Conv(x, w)
    n = GroupNormalization<num_groups = 3>(h, s, b)
    y = Conv(n, v)
}"""


def test_group_normalization_loses_whole_groups_exactly() -> None:
    network = model(GROUPED % ("", "float[6] s,", "6"), opset=21)
    (group,) = group_members(network)
    assert group["w[0]"] == group["s[0]"] == group["b[0]"] == group["v[1]"]
    assert group["n[1]"] == [[0, 1], [2, 3], [4, 5]]
    assert analyze(network).groups[0].exact


def test_before_opset_21_scale_and_shift_are_per_group() -> None:
    network = model(GROUPED % ("", "float[3] s,", "3"), opset=18)
    (group,) = group_members(network)
    assert group["s[0]"] == group["b[0]"] == rows(3)
    assert group["n[1]"] == [[0, 1], [2, 3], [4, 5]]


def test_group_normalization_loses_stripes_where_the_groups_must_stay() -> None:
    network = model(GROUPED % (", float[3] s", "", "3"), opset=18)
    (group,) = analyze(network).groups
    assert group.member(Axis("n", 1)).index.tolist() == [[0, 2, 4], [1, 3, 5]]
    assert not group.exact


def test_group_normalization_of_an_unknown_number_of_channels_stays() -> None:
    network = model(
        """(float[N, C, 4] x) => (float[N, C, 4] y) <float[3] s, float[3] b> {
            y = GroupNormalization<num_groups = 3>(x, s, b)
        }""",
        opset=18,
    )
    assert Reason.POSITIONS in frozen(network, "x[2]")
    assert group_members(network) == []


@pytest.mark.parametrize(
    ("node", "normalized"),
    [
        ("LRN<size = 3>", {"a[1]"}),
        ("LpNormalization<axis = -1>", {"a[3]"}),
        ("LpNormalization<axis = 1, p = 1>", {"a[1]"}),
        ("MeanVarianceNormalization", {"a[0]", "a[2]", "a[3]"}),
        ("MeanVarianceNormalization<axes = [1]>", {"a[1]"}),
    ],
)
def test_plain_normalizations_are_inexact_along_their_axes(node: str, normalized: set[str]) -> None:
    network = model(
        f"(float[2, 3, 4, 5] x) => (float[2, 3, 4, 5] y) {{ a = Relu(x) y = {node}(a) }}"
    )
    assert inexact(network) == normalized
    for position, size in enumerate((2, 3, 4, 5)):
        assert coupled(network, f"a[{position}]", f"y[{position}]") == straight(size)


@pytest.mark.parametrize(
    ("opset", "body", "constants"),
    [
        (17, "y = ReduceMean<axes = [2, 3], keepdims = 0>(a)", {}),
        (18, "y = ReduceMean<keepdims = 0>(a, axes)", {"axes": [-2, -1]}),
        (13, "y = ReduceSum<keepdims = 0>(a, axes)", {"axes": [2, 3]}),
    ],
)
def test_reduced_axes_end_and_the_others_remain(
    opset: int, body: str, constants: dict[str, list[int]]
) -> None:
    text = f"(float[N, 3, 4, 4] x) => (float[N, 3] y) {{ a = Relu(x) {body} }}"
    network = model(text, opset=opset, **constants)
    assert coupled(network, "a[1]", "y[1]") == straight(3)
    assert ended(network) == {"a[2]", "a[3]"}
    assert inexact(network) == (set() if "Sum" in body else {"a[2]", "a[3]"})


def test_a_reduction_along_axes_that_are_computed_keeps_all_of_them() -> None:
    network = model(
        """(float[2, 3] x, int64[1] axes) => (float[1, 3] y) {
            a = Relu(x)
            y = ReduceSum(a, axes)
        }""",
        opset=13,
    )
    assert frozen(network, "a[0]")
    assert frozen(network, "a[1]")


def test_a_sum_over_a_constant_is_inexact() -> None:
    network = model("""(float[N, 3] x) => (float[N, 4] y) <float[3, 4] w> {
        q = ReduceSumSquare<axes = [0], keepdims = 1>(w)
        n = Sqrt(q)
        u = Div(w, n)
        h = Relu(x)
        y = MatMul(h, u)
    }""")
    assert inexact(network) == {"w[0]"}


@pytest.mark.parametrize(("opset", "normalized"), [(11, {"a[1]", "a[2]"}), (13, {"a[2]"})])
def test_softmax_is_inexact_along_what_it_normalizes_over(opset: int, normalized: set[str]) -> None:
    network = model(
        "(float[2, 3, 4] x) => (float[2, 3, 4] y) { a = Relu(x) y = Softmax(a) }", opset=opset
    )
    assert inexact(network) == normalized
    for position, size in enumerate((2, 3, 4)):
        assert coupled(network, f"a[{position}]", f"y[{position}]") == straight(size)


def test_a_layer_normalization_in_primitives_ends_its_axis_at_both_means() -> None:
    network = model("""(float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 2] v> {
        h = MatMul(x, w)
        m = ReduceMean<axes = [-1]>(h)
        c = Sub(h, m)
        q = Mul(c, c)
        s = ReduceMean<axes = [-1]>(q)
        d = Sqrt(s)
        n = Div(c, d)
        y = MatMul(n, v)
    }""")
    (group,) = analyze(network).groups
    assert not group.exact
    assert [(c.node, str(c.axis)) for c in group.consumers] == [
        ("m", "h[1]"), ("s", "q[1]"), ("y", "n[1]"),
    ]  # fmt: skip


def test_scales_and_shifts_behind_a_weighted_operator_are_trained() -> None:
    network = model(
        """(float[N, 3, 4] x) => (float[N, 4, 4] y)
        <float[4, 3, 1] w, float[4] s, float[4] b, float[4] g, float[4] k> {
            h = Conv(x, w)
            n = InstanceNormalization(h, s, b)
            y = GroupNormalization<num_groups = 2>(n, g, k)
        }""",
        opset=21,
    )
    assert set(trained(network, analyze(network)).parameters) == {"w", "s", "b", "g", "k"}


# GroupNormalization as exporters write it, in images of open size: 3 groups of 2 channels.
IN_PARTS = """(float[{batch}, 4, H, W] x) => (float[{batch}, 5, P, Q] y)
<float[6, 4, 1, 1] a, float[6] a_b, float[3] one, float[3] nought, float[6, 1, 1] s,
 float[6, 1, 1] t, float[5, 6, 1, 1] b> {{
    h = Conv(x, a, a_b)
    {body}
    m = Mul(back, s)
    n = Add(m, t)
    r = Relu(n)
    y = Conv(r, b)
}}"""
INSTANCE = """g = Reshape(h, three)
    n_g = InstanceNormalization(g, one, nought)
    size = Shape(h)
    back = Reshape(n_g, size)"""
MEANS = """g = Reshape(h, three)
    mean = ReduceMean<axes = [2]>(g)
    d = Sub(g, mean)
    q = Mul(d, d)
    v = ReduceMean<axes = [2]>(q)
    w = Sqrt(v)
    n_g = Div(d, w)
    size = Shape(h)
    back = Reshape(n_g, size)"""
SPELLED = """g = Reshape(h, three)
    n_g = InstanceNormalization(g, one, nought)
    size = Shape(h)
    n_0 = Gather(size, nil)
    n_1 = Unsqueeze(n_0, nils)
    rest = Slice(size, twos, fours)
    target = Concat<axis = 0>(n_1, six, rest)
    back = Reshape(n_g, target)"""


@pytest.mark.ort
@pytest.mark.parametrize("body", [INSTANCE, MEANS, SPELLED])
@pytest.mark.parametrize(("batch", "three"), [("N", [0, 3, -1]), ("1", [1, 3, -1])])
def test_groups_normalized_in_images_of_open_size(body: str, batch: str, three: list[int]) -> None:
    found = model(
        IN_PARTS.format(batch=batch, body=body),
        three=three,
        one=np.ones(3, np.float32),
        nought=np.zeros(3, np.float32),
        **{"nil": 0, "nils": [0], "twos": [2], "fours": [4], "six": [6]} if "six" in body else {},
    )
    analysis = analyze(found)
    assert [group.size for group in analysis.groups] == [3]
    pairs = [[0, 1], [2, 3], [4, 5]]
    assert members(analysis.groups[0])["a[0]"] == members(analysis.groups[0])["b[1]"] == pairs
    plan = Plan(keep={analysis.groups[0].name: np.array([True, False, True])})
    smaller = agreeing(found, analysis, plan, tolerance=1e-5)
    assert array(smaller, "a").shape == (4, 4, 1, 1)
    assert changed(found, smaller)
