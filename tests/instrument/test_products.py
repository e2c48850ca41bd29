"""Products with gradients inside the gradient graph: against central differences and numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import feeds, model

from onnxprune.base import Array, Axis, Observable, Window
from onnxprune.gradients.gradient import GradientGraph, differentiate
from onnxprune.graph.shapes import settle
from onnxprune.instrument.products import attach_products
from onnxprune.runtime.session import Device, Runner
from onnxprune.windows import merge_windows

pytestmark = pytest.mark.ort

NETWORK = """(float[N, 4] x) => (float loss)
    <float[4, 6] w, float[6] b, float[6, 3] v> {
    z = MatMul(x, w)
    s = Add(z, b)
    a = Relu(s)
    y = MatMul(a, v)
    q = Mul(y, y)
    loss = ReduceMean <keepdims = 0> (q)
}"""
NAMES = ("w", "b", "v")
BOTH = (Observable.GATE, Observable.SALIENCY)


def weights(network: ir.Model) -> dict[str, Array]:
    return {n: network.graph.initializers[n].const_value.numpy() for n in NAMES}


def loss(held: dict[str, Array], x: Array, gate: Array) -> float:
    w, b, v = (held[name].astype(np.float64) for name in NAMES)
    y = (np.maximum(x.astype(np.float64) @ w + b, 0) * gate) @ v
    return float((y * y).mean())


def gradient_graph() -> tuple[ir.Model, GradientGraph]:
    network = model(NETWORK)
    return network, differentiate(network, loss="loss", parameters=NAMES)


def windows(
    network: ir.Model, graph: GradientGraph, x: Array, *axes: Axis
) -> tuple[dict[Axis, Window], dict[str, Array]]:
    ranks = {name: len(sizes) for name, sizes in settle(network)[0].items()}
    copy, collector = attach_products(graph.model, graph.gradients, axes, BOTH, ranks)
    results = Runner(copy, Device(threads=1)).run({"x": x, **weights(network)})
    return collector.collect(results), results


def test_a_gate_is_the_derivative_by_a_factor_at_the_unit():
    network, graph = gradient_graph()
    x = feeds(network, batch=9)["x"]
    found, _ = windows(network, graph, x, Axis("a", 1))
    window, step = found[Axis("a", 1)], 1e-5
    expected = []
    for unit in np.eye(6):
        up, down = (loss(weights(network), x, 1 + sign * step * unit) for sign in (1, -1))
        expected.append((up - down) / (2 * step))
    np.testing.assert_allclose(window.gate, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(window.gate_square, np.square(expected), rtol=2e-4, atol=1e-6)
    assert window.count == 9
    assert window.batches == 1


def test_weights_have_products_along_each_axis():
    network, graph = gradient_graph()
    x = feeds(network, batch=9)["x"]
    found, results = windows(network, graph, x, Axis("w", 0), Axis("w", 1), Axis("b", 0))
    product = weights(network)["w"] * results[graph.gradients["w"]]
    for position in (0, 1):
        window, other = found[Axis("w", position)], 1 - position
        np.testing.assert_allclose(window.gate, product.sum(axis=other), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(window.saliency, abs(product).sum(axis=other), rtol=1e-5)
        np.testing.assert_allclose(window.saliency_square, (product**2).sum(axis=other), rtol=1e-5)
    bias = weights(network)["b"] * results[graph.gradients["b"]]
    np.testing.assert_allclose(found[Axis("b", 0)].saliency, abs(bias), rtol=1e-5)


def test_windows_add_squares_batch_by_batch():
    network, graph = gradient_graph()
    axis = Axis("a", 1)
    parts = [
        windows(network, graph, feeds(network, batch=5, seed=seed)["x"], axis)[0] for seed in (0, 1)
    ]
    merged = merge_windows(*parts)[axis]
    first, second = (part[axis].gate for part in parts)
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(merged.gate, first + second)
    np.testing.assert_allclose(merged.gate_square, first**2 + second**2)
    assert merged.batches == 2
    assert merged.hits is None


def test_values_without_a_gradient_are_left_out():
    network, graph = gradient_graph()
    found, _ = windows(network, graph, feeds(network, batch=2)["x"], Axis("x", 1), Axis("none", 0))
    assert not found
