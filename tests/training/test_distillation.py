"""Training without labels, several terms and outputs, and losses of one's own, in whole runs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stages
from graphs import model
from onnxprune_models import path
from runs import SHRINK, Train, digits
from stages import first_stage

from onnxprune.base import Axis, Plan
from onnxprune.data import TARGET
from onnxprune.errors import ConfigError, DataError
from onnxprune.model import save
from onnxprune.reports import Evaluated, Progress, Pruned
from onnxprune.training.checkpoint import Checkpoint, Writer, read_checkpoint
from onnxprune.training.loss_spec import Loss
from onnxprune.training.losses import TEACHER
from onnxprune.training.pruning import apply, inputs_of
from onnxprune.training.rounds import opened
from onnxprune.training.tally import Tally

pytestmark = pytest.mark.ort

posed = functools.partial(stages.posed, validation_fraction=0.0)


def unlabelled(count: int = 1100) -> dict[str, Any]:
    """Digits of which only those that are tested with have labels."""
    x, y = digits(10**6)
    return {"x_train": x[:count], "x_test": x[count:], "y_test": y[count:]}


def test_a_pruned_model_recovers_without_labels(train: Train) -> None:
    result = train(path("digits_lenet"), unlabelled(), loss="distill", **SHRINK)
    before, after = result.report.before, result.report.after
    assert after.parameters <= before.parameters / 2
    assert after.metrics["accuracy"] > before.metrics["accuracy"] - 0.03
    first, *_, last = result.of(Evaluated)
    assert last.metrics["loss"] < first.metrics["loss"]
    assert {"agreement", "loss"} == set(last.metrics)
    assert last.metrics["agreement"] > 0.95


def test_hidden_values_are_distilled_across_removals(train: Train) -> None:
    terms = ["distill", "0.5*relu|Relu=distill-hidden"]
    result = train(path("digits_lenet"), unlabelled(), loss=terms, **SHRINK)
    assert len(result.of(Pruned)) > 1
    progress = result.of(Progress)
    assert set(progress[-1].parts) == {"distill", "relu|Relu=distill-hidden"}
    last = progress[-1]
    total = last.parts["distill"] + 0.5 * last.parts["relu|Relu=distill-hidden"]
    assert last.loss == pytest.approx(total, rel=1e-3)
    assert result.report.after.metrics["accuracy"] > 0.95


DEAD = """(float[N, 4] x) => (float[N, 3] y)
    <float[4, 6] w, float[6] b, float[6, 5] v, float[5, 3] u> {
    a = MatMul(x, w)  c = Add(a, b)  h = Relu(c)  d = MatMul(h, v)  k = Tanh(d)
    y = MatMul(k, u) }"""


def test_what_is_left_of_a_teacher_is_what_the_model_has_left(tmp_path: Path) -> None:
    """Dead units change nothing, so that right after their removal there is nothing to learn."""
    v = np.random.default_rng(2).normal(size=(6, 5)).astype(np.float32)
    v[:, 0] = 0
    dead = model(DEAD, b=np.array([-9, 0, -9, 0, 0, 0], np.float32), v=v)
    x = np.random.default_rng(0).uniform(-0.5, 0.5, size=(64, 4)).astype(np.float32)
    problem = posed(tmp_path, dead, (x, None), loss=["distill", "^h$|^k$=distill-hidden"])
    assert problem.hidden == {"h", "k"}
    stage = first_stage(problem)
    sample = inputs_of(problem.train.batch(np.arange(64)))
    for keep in ([False, True, True, True, True, True], [True, False, True, True, True]):
        group = next(
            g for g in stage.analysis.groups if Axis("h", 1) in [m.axis for m in g.members]
        )
        plan = Plan(keep={group.name: np.array(keep)})
        stage, record = apply(problem, stage, plan, sample)
        assert record.removed
    group = next(g for g in stage.analysis.groups if Axis("k", 1) in [m.axis for m in g.members])
    plan = Plan(keep={group.name: np.array([False, True, True, True, True])})
    stage, _ = apply(problem, stage, plan, sample)
    np.testing.assert_array_equal(stage.origins[Axis("h", 1)], [1, 3, 4, 5])
    np.testing.assert_array_equal(stage.origins[Axis("k", 1)], [1, 2, 3, 4])
    round_ = opened(
        problem, stage.model, stage.analysis, stage.snapshot, (), frozenset(), origins=stage.origins
    )
    with round_.session as session:
        batch = problem.taught(problem.train.batch(np.arange(64)))
        assert batch[f"{TEACHER}/h"].shape == (64, 6)
        result = session.train_step(batch, learning_rate=0.0)
    assert result.loss == pytest.approx(0.0, abs=1e-6)


def test_what_is_left_of_a_teacher_is_kept_in_a_checkpoint(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-0.5, 0.5, size=(64, 4)).astype(np.float32)
    problem = posed(tmp_path, DEAD, (x, None), loss=["distill", "^h$=distill-hidden"])
    first = first_stage(problem)
    group = next(g for g in first.analysis.groups if Axis("h", 1) in [m.axis for m in g.members])
    plan = Plan(keep={group.name: np.arange(6) % 2 == 0})
    stage, _ = apply(problem, first, plan, inputs_of(problem.train.batch(np.arange(64))))
    now = Checkpoint(stage=stage, state=None, tally=Tally(), interval=1, seconds=0.0, records=0)
    Writer(first).write(tmp_path / "step", now)
    found = read_checkpoint(tmp_path / "step", first, problem.config).stage.origins
    assert set(found) == {Axis("h", 1)}
    np.testing.assert_array_equal(found[Axis("h", 1)], [0, 2, 4])


def test_a_teacher_never_changes(tmp_path: Path) -> None:
    x, _ = digits(64)
    problem = posed(tmp_path, path("digits_mlp"), (x, None), loss="distill")
    batch = problem.train.batch(np.arange(32))
    before = problem.taught(batch)
    stage = first_stage(problem)
    round_ = opened(problem, stage.model, stage.analysis, stage.snapshot, (), frozenset())
    with round_.session as session:
        first = session.train_step(before, learning_rate=0.1)
        assert session.train_step(before, learning_rate=0.1).loss != first.loss
    after = problem.taught(batch)
    (key,) = (key for key in after if key.startswith(TEACHER))
    np.testing.assert_array_equal(before[key], after[key])
    assert first.loss == pytest.approx(0.0, abs=1e-6)


# --- several outputs ---------------------------------------------------------------------------

HEADS = """(float[N, 4] x) => (float[N, 3] kind, float[N, 2] box)
    <float[4, 6] w, float[6, 3] a, float[6, 2] b> {
    h = MatMul(x, w)  r = Relu(h)  l = MatMul(r, a)  kind = Softmax(l)  box = MatMul(r, b) }"""


def two_targets(count: int = 96) -> dict[str, Any]:
    x = np.random.default_rng(1).normal(size=(count, 4)).astype(np.float32)
    return {"x": x, "y_kind": x[:, :3].argmax(axis=1), "box": 2 * x[:, :2] - x[:, 2:]}


def test_every_output_has_its_loss_and_target(train: Train) -> None:
    result = train(
        model(HEADS),
        two_targets(),
        loss=["kind=cross-entropy", "0.5*box=huber"],
        method="none",
        learning_rate=0.02,
        epochs=30,
        batch_size=16,
    )
    metrics = result.report.after.metrics
    assert metrics["accuracy"] > result.report.before.metrics["accuracy"]
    assert metrics["mse/box"] < 0.5 * result.report.before.metrics["mse/box"]
    parts = metrics["loss/kind=cross-entropy"], metrics["loss/box=huber"]
    assert metrics["loss"] == pytest.approx(parts[0] + 0.5 * parts[1], rel=1e-5)


def test_targets_of_several_outputs_are_no_inputs(tmp_path: Path) -> None:
    problem = posed(tmp_path, HEADS, two_targets(), loss=["kind=auto", "box=mse"])
    batch = problem.train.batch(np.arange(4))
    assert set(batch) == {"x", TARGET, f"{TARGET}/1"}
    assert (batch[TARGET].shape, batch[f"{TARGET}/1"].shape) == ((4,), (4, 2))
    assert set(inputs_of(batch)) == {"x"}


# --- refusals ----------------------------------------------------------------------------------


def test_labels_are_asked_for_where_a_loss_needs_them(tmp_path: Path) -> None:
    x, _ = digits(32)
    with pytest.raises(DataError, match="or choose --loss distill"):
        posed(tmp_path, path("digits_lenet"), (x, None), loss="cross-entropy")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("relu=distill-hidden", "alone leaves the outputs open"),
        (["distill", "nothing=distill-hidden"], "no value of the model matches; there are"),
        (["distill", "(=distill-hidden"], "not a regular expression"),
        ("absent=mse", "the model has no such output"),
    ],
)
def test_terms_that_do_not_fit_the_model_are_refused(
    tmp_path: Path, loss: Any, message: str
) -> None:
    x = np.zeros((8, 4), np.float32)
    with pytest.raises(ConfigError, match=message):
        posed(tmp_path, DEAD, (x, None), loss=loss)


# --- losses of one's own -----------------------------------------------------------------------

SQUARES = """(float[N, 3] logits, int64[N] y) => (float loss) <int64 depth = {10}> {
    p = LogSoftmax(logits)
    levels = Constant<value: tensor = float[2] {0, 1}>()
    hot = OneHot(y, depth, levels)
    chosen = Mul(hot, p)
    n = Neg(chosen)
    rows = ReduceSum<keepdims = 0>(n)
    count = Shape<start = 0, end = 1>(y)
    number = Cast<to = 1>(count)
    scalar = Squeeze(number)
    loss = Div(rows, scalar) }"""
LINEAR = "(float[N, 4] x) => (float[N, 3] logits) <float[4, 3] w> { logits = MatMul(x, w) }"


def own(folder: Path, text: str) -> str:
    save(model(text), folder / "own.onnx")
    return str(folder / "own.onnx")


def test_a_loss_of_ones_own_equals_the_built_in_one(tmp_path: Path, train: Train) -> None:
    x = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    data = (x, x[:, :3].argmax(axis=1))
    loss = own(tmp_path, SQUARES.replace("{10}", "{3}"))
    options = {"method": "none", "epochs": 3, "learning_rate": 0.05, "batch_size": 16}
    mine = train(model(LINEAR), data, loss=loss, **options)
    theirs = train(model(LINEAR), data, loss="cross-entropy", **options)
    assert mine.report.after.metrics["loss"] == pytest.approx(
        theirs.report.after.metrics["loss"], rel=1e-4
    )
    assert mine.report.after.metrics["accuracy"] == theirs.report.after.metrics["accuracy"]


def test_a_loss_of_ones_own_reads_inputs_and_is_one_of_several(
    tmp_path: Path, train: Train
) -> None:
    text = """(float[N, 3] logits, float[N, 4] x) => (float loss) {
        s = ReduceL1<axes = [1], keepdims = 1>(x)
        d = Sub(logits, s)  a = Abs(d)  loss = ReduceMean<keepdims = 0>(a) }"""
    x = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    loss = ["0.1*" + own(tmp_path, text), "distill"]
    result = train(model(LINEAR), (x, None), loss=loss, method="none", epochs=3)
    metrics = result.report.after.metrics
    assert metrics["loss"] == pytest.approx(
        metrics["loss/distill"] + 0.1 * metrics["loss/own"], rel=1e-5
    )


SMALL = """(float[N, 3] logits) => (float[1] loss) {
    s = Mul(logits, logits)  m = ReduceMean<axes = [1], keepdims = 0>(s)  loss = ReduceMean(m) }"""


def test_a_loss_of_ones_own_needs_no_labels_to_be_judged_by(tmp_path: Path, train: Train) -> None:
    x = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    data = {"x_train": x[:48], "y_train": x[:48, :3].argmax(axis=1), "x_val": x[48:]}
    result = train(model(LINEAR), data, loss=own(tmp_path, SMALL), method="none", epochs=3)
    before, after = result.report.before.metrics, result.report.after.metrics
    assert set(after) == {"loss"}
    assert after["loss"] < before["loss"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(float[N, 3] logits) => (float[N, 3] loss) { loss = Abs(logits) }", "float32 scalar"),
        (
            "(float[N, 3] p) => (float loss) { loss = ReduceMean<keepdims = 0>(p) }",
            r"input p is no output of the model \(logits\), no input \(x\) and no array",
        ),
        (
            "(float[N, 4] x) => (float loss) { loss = ReduceMean<keepdims = 0>(x) }",
            "reads no output of the model",
        ),
        (
            """(double[N, 3] logits) => (float loss) {
                m = ReduceMean<keepdims = 0>(logits)  loss = Cast<to = 1>(m) }""",
            "input logits is DOUBLE, the model's is FLOAT",
        ),
        (
            """(float[N, 3] logits) => (float loss, float more) {
                loss = ReduceMean<keepdims = 0>(logits)  more = Neg(loss) }""",
            "expected one output, the loss, got 2",
        ),
    ],
)
def test_a_loss_of_ones_own_that_does_not_fit_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    x = np.zeros((8, 4), np.float32)
    with pytest.raises(ConfigError, match=message):
        posed(tmp_path, LINEAR, (x, np.zeros(8, np.int64)), loss=own(tmp_path, text))
    with pytest.raises(ConfigError, match=r"none.onnx: no such file"):
        posed(tmp_path, LINEAR, (x, None), loss=Loss(kind="none.onnx"))
