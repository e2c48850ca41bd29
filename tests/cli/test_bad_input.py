"""Whatever is wrong: one line on stderr, exit code 2, and nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from commands import Run, Save, refused

# Both ways must find all that is wrong with model and data.
BOTH = pytest.mark.parametrize("way", [(), ("--dry-run",)], ids=["train", "dry-run"])


def test_no_data(run: Run, folder: Path, mlp: Path) -> None:
    refused(run("train", mlp), "nothing to train on; give --data FILE.npz", folder)


@BOTH
def test_missing_model(run: Run, folder: Path, save: Save, way: Sequence[str]) -> None:
    refused(run("train", "absent.onnx", "--data", save(), *way), "no such file", folder)


@pytest.mark.parametrize("command", ["inspect", "train"])
def test_a_file_that_is_not_onnx(
    run: Run, folder: Path, tmp_path: Path, save: Save, command: str
) -> None:
    file = tmp_path / "text.onnx"
    file.write_text("hello, this is not a model")
    data = ("--data", save()) if command == "train" else ()
    refused(run(command, file, *data), "text.onnx", folder)


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_truncated_model(
    run: Run, folder: Path, mlp: Path, save: Save, way: Sequence[str], share: float
) -> None:
    content = mlp.read_bytes()
    mlp.write_bytes(content[: int(share * len(content))])
    refused(run("train", mlp, "--data", save(), *way), "mlp.onnx", folder)


@BOTH
def test_a_model_the_checker_refuses(
    run: Run, folder: Path, mlp: Path, save: Save, way: Sequence[str]
) -> None:
    model = onnx.load(mlp)
    model.graph.node[0].input[0] = "nobody"
    onnx.save(model, mlp)
    refused(run("train", mlp, "--data", save(), *way), "refused by the ONNX checker", folder)


@BOTH
@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((60, 5), np.float32)}, "expected float32 (N, 4), got float32 (60, 5)"),
        ({"x": np.zeros((50, 4), np.float32)}, "x has 50 examples but y has 60"),
        ({"x": np.full((60, 4), np.nan)}, "x holds 240 values that are NaN or infinite"),
        ({"y": np.arange(60) % 4}, "labels lie in 0..3, but the model's output has 3 classes"),
        ({"y": np.arange(60) % 3 + 1}, "subtract 1"),
        ({"y": np.full(60, np.inf)}, "y holds 60 values"),
        ({"y": np.array(["cat"] * 60)}, "y must hold numbers"),
        ({"y": np.array([None] * 60)}, "pickled Python objects"),
    ],
)
def test_data_that_does_not_fit(
    run: Run, folder: Path, mlp: Path, save: Save, way: Sequence[str], arrays: Any, says: str
) -> None:
    refused(run("train", mlp, "--data", save(**arrays), *way), says, folder)


@BOTH
def test_arrays_for_other_inputs(
    run: Run, folder: Path, mlp: Path, tmp_path: Path, way: Sequence[str]
) -> None:
    file = tmp_path / "other.npz"
    np.savez(file, ids=np.zeros((6, 4)), mask=np.zeros((6, 4)), y=np.zeros(6, int))
    says = "no array for input features; expected arrays named features, got ids, mask"
    refused(run("train", mlp, "--data", file, *way), says, folder)


@BOTH
def test_data_files_that_cannot_be_read(
    run: Run, folder: Path, mlp: Path, save: Save, way: Sequence[str]
) -> None:
    refused(run("train", mlp, "--data", "absent.npz", *way), "no such file", folder)
    file = save()
    file.write_bytes(file.read_bytes()[:200])
    refused(run("train", mlp, "--data", file, *way), "not an .npz archive, or truncated", folder)


@BOTH
def test_an_unknown_input_name(
    run: Run, folder: Path, mlp: Path, save: Save, way: Sequence[str]
) -> None:
    result = run("train", mlp, "--data", save(), "--input-shape", "image:1,4", *way)
    refused(result, "--input-shape image: ", folder)
    assert "features" in result.stderr


@BOTH
def test_an_unknown_output_name(
    run: Run, folder: Path, mlp: Path, save: Save, way: Sequence[str]
) -> None:
    result = run("train", mlp, "--data", save(), "--output-name", "scores", *way)
    refused(result, "no such output", folder)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--epochs", "0"), "--epochs 0: expected an integer, at least 1"),
        (("--epochs", "many"), "'many' is not a valid integer"),
        (("--lr", "-1"), "--lr -1.0: expected a number, more than 0"),
        (("--lr", "nan"), "--lr nan"),
        (("--momentum", "1"), "at least 0 and less than 1"),
        (("--target", "30%"), "expected what should remain, such as params=30%"),
        (("--target", "params=0.3"), "write params=30% for a share"),
        (("--target", "macs=100%"), "more than 0% and less than 100%"),
        (("--method", "magic"), "'magic' is not"),
        (("--keep", "("), "--keep (: not a regular expression"),
        (("--mean", "a,b"), "expected numbers such as 0.485"),
        (("--max-drop", "x"), "expected a number such as 0.01 or 1%"),
        (("--input-shape", "1,2"), "expected name:1,3,224,224"),
        (("--input-shape", "features:0,4"), "expected sizes of at least 1"),
        (("--validation-fraction", "1"), "less than 1"),
        (("--nonsense",), "No such option"),
    ],
)
def test_impossible_options(
    run: Run, folder: Path, mlp: Path, save: Save, options: Sequence[str], says: str
) -> None:
    refused(run("train", mlp, "--data", save(), *options), says, folder)


def test_wrong_commands(run: Run, folder: Path) -> None:
    refused(run("shrink"), "No such command 'shrink'; see main --help", folder)
    refused(run("--loud"), "No such option '--loud'", folder)
    refused(run("inspect"), "Missing argument 'MODEL'; see main inspect --help", folder)


def test_outputs_that_would_destroy_something(
    run: Run, folder: Path, mlp: Path, save: Save, tmp_path: Path
) -> None:
    data = save()
    (tmp_path / "soft.onnx").symlink_to(mlp)
    (tmp_path / "hard.onnx").hardlink_to(mlp)
    for name in ("mlp.onnx", "soft.onnx", "hard.onnx", "here/../mlp.onnx", "data.npz"):
        result = run("train", mlp, "--data", data, "-o", tmp_path / name)
        refused(result, "would overwrite", folder)
    for name, says in (("none/out.onnx", "does not exist; create it"), ("here", "is a folder")):
        refused(run("train", mlp, "--data", data, "-o", tmp_path / name), says, folder)


@pytest.mark.ort
@BOTH
def test_nothing_to_train(
    run: Run, folder: Path, mlp: Path, save: Save, way: Sequence[str]
) -> None:
    result = run("train", mlp, "--data", save(), "--freeze", ".", *way)
    refused(result, "nothing to train", folder)


@pytest.mark.ort
@BOTH
@pytest.mark.parametrize("option", ["--max-drop", "--patience"])
def test_options_that_need_validation_data(
    run: Run, folder: Path, mlp: Path, save: Save, way: Sequence[str], option: str
) -> None:
    without = ("--validation-fraction", "0", option, "1", *way)
    result = run("train", mlp, "--data", save(), *without)
    refused(result, f"{option} 1: needs validation data; give --val", folder)


def test_outputs_that_would_destroy_weights_beside_the_model(
    run: Run, folder: Path, mlp: Path, save: Save, tmp_path: Path
) -> None:
    for name in ("b.onnx", "b.onnx.data", "b.onnx.recipe.json"):
        ir.save(ir.load(mlp), tmp_path / "a.onnx", external_data=name, size_threshold_bytes=0)
        before = (tmp_path / name).read_bytes()
        for command in (("train", "--data", str(save())), ("prune", "--target", "params=50%")):
            output = ("-o", tmp_path / "b.onnx")
            result = run(command[0], tmp_path / "a.onnx", *command[1:], *output)
            refused(result, f"would overwrite {(tmp_path / name).resolve()}", folder)
        assert (tmp_path / name).read_bytes() == before
        (tmp_path / name).unlink()


@BOTH
def test_outputs_that_would_destroy_a_loss(
    run: Run, folder: Path, mlp: Path, save: Save, tmp_path: Path, way: Sequence[str]
) -> None:
    loss = tmp_path / "loss.onnx"
    loss.write_bytes(mlp.read_bytes())
    result = run("train", mlp, "--data", save(), "--loss", loss, "-o", loss, *way)
    refused(result, "would overwrite", folder)
    assert loss.read_bytes() == mlp.read_bytes()
