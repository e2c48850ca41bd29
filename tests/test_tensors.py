"""Arrays behind values, and what is known of them unread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from graphs import model

from onnxprune.model import constant, constants, is_constant, keep, load, save, tensor_of
from onnxprune.tensors import Stored

TEXT = """(float[N, 6] x) => (float[N, 4] y) <float[6, 4] w>
{ c = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() i = Identity(w) h = MatMul(x, i)
  y = Add(h, c) }"""


def test_arrays_of_a_loaded_model_are_made_once(tmp_path: Path) -> None:
    save(model(TEXT), tmp_path / "net.onnx")
    value = load(tmp_path / "net.onnx").graph.initializers["w"]
    assert constant(value) is constant(value)


def test_constants_are_told_from_computed_values_unread() -> None:
    network = model(TEXT)
    values = {value.name: value for node in network.graph for value in node.outputs}
    assert {name for name, value in values.items() if is_constant(value)} == {"c", "i"}
    assert set(constants(network)) == {"w", "c"}
    assert values["c"].dtype == ir.DataType.FLOAT
    assert tensor_of(values["i"]) is None  # a constant, but with another value's tensor
    np.testing.assert_array_equal(constant(values["c"]), [1, 2, 3, 4])


def test_small_numbers_survive_loading_and_saving(tmp_path: Path) -> None:
    network = model(TEXT)
    packed = ir.tensor([[1, -2], [3, 7]], dtype=ir.DataType.INT4, name="q")
    network.graph.register_initializer(ir.Value(name="q", const_value=packed))
    text = ir.tensor(["a", "b"], name="t")
    network.graph.register_initializer(ir.Value(name="t", const_value=text))
    save(network, tmp_path / "net.onnx")
    save(load(tmp_path / "net.onnx"), tmp_path / "again.onnx")
    kept = load(tmp_path / "again.onnx").graph.initializers
    np.testing.assert_array_equal(constant(kept["q"]).astype(np.int8), [[1, -2], [3, 7]])
    assert constant(kept["t"]).tolist() == [b"a", b"b"]


def test_what_is_kept_of_a_tensor_in_a_file_is_read_when_it_is_written(tmp_path: Path) -> None:
    network = model("(float[N, 40] x) => (float[N, 50] y) <float[40, 50] w> { y = MatMul(x, w) }")
    save(network, tmp_path / "a.onnx", external=True)
    value = load(tmp_path / "a.onnx").graph.initializers["w"]
    array = np.array(constant(value))
    rows, columns = np.arange(0, 40, 3), np.arange(5, 50, 2)
    keep(value, {0: rows})
    keep(value, {1: columns})
    keep(value, {0: np.array([1, 4])})
    assert isinstance(value.const_value, Stored)
    assert repr(value.const_value).startswith("Stored(axes [0, 1] of ExternalTensor")
    assert tuple(value.const_value.shape) == (2, len(columns))
    np.testing.assert_array_equal(constant(value), array[rows[[1, 4]]][:, columns])


def test_a_model_of_parts_in_a_file_can_replace_that_file(tmp_path: Path) -> None:
    network = model("(float[N, 40] x) => (float[N, 50] y) <float[40, 50] w> { y = MatMul(x, w) }")
    file = tmp_path / "a.onnx"
    save(network, file, external=True)
    loaded = load(file)
    array = np.array(constant(loaded.graph.initializers["w"]))
    keep(loaded.graph.initializers["w"], {1: np.arange(20)})
    save(loaded, file, external=True)
    np.testing.assert_array_equal(constant(load(file).graph.initializers["w"]), array[:, :20])
    np.testing.assert_array_equal(constant(loaded.graph.initializers["w"]), array[:, :20])
    assert len(list(tmp_path.iterdir())) == 3  # what the loaded model reads is still there
