"""Blocks that need equally many units: which they are, and how plans are made to fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from graphs import model
from hypothesis import given
from hypothesis import strategies as st
from shuffles import grouped, shufflenet_v1, shufflenet_v2

from onnxprune.base import Balance, Group, Mask, Plan
from onnxprune.graph.balance import completed, completed_keep, is_balanced, together
from onnxprune.graph.groups import Analysis, analyze


def sizes(network: ir.Model) -> list[int]:
    return [group.size for group in analyze(network).groups]


def kept_per_block(analysis: Analysis, keep: dict[str, Mask]) -> list[list[int]]:
    result = []
    for balance in analysis.balances:
        counts = balance.sizes.copy()
        for name, block in balance.block.items():
            gone = block[~keep.get(name, np.ones(len(block), np.bool_)) & (block >= 0)]
            counts -= np.bincount(gone, minlength=len(counts))
        result.append(counts.tolist())
    return result


def test_units_of_shufflenet_v1_are_channels() -> None:
    analysis = analyze(shufflenet_v1(width=24, middle=18, group=3, blocks=2))
    assert [group.size for group in analysis.groups] == [24, 18, 18]
    blocks = {tuple(balance.sizes.tolist()) for balance in analysis.balances}
    # Both sides of the grouped convolutions, the blocks of the shuffle, and the parts that these
    # have in the groups of the convolution behind it.
    assert blocks == {(8, 8, 8), (6, 6, 6), (2,) * 9}


PATCHES = """(float[N,1,2,2] x) => (float[N,3] y)
<float[16,1,1,1] w, float[16,1,1] scale, float[3,16] v>
{ c = Conv(x, w) cut = Reshape(c, patches) moved = Transpose <perm = [0,1,3,5,2,4]> (cut)
  places = Reshape(moved, four) flat = Reshape(places, all)
  normed = InstanceNormalization(flat, one, zero)
  sizes = Shape(places) shaped = Reshape(normed, sizes) scaled = Mul(shaped, scale)
  again = Reshape(scaled, patches) back = Transpose <perm = [0,1,4,2,5,3]> (again)
  image = Reshape(back, two) mean = GlobalAveragePool(image) h = Flatten(mean)
  y = Gemm <transB = 1> (h, v) }"""


def test_a_reshape_may_cut_the_inner_axis_of_what_lies_folded() -> None:
    """As MobileViT does: a norm over everything, then its positions as patches again."""
    shapes = {"patches": (0, 16, 1, 2, 1, 2), "four": (0, 16, 4, 1), "all": (0, 1, -1)}
    shapes["two"] = (0, 16, 2, 2)
    numbers = {name: np.array(sizes, np.int64) for name, sizes in shapes.items()}
    ends = {"one": np.ones(1, np.float32), "zero": np.zeros(1, np.float32)}
    assert sizes(model(PATCHES, **numbers, **ends)) == [16]


@pytest.mark.parametrize("slices", [False, True])
def test_units_of_shufflenet_v2_are_channels(slices: bool) -> None:
    network = shufflenet_v2(width=16, blocks=2, slices=slices)
    analysis = analyze(network)
    # The stem, both halves of the first join, two new halves, two in the middle, and the last
    # convolution; of what is passed on single units are left that nothing may take.
    assert sum(group.size for group in analysis.groups) >= 16 + 2 * 6 + 2 * 6 + 2 * 8 + 16
    assert {tuple(balance.sizes.tolist()) for balance in analysis.balances} == {(8, 8)}
    assert len(analysis.balances) == 3


def test_groups_that_read_the_input_still_lose_outputs() -> None:
    analysis = analyze(grouped(width=8, group=2))
    assert [group.size for group in analysis.groups] == [8, 8]


def test_directions_have_units_of_their_own() -> None:
    analysis = analyze(bidirectional())
    (group,) = (group for group in analysis.groups if group.name == "w")
    assert group.size == 10
    (balance,) = analysis.balances
    assert balance.sizes.tolist() == [5, 5]
    assert balance.block["w"].tolist() == [0] * 5 + [1] * 5


def bidirectional(op: str = "LSTM", gates: int = 4) -> ir.Model:
    return model(
        f"""(float[T, N, 3] x) => (float[T, N, 2] y)
        <float[2, {5 * gates}, 3] w, float[2, {5 * gates}, 5] r, float[2, {10 * gates}] b,
         float[10, 2] v> {{
            h = {op}<hidden_size = 5, direction = "bidirectional">(x, w, r, b)
            p = Transpose<perm = [0, 2, 1, 3]>(h)
            q = Reshape(p, joined)
            y = MatMul(q, v)
        }}""",
        joined=[0, 0, 10],
    )


def test_directions_that_are_added_lose_the_same_units() -> None:
    network = model("""(float[T, N, 3] x) => (float[T, 1, N, 2] y)
    <float[2, 20, 3] w, float[2, 20, 5] r, float[2, 40] b, float[5, 2] v> {
        h = LSTM<hidden_size = 5, direction = "bidirectional">(x, w, r, b)
        s = ReduceSum<keepdims = 1>(h, first)
        y = MatMul(s, v)
    }""", first=[1])  # fmt: skip
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [5]
    assert analysis.balances == ()


def test_where_pairs_meet_a_vector_of_members_the_blocks_stay_alike() -> None:
    """A bias (members) added between the two reshapes belongs to the same member of every block."""
    network = model(
        """(float[N, 3] x) => (float[N, 2] y)
        <float[3, 6] w, float[3, 1] b, float[6, 2] v> {
            h = MatMul(x, w)
            c = Reshape(h, cut)
            t = Transpose<perm = [0, 2, 1]>(c)
            s = Add(t, b)
            q = Reshape(s, joined)
            y = MatMul(q, v)
        }""",
        cut=[0, 2, 3],
        joined=[0, 6],
    )
    assert analyze(network).balances == ()


# --- plans ---------------------------------------------------------------------------------------


def made(*counts: int, blocks: int = 2) -> Analysis:
    """Groups a, b, ... of `counts` units, each cut in equal blocks."""
    groups = tuple(
        Group(name=name, size=count, members=(), consumers=())
        for name, count in zip("abc", counts, strict=False)
    )
    balances = tuple(
        Balance(
            sizes=np.full(blocks, group.size // blocks),
            block={group.name: np.repeat(np.arange(blocks), group.size // blocks)},
        )
        for group in groups
    )
    return Analysis(groups=groups, frozen=(), shapes={}, known={}, balances=balances)


def mask(text: str) -> Mask:
    return np.array([character == "1" for character in text])


def test_what_is_worth_most_is_given_back_where_a_block_is_short() -> None:
    analysis = made(8)
    keep = {"a": mask("11100010")}
    worth = {"a": np.array([0, 0, 0, 0, 1, 9, 0, 5.0])}
    found = completed_keep(analysis, keep, worth=worth)
    assert found["a"].tolist() == mask("11100111").tolist()
    assert not is_balanced(analysis, keep)
    assert is_balanced(analysis, found)


def test_blocks_may_lie_in_several_groups() -> None:
    analysis = made(4, 4)
    across = Balance(sizes=np.array([4, 4]), block={"a": np.zeros(4, int), "b": np.ones(4, int)})
    analysis = Analysis(groups=analysis.groups, frozen=(), shapes={}, known={}, balances=(across,))
    found = completed_keep(analysis, {"a": mask("1101"), "b": mask("0100")})
    assert found["a"].sum() == found["b"].sum() == 3
    assert together(analysis, ["a", "b"]) == [frozenset({"a", "b"})]


@given(seed=st.integers(0, 999), share=st.floats(0.1, 0.9))
def test_giving_back_at_once_is_giving_back_one_by_one(seed: int, share: float) -> None:
    """Units that two equal rules count go back one by one, those of a single rule at once."""
    rng = np.random.default_rng(seed)
    once = made(24, blocks=4)
    twice = replace(once, balances=once.balances * 2)
    keep = {"a": rng.random(24) > share}
    worth = {"a": rng.integers(4, size=24) * 1.0}
    found = [completed_keep(analysis, keep, worth=worth)["a"] for analysis in (once, twice)]
    assert found[0].tolist() == found[1].tolist()


def test_what_can_only_be_given_back_whole_is() -> None:
    """One part of two has no unit that could go."""
    uneven = Balance(sizes=np.array([3, 2]), block={"a": np.array([0, 0, 0, 1, -1])})
    analysis = made(5)
    analysis = Analysis(groups=analysis.groups, frozen=(), shapes={}, known={}, balances=(uneven,))
    assert completed_keep(analysis, {"a": mask("11101")})["a"].all()
    assert completed_keep(analysis, {"a": mask("10001")})["a"].tolist() == mask("10001").tolist()


@pytest.mark.parametrize(
    ("kept", "round_to", "left"), [(5, 4, 8), (4, 4, 4), (3, 4, 3), (9, 4, 10), (9, 1, 9)]
)
def test_groups_keep_multiples_or_fewer(kept: int, round_to: int, left: int) -> None:
    analysis = Analysis(groups=made(10).groups, frozen=(), shapes={}, known={})
    found = completed_keep(analysis, {"a": np.arange(10) < kept}, round_to=round_to)
    assert found["a"].sum() == left
    assert found["a"][:kept].all()


def test_exact_removals_are_the_last_to_be_given_back() -> None:
    analysis = made(6)
    plan = Plan(keep={"a": mask("011001")}, exact={"a": mask("100100")})
    found = completed(analysis, plan)
    assert found.keep["a"].tolist() == mask("011011").tolist()
    assert found.exact["a"].tolist() == mask("100100").tolist()
    assert completed(analysis, found) is found


@given(seed=st.integers(0, 999), share=st.floats(0.1, 0.9), round_to=st.sampled_from([1, 2, 4]))
def test_completed_plans_fit_and_keep_what_was_kept(seed: int, share: float, round_to: int) -> None:
    rng = np.random.default_rng(seed)
    for analysis in ANALYSES:
        keep = {group.name: rng.random(group.size) < share for group in analysis.groups}
        found = completed_keep(analysis, keep, round_to=round_to)
        assert is_balanced(analysis, found)
        for name, before in keep.items():
            assert found[name][before].all()
            count = found[name].sum()
            assert count == len(before) or count < round_to or count % round_to == 0
        for counts, balance in zip(kept_per_block(analysis, found), analysis.balances, strict=True):
            assert len(set(counts)) == 1 or counts == balance.sizes.tolist()


ANALYSES = (analyze(shufflenet_v1(middle=18)), analyze(shufflenet_v2()), made(8, 12, 20))


# --- names ---------------------------------------------------------------------------------------

SPLIT = """(float[N, 3] x) => (float[N, 2] y) <float[3, 6] w, float[3, 2] u, float[3, 2] v> {
    h = MatMul(x, w)
    a, b = Split<axis = 1>(h)
    p = MatMul(a, u)
    q = MatMul(b, v)
    y = Add(p, q)
}"""


def test_groups_keep_their_names_when_another_goes() -> None:
    from onnxprune.rewrite.prune import prune

    network = model(SPLIT)
    before = analyze(network)
    assert [group.name for group in before.groups] == ["w", "w#2"]
    smaller = prune(network, before, Plan(keep={"w": mask("010")})).model
    assert [group.name for group in analyze(smaller).groups] == ["w"]
    after = analyze(smaller, before=before)
    assert [group.name for group in after.groups] == ["w#2"]
    assert after.groups[0].members[0].index.shape == (3, 1)
    again = prune(smaller, after, Plan(keep={"w#2": mask("101")})).model
    assert [group.name for group in analyze(again, before=after).groups] == ["w#2"]
