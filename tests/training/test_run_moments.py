"""What a removal does to moments and running statistics, in the middle of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import array, model
from onnxprune_models import builders, path
from runs import SHRINK, Train, digits
from stages import first_stage, posed, stepped

from onnxprune.base import Array, Axis, Plan
from onnxprune.reports import Pruned
from onnxprune.training.pruning import apply, inputs_of

pytestmark = pytest.mark.ort


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_moments_are_sliced_along_with_the_parameters(tmp_path: Path, optimizer: str) -> None:
    network = builders.mlp([64, 20, 12, 10])
    problem = posed(tmp_path, network, digits(), threads=1, optimizer=optimizer)
    stage = stepped(problem, first_stage(problem), 8)
    names = [group.name for group in stage.analysis.groups]
    chosen = np.array([0, 3, 4, 7, 11, 19]), np.array([1, 2, 10])
    kept = dict(zip(names, chosen, strict=True))
    keep = {
        group.name: np.isin(np.arange(group.size), kept[group.name])
        for group in stage.analysis.groups
    }
    feeds_ = inputs_of(problem.train.batch(np.arange(32)))
    after, record = apply(problem, stage, Plan(keep=keep), feeds_)
    assert record.bounded == (20 - 6) + (12 - 3)
    indices: dict[Axis, Array] = {
        member.axis: kept[group.name] for group in stage.analysis.groups for member in group.members
    }
    slots = {"momentum": 1, "adam": 2}[optimizer]
    assert len(after.snapshot.moments) == slots
    for arrays, before in [
        (after.snapshot.parameters, stage.snapshot.parameters),
        *((after.snapshot.moments[s], stage.snapshot.moments[s]) for s in stage.snapshot.moments),
    ]:
        assert set(arrays) == set(before)
        for name, values in before.items():
            expected = values
            for position in range(values.ndim):
                if Axis(name, position) in indices:
                    expected = np.take(expected, indices[Axis(name, position)], axis=position)
            assert np.any(expected)
            np.testing.assert_array_equal(arrays[name], expected, err_msg=name)
    assert after.snapshot.step == stage.snapshot.step == 8
    onward = stepped(problem, after, 1)
    assert onward.snapshot.step == 9


NORMED = """(float[N, 64] x) => (float[N, 10] y)
    <float[64, 12] w, float[12] scale, float[12] shift, float[12] mean, float[12] var,
     float[12, 10] v> {
    h = MatMul(x, w)  n = BatchNormalization(h, scale, shift, mean, var)  a = Relu(n)
    y = MatMul(a, v) }"""


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_running_statistics_are_written_back_in_training_mode_only(train: Train, mode: str) -> None:
    source = model(NORMED)
    found = train(source, digits(), batch_norm=mode, method="none", epochs=2).file
    for name in ("mean", "var"):
        same = np.array_equal(array(found, name), array(source, name))
        assert same == (mode == "frozen")
    assert not np.array_equal(array(found, "scale"), array(source, "scale"))
    if mode == "train":
        x, _ = digits()
        h = x.reshape(-1, 64) @ array(found, "w")
        assert np.corrcoef(array(found, "mean"), h.mean(axis=0))[0, 1] > 0.9


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_models_with_batch_normalization_shrink_in_both_modes(train: Train, mode: str) -> None:
    x, y = digits(900)
    result = train(path("digits_vgg"), (x, y), batch_norm=mode, **{**SHRINK, "epochs": 2})
    assert result.report.reached
    assert result.report.after.metrics["accuracy"] > 0.9


def test_a_fresh_optimizer_alone_is_no_removal(train: Train) -> None:
    """Rate 0 removes nothing; a cycle of one window resets moments at every decision."""
    options = {"k": 1000, "rate": 0.0, "cycle": 1}
    result = train(
        path("digits_mlp"), digits(600), method="mesimp", method_options=options, epochs=4
    )
    assert [event for event in result.events if isinstance(event, Pruned)] == []
    assert result.report.after.parameters == result.report.before.parameters
