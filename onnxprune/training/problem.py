"""What a run is about: model, data, loss and device, brought together and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.stats import entropy

from onnxprune.base import Array
from onnxprune.data import (
    IGNORED,
    TARGET,
    Data,
    Source,
    Split,
    fit,
    input_specs,
    read,
    split_validation,
)
from onnxprune.data.synthetic import synthetic
from onnxprune.errors import ConfigError, DataError, InvariantError
from onnxprune.graph.batch import fixed_batches, opened
from onnxprune.graph.shapes import settle, with_input_shapes
from onnxprune.model import load, model_input
from onnxprune.ops.registry import Sizes
from onnxprune.rewrite.inline import inline
from onnxprune.rewrite.untie import untie
from onnxprune.runtime.batches import PROVING, is_same
from onnxprune.runtime.session import Device
from onnxprune.training.config import RunConfig
from onnxprune.training.goals import divergence_of_mean, goals, target_names, taught_values
from onnxprune.training.losses import Objective
from onnxprune.training.teacher import Teacher

__all__ = ["Problem", "fit_data", "pose", "read_model", "sized", "stream", "with_sizes"]

_TAUGHT = 1024  # examples from which a teacher's spread is estimated
_STREAMS = ("validation", "order", "probe", "verification")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Problem:
    """A model, the data that fits it, and how good predictions are judged.

    Attributes:
        model: as the file has it.
        train, validation, test: examples; validation is put aside from training data when none was
            given, and None when the configuration asks for no validation.
        objectives: the terms of the loss; metrics are about the first.
        teacher: computes what the original model says of a batch; None when no term asks for it.
        examples: training examples given, those that were put aside for validation included.
        trivial_loss: of the best constant prediction: the targets' entropy in nats, or their
            variance; the mean of these where the model predicts several values. Of several terms
            the weighted sum; custom ones and values inside the model count nothing.
        batch_size: examples per pass: the configuration's, or the model's when it takes no others.
        static_batch: whether every pass must have that size.
        notes: decisions the user should know about.
        own_batch: how many examples the model's own graph takes at once; None: any number. Where
            passes are not bound to it, `unfixed` copies are trained.
        shortcuts: names of the matrices that decouple shortcuts (`rewrite.residual`).
    """

    model: ir.Model
    config: RunConfig
    train: Split
    validation: Split | None
    test: Split | None
    objectives: tuple[Objective, ...]
    teacher: Teacher | None
    examples: int
    trivial_loss: float
    batch_size: int
    static_batch: bool
    device: Device
    notes: tuple[str, ...]
    own_batch: int | None = None
    shortcuts: frozenset[str] = frozenset()

    @property
    def objective(self) -> Objective:
        """The term that metrics are about."""
        return self.objectives[0]

    @property
    def hidden(self) -> frozenset[str]:
        """Names of values inside the model that a teacher's are compared with."""
        return frozenset(o.prediction for o in self.objectives if o.kind == "distill-hidden")

    def taught(self, batch: Mapping[str, Array]) -> Mapping[str, Array]:
        """`batch` with what the teacher says of it, where there is one."""
        return batch if self.teacher is None else self.teacher(batch)

    def unfixed(self, model: ir.Model) -> ir.Model:
        """`model`, or a copy of it that takes what passes have where its own graph does not.

        Args:
            model: the one given, or what is left of it after removals.
        """
        if self.own_batch is None or self.static_batch:
            return model
        copy = opened(model, self.own_batch)
        if copy is None:
            raise InvariantError("the model takes batches of any size no more; please report this")
        return copy

    def first_inputs(self, most: int) -> dict[str, Array]:
        """The inputs of the first training examples, as many as the model's own graph takes."""
        count = self.own_batch or min(most, len(self.train))
        return _inputs(self.train, count)

    def witnesses(self, most: int) -> dict[str, Array]:
        """The inputs of some examples for a session; whole batches for the model's own graph."""
        if self.own_batch is None or self.static_batch:
            return self.first_inputs(most)
        return _inputs(self.train, self.own_batch * max(most // self.own_batch, 2))

    @property
    def step_size(self) -> int:
        """Examples per optimizer step."""
        return self.batch_size * self.config.accumulate

    @property
    def judged(self) -> tuple[str, Split] | None:
        """What the report's metrics are measured on: test data, else validation data."""
        if self.test is not None:
            return "test", self.test
        return None if self.validation is None else ("validation", self.validation)


def stream(seed: int, name: str, *position: int) -> np.random.Generator:
    """The generator of one concern, at one position of the run: an epoch, a step.

    Concerns never draw from each other's, and no draw depends on earlier ones, so that a run can
    go on anywhere.
    """
    return np.random.default_rng([seed, _STREAMS.index(name), *position])


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
        ConfigError: no way to tell what to train, inputs with different batch sizes, or an option
            that is impossible or needs validation data where there is none.
    """
    model = read_model(path)
    fitted = fit_data(model, data, validation, config)
    shapes, _ = settle(sized(model, config))
    shaped = _shaped(model, shapes)
    objectives, fitted = goals(shaped, fitted, config.losses, config.output_name)
    train, given, test = fitted.train, fitted.validation, fitted.test
    examples = len(train)
    if given is None and config.validation_fraction > 0:
        rng = stream(config.seed, "validation")
        train, given = split_validation(train, config.validation_fraction, rng)
    _check_validation(given, config)
    device = Device(provider=config.provider, threads=config.threads)
    own = _own_batch(model)
    copy = None if own is None else _opened(model, train, own, config, device)
    static = own if copy is None else None
    if static is not None:
        _check_enough(path, len(train), static, config)
    elif own is not None:
        objectives = tuple(objective.of_any_batch() for objective in objectives)
    size = static or config.batch_size
    values = taught_values(objectives)
    teacher = Teacher(copy or model, values, device=device, size=size) if values else None
    return Problem(
        model=model,
        config=config,
        train=train,
        validation=given,
        test=test,
        objectives=objectives,
        teacher=teacher,
        examples=examples,
        trivial_loss=sum(
            o.loss.weight * _trivial_loss(o, train, teacher, size) for o in objectives
        ),
        batch_size=size,
        static_batch=static is not None,
        device=device,
        notes=(*fitted.notes, *_batch_notes(own, size, is_open=copy is not None)),
        own_batch=own,
    )


def read_model(path: str | os.PathLike[str]) -> ir.Model:
    """The model in a file, as it is analyzed and trained: hidden structure written out.

    Raises:
        InvalidModelError: the file is not a valid model.
    """
    return untie(inline(load(path)))


def _check_validation(validation: Split | None, config: RunConfig) -> None:
    """Options that compare validation metrics need some."""
    for option, value in (("--max-drop", config.max_drop), ("--patience", config.patience)):
        if validation is None and value is not None:
            raise ConfigError(
                f"{option} {value:g}: needs validation data; give --val, or a "
                "--validation-fraction above 0"
            )


def _trivial_loss(objective: Objective, train: Split, teacher: Teacher | None, size: int) -> float:
    if objective.kind == "distill" and teacher is not None:
        whole = max(min(len(train), _TAUGHT) // size, 1) * size  # batches: some models take no less
        some = teacher(train.batch(np.arange(min(len(train), whole))))
        return divergence_of_mean(objective, some[objective.target])
    if not objective.is_labelled:
        return 0.0
    suffix = objective.target.removeprefix(TARGET).removeprefix("/")
    target = train.others[suffix] if suffix else train.target
    assert target is not None
    return _of_constant(objective, target)


def _of_constant(objective: Objective, target: Array) -> float:
    """The loss of the best constant prediction, weights and smoothing left out."""
    kind = objective.kind
    if kind == "binary-cross-entropy":
        share = target.mean(axis=0, dtype=np.float64)
        return float(np.mean(entropy(np.stack([share, 1 - share]), axis=0)))
    if kind == "cross-entropy":
        _, counts = np.unique(target[target != IGNORED], return_counts=True)
        return float(entropy(counts)) if counts.size else 0.0
    if kind == "mse":
        return float(np.var(target, axis=0).mean())
    off = np.abs(target - np.median(target, axis=0))
    if kind == "l1":
        return float(off.mean())
    least = np.minimum(off, objective.loss.delta)
    return float(np.mean(least * (off - least / 2)))


def sized(model: ir.Model, config: RunConfig) -> ir.Model:
    """A copy for analysis, with the input sizes that the user gave; `model` if there are none."""
    return with_sizes(model, config.input_shapes)


def with_sizes(model: ir.Model, input_shapes: Mapping[str, Sequence[int]]) -> ir.Model:
    """As `sized`, with sizes by input name.

    The batch axis stays open where the model leaves it open: batches have other sizes.
    """
    sizes = {name: tuple(shape) for name, shape in input_shapes.items()}
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
        targets=target_names(model, config.losses),
    )


def _own_batch(model: ir.Model) -> int | None:
    """How many examples the inputs take, where that is a number.

    Raises:
        ConfigError: two inputs take different ones.
    """
    sizes = fixed_batches(model)
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ConfigError(
            f"inputs have different batch sizes ({listed}); export the model with a batch axis "
            "that all inputs share",
            sizes=sizes,
        )
    return next(iter(sizes.values()), None)


def _opened(
    model: ir.Model, train: Split, own: int, config: RunConfig, device: Device
) -> ir.Model | None:
    """A copy that takes batches of any size, compared with the model; None if there is none.

    Compared on examples, and on made-up inputs, as examples may be alike or zero in places.
    """
    copy = opened(model, own)
    if copy is None:
        return None
    count, shapes = PROVING * own, {name: tuple(s) for name, s in config.input_shapes.items()}
    rng = np.random.default_rng(config.seed)
    made_up = synthetic(copy, rng, examples=count, input_shapes=shapes)
    same = all(
        is_same(model, copy, feeds, own, device=device)
        for feeds in (_inputs(train, count), made_up)
    )
    return copy if same else None


def _inputs(split: Split, count: int) -> dict[str, Array]:
    """The inputs of the first `count` examples, from the beginning again where there are fewer."""
    batch = split.batch(np.arange(count) % len(split))
    return {name: array for name, array in batch.items() if not name.startswith(TARGET)}


def _check_enough(path: str | os.PathLike[str], count: int, static: int, config: RunConfig) -> None:
    """There are enough training examples for one step."""
    least = static * config.accumulate
    if count < least:
        raise DataError(
            f"{os.fspath(path)}: takes batches of {static} only, but there are {count} "
            f"training examples, and a step needs {least}; give more, or export the model with a "
            "dynamic batch axis",
            expected=least,
            got=count,
        )


def _batch_notes(own: int | None, size: int, *, is_open: bool) -> tuple[str, ...]:
    """What to say of a model that takes batches of `own` examples, trained in passes of `size`."""
    if own is None:
        return ()
    if is_open:
        return (
            f"the model takes batches of {own} only; copies of it that take any were trained, and "
            "gave the same results",
        )
    return (
        f"the model takes batches of {own} only, so --batch-size is {size}; no copy for other "
        "sizes was found that gives the same results",
    )


def _shaped(model: ir.Model, shapes: Mapping[str, Sizes]) -> ir.Model:
    """A copy whose values carry the settled sizes, for choosing the loss."""
    copy = model.clone()
    for node in copy.graph:
        for value in node.outputs:
            sizes = shapes.get(value.name or "")
            if sizes is not None:
                value.shape = ir.Shape(list(sizes))
    return copy
