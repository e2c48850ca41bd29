"""Vectors that an exporter merged because they were equal become one per reader again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from checks import DEVICE, agreeing
from graphs import feeds, model

from onnxprune.base import Plan
from onnxprune.graph.groups import analyze
from onnxprune.model import load, model_input, save
from onnxprune.rewrite.untie import untie
from onnxprune.runtime.verify import compare

SHARED = """(float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] w, float[4, 5] v, float[5, 2] u, float[4] mean, float[4] var> {
    h = MatMul(x, w)  n = BatchNormalization(h, ones, %s, mean, var)  i = Mul(n, ones)
    a = Relu(i)  g = MatMul(a, v)  y = MatMul(g, u) }"""


def network(shift: str = "zeros", **constants: object) -> ir.Model:
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    return model(SHARED % shift, **{"ones": ones, "zeros": zeros, **constants})


def readers(found: ir.Model, name: str) -> int:
    return len(found.graph.initializers[name].uses())


@pytest.mark.ort
def test_every_reader_gets_its_own_and_nothing_else_changes() -> None:
    before = network()
    after = untie(before)
    assert readers(before, "ones") == 2
    assert [readers(after, "ones"), readers(after, "ones/i")] == [1, 1]
    assert readers(after, "zeros") == 1
    own = after.graph.initializers["ones/i"]
    assert own.const_value is not None
    np.testing.assert_array_equal(own.const_value.numpy(), np.ones(4, np.float32))
    assert len(after.graph.initializers) == len(before.graph.initializers) + 1
    agreement = compare(before, after, feeds(before), device=DEVICE, tolerance=0.0)
    assert agreement.holds


def test_a_model_without_such_vectors_is_given_back() -> None:
    found = model("(float[N, 3] x) => (float[N, 3] y) <float[3] b> { h = Add(x, b) y = Mul(h, b) }")
    assert untie(found) is found


def test_weights_that_are_really_shared_stay_shared() -> None:
    values = np.array([1, 1, 1, 2], np.float32)
    found = untie(network(ones=values))
    assert readers(found, "ones") == 2


@pytest.mark.parametrize(
    "values",
    [np.ones(1, np.float32), np.ones((2, 4), np.float32), np.float32(1), np.ones(4, np.int64)],
    ids=["one element", "matrix", "scalar", "integers"],
)
def test_only_float_vectors_are_untied(values: np.ndarray) -> None:
    shape = ", ".join(map(str, np.shape(values)))
    kind = "int64" if np.asarray(values).dtype == np.int64 else "float"
    found = model(
        f"({kind}[N, 4] x) => ({kind}[N, 4] y) {{ h = Add(x, c)  y = Add(h, c) }}", c=values
    )
    assert shape is not None
    assert untie(found) is found


def test_before_ir_4_the_new_vectors_are_listed_as_inputs(tmp_path: Path) -> None:
    before = network()
    before.ir_version = 3
    before.graph.opset_imports[""] = 8
    before.graph.inputs.extend(before.graph.initializers.values())
    save(before, tmp_path / "before.onnx")
    after = untie(load(tmp_path / "before.onnx"))
    assert "ones/i" in {value.name for value in after.graph.inputs}
    assert [value.name for value in model_input(after)] == ["x"]
    save(after, tmp_path / "after.onnx")
    assert "ones/i" in load(tmp_path / "after.onnx").graph.initializers


def test_readers_through_identity_nodes_are_found() -> None:
    found = untie(
        model(
            """(float[N, 4] x) => (float[N, 4] y) {
            same = Identity(ones)  h = Mul(x, ones)  i = Add(h, same)  y = Sub(i, same) }""",
            ones=np.ones(4, np.float32),
        )
    )
    by_name = {value.name: value for value in found.graph.initializers.values()}
    assert len(by_name) == 3
    nodes = {node.outputs[0].name: node for node in found.graph}
    sources = {nodes[name].inputs[1].name for name in ("h", "i", "y")}
    assert len(sources) == 3


def test_a_constant_that_is_an_output_stays() -> None:
    found = model(
        """(float[N, 4] x) => (float[N, 4] y, float[4] ones) {
        h = Mul(x, ones)  y = Add(h, ones) }""",
        ones=np.ones(4, np.float32),
    )
    assert untie(found) is found


def test_untying_frees_groups_that_sharing_had_tied() -> None:
    text = """(float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 4] v, float[4, 2] u> {
        h = MatMul(x, w)  i = Mul(h, ones)  a = Relu(i)  g = MatMul(a, v)  k = Mul(g, ones)
        y = MatMul(k, u) }"""
    tied = model(text, ones=np.ones(4, np.float32))
    assert len(analyze(tied).groups) == 1
    assert len(analyze(untie(tied)).groups) == 2


@pytest.mark.ort
@pytest.mark.parametrize("fill", ["ConstantOfShape(sizes)", "Expand(nothing, sizes)"])
def test_layers_that_start_from_the_same_zeros_have_units_of_their_own(fill: str) -> None:
    found = model(
        f"""(float[T, N, 3] x) => (float[T, 1, N, 2] y)
        <float[1, 15, 3] w, float[1, 15, 5] r, float[1, 15, 5] w2, float[1, 15, 5] r2,
         float[5, 2] v> {{
            shape = Shape(x)
            batch = Slice(shape, one, two)
            sizes = Concat<axis = 0>(two, batch, units)
            zeros = {fill}
            first = Slice(zeros, at0, one, at0)
            h = GRU<hidden_size = 5>(x, w, r, , , first)
            s = Squeeze(h, one)
            second = Slice(zeros, one, two, at0)
            k = GRU<hidden_size = 5>(s, w2, r2, , , second)
            y = MatMul(k, v)
        }}""",
        at0=[0],
        one=[1],
        two=[2],
        units=[5],
        nothing=np.float32(0),
    )
    assert [group.size for group in analyze(found).groups] == [5]
    free = untie(found)
    analysis = analyze(free)
    assert [(group.name, group.size) for group in analysis.groups] == [("w", 5), ("w2", 5)]
    keep = {"w": np.array([True] * 2 + [False] * 3), "w2": np.array([False] * 2 + [True] * 3)}
    smaller = agreeing(free, analysis, Plan(keep=keep), tolerance=1e-5)
    assert compare(found, free, feeds(found), device=DEVICE, tolerance=0.0).holds
    assert len(list(smaller.graph)) > len(list(found.graph))


@pytest.mark.ort
def test_a_node_that_reads_one_vector_twice_gets_two() -> None:
    before = model(
        """(float[N, 3] x) => (float[N, 4] y) <float[3, 4] w, float[4] t, float[4] m> {
        h = MatMul(x, w)  i = Mul(h, ones)  y = BatchNormalization(i, ones, t, m, ones) }""",
        ones=np.ones(4, np.float32),
    )
    after = untie(before)
    assert {name for name in after.graph.initializers if name.startswith("ones")} == {
        "ones",
        "ones/y",
        "ones/y/4",
    }
    assert compare(before, after, feeds(before), device=DEVICE, tolerance=0.0).holds
