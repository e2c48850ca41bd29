"""Whole runs: what goes in, what comes out, what the report says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import array, model
from onnxprune_models import builders, path
from runs import (
    DENSE,
    DEVICE,
    Result,
    Train,
    accuracy,
    digits,
    examples,
    sizes,
)

from onnxprune.data import EMBEDDED, read
from onnxprune.errors import ModelError
from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.model import load
from onnxprune.reports import (
    Evaluated,
    Finished,
    Progress,
    Pruned,
    Started,
    read_records,
)
from onnxprune.runtime import session
from onnxprune.runtime.session import Device
from onnxprune.runtime.verify import compare
from onnxprune.training.config import RunConfig

pytestmark = pytest.mark.ort


SHIPPED = ("mlp", "lenet", "resnet", "densenet", "vgg", "keras", "jax")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_model_shrinks_to_half_and_stays_as_good(train: Train, name: str) -> None:
    source = path(f"digits_{name}")
    result = train(source, target="params=50%", epochs=2, prune_interval=8)
    report = result.report
    assert report.reached
    assert report.after.parameters <= 0.5 * report.before.parameters
    assert report.after.metrics["accuracy"] >= report.before.metrics["accuracy"] - 0.03
    for size, file in ((report.before, source), (report.after, result.output)):
        found = load(file)
        assert size.parameters == cost.parameters(found)
        assert size.macs == cost.macs(found, analyze(found))
        assert size.bytes == file.stat().st_size
        assert size.latency_ms is not None
        assert size.latency_ms > 0
    test = read("digits").test
    assert test is not None
    spec = load(result.output).graph.inputs[0].shape
    assert spec is not None
    rest = [size for size in spec if isinstance(size, int)]
    x = (test.x[""].astype(np.float32) / EMBEDDED["digits"]).reshape(-1, *rest)
    score = accuracy(result.file, load(source).graph.outputs[-1].name or "", x, test.y)
    assert report.after.metrics["accuracy"] == pytest.approx(score, abs=1e-9)
    random = np.random.default_rng(0).normal(size=(4, *rest)).astype(np.float32)
    data = {result.file.graph.inputs[0].name or "": random}
    assert compare(result.model, result.file, data, device=DEVICE, tolerance=1e-6).holds
    removed = sum(
        size - sizes(result.file).get(group, 1) for group, size in sizes(load(source)).items()
    )
    assert report.exact + report.bounded == removed


def test_a_seed_fixes_every_byte_of_the_file(train: Train) -> None:
    options: dict[str, Any] = {"epochs": 1, "target": "params=50%", "prune_interval": 5}
    first, second, other = (
        train(path("digits_mlp"), seed=seed, **options).output.read_bytes() for seed in (3, 3, 4)
    )
    assert first == second
    assert first != other


def test_a_seed_fixes_the_records_but_for_the_durations(train: Train) -> None:
    def timeless(result: Result) -> list[Any]:
        return [
            (type(e).__name__, e.step, getattr(e, "loss", None), getattr(e, "metrics", None))
            for e in result.events
            if not isinstance(e, (Started, Finished))
        ]

    first, second = (train(path("digits_jax"), epochs=1, prune_interval=8) for _ in range(2))
    assert timeless(first) == timeless(second)


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_a_target_is_reached_and_reported(train: Train, kind: str) -> None:
    report = train(path("digits_lenet"), target=f"{kind}=40%", epochs=1).report
    before, after = (
        (size.parameters, size.macs)[kind == "macs"] for size in (report.before, report.after)
    )
    assert before is not None
    assert after is not None
    assert (report.target, report.reached) == (f"{kind}=40%", True)
    assert report.achieved == pytest.approx(after / before)
    assert after <= 0.4 * before


def test_a_target_out_of_reach_is_said_to_be_missed(train: Train) -> None:
    result = train(path("digits_jax"), target="params=50", epochs=1)
    assert result.report.reached is False
    assert result.report.after.parameters > 50
    assert all(size >= 1 for size in sizes(result.file).values())


@pytest.mark.parametrize("interval", [3, 7, 20, 41])
def test_a_target_is_reached_whatever_the_interval(train: Train, interval: int) -> None:
    options: dict[str, Any] = {"epochs": 2, "prune_interval": interval}
    assert train(path("digits_jax"), target="params=60%", **options).report.reached


def test_without_a_method_nothing_is_removed(train: Train) -> None:
    source = builders.mlp([64, 16, 10])
    result = train(source, method="none", epochs=3, learning_rate=0.01)
    assert sizes(result.file) == sizes(source)
    assert (result.report.exact, result.report.bounded) == (0, 0)
    assert not result.of(Pruned)
    metrics = result.report.after.metrics
    assert metrics["accuracy"] > 0.8 > result.report.before.metrics["accuracy"]


def test_groups_that_are_kept_keep_their_units(train: Train) -> None:
    source = load(path("digits_lenet"))
    first, *others = sizes(source)
    result = train(path("digits_lenet"), keep=f"^{first}$", target="params=50%", epochs=1)
    after = sizes(result.file)
    assert after[first] == sizes(source)[first]
    assert any(after[name] < sizes(source)[name] for name in others)


def test_keeping_all_groups_trains_only(train: Train) -> None:
    result = train(path("digits_jax"), keep=".", target="params=50%", epochs=1)
    assert sizes(result.file) == sizes(load(path("digits_jax")))
    assert result.report.reached is False
    assert result.report.steps > 0


def test_a_model_without_units_trains(train: Train) -> None:
    source = model("(float[N, 64] x) => (float[N, 10] y) <float[64, 10] w> { y = MatMul(x, w) }")
    result = train(source, epochs=1)
    assert result.report.after.parameters == 640
    assert not np.allclose(array(result.file, "w"), array(source, "w"))


def test_a_model_newer_than_the_runtime_is_trained_lowered_and_the_report_says_so(
    train: Train,
) -> None:
    source = model(
        """(float[N, 64] x) => (float[N, 10] y) <float[64, 8] w, float[8, 10] v> {
            h = MatMul(x, w) a = Relu(h) y = MatMul(a, v) }""",
        opset=24,
        ir_version=11,
    )
    result = train(source, target="params=70%", epochs=2)
    assert (result.file.graph.opset_imports[""], result.file.ir_version) == (24, 11)
    assert sum("is older than the model (opset 24, IR 11)" in n for n in result.report.notes) == 1


def test_validation_data_that_is_given_is_used_and_no_training_data_put_aside(
    train: Train,
) -> None:
    x, y = digits(160)
    source = builders.mlp([64, 16, 10])
    result = train(source, (x[:128], y[:128]), validation=(x[128:], y[128:]), epochs=2)
    assert result.report.steps == 2 * 4
    assert [event.split for event in result.of(Evaluated)] == ["validation"] * 2
    assert "metrics on 32 validation examples" in result.report.notes
    score = accuracy(result.file, "y", x[128:].reshape(-1, 64), y[128:])
    assert result.report.after.metrics["accuracy"] == pytest.approx(score)


def test_without_validation_there_are_no_metrics_and_the_last_step_is_kept(train: Train) -> None:
    x, y = digits(64)
    result = train(builders.mlp([64, 16, 10]), (x, y), validation_fraction=0.0, epochs=2)
    assert result.report.after.metrics == {}
    assert result.report.steps == 4
    assert any("no validation data" in note for note in result.report.notes)


def test_the_records_tell_the_run(train: Train, tmp_path: Path) -> None:
    result = train(path("digits_mlp"), target="params=50%", epochs=2)
    records = read_records(tmp_path / "run0")
    assert [type(record) for record in records] == [type(event) for event in result.events]
    assert isinstance(records[0], Started)
    assert isinstance(records[-1], Finished)
    assert records[-1].report["after"]["parameters"] == result.report.after.parameters
    pruned = result.of(Pruned)
    assert pruned
    parameters = [event.parameters for event in pruned]
    assert parameters == sorted(parameters, reverse=True)
    assert parameters[-1] == result.report.after.parameters
    assert sum(event.exact + event.bounded for event in pruned) == sum(
        sum(event.removed.values()) for event in pruned
    )
    assert sum(event.exact for event in pruned) == result.report.exact
    assert all(event.error <= event.tolerance for event in pruned)
    assert result.of(Progress)[-1].step == result.report.steps


def test_decoupled_shortcuts_are_not_trained_and_not_written(train: Train) -> None:
    source = path("digits_resnet")
    result = train(
        source, target="params=85%", epochs=1, prune_interval=8, residual="decouple-always"
    )
    assert result.report.reached
    assert result.of(Started)[0].parameters == result.report.before.parameters
    assert any("shortcuts decoupled" in note for note in result.report.notes)
    found = load(result.output)
    assert result.report.before.parameters == cost.parameters(load(source))
    assert result.report.after.parameters == cost.parameters(found)
    for name in found.graph.initializers:  # a product that took something over may remain
        if name.endswith("identity"):
            assert not np.array_equal(array(found, name), np.eye(*array(found, name).shape[:2]))


@pytest.mark.parametrize("number", [4, 8])
def test_groups_keep_multiples_or_fewer(train: Train, number: int) -> None:
    source = path("digits_lenet")
    result = train(source, target="params=50%", epochs=1, prune_interval=8, round_to=number)
    before, after = load(source), load(result.output)
    sizes_after = {group.name: group.size for group in analyze(after).groups}
    for group in analyze(before).groups:
        left = sizes_after.get(group.name, 1)
        assert left == group.size or left < number or left % number == 0
    assert result.report.after.parameters < result.report.before.parameters


def test_widths_are_rounded_where_a_target_is_asked_for() -> None:
    assert RunConfig().multiple == 1
    assert RunConfig(target="params=50%").multiple == 8
    assert RunConfig(target="params=50%", round_to=3).multiple == 3
    assert RunConfig(round_to=2).multiple == 2


def test_a_model_that_the_runtime_cannot_optimize_is_trained_and_the_report_says_so(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = session._open

    def failing(given: ir.Model, device: Device, *, optimize: bool) -> object:
        if optimize:
            raise ModelError("the runtime refuses the model: RemoveNode")
        return opened(given, device, optimize=False)

    source = model(DENSE)
    said = "the runtime's optimizations fail on this model: it was run without (ORT_DISABLE_ALL)"
    assert said not in train(source, examples(), epochs=1).report.notes
    monkeypatch.setattr(session, "_open", failing)
    assert said in train(source, examples(), epochs=1).report.notes
