from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import array, coupled, feeds, frozen, model, node_types, straight, window

from onnxprune.base import Plan, Reason
from onnxprune.graph.groups import analyze
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.verify import compare

# Two widths in front and one behind, around the operators of this family.
FRAME = """(float[N, 3] x) => (float[N, 2] y)
<float[3, 6] w, float[%d, 2] v%s> {
    h = MatMul(x, w)
    %s
    y = MatMul(a, v)
}"""


def frame(
    body: str, width: int, *, more: str = "", opset: int = 17, **constants: object
) -> ir.Model:
    return model(FRAME % (width, more, body), opset=opset, **constants)


def pruned(network: ir.Model, **keep: list[int]) -> ir.Model:
    """Without all but the kept units of the named groups, checked against the reference."""
    analysis = analyze(network)
    masks = {
        name: np.isin(np.arange(analysis.group(name).size), kept) for name, kept in keep.items()
    }
    plan = Plan(keep=masks)
    smaller = prune(network, analysis, plan).model
    expected = reference(network, analysis, plan)
    assert compare(expected, smaller, feeds(network), tolerance=1e-5).holds
    return smaller


def test_concat_couples_each_input_to_its_window() -> None:
    network = model("""(float[N, 3] x) => (float[N, 7] y) <float[3, 4] w> {
        h = MatMul(x, w)
        y = Concat<axis = -1>(h, x)
    }""")
    assert coupled(network, "h[1]", "y[1]") == straight(4)
    assert coupled(network, "x[1]", "y[1]") == window(3, 4)


def test_concat_of_one_value_twice_couples_both_windows() -> None:
    network = frame("a = Concat<axis = 1>(h, h)", 12)
    assert coupled(network, "h[1]", "a[1]") == sorted(straight(6) + window(6, 6))


def test_concat_along_the_batch_couples_the_features() -> None:
    network = model("""(float[N, 3] x) => (float[M, 3] y) {
        y = Concat<axis = 0>(x, x)
    }""")
    assert coupled(network, "x[1]", "y[1]") == sorted(straight(3) * 2)


SPLITS = [
    ("a, r = Split<axis = 1, split = [2, 4]>(h)", 2, 11, {}),
    ("a, r = Split<axis = -1, split = [2, 4]>(h)", 2, 12, {}),
    ("a, r = Split<axis = 1>(h, sizes)", 2, 13, {"sizes": [2, 4]}),
    ("a, r = Split<axis = 1>(h)", 3, 11, {}),
    ("a, r = Split<axis = 1>(h)", 3, 17, {}),
    ("a, r = Split<axis = 1, num_outputs = 2>(h)", 3, 18, {}),
]


@pytest.mark.parametrize(("body", "first", "opset", "constants"), SPLITS)
def test_split_couples_each_output_with_its_window(
    body: str, first: int, opset: int, constants: dict[str, list[int]]
) -> None:
    network = frame(body, first, opset=opset, **constants)
    assert coupled(network, "a[1]", "h[1]") == straight(first)
    assert coupled(network, "r[1]", "h[1]") == window(6 - first, first)


@pytest.mark.ort
@pytest.mark.parametrize(("body", "first", "opset", "constants"), SPLITS)
def test_split_gets_its_sizes_written_out(
    body: str, first: int, opset: int, constants: dict[str, list[int]]
) -> None:
    network = frame(body, first, opset=opset, **constants)
    smaller = pruned(network, w=[0])
    split = next(node for node in smaller.graph if node.op_type == "Split")
    assert "num_outputs" not in split.attributes
    if opset < 13:
        sizes = list(split.attributes["split"].as_ints())
    else:
        value = split.inputs[1]
        assert value is not None
        assert value.const_value is not None
        sizes = value.const_value.numpy().tolist()
    assert sizes == [1, 6 - first]


SLICES = [
    ([1], [4], [1], [1], [1, 2, 3]),
    ([-4], [-1], [1], [1], [2, 3, 4]),
    ([0], [2**31], [-1], [2], [0, 2, 4]),
    ([-1], [-(2**31)], [1], [-1], [5, 4, 3, 2, 1, 0]),
    ([5], [-100], [1], [-2], [5, 3, 1]),
    ([4], [0], [1], [-1], [4, 3, 2, 1]),
    ([-100], [3], [1], [1], [0, 1, 2]),
    ([100], [0], [1], [-3], [5, 2]),
]


@pytest.mark.parametrize(("starts", "ends", "axes", "steps", "taken"), SLICES)
def test_slice_couples_the_window_with_what_it_becomes(
    starts: list[int], ends: list[int], axes: list[int], steps: list[int], taken: list[int]
) -> None:
    network = frame("a = Slice(h, s, e, ax, st)", len(taken), s=starts, e=ends, ax=axes, st=steps)
    assert coupled(network, "a[1]", "h[1]") == list(enumerate(taken))


@pytest.mark.ort
@pytest.mark.parametrize(("starts", "ends", "axes", "steps", "taken"), SLICES)
def test_a_pruned_slice_takes_the_remaining_positions(
    starts: list[int], ends: list[int], axes: list[int], steps: list[int], taken: list[int]
) -> None:
    network = frame("a = Slice(h, s, e, ax, st)", len(taken), s=starts, e=ends, ax=axes, st=steps)
    kept = list(range(0, len(taken), 2))
    name = next(group.name for group in analyze(network).groups if group.consumers)
    smaller = pruned(network, **{name: kept})
    assert array(smaller, "v").shape == (len(kept), 2)


@pytest.mark.ort
def test_a_slice_whose_positions_became_irregular_gets_a_gather() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y, float[N, 2] z)
        <float[3, 7] w, float[4, 2] v, float[7, 2] u> {
            h = MatMul(x, w)
            a = Slice(h, s, e, ax, st)
            y = MatMul(a, v)
            z = MatMul(h, u)
        }""",
        s=[0], e=[7], ax=[1], st=[2],
    )  # fmt: skip
    names = [group.name for group in analyze(network).groups]
    assert names == ["w", "w#2"]  # units the slice takes, and units it does not
    smaller = pruned(network, **{"w": [0, 1, 2, 3], "w#2": [2]})
    assert "Gather" in node_types(smaller)
    again = pruned(smaller, w=[0, 2])
    assert node_types(again).count("Gather") == 1


@pytest.mark.ort
@pytest.mark.parametrize("opset", [9, 10])
def test_slice_on_two_axes_keeps_its_other_axis(opset: int) -> None:
    body = {
        9: "a = Slice<axes = [1, 2], starts = [1, 0], ends = [4, 3]>(h)",
        10: "a = Slice(h, s, e, ax)",
    }[opset]
    constants = {} if opset == 9 else {"s": [0, 1], "e": [3, 4], "ax": [2, 1]}
    network = model(
        """(float[N, 3, 4, 4] x) => (float[N, 2, 3, 4] y)
        <float[6, 3, 1, 1] w, float[2, 3, 1, 1] v> {
            h = Conv(x, w)
            %s
            y = Conv(a, v)
        }""".replace("%s", body),
        opset=opset,
        **constants,
    )
    assert coupled(network, "a[1]", "h[1]") == [(0, 1), (1, 2), (2, 3)]
    assert frozen(network, "h[2]") == {Reason.POSITIONS}
    pruned(network, w=[0, 2])


def test_gather_couples_what_its_indices_take() -> None:
    network = frame("a = Gather<axis = 1>(h, i)", 4, i=[5, -6, 2, 2])
    assert coupled(network, "a[1]", "h[1]") == [(0, 5), (1, 0), (2, 2), (3, 2)]


@pytest.mark.ort
def test_a_pruned_gather_renumbers_its_indices() -> None:
    network = frame("a = Gather<axis = -1>(h, i)", 4, i=[5, -6, 2, 2])
    # Units 0 and 5 are a group; unit 2, taken twice, is alone, so it is none.
    name = next(group.name for group in analyze(network).groups if group.consumers)
    smaller = pruned(network, **{name: [1]})
    assert array(smaller, "i").tolist() == [4, 1, 1]


def test_gather_of_a_single_index_drops_its_axis_and_freezes_it() -> None:
    network = model("""(float[N, 3, 4] x) => (float[N, 3] y) { y = Gather<axis = 2>(x, i) }""", i=1)
    assert coupled(network, "x[1]", "y[1]") == straight(3)
    assert Reason.POSITIONS in frozen(network, "x[2]")


def test_gather_with_computed_indices_needs_the_whole_table() -> None:
    network = model("""(int64[N] i) => (float[N, 2] y) <float[9, 4] table, float[4, 2] v> {
        e = Gather(table, i)
        y = MatMul(e, v)
    }""")
    assert frozen(network, "table[0]") == {Reason.POSITIONS}
    assert coupled(network, "table[1]", "e[1]") == straight(4)


PADS = [
    ("a = Pad<pads = [0, 1, 0, 2]>(h)", 10, {}),
    ("a = Pad(h, p)", 11, {"p": [0, 1, 0, 2]}),
    ("a = Pad(h, p, , ax)", 18, {"p": [1, 2], "ax": [1]}),
    ("a = Pad(h, p, , ax)", 18, {"p": [1, 2], "ax": [-1]}),
]


@pytest.mark.parametrize(("body", "opset", "constants"), PADS)
def test_pad_couples_the_data_with_its_window(
    body: str, opset: int, constants: dict[str, list[int]]
) -> None:
    network = frame(body, 9, opset=opset, **constants)
    assert coupled(network, "h[1]", "a[1]") == window(6, 1)


@pytest.mark.ort
@pytest.mark.parametrize(("body", "opset", "constants"), PADS)
def test_a_pruned_pad_still_pads(body: str, opset: int, constants: dict[str, list[int]]) -> None:
    network = frame(body, 9, opset=opset, **constants)
    smaller = pruned(network, w=[0, 5])
    assert array(smaller, "v").shape == (5, 2)


def test_a_negative_pad_cuts_off() -> None:
    network = frame("a = Pad(h, p)", 4, p=[0, -1, 0, -1])
    assert coupled(network, "h[1]", "a[1]") == [(1, 0), (2, 1), (3, 2), (4, 3)]


@pytest.mark.ort
def test_pruning_what_a_negative_pad_cuts_leaves_the_rest_alone() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y, float[N, 2] z)
        <float[3, 6] w, float[4, 2] v, float[6, 2] u> {
            h = MatMul(x, w)
            a = Pad(h, p)
            y = MatMul(a, v)
            z = MatMul(h, u)
        }""",
        p=[0, -1, 0, -1],
    )
    for group in analyze(network).groups:
        pruned(network, **{group.name: [0]})


def test_pad_that_mirrors_freezes_the_axis() -> None:
    network = frame('a = Pad<mode = "reflect">(h, p)', 8, p=[0, 1, 0, 1])
    assert Reason.POSITIONS in frozen(network, "h[1]")
