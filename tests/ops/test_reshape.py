from __future__ import annotations

import numpy as np
import pytest
from checks import agreeing, changed
from graphs import coupled, ended, frozen, group_members, members, model, rows, straight

from onnxprune.base import Plan, Reason
from onnxprune.graph.groups import analyze
from onnxprune.ops.reshape import refinement


@pytest.mark.parametrize(
    ("left", "right", "atoms"),
    [
        ((6, 16), (2, 3, 16), [2, 3, 16]),
        ((6, 4, 4), (96,), [6, 4, 4]),
        ((6, 4), (24,), [6, 4]),
        ((4, 6), (2, 2, 2, 3), [2, 2, 2, 3]),
        ((6, 4), (4, 6), None),
        ((12, 5), (4, 15), [4, 3, 5]),
    ],
)
def test_refinement_is_common_to_both_lists(
    left: tuple[int, ...], right: tuple[int, ...], atoms: list[int] | None
) -> None:
    assert refinement(left, right) == atoms


CONV = """(float[N, 3, 4, 4] x) => (float[N, 2] y) <float[3, 3, 1, 1] w, float[%d, 2] v> {
    h = Conv(x, w)
    %s
    y = MatMul(a, v)
}"""


@pytest.mark.parametrize(
    ("body", "target"),
    [
        ("a = Flatten(h)", None),
        ("a = Flatten<axis = -3>(h)", None),
        ("a = Reshape(h, t)", [-1, 48]),
        ("a = Reshape(h, t)", [0, -1]),
        ("a = Reshape(h, t)", [0, 48]),
    ],
)
def test_flatten_gives_each_channel_its_positions(body: str, target: list[int] | None) -> None:
    constants = {} if target is None else {"t": target}
    network = model(CONV % (48, body), **constants)
    (group,) = group_members(network)
    assert group["h[1]"] == group["w[0]"] == rows(3)
    columns = [list(range(16 * channel, 16 * channel + 16)) for channel in range(3)]
    assert group["a[1]"] == group["v[0]"] == columns


def test_flatten_of_channels_last_gives_each_channel_a_stride() -> None:
    body = "t = Transpose<perm = [0, 2, 3, 1]>(h) a = Flatten(t)"
    (group,) = group_members(model(CONV % (48, body)))
    assert group["v[0]"] == [list(range(channel, 48, 3)) for channel in range(3)]


def test_sizes_that_do_not_nest_are_frozen() -> None:
    network = model(
        """(float[N, 6, 4] x) => (float[N, 4, 6] y) {
            a = Relu(x)
            y = Reshape(a, t)
        }""",
        t=[0, 4, 6],
    )
    assert frozen(network, "a[1]") == {Reason.MIXED}
    assert Reason.MIXED in frozen(network, "y[2]")


def test_transpose_follows_its_permutation() -> None:
    network = model("""(float[2, 3, 4] x) => (float[4, 2, 3] y) {
        y = Transpose<perm = [2, 0, 1]>(x)
    }""")
    assert coupled(network, "x[2]", "y[0]") == straight(4)
    assert coupled(network, "x[0]", "y[1]") == straight(2)
    assert coupled(network, "x[1]", "y[2]") == straight(3)


def test_transpose_without_a_permutation_reverses() -> None:
    network = model("(float[2, 3] x) => (float[3, 2] y) { y = Transpose(x) }")
    assert coupled(network, "x[0]", "y[1]") == straight(2)


def test_squeeze_and_unsqueeze_pass_the_other_axes_on() -> None:
    network = model(
        """(float[N, 5] x) => (float[N, 5] y) {
            u = Unsqueeze(x, one)
            y = Squeeze(u, one)
        }""",
        one=[1],
    )
    assert coupled(network, "x[1]", "u[2]") == straight(5)
    assert coupled(network, "u[2]", "y[1]") == straight(5)


def test_what_expand_repeats_begins_there() -> None:
    network = model("(float[1, 5] x) => (float[3, 5] y) { a = Relu(x) y = Expand(a, s) }", s=[3, 1])
    assert coupled(network, "a[1]", "y[1]") == straight(5)
    assert frozen(network, "y[0]") == {Reason.GRAPH_OUTPUT}
    assert "y[0]" in ended(network)


def test_heads_are_units_when_both_sides_of_a_reshape_can_carry_them() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y) <float[3, 6] w, float[6, 2] v> {
            h = MatMul(x, w)
            s = Reshape(h, split)
            t = Tanh(s)
            a = Reshape(t, merged)
            y = MatMul(a, v)
        }""",
        split=[0, 2, 3],
        merged=[0, 6],
    )
    (group,) = group_members(network)
    assert group["w[1]"] == [[0, 1, 2], [3, 4, 5]]
    assert group["s[1]"] == rows(2)


HEADS_IN_BATCH = """(float[N, 5, 8] x) => (float[M, 2] y) <float[8, 12] w, float[{width}, 2] v> {{
    h = MatMul(x, w)
    p = Reshape(h, parted)
    f = Reshape(p, joined)
    y = MatMul(f, v)
}}"""


def test_axes_behind_those_that_join_a_dynamic_one_keep_apart() -> None:
    network = model(HEADS_IN_BATCH.format(width=12), parted=[0, 5, 3, 4], joined=[-1, 12])
    (group,) = analyze(network).groups
    assert members(group)["w[1]"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert members(group)["v[0]"] == members(group)["w[1]"]


@pytest.mark.ort
def test_heads_that_join_the_batch_leave_their_size() -> None:
    network = model(HEADS_IN_BATCH.format(width=4), parted=[0, 5, 3, 4], joined=[-1, 4])
    analysis = analyze(network)
    (group,) = analysis.groups
    assert members(group)["w[1]"] == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    plan = Plan(keep={group.name: np.array([True, False, True, True])})
    assert changed(network, agreeing(network, analysis, plan, tolerance=1e-5))


@pytest.mark.ort
def test_one_axis_may_be_split_between_a_dynamic_and_a_static_one() -> None:
    network = model(
        """(float[N, 8] x) => (float[M, 2] y) <float[8, 12] w, float[4, 2] v> {
            h = MatMul(x, w)
            f = Reshape(h, joined)
            y = MatMul(f, v)
        }""",
        joined=[-1, 4],
    )
    analysis = analyze(network)
    (group,) = analysis.groups
    assert members(group)["w[1]"] == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    plan = Plan(keep={group.name: np.array([False, True, True, False])})
    assert changed(network, agreeing(network, analysis, plan, tolerance=1e-5))
