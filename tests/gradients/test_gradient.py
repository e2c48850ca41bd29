"""Gradients against central differences, and what cannot be differentiated."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
from setups import batch, normalized

from onnxprune.errors import TrainingError
from onnxprune.gradients import gradient as engine
from onnxprune.runtime.session import Runner
from onnxprune.training.losses import LOSS, TARGET

pytestmark = pytest.mark.ort

MLP = """<ir_version: 8, opset_import: ["":17]>
mlp (float[N,6] x, float[6,8] p_w1, float[8] p_b1, float[8,4] p_w2, float[4] p_b2) => (float[N,4] y)
{
  a = MatMul(x, p_w1)
  b = Add(a, p_b1)
  h = Tanh(b)
  c = MatMul(h, p_w2)
  y = Add(c, p_b2)
}"""

CONV = """<ir_version: 8, opset_import: ["":17]>
conv (float[N,3,9,9] x, float[16,3,3,3] p_w1, float[16] p_b1, float[12,16,3,3] p_w2,
      float[12,1,3,3] p_w3, float[4,12] p_w4, float[4] p_b4) => (float[N,4] y)
{
  c1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, p_w1, p_b1)
  h1 = Tanh(c1)
  c2 = Conv<pads=[0,1,1,0]>(h1, p_w2)
  h2 = Sigmoid(c2)
  c3 = Conv<group=12, pads=[1,1,1,1]>(h2, p_w3)
  h3 = Relu(c3)
  g = GlobalAveragePool(h3)
  f = Flatten(g)
  y = Gemm<transB=1>(f, p_w4, p_b4)
}"""

NORM = normalized("Sigmoid", "epsilon=0.001")

POOL = """<ir_version: 8, opset_import: ["":17]>
pool (float[N,3,7,7] x, float[8,3,3,3] p_w, float[4,32] p_head) => (float[N,4] y)
{
  c = Conv<pads=[1,1,1,1]>(x, p_w)
  h = Tanh(c)
  a = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(h)
  b = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a)
  f = Flatten(b)
  y = Gemm<transB=1>(f, p_head)
}"""


@pytest.mark.parametrize(("text", "shape"), [(MLP, (6,)), (CONV, (3, 9, 9))])
def test_gradients_equal_central_differences(text, shape, model_from, training, slope_error):
    setup = training(model_from(text))
    assert slope_error(setup, batch(5, *shape)) < 5e-3


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_batch_norm_gradients_equal_central_differences(mode, model_from, training, slope_error):
    setup = training(model_from(NORM), batch_norm=mode)
    assert slope_error(setup, batch(6)) < 5e-3
    assert bool(setup.graph.state) == (mode == "train")


def test_frozen_batch_norm_normalizes_by_the_running_statistics(model_from, training):
    # The engine itself turns a BatchNormalization of either mode into one of the batch.
    model, feeds = model_from(NORM), batch(6)
    other = {name: v[:3] for name, v in feeds.items()}
    frozen, trained = (training(model, batch_norm=mode) for mode in ("frozen", "train"))

    def rows(setup, arrays):
        runner = Runner(setup.graph.model)
        known = {**setup.snapshot.parameters, **setup.snapshot.state, **arrays}
        return runner.run({name: known[name] for name in runner.inputs}, ["y"])["y"][:3]

    np.testing.assert_allclose(rows(frozen, feeds), rows(frozen, other), rtol=1e-5, atol=1e-6)
    assert not np.allclose(rows(trained, feeds), rows(trained, other), rtol=1e-3)


@pytest.mark.parametrize("size", [1, 7])
def test_average_pool_with_a_symbolic_batch(size, model_from, training, slope_error):
    setup = training(model_from(POOL))
    assert slope_error(setup, batch(size, 3, 7, 7)) < 5e-3


@pytest.mark.parametrize("how", ['auto_pad="SAME_UPPER"', "ceil_mode=1", "pads=[1,0,1,0]"])
def test_max_pool_in_all_its_paddings(how, model_from, training, slope_error):
    text = POOL.replace(
        "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(h)", "POOLED"
    )
    text = text.replace("POOLED", f"MaxPool<kernel_shape=[2,2], strides=[2,2], {how}>(h)")
    text = text.replace("b = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a)", "b = ReduceSum(a)")
    text = text.replace("float[4,32] p_head", "float[4,1] p_head")
    setup = training(model_from(text, scale=0.1))
    assert slope_error(setup, batch(1, 3, 7, 7), reach=1e-3) < 2e-2


def test_faster_passes_leave_gradients_equal(model_from, training, monkeypatch):
    model, feeds = model_from(CONV), batch(5, 3, 9, 9)
    fast = training(model)
    monkeypatch.setattr(engine, "improve", lambda *_, **__: None)
    plain = training(model)
    kinds = [{node.op_type for node in s.graph.model.graph} for s in (fast, plain)]
    assert "ReluGrad" not in kinds[0]
    assert "ReluGrad" in kinds[1]
    reference = plain.gradients(feeds)
    for name, gradient in fast.gradients(feeds).items():
        np.testing.assert_allclose(gradient, reference[name], rtol=1e-5, atol=1e-6)


def test_outputs_are_the_loss_the_forward_outputs_and_gradients_in_order(model_from, training):
    graph = training(model_from(NORM)).graph
    names = [value.name for value in graph.model.graph.outputs]
    expected = [LOSS, "y", "p_stat_mean/next", "p_stat_var/next"]
    assert names == expected + [graph.gradients[name] for name in graph.parameters]


def test_outputs_that_the_engine_folds_into_constants_stay_outputs(model_from, training):
    scaled = """k = Constant<value = float[4] {1, 2, 3, 4}>()
      s = Mul(k, k)
      d = Mul(c, s)
      y = Add(d, p_b2)"""
    found = training(model_from(MLP.replace("y = Add(c, p_b2)", scaled)))
    copy, parameters = found.copy.model, found.snapshot.parameters
    value = next(v for node in copy.graph for v in node.outputs if v.name == "s")
    copy.graph.outputs.append(value)
    built = engine.differentiate(copy, loss=LOSS, parameters=tuple(parameters)).model
    values = Runner(built).run({**parameters, **batch(5, 6)})
    np.testing.assert_array_equal(values["s"], [1, 4, 9, 16])
    assert values.keys() >= {LOSS, "y", "p_w1_grad"}


def test_intermediate_values_have_gradients(model_from, training):
    graph = training(model_from(MLP)).graph
    made = {value.name for node in graph.model.graph for value in node.outputs}
    assert graph.gradients["h"] in made


def test_parameters_without_a_gradient_are_reported_and_stay_constants(model_from, training):
    setup = training(
        model_from(NORM), batch_norm="train", parameters=("p_w", "p_head", "p_scale", "p_shift")
    )
    assert setup.graph.untrained == ()
    text = MLP.replace(
        "y = Add(c, p_b2)", "s = Shape(p_b2)\n  z = ConstantOfShape(s)\n  y = Add(c, z)"
    )
    setup = training(model_from(text))
    assert setup.graph.untrained == ("p_b2",)
    assert setup.graph.parameters == ("p_w1", "p_b1", "p_w2")


def test_what_is_in_front_of_an_operator_without_a_gradient_is_not_trained(model_from, training):
    text = MLP.replace("h = Tanh(b)", "h = Compress<axis=1>(b, kept)").replace(
        "(float[N,4] y)\n{", "(float[N,4] y)\n<bool[8] kept = {1,1,1,1,1,1,1,1}>\n{"
    )
    setup = training(model_from(text), parameters=("p_w1", "p_b1", "p_w2", "p_b2"))
    assert setup.graph.parameters == ("p_w2", "p_b2")
    assert dict(setup.graph.reasons) == dict.fromkeys(
        ("p_w1", "p_b1"), "no gradient through Compress (h)"
    )
    with pytest.raises(TrainingError, match="Compress") as caught:
        training(model_from(text), parameters=("p_w1", "p_b1"))
    assert caught.value.operator == "Compress"


ORDER = """
import sys
import numpy as np
import onnx_ir as ir
from onnxprune.gradients.gradient import differentiate
from onnxprune.training.loss_nodes import attach
from onnxprune.training.losses import LOSS, resolve
from onnxprune.gradients.lowering import lower
model = ir.from_onnx_text(sys.argv[1])
for value in [value for value in model.graph.inputs if value.name.startswith("p_")]:
    model.graph.inputs.remove(value)
    value.const_value = ir.tensor(np.ones(value.shape.numpy(), np.float32), name=value.name)
    model.graph.register_initializer(value)
names = [name for name in model.graph.initializers if "stat" not in name]
objective = resolve(model, None, "cross-entropy")
copy = attach(lower(model, [objective.prediction], batch_norm="train"), [objective])
graph = differentiate(copy.model, loss=LOSS, parameters=names, state=copy.state).model
print(ir.to_proto(graph).SerializeToString(deterministic=True).hex())
"""


def test_the_order_of_nodes_does_not_depend_on_the_hash_seed():
    def built(seed):
        command = [sys.executable, "-c", ORDER, NORM]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(command, env=environment, check=True, capture_output=True).stdout

    assert len({built(seed) for seed in "123"}) == 1


def test_gradient_of_an_unknown_parameter_names_it(model_from, training):
    copy = training(model_from(MLP)).copy
    with pytest.raises(TrainingError, match="p_nowhere"):
        engine.differentiate(copy.model, loss=LOSS, parameters=["p_nowhere"])


def test_transposed_convolution(model_from, training, slope_error):
    text = """<ir_version: 8, opset_import: ["":17]>
    up (float[N,2,4,4] x, float[2,6,3,3] p_w, float[6] p_b, float[6,2,2,2] p_v)
      => (float[N,4,6,6] y)
    {
      a = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, p_w, p_b)
      h = Tanh(a)
      y = ConvTranspose<group=2, pads=[1,1,2,2]>(h, p_v)
    }"""
    setup = training(model_from(text), kind="mse")
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.normal(size=(3, 2, 4, 4)).astype(np.float32),
        TARGET: rng.normal(size=(3, 4, 6, 6)).astype(np.float32),
    }
    assert slope_error(setup, feeds) < 5e-3


def test_the_users_graph_is_left_alone(model_from, training):
    model = model_from(NORM)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    training(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_what_is_in_front_of_a_body_without_a_gradient_is_not_trained(model_from, training):
    model = model_from("""<ir_version: 8, opset_import: ["":17]>
    g (float[N,4] x, float[4] p_w, float[4,4] p_v) => (float[N,4] y)
    <bool[4] kept = {1,1,1,1}, float low = {-100.0}>
    {
      a = Mul(x, p_w)
      m = ReduceMean<keepdims=0>(x)
      t = Greater(m, low)
      r = If (t) <then_branch = b () => (float[N,4] u) { u = Compress<axis=1>(a, kept) },
                  else_branch = c () => (float[N,4] w) { w = Tanh(a) }>
      y = MatMul(r, p_v)
    }""")
    setup = training(model, parameters=("p_w", "p_v"))
    assert setup.graph.parameters == ("p_v",)
    assert dict(setup.graph.reasons) == {"p_w": "no gradient through If (r)"}


@pytest.mark.parametrize(
    "flat",
    [
        "f = Ceil(h)",
        "f = Round(h)",
        "f = Sign(h)",
        "f = Hardmax(h)",
        "f = EyeLike(h)",
        "b = IsNaN(h) f = Cast<to=1>(b)",
        "b = LessOrEqual(h, x) f = Cast<to=1>(b)",
        "b = ArgMax<axis=1>(h) f = Cast<to=1>(b)",
        "b = NonZero(h) c = Cast<to=1>(b) f = ReduceMean<keepdims=0>(c)",
        "b = Cast<to=7>(h) f = OneHot(b, depth, pair)",
        "b = Shape(h) f = ConstantOfShape(b)",
        "b = Cast<to=7>(h) f = Cast<to=1>(b)",
        "b = Cast<to=9>(h) f = Cast<to=1>(b)",
    ],
)
def test_flat_operators_have_no_slope(flat, model_from, training):
    model = model_from(f"""<ir_version: 8, opset_import: ["":17]>
    g (float[N,4] x, float[4] p_w) => (float[] y)
    <int64 depth = {{4}}, float[2] pair = {{0.0, 1.0}}>
    {{
      h = Mul(x, p_w)
      {flat}
      s = ReduceSum<keepdims=0>(f)
      t = Add(h, s)
      y = Identity(t)
    }}""")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    feeds = {"x": x, TARGET: np.full((3, 4), -50, np.float32)}
    setup = training(model, output="y", kind="mse")
    expected = (2 / 12 * (predicted(setup, feeds) + 50) * x).sum(0)
    np.testing.assert_allclose(setup.gradients(feeds)["p_w"], expected, rtol=1e-4, atol=1e-6)


def predicted(setup, feeds):
    runner = Runner(setup.graph.model)
    known = {**setup.snapshot.parameters, **feeds}
    name = setup.objective.prediction
    return runner.run({name: known[name] for name in runner.inputs}, [name])[name]
