"""What a model is looked at with: the user's data, or made-up inputs.

`gather` brings either into one form; `observe` and `differences` run models over it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Observable, Observations
from onnxprune.data import TARGET, Data, Source, Split, fit, input_specs, read
from onnxprune.data.synthetic import synthetic
from onnxprune.graph.batch import fixed_batches
from onnxprune.graph.groups import Analysis
from onnxprune.graph.shapes import dtypes
from onnxprune.instrument.statistics import attach
from onnxprune.model import model_input
from onnxprune.oneshot.config import PruneConfig
from onnxprune.runtime.session import Device, Runner
from onnxprune.runtime.verify import agreement, stilled
from onnxprune.windows import merge_windows

__all__ = ["Difference", "Examples", "differences", "gather", "observe"]

_BATCH = 256  # examples per forward pass
_FIRST = 32  # examples in the batch that removals are verified on
_IMAGES = 4  # made-up examples where they are images, 8 elsewhere


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Examples:
    """Inputs for a model, in batches that it takes.

    Attributes:
        data: the user's, None when inputs are made up.
        made_up: one batch of made-up inputs; empty when there is data.
        static: the only batch size that the model takes; None when it takes any.
        notes: what was decided, one sentence each.
    """

    data: Data | None
    made_up: Mapping[str, Array]
    static: int | None
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Split, ...]:
        """Training, validation and test data, as far as there is some."""
        if self.data is None:
            return ()
        found = (self.data.train, self.data.validation, self.data.test)
        return tuple(split for split in found if split is not None)

    def __len__(self) -> int:
        if self.data is None:
            return max(
                (len(array) if array.ndim else 1 for array in self.made_up.values()), default=1
            )
        return sum(len(split) for split in self.parts)

    @property
    def first_count(self) -> int:
        """Examples in `first`."""
        if self.data is None:
            return len(self)
        return self.static or min(_FIRST, len(self.data.train))

    @property
    def first(self) -> dict[str, Array]:
        """One batch to verify removals on."""
        if self.data is None:
            return dict(self.made_up)
        split = self.data.train
        return _inputs(split.batch(np.arange(self.first_count) % len(split)))

    def batches(self, *, everything: bool) -> Iterator[tuple[dict[str, Array], int]]:
        """Batches and how many examples of each count; a static last one is filled up.

        Args:
            everything: all parts instead of the training data.
        """
        if self.data is None:
            yield dict(self.made_up), len(self)
            return
        for split in self.parts if everything else (self.data.train,):
            size = self.static or _BATCH
            for start in range(0, len(split), size):
                count = min(size, len(split) - start)
                rows = np.arange(start, start + (self.static or count))
                rows[count:] = start + np.arange(len(rows) - count) % count
                yield _inputs(split.batch(rows)), count


def _inputs(batch: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array for name, array in batch.items() if not name.startswith(TARGET)}


def gather(
    model: ir.Model, source: Source | None, config: PruneConfig, *, count: int | None = None
) -> Examples:
    """The data in `source` as the model wants it, or made-up inputs when there is none.

    Args:
        model: not changed.
        source: the user's, or None.
        config: the options.
        count: of made-up examples, where the model leaves that open.
    """
    shapes = {name: tuple(sizes) for name, sizes in config.input_shapes.items()}
    static = next(iter(fixed_batches(model).values()), None)
    if source is None:
        images = any(len(value.shape or ()) > 3 for value in model_input(model))
        rng = np.random.default_rng(config.seed)
        usual = _IMAGES if images else 2 * _IMAGES
        feeds = synthetic(model, rng, examples=count or usual, input_shapes=shapes)
        return Examples(data=None, made_up=feeds, static=static)
    data = fit(
        read(source),
        input_specs(model, shapes),
        scale=config.scale,
        mean=config.mean,
        std=config.std,
        layout=config.layout,
    )
    return Examples(data=data, made_up={}, static=static, notes=data.notes)


def observe(
    model: ir.Model,
    analysis: Analysis,
    axes: Iterable[Axis],
    observables: Iterable[Observable],
    examples: Examples,
    *,
    device: Device,
    everything: bool = False,
) -> Observations:
    """Statistics of `axes` over the examples; axes of integer values are left out."""
    types = dtypes(model)
    floats = [axis for axis in axes if (t := types.get(axis.value)) and t.is_floating_point()]
    ranks = {name: len(sizes) for name, sizes in analysis.shapes.items()}
    instrumented, collector = attach(model, floats, observables, ranks)
    if not collector.names:
        return {}
    runner = Runner(instrumented, device=device)
    seen: Observations = {}
    for feeds, _ in examples.batches(everything=everything):
        seen = merge_windows(seen, collector.collect(runner.run(feeds, collector.names)))
    return seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two models differ over all examples.

    Attributes:
        error: largest absolute difference of any output.
        relative: the same, over the largest magnitude of that output in its batch.
        same: share in [0, 1] of examples whose largest output is the same; None without classes.
        examples: how many there were.
    """

    error: float
    relative: float
    same: float | None
    examples: int


def differences(
    before: ir.Model, after: ir.Model, examples: Examples, *, classes: str | None, device: Device
) -> Difference:
    """Compare two models over all examples, without graph optimizations or random numbers.

    Args:
        before: one model.
        after: another with the same inputs and outputs.
        examples: data or made-up inputs.
        classes: name of an output (N, C) with one number per class; None when there is none.
        device: where to run.
    """
    first = Runner(stilled(before), device=device, optimize=False)
    second = Runner(stilled(after), device=device, optimize=False)
    error = relative = 0.0
    same = total = 0
    for feeds, count in examples.batches(everything=True):
        expected, actual = first.run(feeds), second.run(feeds)
        found = agreement(expected, actual)
        error, relative = max(error, found.error), max(relative, found.relative)
        total += count
        if classes is not None:
            labels = [outputs[classes][:count].argmax(axis=1) for outputs in (expected, actual)]
            same += int((labels[0] == labels[1]).sum())
    return Difference(
        error=error,
        relative=relative,
        same=same / total if classes is not None and total else None,
        examples=total,
    )
