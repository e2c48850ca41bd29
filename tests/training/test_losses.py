"""Which loss is chosen, what it reads, and what it computes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.data import Split, check_target
from onnxprune.errors import ConfigError
from onnxprune.gradients.lowering import lower
from onnxprune.runtime.session import Runner
from onnxprune.training.loss_nodes import attach, measure
from onnxprune.training.losses import LOSS, TARGET, resolve


def graph(body, *, shape="N,3", name="y"):
    return f"""<ir_version: 8, opset_import: ["":17]>
    g (float[N,4] x, float[4,3] p_w) => (float[{shape}] {name})
    {{
      l = MatMul(x, p_w)
      {body}
    }}"""


SOFTMAX = graph("i = Identity(l)\n      s = Softmax(i)\n      y = Identity(s)")
SIGMOID = graph("y = Sigmoid(l)")
PLAIN = graph("y = Identity(l)")


@pytest.mark.parametrize(
    ("text", "target", "kind", "prediction"),
    [
        (SOFTMAX, None, "cross-entropy", "l"),
        (SOFTMAX.replace("Softmax", "LogSoftmax"), None, "cross-entropy", "l"),
        (SIGMOID, None, "binary-cross-entropy", "l"),
        (PLAIN, np.array([0, 2]), "cross-entropy", "l"),
        (PLAIN, np.array([0.5, 2.0]), "mse", "l"),
    ],
)
def test_auto_chooses_from_the_output_and_the_targets(text, target, kind, prediction, model_from):
    objective = resolve(model_from(text), target=target)
    assert (objective.kind, objective.prediction, objective.output) == (kind, prediction, "y")


def test_width_one_with_zeros_and_ones_is_binary(model_from):
    text = PLAIN.replace("[4,3]", "[4,1]").replace("float[N,3] y", "float[N,1] y")
    assert resolve(model_from(text), target=np.array([0, 1, 1])).kind == "binary-cross-entropy"
    assert resolve(model_from(text), target=np.array([0.0, 1.0])).kind == "binary-cross-entropy"
    assert resolve(model_from(text), target=np.array([0.0, 1.5])).kind == "mse"


def test_without_any_hint_the_user_must_choose(model_from):
    with pytest.raises(ConfigError, match="--loss"):
        resolve(model_from(PLAIN))
    with pytest.raises(ConfigError, match="--loss hinge: expected one of auto, cross-entropy"):
        resolve(model_from(PLAIN), kind="hinge")


def test_a_given_kind_wins(model_from):
    objective = resolve(model_from(SOFTMAX), kind="mse")
    assert (objective.kind, objective.prediction) == ("mse", "s")


def test_the_float_output_of_a_classifier_is_chosen(model_from):
    text = graph(
        "probabilities = Softmax(l)\n      label = ArgMax<axis=1, keepdims=0>(probabilities)",
        name="probabilities",
    ).replace("=> (float[N,3] probabilities)", "=> (int64[N] label, float[N,3] probabilities)")
    objective = resolve(model_from(text))
    assert (objective.output, objective.prediction, objective.classes) == ("probabilities", "l", 3)


def test_both_columns_of_a_binary_classifier_are_one_sigmoid(model_from):
    body = "p = Sigmoid(l)\n      q = Sub(one, p)\n      y = Concat<axis=1>(q, p)"
    text = graph(body, shape="N,2").replace("[4,3]", "[4,1]")
    text = text.replace("(float[N,2] y)\n", "(float[N,2] y)\n    <float[1] one = {1.0}>\n")
    objective = resolve(model_from(text), target=np.array([0, 1]))
    assert (objective.kind, objective.prediction) == ("binary-cross-entropy", "l")
    assert prepared(objective, np.array([0, 1])).shape == (2, 1)


def test_shapes_that_the_file_lacks_are_inferred(model_from):
    model = model_from(SOFTMAX)
    model.graph.outputs[0].shape = None
    assert resolve(model).classes == 3


def test_several_float_outputs_need_a_choice(model_from):
    text = PLAIN.replace("(float[N,3] y)", "(float[N,3] y, float[N,3] l)")
    with pytest.raises(ConfigError, match=r"y, l.*--output-name NAME"):
        resolve(model_from(text), target=np.array([1]))
    assert resolve(model_from(text), "l", target=np.array([1])).output == "l"
    with pytest.raises(ConfigError, match="no such output"):
        resolve(model_from(text), "z")


def prepared(objective, target):
    split = Split(sources={}, target=np.asarray(target))
    checked = check_target(split, objective.kind, objective.classes, shape=objective.shape)
    return checked.target


def run_loss(model, objective, x, target):
    copy = attach(lower(model, [objective.prediction], batch_norm="frozen"), [objective]).model
    feeds = {"x": x, TARGET: prepared(objective, target)}
    results = Runner(copy).run(feeds)
    assert next(iter(results)) == LOSS
    return float(results[LOSS]), results[objective.prediction]


@pytest.mark.ort
@pytest.mark.parametrize("kind", ["cross-entropy", "binary-cross-entropy", "mse"])
def test_the_loss_graph_equals_its_formula(kind, model_from):
    rng = np.random.default_rng(0)
    x = 20 * rng.normal(size=(5, 4)).astype(np.float32)
    target = {
        "cross-entropy": np.array([0, 2, 1, 1, 0]),
        "binary-cross-entropy": rng.integers(0, 2, (5, 3)),
        "mse": rng.normal(size=(5, 3)),
    }[kind]
    model = model_from(PLAIN, scale=1.0)
    objective = resolve(model, kind=kind)
    value, prediction = run_loss(model, objective, x, target)
    z = prediction.astype(np.float64)
    expected = {
        "cross-entropy": lambda: np.mean(
            np.log(np.exp(z).sum(1)) - z[np.arange(5), target if target.ndim == 1 else 0]
        ),
        "binary-cross-entropy": lambda: np.mean(
            np.maximum(z, 0) - z * target + np.log1p(np.exp(-np.abs(z)))
        ),
        "mse": lambda: np.mean((z - target) ** 2),
    }[kind]()
    assert value == pytest.approx(expected, rel=1e-5)
    arrays = {objective.prediction: prediction, TARGET: prepared(objective, target)}
    assert measure([objective], arrays)[LOSS] == pytest.approx(expected, rel=1e-5)


@pytest.mark.ort
def test_binary_cross_entropy_is_finite_far_out_and_sloped_at_zero(model_from, training):
    model = model_from(SIGMOID, scale=0.0)
    setup = training(model, kind="auto")
    x = np.ones((1, 4), dtype=np.float32)
    slope = setup.gradients({"x": x, TARGET: np.ones((1, 3), dtype=np.float32)})["p_w"]
    np.testing.assert_allclose(slope, np.full((4, 3), -0.5 / 3), rtol=1e-6)
    objective = resolve(model_from(SIGMOID, scale=1.0))
    value, _ = run_loss(model_from(SIGMOID, scale=1.0), objective, 1e4 * x, np.ones((1, 3)))
    assert np.isfinite(value)


TOKENS = """<ir_version: 8, opset_import: ["":17]>
g (float[N,T,4] x, float[4,3] p_w) => (float[N,T,3] y)
{ l = MatMul(x, p_w)
  y = Softmax<axis=-1>(l) }"""

PIXELS = """<ir_version: 8, opset_import: ["":17]>
g (float[N,4,H,W] x, float[3,4,1,1] p_w) => (float[N,3,H,W] y)
{ l = Conv(x, p_w)
  y = Softmax<axis=1>(l) }"""

ONE = """<ir_version: 8, opset_import: ["":17]>
g (float[N,4,5,5] x, float[3,4,1,1] p_w) => (float[N,3,1,1] y)
{ p = GlobalAveragePool(x)
  y = Conv(p, p_w) }"""


@pytest.mark.ort
@pytest.mark.parametrize(
    ("text", "shape", "target_shape", "axis"),
    [
        (TOKENS, (2, 6, 4), (2, 6), 2),
        (PIXELS, (2, 4, 5, 6), (2, 5, 6), 1),
        (ONE, (2, 4, 5, 5), (2,), 1),
    ],
)
def test_cross_entropy_over_positions(text, shape, target_shape, axis, model_from):
    rng = np.random.default_rng(0)
    model, target = model_from(text, scale=1.0), rng.integers(0, 3, target_shape)
    objective = resolve(model, kind="cross-entropy")
    assert (objective.class_axis, objective.classes) == (axis, 3)
    value, prediction = run_loss(
        model, objective, rng.normal(size=shape).astype(np.float32), target
    )
    rows = np.moveaxis(prediction.astype(np.float64), axis, -1).reshape(-1, 3)
    chosen = rows[np.arange(len(rows)), target.reshape(-1)]
    assert value == pytest.approx(np.mean(np.log(np.exp(rows).sum(1)) - chosen), rel=1e-5)


def test_the_classes_of_an_old_softmax_without_an_axis_are_not_on_an_axis_of_size_one(model_from):
    model = model_from("""<ir_version: 3, opset_import: ["":9]>
    g (float[N,5,3,3] x) => (float[N,5,1,1] y)
    {
      h = GlobalAveragePool(x)
      y = Softmax(h)
    }""")
    objective = resolve(model, None, "auto")
    assert (objective.kind, objective.class_axis, objective.classes) == ("cross-entropy", 1, 5)
