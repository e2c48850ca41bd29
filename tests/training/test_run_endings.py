"""How runs end early: patience, a metric that fell, an interruption, a loss that broke."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import array, feeds, model
from onnxprune_cli.main import main
from onnxprune_models import path
from runs import (
    DEVICE,
    Train,
    accuracy,
    command,
    digits,
)

import onnxprune
from onnxprune.errors import NonFiniteLossError
from onnxprune.graph import cost
from onnxprune.model import load, save
from onnxprune.reports import (
    Evaluated,
    Event,
    Finished,
    Progress,
    Pruned,
    read_records,
)
from onnxprune.runtime.verify import compare
from onnxprune.training import loop
from onnxprune.training.rounds import opened

pytestmark = pytest.mark.ort


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
    (note,) = [note for note in result.report.notes if "stayed below --max-drop" in note]
    before, after = result.report.before.metrics, result.report.after.metrics
    assert after["accuracy"] > before["accuracy"] - 0.1
    left, kept = (int(words.split(" ")[0]) for words in note.split("step ")[1:])
    removed = sum(sum(event.removed.values()) for event in result.of(Pruned) if event.step <= kept)
    assert result.report.exact + result.report.bounded == removed
    evaluated = result.of(Evaluated)
    assert evaluated[-1].parameters == result.report.after.parameters
    assert any(e.metrics["accuracy"] < before["accuracy"] - 0.05 for e in evaluated)
    assert not [event for event in result.of(Pruned) if event.step > left]
    without = train(source, epochs=4, **options).report
    assert without.after.metrics["accuracy"] < after["accuracy"]


def test_a_metric_that_falls_at_the_end_brings_back_the_model_before(train: Train) -> None:
    source = path("digits_jax")
    options: dict[str, Any] = {"target": "params=5%", "optimizer": "sgd", "learning_rate": 1e-9}
    result = train(source, epochs=1, max_drop=0.05, prune_interval=10, **options)
    assert "--max-drop: step 0 was kept, the last that is known to hold it" in result.report.notes
    assert result.report.after.parameters == result.report.before.parameters


def test_an_interruption_keeps_no_removal_that_nobody_has_judged(train: Train) -> None:
    source = path("digits_lenet")
    result = train(source, target="params=50%", epochs=5, max_drop=0.01, interrupt=first_removal)
    assert result.report.after.parameters == result.report.before.parameters
    assert (result.report.exact, result.report.bounded) == (0, 0)


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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for one process")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)], ids=["control_c", "sigterm"]
)
def test_a_signal_saves_the_smaller_model(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
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
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, "".join(seen) + errors
    finished = [e for e in read_records(tmp_path / "run") if isinstance(e, Finished)]
    assert any(note.startswith("interrupted at step") for note in finished[-1].report["notes"])
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
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
