"""Whole runs over models of all kinds: opsets, storage, losses, inputs, batch axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import array, model
from onnxprune_models import builders
from runs import (
    DENSE,
    DEVICE,
    SHRINK,
    Train,
    digits,
    examples,
    halved,
)

from onnxprune.errors import DataError
from onnxprune.graph import cost
from onnxprune.model import constant, constants, opset
from onnxprune.runtime.session import Runner

pytestmark = pytest.mark.ort


def test_initializers_that_are_inputs_stay_inputs(train: Train) -> None:
    source = model(DENSE, ir_version=3, opset=9)
    for value in source.graph.initializers.values():
        source.graph.inputs.append(value)
    result = train(source, examples(), **SHRINK)
    halved(result)
    inputs = {value.name for value in result.file.graph.inputs}
    assert inputs == {"x", *result.file.graph.initializers} >= {"w", "b", "v"}


def test_weights_in_constant_nodes_stay_there(train: Train) -> None:
    source = model(DENSE)
    for name in ("w", "v"):
        value = source.graph.initializers[name]
        assert value.const_value is not None
        node = ir.node("Constant", [], attributes={"value": value.const_value})
        node.outputs[0].name = name
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        del source.graph.initializers[name]
        source.graph.insert_before(next(iter(source.graph)), node)
    before = cost.parameters(source)
    result = train(source, examples(), **SHRINK)
    halved(result)
    assert result.report.before.parameters == before == 6 * 16 + 16 + 16 * 3
    assert [node.op_type for node in result.file.graph].count("Constant") == 2
    assert not {"w", "v"} & set(result.file.graph.initializers)


def test_dequantized_weights_shrink_and_stay_quantized(train: Train) -> None:
    """They are constant, so the engine folds them, and the statistics of them."""
    source = model(DENSE, opset=17)
    value = source.graph.initializers.pop("v")
    codes = np.round(100 * array(model(DENSE), "v")).astype(np.int8)
    held = ir.Value(name="codes", const_value=ir.tensor(codes, name="codes"))
    scale = ir.Value(name="scale", const_value=ir.tensor(np.float32(0.01), name="scale"))
    node = ir.node("DequantizeLinear", [held, scale])
    value.name, node.outputs[0].name = "", "v"
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    for each in (held, scale):
        source.graph.register_initializer(each)
    source.graph.insert_before(next(iter(source.graph)), node)
    result = train(source, examples(), method="mean-activation", **SHRINK)
    halved(result)
    units = array(result.file, "w").shape[1]
    assert array(result.file, "codes").shape == (units, 3)
    assert array(result.file, "codes").dtype == np.int8


def test_external_data_is_read_and_written_beside(train: Train, tmp_path: Path) -> None:
    x, y = digits()
    file = tmp_path / "large.onnx"
    ir.save(builders.mlp([64, 40, 10]), file, external_data="weights.bin", size_threshold_bytes=64)
    data = (tmp_path / "weights.bin").read_bytes()
    result = train(file, (x, y), target="params=50%", epochs=2)
    halved(result)
    assert (tmp_path / "weights.bin").read_bytes() == data
    beside = [p for p in tmp_path.iterdir() if p.name.startswith(result.output.name)]
    assert result.report.after.bytes == sum(part.stat().st_size for part in beside)


@pytest.mark.parametrize("version", [8, 11, 21])
def test_other_opsets_keep_theirs(train: Train, version: int) -> None:
    source = model(DENSE, opset=version)
    result = train(source, examples(), **SHRINK)
    halved(result)
    assert opset(result.file) == version


def test_a_convolution_of_opset_8_shrinks(train: Train) -> None:
    source = model(
        """(float[N, 1, 8, 8] x) => (float[N, 10] y)
        <float[8, 1, 3, 3] w, float[8] b, float[8] s, float[8] t, float[8] m, float[8] var,
         float[8, 10] v> {
        c = Conv(x, w, b)  n = BatchNormalization(c, s, t, m, var)  a = Relu(n)
        p = GlobalMaxPool(a)  f = Flatten(p)  y = MatMul(f, v) }""",
        opset=8,
    )
    x, y = digits()
    result = train(source, (x.reshape(-1, 1, 8, 8), y), target="params=70%", epochs=2)
    assert result.report.reached


def test_probabilities_are_trained_on_their_logits(train: Train) -> None:
    text = DENSE.replace("y = MatMul(a, v)", "z = MatMul(a, v)  y = Softmax(z)")
    result = train(model(text), examples(), **SHRINK)
    halved(result)
    (name,) = (value.name for value in result.file.graph.outputs)
    out = Runner(result.file, DEVICE).run({"x": examples()[0]})[name or ""]
    np.testing.assert_allclose(out.sum(axis=1), 1, rtol=1e-5)


def test_one_probability_is_a_binary_classifier(train: Train) -> None:
    source = model(
        """(float[N, 6] x) => (float[N, 1] y) <float[6, 16] w, float[16] b, float[16, 1] v> {
        h = Gemm(x, w, b)  a = Tanh(h)  z = MatMul(a, v)  y = Sigmoid(z) }"""
    )
    x, _ = examples(400)
    for y in ((x[:, 0] > x[:, 1]).astype(np.int64), (x[:, :1] > x[:, 1:2]).astype(np.float32)):
        result = train(source, (x, y), **{**SHRINK, "epochs": 10})
        halved(result)
        assert {"auc", "accuracy"} <= set(result.report.after.metrics)
        assert result.report.after.metrics["auc"] > 0.9


def test_regression_gets_better_while_it_shrinks(train: Train) -> None:
    source = model(DENSE.replace("float[N, 3] y", "float[N, 1] y").replace("16, 3", "16, 1"))
    x, _ = examples(400)
    result = train(source, (x, x[:, :1] - 2 * x[:, 1:2]), **{**SHRINK, "epochs": 20})
    halved(result)
    assert result.report.after.metrics["mse"] < 0.5 * result.report.before.metrics["mse"]


def test_two_inputs_are_fed_by_name(train: Train) -> None:
    source = model(
        """(float[N, 4] left, float[N, 3] right) => (float[N, 3] y)
        <float[4, 10] w, float[3, 10] u, float[20, 3] v> {
        h = MatMul(left, w)  g = MatMul(right, u)  c = Concat <axis = 1> (h, g)  a = Relu(c)
        y = MatMul(a, v) }"""
    )
    x, y = examples(200, 7)
    result = train(source, {"left": x[:, :4], "right": x[:, 4:], "y": y}, **SHRINK)
    halved(result)


IMAGES = """(float[N, 1, 8, 8] x) => (float[N, 10] y)
<float[6, 1, 3, 3] w, float[6] b, float[54, 16] u, float[16, 10] v> {
    c = Conv<strides = [2, 2]>(x, w, b)  a = Relu(c)  f = Reshape(a, shape)
    g = MatMul(f, u)  h = Relu(g)  y = MatMul(h, v) }"""


@pytest.mark.parametrize("batch", [1, 10])
def test_a_model_for_one_batch_size_trains_as_one_for_any_does(train: Train, batch: int) -> None:
    x, y = digits(300)
    data = (x.reshape(-1, 1, 8, 8), y)
    options = {**SHRINK, "epochs": 2, "batch_size": 32, "optimizer": "momentum"}
    any_size = model(IMAGES, shape=np.array([0, 54]))
    one_size = model(IMAGES.replace("float[N,", f"float[{batch},"), shape=np.array([batch, 54]))
    expected, found = (train(source, data, **options) for source in (any_size, one_size))
    halved(found)
    assert found.report.steps == expected.report.steps
    assert found.report.after.parameters == expected.report.after.parameters
    assert found.report.after.metrics == pytest.approx(expected.report.after.metrics, rel=1e-4)
    for name in ("w", "b", "u", "v"):
        np.testing.assert_allclose(
            array(found.file, name), array(expected.file, name), rtol=1e-4, atol=1e-5
        )
    assert array(found.file, "shape")[0] == batch
    (note,) = [note for note in found.report.notes if "batches of" in note]
    assert note.startswith(f"the model takes batches of {batch} only; copies of it that take any")


MIXED = DENSE.replace("a = Relu(h)", "m = ReduceMean<axes = [0]>(h)  d = Sub(h, m)  a = Relu(d)")


def test_a_batch_whose_examples_see_each_other_sets_the_batch_size(train: Train) -> None:
    source = model(MIXED.replace("float[N,", "float[10,"))
    result = train(source, examples(205), **SHRINK)
    halved(result)
    assert result.report.steps == 4 * (len(examples(205)[0]) * 9 // 10 // 10)
    assert any("takes batches of 10 only, so" in note for note in result.report.notes)


def test_fewer_examples_than_such_a_batch_are_refused(train: Train) -> None:
    source = model(MIXED.replace("float[N,", "float[64,"))
    with pytest.raises(DataError, match="takes batches of 64 only, but there are 36 training"):
        train(source, examples(40))


def test_fewer_examples_than_an_opened_batch_are_enough(train: Train) -> None:
    source = model(DENSE.replace("float[N,", "float[64,"))
    result = train(source, examples(40), **SHRINK)
    assert result.report.steps == 4 * 2  # epochs of 36 examples, 32 at a time


@pytest.mark.parametrize(
    "drawn",
    [
        "r = RandomNormalLike<scale = 0.1>(h)  e = Add(h, r)",
        "r = RandomUniformLike(h)  e = Mul(h, r)",
        "s = Sigmoid(h)  r = Bernoulli(s)  e = Mul(h, r)",
        "m = Multinomial<sample_size = 4>(h)  f = Cast<to = 1>(m)"
        "  r = ReduceMean<axes = [1]>(f)  e = Add(h, r)",
    ],
)
def test_models_that_draw_random_numbers_are_trained(train: Train, drawn: str) -> None:
    source = model(
        """(float[N, 6] x) => (float[N, 3] y) <float[6, 16] w, float[16, 8] u, float[8, 3] v> {
        h = MatMul(x, w)  """
        + drawn
        + """  a = Relu(e)  g = MatMul(a, u)  b = Relu(g)  y = MatMul(b, v) }"""
    )
    result = train(source, examples(), **SHRINK)
    assert not any("without a gradient" in note for note in result.report.notes)
    assert result.report.after.parameters < result.report.before.parameters
    for name in ("w", "u", "v"):
        assert not np.isin(array(result.file, name), array(source, name)).all()


def test_an_input_shape_is_for_the_analysis_only(train: Train) -> None:
    result = train(model(DENSE), examples(), input_shapes={"x": (1, 6)}, **SHRINK)
    halved(result)
    assert not any("batch" in note for note in result.report.notes)


CELL = """(float[N, 64] x) => (float[N, 10] y)
<float[16, 8] w, float[8, 8] r, float[8] b, float[1, 8] zero, float[8, 10] v> {
    steps = Reshape(x, shape)
    rows = Transpose<perm = [1, 0, 2]>(steps)
    n = Shape<end = 1>(x)
    size = Concat<axis = 0>(n, eight)
    h_0 = Expand(zero, size)
    h_T = Scan<num_scan_inputs = 1, body = cell
        (float[N, 8] h, float[N, 16] row) => (float[N, 8] next) {
            a = MatMul(row, w)
            c = MatMul(h, r)
            s = Add(a, c)
            t = Add(s, b)
            next = Tanh(t)
        }>(h_0, rows)
    y = MatMul(h_T, v)
}"""


@pytest.mark.parametrize("inside", [(), ("w", "r", "b")])
def test_weights_in_the_body_of_a_loop_are_trained(train: Train, inside: tuple[str, ...]) -> None:
    source = model(CELL, shape=[0, 4, 16], eight=[8])
    for name in inside:
        value = source.graph.initializers.pop(name)
        (body,) = {use.node.graph for use in value.uses()}
        assert isinstance(body, ir.Graph)
        body.register_initializer(value)
    result = train(source, epochs=2)
    before, after = constants(source), constants(result.file)
    for name in ("w", "r", "b", "v"):
        old, new = constant(before[name]), constant(after[name])
        assert old is not None
        assert new is not None
        assert old.shape == new.shape
        assert not np.allclose(old, new)
    assert all(name not in result.file.graph.initializers for name in inside)
