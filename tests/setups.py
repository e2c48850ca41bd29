"""Graphs as ONNX text, and everything between a model and a session; fixtures that make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.base import Array, Snapshot
from onnxprune.gradients.gradient import GradientGraph, differentiate
from onnxprune.gradients.lowering import TrainingCopy, lower
from onnxprune.runtime.session import Runner
from onnxprune.training.loss_nodes import attach
from onnxprune.training.losses import LOSS, TARGET, Objective, resolve

SHARED = Path(__file__).parents[2] / "shared" / "models"


def normalized(activation: str, how: str = "momentum=0.9", *, softmax: bool = False) -> str:
    """A convolution, BatchNormalization with the attributes `how`, `activation`, a linear layer."""
    return f"""<ir_version: 8, opset_import: ["":17]>
net (float[N,3,6,6] x, float[8,3,3,3] p_w, float[8] p_scale, float[8] p_shift,
     float[8] p_stat_mean, float[8] p_stat_var, float[4,8] p_head) => (float[N,4] y)
{{
  c = Conv<pads=[1,1,1,1]>(x, p_w)
  n = BatchNormalization<{how}>(c, p_scale, p_shift, p_stat_mean, p_stat_var)
  h = {activation}(n)
  g = GlobalAveragePool(h)
  f = Flatten(g)
  {"l" if softmax else "y"} = Gemm<transB=1>(f, p_head)
  {"y = Softmax<axis=-1>(l)" if softmax else ""}
}}"""


def batch(size: int, *shape: int, seed: int = 0) -> dict[str, Array]:
    """Random inputs, of `normalized` where no shape is given, and random classes out of 4."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, *(shape or (3, 6, 6)))).astype(np.float32)
    return {"x": x, TARGET: rng.integers(0, 4, size)}


@dataclass(frozen=True)
class Setup:
    """Everything between a model and a session."""

    objective: Objective
    copy: TrainingCopy
    graph: GradientGraph
    snapshot: Snapshot

    def loss_of(self, feeds: Mapping[str, Array]) -> Callable[[Mapping[str, Array]], float]:
        """The loss on one batch, as a function of the parameters."""
        runner = Runner(self.graph.model)

        def loss(parameters: Mapping[str, Array]) -> float:
            arrays = {**self.snapshot.parameters, **self.snapshot.state, **parameters, **feeds}
            known = {name: arrays[name] for name in runner.inputs}
            return float(runner.run(known, [LOSS])[LOSS])

        return loss

    def gradients(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        runner = Runner(self.graph.model)
        arrays = {**self.snapshot.parameters, **self.snapshot.state, **feeds}
        results = runner.run({name: arrays[name] for name in runner.inputs})
        return {name: results[self.graph.gradients[name]] for name in self.graph.parameters}


def prepare_training(
    model: ir.Model,
    *,
    output: str | None = None,
    kind: str = "cross-entropy",
    batch_norm: Any = "train",
    parameters: tuple[str, ...] | None = None,
    dropout: bool = True,
    seed: int = 0,
    objective: Objective | None = None,
) -> Setup:
    objective = objective or resolve(model, output, kind)
    copy = lower(model, [objective.prediction], batch_norm=batch_norm, dropout=dropout, seed=seed)
    copy = attach(copy, [objective])
    constants = {
        name: value.const_value.numpy()
        for name, value in copy.model.graph.initializers.items()
        if value.const_value is not None
    }
    names = parameters or tuple(
        name for name in model.graph.initializers if name in constants and "stat_" not in name
    )
    graph = differentiate(copy.model, loss=LOSS, parameters=names, state=copy.state)
    snapshot = Snapshot(
        step=0,
        parameters={name: constants[name] for name in names},
        state={name: constants[name] for name in copy.state},
    )
    return Setup(objective=objective, copy=copy, graph=graph, snapshot=snapshot)


def filled(text: str, *, seed: int = 0, scale: float = 0.3) -> ir.Model:
    """The model in `text`; initializers declared without values get random ones.

    Names that contain "stat_var" are positive.
    """
    model = ir.from_onnx_text(text)
    rng = np.random.default_rng(seed)
    for value in [value for value in model.graph.inputs if (value.name or "").startswith("p_")]:
        shape = [int(size) for size in value.shape.numpy()] if value.shape is not None else []
        array = rng.normal(scale=scale, size=shape).astype(np.float32)
        if "stat_var" in (value.name or ""):
            array = np.abs(array) + 0.5
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    return model


@pytest.fixture
def training() -> Callable[..., Setup]:
    return prepare_training


@pytest.fixture
def model_from() -> Callable[..., ir.Model]:
    return filled


@pytest.fixture
def shared_model() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        path = SHARED / name
        if not path.is_file():
            pytest.skip(f"{path} is not here; it is no part of the project")
        return path

    return find


@pytest.fixture
def slope_error() -> Callable[..., float]:
    """Largest difference between a slope from gradients and one from central differences.

    Along one random direction per parameter, relative to the larger of both and 0.05.
    """

    def measure(setup: Setup, feeds: Mapping[str, Array], *, reach: float = 1e-2) -> float:
        loss, gradients = setup.loss_of(feeds), setup.gradients(feeds)
        rng = np.random.default_rng(1)
        worst = 0.0
        for name, gradient in gradients.items():
            value = setup.snapshot.parameters[name]
            direction = rng.normal(size=value.shape).astype(np.float32)
            direction /= max(float(np.linalg.norm(direction)), 1e-6)
            ahead = loss({name: value + np.float32(reach) * direction})
            behind = loss({name: value - np.float32(reach) * direction})
            numeric = (ahead - behind) / (2 * reach)
            analytic = float(np.sum(gradient.astype(np.float64) * direction))
            size = max(abs(numeric), abs(analytic), 0.05)
            worst = max(worst, abs(numeric - analytic) / size)
        return worst

    return measure
