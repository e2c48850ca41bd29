"""Whole runs on models and data of other float types than float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import model
from runs import DENSE, DEVICE, SHRINK, Train, accuracy, digits, examples, halved

from onnxprune.base import Snapshot
from onnxprune.runtime.session import Runner
from onnxprune.training.rounds import written

pytestmark = pytest.mark.ort

TYPES = {"float16": ir.DataType.FLOAT16, "double": ir.DataType.DOUBLE}
TYPES["bfloat16"] = ir.DataType.BFLOAT16
NET = """<ir_version: 10, opset_import: ["" : 17]>
g (KIND[N,1,8,8] x, KIND[8,1,3,3] w, KIND[8] s, KIND[8] b, KIND[8] m, KIND[8] v,
   KIND[288,16] u, float[16,10] z) => (KIND[N,10] y) {
    c = Conv(x, w)
    n = BatchNormalization(c, s, b, m, v)
    r = Relu(n)
    f = Flatten(r)
    h = MatMul(f, u)
    k = Cast<to = 1>(h)
    a = Relu(k)
    q = MatMul(a, z)
    y = Cast<to = CODE>(q) }"""


# Before opset 22 ONNX has no Conv in bfloat16.
WITHOUT_CONV = NET.replace("[8,1,3,3]", "[8,1,1]").replace("Conv", "Mul").replace("[288", "[512")


def net(kind: str, text: str = NET) -> ir.Model:
    """Weights of the type `kind`, but for the last ones; the same numbers for all types."""
    dtype = TYPES.get(kind, ir.DataType.FLOAT)
    text = WITHOUT_CONV if kind == "bfloat16" else text
    found = ir.from_onnx_text(text.replace("KIND", kind).replace("CODE", str(int(dtype))))
    rng = np.random.default_rng(0)
    for value in list(found.graph.inputs)[1:]:
        assert value.shape is not None
        assert value.dtype is not None
        array = 0.3 * rng.normal(size=value.shape.numpy())
        if value.name in "sv":
            array = np.abs(array) + 0.5
        found.graph.inputs.remove(value)
        array = array.astype(np.float32).astype(value.dtype.numpy())
        value.const_value = ir.Tensor(array, name=value.name, dtype=value.dtype)
        found.graph.register_initializer(value)
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_a_model_of_another_type_is_trained_and_keeps_its_types(train: Train, kind: str) -> None:
    x, y = digits()
    result = train(net(kind), (x, y), **SHRINK, loss="cross-entropy")
    halved(result)
    before, after = net(kind).graph, result.file.graph
    assert {name: after.initializers[name].dtype for name in before.initializers} == {
        name: value.dtype for name, value in before.initializers.items()
    }
    for ours, theirs in ((before.inputs, after.inputs), (before.outputs, after.outputs)):
        assert [value.dtype for value in ours] == [value.dtype for value in theirs]
    assert "trained in float32, written in the types of the file" in result.report.notes
    data = x[:, None].astype(TYPES[kind].numpy())
    assert accuracy(result.file, "y", data, y) > 0.6


def test_all_types_train_alike(train: Train) -> None:
    losses = []
    for kind in ("float", *TYPES):
        source = net(kind, WITHOUT_CONV)
        result = train(source, digits(), epochs=2, loss="cross-entropy", method="none")
        losses.append(result.report.after.metrics["loss"])
    np.testing.assert_allclose(losses[1:], losses[0], rtol=2e-2)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-5)  # float64


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_data_of_any_float_type_is_taken(train: Train, dtype: type[np.floating]) -> None:
    x, y = examples()
    result = train(model(DENSE), (x.astype(dtype), y), **SHRINK)
    halved(result)


def test_numbers_beyond_float16_are_cut_off_when_written() -> None:
    source = net("float16")
    large = np.full((8,), 1e5, dtype=np.float32)
    result = written(source, Snapshot(step=1, parameters={"b": large, "z": np.ones((16, 10))}))
    stored = {name: value.const_value for name, value in result.graph.initializers.items()}
    assert stored["b"] is not None
    assert stored["b"].dtype is ir.DataType.FLOAT16
    np.testing.assert_array_equal(stored["b"].numpy(), 65504)


def test_the_runtime_says_when_it_runs_another_type() -> None:
    assert Runner(net("double"), DEVICE).single  # no Conv in float64
    assert not Runner(net("float16"), DEVICE).single
