"""Convolutions in the CPU's blocked layout, and the other passes that only the CPU gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.base import Array
from onnxprune.gradients import blocked, gradient
from onnxprune.gradients.blocked import DOMAIN, block_size
from onnxprune.runtime.session import Device, Runner
from onnxprune.training.losses import TARGET

pytestmark = pytest.mark.ort

NET = """<ir_version: 8, opset_import: ["" : 14]>
g (float[N,3,SIZE,SIZE] x, float[32,3,1,1] p_a, float[32,INNER,K,K] p_w, float[32] p_b,
   float[32,4] p_v) => (float[N,4] y) {
    h = Conv(x, p_a)
    r = Tanh(h)
    c = Conv<pads = [PADS], strides = [STEP, STEP], group = GROUP>(r, p_w, p_b)
    d = Tanh(c)
    m = GlobalAveragePool(d)
    f = Flatten(m)
    y = MatMul(f, p_v) }"""


def net(model_from: Callable[..., ir.Model], **sizes: object) -> ir.Model:
    text = NET
    for name, value in sizes.items():
        text = text.replace(name.upper(), str(value))
    return model_from(text)


def feeds(count: int, size: int) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 3, size, size)).astype(np.float32)
    return {"x": x, TARGET: rng.integers(4, size=count)}


def converted(setup: Any) -> int:
    return sum(node.domain == DOMAIN for node in setup.graph.model.graph)


@pytest.mark.parametrize(
    ("k", "pads", "step", "size"),
    [
        (3, "1,1,1,1", 1, 8),
        (3, "1,1,1,1", 2, 8),
        (3, "0,1,2,1", 2, 9),
        (5, "2,2,2,2", 1, 7),
        (5, "0,0,0,0", 3, 14),
        (3, "1,1,1,1", 1, 20),
        (1, "0,0,0,0", 1, 6),
    ],
)
@pytest.mark.parametrize("group", [1, 32])
def test_gradients_of_blocked_convolutions_are_those_of_the_engine(
    model_from: Any,
    training: Any,
    monkeypatch: Any,
    k: int,
    pads: str,
    step: int,
    size: int,
    group: int,
) -> None:
    model = net(model_from, k=k, pads=pads, step=step, size=size, group=group, inner=32 // group)
    made = training(model)
    assert (converted(made) > 0) == (block_size() is not None and (group > 1 or k > 1))
    monkeypatch.setattr(gradient, "improve", lambda *_, **__: None)
    plain = training(model)
    assert converted(plain) == 0
    for count in (1, 5):
        given = feeds(count, size)
        reference = plain.gradients(given)
        for name, found in made.gradients(given).items():
            scale = np.abs(reference[name]).max()
            np.testing.assert_allclose(found, reference[name], rtol=0, atol=1e-5 * scale)


def test_other_devices_get_no_blocked_convolution(model_from: Any, training: Any) -> None:
    model = net(model_from, k=3, pads="1,1,1,1", step=1, size=8, group=1, inner=32)
    copy = training(model).copy
    names = ["p_a", "p_w", "p_b", "p_v"]
    found = gradient.differentiate(
        copy.model, loss=copy.model.graph.outputs[0].name, parameters=names, provider="cuda"
    )
    assert {node.domain for node in found.model.graph} & {DOMAIN} == set()


def test_a_processor_without_blocked_kernels_keeps_plain_convolutions(
    model_from: Any, training: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(blocked, "block_size", lambda: None)
    model = net(model_from, k=3, pads="1,1,1,1", step=1, size=8, group=1, inner=32)
    assert converted(training(model)) == 0


TABLE = """<ir_version: 8, opset_import: ["" : 17]>
g (int64[N,6] x, float[20,8] p_table, float[8,4] p_v) => (float[N,4] y) {
    e = Gather(p_table, x)
    axes = Constant<value_ints = [1]>()
    s = ReduceSum<keepdims = 0>(e, axes)
    y = MatMul(s, p_v) }"""


def test_rows_looked_up_several_times_gather_all_their_gradients(
    model_from: Any, training: Any, slope_error: Any
) -> None:
    setup = training(model_from(TABLE))
    assert "GatherGrad" not in {node.op_type for node in setup.graph.model.graph}
    x = np.array([[3, 3, 3, 0, -1, 19], [19, 7, 3, 3, 0, -20], [5, 5, 5, 5, 5, 5]])
    assert slope_error(setup, {"x": x, TARGET: np.array([0, 1, 3])}) < 1e-3


def test_threads_do_not_lose_gradients_of_rows_looked_up_several_times(
    model_from: Any, training: Any
) -> None:
    text = TABLE.replace("20,8", "20,512").replace("8,4", "512,4").replace("N,6", "N,500")
    setup = training(model_from(text))
    feeds = {"x": np.arange(4 * 500).reshape(4, 500) % 3, TARGET: np.array([0, 1, 3, 2])}
    found = []
    for threads in (1, 4, 4):
        runner = Runner(setup.graph.model, Device(threads=threads))
        arrays = {**setup.snapshot.parameters, **feeds}
        results = runner.run({name: arrays[name] for name in runner.inputs})
        found.append(results[setup.graph.gradients["p_table"]])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-7)
    assert np.array_equal(found[1], found[2])


POOLED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,1,H,W] x, float[4,1,3,3] p_w, float[4,3] p_v) => (float[N,3] y) {
    c = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, p_w)
    m = MaxPool<kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]>(c)
    a = GlobalAveragePool(m)
    f = Flatten(a)
    y = MatMul(f, p_v) }"""


def test_maxima_of_open_sizes_and_of_nan_write_inside_their_array(
    model_from: Any, training: Any
) -> None:
    still = training(model_from(POOLED.replace("N,1,H,W", "N,1,7,8")))
    opened = training(model_from(POOLED))
    x = np.random.default_rng(0).normal(size=(5, 1, 7, 8)).astype(np.float32)
    given = {"x": x, TARGET: np.array([0, 1, 2, 0, 1])}
    expected = still.gradients(given)
    for name, found in opened.gradients(given).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6)
    for setup in (still, opened):
        found = setup.gradients({**given, "x": np.full_like(x, np.nan)})
        assert not np.isfinite(found["p_w"]).all()
