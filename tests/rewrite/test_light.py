"""Random plans on the small networks that ONNX's own wheel ships, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from checks import DEVICE, agreeing
from graphs import feeds
from strategies import random_plan

from onnxprune.base import Array
from onnxprune.graph.groups import analyze
from onnxprune.model import constant, load
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.verify import compare

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = ("inception_v1", "inception_v2", "squeezenet")

pytestmark = [
    pytest.mark.ort,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="onnx came without its test data"),
]


def with_weights(network: ir.Model) -> ir.Model:
    """Random initializers in the place of the generated weights."""
    rng = np.random.default_rng(0)
    network.ir_version = 8
    for node in [node for node in network.graph if node.op_type == "ConstantOfShape"]:
        old = node.outputs[0]
        sizes = constant(node.inputs[0])
        assert sizes is not None
        reader = next(iter(old.uses()))
        array = drawn(rng, [int(size) for size in sizes], reader.node.op_type, reader.idx)
        made = ir.Value(
            name=f"{old.name}/random",
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array),
        )
        network.graph.register_initializer(made)
        ir.convenience.replace_all_uses_with(old, made)
        network.graph.remove(node, safe=True)
    return network


def drawn(rng: np.random.Generator, sizes: list[int], op_type: str, slot: int) -> Array:
    if op_type == "BatchNormalization" and slot in (1, 4):
        return rng.uniform(0.5, 1.5, sizes).astype(np.float32)
    scale = 0.1 if len(sizes) == 1 else np.sqrt(2.0 / np.prod(sizes[1:]))
    return rng.normal(0.0, scale, sizes).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_random_plans_agree_with_the_reference(name: str) -> None:
    network = with_weights(load(FOLDER / f"light_{name}.onnx"))
    analysis = analyze(network)
    assert len(analysis.groups) > 5
    plan = random_plan(network, analysis, 0)
    agreeing(network, analysis, plan, tolerance=1e-4)
    expected = reference(network, analysis, plan)
    assert not compare(network, expected, feeds(network), device=DEVICE, tolerance=1e-3).holds
