"""The models that come with the package: each loads, is valid, and can be pruned."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxprune_models
import pytest
from checks import agreeing, changed
from strategies import random_plan

from onnxprune.graph.groups import analyze
from onnxprune.model import load, save
from onnxprune.rewrite.reference import reference

FILES = sorted(Path(onnxprune_models.__file__).parent.glob("*.onnx"))


def test_seven_models_are_shipped() -> None:
    assert len(FILES) == 7


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_checker_accepts_it(file: Path) -> None:
    onnx.checker.check_model(onnx.load(file), full_check=True)
    assert onnxprune_models.path(file.stem).samefile(file)


@pytest.mark.ort
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_random_plans_agree_with_the_reference(file: Path, tmp_path: Path) -> None:
    network = load(file)
    for seed in range(3):
        analysis = analyze(network)
        plan = random_plan(network, analysis, seed)
        assert plan.removed()
        assert changed(network, reference(network, analysis, plan))
        network = agreeing(network, analysis, plan, tolerance=1e-4)
    save(network, tmp_path / "small.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "small.onnx"), full_check=True)
    assert (tmp_path / "small.onnx").stat().st_size < file.stat().st_size


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no model named 'nothing'; available: digits_densenet"):
        onnxprune_models.path("nothing")
