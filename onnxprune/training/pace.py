"""How a run is laid out in steps: epochs, decisions, observations, the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnxprune import schedules
from onnxprune.methods import Course, Pruner
from onnxprune.training.config import RunConfig
from onnxprune.training.problem import Problem

__all__ = ["course", "learning_rate", "observe_every"]

_OBSERVE_EVERY = 16  # steps; an observing step costs up to half a step more
_CHECKS = 30  # a run has by default, as long as they find something to remove


def course(problem: Problem, interval: int | None = None) -> Course:
    """The layout of the run that `problem` describes.

    Args:
        problem: its data, batches and epochs.
        interval: between decisions, where it is known from an earlier part of the run.
    """
    config, count, size = problem.config, len(problem.train), problem.step_size
    epoch = count // size if problem.static_batch else math.ceil(count / size)
    steps = epoch * config.epochs
    chosen = interval or config.prune_interval or max(steps // _CHECKS, 1)
    return Course(steps=steps, epoch=epoch, interval=chosen)


def observe_every(pruner: Pruner | None, interval: int) -> int:
    """Steps from one observation to the next: as the method wants, or so that it costs little."""
    wanted = None if pruner is None else pruner.every
    return wanted or max(min(_OBSERVE_EVERY, interval // 2), 1)


def learning_rate(config: RunConfig, steps: int) -> Callable[[int], float]:
    """Step -> learning rate over the whole run; "step" falls to a tenth at 1/2 and 3/4."""
    known: dict[str, Callable[[], schedules.Schedule]] = {
        "constant": schedules.constant,
        "cosine": lambda: schedules.cosine(steps),
        "one-cycle": lambda: schedules.one_cycle(steps),
        "step": lambda: schedules.step([steps // 2, steps * 3 // 4]),
    }
    schedule = known[config.schedule]()
    return lambda step: config.rate * schedule(step)
