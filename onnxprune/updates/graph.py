"""The update graph: gradients and moments in, next parameters and moments out, in place.

Its outputs are bound to the very buffers of its inputs; `updates.in_place` says when that is sound.
One run of it commits one step, the running
statistics of the forward pass included, so that a step is done as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.errors import ConfigError
from onnxprune.updates.in_place import OPSET, Writer, check_aliasing
from onnxprune.updates.ranks import match_ranks
from onnxprune.updates.rules import Moving, Rule, Scalars

__all__ = [
    "AVERAGE",
    "GRADIENT_NORM",
    "LEARNING_RATE",
    "SHARE",
    "STEP",
    "Site",
    "Transform",
    "UpdateGraph",
    "build_update",
]

LEARNING_RATE = "learning_rate"
STEP = "step"
SHARE = "share"
GRADIENT_NORM = "gradient_norm"
AVERAGE = "average"
"""The moment that holds the moving average of a parameter; it begins at the parameter's value."""

# (emitter, site, value) -> value: of a gradient before the rule, or of a parameter after.
Transform: TypeAlias = Callable[[Emitter, "Site", ir.Value], ir.Value]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Site:
    """One parameter, as transforms see it.

    Attributes:
        name: of the parameter.
        parameter: its value before the step.
        gradient: behind the transforms of gradients so far; behind all of them when parameters are
            transformed.
        scalars: the graph's further scalar inputs, by name.
    """

    name: str
    parameter: ir.Value
    gradient: ir.Value
    scalars: Mapping[str, ir.Value]

    @property
    def shape(self) -> list[int]:
        """Of the parameter."""
        shape = self.parameter.shape
        return [] if shape is None else [int(size) for size in shape.numpy()]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class UpdateGraph:
    """A graph that does one optimizer step.

    Attributes:
        model: inputs: `LEARNING_RATE` (), `STEP` () int64 from 1, all those named below, and
            `SHARE` () where there are sums.
        parameters: names of the parameters; these are their input names too.
        gradients: input name per parameter.
        sums: per parameter, the input that holds what `updates.accumulation` gathered from the
            batches before this one; empty when a step is one batch.
        moments: per slot, input name per parameter; those of `AVERAGE` cover the state too.
        carried: per state name, the input with its next value and the output that repeats it.
        overwrites: per output, the input whose buffer it is bound to.
        scalars: names of further inputs () that every step gives.
    """

    model: ir.Model
    parameters: tuple[str, ...]
    gradients: Mapping[str, str]
    sums: Mapping[str, str] = field(default_factory=dict)
    moments: Mapping[str, Mapping[str, str]]
    carried: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    overwrites: Mapping[str, str]
    scalars: tuple[str, ...] = ()


def build_update(
    rule: Rule,
    shapes: Mapping[str, Sequence[int]],
    *,
    state: Mapping[str, Sequence[int]] | None = None,
    accumulated: bool = False,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    weight_decay: float = 0.0,
    decay_vectors: bool = False,
    average: float | None = None,
    dtype: ir.DataType = ir.DataType.FLOAT,
    scalars: Sequence[str] = (),
    gradient_transforms: Sequence[Transform] = (),
    parameter_transforms: Sequence[Transform] = (),
) -> UpdateGraph:
    """The graph of one step: accumulate, clip, transform, decay, `rule`, transform, average.

    Args:
        rule: the optimizer.
        shapes: shape per parameter.
        state: shape of every value that forward passes update; carried over unchanged.
        accumulated: whether the gradient is that of the last batch of several: the input `SHARE`
            () is its share of the examples, and the sum over the others comes in `sums`.
        clip_value: largest magnitude of any element of a gradient.
        clip_norm: largest Euclidean norm of all gradients together (after `clip_value`, before
            decay); the norm before clipping is then an output, `GRADIENT_NORM`.
        weight_decay: >= 0; decoupled or as part of the gradient, as the rule says.
        decay_vectors: whether parameters of rank 1 and less (biases, scales) decay too.
        average: decay of the moving average of parameters and state, in [0, 1); None for none.
        dtype: of all parameters.
        scalars: names of inputs () that the transforms read.
        gradient_transforms: applied to every gradient after clipping, in order.
        parameter_transforms: applied to every moved parameter, in order: noise, masks.

    Raises:
        ConfigError: a limit is not positive, the decay negative, or `average` not in [0, 1).
        InvariantError: the graph would read a value after it is overwritten.
    """
    _check(clip_value, clip_norm, weight_decay, average)
    e = Emitter("update", opset=OPSET, dtype=dtype)
    writer = Writer(dtype)
    rate = writer.input(LEARNING_RATE, (), dtype)
    shared = Scalars(e, rate, writer.input(STEP, (), ir.DataType.INT64))
    given = {name: writer.input(name, (), dtype) for name in scalars}
    values = {name: writer.input(name, shape) for name, shape in shapes.items()}
    gradients = {name: writer.input(f"{name}/gradient", shape) for name, shape in shapes.items()}
    sums = {name: f"{name}/sum" for name in shapes} if accumulated else {}
    totals = _totals(e, writer, gradients) if accumulated else gradients
    clipped = _clipped(e, writer, totals, clip_value, clip_norm)
    moments = {slot: {name: f"{name}/{slot}" for name in shapes} for slot in rule.slots}
    for name, shape in shapes.items():
        site = Site(name=name, parameter=values[name], gradient=clipped[name], scalars=given)
        for transform in gradient_transforms:
            site = replace(site, gradient=transform(e, site, site.gradient))
        decay = weight_decay if decay_vectors or len(shape) > 1 else 0.0
        parameter = _moved(e, writer, rule, shared, site, decay)
        for transform in parameter_transforms:
            parameter = transform(e, site, parameter)
        writer.overwrite(values[name], parameter)
    carried = {name: writer.carry(e, name, shape) for name, shape in (state or {}).items()}
    if average is not None:
        moments[AVERAGE] = {name: f"{name}/{AVERAGE}" for name in (*shapes, *carried)}
        _average(e, writer, shared.warmed_up(average), (*shapes, *carried))
    model = writer.model(e)
    match_ranks(model, opset=OPSET)
    check_aliasing(model, writer.overwrites)
    return UpdateGraph(
        model=model,
        parameters=tuple(shapes),
        gradients={name: f"{name}/gradient" for name in shapes},
        sums=sums,
        moments=moments,
        carried=carried,
        overwrites=writer.overwrites,
        scalars=tuple(scalars),
    )


def _moved(
    e: Emitter, writer: Writer, rule: Rule, shared: Scalars, site: Site, decay: float
) -> ir.Value:
    """The next value of one parameter; its moments are written."""
    gradient = site.gradient
    if decay and not rule.decoupled:
        gradient = e.op("Add", gradient, e.op("Mul", site.parameter, e.scalar(decay)))
    moments = {slot: writer.input(f"{site.name}/{slot}", site.shape) for slot in rule.slots}
    moving = Moving(
        parameter=site.parameter,
        gradient=gradient,
        moments=moments,
        decay=decay if rule.decoupled else 0.0,
    )
    moved = rule.emit(e, shared, moving)
    for slot in rule.slots:
        writer.overwrite(moments[slot], moved.moments[slot])
    return moved.parameter


def _totals(e: Emitter, writer: Writer, gradients: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
    """Per parameter: what was accumulated before, and the last batch's part."""
    share = writer.input(SHARE, (), e.dtype)
    totals = {}
    for name, gradient in gradients.items():
        shape = [] if gradient.shape is None else [int(size) for size in gradient.shape.numpy()]
        before = writer.input(f"{name}/sum", shape)
        totals[name] = e.op("Add", before, e.op("Mul", gradient, share))
    return totals


def _average(e: Emitter, writer: Writer, decay: ir.Value, names: Sequence[str]) -> None:
    """Move the averages of `names`: decay * average + (1 - decay) * next."""
    following = {value.name: value for value in writer.outputs}
    rest = e.op("Sub", e.scalar(1.0), decay)
    for name in names:
        now = following.get(f"{name}/next") or following[f"{name}/carried"]
        shape = [] if now.shape is None else [int(size) for size in now.shape.numpy()]
        old = writer.input(f"{name}/{AVERAGE}", shape)
        writer.overwrite(old, e.op("Add", e.op("Mul", old, decay), e.op("Mul", now, rest)))


def _check(
    clip_value: float | None,
    clip_norm: float | None,
    weight_decay: float,
    average: float | None,
) -> None:
    for name, limit in (("clip_value", clip_value), ("clip_norm", clip_norm)):
        if limit is not None and limit <= 0:
            raise ConfigError(f"{name}: expected a positive number, got {limit}")
    if weight_decay < 0:
        raise ConfigError(f"weight_decay: expected 0 or more, got {weight_decay}")
    if average is not None and not 0 <= average < 1:
        raise ConfigError(f"average: expected a number in [0, 1), got {average}")


def _clipped(
    e: Emitter,
    writer: Writer,
    gradients: Mapping[str, ir.Value],
    clip_value: float | None,
    clip_norm: float | None,
) -> dict[str, ir.Value]:
    """Every element by `clip_value`, then all together: g * min(1, limit / (norm + 1e-6)).

    The small number is that of PyTorch's clip_grad_norm_.
    """
    clipped = dict(gradients)
    if clip_value is not None:
        low, high = e.scalar(-clip_value), e.scalar(clip_value)
        clipped = {name: e.op("Clip", g, low, high) for name, g in clipped.items()}
    if clip_norm is not None and clipped:
        squares = [e.op("ReduceSumSquare", g, keepdims=0) for g in clipped.values()]
        norm = e.op("Sqrt", e.op("Sum", *squares))
        writer.output(norm, GRADIENT_NORM, ())
        factor = e.op("Div", e.scalar(clip_norm), e.op("Add", norm, e.scalar(1e-6)))
        factor = e.op("Min", factor, e.scalar(1.0))
        clipped = {name: e.op("Mul", g, factor) for name, g in clipped.items()}
    return clipped
