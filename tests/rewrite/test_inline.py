from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from checks import DEVICE
from frames import prunes
from graphs import feeds, model, node_types

from onnxprune.graph.groups import analyze
from onnxprune.rewrite.inline import inline
from onnxprune.runtime.verify import compare

BRANCHES = """c = Shape(h)
    %s
    a = If (cond) <
        then_branch = yes () => (float[N, 6] p) { t = Relu(h) p = Mul(t, s) },
        else_branch = no () => (float[N, 6] p) { t = Neg(h) p = Mul(t, s) }
    >"""
FRAME = """(float[N, 3] x) => (float[N, 2] y) <float[3, 6] w, float[6] s, float[6, 2] v> {
    h = MatMul(x, w)
    %s
    y = MatMul(a, v)
}"""


def branching(condition: str, **constants: object) -> ir.Model:
    return model(FRAME % (BRANCHES % condition), **constants)


def same(one: ir.Model, other: ir.Model) -> bool:
    return compare(one, other, feeds(one), device=DEVICE, tolerance=1e-7).holds


SETTLED = [
    ("cond = Identity(flag)", {"flag": [True]}, "Relu"),
    ("size = Gather(c, one)\n cond = Equal(size, six)", {"one": [1], "six": [6]}, "Relu"),
    ("size = Gather(c, one)\n cond = Equal(size, six)", {"one": [1], "six": [1]}, "Neg"),
]


@pytest.mark.ort
@pytest.mark.parametrize(("condition", "constants", "kept"), SETTLED)
def test_an_if_that_always_takes_one_branch_is_written_out(
    condition: str, constants: dict[str, list[int]], kept: str
) -> None:
    network = branching(condition, **constants)
    plain = inline(network)
    assert "If" in node_types(network)
    assert "If" not in node_types(plain)
    assert kept in node_types(plain)
    onnx.checker.check_model(ir.to_proto(plain), full_check=True)
    assert same(network, plain)
    prunes(plain)


@pytest.mark.parametrize("other", [1, 100])
def test_a_condition_on_a_dynamic_size_stays(other: int) -> None:
    condition = "size = Gather(c, zero)\n cond = Equal(size, other)"
    network = branching(condition, zero=[0], other=[other])
    assert inline(network) is network
    prunes(network)


def test_a_condition_that_is_drawn_stays() -> None:
    network = branching("r = Bernoulli(half)\n cond = Cast<to = 9>(r)", half=[0.5])
    assert inline(network) is network


@pytest.mark.ort
def test_two_ifs_with_the_same_inner_names_are_told_apart() -> None:
    twice = BRANCHES % "cond = Identity(flag)"
    second = twice.replace("(h)", "(a)").replace("c = Shape(a)", "").replace("a = If", "g = If")
    second = second.replace("cond = Identity(flag)", "")
    network = model((FRAME % (twice + second)).replace("MatMul(a", "MatMul(g"), flag=[True])
    plain = inline(network)
    names = [value.name for node in plain.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    assert same(network, plain)
    prunes(plain)


def functions(network: str) -> ir.Model:
    text = f"""<ir_version: 8, opset_import: ["": 17, "my": 1]> {network}
    <domain: "my", opset_import: ["": 17]> Layer (x, w, b) => (y) {{
        m = MatMul(x, w)
        n = Add(m, b)
        y = Relu(n)
    }}"""
    return ir.from_proto(onnx.parser.parse_model(text))


@pytest.mark.ort
def test_functions_are_written_out() -> None:
    network = functions("""graph (float[N, 2] x) => (float[N, 1] y)
    <float[2, 3] w = {0.1, 0.2, 0.3, 0.4, -0.5, 0.6}, float[3] b = {0.1, 0.2, 0.3},
     float[3, 1] v = {0.5, 0.6, 0.7}, float[1] c = {0.1}> {
        h = my.Layer(x, w, b)
        y = my.Layer(h, v, c)
    }""")
    plain = inline(network)
    assert len(network.functions) == 1
    assert not plain.functions
    assert node_types(plain) == ["MatMul", "Add", "Relu"] * 2
    assert same(network, plain)
    assert analyze(plain).groups[0].size == 3


def test_a_model_without_either_is_given_back() -> None:
    network = model(FRAME % "a = Relu(h)")
    assert inline(network) is network
