"""Whole runs: what goes in, what comes out, what the report says, and how runs end early."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from graphs import array, feeds, model
from onnxprune_cli.main import main
from onnxprune_models import builders, path

import onnxprune
from onnxprune.base import Array, Axis, Plan
from onnxprune.data import EMBEDDED, read
from onnxprune.errors import DataError, NonFiniteLossError
from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.graph.parameters import trained
from onnxprune.model import load, opset, save
from onnxprune.reports import (
    Evaluated,
    Event,
    Finished,
    Progress,
    Pruned,
    Report,
    Started,
    read_records,
)
from onnxprune.runtime.latency import latencies
from onnxprune.runtime.session import Device, Runner
from onnxprune.runtime.verify import compare
from onnxprune.training import loop
from onnxprune.training.config import RunConfig
from onnxprune.training.problem import pose
from onnxprune.training.pruning import Stage, apply, inputs_of, removable
from onnxprune.training.rounds import begin, opened

pytestmark = pytest.mark.ort

SHIPPED = ("mlp", "lenet", "resnet", "densenet", "vgg", "keras", "jax")
DEVICE = Device(threads=1)


@dataclass(frozen=True)
class Result:
    """What a run left."""

    model: ir.Model
    report: Report
    output: Path
    events: list[Event] = field(default_factory=list)

    @property
    def file(self) -> ir.Model:
        return load(self.output)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


Train = Callable[..., Result]
SHRINK: Mapping[str, Any] = {
    "target": "params=50%",
    "epochs": 4,
    "learning_rate": 0.01,
    "prune_interval": 4,
}


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs `onnxprune.train`, and checks what holds of every run."""
    count = iter(range(100))
    briefly = functools.partial(latencies, seconds=0.05)
    monkeypatch.setattr("onnxprune.training.run.latencies", briefly)

    def work(
        source: Path | ir.Model, data: Any = "digits", *, interrupt: Any = None, **options: Any
    ) -> Result:
        number = next(count)
        if isinstance(source, ir.Model):
            file = tmp_path / f"model{number}.onnx"
            save(source, file)
        else:
            file = source
        before = file.read_bytes()
        events: list[Event] = []

        def listen(event: Event) -> None:
            events.append(event)
            if interrupt is not None and interrupt(events):
                raise KeyboardInterrupt

        output = tmp_path / f"out{number}.onnx"
        arguments = {"threads": 1, "run_directory": str(tmp_path / f"run{number}")} | options
        found, report = onnxprune.train(file, data, output=output, on_event=listen, **arguments)
        assert file.read_bytes() == before
        _check_interface(load(file), output)
        return Result(found, report, output, events)

    return work


def _check_interface(before: ir.Model, output: Path) -> None:
    onnx.checker.check_model(str(output), full_check=True)
    after = load(output)
    assert opset(after) == opset(before)
    assert after.ir_version == before.ir_version

    def described(values: Any) -> list[tuple[Any, ...]]:
        return [(v.name, v.dtype, str(v.shape)) for v in values if not v.is_initializer()]

    assert described(after.graph.inputs) == described(before.graph.inputs)
    assert [v.name for v in after.graph.outputs] == [v.name for v in before.graph.outputs]


def digits(count: int = 400) -> tuple[Array, Array]:
    part = read("digits").train
    assert part.y is not None
    return part.x[""][:count].astype(np.float32) / EMBEDDED["digits"], part.y[:count]


def sizes(found: ir.Model) -> dict[str, int]:
    return {group.name: group.size for group in analyze(found).groups}


def accuracy(found: ir.Model, output: str, x: Array, y: Array) -> float:
    (name,) = Runner(found, DEVICE).inputs
    scores = Runner(found, DEVICE).run({name: x}, [output])[output]
    return float(np.mean(scores.argmax(axis=1) == y))


# --- what a run gives back ---------------------------------------------------------------------


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
    removed = sum(size - sizes(result.file)[group] for group, size in sizes(load(source)).items())
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


# --- how runs end early ------------------------------------------------------------------------


def test_training_ends_when_nothing_improves(train: Train) -> None:
    result = train(
        path("digits_lenet"),
        method="none",
        optimizer="sgd",
        learning_rate=1e-30,
        patience=2,
        epochs=9,
    )
    assert [event.epoch for event in result.of(Evaluated)] == [1, 2, 3]
    assert "no improvement for 2 epochs, stopped after epoch 3" in result.report.notes


def test_a_metric_that_fell_too_far_brings_back_the_model_before(train: Train) -> None:
    source = path("digits_jax")
    options: dict[str, Any] = {"target": "params=5%", "optimizer": "sgd", "learning_rate": 1e-9}
    options["prune_interval"] = 10
    result = train(source, epochs=4, max_drop=0.05, **options)
    (note,) = [note for note in result.report.notes if "fell by more than --max-drop" in note]
    before, after = result.report.before.metrics, result.report.after.metrics
    assert after["accuracy"] > before["accuracy"] - 0.1
    evaluated = {event.step: event for event in result.of(Evaluated)}
    kept = int(note.split("step ")[1].split(" ")[0])
    removed = sum(sum(event.removed.values()) for event in result.of(Pruned) if event.step <= kept)
    assert result.report.exact + result.report.bounded == removed
    assert kept == 0 or evaluated[kept].parameters == result.report.after.parameters
    last = result.of(Evaluated)[-1]
    assert last.metrics["accuracy"] < before["accuracy"] - 0.05
    without = train(source, epochs=4, **options).report
    assert without.after.metrics["accuracy"] < after["accuracy"]


def first_removal(events: list[Event]) -> bool:
    return isinstance(events[-1], Pruned)


def step_after_removals(events: list[Event]) -> bool:
    removals = [event for event in events if isinstance(event, Pruned)]
    return len(removals) > 1 and isinstance(events[-1], Progress)


def evaluation_after_removals(events: list[Event]) -> bool:
    return isinstance(events[-1], Evaluated) and any(isinstance(e, Pruned) for e in events)


@pytest.mark.parametrize(
    "interrupt", [first_removal, step_after_removals, evaluation_after_removals]
)
def test_an_interruption_leaves_a_valid_and_smaller_model(
    train: Train, interrupt: Callable[[list[Event]], bool]
) -> None:
    source = path("digits_lenet")
    result = train(source, target="params=50%", epochs=5, interrupt=interrupt)
    report, pruned = result.report, result.of(Pruned)
    assert any(note.startswith("interrupted at step ") for note in report.notes)
    assert 0 < report.steps < 5 * 41
    assert report.after.parameters == pruned[-1].parameters < report.before.parameters
    assert report.exact + report.bounded == sum(sum(e.removed.values()) for e in pruned)
    data = feeds(result.file, batch=8)
    assert compare(result.model, result.file, data, device=DEVICE, tolerance=1e-6).holds
    assert report.after.metrics["accuracy"] > 0.9
    assert isinstance(result.events[-1], Finished)
    again = train(result.output, epochs=1)
    assert again.report.before.parameters == report.after.parameters


def test_an_interruption_while_the_next_round_opens_keeps_the_removal(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return opened(*arguments, **options)

    monkeypatch.setattr(loop, "opened", interrupted)
    result = train(path("digits_lenet"), target="params=50%", epochs=3)
    assert result.report.after.parameters < result.report.before.parameters
    assert result.report.after.metrics["accuracy"] > 0.9


def command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command line in a process of its own, with the packages that this one sees."""
    code = "from onnxprune_cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    return [sys.executable, "-c", code, *arguments], environment


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_control_c_saves_the_smaller_model(tmp_path: Path) -> None:
    source, output = path("digits_lenet"), tmp_path / "small.onnx"
    line, environment = command(
        "train", str(source), "--data", "digits", "--epochs", "500", "--target", "params=50%",
        "--prune-interval", "20", "-o", str(output), "--run-dir", str(tmp_path / "run"),
    )  # fmt: skip
    process = subprocess.Popen(
        line,
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = []
    for text in process.stderr:
        seen.append(text)
        if "removed" in text:
            break
    time.sleep(0.2)  # the handler of this very line may not be through yet
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, "".join(seen) + errors
    assert "interrupted at step" in out
    assert "Traceback" not in errors
    onnx.checker.check_model(str(output), full_check=True)
    found = load(output)
    assert cost.parameters(found) < cost.parameters(load(source))
    x, y = digits()
    assert accuracy(found, found.graph.outputs[0].name or "", x.reshape(-1, 1, 8, 8), y) > 0.9


def test_a_loss_that_becomes_nan_ends_the_run_without_a_file(tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    options = ["--data", "digits", "--optimizer", "sgd", "--lr", "1e30", "--quiet"]
    paths = ["-o", str(output), "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(main, ["train", str(path("digits_lenet")), *options, *paths])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: step ")
    assert "lower the learning rate" in result.stderr
    assert not output.exists()
    assert not (tmp_path / "run" / "last.onnx").exists()


def test_a_loss_that_becomes_nan_later_leaves_the_last_evaluated_model(tmp_path: Path) -> None:
    # Gradient descent on a linear model: the rate of one-cycle rises until it diverges.
    source = model("(float[N, 4] x) => (float[N, 1] y) <float[4, 1] w> { y = MatMul(x, w) }")
    file, output = tmp_path / "linear.onnx", tmp_path / "small.onnx"
    save(source, file)
    x = np.random.default_rng(0).normal(size=(320, 4)).astype(np.float32)
    options: dict[str, Any] = {
        "loss": "mse",
        "optimizer": "sgd",
        "schedule": "one-cycle",
        "learning_rate": 6.0,
        "epochs": 30,
        "run_directory": str(tmp_path / "run"),
    }
    with pytest.raises(NonFiniteLossError, match=r"the model of the last evaluation is in .*last"):
        onnxprune.train(file, (x, x.sum(axis=1)), output=output, **options)
    assert not output.exists()
    kept = load(tmp_path / "run" / "last.onnx")
    assert np.isfinite(array(kept, "w")).all()


# --- moments, normalization --------------------------------------------------------------------


def posed(tmp_path: Path, source: ir.Model, **options: Any) -> tuple[Any, Stage]:
    file = tmp_path / "posed.onnx"
    save(source, file)
    config = RunConfig(threads=1, **options)
    problem = pose(file, digits(), validation=None, config=config)
    analysis = removable(problem.model, config)
    names = trained(problem.model, analysis).parameters
    return problem, Stage(
        model=problem.model, analysis=analysis, snapshot=begin(problem, problem.model, names)
    )


def stepped(problem: Any, stage: Stage, steps: int) -> Stage:
    round_ = opened(problem, stage.model, stage.analysis, stage.snapshot, [], frozenset())
    with round_.session as session:
        for step in range(steps):
            batch = problem.train.batch(np.arange(32 * step, 32 * step + 32) % len(problem.train))
            session.train_step(batch, learning_rate=0.05)
        snapshot = session.snapshot()
    return Stage(model=stage.model, analysis=stage.analysis, snapshot=snapshot)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_moments_are_sliced_along_with_the_parameters(tmp_path: Path, optimizer: str) -> None:
    problem, stage = posed(tmp_path, builders.mlp([64, 20, 12, 10]), optimizer=optimizer)
    stage = stepped(problem, stage, 8)
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


# --- models of all kinds -----------------------------------------------------------------------

DENSE = """(float[N, 6] x) => (float[N, 3] y) <float[6, 16] w, float[16] b, float[16, 3] v> {
    h = Gemm(x, w, b)  a = Relu(h)  y = MatMul(a, v) }"""


def examples(count: int = 200, features: int = 6) -> tuple[Array, Array]:
    x = np.random.default_rng(3).normal(size=(count, features)).astype(np.float32)
    return x, x[:, :3].argmax(axis=1)


def halved(result: Result) -> None:
    assert result.report.reached
    assert result.report.after.parameters <= 0.5 * result.report.before.parameters


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


def test_a_static_batch_axis_sets_the_batch_size(train: Train) -> None:
    source = model(DENSE.replace("float[N,", "float[10,"))
    result = train(source, examples(205), **SHRINK)
    halved(result)
    assert result.report.steps == 4 * (len(examples(205)[0]) * 9 // 10 // 10)
    assert any("takes batches of 10 only" in note for note in result.report.notes)


def test_fewer_examples_than_a_static_batch_are_refused(train: Train) -> None:
    source = model(DENSE.replace("float[N,", "float[64,"))
    with pytest.raises(DataError, match="takes batches of 64 only, but there are 36 training"):
        train(source, examples(40))


def test_an_input_shape_is_for_the_analysis_only(train: Train) -> None:
    result = train(model(DENSE), examples(), input_shapes={"x": (1, 6)}, **SHRINK)
    halved(result)
    assert not any("batch" in note for note in result.report.notes)
