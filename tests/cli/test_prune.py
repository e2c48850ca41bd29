from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from commands import Run, Save, refused


def test_prune_writes_a_smaller_model_a_recipe_and_a_table(
    run: Run, folder: Path, mlp: Path, save: Save
) -> None:
    before = mlp.read_bytes()
    result = run("prune", mlp, "--data", save(), "--target", "params=60%")
    assert result.exit_code == 0, result.output
    assert mlp.read_bytes() == before
    onnx.checker.check_model(str(folder / "mlp.pruned.onnx"), full_check=True)
    assert {file.name for file in folder.iterdir()} == {
        "mlp.pruned.onnx",
        "mlp.pruned.onnx.recipe.json",
    }
    for part in ("parameters", "MACs", "file size", "accuracy", "target params=60% reached"):
        assert part in result.stdout
    assert "0 steps" not in result.stdout
    assert "removed" in result.stderr


@pytest.mark.parametrize("flag", ["--json", "--quiet"])
def test_prune_without_progress(run: Run, folder: Path, mlp: Path, flag: str) -> None:
    result = run("prune", mlp, "--target", "params=60%", "-o", "small.onnx", flag)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    if flag == "--json":
        report = json.loads(result.stdout)
        assert report["reached"] is True
        assert report["after"]["parameters"] < report["before"]["parameters"] == 56
        assert report["difference"] > 0


def test_every_option_reaches_the_library(run: Run, folder: Path, mlp: Path) -> None:
    result = run(
        *("prune", mlp, "--target", "macs=50%", "--importance", "magnitude-l1"),
        *("--allocation", "global", "--round-to", "2", "--only", "w", "--seed", "3"),
        *("--input-shape", "features:2,4", "--no-metadata", "--threads", "1", "--json"),
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["after"]["macs"] == 28  # of one example
    assert not onnx.load(folder / "mlp.pruned.onnx").metadata_props


def test_a_recipe_is_replayed(run: Run, folder: Path, mlp: Path) -> None:
    assert run("prune", mlp, "--target", "params=60%", "-o", "a.onnx").exit_code == 0
    result = run("prune", mlp, "--recipe", "a.onnx.recipe.json", "-o", "b.onnx", "--json")
    assert result.exit_code == 0, result.output
    first, second = onnx.load(folder / "a.onnx"), onnx.load(folder / "b.onnx")
    assert first.graph == second.graph


def test_lossless_says_what_proves_it(run: Run, mlp: Path, save: Save) -> None:
    result = run("prune", mlp, "--data", save(), "--lossless")
    assert result.exit_code == 0, result.output
    assert "removed without loss: " in result.stdout
    assert "largest difference to the model given: " in result.stdout
    assert "100.00 % same top class" in result.stdout


def test_a_target_out_of_reach_is_no_failure_unless_strict(
    run: Run, folder: Path, mlp: Path
) -> None:
    refused(
        run("prune", mlp, "--target", "params=5%", "--strict"),
        "target params=5% not reached: 12.5 % remain; at least 7 parameters (12.5 %) must stay",
        folder,
        code=1,
    )
    result = run("prune", mlp, "--target", "params=5%")
    assert result.exit_code == 0
    assert "target params=5% not reached; 12.5 % remain" in result.stdout
    assert "at least 7 parameters" in result.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "nothing to do: give --target"),
        (("--target", "30%"), "expected what should remain, such as params=30%"),
        (("--target", "params=50%", "--lossless"), "exclude each other"),
        (("--target", "params=50%", "--importance", "magic"), "'magic' is not"),
        (("--target", "params=50%", "--round-to", "0"), "--round-to 0: expected at least 1"),
        (("--target", "params=50%", "--keep", "("), "--keep (: not a regular expression"),
        (("--target", "params=50%", "--only", "zebra"), "matches none of the 1 groups"),
        (("--target", "params=50%", "--input-shape", "image:1,4"), "image"),
        (("--target", "params=50%", "--data", "absent.npz"), "no such file"),
        (("--recipe", "absent.json"), "--recipe absent.json: cannot be read"),
        (("--lossless", "-o", "none/out.onnx"), "does not exist; create it"),
        (("--nonsense",), "No such option"),
    ],
)
def test_bad_requests_are_one_line(
    run: Run, folder: Path, mlp: Path, options: Sequence[str], says: str
) -> None:
    refused(run("prune", mlp, *options), says, folder)


def test_bad_models_and_bad_recipes_are_one_line(
    run: Run, folder: Path, mlp: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("hello, this is not a model")
    refused(run("prune", text, "--lossless"), "text.onnx", folder)
    refused(run("prune", mlp, "--recipe", text), "not a recipe", folder)
    refused(run("prune", mlp, "--lossless", "-o", mlp), "would overwrite", folder)
