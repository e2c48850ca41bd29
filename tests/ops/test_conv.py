from __future__ import annotations

import pytest
from graphs import coupled, frozen, group_members, model, rows, straight, view

from onnxprune.base import Reason
from onnxprune.graph.groups import analyze
from onnxprune.graph.traces import trace
from onnxprune.ops.registry import ABSORBS, MACS
from onnxprune.ops.trace import Kind

CHAIN = """(float[N, 3, 6, 6] x) => (float[N, 2, 6, 6] y)
<float[4, 3, 3, 3] w, float[4] b, float[2, 4, %s] v> {
    h = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    a = Relu(h)
    y = Conv<%s>(a, v)
}"""


def test_conv_couples_channels_with_filters_and_bias() -> None:
    network = model(CHAIN % ("1, 1", "group = 1"))
    assert coupled(network, "x[1]", "w[1]") == straight(3)
    assert coupled(network, "h[1]", "w[0]") == straight(4)
    assert coupled(network, "h[1]", "b[0]") == straight(4)
    assert frozen(network, "w[2]") == {Reason.POSITIONS}
    assert frozen(network, "a[3]") == {Reason.POSITIONS}


def test_conv_transpose_has_its_inputs_first() -> None:
    network = model("""(float[N, 3, 4, 4] x) => (float[N, 2, 8, 8] y)
    <float[3, 5, 2, 2] w, float[5] b, float[2, 5, 1, 1] v> {
        h = ConvTranspose<strides = [2, 2]>(x, w, b)
        y = Conv(h, v)
    }""")
    assert coupled(network, "x[1]", "w[0]") == straight(3)
    assert coupled(network, "h[1]", "w[1]") == straight(5)
    assert coupled(network, "h[1]", "b[0]") == straight(5)
    node = view(network, "ConvTranspose")
    assert MACS.find(node.node, 17)(node) == 3 * 5 * 4 * 16  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kernel", "attributes", "padded"),
    [
        ("1, 1", "group = 1", False),
        ("3, 3", "pads = [1, 1, 1, 1]", True),
        ("3, 3", "pads = [0, 0, 0, 0], strides = [3, 3]", False),
        ("3, 3", 'auto_pad = "SAME_UPPER"', True),
        ("1, 1", 'auto_pad = "SAME_UPPER"', False),
        ("1, 1", 'auto_pad = "VALID"', False),
    ],
)
def test_padding_makes_constants_inexact(kernel: str, attributes: str, padded: bool) -> None:
    text = (CHAIN % (kernel, attributes)).replace("6] y", "K] y").replace("2, 6, K", "2, L, K")
    node = view(model(text), "Conv", -1)
    how = ABSORBS.find(node.node, node.opset)(node, 0)  # type: ignore[misc]
    assert how is not None
    assert (how.slot, how.in_axis, how.out_axis, how.padded) == (1, 1, 0, padded)


def test_depthwise_conv_makes_units_of_channels() -> None:
    network = model("""(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
    <float[4, 3, 1, 1] w, float[4, 1, 3, 3] d, float[4] b, float[2, 4, 1, 1] v> {
        h = Conv(x, w)
        a = Conv<group = 4, pads = [1, 1, 1, 1]>(h, d, b)
        y = Conv(a, v)
    }""")
    names = ("h[1]", "w[0]", "d[0]", "b[0]", "a[1]", "v[1]")
    assert group_members(network) == [dict.fromkeys(names, rows(4))]


def test_a_depthwise_multiplier_ties_the_copies_of_a_channel() -> None:
    network = model("""(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
    <float[3, 3, 1, 1] w, float[6, 1, 1, 1] d, float[2, 6, 1, 1] v> {
        h = Conv(x, w)
        a = Conv<group = 3>(h, d)
        y = Conv(a, v)
    }""")
    (group,) = group_members(network)
    assert group["w[0]"] == rows(3)
    assert group["a[1]"] == group["d[0]"] == group["v[1]"] == [[0, 1], [2, 3], [4, 5]]


GROUPED = """(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
<float[{c}, 3, 1, 1] w, float[{o}, 2, 1, 1] g, float[2, {o}, 1, 1] v> {{
    h = Conv(x, w)
    a = Conv<group = {groups}>(h, g)
    y = Conv(a, v)
}}"""


def test_many_small_groups_go_whole() -> None:
    network = model(GROUPED.format(c=8, o=8, groups=4))
    (group,) = group_members(network)
    assert group["w[0]"] == group["h[1]"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert group["g[0]"] == group["a[1]"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert "g[1]" not in group


def test_few_large_groups_lose_equally_many_channels() -> None:
    network = model(GROUPED.format(c=4, o=6, groups=2))
    first, second = group_members(network)
    assert first["w[0]"] == first["h[1]"] == first["g[1 by 0]"] == rows(4)
    assert second["g[0]"] == second["a[1]"] == rows(6)
    found = [(b.sizes.tolist(), *b.block.items()) for b in analyze(network).balances]
    assert [(sizes, name, block.tolist()) for sizes, (name, block) in found] == [
        ([2, 2], "w", [0, 0, 1, 1]),
        ([3, 3], "g", [0, 0, 0, 1, 1, 1]),
    ]


def test_depthwise_and_grouped_conv_absorb_nothing() -> None:
    network = model("""(float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] y) <float[4, 1, 1, 1] d> {
        y = Conv<group = 4>(x, d)
    }""")
    node = view(network, "Conv")
    assert ABSORBS.find(node.node, node.opset)(node, 0) is None  # type: ignore[misc]


def test_macs_count_every_output_position_once() -> None:
    network = model(CHAIN % ("1, 1", "group = 1"))
    node = view(network, "Conv")
    assert MACS.find(node.node, 17)(node) == 4 * 3 * 9 * 36  # type: ignore[misc]


def test_a_conv_traces_its_filter_and_bias() -> None:
    network = model(CHAIN % ("1, 1", "group = 1"))
    analysis = analyze(network)
    found = trace(network, analysis, analysis.group("w"))
    assert found is not None
    assert found.kind is Kind.HOMOGENEOUS
    assert found.rows.shape == (4, 3 * 9 + 1)


def test_a_one_dimensional_conv_is_covered() -> None:
    network = model("""(float[N, 3, 8] x) => (float[N, 2, 8] y)
    <float[4, 3, 1] w, float[2, 4, 1] v> {
        h = Conv(x, w)
        y = Conv(h, v)
    }""")
    (group,) = group_members(network)
    assert group == dict.fromkeys(("w[0]", "h[1]", "v[1]"), rows(4))


@pytest.mark.parametrize("inner", [1, 2])
def test_groups_of_an_open_number_of_channels_keep_their_inputs(inner: int) -> None:
    network = model(
        f"""(float[N, C, 5, 5] x) => (float[N, 3, 5, 5] y)
        <float[8, {inner}, 1, 1] w, float[3, 8, 1, 1] v> {{
            h = Conv<group = 2>(x, w)
            y = Conv(h, v)
        }}"""
    )
    (group,) = analyze(network).groups
    assert group.size == 4
    assert {str(member.axis) for member in group.members} == {"w[0]", "h[1]", "v[1]"}
