"""The training copy computes what the user's graph computes, in differentiable operators."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.errors import ConfigError
from onnxprune.gradients.lowering import evaluation_copy, lower
from onnxprune.runtime.session import Runner
from onnxprune.training.losses import TARGET


@pytest.mark.ort
def test_rms_normalization_equals_its_definition(model_from):
    model = model_from("""<ir_version: 10, opset_import: ["":23]>
    g (float[N,3,6] x, float[6] p_w) => (float[N,3,6] y)
    { y = RMSNormalization<epsilon=0.01>(x, p_w) }""")
    x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    actual = Runner(lower(model, ["y"], batch_norm="frozen").model).run({"x": x})["y"]
    w = model.graph.initializers["p_w"].const_value.numpy()
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.01) * w
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    evaluated = Runner(evaluation_copy(model, ["y"])).run({"x": x})["y"]
    np.testing.assert_allclose(evaluated, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.ort
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_its_definition(masked, model_from, training, slope_error):
    mask = ", m" if masked else ""
    model = model_from(f"""<ir_version: 10, opset_import: ["":23]>
    g (float[N,5,6] x, float[6,6] p_q, float[6,6] p_k, float[6,4] p_v) => (float[N,5,4] y)
    <bool[5,5] m = {{1,0,0,0,0, 1,1,0,0,0, 1,1,1,0,0, 1,1,1,1,0, 1,1,1,1,1}}>
    {{
      q = MatMul(x, p_q)
      k = MatMul(x, p_k)
      v = MatMul(x, p_v)
      z = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v{mask})
      y = Identity(z)
    }}""")
    x = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
    actual = Runner(lower(model, ["y"], batch_norm="frozen").model).run({"x": x})["y"]
    q, k, v = (
        (x @ model.graph.initializers[f"p_{n}"].const_value.numpy())
        .reshape(3, 5, 2, -1)
        .swapaxes(1, 2)
        for n in "qkv"
    )
    scores = q @ k.swapaxes(2, 3) / np.sqrt(3)
    scores = np.where(np.tri(5, dtype=bool), scores, -np.inf) if masked else scores
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = (weights @ v).swapaxes(1, 2).reshape(3, 5, 4)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    target = np.zeros((3, 5, 4), dtype=np.float32)
    assert slope_error(training(model, kind="mse"), {"x": x, TARGET: target}) < 5e-3


@pytest.mark.ort
def test_softplus_has_a_slope_at_zero(model_from, training):
    text = """<ir_version: 8, opset_import: ["":17]>
    g (float[N,5] x, float[5] p_w) => (float[N,5] y)
    {
      h = Add(x, p_w)
      y = Softplus(h)
    }"""
    setup = training(model_from(text, scale=0.0), kind="mse")
    x = np.zeros((1, 5), dtype=np.float32)
    target = np.zeros((1, 5), dtype=np.float32)
    slope = setup.gradients({"x": x, TARGET: target})["p_w"]
    np.testing.assert_allclose(slope, 2 * np.log(2) * 0.5 / 5 * np.ones(5), rtol=1e-5)


TAIL = """<ir_version: 8, opset_import: ["":17, "ai.onnx.ml":1]>
clf (float[N,4] x, float[N,2] unused, float[4,3] p_w) => (int64[N] label, float[N,3] probabilities)
{
  l = MatMul(x, p_w)
  probabilities = Softmax<axis=-1>(l)
  best = ArgMax<axis=1, keepdims=0>(probabilities)
  doubled = Concat<axis=1>(unused, unused)
  label = Identity(best)
}"""


def test_only_ancestors_stay(model_from):
    model = model_from(TAIL)
    copy = lower(model, ["l"], batch_norm="train").model
    assert [node.op_type for node in copy.graph] == ["MatMul"]
    assert [value.name for value in copy.graph.inputs] == ["x"]
    assert [value.name for value in copy.graph.outputs] == ["l"]
    assert "ai.onnx.ml" not in copy.graph.opset_imports


def test_an_unknown_output_names_the_known_ones(model_from):
    with pytest.raises(ConfigError, match="label, probabilities"):
        lower(model_from(TAIL), ["logits"], batch_norm="train")


def test_float_constants_become_initializers_of_the_same_name(model_from):
    model = model_from("""<ir_version: 8, opset_import: ["":17]>
    g (float[N,2] x) => (float[N,2] y)
    {
      w = Constant<value = float[2,2] {1.0, 2.0, 3.0, 4.0}>()
      s = Constant<value = int64[2] {-1, 2}>()
      a = MatMul(x, w)
      y = Reshape(a, s)
    }""")
    for copy in (lower(model, ["y"], batch_norm="train").model, evaluation_copy(model, ["y"])):
        assert set(copy.graph.initializers) == {"w"}
        assert [node.op_type for node in copy.graph] == ["Constant", "MatMul", "Reshape"]


def test_old_files_keep_their_names(model_from):
    model = model_from("""<ir_version: 3, opset_import: ["":9]>
    g (float[N,2,4,4] x, float[3,2,1,1] p_w, float[3] p_s, float[3] p_b, float[3] p_stat_mean,
       float[3] p_stat_var) => (float[N,3,4,4] y)
    {
      c = Conv(x, p_w)
      n = BatchNormalization(c, p_s, p_b, p_stat_mean, p_stat_var)
      y = Relu(n)
    }""")
    for value in list(model.graph.initializers.values()):
        model.graph.inputs.append(value)
    result = lower(model, ["y"], batch_norm="train")
    names = {value.name for node in result.model.graph for value in node.outputs}
    assert {"c", "n", "y"} <= names
    assert result.model.graph.opset_imports[""] == 17
    assert result.model.ir_version >= 8
    assert [value.name for value in result.model.graph.inputs] == ["x"]
    assert dict(result.state) == {
        "p_stat_mean": "p_stat_mean/next",
        "p_stat_var": "p_stat_var/next",
    }


def test_newer_headers_are_brought_down(model_from):
    model = model_from("""<ir_version: 11, opset_import: ["":23]>
    g (float[N,2] x, float[2,2] p_w) => (float[N,2] y)
    { y = MatMul(x, p_w) }""")
    copy = lower(model, ["y"], batch_norm="train").model
    assert (copy.graph.opset_imports[""], copy.ir_version) == (21, 10)
    assert (model.graph.opset_imports[""], model.ir_version) == (23, 11)


def test_shared_running_statistics_are_frozen(model_from):
    model = model_from("""<ir_version: 8, opset_import: ["":17]>
    g (float[N,3,4,4] x, float[3] p_s, float[3] p_b, float[3] p_stat_mean, float[3] p_stat_var)
      => (float[N,3,4,4] y)
    {
      a = BatchNormalization(x, p_s, p_b, p_stat_mean, p_stat_var)
      y = BatchNormalization(a, p_s, p_b, p_stat_mean, p_stat_var)
    }""")
    result = lower(model, ["y"], batch_norm="train")
    assert result.state == {}
    assert "BatchNormalization" not in Counter(node.op_type for node in result.model.graph)


def test_dropout_without_a_ratio_is_an_identity(model_from):
    model = model_from("""<ir_version: 8, opset_import: ["":17]>
    g (float[N,3] x) => (float[N,3] y)
    { y = Dropout(x) }""")
    copy = lower(model, ["y"], batch_norm="train").model
    assert [node.op_type for node in copy.graph] == ["Identity"]
    assert copy.graph.node(0).outputs[0].name == "y"


def test_local_functions_are_inlined(model_from):
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["":17, "own":1]>
    g (float[N,3] x) => (float[N,3] y) { y = own.twice(x) }
    <domain: "own", opset_import: ["":17]>
    twice (a) => (b) { c = Relu(a)  b = Tanh(c) }""")
    copy = lower(model, ["y"], batch_norm="train").model
    assert [node.op_type for node in copy.graph] == ["Relu", "Tanh"]
    assert not copy.functions


@pytest.mark.ort
@pytest.mark.parametrize(
    "node",
    [
        "LpPool<kernel_shape=[2,2], p=2>(h)",
        "LpPool<kernel_shape=[2,2], p=3>(h)",
        "GlobalLpPool<p=2>(h)",
        "LpNormalization<axis=1>(h)",
        "LpNormalization<axis=1, p=1>(h)",
        "MeanVarianceNormalization<axes=[2,3]>(h)",
        "ReduceL2<axes=[2,3], keepdims=0>(h)",
    ],
)
def test_norms_of_nothing_have_values_and_slopes(node, model_from, training):
    model = model_from(
        f"""<ir_version: 8, opset_import: ["":17]>
    g (float[N,3,4,4] x, float[3,1,1] p_w) => (float[] y)
    {{
      h = Add(x, p_w)
      z = {node}
      y = Identity(z)
    }}""",
        scale=0.0,
    )
    x = np.zeros((2, 3, 4, 4), dtype=np.float32)
    y = Runner(lower(model, ["y"], batch_norm="frozen").model).run({"x": x})["y"]
    np.testing.assert_array_equal(y, np.zeros_like(y))
    setup = training(model, output="y", kind="mse")
    slopes = setup.gradients({"x": x, TARGET: np.ones_like(y)})
    assert np.all(np.isfinite(slopes["p_w"]))
