from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from commands import Run, Save

from onnxprune.reports import RunDirectory, read_records


def test_help_lists_the_commands(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("train", "inspect", "env"):
        assert command in result.stdout
        assert run(command, "-h").exit_code == 0
    assert "onnxprune" in run("--version").stdout


def test_help_states_the_defaults(run: Run) -> None:
    text = " ".join(run("train", "--help").stdout.split())
    for part in ("[default: 32]", "[default: 30]", "[default: apoptosis]", "params=30%"):
        assert part in text


@pytest.mark.parametrize("command", ["train", "prune"])
def test_help_says_that_the_output_is_replaced(run: Run, command: str) -> None:
    text = " ".join(run(command, "--help").stdout.split())
    assert "an existing file of that name is replaced" in text


def test_env_lists_versions(run: Run) -> None:
    result = run("env")
    assert f"onnx {onnx.__version__}" in " ".join(result.stdout.split())
    assert json.loads(run("env", "--json").stdout)["onnx"] == onnx.__version__


def test_inspect_shows_groups_and_reasons(run: Run, folder: Path, lenet: Path) -> None:
    result = run("inspect", lenet)
    assert result.exit_code == 0
    assert "groups of units that can be removed" in result.stdout
    assert "at most removable" in result.stdout
    assert "graph output" in result.stdout
    assert result.stderr == ""
    assert list(folder.iterdir()) == []


def test_inspect_as_json(run: Run, lenet: Path) -> None:
    found = json.loads(run("inspect", lenet, "--json").stdout)
    assert found["groups"]
    assert 0 < found["removable_parameters"] < found["parameters"]


@pytest.mark.ort
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_dry_run_shows_everything_and_writes_nothing(
    run: Run, folder: Path, lenet: Path, form: str
) -> None:
    flags = ["--json"] if form == "json" else []
    result = run("train", lenet, "--data", "digits", "--target", "params=30%", "--dry-run", *flags)
    assert result.exit_code == 0
    assert list(folder.iterdir()) == []
    if form == "json":
        found = json.loads(result.stdout)
        assert found["config"]["target"] == "params=30%"
        assert found["config"]["learning_rate"] > 0
        assert found["examples"] == 1437
        assert found["inspection"]["groups"]
    else:
        assert "params=30%" in result.stdout
        assert "groups of units that can be removed" in result.stdout


@pytest.mark.ort
def test_train_writes_a_smaller_model_and_a_run_directory(
    run: Run, folder: Path, mlp: Path, save: Save
) -> None:
    before = mlp.read_bytes()
    result = run("train", mlp, "--data", save(), "--epochs", "2", "--run-dir", "r")
    assert result.exit_code == 0, result.output
    assert mlp.read_bytes() == before
    onnx.checker.check_model(str(folder / "mlp.pruned.onnx"), full_check=True)
    assert "parameters" in result.stdout
    assert "epoch 2" in result.stderr
    assert read_records(RunDirectory(folder / "r").path)
    assert json.loads((folder / "r" / "config.json").read_text())["epochs"] == 2


@pytest.mark.ort
@pytest.mark.parametrize("flag", ["--json", "--quiet"])
def test_train_without_progress(run: Run, folder: Path, mlp: Path, save: Save, flag: str) -> None:
    result = run("train", mlp, "--data", save(), "--epochs", "1", "-o", "small.onnx", flag)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert (folder / "small.onnx").is_file()
    if flag == "--json":
        report = json.loads(result.stdout)
        assert report["before"]["parameters"] == 56
        assert report["output"] == "small.onnx"


def test_train_goes_on_with_a_run(run: Run, folder: Path, mlp: Path, save: Save) -> None:
    options = ("--epochs", "2", "--run-dir", "r", "-o", "small.onnx", "--threads", "1")
    assert run("train", mlp, "--data", save(), *options).exit_code == 0
    (folder / "small.onnx").unlink()
    refused = run("train", "--resume", "r")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: --resume r: the run is finished after 2 epochs")
    refused = run("train", "--resume", "r", "--epochs", "3", "--batch-size", "7")
    assert refused.exit_code == 2
    assert "--batch-size 7: the run was started with 32" in refused.stderr
    result = run("train", "--resume", "r", "--epochs", "3")
    assert result.exit_code == 0
    assert "r: goes on at step 4 of 6" in result.stderr
    assert (folder / "small.onnx").is_file()


def test_a_model_is_needed_unless_a_run_goes_on(run: Run) -> None:
    result = run("train", "--data", "digits")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Missing argument 'MODEL'")
    result = run("train", "--resume", "absent")
    assert result.exit_code == 2
    assert "absent: holds no run" in result.stderr
