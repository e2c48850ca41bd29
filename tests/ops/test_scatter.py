from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from frames import frame, prunes
from graphs import array, coupled, frozen, model, straight, view

from onnxprune.base import Coupling, Reason
from onnxprune.graph.groups import analyze
from onnxprune.ops.scatter import compress

RNG = np.random.default_rng(0)


@pytest.mark.ort
@pytest.mark.parametrize("channels", [6, 4])
def test_gather_elements_couples_what_it_does_not_select(channels: int) -> None:
    indices = RNG.integers(-4, 4, (2, channels, 3, 4))
    network = frame("a = GatherElements<axis = 2>(h, i)", channels, i=indices)
    assert coupled(network, "h[1]", "a[1]") == straight(channels)
    assert coupled(network, "i[2]", "a[2]") == straight(3)
    assert Reason.POSITIONS in frozen(network, "h[2]")
    smaller = prunes(network)
    assert array(smaller, "i").shape[1] == array(smaller, "v").shape[1]


@pytest.mark.ort
@pytest.mark.parametrize("op", ["ScatterElements", 'ScatterElements<reduction = "add">'])
@pytest.mark.parametrize("channels", [6, 4])
def test_scatter_elements_couples_what_it_does_not_write_along(op: str, channels: int) -> None:
    op = op.replace("<", "<axis = -1, ") if "<" in op else f"{op}<axis = -1>"
    network = frame(
        f"a = {op}(h, i, u)",
        opset=16,
        i=np.tile(RNG.permutation(4)[:2], (5, channels, 4, 1)),
        u=RNG.normal(size=(5, channels, 4, 2)).astype(np.float32),
    )
    assert coupled(network, "u[1]", "a[1]") == straight(channels)
    assert coupled(network, "h[1]", "a[1]") == straight(6)
    prunes(network)


@pytest.mark.ort
def test_the_old_scatter_is_known_too() -> None:
    network = frame(
        "a = Scatter<axis = 2>(h, i, u)",
        opset=10,
        i=np.tile([[1]], (5, 6, 1, 4)),
        u=RNG.normal(size=(5, 6, 1, 4)).astype(np.float32),
    )
    prunes(network)


@pytest.mark.ort
@pytest.mark.parametrize("batch", [0, 1])
def test_gather_nd_couples_what_tuples_leave_alone(batch: int) -> None:
    network = model(
        f"""(float[5, 4, 3] x) => (float[M, L, 2] y) <float[3, 6] w, float[6, 2] v> {{
            h = MatMul(x, w)
            a = GatherND<batch_dims = {batch}>(h, i)
            y = MatMul(a, v)
        }}""",
        i=RNG.integers(0, 4, (5, 3, 1)),
    )
    rank = 3 if batch else 4
    assert coupled(network, "h[2]", f"a[{rank - 1}]") == straight(6)
    prunes(network)


@pytest.mark.ort
@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter_nd_couples_what_tuples_leave_alone(reduction: str) -> None:
    network = model(
        f"""(float[5, 4, 3] x) => (float[5, 4, 2] y)
        <float[3, 6] w, float[6, 2] v, float[3, 6] u> {{
            h = MatMul(x, w)
            a = ScatterND<reduction = "{reduction}">(h, i, u)
            y = MatMul(a, v)
        }}""",
        i=[[0, 1], [4, 3], [2, 2]],
    )
    assert coupled(network, "h[2]", "a[2]") == straight(6)
    assert coupled(network, "u[1]", "a[2]") == straight(6)
    smaller = prunes(network)
    assert array(smaller, "u").shape[1] == array(smaller, "v").shape[0]


@pytest.mark.ort
def test_one_hot_keeps_its_classes() -> None:
    network = frame(
        """m = ArgMax<axis = -1, keepdims = 0>(h)
        o = OneHot<axis = -1>(m, depth, values)
        a = Mul(h, o)""",
        depth=[4],
        values=np.float32([0.5, 2.0]),
    )
    assert coupled(network, "m[1]", "o[1]") == straight(6)
    assert Reason.POSITIONS in frozen(network, "o[3]")
    prunes(network)


@pytest.mark.parametrize("condition", [[1, 0, 1, 1, 0, 1], [0, 1, 1, 0]])
def test_compress_couples_what_it_selects(condition: list[int]) -> None:
    taken = np.flatnonzero(condition).tolist()
    network = model(
        f"""(float[N, 3] x) => (float[N, 2] y, float[N, 2] z)
        <float[3, 6] w, float[{len(taken)}, 2] v, float[6, 2] u> {{
            h = MatMul(x, w)
            a = Compress<axis = 1>(h, c)
            y = MatMul(a, v)
            z = MatMul(h, u)
        }}""",
        c=np.array(condition, np.bool_),
    )
    # ONNX's inference leaves the size open; where it is known, the selected ones are coupled.
    assert analyze(network).groups == ()
    seen = view(network, "Compress")
    known = replace(seen, shapes={**seen.shapes, "a": (None, len(taken))})
    found = [fact for fact in compress(known) if isinstance(fact, Coupling)]
    pairs = {
        (str(fact.left), str(fact.right)): (fact.left_index.tolist(), fact.right_index.tolist())
        for fact in found
    }
    every = list(range(len(condition)))
    assert pairs["a[1]", "h[1]"] == (list(range(len(taken))), taken)
    assert pairs["h[1]", "c[0]"] == (every, every)


@pytest.mark.parametrize(
    "body",
    ["r = NonZero(h)", "r = Unique<axis = 1>(h)", "r = Compress(h, c)"],
)
def test_searches_need_all_units(body: str) -> None:
    network = model(
        f"""(float[2, 3] x) => (float[2, 2] y, int64[K] r) <float[3, 6] w, float[6, 2] v> {{
            h = MatMul(x, w)
            {body}
            y = MatMul(h, v)
        }}""",
        c=np.array([True] * 12),
    )
    assert frozen(network, "h[1]") & {Reason.POSITIONS, Reason.UNKNOWN_SHAPE}
    assert analyze(network).groups == ()


def test_tensor_scatter_couples_what_it_does_not_write_along() -> None:
    network = model(
        """(float[N, 7, 3] x, float[N, 2, 6] u, int64[N] at) => (float[N, 7, 2] y)
        <float[3, 6] w, float[6, 2] v> {
            h = MatMul(x, w)
            a = TensorScatter<axis = 1>(h, u, at)
            y = MatMul(a, v)
        }""",
        opset=24,
    )
    assert coupled(network, "h[2]", "a[2]") == straight(6)
    assert Reason.POSITIONS in frozen(network, "u[1]")
