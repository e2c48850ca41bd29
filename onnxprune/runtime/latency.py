"""How long models take, measured side by side so that a busy machine hits both alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.runtime.session import Device, Runner

__all__ = ["latencies", "taking_turns"]

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
    return taking_turns([partial(runner.run, feeds) for runner in runners], seconds=seconds)


def taking_turns(
    works: Sequence[Callable[[], Any]], *, seconds: float, quantile: float = 0.5
) -> list[float]:
    """Milliseconds per call of each of `works`, which are called in turns.

    Args:
        works: what is measured.
        seconds: about how long to measure in all.
        quantile: of the calls' times, in [0, 1]: a low one where other programs disturb.
    """
    start = time.perf_counter()
    for work in works:  # the first runs allocate
        work()
        if time.perf_counter() < start + seconds:
            work()
    times: list[list[float]] = [[] for _ in works]
    while not _enough(len(times[0]), (time.perf_counter() - start) / seconds):
        for work, taken in zip(works, times, strict=True):
            before = time.perf_counter()
            work()
            taken.append(time.perf_counter() - before)
    return [1000 * float(np.quantile(taken, quantile)) for taken in times]


def _enough(rounds: int, spent: float) -> bool:
    """Whether to stop after `rounds`, `spent` times the planned seconds: slow models get fewer."""
    if spent < 1:
        return rounds >= 1000
    return rounds >= (5 if spent < _PATIENCE else 1)
