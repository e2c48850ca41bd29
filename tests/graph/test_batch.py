"""Models for batches of one size, and their copies for any."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import model

from onnxprune.base import Array
from onnxprune.graph.batch import fixed_batches, opened
from onnxprune.model import model_input
from onnxprune.ops.reshape import batch_place
from onnxprune.runtime.batches import in_batches, is_same
from onnxprune.runtime.session import Runner

# text of the graph, and constants
SOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "flattened": (
        """(float[1, 2, 4, 4] x) => (float[1, 3] y) <float[5, 2, 3, 3] w, float[20, 3] v> {
        c = Conv(x, w)  f = Reshape(c, shape)  y = MatMul(f, v) }""",
        {"shape": [1, 20]},
    ),
    "batches of four": (
        """(float[4, 2, 4, 4] x) => (float[4, 3] y) <float[5, 2, 3, 3] w, float[20, 3] v> {
        c = Conv(x, w)  f = Reshape(c, shape)  y = MatMul(f, v) }""",
        {"shape": [4, -1]},
    ),
    "heads beside the batch": (
        """(float[1, 4, 6] x) => (float[1, 4, 6] y) <float[6, 6] w> {
        q = MatMul(x, w)  r = Reshape(q, four)  t = Transpose<perm = [0, 2, 1, 3]>(r)
        h = Reshape(t, three)  k = Transpose<perm = [0, 2, 1]>(h)  s = MatMul(h, k)
        p = Softmax<axis = 2>(s)  a = MatMul(p, h)  b = Reshape(a, back)
        c = Transpose<perm = [0, 2, 1, 3]>(b)  y = Reshape(c, end) }""",
        {"four": [1, 4, 2, 3], "three": [2, 4, 3], "back": [1, 2, 4, 3], "end": [1, 4, 6]},
    ),
    "time before the batch": (
        """(float[1, 4, 6] x) => (float[1, 4, 5] y) <float[6, 6] w, float[6, 5] v> {
        t = Transpose<perm = [1, 0, 2]>(x)  f = Reshape(t, flat)  m = MatMul(f, w)
        b = Reshape(m, apart)  h = Reshape(b, heads)  g = Transpose<perm = [1, 0, 2]>(h)
        e = Transpose<perm = [1, 0, 2]>(g)  i = Reshape(e, apart)
        s = Transpose<perm = [1, 0, 2]>(i)  y = MatMul(s, v) }""",
        {"flat": [4, 6], "apart": [4, 1, 6], "heads": [4, 2, 3]},
    ),
    "a token in front": (
        """(float[1, 4, 6] x) => (float[1, 5, 6] y) <float[1, 1, 6] w> {
        y = Concat<axis = 1>(w, x) }""",
        {},
    ),
    "a token that is expanded": (
        """(float[1, 4, 6] x) => (float[1, 5, 6] y) <float[1, 1, 6] w> {
        e = Expand(w, shape)  y = Concat<axis = 1>(e, x) }""",
        {"shape": [1, 1, 6]},
    ),
    "data that is expanded": (
        """(float[1, 1, 6] x) => (float[1, 4, 6] y) { y = Expand(x, shape) }""",
        {"shape": [1, 4, 6]},
    ),
    "the whole batch taken": (
        """(float[1, 4, 6] x) => (float[1, 2, 6] y) { y = Slice(x, starts, ends, axes) }""",
        {"starts": [0, 1], "ends": [1, 3], "axes": [0, 1]},
    ),
    "states": (
        """(float[1, 4, 6] x) => (float[1, 1, 5] y)
        <float[1, 20, 6] w, float[1, 20, 5] r, float[1, 40] b, float[1, 1, 5] h,
         float[1, 1, 5] c> {
        t = Transpose<perm = [1, 0, 2]>(x)
        s, l = LSTM<hidden_size = 5>(t, w, r, b, , h, c)  y = Transpose<perm = [1, 0, 2]>(l) }""",
        {},
    ),
    "equal states of eight": (
        """(float[8, 4, 6] x) => (float[8, 1, 5] y)
        <float[1, 20, 6] w, float[1, 20, 5] r, float[1, 40] b> {
        t = Transpose<perm = [1, 0, 2]>(x)
        s, l = LSTM<hidden_size = 5>(t, w, r, b, , zero, zero)
        y = Transpose<perm = [1, 0, 2]>(l) }""",
        {"zero": np.zeros((1, 8, 5), np.float32)},
    ),
    "sizes": (
        """(float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) {
        y = Resize<mode = "nearest">(x, , , shape) }""",
        {"shape": [1, 2, 8, 8]},
    ),
    "a computed target": (
        """(float[1, 4, 6] x) => (float[1, 24] y) {
        n = Shape<end = 1>(x)  t = Concat<axis = 0>(n, rest)  y = Reshape(x, t) }""",
        {"rest": [-1]},
    ),
    "a bias for all": (
        """(float[1, 4] x, float[1, 4] z) => (float[1, 4] y) <float[1, 4] b> {
        s = Add(x, z)  y = Add(s, b) }""",
        {},
    ),
}

UNSOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "examples that see each other": (
        """(float[1, 4] x) => (float[1, 4] y) {
        m = ReduceMean<axes = [0]>(x)  s = Mul(x, m)  y = Sub(s, m) }""",
        {},
    ),
    "a single example taken": (
        """(float[1, 4] x) => (float[4] y) { y = Gather<axis = 0>(x, zero) }""",
        {"zero": np.array(0)},
    ),
    "states of their own": (
        """(float[8, 4, 6] x) => (float[8, 1, 5] y)
        <float[1, 20, 6] w, float[1, 20, 5] r, float[1, 40] b, float[1, 8, 5] h> {
        t = Transpose<perm = [1, 0, 2]>(x)
        s, l = LSTM<hidden_size = 5>(t, w, r, b, , h)  y = Transpose<perm = [1, 0, 2]>(l) }""",
        {},
    ),
    "a weight per example": (
        """(float[4, 6] x) => (float[4, 6] y) <float[4, 6] w> { y = Mul(x, w) }""",
        {},
    ),
    "a part of the batch": (
        """(float[4, 6] x) => (float[2, 6] y) { y = Slice(x, starts, ends) }""",
        {"starts": [0], "ends": [2]},
    ),
}


def built(case: tuple[str, dict[str, Any]]) -> ir.Model:
    text, constants = case
    return model(text, **{name: np.asarray(array) for name, array in constants.items()})


def examples(network: ir.Model, batches: int) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    found = {}
    for value in model_input(network):
        assert value.shape is not None
        sizes = [int(size) for size in value.shape.numpy()]
        shape = (sizes[0] * batches, *sizes[1:])
        found[value.name or ""] = rng.normal(size=shape).astype(np.float32)
    return found


def batch_of(network: ir.Model) -> int:
    return next(iter(fixed_batches(network).values()))


@pytest.mark.ort
@pytest.mark.parametrize("name", SOUND)
def test_an_open_copy_computes_many_examples_at_once(name: str) -> None:
    network = built(SOUND[name])
    batch = batch_of(network)
    feeds = examples(network, 3)
    before = ir.to_proto(network).SerializeToString()
    copy = opened(network, batch)
    assert copy is not None
    assert ir.to_proto(network).SerializeToString() == before
    assert fixed_batches(copy) == {}
    expected = in_batches(Runner(network, optimize=False), feeds, batch)
    found = Runner(copy, optimize=False).run(feeds)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-6)
    assert is_same(network, copy, feeds, batch)
    names = {value.name for node in network.graph for value in node.outputs}
    assert names <= {value.name for node in copy.graph for value in node.outputs}


@pytest.mark.ort
@pytest.mark.parametrize("name", UNSOUND)
def test_what_depends_on_the_batch_is_found_out(name: str) -> None:
    network = built(UNSOUND[name])
    batch = batch_of(network)
    copy = opened(network, batch)
    assert copy is None or not is_same(network, copy, examples(network, 3), batch)


def test_open_copies_are_reproducible() -> None:
    network = built(SOUND["heads beside the batch"])
    first, second = opened(network, 1), opened(network, 1)
    assert first is not None
    assert second is not None
    assert ir.to_proto(first) == ir.to_proto(second)


def test_weights_that_are_reshaped_stay() -> None:
    network = model(
        """(float[1, 8] x) => (float[1, 3] y) <float[1, 2, 4, 3] w> {
        v = Reshape(w, shape)  y = MatMul(x, v) }""",
        shape=np.array([8, 3]),
    )
    copy = opened(network, 1)
    assert copy is not None
    assert copy.graph.initializers["shape"].const_value is not None
    assert copy.graph.initializers["shape"].const_value.numpy().tolist() == [8, 3]


@pytest.mark.parametrize(
    ("before", "after", "axis", "batch", "place"),
    [
        ([1, 16, 4, 4], [1, 256], 0, 1, 0),
        ([1, 4, 6], [2, 4, 3], 0, 1, 0),
        ([8, 4, 6], [16, 4, 3], 0, 8, 0),
        ([8, 4, 6], [1, 8, 24], 0, 8, 1),
        ([7, 1, 12], [7, 1, 3, 4], 1, 1, 1),
        ([7, 1, 12], [7, 12], 1, 1, 0),
        ([7, 1, 12], [7, 3, 4], 1, 1, 1),
        ([7, 1, 12, 5], [7, 12, 5], 1, 1, 0),
        ([7, 3, 4], [7, 12], 1, 1, 0),
        ([7, 24, 4], [56, 12], 1, 8, 0),
        ([7, 12], [7, 1, 12], 0, 1, 1),
        ([56, 12], [7, 8, 12], 0, 8, 1),
        ([56, 12], [8, 7, 12], 0, 8, 0),
        ([7, 8, 12], [56, 12], 1, 8, 0),
        ([8, 6], [6, 8], 0, 8, None),
        ([6, 4], [1, 24], 0, 6, 1),
        ([1], [1, 1], 0, 1, 0),
    ],
)
def test_where_the_batch_goes(
    before: list[int], after: list[int], axis: int, batch: int, place: int | None
) -> None:
    assert batch_place(before, after, axis, batch) == place


def test_the_batches_of_all_inputs() -> None:
    network = model("(float[2, 4] x, float[N, 4] z) => (float[N, 4] y) { y = Add(x, z) }")
    assert fixed_batches(network) == {"x": 2}
