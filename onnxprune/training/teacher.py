"""The original model as a teacher: what it computes for a batch, and what of that is asked for.

Its session is its own and its numbers never change, so that it stays what it is while the model
that learns from it loses units; where it would draw random numbers, typical ones stand. Where a
value inside the model has lost indices, `descend` knows which ones of the teacher are left.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.base import Array, Axis, Index
from onnxprune.errors import ConfigError
from onnxprune.gradients.lowering import evaluation_copy
from onnxprune.model import trainable_dtype
from onnxprune.runtime.session import Device, Runner
from onnxprune.runtime.verify import stilled
from onnxprune.training.losses import TEACHER

__all__ = ["Teacher", "descend", "hidden_values"]

_LISTED = 8  # names in a message


class Teacher:
    """Computes values of a model for batches.

    Args:
        model: left as it is.
        values: names of the values.
        device: where.
        size: examples at a time.
    """

    def __init__(
        self, model: ir.Model, values: Sequence[str], *, device: Device, size: int
    ) -> None:
        self._runner = Runner(stilled(evaluation_copy(model, values)), device)
        self._values, self._size = tuple(values), size

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """`batch`, and under TEACHER/value what the teacher computes for it.

        Raises:
            DataError: an input is missing, or has another dtype or shape.
        """
        count = len(next(iter(batch.values())))
        runs = []
        for start in range(0, count, self._size):
            part = {name: array[start : start + self._size] for name, array in batch.items()}
            runs.append(self._runner.run(part, self._values))
        found = {name: np.concatenate([run[name] for run in runs]) for name in self._values}
        return {**batch, **{f"{TEACHER}/{name}": array for name, array in found.items()}}


def hidden_values(model: ir.Model, pattern: str, output: str) -> tuple[str, ...]:
    """Names of the values inside the model that match, in graph order.

    Args:
        model: the user's graph, with types where they are known.
        pattern: regular expression, searched in names.
        output: the value that the model is to predict; what it does not depend on is left out.

    Raises:
        ConfigError: no regular expression, or no value matches.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"--loss {pattern}=distill-hidden: not a regular expression ({error})", pattern=pattern
        ) from error
    copy = evaluation_copy(model, [output])
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(copy)
    names = [
        value.name or ""
        for node in copy.graph
        for value in node.outputs
        if value.name and value.name != output and trainable_dtype(value.dtype)
    ]
    found = tuple(name for name in names if regex.search(name))
    if not found:
        listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
        raise ConfigError(
            f"--loss {pattern}=distill-hidden: no value of the model matches; there are {listed}",
            pattern=pattern,
        )
    return found


def descend(
    origins: Mapping[Axis, Index], kept: Mapping[Axis, Index], values: Collection[str]
) -> dict[Axis, Index]:
    """Which indices of the original model the axes of `values` have left, after one more removal.

    Args:
        origins: before it; an axis that never lost any is absent.
        kept: by it, in the numbering before.
        values: names of the values that are followed.
    """
    now = dict(origins)
    for axis, index in kept.items():
        if axis.value in values:
            now[axis] = origins[axis][index] if axis in origins else index
    return now
