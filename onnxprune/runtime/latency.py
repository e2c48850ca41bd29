"""How long models take, measured side by side so that a busy machine hits both alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.runtime.session import Device, Runner

__all__ = ["latencies"]


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
    for runner in runners:  # the first runs allocate
        runner.run(feeds)
        runner.run(feeds)
    times: list[list[float]] = [[] for _ in runners]
    end = time.perf_counter() + seconds
    while len(times[0]) < 5 or (time.perf_counter() < end and len(times[0]) < 1000):
        for runner, taken in zip(runners, times, strict=True):
            start = time.perf_counter()
            runner.run(feeds)
            taken.append(time.perf_counter() - start)
    return [1000 * float(np.median(taken)) for taken in times]
