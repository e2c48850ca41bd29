from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from checks import agreeing, changed
from graphs import array, coupled, feeds, frozen, model, node_types, straight, view
from strategies import random_plan

from onnxprune.base import Axis, Fold, Plan, Reason
from onnxprune.errors import PlanError
from onnxprune.graph.cost import macs
from onnxprune.graph.groups import analyze
from onnxprune.ops.registry import MACS
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.verify import compare

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

# A recurrent node between two matrix products; `dirs` directions of 5 units, 4 inputs.
TEXT = """(float[T, N, 3] x) => (float[T, {dirs}, N, 2] y)
<float[3, 4] e, float[{dirs}, {rows}, 4] w, float[{dirs}, {rows}, 5] r, float[{dirs}, {twice}] b,
 float[5, 2] v> {{
    u = MatMul(x, e)
    h = {op}<hidden_size = 5{attributes}>(u, w, r, b{more})
    t = Tanh(h)
    y = MatMul(t, v)
}}"""


def network(
    op: str, *, dirs: int = 1, attributes: str = "", more: str = "", seed: int = 0
) -> ir.Model:
    rows = 5 * GATES[op]
    return model(
        TEXT.format(op=op, dirs=dirs, rows=rows, twice=2 * rows, attributes=attributes, more=more),
        seed=seed,
    )


VARIANTS = [
    ("LSTM", 1, ""),
    ("LSTM", 2, ', direction = "bidirectional"'),
    ("LSTM", 1, ', direction = "reverse", clip = 0.5'),
    ("LSTM", 1, ", input_forget = 1"),
    ("GRU", 1, ""),
    ("GRU", 1, ", linear_before_reset = 1"),
    ("GRU", 2, ', direction = "bidirectional", linear_before_reset = 1'),
    ("RNN", 1, ', activations = ["Relu"]'),
    ("RNN", 2, ', direction = "bidirectional"'),
]


@pytest.mark.parametrize("op", GATES)
def test_units_occur_in_every_gate_and_where_they_are_read_again(op: str) -> None:
    found = network(op)
    rows = [(index, index % 5) for index in range(5 * GATES[op])]
    assert coupled(found, "w[1]", "r[2]") == rows
    assert coupled(found, "r[1]", "r[2]") == rows
    assert coupled(found, "b[1]", "r[2]") == [(i, i % 5) for i in range(10 * GATES[op])]
    assert coupled(found, "h[3]", "r[2]") == straight(5)
    assert coupled(found, "u[2]", "w[2]") == straight(4)
    assert frozen(found, "w[0]") == {Reason.POSITIONS}


@pytest.mark.parametrize(("op", "dirs", "attributes"), VARIANTS)
def test_batch_and_directions(op: str, dirs: int, attributes: str) -> None:
    found = network(op, dirs=dirs, attributes=attributes)
    assert Reason.POSITIONS in frozen(found, "h[1]")
    assert [group.size for group in analyze(found).groups] == [4, 5]


@pytest.mark.ort
@pytest.mark.parametrize(("op", "dirs", "attributes"), VARIANTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_random_plans(op: str, dirs: int, attributes: str, seed: int) -> None:
    found = network(op, dirs=dirs, attributes=attributes, seed=seed)
    analysis = analyze(found)
    plan = random_plan(found, analysis, seed + 3)
    smaller = agreeing(found, analysis, plan, tolerance=1e-5)
    assert changed(found, reference(found, analysis, plan))
    node = view(smaller, op).node
    assert node.attributes["hidden_size"].value == plan.keep["w"].sum()


def test_units_are_replaced_inside_the_recurrence_too() -> None:
    analysis = analyze(network("LSTM"))
    group = analysis.group("w")
    assert [(consumer.slot, str(consumer.axis)) for consumer in group.inner] == [(2, "r[2]")]
    assert [(consumer.node, str(consumer.axis)) for consumer in group.consumers] == [("y", "t[3]")]
    assert not group.exact


def test_nothing_can_take_over_for_a_unit_of_a_recurrence() -> None:
    found = network("RNN")
    analysis = analyze(found)
    keep = {"w": np.array([False, True, True, True, True])}
    fold = Fold(group="w", unit=0, values={Axis("t", 3): np.ones(1)})
    with pytest.raises(PlanError, match="w is used inside h"):
        prune(found, analysis, Plan(keep=keep, folds=(fold,)))


@pytest.mark.ort
@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("bias", [True, False])
def test_constant_inputs_go_into_the_bias(op: str, bias: bool) -> None:
    found = network(op)
    if not bias:
        node = view(found, op).node
        node.resize_inputs(3)
        del found.graph.initializers["b"]
    analysis = analyze(found)
    keep = {
        "e": np.array([False, True, True, True]),
        "w": np.array([True, True, False, True, False]),
    }
    fold = Fold(group="e", unit=0, values={Axis("u", 2): np.array([0.7])})
    plan = Plan(keep=keep, folds=(fold,))
    smaller = agreeing(found, analysis, plan, tolerance=1e-5)
    name = view(smaller, op).node.inputs[3].name
    assert array(smaller, name).shape == (1, 6 * GATES[op])
    assert changed(found, reference(found, analysis, plan))


def test_constant_inputs_of_two_directions_are_not_taken_over() -> None:
    found = network("GRU", dirs=2, attributes=', direction = "bidirectional"')
    analysis = analyze(found)
    keep = {"e": np.array([False, True, True, True])}
    fold = Fold(group="e", unit=0, values={Axis("u", 2): np.array([0.7])})
    with pytest.raises(PlanError, match="cannot take over"):
        prune(found, analysis, Plan(keep=keep, folds=(fold,)))


PEEPHOLES = """(float[T, N, 3] x, int32[N] lengths) => (float[1, N, 2] y, float[1, N, 2] z)
<float[1, 20, 3] w, float[1, 20, 5] r, float[1, 40] b, float[1, 1, 5] state, float[1, 15] p,
 float[5, 2] v> {
    batch = Slice(sizes, one, two)
    target = Concat<axis = 0>(one, batch, units)
    h0 = Expand(state, target)
    h, hn, cn = LSTM<hidden_size = 5>(x, w, r, b, lengths, h0, h0, p)
    a = Add(hn, cn)
    y = MatMul(a, v)
    m = ReduceMax<axes = [0], keepdims = 0>(h)
    z = MatMul(m, v)
}"""


@pytest.mark.ort
def test_peepholes_lengths_and_initial_states() -> None:
    text = PEEPHOLES.replace("batch = Slice", "sizes = Shape(x)\n    batch = Slice")
    found = model(text, one=[1], two=[2], units=[5])
    data = feeds(found, batch=4)
    data["lengths"] = np.array([4, 1, 3, 2], np.int32)
    analysis = analyze(found)
    (group,) = analysis.groups
    assert {str(member.axis) for member in group.members} >= {"state[2]", "h0[2]", "p[1]", "v[0]"}
    plan = Plan(keep={group.name: np.array([True, False, True, True, False])})
    smaller = prune(found, analysis, plan).model
    expected = reference(found, analysis, plan)
    assert compare(expected, smaller, data, tolerance=1e-5).holds
    assert not compare(found, smaller, data, tolerance=1e-2).holds


def test_the_other_layout_has_the_examples_in_front() -> None:
    found = model("""(float[N, 7, 3] x) => (float[N, 7, 1, 2] y, float[N, 1, 2] z)
    <float[1, 5, 3] w, float[1, 5, 5] r, float[5, 2] v> {
        h, last = RNN<hidden_size = 5, layout = 1>(x, w, r)
        y = MatMul(h, v)
        z = MatMul(last, v)
    }""")
    assert Reason.POSITIONS in frozen(found, "x[1]")
    (group,) = analyze(found).groups
    assert {str(member.axis) for member in group.members} >= {"h[3]", "last[2]"}
    smaller = prune(found, analyze(found), Plan(keep={"w": np.array([True] * 3 + [False] * 2)}))
    assert array(smaller.model, "r").shape == (1, 3, 3)


@pytest.mark.ort
def test_weights_put_together_at_run_time() -> None:
    found = model(
        """(float[T, N, 3] x) => (float[T, 1, N, 2] y)
        <float[20, 3] w, float[20, 5] r, float[1, 40] b, float[5, 2] v> {
            i = Slice(r, at0, at5, at0)
            f = Slice(r, at5, at10, at0)
            g = Slice(r, at10, at15, at0)
            o = Slice(r, at15, at20, at0)
            rr = Concat<axis = 0>(i, o, f, g)
            r1 = Unsqueeze(rr, at0)
            w1 = Unsqueeze(w, at0)
            h = LSTM<hidden_size = 5>(x, w1, r1, b)
            y = MatMul(h, v)
        }""",
        **{f"at{number}": [number] for number in (0, 5, 10, 15, 20)},
    )
    analysis = analyze(found)
    (group,) = analysis.groups
    assert group.size == 5
    plan = Plan(keep={group.name: np.array([True, False, True, False, True])})
    smaller = agreeing(found, analysis, plan, tolerance=1e-5)
    assert changed(found, smaller)
    assert array(smaller, "r").shape == (12, 3)


@pytest.mark.ort
def test_stacked_layers_have_units_of_their_own() -> None:
    found = model(
        """(float[T, N, 3] x) => (float[T, N, 2] y)
    <float[1, 15, 3] w, float[1, 15, 5] r, float[1, 16, 5] w2, float[1, 16, 4] r2,
     float[4, 2] v> {
        h = GRU<hidden_size = 5>(x, w, r)
        s = Squeeze<axes = [1]>(h)
        k = LSTM<hidden_size = 4>(s, w2, r2)
        t = Squeeze<axes = [1]>(k)
        y = MatMul(t, v)
    }""",
        opset=11,
    )
    analysis = analyze(found)
    assert [(group.name, group.size) for group in analysis.groups] == [("w", 5), ("w2", 4)]
    smaller = agreeing(found, analysis, random_plan(found, analysis, 4), tolerance=1e-5)
    assert node_types(smaller) == node_types(found)


def test_a_state_that_is_put_out_keeps_its_units() -> None:
    found = model("""(float[T, N, 3] x) => (float[T, 1, N, 5] h, float[1, N, 5] last)
    <float[1, 5, 3] w, float[1, 5, 5] r> {
        h, last = RNN<hidden_size = 5>(x, w, r)
    }""")
    assert analyze(found).groups == ()


@pytest.mark.parametrize(("op", "expected"), [("LSTM", 20), ("GRU", 15), ("RNN", 5)])
def test_macs_are_steps_times_both_weights(op: str, expected: int) -> None:
    found = network(op)
    node = view(found, op)
    rule = MACS.find(node.node, 17)
    assert rule is not None
    assert rule(node) == expected * (4 + 5)
    assert macs(found, analyze(found)) == expected * 9 + 3 * 4 + 2 * 5
