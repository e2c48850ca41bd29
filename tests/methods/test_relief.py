"""What NNrelief scores: contributions of connections, in every layout, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import array, feeds, model
from moments import moment, normal, value_of

from onnxprune.base import Array, Floats
from onnxprune.graph.groups import analyze
from onnxprune.graph.parameters import trained
from onnxprune.methods.connections import Layer, entry_masks, layers
from onnxprune.methods.relief import Importance, depths, importances

pytestmark = pytest.mark.ort

# Checked by hand.
X = np.array([[1, -2, 0.5, 0], [3, 0, -0.5, 0]], np.float32)
W, B = np.array([[0.5], [0.25], [2], [7]], np.float32), np.array([-0.5], np.float32)
I = [1, 0.25, 1, 0]  # noqa: E741  the paper's name
MAPS = np.array([[[1, 0, 2], [0, 1, 0], [3, 0, 1]], [[0, 2, 0], [1, 0, 1], [0, 0, 2]]], np.float32)
KERNEL = np.array([[[[1, -1], [0.5, 2]]]], np.float32)


def found(network: ir.Model) -> tuple[list[Layer], tuple[str, ...]]:
    analysis = analyze(network)
    return layers(network, analysis, trained(network, analysis).parameters)


def only(network: ir.Model) -> Layer:
    (layer,), notes = found(network)
    assert notes == ()
    return layer


def scored(network: ir.Model, data: Any, formula: str = "paper") -> Importance:
    layer = only(network)
    return importances(moment(network, data), [layer], formula)[layer.node]


DENSE = {
    "gemm": "<float[4, 1] w, float[1] b> { y = Gemm(x, w, b) }",
    "transposed": "<float[1, 4] w, float[1] b> { y = Gemm <transB = 1> (x, w, b) }",
    "scaled": "<float[4, 1] w, float[1] b> { y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b) }",
    "product and sum": "<float[4, 1] w, float[1] b> { h = MatMul(x, w) y = Add(b, h) }",
    "behind a transpose": (
        "<float[1, 4] w, float[1] b> { v = Transpose(w) h = MatMul(x, v) y = Add(h, b) }"
    ),
}


@pytest.mark.parametrize("form", DENSE)
def test_dense_layers_are_scored_alike_in_every_form(form: str) -> None:
    factor = np.float32(2 if form == "scaled" else 1)
    text = "(float[N, 4] x) => (float[N, 1] y) " + DENSE[form]
    weight = W.T if "float[1, 4] w" in text else W
    network = model(text, w=factor * weight, b=B / factor)
    layer = only(network)
    result = scored(network, {"x": X})
    np.testing.assert_allclose(result.kernels[0, :, 0], I, rtol=1e-6)
    assert result.offsets is not None
    np.testing.assert_allclose(result.offsets, [[0.5]], rtol=1e-6)
    assert (layer.weight.name, layer.bias and layer.bias.name) == ("w", "b")
    np.testing.assert_array_equal(layer.weight.index.reshape(-1), np.arange(4))


def test_a_transposed_weight_is_found_entry_by_entry() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y) <float[2, 3] w, float[2] b>
        { v = Transpose(w) h = MatMul(x, v) y = Add(h, b) }"""
    )
    layer = only(network)
    flat = array(network, "w").reshape(-1)
    np.testing.assert_array_equal(flat[layer.weight.index[0, :, :, 0]], array(network, "w").T)
    kept = np.array([[[True, True], [True, False], [True, True]]])
    masks = entry_masks(network, [(layer.weight, kept)])
    np.testing.assert_array_equal(masks["w"], kept[0].T)


def test_shares_sort_and_the_bias_competes() -> None:
    depth, bias = depths(
        Importance(kernels=np.array(I).reshape(1, 4, 1), offsets=np.array([[0.5]]))
    )
    assert bias is not None
    np.testing.assert_allclose(depth[0, :, 0], np.array([0, 2.5, 1, 2.75]) / 2.75, rtol=1e-6)
    np.testing.assert_allclose(bias, [[2 / 2.75]], rtol=1e-6)
    expected = {0.5: {0, 2}, 0.8: {0, 2, "b"}, 0.9: {0, 2, "b"}, 0.95: {0, 1, 2, "b"}}
    for alpha, units in expected.items():
        kept: set[Any] = set(np.flatnonzero(depth[0, :, 0] < alpha).tolist())
        assert kept | ({"b"} if bias[0, 0] < alpha else set()) == units


def test_all_that_contribute_stay_where_all_are_needed() -> None:
    """The published code prunes the smallest of them."""
    depth, _ = depths(Importance(kernels=np.array([5, 4, 1.0]).reshape(1, 3, 1), offsets=None))
    np.testing.assert_array_equal(depth[0, :, 0] < 0.95, [True, True, True])
    np.testing.assert_array_equal(depth[0, :, 0] < 0.9, [True, True, False])


def test_the_fewest_that_reach_alpha_are_kept() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values, alpha = rng.exponential(size=12), rng.uniform(0.1, 0.99)
        depth, _ = depths(Importance(kernels=values.reshape(1, 12, 1), offsets=None))
        kept = depth[0, :, 0] < alpha
        share = np.sort(values)[::-1].cumsum() / values.sum()
        assert kept.sum() == np.argmax(share >= alpha) + 1
        assert values[kept].min() >= values[~kept].max(initial=0)


def test_of_what_contributes_nothing_all_stays() -> None:
    depth, bias = depths(Importance(kernels=np.zeros((1, 3, 2)), offsets=np.zeros((1, 2))))
    assert not depth.any()
    assert bias is not None
    assert not bias.any()


CONV = "(float[N, 1, 3, 3] x) => (float[N, 1, 2, 2] y) <float[1, 1, 2, 2] w, float[1] b>"


@pytest.mark.parametrize(
    ("formula", "expected", "factor"),
    [("paper", 6.234451, 2.0), ("code", 6.098155, 2.0), ("sum", 11.75, 4.0)],
)
def test_kernels_are_scored_by_each_formula(formula: str, expected: float, factor: float) -> None:
    network = model(CONV + "{ y = Conv(x, w, b) }", w=KERNEL, b=B)
    result = scored(network, {"x": MAPS[:, None]}, formula)
    np.testing.assert_allclose(result.kernels, [[[expected]]], rtol=1e-6)
    assert result.offsets is not None
    np.testing.assert_allclose(result.offsets, [[0.5 * factor]], rtol=1e-6)


def brute(x: Floats, w: Floats, stride: int, pad: int, group: int) -> Floats:
    """(N, C_in * O, H, W): |kernel| over |x|, kernel by kernel."""
    x = np.pad(np.abs(x), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    outputs, inputs = len(w) // group, w.shape[1]
    size = w.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    maps = []
    for channel in range(x.shape[1]):
        number, inner = divmod(channel, inputs)
        for o in range(outputs):
            kernel = np.abs(w[number * outputs + o, inner])
            maps.append(np.einsum("nhwij,ij->nhw", windows[:, channel], kernel))
    return np.stack(maps, axis=1)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("formula", ["paper", "code", "sum"])
def test_grouped_strided_padded_kernels_are_scored_one_by_one(group: int, formula: str) -> None:
    network = model(
        f"""(float[N, 4, 7, 7] x) => (float[N, 6, 4, 4] y) <float[6, {4 // group}, 3, 3] w>
        {{ y = Conv <strides = [2, 2], pads = [1, 1, 1, 1], group = {group}> (x, w) }}"""
    )
    x = normal(9, 4, 7, 7, seed=1)
    maps = brute(x, array(network, "w"), 2, 1, group)
    if formula == "paper":
        expected = np.sqrt((maps**2).sum(axis=(2, 3))).mean(axis=0)
    elif formula == "code":
        expected = np.sqrt((maps.mean(axis=0) ** 2).sum(axis=(1, 2)))
    else:
        expected = maps.mean(axis=0).sum(axis=(1, 2))
    result = scored(network, {"x": x}, formula)
    assert result.kernels.shape == (group, 4 // group, 6 // group)
    np.testing.assert_allclose(result.kernels.reshape(-1), expected, rtol=1e-5)
    assert result.offsets is None


@pytest.mark.parametrize(
    "text",
    [
        "<float[4, 3, 3, 3] w> { y = ConvTranspose <strides = [2, 2]> (x, w) }",
        "<float[4, 3, 3, 3] w> { y = ConvTranspose <group = 2, pads = [1, 0, 0, 1]> (x, w) }",
        '<float[6, 4, 2, 2] w> { y = Conv <auto_pad = "SAME_UPPER", strides = [2, 1]> (x, w) }',
        "<float[6, 4, 2, 2] w> { y = Conv <pads = [0, 1, 2, 1], dilations = [2, 2]> (x, w) }",
        "<float[6, 2, 3, 3] w> { y = Conv <group = 2> (x, w) }",
    ],
)
def test_what_kernels_make_alone_adds_up_to_the_layer(text: str) -> None:
    """Without signs, a convolution is the sum of its kernels."""
    network = model("(float[N, 4, 6, 6] x) => (float[N, C, H, W] y) " + text)
    positive = np.abs(array(network, "w"))
    network = model("(float[N, 4, 6, 6] x) => (float[N, C, H, W] y) " + text, w=positive)
    layer, x = only(network), np.abs(normal(3, 4, 6, 6, seed=2))
    spread = layer.how.spread
    assert spread is not None
    groups, inputs, outputs, _ = layer.kernels.shape

    def write(e: Any, values: Any) -> Any:
        return {"maps": spread(e, values["x"], layer.kernels.astype(np.float32))}

    maps = moment(network, {"x": x}).measure(write)["maps"]
    maps = maps.reshape(3, groups, inputs, outputs, *maps.shape[2:]).sum(axis=2)
    expected = value_of(network, "y", {"x": x})
    np.testing.assert_allclose(maps.reshape(expected.shape), expected, rtol=1e-4)


def test_positions_of_a_sequence_count_as_examples() -> None:
    network = model("(float[N, 5, 4] x) => (float[N, 5, 3] y) <float[4, 3] w> {y = MatMul(x, w)}")
    x = normal(6, 5, 4, seed=3)
    result = scored(network, {"x": x})
    expected = np.abs(x).mean(axis=(0, 1))[:, None] * np.abs(array(network, "w"))
    np.testing.assert_allclose(result.kernels[0], expected, rtol=1e-5)


def test_what_cannot_be_scored_is_said() -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 4] y) <float[4, 4] w, float[4, 4] v> {
        a = MatMul(x, w)  b = MatMul(a, w)  z = Softmax(w)  c = MatMul(b, v)  y = Add(c, z) }"""
    )
    alone, notes = found(network)
    assert [layer.weight.name for layer in alone] == ["v"]
    (note,) = notes
    assert note == "not scored connection by connection, weights stay whole: 2 MatMul"


def test_a_weight_that_two_layers_share_keeps_what_either_needs() -> None:
    network = model(
        "(float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> { a = MatMul(x, w) y = MatMul(a, w) }"
    )
    both, notes = found(network)
    assert notes == ()
    first, second = (np.random.default_rng(seed).random((1, 4, 4)) < 0.4 for seed in (0, 1))
    pairs = [(both[0].weight, first), (both[1].weight, second)]
    np.testing.assert_array_equal(entry_masks(network, pairs)["w"], (first | second)[0])


def test_frozen_weights_are_no_layers() -> None:
    network = model("(float[N, 4] x) => (float[N, 3] y) <float[4, 3] w> { y = MatMul(x, w) }")
    assert layers(network, analyze(network), []) == ([], ())


def test_a_bias_that_others_read_competes_and_stays() -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 3] y) <float[4, 3] w, float[3] b>
        { z = Gemm(x, w, b) y = Mul(z, b) }"""
    )
    layer = only(network)
    assert layer.bias is None
    assert layer.offsets is not None
    data: dict[str, Array] = feeds(network)
    assert scored(network, data).offsets is not None
