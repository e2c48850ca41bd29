"""What ends a run before it wastes time, or hands out a broken model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from onnxprune.base import Snapshot
from onnxprune.errors import ConfigError, NonFiniteLossError
from onnxprune.methods import Pruner
from onnxprune.training.config import RunConfig

__all__ = ["check_finite", "check_target"]


def check_target(config: RunConfig, pruner: Pruner | None, before: Mapping[str, int]) -> None:
    """The target must be countable, and there for methods that only know what to remove.

    Args:
        config: of the run.
        pruner: its method.
        before: parameters and MACs of the model given.

    Raises:
        ConfigError: it is not.
    """
    goal = config.goal
    if goal is None and pruner is not None and pruner.needs_target:
        raise ConfigError(
            f"--method {config.method}: removes what matters least, and has to be told how much; "
            "give --target params=50% or the like",
            method=config.method,
        )
    if goal is not None and not before[goal.kind]:
        raise ConfigError(f"--target {goal}: the model has no {goal.kind} that could be counted")


def check_finite(snapshot: Snapshot, last_finite: float) -> None:
    """Never hand out a model whose last step broke it.

    Raises:
        NonFiniteLossError: a parameter is NaN or infinite.
    """
    for name, array in snapshot.parameters.items():
        if not np.isfinite(array).all():
            raise NonFiniteLossError(
                f"step {snapshot.step}: parameter {name} became NaN or infinite; lower the "
                "learning rate or clip gradients",
                step=snapshot.step,
                loss=math.nan,
                last_finite=last_finite,
            )
