from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.errors import TrainingError
from onnxprune.gradients import trial
from onnxprune.gradients.lowering import TrainingCopy, lower
from onnxprune.gradients.trial import attempt
from onnxprune.model import save
from onnxprune.runtime.session import Device
from onnxprune.training.loss_nodes import attach
from onnxprune.training.losses import TARGET, resolve
from onnxprune.training.run import train

pytestmark = pytest.mark.ort

# The engine aborts for a branch that captures what a node computes.
BRANCH = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x, float[4,4] p_w, float[4,3] p_v) => (float[N,3] y) {
  h = MatMul(x, p_w)
  s = ReduceSum<keepdims=0>(h)
  zero = Constant<value = float {0.0}>()
  c = Greater(s, zero)
  r = If(c) <then_branch = a () => (float[N,4] t) { t = Relu(h) },
             else_branch = b () => (float[N,4] e) { e = Neg(h) }>
  y = MatMul(r, p_v)
}"""
CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x, float[4,4] p_u, float[4,4] p_v, float[4,3] p_w) => (float[N,3] y) {
  a = MatMul(x, p_u)
  b = Tanh(a)
  c = MatMul(b, p_v)
  d = Sigmoid(c)
  y = MatMul(d, p_w)
}"""
TARGETS = {TARGET: np.array([0, 1, 2, 0, 1])}
FEEDS = {"x": np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32), **TARGETS}
UNGUARDED = (
    "import onnxprune.gradients.gradient as g; g.hide = lambda *_: {}; g.blocked = lambda *_: {}; "
    "from onnxprune.gradients.trial"
)


@pytest.fixture(autouse=True)
def _nothing_passed_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_passed", set())


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child meets the bare engine, without what keeps deadly graphs from it."""
    start = trial._START.replace("from onnxprune.gradients.trial", UNGUARDED)
    monkeypatch.setattr(trial, "_START", start)


def copy_of(model: ir.Model, *, lowered: bool = True) -> TrainingCopy:
    objective = resolve(model, None, "cross-entropy")
    if not lowered:
        return attach(TrainingCopy(model=model.clone()), [objective])
    return attach(lower(model, [objective.prediction], batch_norm="train"), [objective])


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The children that are started from here on."""
    started: list[Any] = []
    real = subprocess.run

    def run(*arguments: Any, **options: Any) -> Any:
        started.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(trial.subprocess, "run", run)
    return started


@pytest.mark.usefixtures("unguarded")
def test_an_abort_of_the_engine_is_an_error(model_from: Callable[..., ir.Model]) -> None:
    copy = copy_of(model_from(BRANCH), lowered=False)
    with pytest.raises(TrainingError, match="does not survive this model") as caught:
        attempt([copy], ["p_w", "p_v"], FEEDS, device=Device())
    assert caught.value.stage == "building the gradient"
    assert caught.value.cause == "SIGABRT" or sys.platform == "win32"


def test_a_graph_that_passed_is_not_tried_again(
    model_from: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = counted(monkeypatch)
    copy = copy_of(model_from(CHAIN))
    attempt([copy], ["p_u", "p_v", "p_w"], FEEDS, device=Device())
    attempt([copy], ["p_u", "p_v", "p_w"], FEEDS, device=Device())
    assert len(started) == 1
    other = copy_of(model_from(CHAIN.replace("Tanh", "Relu")))
    attempt([other], ["p_u", "p_v", "p_w"], FEEDS, device=Device())
    assert len(started) == 2


def test_a_refusal_of_the_engine_is_left_to_the_caller(
    model_from: Callable[..., ir.Model],
) -> None:
    copy = copy_of(model_from(CHAIN.replace("Tanh", "Det")), lowered=False)
    attempt([copy], ["p_u"], FEEDS, device=Device())


def test_an_endless_step_ends_at_the_limit(
    model_from: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_START", "while True: pass")
    monkeypatch.setattr(trial, "_BISECTED", 0.0)
    with pytest.raises(TrainingError, match="no end after") as caught:
        attempt([copy_of(model_from(CHAIN))], ["p_u"], FEEDS, device=Device(), limit=0.2)
    assert caught.value.stage == "starting"


def test_a_crash_is_traced_to_the_stretch_it_begins_with(
    model_from: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = (
        "import json, os, pathlib, sys; folder = pathlib.Path(sys.argv[2]); "
        "wanted = json.loads((folder / 'request.json').read_text())['parameters']; "
        "'p_v' in wanted and os.abort()"
    )
    monkeypatch.setattr(trial, "_START", crash)
    with pytest.raises(TrainingError, match="begins with the gradient of one of") as caught:
        attempt([copy_of(model_from(CHAIN))], ["p_u", "p_v", "p_w"], FEEDS, device=Device())
    assert caught.value.operators == ("MatMul (c)", "Sigmoid (d)", "MatMul (y)")


@pytest.mark.usefixtures("unguarded")
def test_a_run_on_a_deadly_model_leaves_nothing_behind(
    model_from: Callable[..., ir.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.onnx"
    save(model_from(BRANCH), file)
    monkeypatch.chdir(tmp_path)
    data = (np.tile(FEEDS["x"], (8, 1)), np.tile(TARGETS[TARGET], 8))
    with pytest.raises(TrainingError, match="does not survive this model"):
        train(file, data, loss="cross-entropy", epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_no_child_is_started_when_the_check_is_off(
    model_from: Callable[..., ir.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = counted(monkeypatch)
    file = tmp_path / "model.onnx"
    save(model_from(CHAIN), file)
    monkeypatch.chdir(tmp_path)
    data = (np.tile(FEEDS["x"], (8, 1)), np.tile(TARGETS[TARGET], 8))
    for check, count in (("off", 0), ("on", 1)):
        train(file, data, loss="cross-entropy", epochs=1, method="none", check=check)
        assert len(started) == count


def test_it_works_from_a_script_without_a_main_guard(
    model_from: Callable[..., ir.Model], tmp_path: Path
) -> None:
    save(model_from(CHAIN), tmp_path / "model.onnx")
    paths = [str(Path(entry or ".").resolve()) for entry in sys.path]
    (tmp_path / "script.py").write_text(
        f"import sys; sys.path[:] = {paths!r}\n"
        "import numpy as np, onnxprune\n"
        "x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)\n"
        "y = np.arange(40) % 3\n"
        "onnxprune.train('model.onnx', (x, y), loss='cross-entropy', epochs=1)\n"
        "print('trained once')\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split("\n")[0]) == (0, "trained once"), done.stderr
    assert (tmp_path / "model.pruned.onnx").is_file()


def test_inputs_may_have_any_name(model_from: Callable[..., ir.Model]) -> None:
    copy = copy_of(model_from(CHAIN.replace("x,", "file,").replace("(x", "(file")))
    feeds = {"file": FEEDS["x"], **TARGETS}
    attempt([copy], ["p_u", "p_v", "p_w"], feeds, device=Device())
    assert len(trial._passed) == 1


@pytest.mark.parametrize("start", ["import no_such_module", None])
def test_training_goes_on_where_no_child_can_be_started(
    start: str | None,
    model_from: Callable[..., ir.Model],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if start is None:
        monkeypatch.setattr(sys, "executable", "/no/such/python")
    else:
        monkeypatch.setattr(trial, "_START", start)
    attempt([copy_of(model_from(CHAIN))], ["p_u"], FEEDS, device=Device())
    assert "not tried in a child process" in caplog.text
    assert not trial._passed


def test_a_program_that_is_its_own_interpreter_is_not_started_again(
    model_from: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = counted(monkeypatch)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    attempt([copy_of(model_from(CHAIN))], ["p_u"], FEEDS, device=Device())
    assert not started
