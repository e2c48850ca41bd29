"""Statistics inside the graph: every field against numpy, for all spellings of the reductions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import feeds, model

from onnxprune.base import Array, Axis, Observable, Window
from onnxprune.gradients.gradient import differentiate
from onnxprune.gradients.lowering import TrainingCopy, lower
from onnxprune.graph.shapes import settle
from onnxprune.instrument.statistics import Collector, attach
from onnxprune.runtime.session import Device, Runner
from onnxprune.training.loss_nodes import attach as attach_loss
from onnxprune.training.losses import LOSS, TARGET, resolve
from onnxprune.windows import merge_windows

FIELDS = ("total", "square", "absolute", "active", "low", "high", "pairs")
NETWORK = """(float[N, 3, 4, 4] x) => (float[N, 2] y)
    <float[5, 3, 3, 3] w, float[5] b, float[5, 2] v> {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    a = Relu(c)
    p = GlobalAveragePool(a)
    f = Flatten(p)
    y = MatMul(f, v)
}"""


def instrumented(
    network: ir.Model, *axes: Axis, observables: Any = tuple(Observable)
) -> tuple[ir.Model, Collector]:
    ranks = {name: len(sizes) for name, sizes in settle(network)[0].items()}
    return attach(network, axes, observables, ranks)


def seen(
    network: ir.Model, data: dict[str, Array], *axes: Axis, observables: Any = tuple(Observable)
) -> dict[Axis, Window]:
    copy, collector = instrumented(network, *axes, observables=observables)
    runner = Runner(copy, Device(threads=1))
    return collector.collect(runner.run(data, collector.names))


def value_of(network: ir.Model, name: str, data: dict[str, Array]) -> Array:
    copy = network.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    if values[name] not in copy.graph.outputs:
        values[name].dtype = network.graph.inputs[0].dtype
        copy.graph.outputs.append(values[name])
    return Runner(copy, Device(threads=1)).run(data, [name])[name]


def by_numpy(array: Array, position: int) -> dict[str, Array]:
    rows = np.moveaxis(array.astype(np.float64), position, 0).reshape(array.shape[position], -1)
    return {
        "total": rows.sum(axis=1),
        "square": (rows**2).sum(axis=1),
        "absolute": np.abs(rows).sum(axis=1),
        "active": (rows != 0).sum(axis=1),
        "low": rows.min(axis=1),
        "high": rows.max(axis=1),
        "pairs": rows @ rows.T,
    }


def assert_equal(window: Window, expected: dict[str, Array], *, rtol: float, atol: float) -> None:
    for field in FIELDS:
        found = getattr(window, field)
        assert found is not None, field
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected[field], rtol=rtol, atol=atol, err_msg=field)


@pytest.mark.ort
@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 17, 18, 20])
@pytest.mark.parametrize("position", [0, 1, 3])
def test_every_field_equals_numpy(opset: int, position: int) -> None:
    network, axis = model(NETWORK, opset=opset), Axis("a", position)
    data = feeds(network, batch=6)
    window = seen(network, data, axis)[axis]
    array = value_of(network, "a", data)
    assert 0 < np.count_nonzero(array) < array.size
    assert_equal(window, by_numpy(array, position), rtol=1e-5, atol=1e-5)
    assert window.count == array.size // array.shape[position]
    assert window.batches == 1


@pytest.mark.ort
def test_several_axes_of_several_values_are_told_apart() -> None:
    network = model(NETWORK)
    data = feeds(network, batch=3)
    axes = (Axis("c", 1), Axis("c", 2), Axis("f", 1), Axis("c", 1))
    found = seen(network, data, *axes)
    assert list(found) == list(dict.fromkeys(axes))
    for axis, window in found.items():
        array = value_of(network, axis.value, data)
        assert_equal(window, by_numpy(array, axis.position), rtol=1e-5, atol=1e-5)


@pytest.mark.ort
@pytest.mark.parametrize("opset", [11, 17, 18])
@pytest.mark.parametrize(("position", "by"), [(1, 2), (2, 1), (3, 1)])
def test_members_of_blocks_are_told_apart_block_by_block(
    opset: int, position: int, by: int
) -> None:
    network, axis = model(NETWORK, opset=opset), Axis("a", position, by)
    data = feeds(network, batch=6)
    window = seen(network, data, axis)[axis]
    front = np.moveaxis(value_of(network, "a", data), (by, position), (0, 1))
    folded = front.reshape(front.shape[0] * front.shape[1], -1)
    assert_equal(window, by_numpy(folded, 0), rtol=1e-5, atol=1e-5)
    assert window.count == folded.shape[1]


@pytest.mark.ort
def test_a_vector_needs_no_reduction() -> None:
    network = model("(float[4] x) => (float[4] y) { a = Relu(x) y = Relu(a) }")
    data = feeds(network)
    window = seen(network, data, Axis("a", 0))[Axis("a", 0)]
    assert_equal(window, by_numpy(np.maximum(data["x"], 0), 0), rtol=1e-6, atol=0)
    assert window.count == 1


@pytest.mark.ort
@pytest.mark.parametrize("opset", [11, 17, 18])
def test_a_graph_input_is_observed_like_any_value(opset: int) -> None:
    network = model(NETWORK, opset=opset)
    data = feeds(network, batch=4)
    window = seen(network, data, Axis("x", 1))[Axis("x", 1)]
    assert_equal(window, by_numpy(data["x"], 1), rtol=1e-5, atol=1e-5)


@pytest.mark.ort
def test_double_precision_values_are_observed() -> None:
    network = model(
        "(double[N, 3] x) => (double[N, 2] y) { h = MatMul(x, w) a = Relu(h) y = MatMul(a, v) }",
        w=np.random.default_rng(0).normal(size=(3, 4)),
        v=np.ones((4, 2)),
    )
    data = feeds(network)
    axis, expected = Axis("a", 1), by_numpy(value_of(network, "a", data), 1)
    wanted = [Observable.RANGE, Observable.MEAN, Observable.VARIANCE]
    window = seen(network, data, axis, observables=wanted)[axis]
    for field in ("total", "square", "low", "high"):
        np.testing.assert_allclose(getattr(window, field), expected[field], rtol=1e-12, atol=1e-12)


@pytest.mark.ort
@pytest.mark.parametrize(
    ("observable", "fields"),
    [
        (Observable.RANGE, {"low", "high"}),
        (Observable.MEAN, {"total"}),
        (Observable.VARIANCE, {"total", "square"}),
        (Observable.ABSOLUTE, {"absolute"}),
        (Observable.ACTIVE, {"active"}),
        (Observable.PAIRS, {"pairs"}),
    ],
)
def test_only_what_is_asked_for_is_observed(observable: Observable, fields: set[str]) -> None:
    network, axis = model(NETWORK), Axis("a", 1)
    window = seen(network, feeds(network), axis, observables=[observable])[axis]
    assert {field for field in FIELDS if getattr(window, field) is not None} == fields


def test_axes_of_values_that_are_not_there_are_left_out() -> None:
    ranks = {"a": 4, "gone": 2}
    _, collector = attach(model(NETWORK), [Axis("gone", 1), Axis("a", 1)], Observable, ranks)
    assert list(collector.outputs) == [Axis("a", 1)]
    assert set(collector.outputs[Axis("a", 1)]) == {"count", *FIELDS}


def test_the_model_given_stays_as_it_is() -> None:
    network = model(NETWORK)
    before = ir.to_proto(network).SerializeToString()
    copy, collector = instrumented(network, Axis("a", 1))
    assert ir.to_proto(network).SerializeToString() == before
    assert copy.graph.outputs[0].name == "y"
    assert [value.name for value in copy.graph.outputs[1:]] == sorted(
        collector.names, key=[value.name for value in copy.graph.outputs].index
    )


# --- merging -----------------------------------------------------------------------------------


@pytest.mark.ort
def test_merged_windows_equal_one_window_over_all_batches() -> None:
    network, axis = model(NETWORK), Axis("a", 1)
    data = feeds(network, batch=10)
    parts = [{"x": data["x"][:3]}, {"x": data["x"][3:4]}, {"x": data["x"][4:]}]
    merged: dict[Axis, Window] = {}
    for part in parts:
        merged = merge_windows(merged, seen(network, part, axis))
    whole = seen(network, data, axis)[axis]
    assert merged[axis].batches == 3
    assert merged[axis].count == whole.count
    expected = {field: getattr(whole, field) for field in FIELDS}
    assert_equal(merged[axis], expected, rtol=1e-5, atol=1e-5)


def test_merging_keeps_what_only_one_side_knows() -> None:
    a, b = Axis("a", 0), Axis("b", 0)
    one = {a: Window(count=1, batches=1, total=np.ones(2))}
    two = {b: Window(count=2, batches=1, low=np.zeros(3))}
    merged = merge_windows(one, two)
    assert merged == {a: one[a], b: two[b]}
    assert list(one) == [a]


def test_a_field_that_one_side_did_not_observe_is_unknown_afterwards() -> None:
    axis = Axis("a", 0)
    first = {axis: Window(count=1, batches=1, total=np.ones(2), low=np.zeros(2))}
    second = {axis: Window(count=1, batches=1, total=np.ones(2))}
    merged = merge_windows(first, second)[axis]
    assert merged.low is None
    np.testing.assert_array_equal(merged.total, [2, 2])


# --- the observed step graph -------------------------------------------------------------------


@pytest.mark.ort
def test_the_observed_step_has_the_same_loss_and_gradients() -> None:
    network = model(
        """(float[N, 1, 6, 6] x) => (float[N, 3] y)
        <float[4, 1, 3, 3] w, float[4] b, float[4] scale, float[4] shift, float[4] mean,
         float[4] var, float[64, 3] v> {
        c = Conv(x, w, b)
        n = BatchNormalization(c, scale, shift, mean, var)
        a = Relu(n)
        f = Flatten(a)
        y = MatMul(f, v)
    }"""
    )
    objective = resolve(network, None, "cross-entropy")
    copy = attach_loss(lower(network, ["y"], batch_norm="train"), [objective])
    names = [name for name in copy.model.graph.initializers if name in ("w", "b", "scale", "v")]
    plain = differentiate(copy.model, loss=LOSS, parameters=names, state=copy.state)
    observed_model, collector = instrumented(copy.model, Axis("f", 1), Axis("a", 1), Axis("x", 2))
    with_statistics = TrainingCopy(model=observed_model, state=copy.state)
    observed = differentiate(
        with_statistics.model, loss=LOSS, parameters=names, state=with_statistics.state
    )
    data = {**feeds(network, batch=8), TARGET: np.arange(8) % 3}
    constants = {
        name: value.const_value.numpy()
        for name, value in network.graph.initializers.items()
        if value.const_value is not None
    }
    results = []
    for graph in (plain, observed):
        runner = Runner(graph.model, Device(threads=1))
        arrays = {**constants, **data}
        results.append(runner.run({name: arrays[name] for name in runner.inputs}))
    first, second = results
    np.testing.assert_allclose(first[plain.loss], second[observed.loss], rtol=1e-6)
    for name in names:
        one, two = first[plain.gradients[name]], second[observed.gradients[name]]
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6, err_msg=name)
    for name, output in plain.state.items():
        np.testing.assert_allclose(first[output], second[observed.state[name]], rtol=1e-6)
    windows = collector.collect(second)
    np.testing.assert_allclose(
        windows[Axis("x", 2)].total, data["x"].sum(axis=(0, 1, 3)), rtol=1e-4, atol=1e-4
    )
    assert windows[Axis("a", 1)].count == 8 * 16
