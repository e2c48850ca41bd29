from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import ConfigError, DataError
from onnxprune.reports import (
    Evaluated,
    Event,
    Finished,
    Progress,
    Pruned,
    RunDirectory,
    Started,
    read_records,
)

EVENTS: tuple[Event, ...] = (
    Started(model="m.onnx", parameters=9, macs=20, groups=1, units=3, config={"mean": None}),
    Progress(step=1, steps=10, epoch=0, loss=2.5, parameters=9),
    Evaluated(step=1, epoch=0, split="validation", metrics={"accuracy": 0.5}, parameters=9),
    Pruned(
        step=1,
        removed={"w": 2},
        exact=1,
        bounded=1,
        error=1e-7,
        tolerance=1e-5,
        rolled_back=("v",),
        parameters=5,
        macs=11,
        seconds=0.1,
    ),
    Finished(report={"target": None}),
)


def test_events_survive_the_file(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "m")
    for event in EVENTS:
        run.append(event)
    assert read_records(run.path) == EVENTS
    assert read_records(run.records) == EVENTS
    kinds = [json.loads(line)["type"] for line in run.records.read_text().splitlines()]
    assert kinds == ["started", "progress", "evaluated", "pruned", "finished"]


def test_every_event_is_in_the_file_at_once(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "m")
    for count, event in enumerate(EVENTS, start=1):
        run.append(event)
        assert len(read_records(run.path)) == count


def test_nan_and_numpy_numbers_are_valid_json(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "m")
    run.append(Progress(step=np.int64(3), steps=9, epoch=0, loss=math.inf, parameters=1))  # type: ignore[arg-type]
    run.append(Evaluated(step=3, epoch=0, split="test", metrics={"auc": math.nan}, parameters=1))
    assert "NaN" not in run.records.read_text()
    progress, evaluated = read_records(run.path)
    assert isinstance(progress, Progress)
    assert progress.step == 3
    assert math.isnan(progress.loss)
    assert isinstance(evaluated, Evaluated)
    assert math.isnan(evaluated.metrics["auc"])


def test_what_is_not_known_stays_a_dict(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    newer = [{"type": "merged", "units": 3}, {"type": "progress", "step": 1}, {"units": 1}]
    file.write_text("".join(json.dumps(record) + "\n" for record in newer))
    assert list(read_records(file)) == newer


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "m")
    run.append(EVENTS[1])
    with run.records.open("a") as file:
        file.write('{"type": "progr')
    assert read_records(run.path) == EVENTS[1:2]


@pytest.mark.parametrize("line", ["no json", "[1]"])
def test_damage_elsewhere_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text(f'{{"type": "x"}}\n{line}\n')
    with pytest.raises(DataError, match="line 2 is not a record") as caught:
        read_records(file)
    assert caught.value.line == 2


def test_no_records() -> None:
    with pytest.raises(DataError, match="cannot be read; give the folder of a run"):
        read_records("/nowhere")


def test_folders_are_numbered(tmp_path: Path) -> None:
    paths = [RunDirectory.create(tmp_path / "runs", "lenet").path.name for _ in range(3)]
    assert paths == ["lenet-1", "lenet-2", "lenet-3"]


def test_a_given_folder_must_be_free(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "a" / "b")
    assert RunDirectory.open(run.path) == run
    run.write_config({"seed": 0, "mean": (0.5,)}, {"model": "m.onnx"})
    assert json.loads((run.path / "config.json").read_text()) == {"seed": 0, "mean": [0.5]}
    assert run.read_config() == ({"seed": 0, "mean": [0.5]}, {"model": "m.onnx"})
    with pytest.raises(ConfigError, match="holds a run; continue it with --resume"):
        RunDirectory.open(run.path)
    (run.path / "run.json").unlink()
    assert RunDirectory.open(run.path) == run  # it died before it began
    (run.path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="not empty; choose another"):
        RunDirectory.open(run.path)
    with pytest.raises(ConfigError, match="cannot be made"):
        RunDirectory.open(run.path / "config.json" / "c")
