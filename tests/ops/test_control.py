from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from checks import DEVICE, agreeing
from graphs import feeds, frozen, members, model
from strategies import random_plan

from onnxprune.base import Fold, Plan, Reason
from onnxprune.errors import InvalidModelError
from onnxprune.graph.cost import Remaining, macs
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.graph.shapes import settle
from onnxprune.model import load
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.verify import compare
from onnxprune.scopes import nodes

LSTM = """
    g_x = MatMul(x_t, w)
    g_h = MatMul(h_in, r)
    g_0 = Add(g_x, g_h)
    g = Add(g_0, b)
    i, o, f, c = Split<axis = 1>(g{split})
    i_s = Sigmoid(i)
    o_s = Sigmoid(o)
    f_s = Sigmoid(f)
    c_t = Tanh(c)
    kept = Mul(f_s, c_in)
    new = Mul(i_s, c_t)
    c_out = Add(kept, new)
    c_a = Tanh(c_out)
    h_out = Mul(o_s, c_a)
    step = Identity(h_out)"""
SCAN = """(float[T, N, 3] x) => (float[T, N, 2] y)
<float[3, 4] e, float[4, 20] w, float[5, 20] r, float[20] b, float[5, 2] v, int64[4] fives,
 float[1, 5] zero> {{
    u = MatMul(x, e)
    shape = Shape<start = 1, end = 2>(u)
    hidden = Constant<value_ints = [5]>()
    start = Concat<axis = 0>(shape, hidden)
    h_0 = Expand(zero, start)
    c_0 = Expand(zero, start)
    h_T, c_T, h = Scan<num_scan_inputs = 1, body = cell
        (float[N, 5] h_in, float[N, 5] c_in, float[N, 4] x_t)
        => (float[N, 5] h_out, float[N, 5] c_out, float[N, 5] step) {{{cell}
    }}>(h_0, c_0, u)
    y = MatMul(h, v)
}}"""
LOOP = """(float[T, N, 3] x) => (float[N, 2] y)
<float[3, 4] e, float[4, 20] w, float[5, 20] r, float[20] b, float[5, 2] v, int64[4] fives,
 float[1, 5] zero> {{
    u = MatMul(x, e)
    length = Shape<start = 0, end = 1>(u)
    count = Squeeze(length)
    true = Constant<value = bool {{1}}>()
    shape = Shape<start = 1, end = 2>(u)
    hidden = Constant<value_ints = [5]>()
    start = Concat<axis = 0>(shape, hidden)
    h_0 = Expand(zero, start)
    c_0 = Expand(zero, start)
    h_T, c_T, h = Loop<body = cell
        (int64 number, bool go, float[N, 5] h_in, float[N, 5] c_in)
        => (bool go_on, float[N, 5] h_out, float[N, 5] c_out, float[N, 5] step) {{
        go_on = Identity(go)
        x_t = Gather<axis = 0>(u, number){cell}
    }}>(count, true, h_0, c_0)
    y_T = MatMul(h_T, v)
    squared = Mul(h, h)
    all = ReduceMean<keepdims = 0>(squared, first)
    y_m = MatMul(all, v)
    y = Add(y_T, y_m)
}}"""


def recurrent(text: str, *, inside: tuple[str, ...] = (), seed: int = 0) -> ir.Model:
    """The network with the constants called `inside` moved into the body."""
    text = text.format(cell=LSTM.format(split=", fives")).replace(", first)", ")")
    text = text.replace("ReduceMean<keepdims", "ReduceMean<axes = [0], keepdims")
    found = model(text, fives=np.array([5, 5, 5, 5]), seed=seed)
    into_bodies(found, inside)
    return found


def into_bodies(found: ir.Model, names: tuple[str, ...]) -> None:
    """Move initializers into the one body that reads them."""
    for name in names:
        value = found.graph.initializers.pop(name)
        (body,) = {use.node.graph for use in value.uses()}
        assert isinstance(body, ir.Graph)
        body.register_initializer(value)


def hidden(analysis: Analysis) -> dict[str, list[list[int]]]:
    """The members of the group of hidden units."""
    (group,) = [group for group in analysis.groups if group.size == 5]
    return members(group)


@pytest.mark.parametrize("text", [SCAN, LOOP])
@pytest.mark.parametrize("inside", [(), ("w", "r", "b", "fives"), ("r",)])
def test_hidden_units_are_coupled_through_the_body(text: str, inside: tuple[str, ...]) -> None:
    analysis = analyze(recurrent(text, inside=inside))
    assert [group.size for group in analysis.groups] == [4, 5]
    found = hidden(analysis)
    gates = [[index + 5 * gate for gate in range(4)] for index in range(5)]
    alone = [[index] for index in range(5)]
    assert found["w[1]"] == found["r[1]"] == found["b[0]"] == gates
    for name in ("r[0]", "h_0[1]", "h_in[1]", "h_out[1]", "h_T[1]", "c_T[1]", "h[2]", "v[0]"):
        assert found[name] == alone


@pytest.mark.parametrize("text", [SCAN, LOOP])
def test_bodies_are_no_refusal(text: str) -> None:
    found = recurrent(text)
    assert frozen(found, "h[0]") == {Reason.POSITIONS}
    assert Reason.SUBGRAPH not in {fact.reason for fact in analyze(found).frozen}


@pytest.mark.ort
@pytest.mark.parametrize("text", [SCAN, LOOP])
@pytest.mark.parametrize("inside", [(), ("w", "r", "b", "fives")])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_plans(text: str, inside: tuple[str, ...], seed: int) -> None:
    found = recurrent(text, inside=inside, seed=seed)
    analysis = analyze(found)
    plan = random_plan(found, analysis, seed + 3)
    smaller = agreeing(found, analysis, plan, tolerance=1e-5)
    again = analyze(smaller)
    second = random_plan(smaller, again, seed + 4)
    agreeing(smaller, again, second, tolerance=1e-5)


BRANCHES = """(float[N, 3] x, bool go) => (float[N, 2] y)
<float[3, 6] e, float[6, 5] a, float[5] a_b, float[6, 5] b, float[5, 2] v> {{
    u = MatMul(x, e)
    h = Relu(u)
    m = If(go)<
        then_branch = some () => (float[N, 5] p) {{
            p_0 = MatMul(h, a)
            p = Add(p_0, a_b)
        }},
        else_branch = other () => (float[N, 5] q) {{
            {other}
        }}>
    t = Tanh(m)
    y = MatMul(t, v)
}}"""
OTHER = "q = MatMul(h, b)"


def branches(other: str = OTHER, *, inside: tuple[str, ...] = (), seed: int = 0) -> ir.Model:
    found = model(BRANCHES.format(other=other), seed=seed)
    into_bodies(found, inside)
    return found


def test_both_branches_lose_what_behind_them_goes() -> None:
    found = {group.size: members(group) for group in analyze(branches()).groups}
    alone = [[index] for index in range(5)]
    assert all(found[5][name] == alone for name in ("a[1]", "a_b[0]", "b[1]", "p[1]", "m[1]"))
    assert {"e[1]", "h[1]", "a[0]", "b[0]"} <= found[6].keys()


def test_a_captured_value_ends_in_every_branch() -> None:
    (group,) = [group for group in analyze(branches()).groups if group.size == 6]
    assert {(c.node, str(c.axis)) for c in group.consumers} == {("p_0", "h[1]"), ("q", "h[1]")}


@pytest.mark.ort
@pytest.mark.parametrize("inside", [(), ("a", "a_b"), ("a", "b")])
@pytest.mark.parametrize("go", [True, False])
def test_random_plans_with_branches(inside: tuple[str, ...], go: bool) -> None:
    found = branches(inside=inside)
    analysis = analyze(found)
    plan = random_plan(found, analysis, 7)
    into = feeds(found) | {"go": np.array(go)}
    smaller = prune(found, analysis, plan).model
    expected = reference(found, analysis, plan)
    assert compare(expected, smaller, into, device=DEVICE, tolerance=1e-5).holds


@pytest.mark.ort
def test_constants_of_units_that_end_in_a_branch_go_into_its_biases() -> None:
    found = branches()
    analysis = analyze(found)
    (group,) = [group for group in analysis.groups if group.size == 6]
    keep = np.array([True] * 4 + [False] * 2)
    axis = group.consumers[0].axis
    folds = [Fold(group=group.name, unit=unit, values={axis: np.array([0.5])}) for unit in (4, 5)]
    plan = Plan(keep={group.name: keep}, folds=tuple(folds))
    smaller = prune(found, analysis, plan).model
    expected = reference(found, analysis, plan)
    for go in (True, False):
        into = feeds(found) | {"go": np.array(go)}
        assert compare(expected, smaller, into, device=DEVICE, tolerance=1e-5).holds
        assert not compare(found, smaller, into, device=DEVICE, tolerance=1e-3).holds


def test_a_branch_of_another_size_keeps_both() -> None:
    """The output is of open size, which nothing behind could follow."""
    found = model(
        """(float[N, 3] x, bool go) => (float[N, 1] y) <float[3, 6] a, float[3, 4] b> {
            m = If(go)<
                then_branch = some () => (float[N, 6] p) { p = MatMul(x, a) },
                else_branch = other () => (float[N, 4] q) { q = MatMul(x, b) }>
            y = ReduceMax<axes = [1]>(m)
        }"""
    )
    analysis = analyze(found)
    assert analysis.shapes["m"] == (None, None)
    assert analysis.groups == ()
    assert {(str(f.axis), f.reason) for f in analysis.frozen if "[1]" in str(f.axis)} == {
        ("a[1]", Reason.DYNAMIC),
        ("b[1]", Reason.DYNAMIC),
    }


def test_branches_of_different_ranks_leave_the_rank_open() -> None:
    found = model(
        """(float[N, 3] x, bool go) => (float[S] y) <float[3, 6] a> {
            m = If(go)<
                then_branch = some () => (float[N, 6] p) { p = MatMul(x, a) },
                else_branch = other () => (float[K] q) {
                    w = MatMul(x, a)
                    q = ReduceMax<axes = [1], keepdims = 0>(w)
                }>
            y = Identity(m)
        }"""
    )
    analysis = analyze(found)
    assert "m" not in analysis.shapes
    assert analysis.groups == ()


GROWING = """(float[N, 4] x, int64 count) => (float[N, K] y) <float[4, 6] w, float[6, 6] r> {
    h = MatMul(x, w)
    true = Constant<value = bool {1}>()
    last = Loop<body = step
        (int64 number, bool go, float[N, K] all) => (bool go_on, float[N, L] more) {
        go_on = Identity(go)
        more = Concat<axis = 1>(all, h)
    }>(count, true, h)
    y = Relu(last)
}"""


def test_a_state_that_grows_keeps_its_size() -> None:
    analysis = analyze(model(GROWING))
    assert analysis.shapes["all"] == analysis.shapes["last"] == (None, None)
    assert analysis.shapes["h"] == (None, 6)
    assert analysis.groups == ()


NESTED = """(float[N, 3] x, int64 count, bool go) => (float[N, 2] y)
<float[3, 5] w, float[5, 5] r, float[5, 5] s, float[5, 4] k, float[4, 5] l, float[5, 2] v> {
    h_0 = MatMul(x, w)
    true = Constant<value = bool {1}>()
    last = Loop<body = step (int64 number, bool on, float[N, 5] h) => (bool on_on, float[N, 5] n) {
        on_on = Identity(on)
        z = If(go)<
            then_branch = some () => (float[N, 5] p) { p = MatMul(h, r) },
            else_branch = other () => (float[N, 5] q) {
                inner = MatMul(h, k)
                squashed = Tanh(inner)
                q = MatMul(squashed, l)
            }>
        t = Tanh(z)
        n = Add(t, h)
    }>(count, true, h_0)
    y = MatMul(last, v)
}"""


@pytest.mark.ort
@pytest.mark.parametrize("inside", [(), ("r", "k", "l")])
@pytest.mark.parametrize("go", [True, False])
def test_bodies_in_bodies(inside: tuple[str, ...], go: bool) -> None:
    found = model(NESTED)
    into_bodies(found, inside)
    analysis = analyze(found)
    by_size = {group.size: members(group) for group in analysis.groups}
    assert sorted(by_size) == [4, 5]
    assert {"w[1]", "r[0]", "r[1]", "k[0]", "l[1]", "v[0]"} <= by_size[5].keys()
    plan = random_plan(found, analysis, 2)
    smaller = prune(found, analysis, plan).model
    expected = reference(found, analysis, plan)
    into = feeds(found) | {"go": np.array(go), "count": np.array(3)}
    assert compare(expected, smaller, into, device=DEVICE, tolerance=1e-5).holds
    assert not compare(found, smaller, into, device=DEVICE, tolerance=1e-3).holds


def test_counters_are_no_constants() -> None:
    """The state starts as 0; what is computed from it differs from step to step."""
    found = model(
        """(float[N, 6] x, int64 count) => (float[N, 6] y) <int64[1] zero, int64[1] one> {
            true = Constant<value = bool {1}>()
            i_n, last = Loop<body = step
                (int64 number, bool go, int64[1] i, float[N, 6] h)
                => (bool go_on, int64[1] j, float[N, 6] n) {
                go_on = Identity(go)
                j = Add(i, one)
                part = Slice(h, i, j, one)
                n = Add(h, part)
            }>(count, true, zero, x)
            y = Relu(last)
        }""",
        zero=np.array([0]),
        one=np.array([1]),
    )
    shapes, known = settle(found)
    assert not {"i", "j", "i_n"} & known.keys()
    assert shapes["part"] == (None, None)


def test_steps_count_where_they_are_known() -> None:
    """Scan over 7 steps: 7 times the two products of a step, and those outside.

    An example is one index of the first axis, which holds the steps here.
    """
    text = SCAN.replace("float[T, N, 3] x", "float[7, 2, 3] x").format(
        cell=LSTM.format(split=", f")
    )
    found = model(text.replace(", f)", ", fives)"), fives=np.array([5, 5, 5, 5]))
    analysis = analyze(found)
    assert analysis.shapes["h"] == (7, 2, 5)
    per_step = 2 * 4 * 20 + 2 * 5 * 20
    assert macs(found, analysis) == (7 * 2 * 3 * 4 + 7 * per_step + 7 * 2 * 5 * 2) // 7


def test_a_loop_of_a_constant_number_of_steps_has_static_outputs() -> None:
    text = LOOP.format(cell=LSTM.format(split=", fives")).replace(", first)", ")")
    text = text.replace("ReduceMean<keepdims", "ReduceMean<axes = [0], keepdims")
    text = text.replace("count = Squeeze(length)", "count = Constant<value = int64 {4}>()")
    analysis = analyze(model(text, fives=np.array([5, 5, 5, 5])))
    assert analysis.shapes["h"] == (4, None, 5)


def test_scan_with_an_axis_of_examples_keeps_its_sizes() -> None:
    """Scan of opset 8 is another operator; what goes in and out of its body is not known."""
    found = model(
        """(float[N, T, 3] x) => (float[N, T, 2] y) <float[3, 4] w, float[4, 2] v> {
            u = MatMul(x, w)
            h = Scan<num_scan_inputs = 1, body = cell (float[4] a) => (float[4] b) {
                b = Tanh(a)
            }>(, u)
            y = MatMul(h, v)
        }""",
        opset=8,
    )
    analysis = analyze(found)
    assert analysis.groups == ()
    assert Reason.SUBGRAPH in frozen(found, "u[2]")


def test_other_axes_than_the_first_hold_the_steps() -> None:
    found = model(
        """(float[N, 3, T] x) => (float[2, N, T] y) <float[3, 4] e, float[4, 2] v> {
            h = Scan<num_scan_inputs = 1, scan_input_axes = [2], scan_output_axes = [-1],
                body = cell (float[N, 3] a) => (float[N, 4] b) { p = MatMul(a, e) b = Tanh(p) }>(x)
            s = Transpose<perm = [0, 2, 1]>(h)
            z = MatMul(s, v)
            y = Transpose<perm = [2, 0, 1]>(z)
        }"""
    )
    analysis = analyze(found)
    assert [group.size for group in analysis.groups] == [4]
    assert {"e[1]", "h[1]", "s[2]", "v[0]"} <= members(analysis.groups[0]).keys()


@pytest.mark.ort
def test_a_constant_of_a_body_is_sliced_and_named_after_it() -> None:
    """New sizes in a body: Split of a Constant node inside, and a Reshape with a baked width."""
    found = model(
        """(float[N, 3] x, bool go) => (float[N, 2] y) <float[3, 8] w, float[4, 2] v> {
            h = MatMul(x, w)
            m = If(go)<
                then_branch = some () => (float[N, 4] p) {
                    sizes = Constant<value_ints = [4, 4]>()
                    a, b = Split<axis = 1>(h, sizes)
                    s = Sigmoid(b)
                    p = Mul(a, s)
                },
                else_branch = other () => (float[N, 4] q) {
                    target = Constant<value_ints = [-1, 8]>()
                    r = Reshape(h, target)
                    halves = Constant<value_ints = [4, 4]>()
                    q, other = Split<axis = 1>(r, halves)
                }>
            y = MatMul(m, v)
        }"""
    )
    analysis = analyze(found)
    assert [group.size for group in analysis.groups] == [4]
    plan = random_plan(found, analysis, 1)
    smaller = prune(found, analysis, plan).model
    for go in (True, False):
        into = feeds(found) | {"go": np.array(go)}
        expected = reference(found, analysis, plan)
        assert compare(expected, smaller, into, device=DEVICE, tolerance=1e-5).holds


@pytest.mark.ort
def test_a_normalization_in_a_body_sees_what_stays() -> None:
    found = model(
        """(float[N, 3] x, bool go) => (float[N, 2] y)
        <float[3, 6] w, float[6] s, float[6] t, float[6, 2] v> {
            h = MatMul(x, w)
            m = If(go)<
                then_branch = some () => (float[N, 6] p) { p = LayerNormalization(h, s, t) },
                else_branch = other () => (float[N, 6] q) { q = Relu(h) }>
            y = MatMul(m, v)
        }"""
    )
    analysis = analyze(found)
    assert [(group.size, group.exact) for group in analysis.groups] == [(6, False)]
    plan = random_plan(found, analysis, 1)
    smaller = prune(found, analysis, plan).model
    expected = reference(found, analysis, plan)
    for go in (True, False):
        into = feeds(found) | {"go": np.array(go)}
        assert compare(expected, smaller, into, device=DEVICE, tolerance=1e-5).holds


def values(found: ir.Model) -> list[ir.Value]:
    return [value for node in nodes(found) for value in node.outputs]


def test_values_called_alike_in_two_bodies_get_names_of_their_own(tmp_path: Path) -> None:
    found = branches(other="p_0 = MatMul(h, b)\n q = Tanh(p_0)")
    (inner,) = [value for value in values(found) if value.name == "p_0/1"]
    inner.name = "p_0"
    with pytest.raises(InvalidModelError, match="p_0: values of several bodies"):
        analyze(found)
    ir.save(found, tmp_path / "alike.onnx")
    loaded = load(tmp_path / "alike.onnx")
    names = [value.name for value in values(loaded)]
    assert len(set(names)) == len(names)
    assert {"p_0", "p_0/1"} <= set(names)
    assert {group.size for group in analyze(loaded).groups} == {5, 6}


def test_what_goes_inside_a_body_is_counted() -> None:
    """The group of 4 is seen by no value outside."""
    found = model(NESTED)
    analysis = analyze(found)
    (group,) = [group for group in analysis.groups if group.size == 4]
    remaining = Remaining(found, analysis, "macs")
    keep = {group.name: np.array([True, False, False, True])}
    smaller = prune(found, analysis, Plan(keep=keep)).model
    assert remaining({}) == macs(found, analysis) == 3 * 5 + 5 * 4 + 4 * 5 + 5 * 2
    assert remaining(keep) == macs(smaller, analyze(smaller)) == 3 * 5 + 5 * 5 + 5 * 2


def test_a_loop_may_have_a_count_alone() -> None:
    found = model(
        """(float[N, 3] x) => (float[4, N, 2] y) <float[3, 5] w, float[5, 2] v> {
            h = MatMul(x, w)
            all = Loop<body = step (int64 number, bool go) => (bool on, float[N, 2] z) {
                on = Identity(go)
                z = MatMul(h, v)
            }>(count)
            y = Identity(all)
        }""",
        count=np.array(4),
    )
    analysis = analyze(found)
    assert [group.size for group in analysis.groups] == [5]
    assert macs(found, analysis) == 3 * 5 + 4 * 5 * 2
