"""Connections that went: through steps, removals, averages, rewinding, whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import array, model
from onnxprune_models import builders
from runs import DENSE, Train, digits, examples
from stages import first_stage, posed, stepped

from onnxprune.base import Array, Fold, Mask, Plan
from onnxprune.errors import PlanError
from onnxprune.graph.groups import analyze
from onnxprune.reports import Pruned
from onnxprune.training.problem import Problem
from onnxprune.training.pruning import Stage, apply, inputs_of, remembering
from onnxprune.updates.around import AVERAGE

pytestmark = pytest.mark.ort


def begun(folder: Path, text: str = DENSE, **options: Any) -> tuple[Problem, Stage]:
    problem = posed(folder, text, examples(), threads=1, **options)
    return problem, first_stage(problem)


def sample(problem: Problem) -> dict[str, Array]:
    return inputs_of(problem.train.batch(np.arange(32)))


def random_masks(stage: Stage, seed: int = 0) -> dict[str, Mask]:
    rng = np.random.default_rng(seed)
    arrays = stage.snapshot.parameters
    return {name: rng.random(arrays[name].shape) < 0.5 for name in ("w", "b")}


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam"},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "momentum": {"optimizer": "momentum", "weight_decay": 0.01},
    "averages": {"optimizer": "momentum", "ema": 0.9},
}


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_is_masked_stays_zero_and_the_rest_moves(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    problem, stage = begun(tmp_path, **options)
    stage = stepped(problem, stage, 5)  # moments are at work
    masks = random_masks(stage)
    after, record = apply(problem, stage, Plan(keep={}, masks=masks), sample(problem))
    gone = sum(int(np.count_nonzero(~mask)) for mask in masks.values())
    assert (record.masked, record.removed, record.exact) == (gone, {}, 0)
    onward = stepped(problem, after, 20)
    for name, mask in masks.items():
        result = onward.result().graph.initializers[name].const_value
        assert result is not None
        for found in (onward.snapshot.parameters[name], result.numpy()):
            np.testing.assert_array_equal(found[~mask], 0)
            assert (found[mask] != after.snapshot.parameters[name][mask]).all()
    assert onward.snapshot.masked == gone


def test_masks_add_up_and_are_sliced_with_their_parameters(tmp_path: Path) -> None:
    problem, stage = begun(tmp_path)
    first, second = random_masks(stage, 0), random_masks(stage, 1)
    stage, _ = apply(problem, stage, Plan(keep={}, masks=first), sample(problem))
    keep = np.arange(16) % 3 > 0
    plan = Plan(keep={"w": keep}, masks=second)
    after, record = apply(problem, stage, plan, sample(problem))
    for name, position in (("w", 1), ("b", 0)):
        both = (first[name] & second[name]).compress(keep, axis=position)
        np.testing.assert_array_equal(after.snapshot.masks[name], both)
        np.testing.assert_array_equal(after.snapshot.parameters[name][~both], 0)
    assert record.masked == after.snapshot.masked
    stepped(problem, after, 2)


def test_an_entry_that_takes_something_over_is_there_again(tmp_path: Path) -> None:
    """A constant moves into a bias that was masked."""
    text = DENSE.replace("float[16, 3] v", "float[16, 3] v, float[3] c")
    problem, stage = begun(tmp_path, text.replace("MatMul(a, v)", "Gemm(a, v, c)"))
    keep = np.arange(16) > 0
    (consumer,) = stage.analysis.group("w").consumers
    fold = Fold(group="w", unit=0, values={consumer.axis: np.array([2.0])})
    plan = Plan(keep={"w": keep}, folds=(fold,), masks={"c": np.zeros(3, np.bool_)})
    after, record = apply(problem, stage, plan, sample(problem))
    assert record.masked == 0
    moved = 2 * stage.snapshot.parameters["v"][0]
    np.testing.assert_allclose(after.snapshot.parameters["c"], moved, rtol=1e-6)
    onward = stepped(problem, after, 3)
    assert (onward.snapshot.parameters["c"] != 0).all()


def test_rewinding_restores_the_start_under_the_masks(tmp_path: Path) -> None:
    problem, start = begun(tmp_path, optimizer="adam", ema=0.5)
    stage = stepped(problem, remembering(start), 10)
    masks, keep = random_masks(stage), np.arange(16) > 2
    plan = Plan(keep={"w": keep}, masks=masks, rewind=True, reset_moments=True)
    after, _ = apply(problem, stage, plan, sample(problem))
    expected = {
        "w": np.where(masks["w"], start.snapshot.parameters["w"], 0)[:, keep],
        "b": np.where(masks["b"], start.snapshot.parameters["b"], 0)[keep],
        "v": start.snapshot.parameters["v"][keep],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(after.snapshot.parameters[name], values)
        np.testing.assert_array_equal(after.snapshot.moments[AVERAGE][name], values)
    assert set(after.snapshot.moments) == {"start", AVERAGE}
    onward = stepped(problem, after, 5)
    again, _ = apply(problem, onward, Plan(keep={}, rewind=True), sample(problem))
    for name, values in expected.items():
        np.testing.assert_array_equal(again.snapshot.parameters[name], values)


def test_a_fresh_optimizer_counts_from_its_own_beginning(tmp_path: Path) -> None:
    """Adam's first step is as long as the learning rate, however late it comes."""
    problem, stage = begun(tmp_path, optimizer="adam")
    stage = stepped(problem, stage, 30)
    after, _ = apply(problem, stage, Plan(keep={}, reset_moments=True), sample(problem))
    assert (after.snapshot.since, after.snapshot.step) == (30, 30)
    onward = stepped(problem, after, 1)
    assert (onward.snapshot.since, onward.snapshot.step) == (30, 31)
    for name, before in after.snapshot.parameters.items():
        longest = np.abs(onward.snapshot.parameters[name] - before).max()
        assert longest == pytest.approx(0.05, rel=1e-3), name


def test_a_mask_of_something_else_is_refused(tmp_path: Path) -> None:
    problem, stage = begun(tmp_path)
    plan = Plan(keep={}, masks={"nothing": np.ones(3, np.bool_)})
    with pytest.raises(PlanError, match=r"mask of nothing: expected a trained parameter"):
        apply(problem, stage, plan, sample(problem))


def flat(x: Array) -> Array:
    return x.reshape(len(x), 64)


def colored(x: Array) -> Array:
    return np.repeat(x.reshape(len(x), 1, 8, 8), 3, axis=1)


NETWORKS: dict[str, Any] = {
    "dense": (lambda: builders.mlp([64, 32, 24, 10]), flat),
    "normalized": (lambda: builders.vgg(((8, 8), (12,)), hidden=16, image=8), colored),
    "residual": (lambda: builders.resnet(8, image=8), colored),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"target": "params=50%"}], ids=str)
def test_a_run_writes_zeros_where_connections_went(
    train: Train, name: str, options: dict[str, Any]
) -> None:
    make, shaped = NETWORKS[name]
    source: ir.Model = make()
    x, y = digits(300)
    how = {"alpha_fc": 0.8, "alpha_conv": 0.8, "rounds": 2}
    result = train(
        source,
        (shaped(x), y),
        method="nnrelief",
        method_options=how,
        epochs=4,
        learning_rate=0.005,
        **options,
    )
    events, after = result.of(Pruned), result.report.after
    assert events
    assert after.masked == events[-1].masked > 0
    zeros = sum(
        int(np.count_nonzero(array(result.file, value) == 0))
        for value in result.file.graph.initializers
    )
    assert zeros >= after.masked
    assert after.units == sum(group.size for group in analyze(result.file).groups)
    if "target" in options:
        assert result.report.reached


def test_a_run_says_which_layers_stay_whole(train: Train) -> None:
    source = model(
        """(float[N, 8, 8] x) => (float[N, 10] y)
        <float[1, 18, 8] w, float[1, 18, 6] r, float[6, 10] v> {
        t = Transpose <perm = [1, 0, 2]> (x)  h, last = GRU <hidden_size = 6> (t, w, r)
        f = Squeeze <axes = [0]> (last)  y = MatMul(f, v) }""",
        opset=12,
    )
    x, y = digits(200)
    x = x.reshape(len(x), 8, 8)
    result = train(source, (x, y), method="nnrelief", epochs=2, batch_size=8, validation_fraction=0)
    note = "not scored connection by connection, weights stay whole: 1 GRU"
    assert result.report.notes.count(note) == 1
