"""Sparser back propagation: against numpy for every form in which a product reads dz."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import model

from onnxprune.base import Array, Axis, Floats, Window
from onnxprune.gradients.gradient import GradientGraph, differentiate
from onnxprune.gradients.top_k import sparsified
from onnxprune.methods.compose import TopK
from onnxprune.runtime.session import Device, Runner

pytestmark = pytest.mark.ort

# Slopes of four examples and four units, and what the published specification says about them.
SLOPES = np.array(
    [[0.5, -0.1, 0, 0.2], [0, 0.9, -0.3, 0], [0, 0, 0, 0.4], [-0.6, 0.7, 0.1, 0]], np.float32
)
FORMS = {  # how z is computed from x and w (6 x 4), and how a sequence or an image is
    "matmul": ("float[N, 6] x", "z = MatMul(h, w) s = Add(z, b)", (6, 4)),
    "gemm": ("float[N, 6] x", "z = Gemm(h, w, b) s = Identity(z)", (6, 4)),
    "turned": ("float[N, 6] x", "z = Gemm <transB = 1> (h, w, b) s = Identity(z)", (4, 6)),
    "sequence": ("float[N, 3, 6] x", "z = MatMul(h, w) s = Add(z, b)", (6, 4)),
}


def rng(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def built(form: str) -> tuple[GradientGraph, dict[str, Array]]:
    """L = sum of z * d behind a first layer h = x v, so that dz is d, and dv needs dh."""
    inputs, body, sizes = FORMS[form]
    ranks = "N, 4" if "N, 6" in inputs else "N, 3, 4"
    rows, columns = sizes
    network = model(
        f"""({inputs}, float[{ranks}] d) => (float loss)
        <float[6, 6] v, float[{rows}, {columns}] w, float[4] b>
        {{ h = MatMul(x, v) {body} p = Mul(s, d) loss = ReduceSum <keepdims = 0> (p) }}"""
    )
    arrays = {n: network.graph.initializers[n].const_value.numpy() for n in ("v", "w", "b")}
    return differentiate(network, loss="loss", parameters=("v", "w", "b")), arrays


def run(graph: GradientGraph, feeds: dict[str, Array]) -> dict[str, Array]:
    return Runner(graph.model, Device(threads=1)).run(feeds)


def largest(slopes: Floats, k: int, *, unified: bool) -> Array:
    """dz~ of a matrix of slopes."""
    kept = np.zeros(slopes.shape, bool)
    if unified:
        kept[:, np.argsort(-np.abs(slopes).sum(axis=0), kind="stable")[:k]] = True
    else:
        np.put_along_axis(kept, np.argsort(-np.abs(slopes), axis=1, kind="stable")[:, :k], True, 1)
    return np.where(kept, slopes, 0)


@pytest.mark.parametrize("unified", [False, True], ids=["per example", "unified"])
@pytest.mark.parametrize("form", FORMS)
def test_products_see_the_largest_slopes_and_biases_see_all(form: str, unified: bool) -> None:
    graph, weights = built(form)
    shape = (4,) if "sequence" not in form else (4, 3)
    x, d = rng(1, *shape, 6), rng(2, *shape, 4)
    sparse, collector = sparsified(
        graph,
        {Axis("z", len(shape)): (None, *shape[1:], 4)},
        TopK(k=2, unified=unified),
        counted=True,
    )
    found = run(sparse, {"x": x, "d": d, **weights})
    rows, slopes = x.reshape(-1, 6).astype(np.float64), d.reshape(-1, 4)
    chosen = largest(slopes, 2, unified=unified)
    w = weights["w"].T if form == "turned" else weights["w"]
    dw = (rows @ weights["v"]).T @ chosen
    dw = dw.T if form == "turned" else dw
    np.testing.assert_allclose(found["w_grad"], dw, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["b_grad"], slopes.sum(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["v_grad"], rows.T @ (chosen @ w.T), rtol=1e-4, atol=1e-5)
    window = collector.collect(found)[Axis("z", len(shape))]
    assert window.hits is not None
    np.testing.assert_array_equal(window.hits, (chosen != 0).sum(axis=0))
    assert window.count == len(rows)


def counted(k: int, *, unified: bool) -> Window:
    graph, weights = built("matmul")
    sparse, collector = sparsified(
        graph, {Axis("z", 1): (None, 4)}, TopK(k=k, unified=unified), counted=True
    )
    found = run(sparse, {"x": rng(1, 4, 6), "d": SLOPES, **weights})
    return collector.collect(found)[Axis("z", 1)]


def test_zero_slopes_are_no_hits() -> None:
    """Two per example would be [3, 2, 1, 2] with zeros counted."""
    window = counted(2, unified=False)
    assert window.hits is not None
    assert window.hits.tolist() == [2, 2, 1, 2]
    assert window.count == 4


def test_the_unified_choice_goes_by_the_column_sums() -> None:
    """Sums of |dz|: 1.1, 1.7, 0.4, 0.6."""
    window = counted(2, unified=True)
    assert window.hits is not None
    assert window.hits.tolist() == [2, 3, 0, 0]


@pytest.mark.parametrize("k", [4, 9])
def test_layers_no_wider_than_k_propagate_everything(k: int) -> None:
    graph, weights = built("matmul")
    feeds = {"x": rng(1, 4, 6), "d": SLOPES, **weights}
    plain = run(graph, feeds)
    sparse, collector = sparsified(graph, {Axis("z", 1): (None, 4)}, TopK(k=k), counted=True)
    found = run(sparse, feeds)
    for name in ("w_grad", "v_grad", "b_grad"):
        np.testing.assert_array_equal(found[name], plain[name])
    window = collector.collect(found)[Axis("z", 1)]
    assert window.hits is not None
    assert window.hits.tolist() == [2, 3, 2, 2]


CONVOLUTIONS = {
    "plain": ("", (8, 6, 3, 3)),
    "strided": ("<strides = [2, 2], pads = [1, 1, 1, 1]>", (8, 6, 3, 3)),
    "grouped": ("<group = 2>", (8, 3, 3, 3)),
}


@pytest.mark.parametrize("unified", [False, True], ids=["per example", "unified"])
@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_channels_of_convolutions(form: str, unified: bool) -> None:
    """Zeroing the slopes by hand and going through the plain graph gives the same."""
    attributes, sizes = CONVOLUTIONS[form]
    size = 4 if form == "strided" else 6
    network = model(
        f"""(float[N, 3, 8, 8] x, float[N, 8, {size}, {size}] d) => (float loss)
        <float[6, 3, 1, 1] v, float[8, {sizes[1]}, 3, 3] w, float[8] b> {{
            h = Conv(x, v) z = Conv {attributes} (h, w, b) p = Mul(z, d)
            loss = ReduceSum <keepdims = 0> (p) }}"""
    )
    graph = differentiate(network, loss="loss", parameters=("v", "w", "b"))
    weights = {n: network.graph.initializers[n].const_value.numpy() for n in ("v", "w", "b")}
    x, d = rng(1, 5, 3, 8, 8), rng(2, 5, 8, size, size)
    strength = np.abs(d).sum(axis=(2, 3))
    chosen = largest(strength, 3, unified=unified) > 0
    sparse, collector = sparsified(
        graph, {Axis("z", 1): (None, 8, size, size)}, TopK(k=3, unified=unified), counted=True
    )
    found = run(sparse, {"x": x, "d": d, **weights})
    expected = run(graph, {"x": x, "d": d * chosen[..., None, None], **weights})
    for name in ("w_grad", "v_grad"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["b_grad"], d.sum(axis=(0, 2, 3)), rtol=1e-4, atol=1e-4)
    window = collector.collect(found)[Axis("z", 1)]
    assert window.hits is not None
    np.testing.assert_array_equal(window.hits, chosen.sum(axis=0))
    assert (
        np.count_nonzero(found["w_grad"])
        < np.count_nonzero(run(graph, {"x": x, "d": d, **weights})["w_grad"])
        or not unified
    )


def test_unified_products_are_smaller() -> None:
    """Every product of the layer reads k columns, not all of them."""
    graph, _ = built("gemm")
    sparse, _ = sparsified(graph, {Axis("z", 1): (None, 4)}, TopK(k=2, unified=True), counted=False)
    slope = graph.gradients["z"]
    readers = {
        node.op_type
        for node in sparse.model.graph
        for value in node.inputs
        if value is not None and value.name == slope
    }
    assert readers == {"Abs", "Gather", "ReduceSum"}
