"""Runs that are killed, interrupted or prolonged go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import model
from runs import examples

import onnxprune
from onnxprune.errors import ConfigError, DataError
from onnxprune.model import save
from onnxprune.reports import (
    Evaluated,
    Event,
    Finished,
    Progress,
    Pruned,
    Report,
    Resumed,
    read_records,
)

pytestmark = pytest.mark.ort

# Both kinds of statistics that training changes, and random numbers.
NETWORK = """(float[N, 6] x) => (float[N, 3] y)
    <float[6, 16] w, float[16] b, float[16] scale, float[16] shift, float[16] mean, float[16] var,
     float[16, 12] u, float[12] c, float[12, 3] v, float ratio = {0.2}> {
    h = Gemm(x, w, b)  n = BatchNormalization(h, scale, shift, mean, var)  a = Relu(n)
    d, mask = Dropout(a, ratio)  g = Gemm(d, u, c)  e = Tanh(g)  y = MatMul(e, v) }"""
OPTIONS: dict[str, Any] = {
    "target": "params=50%",
    "epochs": 5,
    "batch_size": 16,
    "learning_rate": 0.01,
    "prune_interval": 7,
    "threads": 1,
    "check": "off",
    "round_to": 1,
    "checkpoint_every": "5steps",
}


class Place:
    """A folder with a model and data, and runs in it."""

    def __init__(self, folder: Path, network: str = NETWORK, **options: Any) -> None:
        self.folder = folder
        self.options = OPTIONS | options
        save(model(network), folder / "model.onnx")
        x, y = examples()
        np.savez(folder / "data.npz", x=x, y=y)
        (folder / "options.json").write_text(json.dumps(self.options))

    def train(self, name: str, *, data: Any = None, **changes: Any) -> Report:
        _, report = onnxprune.train(
            self.folder / "model.onnx",
            self.folder / "data.npz" if data is None else data,
            output=self.folder / f"{name}.onnx",
            run_directory=str(self.folder / name),
            **(self.options | changes),
        )
        return report

    def kill(self, moment: str) -> None:
        """Train in another process, which dies at `moment`."""
        shutil.rmtree(self.folder / "killed", ignore_errors=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        victim = Path(__file__).with_name("victim.py")
        done = subprocess.run(
            [sys.executable, str(victim), str(self.folder), moment],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr

    def resume(self, name: str, **changes: Any) -> Report:
        return onnxprune.train(resume=self.folder / name, **changes)[1]

    def steps(self, name: str) -> list[int]:
        """Of the checkpoints that are there."""
        folders = sorted((self.folder / name / "checkpoints").glob("step-*"))
        return [int(folder.name.removeprefix("step-")) for folder in folders]

    def records(self, name: str) -> list[dict[str, Any]]:
        """Without durations, and what a run says of its own place."""
        lines = (self.folder / name / "records.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        for record in found:
            record.pop("seconds", None)
            record.pop("config", None)
            for timed in ("seconds", "training_seconds", "output", "run_directory", "before"):
                record.get("report", {}).pop(timed, None)
            record.get("report", {}).get("after", {}).pop("latency_ms", None)
        return found

    def equal(self, first: str, second: str) -> bool:
        """Whether two runs left the same bytes, and the same records."""
        assert self.records(first) == self.records(second)
        files = [(self.folder / f"{name}.onnx").read_bytes() for name in (first, second)]
        return files[0] == files[1]


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    def untimed(models: Any, *_arguments: Any, **_options: Any) -> list[float]:
        return [1.0 for _ in models]

    monkeypatch.setattr("onnxprune.training.delivery.latencies", untimed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("place"))
    place.train("whole")
    removals = [e for e in read_records(place.folder / "whole") if isinstance(e, Pruned)]
    assert len(removals) > 2
    return place


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    "moment",
    ["event:1", "event:4", "event:9", "remove:1", "remove:3", "sync:1", "sync:9", "sync:40"],
)
def test_a_killed_run_goes_on_to_the_same_bits(undisturbed: Place, moment: str) -> None:
    place = undisturbed
    place.kill(moment)
    place.resume("killed")
    assert place.equal("killed", "whole")


class Stop:
    """A listener that interrupts at the n-th event of a kind."""

    def __init__(self, kind: type[Any], count: int) -> None:
        self.kind, self.left = kind, count

    def __call__(self, event: Event) -> None:
        if isinstance(event, self.kind):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


CALM = NETWORK.replace("float ratio = {0.2}", "float ratio = {0.0}")


@pytest.mark.parametrize("every", ["5steps", "1epoch", "10min"])
@pytest.mark.parametrize(("kind", "count"), [(Progress, 2), (Pruned, 2), (Evaluated, 3)])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    tmp_path: Path, every: str, kind: type[Any], count: int
) -> None:
    place = Place(tmp_path, CALM, checkpoint_every=every)
    place.train("whole")
    stopped = place.train("stopped", on_event=Stop(kind, count))
    assert any(note.startswith("interrupted at step ") for note in stopped.notes)
    assert place.steps("stopped") or (every, kind, count) == ("10min", Progress, 2)
    report = place.resume("stopped")
    assert not any("interrupted" in note for note in report.notes)
    assert place.equal("stopped", "whole")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_control_c_leaves_a_checkpoint_of_the_step_it_ended_with(tmp_path: Path) -> None:
    place = Place(tmp_path, CALM, checkpoint_every="10min")
    place.train("whole")

    def press(event: Event) -> None:
        if isinstance(event, Progress) and event.step == 20:
            signal.raise_signal(signal.SIGINT)

    report = place.train("stopped", on_event=press)
    assert f"interrupted at step 20 of {report_steps(place)}" in report.notes
    assert place.steps("stopped") == [20]
    seen: list[Event] = []
    place.resume("stopped", on_event=seen.append)
    assert isinstance(seen[0], Resumed)
    assert (seen[0].step, seen[0].steps) == (20, report_steps(place))
    assert place.equal("stopped", "whole")


def report_steps(place: Place) -> int:
    (finished,) = (e for e in read_records(place.folder / "whole") if isinstance(e, Finished))
    return int(finished.report["steps"])


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 3, "ema": 0.9, "optimizer": "momentum"},
        {"max_drop": 0.05, "patience": 2, "epochs": 8},
        {"method": "none", "target": None, "schedule": "one-cycle", "clip": 1.0},
        {"method": "demp", "method_options": {"strength": 0.05, "noise": 1e-3}},
        {"method": "mesimp", "method_options": {"k": 4, "cycle": 1}},
        {"method": "taylor", "optimizer": "sgd"},
        {"loss": ["distill", "^a$=distill-hidden"]},
        {"validation_fraction": 0.0},
        {
            "method_options": {"rewind": True, "rounds": 3, "alpha_fc": 0.8},
            "method": "nnrelief",
            "target": None,
            "ema": 0.9,
        },
    ],
    ids=lambda options: next(iter(options.values()) if "method" in options else iter(options)),
)
def test_every_kind_of_state_goes_on(tmp_path: Path, options: dict[str, Any]) -> None:
    place = Place(tmp_path, **options)
    place.train("whole")
    kind = Evaluated if options.get("validation_fraction", 1) else Progress
    place.train("stopped", on_event=Stop(kind, 2))
    place.resume("stopped")
    assert place.equal("stopped", "whole")


RECURRENT = """(float[N, 6] x) => (float[N, 3] y)
    <float[2, 48, 2] w, float[2, 48, 12] r, float[1, 40, 24] u, float[1, 40, 10] q,
     float[10, 3] v, int64[3] rows = {0, 3, 2}, int64[3] both = {0, 0, 24}, int64[1] axis = {0}> {
    s = Reshape(x, rows)  t = Transpose<perm = [1, 0, 2]>(s)
    h = LSTM<hidden_size = 12, direction = "bidirectional">(t, w, r)
    p = Transpose<perm = [0, 2, 1, 3]>(h)  f = Reshape(p, both)
    , last = LSTM<hidden_size = 10, clip = 3.0>(f, u, q)
    e = Squeeze(last, axis)  y = MatMul(e, v) }"""


def test_counters_of_both_directions_go_on(tmp_path: Path) -> None:
    options = {"method": "mesimp", "method_options": {"k": 3, "cycle": 1}, "target": "params=80%"}
    place = Place(tmp_path, RECURRENT, **options)
    place.train("whole")
    place.train("stopped", on_event=Stop(Pruned, 1))
    report = place.resume("stopped")
    assert sum("without sparser back propagation" in note for note in report.notes) == 1
    assert place.equal("stopped", "whole")


RANDOM = CALM.replace(", float ratio = {0.0}", "").replace(
    "d, mask = Dropout(a, ratio)", "r = RandomNormalLike<scale = 0.1>(a)  d = Add(a, r)"
)


@pytest.mark.parametrize("loss", ["cross-entropy", "distill"])
def test_a_model_that_draws_random_numbers_goes_on_to_the_same_bits(
    tmp_path: Path, loss: str
) -> None:
    place = Place(tmp_path, RANDOM, loss=loss)
    place.train("whole")
    place.train("stopped", on_event=Stop(Evaluated, 2))
    place.resume("stopped")
    assert place.equal("stopped", "whole")


def test_interruptions_on_and_on(undisturbed: Place) -> None:
    place = undisturbed
    place.train("stopped", on_event=Stop(Progress, 1))
    for _ in range(6):
        place.resume("stopped", on_event=Stop(Evaluated, 1))
    place.resume("stopped")
    assert place.equal("stopped", "whole")


def test_a_finished_run_trains_on_when_it_gets_more_epochs(tmp_path: Path) -> None:
    place = Place(tmp_path)
    first = place.train("run")
    with pytest.raises(ConfigError, match="the run is finished after 5 epochs; give more --epochs"):
        place.resume("run")
    report = place.resume("run", epochs=7)
    assert report.steps == first.steps // 5 * 7
    assert any("7 epochs instead of 5" in note for note in report.notes)
    epochs = [e.epoch for e in read_records(place.folder / "run") if isinstance(e, Evaluated)]
    assert epochs == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(ConfigError, match="--epochs 6: the run was started with 7"):
        place.resume("run", epochs=6)


def test_more_epochs_move_the_time_by_which_a_target_is_to_be_met(tmp_path: Path) -> None:
    place = Place(tmp_path, method="magnitude", epochs=2)
    place.train("run", on_event=Stop(Pruned, 1))
    place.resume("run", epochs=6)
    removals = [e.step for e in read_records(place.folder / "run") if isinstance(e, Pruned)]
    assert removals[0] == 7
    assert 12 < removals[-1] <= 36  # the middle of two epochs, and of six


def test_a_run_that_ended_by_patience_trains_on_with_more_of_it(tmp_path: Path) -> None:
    still: dict[str, Any] = {"method": "none", "optimizer": "sgd", "learning_rate": 1e-30}
    place = Place(tmp_path, **still, target=None, epochs=9, patience=2)
    place.train("run")
    says = "after 3 epochs, 2 of them without improvement; give a larger --patience to train on"
    with pytest.raises(ConfigError, match=says):
        place.resume("run", epochs=12)
    place.resume("run", patience=4)
    epochs = [e.epoch for e in read_records(place.folder / "run") if isinstance(e, Evaluated)]
    assert epochs == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 32}, r"--batch-size 32: the run was started with 16; leave it out"),
        ({"learning_rate": 0.02}, r"--lr 0\.02: the run was started with 0\.01"),
        ({"checkpoint_every": "1epoch"}, r"--checkpoint-every 1epoch: the run was started with"),
        ({"run_directory": "elsewhere"}, r"--run-dir elsewhere: the run was started with"),
    ],
)
def test_what_contradicts_the_run_is_refused(
    undisturbed: Place, changes: dict[str, Any], says: str
) -> None:
    before = sorted((undisturbed.folder / "whole").rglob("*"))
    with pytest.raises(ConfigError, match=says):
        undisturbed.resume("whole", **changes)
    assert sorted((undisturbed.folder / "whole").rglob("*")) == before


def test_another_model_or_other_data_are_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.train("run", on_event=Stop(Progress, 2))
    x, y = examples()
    np.savez(tmp_path / "other.npz", x=x + 1, y=y)
    with pytest.raises(ConfigError, match="other data than the run began with"):
        place.resume("run", data=tmp_path / "other.npz")
    save(model(NETWORK, seed=5), tmp_path / "other.onnx")
    with pytest.raises(ConfigError, match=r"other\.onnx is not the model the run began with"):
        place.resume("run", model=tmp_path / "other.onnx")


OWN = "(float[N, 3] y) => (float loss) { s = Mul(y, y)  loss = ReduceMean<keepdims = 0>(s) }"


def test_a_loss_of_ones_own_is_found_from_anywhere_and_must_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(model(OWN), tmp_path / "own.onnx")
    place = Place(tmp_path, CALM, loss="own.onnx")
    place.train("run", on_event=Stop(Progress, 2))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    save(model(OWN.replace("Mul(y, y)", "Abs(y)")), tmp_path / "own.onnx")
    with pytest.raises(ConfigError, match="a loss has changed since the run began"):
        place.resume("run")
    save(model(OWN), tmp_path / "own.onnx")
    assert place.resume("run").steps == 60


def test_other_targets_of_a_further_output_are_other_data(tmp_path: Path) -> None:
    x, y = examples()
    heads = CALM.replace("(float[N, 3] y)", "(float[N, 3] y, float[N, 12] e)")
    place = Place(tmp_path, heads, loss=["y=cross-entropy", "e=mse"])
    data = {"x": x, "y": y, "e": np.zeros((len(x), 12), np.float32)}
    place.train("run", data=data, on_event=Stop(Progress, 2))
    with pytest.raises(ConfigError, match="other data than the run began with"):
        place.resume("run", data=data | {"e": data["e"] + 1})


def test_a_run_without_checkpoints_is_not_gone_on_with(tmp_path: Path) -> None:
    place = Place(tmp_path, checkpoint_every="never", epochs=1)
    place.train("run")
    with pytest.raises(ConfigError, match="the run keeps no checkpoints"):
        place.resume("run", epochs=2)


def test_arrays_must_be_given_again(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.train("whole")
    place.train("run", data=examples(), on_event=Stop(Progress, 2))
    with pytest.raises(DataError, match="the run was given arrays as data; give them again"):
        place.resume("run")
    place.resume("run", data=examples())
    assert place.equal("run", "whole")


def test_options_that_change_nothing_may_change(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.train("run", on_event=Stop(Progress, 2))
    output = tmp_path / "moved.onnx"
    report = place.resume("run", output=output, threads=2, keep_checkpoints=1, batch_size=16)
    assert output.is_file()
    assert not (tmp_path / "run.onnx").samefile(output)
    assert len(place.steps("run")) == 1
    assert any("--threads 2 instead of 1: numbers may differ" in note for note in report.notes)


def test_no_run_there(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="holds no run"):
            onnxprune.train(resume=folder)


def test_a_folder_with_a_run_is_refused_with_the_way_on(undisturbed: Place) -> None:
    with pytest.raises(ConfigError, match="holds a run; continue it with --resume"):
        undisturbed.train("whole")


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such locks")
def test_a_run_that_is_going_on_is_not_resumed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    refused = []

    def try_it(event: Event) -> None:
        if isinstance(event, Pruned) and not refused:
            with pytest.raises(ConfigError, match="another process trains there"):
                place.resume("run")
            refused.append(event)

    place.train("run", on_event=try_it)
    assert refused
