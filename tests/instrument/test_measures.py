"""Nodes that a method writes itself: what they see, and how batches add up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import array, feeds, model
from runs import examples
from stages import first_stage, posed

from onnxprune.emit import Emitter
from onnxprune.instrument.measures import attach_measurement
from onnxprune.runtime.session import Device, Runner
from onnxprune.training.pruning import inputs_of, moment

pytestmark = pytest.mark.ort

NETWORK = """(float[N, 6] x) => (float[N, 3] y) <float[6, 8] w, float[8, 3] v> {
    h = MatMul(x, w)  a = Relu(h)  y = MatMul(a, v) }"""


def gram(e: Emitter, values: Mapping[str, ir.Value]) -> Mapping[str, ir.Value]:
    transposed = e.op("Transpose", values["a"])
    return {"gram": e.op("MatMul", transposed, values["a"]), "count": e.op("Identity", e.scalar(1))}


def test_results_are_the_outputs_and_the_model_stays_as_it_is() -> None:
    network = model(NETWORK)
    before = ir.to_proto(network).SerializeToString()
    measured, outputs = attach_measurement(network, gram)
    data = feeds(network, batch=20)
    found = Runner(measured, Device(threads=1)).run(data)
    assert set(found) == set(outputs.values())
    a = np.maximum(data["x"] @ array(network, "w"), 0)
    np.testing.assert_allclose(found[outputs["gram"]], a.T @ a, rtol=1e-4, atol=1e-4)
    assert ir.to_proto(network).SerializeToString() == before


def test_a_moment_adds_up_its_batches_and_can_be_had_with_other_numbers(tmp_path: Path) -> None:
    problem = posed(tmp_path, NETWORK, examples(), threads=1)
    stage = first_stage(problem)
    sample = inputs_of(problem.train.batch(np.arange(100)))
    now = moment(problem, stage, steps=10, loss=1.0, limit=None, sample=sample)
    assert now.parameters == {"w", "v"}
    w = stage.snapshot.parameters["w"]
    for each, weight in ((now, w), (now.altered({"w": 2 * w}), 2 * w)):
        a = np.maximum(sample["x"] @ weight, 0)
        for most, batches in ((30, 4), (256, 1)):
            sums = each.measure(gram, examples=most)
            np.testing.assert_allclose(sums["gram"], a.T @ a, rtol=1e-4, atol=1e-3)
            assert sums["count"] == batches
    np.testing.assert_array_equal(stage.snapshot.parameters["w"], w)
    assert now.measure(lambda _e, _values: {}) == {}
