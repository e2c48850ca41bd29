"""How good a model is on the user's labels, without training: for reports, and for limits.

What a report says is measured on test data where there is some. What decides how much goes is
measured on validation data, or else on the data given: nothing is chosen by looking at test data.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.data import Split, check_target
from onnxprune.oneshot.removal import Job
from onnxprune.runtime.session import Device
from onnxprune.training.evaluation import model_metrics
from onnxprune.training.losses import Objective, resolve

__all__ = ["Judge", "judge"]

_BATCH = 32


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Judge:
    """Labelled examples and what a model predicts of them.

    Attributes:
        name: of the part of the data: "test", "validation" or "given".
        split: the examples, with checked targets.
        objective: what is predicted.
        static: the only batch size that the model takes; None when it takes any.
        device: where models run.
    """

    name: str
    split: Split
    objective: Objective
    static: int | None
    device: Device

    @property
    def examples(self) -> str:
        """On what was judged, in words."""
        return f"{len(self.split)} {self.name} examples"

    def metrics(self, model: ir.Model) -> dict[str, float]:
        """By name, as `training.evaluation.metrics`."""
        return model_metrics(
            model,
            self.split,
            (self.objective,),
            batch_size=self.static or _BATCH,
            static=self.static is not None,
            device=self.device,
        )


def judge(model: ir.Model, job: Job, *, tested: bool) -> Judge | None:
    """The judge of a job; None without labels, or where nothing runs whole models.

    Args:
        model: the model given.
        job: with the data.
        tested: whether test data may be used.

    Raises:
        ConfigError: the model's output does not say what it predicts.
        DataError: the labels do not fit the output.
    """
    data = job.examples.data
    if data is None or job.device is None or job.parts:
        return None
    parts = {
        "test": data.test if tested else None,
        "validation": data.validation,
        "given": data.train,
    }
    name, split = next((name, part) for name, part in parts.items() if part is not None)
    if split.target is None:
        return None
    objective = resolve(model, None, "auto", split.target)
    split = check_target(split, objective.kind, objective.classes, shape=objective.shape)
    return Judge(
        name=name,
        split=split,
        objective=objective,
        static=job.examples.static,
        device=job.device,
    )
