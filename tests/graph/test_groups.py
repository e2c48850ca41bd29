from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import group_members, model, rows
from hypothesis import given
from strategies import networks

from onnxprune.base import Consumer, Reason
from onnxprune.graph.groups import Analysis, analyze

MLP = """(float[N, 3] x) => (float[N, 2] y)
<float[3, 4] w, float[4] b, float[4, 5] u, float[5, 2] v> {
    g = Gemm(x, w, b)
    h = Relu(g)
    k = MatMul(h, u)
    y = MatMul(k, v)
}"""


def reasons(analysis: Analysis) -> dict[str, Reason]:
    return {str(fact.axis): fact.reason for fact in analysis.frozen}


def test_groups_come_in_graph_order_with_all_their_axes() -> None:
    first, second = group_members(model(MLP))
    assert first == dict.fromkeys(("w[1]", "b[0]", "g[1]", "h[1]", "u[0]"), rows(4))
    assert second == dict.fromkeys(("u[1]", "k[1]", "v[0]"), rows(5))


def test_consumers_are_where_the_data_ends() -> None:
    network = model(MLP)
    first, second = analyze(network).groups
    assert [(c.node, c.slot, str(c.axis)) for c in first.consumers] == [("k", 0, "h[1]")]
    assert [(c.node, c.slot, str(c.axis)) for c in second.consumers] == [("y", 0, "k[1]")]


def test_a_value_that_is_read_twice_has_two_consumers() -> None:
    network = model("""(float[N, 3] x) => (float[N, 2] y, float[N, 2] z)
    <float[3, 4] w, float[4, 2] u, float[4, 2] v> {
        h = MatMul(x, w)
        y = MatMul(h, u)
        a = Relu(h)
        z = MatMul(a, v)
    }""")
    (group,) = analyze(network).groups
    axes = {member.axis.value: member.axis for member in group.members}
    assert group.consumers == (
        Consumer("y", 0, axes["h"]),
        Consumer("z", 0, axes["a"]),
    )


def test_inputs_and_outputs_of_the_graph_are_frozen() -> None:
    analysis = analyze(model(MLP))
    assert reasons(analysis) == {"w[0]": Reason.GRAPH_INPUT, "v[1]": Reason.GRAPH_OUTPUT}


def test_an_unknown_operator_freezes_what_it_touches_and_says_so() -> None:
    network = model(MLP.replace("h = Relu(g)", "h = StringNormalizer(g)"))
    analysis = analyze(network)
    frozen = {str(fact.axis): fact for fact in analysis.frozen}
    assert frozen["w[1]"].reason is Reason.NO_RULE
    assert frozen["w[1]"].node == "h"
    assert frozen["w[1]"].detail == "StringNormalizer: h"
    assert analysis.groups == ()


def test_a_custom_domain_freezes_only_its_neighbourhood() -> None:
    text = MLP.replace("h = Relu(g)", "h = local.Mystery(g)")
    network = model(text)
    network.graph.opset_imports["local"] = 1
    analysis = analyze(network)
    assert reasons(analysis)["w[1]"] is Reason.NO_RULE
    assert reasons(analysis)["b[0]"] is Reason.NO_RULE


def test_a_partner_of_size_one_freezes_its_index() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y, float[N, 2] z)
        <float[3, 4] w, float[4, 2] v, float[1, 2] u> {
            h = MatMul(x, w)
            y = MatMul(h, v)
            s = Slice(h, a, b, c)
            z = MatMul(s, u)
        }""",
        a=[1],
        b=[2],
        c=[1],
    )
    (group,) = group_members(network)
    assert group["w[1]"] == [[0], [2], [3]]


def test_a_group_of_one_unit_is_none() -> None:
    network = model("(float[N, 3] x) => (float[N, 2] y) <float[3, 1] w, float[1, 2] v> "
                    "{ h = MatMul(x, w) y = MatMul(h, v) }")  # fmt: skip
    assert group_members(network) == []


def test_units_without_a_parameter_are_none() -> None:
    network = model(
        "(float[N, 3] x) => (float[N, 3] y) { e = Expand(x, s) r = ReduceSum<axes = [0]>(e) "
        "y = Add(x, r) }",
        s=[5, 1, 1],
        opset=12,
    )
    assert group_members(network) == []


def test_a_shared_weight_ties_the_places_that_read_it() -> None:
    network = model("""(float[N, 4] x) => (float[N, 2] y) <float[4, 4] w, float[4, 2] v> {
        h = MatMul(x, w)
        k = MatMul(h, w)
        y = MatMul(k, v)
    }""")
    # w's rows meet the input at the first reader and its own columns at the second.
    analysis = analyze(network)
    found = reasons(analysis)
    assert found["w[0]"] is found["w[1]"] is found["v[0]"] is Reason.GRAPH_INPUT
    assert analysis.groups == ()


def test_a_weight_shared_inside_the_network_is_one_group() -> None:
    network = model("""(float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] i, float[4, 4] w, float[4, 2] v> {
        a = MatMul(x, i)
        h = MatMul(a, w)
        k = MatMul(h, w)
        y = MatMul(k, v)
    }""")
    (group,) = group_members(network)
    assert set(group) == {"i[1]", "a[1]", "w[0]", "w[1]", "h[1]", "k[1]", "v[0]"}


def test_groups_of_one_parameter_are_numbered() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[2, 2] u, float[2, 2] v> {
            h = MatMul(x, w)
            a, b = Split<axis = 1>(h)
            p = MatMul(a, u)
            q = MatMul(b, v)
            y = Add(p, q)
        }""",
    )
    groups = {g.name: g.members[0].index.tolist() for g in analyze(network).groups}
    assert groups == {"w": [[0], [1]], "w#2": [[2], [3]]}


def test_a_captured_value_keeps_the_size_of_what_comes_of_it() -> None:
    network = model("""(float[N, 3] x, bool c) => (float[N, 4] y) <float[3, 4] w> {
        h = MatMul(x, w)
        y = If (c) <
            then_branch = t () => (float[N, 4] p) { p = Relu(h) },
            else_branch = e () => (float[N, 4] q) { q = Neg(h) }
        >
    }""")
    assert reasons(analyze(network))["w[1]"] is Reason.GRAPH_OUTPUT


def test_the_policy_prefers_the_outer_atom_and_reports_the_alternatives() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y) <float[3, 6] w, float[6, 2] v> {
            h = MatMul(x, w)
            s = Reshape(h, split)
            a = Reshape(s, merged)
            y = MatMul(a, v)
        }""",
        split=[0, 2, 3],
        merged=[0, 6],
    )
    analysis = analyze(network)
    assert {(chosen, rejected) for _, chosen, rejected in analysis.alternatives} == {(2, (3,))}
    assert [group.size for group in analysis.groups] == [2]


def test_a_frozen_atom_leaves_the_other_to_carry() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2, 5] y) <float[3, 6] w, float[3, 5] v> {
            h = MatMul(x, w)
            s = Reshape(h, split)
            y = MatMul(s, v)
        }""",
        split=[0, 2, 3],
    )
    (group,) = group_members(network)
    assert group["w[1]"] == [[0, 3], [1, 4], [2, 5]]
    assert group["v[0]"] == rows(3)


def partitioned(analysis: Analysis) -> None:
    """No index of any axis belongs to two units, and units of a group are alike."""
    seen: dict[object, list[int]] = {}
    blocks: dict[object, int] = {}
    for group in analysis.groups:
        assert group.size >= 2
        for member in group.members:
            assert member.index.shape[0] == group.size
            seen.setdefault(member.axis, []).extend(member.index.reshape(-1).tolist())
            blocks[member.axis] = member.blocks
    for axis, indices in seen.items():
        size = analysis.shapes[axis.value][axis.position]  # type: ignore[attr-defined]
        assert len(indices) == len(set(indices))
        assert size is not None
        assert 0 <= min(indices) <= max(indices) < size * blocks[axis]


@given(networks())
def test_groups_partition_the_indices_of_their_axes(network: ir.Model) -> None:
    partitioned(analyze(network))


def fingerprint(analysis: Analysis) -> list[tuple[int, list[tuple[int, ...]]]]:
    """Sizes of groups and of their index arrays, without names or order."""
    return sorted(
        (group.size, sorted(member.index.shape for member in group.members))
        for group in analysis.groups
    )


@given(networks())
def test_groups_do_not_depend_on_names(network: ir.Model) -> None:
    expected = fingerprint(analyze(network))
    for number, node in enumerate(network.graph):
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"z{99 - number}_{value.index()}"
    for number, name in enumerate(list(network.graph.initializers)):
        value = network.graph.initializers.pop(name)
        value.name = f"weight{number}"
        network.graph.register_initializer(value)
    assert fingerprint(analyze(network)) == expected


@given(networks())
def test_groups_do_not_depend_on_the_order_of_nodes(network: ir.Model) -> None:
    expected = fingerprint(analyze(network))
    reordered(network.graph)
    assert fingerprint(analyze(network)) == expected


def reordered(graph: ir.Graph) -> None:
    """Another topological order: always the last node that is ready."""
    nodes, placed = list(graph), set(graph.inputs) | set(graph.initializers.values())
    graph.remove(nodes)
    while nodes:
        ready = [n for n in nodes if all(v is None or v in placed for v in n.inputs)]
        node = ready[-1]
        nodes.remove(node)
        placed.update(node.outputs)
        graph.append(node)


@pytest.mark.parametrize("name", ["w", "u"])
def test_a_group_is_found_by_its_name(name: str) -> None:
    analysis = analyze(model(MLP))
    assert analysis.group(name).name == name
    with pytest.raises(KeyError, match="nothing"):
        analysis.group("nothing")


def test_a_member_is_found_by_its_axis() -> None:
    group = analyze(model(MLP)).groups[0]
    axis = group.members[0].axis
    np.testing.assert_array_equal(group.member(axis).index, group.members[0].index)
    with pytest.raises(KeyError, match="has no member on"):
        group.member(analyze(model(MLP)).groups[1].members[-1].axis)
