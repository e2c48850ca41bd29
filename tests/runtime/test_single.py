"""Float types other than float32: derived copies in float32, and the way back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphs import model

from onnxprune.base import Array
from onnxprune.runtime.session import Runner
from onnxprune.runtime.single import (
    OTHERS,
    is_single,
    narrowed,
    read_in_single,
    saturates,
    to_single,
    widened,
)

CODES = {"float16": 10, "double": 11, "bfloat16": 16}
MIXED = """(KIND[N, 4] x, KIND[4, 5] w, float[5, 3] v) => (KIND[N, 3] y) {
    two = Constant<value = float {2.0}>()
    h = MatMul(x, w)
    wide = Cast<to = 1>(h)
    a = Relu(wide)
    twice = Mul(a, two)
    z = MatMul(twice, v)
    y = Cast<to = CODE>(z) }"""


def mixed(kind: str) -> ir.Model:
    found = model(MIXED.replace("KIND", kind).replace("CODE", str(CODES[kind])), ir_version=10)
    rng = np.random.default_rng(1)
    for value in list(found.graph.inputs)[1:]:
        assert value.shape is not None
        assert value.dtype is not None
        array = rng.normal(size=value.shape.numpy()).astype(value.dtype.numpy())
        found.graph.inputs.remove(value)
        value.const_value = ir.Tensor(array, name=value.name, dtype=value.dtype)
        found.graph.register_initializer(value)
    return found


def numbers(kind: str) -> Array:
    x = np.random.default_rng(0).normal(size=(6, 4))
    return x.astype(ir.DataType(CODES[kind]).numpy())


def in_numpy(found: ir.Model, x: Array) -> Array:
    w, v = (found.graph.initializers[name].const_value.numpy() for name in "wv")  # type: ignore[union-attr]
    hidden = np.maximum(x.astype(np.float64) @ w.astype(np.float64), 0) * 2
    return np.asarray(hidden @ v.astype(np.float64))


@pytest.mark.ort
@pytest.mark.parametrize("kind", CODES)
def test_a_copy_in_float32_computes_the_same(kind: str) -> None:
    source = mixed(kind)
    copy = source.clone()
    to_single(copy)
    assert is_single(copy) or kind != "bfloat16"
    runner = Runner(copy)
    assert not runner.single
    (y,) = runner.run({"x": numbers(kind)}).values()
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, in_numpy(source, numbers(kind)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", CODES)
def test_the_original_of_a_copy_stays_as_it_is(kind: str) -> None:
    source = mixed(kind)
    before = ir.to_proto(source).SerializeToString()
    to_single(source.clone())
    assert ir.to_proto(source).SerializeToString() == before
    assert not is_single(source)


@pytest.mark.ort
@pytest.mark.parametrize(("kind", "single"), [("float16", False), ("bfloat16", True)])
def test_what_the_runtime_cannot_run_runs_in_float32(kind: str, single: bool) -> None:
    source = mixed(kind)
    runner = Runner(source)
    assert runner.single == single
    (y,) = runner.run({"x": numbers(kind)}).values()
    np.testing.assert_allclose(y, in_numpy(source, numbers(kind)), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", OTHERS)
def test_numbers_of_a_file_survive_the_way_to_float32_and_back(dtype: ir.DataType) -> None:
    array = np.random.default_rng(0).normal(size=100).astype(np.float32).astype(dtype.numpy())
    np.testing.assert_array_equal(narrowed(widened(array), dtype), array)


def test_numbers_beyond_a_range_are_cut_off() -> None:
    large = np.array([1e6, -1e6, 1.0], dtype=np.float32)
    np.testing.assert_array_equal(narrowed(large, ir.DataType.FLOAT16), [65504, -65504, 1])
    assert saturates(large, ir.DataType.FLOAT16)
    assert not saturates(large, ir.DataType.BFLOAT16)
    assert not saturates(large[2:], ir.DataType.FLOAT16)
    np.testing.assert_array_equal(
        widened(np.array([1e300, -np.inf])), np.array([np.finfo(np.float32).max, -np.inf])
    )


@pytest.mark.ort
@pytest.mark.parametrize("dtype", OTHERS)
def test_a_float32_input_is_read_as_the_file_would_hold_it(dtype: ir.DataType) -> None:
    found = model("(float[N, 4] x, float[4] p) => (float[N, 4] y) { y = Add(x, p) }", ir_version=10)
    p = next(value for value in found.graph.inputs if value.name == "p")
    p.type = ir.TensorType(dtype)
    read_in_single(found.graph, p)
    to_single(found)  # what the input is read in stays as precise as the file
    given = np.array([1 / 3, 1e5, -7.77, 1e-3], dtype=np.float32)
    (y,) = Runner(found).run({"x": np.zeros((2, 4), np.float32), "p": given}).values()
    if dtype is ir.DataType.BFLOAT16:
        expected = given.astype(ml_dtypes.bfloat16).astype(np.float32)
    else:  # the cast is dropped, the range stays
        expected = np.clip(given, -65504, 65504) if dtype is ir.DataType.FLOAT16 else given
    np.testing.assert_array_equal(y, np.tile(expected, (2, 1)))


@pytest.mark.ort
def test_types_that_attributes_name_follow() -> None:
    found = model(
        """(double[4] x) => (double[4] y) {
        n = Constant<value = int64 {4}>()
        w = HannWindow<output_datatype = 11>(n)
        y = Mul(x, w) }"""
    )
    copy = found.clone()
    to_single(copy)
    assert is_single(copy) is False  # its input keeps its type
    x = np.arange(4.0)
    (y,) = Runner(copy).run({"x": x}).values()
    expected = x * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(4) / 4))
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
