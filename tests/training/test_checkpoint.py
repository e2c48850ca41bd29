"""Checkpoints on the disk: when they are written, what survives damage and a full disk."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import model
from runs import DENSE, examples

import onnxprune
from onnxprune.base import Snapshot
from onnxprune.errors import ConfigError, DataError
from onnxprune.model import constants, load, save
from onnxprune.reports import RunDirectory
from onnxprune.training import checkpoint as storage
from onnxprune.training.cadence import Cadence, parse_cadence
from onnxprune.training.checkpoint import Checkpoint, Writer, read_checkpoint
from onnxprune.training.config import RunConfig
from onnxprune.training.keeper import Keeper, newest
from onnxprune.training.pruning import Stage, removable
from onnxprune.training.tally import Mark, Tally

FIRST = Snapshot(step=0, parameters={})


def stage(step: int) -> Stage:
    """A stage of a small network with moments, one of them of a type the file does not have."""
    network = model(DENSE)
    rng = np.random.default_rng(step)
    held = {name: constants(network)[name].const_value.numpy() for name in ("w", "b", "v")}  # type: ignore[union-attr]
    arrays = {n: rng.normal(size=a.shape).astype(np.float32) for n, a in held.items()}
    arrays["b"] = arrays["b"].astype(np.float64)
    moments = {"m": {name: rng.normal(size=a.shape) for name, a in held.items()}}
    snapshot = Snapshot(step=step, parameters=arrays, moments=moments)
    return Stage(model=network, analysis=removable(network, RunConfig()), snapshot=snapshot)


def taken(step: int, *marks: Stage) -> Checkpoint:
    best = Mark(stage=marks[0], metric=0.5, loss=1.0) if marks else None
    tally = Tally(epochs=step, best=best, last=best)
    return Checkpoint(
        stage=stage(step), state=(step,), tally=tally, interval=3, seconds=0.5, records=0
    )


@pytest.fixture
def first() -> Stage:
    return replace(stage(0), snapshot=FIRST)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.open(tmp_path / "run")
    run.records.touch()
    return run


def keeper(directory: RunDirectory, first: Stage, **options: Any) -> Keeper:
    return Keeper(directory, first, RunConfig(checkpoint_every="1step", **options), epoch_steps=10)


def kept(directory: RunDirectory) -> list[str]:
    return sorted(path.name for path in (directory.path / "checkpoints").iterdir())


def same(found: Snapshot, expected: Snapshot) -> None:
    assert found.step == expected.step
    assert list(found.parameters) == list(expected.parameters)
    for slot in expected.moments:
        for name, array in expected.moments[slot].items():
            np.testing.assert_array_equal(found.moments[slot][name], array)
    for name, array in expected.parameters.items():
        assert found.parameters[name].dtype == array.dtype
        np.testing.assert_array_equal(found.parameters[name], array)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path, first: Stage) -> None:
    made = taken(7, stage(4))
    Writer(first).write(tmp_path / "step-7", made)
    found = read_checkpoint(tmp_path / "step-7", first, RunConfig())
    same(found.stage.snapshot, made.stage.snapshot)
    assert (found.state, found.interval, found.step, found.tally.epochs) == ((7,), 3, 7, 7)
    assert found.tally.best is not None
    assert found.tally.last is not None
    assert found.tally.best.stage is found.tally.last.stage
    assert made.tally.best is not None
    same(found.tally.best.stage.snapshot, made.tally.best.stage.snapshot)
    names = [group.name for group in found.stage.analysis.groups]
    assert names == [group.name for group in made.stage.analysis.groups]
    assert load(tmp_path / "step-7" / "model-7.onnx")  # a plain model, for anybody


def test_names_that_groups_have_from_before_removals_come_back(
    tmp_path: Path, first: Stage
) -> None:
    made = taken(7)
    names = made.stage.analysis.names
    before = replace(made.stage.analysis, names={f"old {n}": axes for n, axes in names.items()})
    analysis = removable(made.stage.model, RunConfig(), before=before)
    assert {group.name[:4] for group in analysis.groups} == {"old "}
    made = replace(made, stage=replace(made.stage, analysis=analysis))
    Writer(first).write(tmp_path / "step-7", made)
    found = read_checkpoint(tmp_path / "step-7", first, RunConfig())
    assert found.stage.analysis.names == analysis.names


def test_a_stage_that_the_last_checkpoint_has_is_not_written_again(
    tmp_path: Path, first: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def noted(found: Any, path: Path) -> None:
        written.append(path.name)
        save(found, path, external=True)

    monkeypatch.setattr(storage, "save", noted)
    writer, best = Writer(first), stage(4)
    writer.write(tmp_path / "step-7", taken(7, best))
    writer.write(tmp_path / "step-9", taken(9, best))
    assert written == ["model-7.onnx", "model-4.onnx", "model-9.onnx"]
    shutil.rmtree(tmp_path / "step-7")
    found = read_checkpoint(tmp_path / "step-9", first, RunConfig())
    assert found.tally.best is not None
    same(found.tally.best.stage.snapshot, best.snapshot)


def test_the_last_ones_are_kept(directory: RunDirectory, first: Stage) -> None:
    keep = keeper(directory, first, keep_checkpoints=2)
    for step in (1, 2, 3):
        keep.keep(taken(step))
    assert kept(directory) == ["step-000000002", "step-000000003"]
    assert not keep.notes


@pytest.mark.parametrize("name", ["arrays.npz", "state.json", "manifest.json", "model-3.onnx"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"{")])
def test_a_damaged_checkpoint_leads_to_the_one_before(
    directory: RunDirectory, first: Stage, name: str, damage: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for step in (2, 3):
        keeper(directory, first).keep(taken(step))
    (directory.path / "checkpoints" / ".step-000000004.part").mkdir()
    damage(directory.path / "checkpoints" / "step-000000003" / name)
    with caplog.at_level(logging.WARNING):
        found = newest(directory, first, RunConfig())
    assert found is not None
    assert found.step == 2
    assert "going back to the one before" in caplog.text
    assert kept(directory) == ["step-000000002"]


def test_nothing_but_damage_is_said(directory: RunDirectory, first: Stage) -> None:
    assert newest(directory, first, RunConfig()) is None
    keeper(directory, first).keep(taken(2))
    (directory.path / "checkpoints" / "step-000000002" / "arrays.npz").write_bytes(b"")
    with pytest.raises(DataError, match="no checkpoint can be read"):
        newest(directory, first, RunConfig())
    assert kept(directory) == ["step-000000002"]


def test_a_full_disk_ends_nothing(
    directory: RunDirectory, first: Stage, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    keep = keeper(directory, first, keep_checkpoints=1)
    keep.keep(taken(2))

    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(np, "savez", full)
        keep.keep(taken(3))
    says = "the checkpoint of step 3 could not be written (No space left on device); that of step 2"
    assert keep.notes[0].startswith(says)
    assert says in caplog.text
    assert kept(directory) == ["step-000000002"]
    keep.keep(taken(4))
    assert kept(directory) == ["step-000000004"]


@pytest.mark.ort
def test_a_run_whose_checkpoints_fail_ends_well_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    save(model(DENSE), tmp_path / "model.onnx")
    output = tmp_path / "out.onnx"
    _, report = onnxprune.train(
        *(tmp_path / "model.onnx", examples()),
        output=output, epochs=1, check="off", threads=1, run_directory=str(tmp_path / "run"),
    )  # fmt: skip
    assert output.is_file()
    assert any("could not be written (No space left" in note for note in report.notes)


@pytest.mark.parametrize(
    ("text", "cadence"),
    [
        ("1epoch", Cadence(epochs=1)),
        (" 3 epochs ", Cadence(epochs=3)),
        ("500steps", Cadence(steps=500)),
        ("1.5min", Cadence(seconds=90)),
        ("never", Cadence()),
    ],
)
def test_cadences_are_read(text: str, cadence: Cadence) -> None:
    assert parse_cadence(text) == cadence


@pytest.mark.parametrize("text", ["", "5", "0steps", "1.5epochs", "-1min", "1h", "often"])
def test_other_cadences_are_explained(text: str) -> None:
    with pytest.raises(ConfigError, match="expected such as 1epoch, 500steps, 10min, or never"):
        RunConfig(checkpoint_every=text)


def test_candidates_follow_from_the_steps_alone() -> None:
    assert Cadence(epochs=2).stride(30, draws=True) == 60
    assert Cadence(steps=7).stride(30, draws=False) == 7
    assert Cadence(seconds=60).stride(30, draws=False) == 1
    assert Cadence(seconds=60).stride(30, draws=True) == Cadence().stride(9, draws=True) == 500


def test_minutes_pass_between_checkpoints_and_more_where_they_are_dear(
    directory: RunDirectory, first: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    config = RunConfig(checkpoint_every="1min")
    keep = Keeper(directory, first, config, epoch_steps=10, clock=lambda: now[0])
    assert not keep.is_due()
    now[0] = 60.0
    assert keep.is_due()

    def slow(self: Writer, folder: Path, _checkpoint: Checkpoint) -> None:
        folder.mkdir()
        now[0] += 9.0

    monkeypatch.setattr(Writer, "write", slow)
    keep.keep(taken(1))
    now[0] = 69.0 + 299.0  # 9 seconds are 3 % of 300
    assert not keep.is_due()
    now[0] += 1.1
    assert keep.is_due()
