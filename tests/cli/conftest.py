from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from commands import Run
from onnxprune_cli.main import main

MLP = """<ir_version: 8, opset_import: ["": 17]>
mlp (float[N, 4] features) => (float[N, 3] logits)
<float[4, 8] w = {%s}, float[8, 3] v = {%s}>
{ h = MatMul(features, w)  a = Relu(h)  logits = MatMul(a, v) }"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs the command line in the empty folder; bugs raise instead of becoming an exit code."""

    def invoke(*arguments: str | Path) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def lenet() -> Path:
    return Path(str(files("onnxprune_models"))) / "digits_lenet.onnx"


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    """A small model with 4 features and 3 classes, outside the current folder."""
    rng = np.random.default_rng(0)
    numbers = [", ".join(f"{value:.4f}" for value in rng.normal(size=n)) for n in (32, 24)]
    file = tmp_path / "mlp.onnx"
    onnx.save(onnx.parser.parse_model(MLP % tuple(numbers)), file)
    return file


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes arrays to an .npz file outside the current folder; x and y fit `mlp`."""

    def write(**arrays: Any) -> Path:
        file = tmp_path / "data.npz"
        x = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
        np.savez(file, **({"x": x, "y": np.arange(60) % 3} | arrays))
        return file

    return write
