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
from onnxprune.model import save
from onnxprune.reports import Pruned, Report, read_records

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

    def train(self, name: str, **changes: Any) -> Report:
        _, report = onnxprune.train(
            self.folder / "model.onnx",
            self.folder / "data.npz",
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

    monkeypatch.setattr("onnxprune.training.run.latencies", untimed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("place"))
    place.train("whole")
    removals = [e for e in read_records(place.folder / "whole") if isinstance(e, Pruned)]
    assert len(removals) > 2
    return place


def steps(place: Place, name: str) -> list[int]:
    folders = sorted((place.folder / name / "checkpoints").iterdir())
    return [int(folder.name.removeprefix("step-")) for folder in folders]


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
