"""Every formula against numpy, its gradient against differences, and terms added up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from onnxprune.base import Axis
from onnxprune.errors import ConfigError
from onnxprune.gradients.lowering import lower
from onnxprune.runtime.session import Runner
from onnxprune.training.loss_nodes import attach, measure
from onnxprune.training.loss_spec import Loss
from onnxprune.training.losses import LOSS, TARGET, TEACHER, Objective, resolve

pytestmark = pytest.mark.ort

PLAIN = """<ir_version: 8, opset_import: ["":17]>
g (float[N,4] x, float[4,3] p_w) => (float[N,3] y)
{ y = MatMul(x, p_w) }"""
SOFTMAX = PLAIN.replace("y = MatMul(x, p_w)", "l = MatMul(x, p_w)  y = Softmax(l)")
SIGMOID = PLAIN.replace("y = MatMul(x, p_w)", "l = MatMul(x, p_w)  y = Sigmoid(l)")
TOKENS = """<ir_version: 8, opset_import: ["":17]>
g (float[N,T,4] x, float[4,3] p_w) => (float[N,T,3] y)
{ y = MatMul(x, p_w) }"""
PIXELS = """<ir_version: 8, opset_import: ["":17]>
g (float[N,4,H,W] x, float[3,4,1,1] p_w) => (float[N,3,H,W] y)
{ y = Conv(x, p_w) }"""
SHAPES = {PLAIN: (5, 4), SOFTMAX: (5, 4), SIGMOID: (5, 4), TOKENS: (5, 6, 4), PIXELS: (5, 4, 2, 3)}

WEIGHTS = (0.5, 2.0, 1.5)
RNG = np.random.default_rng(0)
LABELS = {
    PLAIN: np.array([0, 2, 1, -100, 0]),
    TOKENS: np.where(RNG.random((5, 6)) < 0.3, -100, RNG.integers(0, 3, (5, 6))),
    PIXELS: np.where(RNG.random((5, 2, 3)) < 0.3, -100, RNG.integers(0, 3, (5, 2, 3))),
}
YES = RNG.integers(0, 2, (5, 3)).astype(np.float32)
VALUES = RNG.normal(size=(5, 3)).astype(np.float32)
TAUGHT = 2 * RNG.normal(size=(5, 3)).astype(np.float32)


def cross_entropy(z, y, axis, *, weights=(1.0, 1.0, 1.0), smoothing=0.0):
    rows = np.moveaxis(z, axis, -1).reshape(-1, 3)
    y = y.reshape(-1)
    rows, y = rows[y != -100], y[y != -100]
    wanted = (1 - smoothing) * np.eye(3)[y] + smoothing / 3
    lost = -(wanted * np.array(weights) * log_softmax(rows, axis=1)).sum()
    return lost / np.array(weights)[y].sum()


def binary(z, y, *, weights=1.0):
    return np.mean(-np.array(weights) * y * np.log(expit(z)) - (1 - y) * np.log(1 - expit(z)))


def huber(z, y, delta):
    d = np.abs(z - y)
    return np.mean(np.where(d <= delta, d**2 / 2, delta * (d - delta / 2)))


def divergence(z, t, temperature):
    p, q = softmax(t / temperature, axis=1), softmax(z / temperature, axis=1)
    return temperature**2 * np.mean(np.sum(p * np.log(p / q), axis=1))


def binary_divergence(z, t, temperature):
    p, q = expit(t / temperature), expit(z / temperature)
    return temperature**2 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


CE = "cross-entropy"
CASES = {
    "tokens": (TOKENS, Loss(kind=CE), LABELS[TOKENS], lambda z, y: cross_entropy(z, y, 2)),
    "pixels": (PIXELS, Loss(kind=CE), LABELS[PIXELS], lambda z, y: cross_entropy(z, y, 1)),
    "ignored": (PLAIN, Loss(kind=CE), LABELS[PLAIN], lambda z, y: cross_entropy(z, y, 1)),
    "smoothed": (
        PLAIN,
        Loss(kind=CE, smoothing=0.2),
        LABELS[PLAIN],
        lambda z, y: cross_entropy(z, y, 1, smoothing=0.2),
    ),
    "weighted pixels": (
        PIXELS,
        Loss(kind=CE, smoothing=0.1, weights=WEIGHTS),
        LABELS[PIXELS],
        lambda z, y: cross_entropy(z, y, 1, smoothing=0.1, weights=WEIGHTS),
    ),
    "weighted tokens": (
        TOKENS,
        Loss(kind=CE, weights=WEIGHTS),
        LABELS[TOKENS],
        lambda z, y: cross_entropy(z, y, 2, weights=WEIGHTS),
    ),
    "binary": (PLAIN, Loss(kind="binary-cross-entropy"), YES, binary),
    "binary after sigmoid": (SIGMOID, Loss(kind="binary-cross-entropy"), YES, binary),
    "weighted binary": (
        PLAIN,
        Loss(kind="binary-cross-entropy", weights=WEIGHTS),
        YES,
        lambda z, y: binary(z, y, weights=WEIGHTS),
    ),
    "mse": (PLAIN, Loss(kind="mse"), VALUES, lambda z, y: np.mean((z - y) ** 2)),
    "l1": (PLAIN, Loss(kind="l1"), VALUES, lambda z, y: np.mean(np.abs(z - y))),
    "huber": (PLAIN, Loss(kind="huber", delta=0.7), VALUES, lambda z, y: huber(z, y, 0.7)),
    "distilled classes": (SOFTMAX, Loss(kind="distill"), TAUGHT, lambda z, t: divergence(z, t, 4)),
    "distilled at 2": (
        PLAIN,
        Loss(kind="distill", temperature=2.0),
        TAUGHT,
        lambda z, t: divergence(z, t, 2),
    ),
    "distilled yes or no": (
        SIGMOID,
        Loss(kind="distill"),
        TAUGHT,
        lambda z, t: binary_divergence(z, t, 4),
    ),
    "distilled values": (
        PLAIN,
        Loss(kind="distill"),
        TAUGHT,
        lambda z, t: np.mean((z - t) ** 2),
    ),
}


def posed(name, model_from):
    text, loss, target, formula = CASES[name]
    model = model_from(text, scale=1.0)
    labelled = loss.kind != "distill"
    objective = resolve(model, None, loss, target if labelled else None)
    if not labelled:
        objective = replace(objective, target=f"{TEACHER}/{objective.prediction}")
    x = np.random.default_rng(3).normal(size=SHAPES[text]).astype(np.float32)
    return model, objective, {"x": x, objective.target: target}, formula


@pytest.mark.parametrize("name", CASES)
def test_a_formula_equals_numpy(name, model_from):
    model, objective, feeds, formula = posed(name, model_from)
    copy = attach(lower(model, objective.values, batch_norm="frozen"), [objective]).model
    found = Runner(copy).run(feeds)
    z = found[objective.prediction]
    target = feeds[objective.target]
    expected = formula(z.astype(np.float64), target)
    assert float(found[LOSS]) == pytest.approx(expected, rel=1e-5)
    arrays = {objective.prediction: z, objective.target: target}
    assert measure([objective], arrays) == {LOSS: pytest.approx(expected, rel=1e-5)}


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_equals_differences(name, model_from, training, slope_error):
    model, objective, feeds, _ = posed(name, model_from)
    assert slope_error(training(model, objective=objective), feeds) < 0.01


def test_nothing_but_ignored_labels_is_no_loss_with_weights(model_from):
    objective = resolve(model_from(PLAIN), None, Loss(kind=CE, weights=WEIGHTS))
    arrays = {"y": VALUES, TARGET: np.full(5, -100)}
    assert measure([objective], arrays) == {LOSS: 0.0}


def test_balanced_weights_are_inverse_to_how_often_a_class_occurs(model_from):
    labels = np.array([0, 0, 0, 1, 2, 2, -100])
    objective = resolve(model_from(PLAIN), None, Loss(kind=CE, weights="balanced"), labels)
    assert objective.weights == pytest.approx((6 / 9, 6 / 3, 6 / 6))
    with pytest.raises(ConfigError, match="2 weights for 3 classes"):
        resolve(model_from(PLAIN), None, Loss(kind=CE, weights=(1.0, 2.0)), labels)


def test_balanced_weights_of_one_hot_rows_are_those_of_their_classes(model_from):
    labels = np.array([0, 0, 0, 1, 2, 2])
    loss = Loss(kind=CE, weights="balanced")
    found = resolve(model_from(SOFTMAX), None, loss, np.eye(3, dtype=np.float32)[labels])
    assert found.weights == resolve(model_from(SOFTMAX), None, loss, labels).weights


@pytest.mark.parametrize(("text", "count"), [(PLAIN, 2), (PIXELS, 3)])
def test_weights_of_outputs_are_one_each_or_one_for_all(text, count, model_from):
    model = model_from(text)
    with pytest.raises(ConfigError, match="one per output of an"):
        resolve(model, None, Loss(kind="binary-cross-entropy", weights=(2.0,) * count))
    one = Loss(kind="binary-cross-entropy", weights=(2.0,))
    assert resolve(model, None, one).weights == (2.0,)


def test_terms_are_weighted_and_told_apart(model_from, training, slope_error):
    model = model_from(SOFTMAX, scale=1.0)
    first = resolve(model, None, Loss(kind=CE), np.array([1]))
    second = resolve(model, None, Loss(kind="distill", weight=0.25))
    second = replace(second, target=f"{TEACHER}/l")
    copy = attach(lower(model, ["l"], batch_norm="frozen"), [first, second]).model
    x = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    labels = np.array([0, 2, 1, 1, 0])
    found = Runner(copy).run({"x": x, TARGET: labels, f"{TEACHER}/l": TAUGHT})
    z = found["l"].astype(np.float64)
    parts = cross_entropy(z, labels, 1), divergence(z, TAUGHT, 4)
    assert found[f"{LOSS}/cross-entropy"] == pytest.approx(parts[0], rel=1e-5)
    assert found[f"{LOSS}/distill"] == pytest.approx(parts[1], rel=1e-5)
    assert next(iter(found)) == LOSS
    assert found[LOSS] == pytest.approx(parts[0] + 0.25 * parts[1], rel=1e-5)


def test_hidden_values_are_compared_where_units_are_left(model_from):
    model = model_from(PLAIN, scale=1.0)
    objective = Objective(
        kind="distill-hidden",
        prediction="y",
        output="y",
        loss=Loss(kind="distill-hidden", output="y"),
        target=f"{TEACHER}/y",
    )
    kept = np.array([0, 2, 4])
    copy = attach(lower(model, ["y"], batch_norm="frozen"), [objective], {Axis("y", 1): kept})
    x = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    taught = RNG.normal(size=(5, 6)).astype(np.float32)
    found = Runner(copy.model).run({"x": x, f"{TEACHER}/y": taught})
    left = taught[:, kept]
    expected = np.sum((found["y"] - left) ** 2) / np.sum(left**2)
    assert found[LOSS] == pytest.approx(expected, rel=1e-5)


def test_a_softmax_over_channels_is_found_before_its_transpose(model_from):
    text = """<ir_version: 8, opset_import: ["":17]>
    g (float[N,4,5,6] x, float[3,4,1,1] p_w) => (float[N,3,5,6] y)
    { c = Conv(x, p_w)
      t = Transpose<perm=[0,2,3,1]>(c)
      s = Softmax<axis=3>(t)
      y = Transpose<perm=[0,3,1,2]>(s) }"""
    objective = resolve(model_from(text))
    assert (objective.kind, objective.prediction, objective.class_axis) == (CE, "t", 3)
    turned = text.replace("perm=[0,3,1,2]", "perm=[0,3,2,1]").replace("[N,3,5,6] y", "[N,3,6,5] y")
    with pytest.raises(ConfigError, match="cannot tell"):
        resolve(model_from(turned))


@pytest.mark.parametrize(
    ("shape", "target", "kind", "axis"),
    [
        ("N,T,3", LABELS[TOKENS], CE, 2),
        ("N,3,H,W", LABELS[PIXELS], CE, 1),
        ("N,H,W,3", LABELS[PIXELS], CE, 3),
        ("N,H,W,1", np.ones((5, 2, 3), np.int64), "binary-cross-entropy", 1),
        ("N,3", np.array([[1, 0, 1], [0, 0, 0]]), "binary-cross-entropy", 1),
        ("N,3", np.array([[1, 0, 0], [0, 1, 0]]), CE, 1),
        ("N,2,3", VALUES.reshape(5, 1, 3).repeat(2, 1), "mse", 1),
    ],
)
def test_auto_tells_classes_from_positions(shape, target, kind, axis, model_from):
    text = f"""<ir_version: 8, opset_import: ["":17]>
    g (float[{shape}] x, float[1] p_w) => (float[{shape}] y) {{ y = Mul(x, p_w) }}"""
    objective = resolve(model_from(text), target=target)
    assert (objective.kind, objective.class_axis) == (kind, axis)
