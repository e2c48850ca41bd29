"""Models that take batches of one size: run on more examples, and compared with their open copies.

`in_batches` runs any number of examples through such a model; `is_same` is the proof that a copy
made by `graph.batch.opened` computes what the model does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.errors import ModelError
from onnxprune.runtime.session import Device, Runner
from onnxprune.runtime.verify import agreement, stilled, tolerance_of

__all__ = ["PROVING", "in_batches", "is_same"]

PROVING = 3
"""Batches of the model's own size on which `is_same` compares."""


def in_batches(runner: Runner, feeds: Mapping[str, Array], size: int) -> dict[str, Array]:
    """All outputs, whose first axes are examples, `size` examples at a time.

    Args:
        runner: of a model that takes batches of `size`.
        feeds: arrays of a multiple of `size` examples.
        size: of a batch.
    """
    count = len(next(iter(feeds.values())))
    runs = [
        runner.run({name: array[start : start + size] for name, array in feeds.items()})
        for start in range(0, count, size)
    ]
    return {name: np.concatenate([run[name] for run in runs]) for name in runner.outputs}


def is_same(
    model: ir.Model,
    copy: ir.Model,
    feeds: Mapping[str, Array],
    size: int,
    *,
    device: Device | None = None,
) -> bool:
    """Whether `copy` computes for many examples at once what `model` does in batches of `size`.

    Args:
        model: with a static batch axis.
        copy: the same, with an open one.
        feeds: arrays of `PROVING` * `size` examples.
        size: of the model's batches.
        device: where to run.
    """
    try:
        whole = Runner(stilled(copy), device=device, optimize=False).run(feeds)
        parts = in_batches(Runner(stilled(model), device=device, optimize=False), feeds, size)
    except (ModelError, ValueError):  # outputs without examples cannot be put together
        return False
    integers = [name for name, array in parts.items() if array.dtype.kind != "f"]
    if any(parts[name].shape != whole[name].shape for name in integers):
        return False
    return agreement(parts, whole, tolerance=tolerance_of(model)).holds
