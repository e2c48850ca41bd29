"""What a run is about: model, data, loss and device, brought together and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.stats import entropy

from onnxprune.data import (
    Data,
    Source,
    Split,
    check_target,
    fit,
    input_specs,
    read,
    split_validation,
)
from onnxprune.errors import DataError
from onnxprune.graph.shapes import settle, with_input_shapes
from onnxprune.model import load, model_input
from onnxprune.ops.registry import Sizes
from onnxprune.rewrite.inline import inline
from onnxprune.rewrite.untie import untie
from onnxprune.runtime.session import Device
from onnxprune.training.config import RunConfig
from onnxprune.training.losses import Objective, resolve

__all__ = ["Problem", "fit_data", "pose", "sized", "stream"]

_STREAMS = ("validation", "order", "probe", "verification")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Problem:
    """A model, the data that fits it, and how good predictions are judged.

    Attributes:
        model: as the file has it.
        train, validation, test: examples; validation is put aside from training data when none was
            given, and None when the configuration asks for no validation.
        objective: the loss, and the values it reads.
        batch_size: examples per step: the configuration's, or the model's when its batch axis is
            static.
        static_batch: whether every batch must have that size.
        notes: decisions the user should know about.
    """

    model: ir.Model
    config: RunConfig
    train: Split
    validation: Split | None
    test: Split | None
    objective: Objective
    batch_size: int
    static_batch: bool
    device: Device
    notes: tuple[str, ...]

    @property
    def trivial_loss(self) -> float:
        """Loss of the best constant prediction: the targets' entropy in nats, or their variance."""
        target = self.train.target
        assert target is not None
        if self.objective.kind == "mse":
            return float(np.var(target))
        _, counts = np.unique(target, return_counts=True)
        return float(entropy(counts))

    @property
    def judged(self) -> tuple[str, Split] | None:
        """What the report's metrics are measured on: test data, else validation data."""
        if self.test is not None:
            return "test", self.test
        return None if self.validation is None else ("validation", self.validation)


def stream(seed: int, name: str) -> np.random.Generator:
    """The generator of one concern; concerns never draw from each other's."""
    return np.random.default_rng([seed, _STREAMS.index(name)])


def pose(
    path: str | os.PathLike[str],
    data: Source,
    *,
    validation: Source | None,
    config: RunConfig,
) -> Problem:
    """Read model and data, choose the loss, and check that all of it fits together.

    Raises:
        InvalidModelError: the file is not a valid model.
        DataError: the data does not fit the model or the loss.
        ConfigError: no way to tell what to train, or an impossible option.
    """
    model = untie(inline(load(path)))
    fitted = fit_data(model, data, validation, config)
    shapes, _ = settle(sized(model, config))
    objective = resolve(
        _shaped(model, shapes), config.output_name, config.loss, fitted.train.target
    )
    splits = [
        None
        if split is None
        else check_target(split, objective.kind, objective.classes, shape=objective.shape)
        for split in (fitted.train, fitted.validation, fitted.test)
    ]
    train, given, test = splits
    assert train is not None
    if given is None and config.validation_fraction > 0:
        rng = stream(config.seed, "validation")
        train, given = split_validation(train, config.validation_fraction, rng)
    static = _static_batch(model)
    if static is not None and len(train) < static:
        raise DataError(
            f"{os.fspath(path)}: takes batches of {static} only, but there are {len(train)} "
            "training examples; give more, or export the model with a dynamic batch axis",
            expected=static,
            got=len(train),
        )
    notes = fitted.notes
    if static is not None and static != config.batch_size:
        notes += (f"the model takes batches of {static} only, so --batch-size is {static}",)
    return Problem(
        model=model,
        config=config,
        train=train,
        validation=given,
        test=test,
        objective=objective,
        batch_size=static or config.batch_size,
        static_batch=static is not None,
        device=Device(provider=config.provider, threads=config.threads),
        notes=notes,
    )


def sized(model: ir.Model, config: RunConfig) -> ir.Model:
    """A copy for analysis, with the input sizes that the user gave; `model` if there are none.

    The batch axis stays open where the model leaves it open: batches have other sizes.
    """
    sizes = {name: tuple(shape) for name, shape in config.input_shapes.items()}
    copy = with_input_shapes(model, sizes)
    declared = {value.name: value.shape for value in model_input(model)}
    for value in model_input(copy) if sizes else ():
        shape = declared[value.name]
        if value.name in sizes and (shape is None or not isinstance(shape[0], int)):
            first = "N" if shape is None else shape[0]
            value.shape = ir.Shape([first, *sizes[value.name][1:]])
    return copy


def fit_data(model: ir.Model, data: Source, validation: Source | None, config: RunConfig) -> Data:
    """The data as the inputs of `model` want it."""
    return fit(
        read(data, validation=validation),
        input_specs(model, config.input_shapes),
        scale=config.scale,
        mean=config.mean,
        std=config.std,
        layout=config.layout,
    )


def _static_batch(model: ir.Model) -> int | None:
    """The first size of the inputs, where it is a number."""
    for value in model_input(model):
        if value.shape is not None and len(value.shape) and isinstance(value.shape[0], int):
            return int(value.shape[0])
    return None


def _shaped(model: ir.Model, shapes: Mapping[str, Sizes]) -> ir.Model:
    """A copy whose values carry the settled sizes, for choosing the loss."""
    copy = model.clone()
    for node in copy.graph:
        for value in node.outputs:
            sizes = shapes.get(value.name or "")
            if sizes is not None:
                value.shape = ir.Shape(list(sizes))
    return copy
