from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from checks import agreeing, changed
from graphs import coupled, ended, frozen, model, straight, view
from strategies import random_plan

from onnxprune.base import Axis, Fold, Plan, Reason
from onnxprune.graph.cost import macs
from onnxprune.graph.groups import analyze
from onnxprune.ops.edit import Absorber
from onnxprune.ops.registry import ABSORBS
from onnxprune.rewrite.reference import reference


def einsum(equation: str, shapes: list[str], output: str) -> ir.Model:
    """An Einsum of graph inputs a, b, ... of these shapes."""
    names = "abcd"[: len(shapes)]
    inputs = ", ".join(f"float[{shape}] {name}" for shape, name in zip(shapes, names, strict=True))
    body = f'y = Einsum<equation = "{equation}">({", ".join(names)})'
    return model(f"({inputs}) => (float[{output}] y) {{ {body} }}")


def test_axes_of_one_label_go_together() -> None:
    network = einsum("bi,ihd->bhd", ["2, 3", "3, 4, 5"], "2, 4, 5")
    assert coupled(network, "a[1]", "b[0]") == straight(3)
    assert coupled(network, "b[1]", "y[1]") == straight(4)
    assert coupled(network, "b[2]", "y[2]") == straight(5)


@pytest.mark.parametrize(
    ("equation", "pairs"),
    [
        ("ij,jk", [("a[0]", "y[0]"), ("b[1]", "y[1]"), ("a[1]", "b[0]")]),
        ("ba,ac", [("a[0]", "y[0]"), ("b[1]", "y[1]"), ("a[1]", "b[0]")]),
        (" i j , j k -> k i ", [("a[0]", "y[1]"), ("b[1]", "y[0]"), ("a[1]", "b[0]")]),
    ],
)
def test_equations_in_every_spelling(equation: str, pairs: list[tuple[str, str]]) -> None:
    output = "5, 3" if "->" in equation else "3, 5"
    network = einsum(equation, ["3, 4", "4, 5"], output)
    for left, right in pairs:
        assert coupled(network, left, right)


def test_an_ellipsis_is_aligned_at_its_end() -> None:
    network = einsum("...ij,...jk->...ik", ["2, 7, 3, 4", "1, 7, 4, 5"], "2, 7, 3, 5")
    assert coupled(network, "a[0]", "y[0]") == straight(2)
    assert coupled(network, "a[1]", "b[1]") == straight(7)
    assert coupled(network, "a[1]", "y[1]") == straight(7)
    assert coupled(network, "a[3]", "b[2]") == straight(4)


def test_a_diagonal_couples_both_of_its_axes() -> None:
    network = einsum("ii->i", ["4, 4"], "4")
    assert coupled(network, "a[0]", "a[1]") == straight(4)
    assert coupled(network, "a[0]", "y[0]") == straight(4)


def test_a_label_that_occurs_once_is_summed_over() -> None:
    assert ended(einsum("ij->i", ["3, 4"], "3")) == {"a[1]"}


def test_axes_of_size_one_repeat() -> None:
    network = einsum("...i,...i->...", ["3, 4", "1, 4"], "3")
    assert coupled(network, "a[0]", "y[0]") == straight(3)
    assert Reason.DYNAMIC not in frozen(network, "a[0]")


HEADS = """(float[N, 7] x) => (float[N, 4] y)
<float[7, 6] e, float[6, 3, 5] w, float[3, 5, 8] v, float[8, 4] o> {
    u = MatMul(x, e)
    h = Einsum<equation = "bi,ihd->bhd">(u, w)
    t = Tanh(h)
    k = Einsum<equation = "bhd,hdo->bo">(t, v)
    y = MatMul(k, o)
}"""


@pytest.mark.ort
@pytest.mark.parametrize("seed", range(4))
def test_heads_and_their_sizes_are_units_of_their_own(seed: int) -> None:
    network = model(HEADS)
    analysis = analyze(network)
    assert [group.size for group in analysis.groups] == [6, 3, 5, 8]
    plan = random_plan(network, analysis, seed)
    agreeing(network, analysis, plan, tolerance=1e-5)
    assert changed(network, reference(network, analysis, plan))


MATRIX = """(float[N, 5, 7] x) => (float[{output}] y) <float[7, 6] e, float[{shape}] w> {{
    u = MatMul(x, e)
    y = Einsum<equation = "{equation}">({operands})
}}"""


@pytest.mark.ort
@pytest.mark.parametrize(
    ("equation", "operands", "shape", "output", "expected"),
    [
        ("bti,io->bto", "u, w", "6, 4", "N, 5, 4", Absorber(slot=1, in_axis=0, out_axis=1)),
        ("oi,bti->bot", "w, u", "4, 6", "N, 4, 5", Absorber(slot=0, in_axis=1, out_axis=0)),
        ("...i,oi->...o", "u, w", "4, 6", "N, 5, 4", Absorber(slot=1, in_axis=1, out_axis=0)),
    ],
)
def test_a_matrix_takes_over_constants_and_duplicates(
    equation: str, operands: str, shape: str, output: str, expected: Absorber
) -> None:
    text = MATRIX.format(equation=equation, operands=operands, shape=shape, output=output)
    network = model(text)
    node = view(network, "Einsum")
    rule = ABSORBS.find(node.node, node.opset)
    assert rule is not None
    slot = operands.split(", ").index("u")
    assert rule(node, slot) == expected
    analysis = analyze(network)
    keep = {"e": np.array([False, True, True, False, True, True])}
    fold = Fold(group="e", unit=3, values={Axis("u", 2): np.array([0.7])})
    plan = Plan(keep=keep, folds=(fold,))
    agreeing(network, analysis, plan, tolerance=1e-5)


def test_what_sums_more_than_the_units_takes_over_nothing() -> None:
    network = model(HEADS)
    node = view(network, "Einsum", 1)
    rule = ABSORBS.find(node.node, node.opset)
    assert rule is not None
    assert rule(node, 0) is None


def test_macs_are_the_product_of_all_sizes() -> None:
    network = einsum("bi,ihd->bhd", ["2, 3", "3, 4, 5"], "2, 4, 5")
    assert macs(network, analyze(network)) == 3 * 4 * 5  # of one of two examples
    single = einsum("ij->ji", ["3, 4"], "4, 3")
    assert macs(single, analyze(single)) == 0
