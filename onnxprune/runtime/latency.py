"""How long models take, measured side by side so that a busy machine hits both alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.runtime.session import Device, Runner

__all__ = ["latencies"]

_PATIENCE = 5  # times the planned seconds, after which one round is enough


def latencies(
    models: Sequence[ir.Model],
    feeds: Mapping[str, Array],
    *,
    device: Device | None = None,
    seconds: float = 1.0,
) -> list[float]:
    """Median milliseconds per run of each model on one batch, the models taking turns.

    Args:
        models: with the same inputs.
        feeds: one batch.
        device: where to run.
        seconds: about how long to measure in all.
    """
    runners = [Runner(model, device=device or Device()) for model in models]
    start = time.perf_counter()
    for runner in runners:  # the first runs allocate
        runner.run(feeds)
        if time.perf_counter() < start + seconds:
            runner.run(feeds)
    times: list[list[float]] = [[] for _ in runners]
    while not _enough(len(times[0]), (time.perf_counter() - start) / seconds):
        for runner, taken in zip(runners, times, strict=True):
            before = time.perf_counter()
            runner.run(feeds)
            taken.append(time.perf_counter() - before)
    return [1000 * float(np.median(taken)) for taken in times]


def _enough(rounds: int, spent: float) -> bool:
    """Whether to stop after `rounds`, `spent` times the planned seconds: slow models get fewer."""
    if spent < 1:
        return rounds >= 1000
    return rounds >= (5 if spent < _PATIENCE else 1)
